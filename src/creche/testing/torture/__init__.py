"""Torture: real processes on a real database are killed, frozen, cut off and lied to for as long as you like, and an
auditor counts what must not have happened. `python -m creche.testing.torture --engine postgresql --minutes 10`.
"""
