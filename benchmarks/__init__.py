"""Benchmarks: what creche does on this machine, side by side. They judge nothing and are no tests."""
