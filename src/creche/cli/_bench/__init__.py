"""`creche bench`: how fast this database is, in jobs, and with which settings of a worker. `creche.bench` measures.

What it makes is in a queue of its own, and gone at the end, also after a signal. Here its commands meet; each has a
module.
"""

from __future__ import annotations

import click

from creche.cli._bench._latency import latency
from creche.cli._bench._sweep import sweep
from creche.cli._bench._throughput import throughput

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure your own database, in a queue of its own.

    Each says beforehand what it will do, and asks. Its jobs are in a queue creche-bench-… that nobody else has; no
    other queue is touched, and when it ends, also by Ctrl-C, none of its jobs is left. What runs beside it on the
    database feels it, and is felt.
    """


for command in (throughput, latency, sweep):
    bench.add_command(command)
