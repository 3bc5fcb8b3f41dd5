"""Runs the throughput benchmark: `python -m benchmarks --dsn postgresql://… --dsn sqlite:///bench.db`."""

from benchmarks.throughput import main

main()
