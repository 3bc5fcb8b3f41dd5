"""How soon a thousand `receipt.wait()`s hear of their jobs' ends, and what their waiting costs the server.

`python -m benchmarks.waiters --dsn postgresql://…` dispatches jobs that are due later and waits for all of them in this
process; counts the looks and the server's transactions while nothing happens; then makes the jobs ready and has a
worker in another process run them. The delay of each answer counts from `completed_at`, which the database's clock
wrote before the settle was committed: this machine's clock, so the server has to be on it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final
from uuid import UUID

import anyio
from anyio import to_thread
from attrs import frozen
from rich.console import Console
from rich.table import Table

from creche import Queue, Receipt, Worker
from creche._job import End
from creche.storage import mask, open_storage

TYPE: Final = "benchmark.waited"
LATER: Final = 3_600.0  # seconds: nobody runs the jobs before they are made ready
SETTLED_IN: Final = 5.0  # seconds until every wait has its listener


@frozen
class Figures:
    """What one run showed."""

    looks: float  # per second, while nothing happened
    transactions: float | None  # per second, as the server counts them
    delays: Sequence[float]  # milliseconds


async def work(dsn: str, queue_name: str, told: Connection) -> None:
    """Run jobs until there is nobody to tell."""
    queue = Queue(dsn)

    @queue.task(TYPE)
    async def waited(number: int) -> int:
        return number

    async with queue, Worker(queue, queues=[queue_name], concurrency=50):
        told.send(None)
        await to_thread.run_sync(told.recv)


def _work(backend: str, dsn: str, queue_name: str, told: Connection) -> None:
    anyio.run(work, dsn, queue_name, told, backend=backend)


def count_looks(queue: Queue) -> list[int]:
    """Return a list of one number that grows with each look of those who wait."""
    looks = [0]
    watch = queue.storage.watch

    async def counted(job_ids: Collection[UUID], **options: Any) -> Mapping[UUID, End | None]:
        looks[0] += 1
        return await watch(job_ids, **options)

    vars(queue.storage)["watch"] = counted
    return looks


def transactions(dsn: str) -> int | None:
    """Return how many transactions were committed in a PostgreSQL database; None elsewhere."""
    if not dsn.startswith("postgres"):
        return None
    import psycopg

    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row is not None
        return int(row[0])


async def watch_idle(dsn: str, looks: list[int], seconds: float) -> tuple[float, float | None]:
    """Return the looks and the transactions per second while nothing happens."""
    await anyio.sleep(SETTLED_IN)
    first, before = looks[0], transactions(dsn)
    await anyio.sleep(seconds)
    rate = (looks[0] - first) / seconds
    await anyio.sleep(1.5)  # a server's statistics come a little late
    after = transactions(dsn)
    return rate, None if before is None or after is None else (after - before) / (seconds + 1.5)


async def wait_for_all(queue: Queue, receipts: Sequence[Receipt[Any]], waiters: int, answered: list[float]) -> None:
    """Wait for jobs, each of them by several, and note how late each answer came."""

    async def wait(receipt: Receipt[Any]) -> None:
        await receipt.wait()
        now = datetime.now(UTC)
        heard.append((receipt.job_id, now))

    heard: list[tuple[UUID, datetime]] = []
    async with anyio.create_task_group() as tasks:
        for number in range(waiters):
            tasks.start_soon(wait, receipts[number % len(receipts)])
    rows = await queue.storage.find([receipt.job_id for receipt in receipts])
    for job_id, at in heard:
        completed_at = rows[job_id].completed_at
        assert completed_at is not None
        answered.append((at - completed_at).total_seconds() * 1_000)


async def measure(dsn: str, backend: str, *, waiters: int, jobs: int, idle: float) -> Figures:
    """Return the figures of one run."""
    queue_name = f"waiters-{random.randrange(1 << 30):x}"  # noqa: S311 - not a secret
    await open_storage(dsn).migrate()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_work, args=(backend, dsn, queue_name, there))
    worker.start()
    answered: list[float] = []
    idled: tuple[float, float | None] = (0.0, None)
    try:
        await to_thread.run_sync(here.recv)
        queue = Queue(dsn)
        looks = count_looks(queue)
        async with queue:
            receipts = [
                await queue.dispatch(TYPE, {"number": number}, queue=queue_name, delay=LATER) for number in range(jobs)
            ]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_for_all, queue, receipts, waiters, answered)
                idled = await watch_idle(dsn, looks, idle)
                await queue.storage.retry([receipt.job_id for receipt in receipts])
    finally:
        here.send(None)
        await to_thread.run_sync(worker.join, 20)
    return Figures(*idled, answered)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiters")
    parser.add_argument("--dsn", action="append", required=True, help="a database made for this, on an idle server")
    parser.add_argument("--waiters", type=int, default=1_000)
    parser.add_argument(
        "--jobs", type=int, action="append", help="how many jobs they wait for; 1, and as many as they are"
    )
    parser.add_argument("--idle", type=float, default=20.0, help="seconds in which the waiting is watched")
    options = parser.parse_args()
    if options.waiters < 2:
        parser.error("of less than two who wait there are no percentiles")
    table = Table("storage", "loop", "jobs", "looks/s idle", "transactions/s idle", "p50 ms", "p99 ms", "max ms")
    for dsn in options.dsn:
        for backend in ("asyncio", "trio"):
            for jobs in options.jobs or (1, options.waiters):
                once = partial(measure, waiters=options.waiters, jobs=jobs, idle=options.idle)
                figures = anyio.run(once, dsn, backend, backend=backend)
                percentiles = statistics.quantiles(figures.delays, n=100)
                delays = (statistics.median(figures.delays), percentiles[98], max(figures.delays))
                served = "-" if figures.transactions is None else f"{figures.transactions:.2f}"
                words = [f"{delay:.1f}" for delay in delays]
                table.add_row(mask(dsn), backend, str(jobs), f"{figures.looks:.2f}", served, *words)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
