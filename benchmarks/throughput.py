"""Dispatch and drain no-op jobs, engine beside engine and loop beside loop, interleaved. It compares with no peer yet.

On a shared machine only ratios within one run mean anything, so every figure is the median of rounds that visit
each engine and loop in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from time import perf_counter

import anyio
from rich.console import Console
from rich.table import Table

from creche import Queue, Worker
from creche.storage import mask

CONCURRENCIES = (1, 10, 100)


async def measure(dsn: str, jobs: int) -> dict[str, float]:
    """Return rates (jobs/s) and latencies (ms) of one round on one engine; the tables must be empty of ready jobs."""
    queue = Queue(dsn)
    started: dict[int, float] = {}

    @queue.task("benchmark.noop")
    async def noop(number: int) -> None:
        started[number] = perf_counter()

    figures: dict[str, float] = {}
    await queue.migrate()
    async with queue:
        for concurrency in CONCURRENCIES:
            count = jobs if concurrency > 1 else max(100, jobs // 5)
            began = perf_counter()
            await queue.dispatch_many(noop.call(number) for number in range(count))
            if concurrency == max(CONCURRENCIES):
                figures["bulk dispatch /s"] = count / (perf_counter() - began)
            started.clear()
            began = perf_counter()
            async with Worker(queue, concurrency=concurrency):
                while len(started) < count:  # noqa: ASYNC110 - the handlers set no event, for it would cost them time
                    await anyio.sleep(0.005)
            figures[f"drain c={concurrency} /s"] = count / (perf_counter() - began)
        async with Worker(queue):
            await anyio.sleep(0.3)
            latencies: list[float] = []
            for number in range(50):
                started.clear()
                began = perf_counter()
                await (await noop.dispatch(number)).wait()
                latencies.append((started[number] - began) * 1_000)
                await anyio.sleep(0.01)
            figures["dispatch → handler, p50 ms"] = statistics.median(latencies)
        began = perf_counter()
        for number in range(200):
            await noop.options(queue="left alone", delay=86_400).dispatch(number)
        figures["single dispatch /s"] = 200 / (perf_counter() - began)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--dsn", action="append", help="a database made for this; may be given several times")
    parser.add_argument("--jobs", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    dsns: list[str] = options.dsn or ["sqlite:///benchmark.db", "memory://"]
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        for dsn in dsns:
            for backend in ("asyncio", "trio"):
                for name, figure in anyio.run(measure, dsn, options.jobs, backend=backend).items():
                    found[mask(dsn), backend][name].append(figure)
    names = list(next(iter(found.values())))
    table = Table("storage", "loop", *names, title=f"medians of {options.rounds} interleaved rounds")
    for (dsn, backend), figures in found.items():
        table.add_row(dsn, backend, *(f"{statistics.median(figures[name]):,.1f}" for name in names))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
