"""How long an idle worker takes to notice a job that another process dispatches, and what its waiting costs the server.

`python -m benchmarks.latency --dsn mysql://…` starts a worker in a process of its own, lets it grow idle, dispatches
jobs one by one with pauses in between, and counts the statements that the server is asked while nothing happens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection
from time import monotonic
from typing import Final

import anyio
from anyio import to_thread
from rich.console import Console
from rich.table import Table

from creche import Queue, Worker
from creche.storage import mask

TYPE: Final = "benchmark.latency"
QUIET: Final = 2.0  # seconds after which a worker that found nothing is idle


async def work(dsn: str, queue_name: str, told: Connection) -> None:
    """Say when each job began, until there is nobody to say it to."""
    queue = Queue(dsn)

    @queue.task(TYPE)
    async def begin(number: int) -> None:
        told.send((number, monotonic()))

    async with queue, Worker(queue, queues=[queue_name]):
        told.send(None)
        await to_thread.run_sync(told.recv)


def _work(backend: str, dsn: str, queue_name: str, told: Connection) -> None:
    anyio.run(work, dsn, queue_name, told, backend=backend)


async def dispatch(dsn: str, queue_name: str, jobs: int, told: Connection) -> Sequence[float]:
    """Return the milliseconds from before each dispatch to its handler's first line."""
    waits: list[float] = []
    async with Queue(dsn) as queue:
        for number in range(jobs):
            await anyio.sleep(random.uniform(0.2, 0.6))  # noqa: S311 - not a secret
            began = monotonic()
            await queue.dispatch(TYPE, {"number": number}, queue=queue_name)
            told_number, at = await to_thread.run_sync(told.recv)
            assert told_number == number
            waits.append((at - began) * 1_000)
    return waits


def questions(dsn: str) -> int | None:
    """Return how many statements a MySQL or MariaDB was asked since its start, this one included; None elsewhere."""
    if not dsn.startswith(("mysql", "mariadb")):
        return None
    from creche.testing.servers import connect_mysql

    with connect_mysql(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
        row = cursor.fetchone()
        assert row
        return int(row[1])


async def idle_rate(dsn: str, seconds: float) -> float | None:
    """Return the statements per second that the server is asked while nothing happens."""
    await anyio.sleep(QUIET)
    before = questions(dsn)
    await anyio.sleep(seconds)
    after = questions(dsn)
    # Whoever asks is counted too: by as many statements as a look at once takes.
    again = questions(dsn)
    if before is None or after is None or again is None:
        return None
    return max(0, (after - before) - (again - after)) / seconds


async def measure(dsn: str, backend: str, jobs: int, idle: float) -> tuple[Sequence[float], float | None]:
    """Return the latencies in milliseconds, and the statements per second of the idle worker."""
    queue_name = f"latency-{random.randrange(1 << 30):x}"  # noqa: S311 - not a secret
    await Queue(dsn).migrate()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_work, args=(backend, dsn, queue_name, there))
    worker.start()
    try:
        await to_thread.run_sync(here.recv)
        rate = await idle_rate(dsn, idle)
        return await dispatch(dsn, queue_name, jobs, here), rate
    finally:
        here.send(None)
        await to_thread.run_sync(worker.join, 20)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency")
    parser.add_argument("--dsn", action="append", required=True, help="a database made for this, on an idle server")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds in which the idle worker is watched")
    options = parser.parse_args()
    table = Table("storage", "worker's loop", "p50 ms", "p99 ms", "max ms", "statements/s when idle")
    for dsn in options.dsn:
        for backend in ("asyncio", "trio"):
            waits, rate = anyio.run(measure, dsn, backend, options.jobs, options.idle)
            percentiles = statistics.quantiles(waits, n=100)
            figures = [f"{figure:.1f}" for figure in (statistics.median(waits), percentiles[98], max(waits))]
            table.add_row(mask(dsn), backend, *figures, "-" if rate is None else f"{rate:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
