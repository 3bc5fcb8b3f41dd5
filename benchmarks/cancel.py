"""How long the handler of a running job takes to hear that another process cancels it.

`python -m benchmarks.cancel --dsn postgresql://…` starts a worker in a process of its own, dispatches jobs that go on
for ever, one by one, and cancels each; what counts is the time from before `queue.cancel` to the cancellation within
the handler. Without a wake that would be up to a third of the lease.
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
from anyio import get_cancelled_exc_class, to_thread
from rich.console import Console
from rich.table import Table

from creche import Queue, Worker
from creche.storage import mask

TYPE: Final = "benchmark.cancel"
LEASE: Final = 30.0  # seconds, as a worker has it unless it is told otherwise


async def work(dsn: str, queue_name: str, told: Connection) -> None:
    """Say when each job began and when it was cancelled, until there is nobody to say it to."""
    queue = Queue(dsn)

    @queue.task(TYPE)
    async def go_on(number: int) -> None:
        told.send((number, monotonic()))
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            told.send((number, monotonic()))
            raise

    async with queue, Worker(queue, queues=[queue_name], lease=LEASE):
        told.send(None)
        await to_thread.run_sync(told.recv)


def _work(backend: str, dsn: str, queue_name: str, told: Connection) -> None:
    anyio.run(work, dsn, queue_name, told, backend=backend)


async def cancel(dsn: str, queue_name: str, cancels: int, told: Connection) -> Sequence[float]:
    """Return the milliseconds from before each cancel to the handler's cancellation."""
    waits: list[float] = []
    async with Queue(dsn) as queue:
        for number in range(cancels):
            receipt = await queue.dispatch(TYPE, {"number": number}, queue=queue_name)
            assert (await to_thread.run_sync(told.recv))[0] == number
            await anyio.sleep(random.uniform(0.0, 0.2))  # noqa: S311 - not a secret
            began = monotonic()
            await queue.cancel(receipt.job_id)
            told_number, at = await to_thread.run_sync(told.recv)
            assert told_number == number
            waits.append((at - began) * 1_000)
    return waits


async def measure(dsn: str, backend: str, cancels: int) -> Sequence[float]:
    """Return the latencies in milliseconds."""
    queue_name = f"cancel-{random.randrange(1 << 30):x}"  # noqa: S311 - not a secret
    await Queue(dsn).migrate()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_work, args=(backend, dsn, queue_name, there))
    worker.start()
    try:
        await to_thread.run_sync(here.recv)
        return await cancel(dsn, queue_name, cancels, here)
    finally:
        here.send(None)
        await to_thread.run_sync(worker.join, 20)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cancel")
    parser.add_argument("--dsn", action="append", required=True, help="a database made for this, on an idle server")
    parser.add_argument("--cancels", type=int, default=200)
    options = parser.parse_args()
    if options.cancels < 2:
        parser.error("of less than two cancels there are no percentiles")
    table = Table("storage", "worker's loop", "p50 ms", "p99 ms", "max ms", "over a renewal")
    for dsn in options.dsn:
        for backend in ("asyncio", "trio"):
            waits = anyio.run(measure, dsn, backend, options.cancels)
            percentiles = statistics.quantiles(waits, n=100)
            figures = [f"{figure:.1f}" for figure in (statistics.median(waits), percentiles[98], max(waits))]
            late = sum(wait > LEASE / 3 * 1_000 for wait in waits)
            table.add_row(mask(dsn), backend, *figures, str(late))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
