"""Whether memory grows with the jobs that came by: `python -m benchmarks memory`.

One process dispatches all jobs in bulk, another runs them; each says what it holds after every 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import click

from benchmarks._grounds import Ground, grounds
from benchmarks._options import common, publish, say
from creche.bench import Meter, Order, Report, gather, gathered, meter
from creche.bench import memory as measured

Run = tuple[Mapping[str, str], Mapping[str, float | None]]


def held(samples: Sequence[tuple[int, int]], jobs: int) -> float | None:
    """Return the MiB that were resident after so many jobs, or the first time after that anybody looked."""
    return next((size / (1 << 20) for count, size in samples if count >= jobs), None)


async def once(ground: Ground, backend: str, jobs: int, concurrency: int, seen: dict[str, Meter]) -> Run:
    """Measure both processes on a database of their own."""
    with ground.database() as dsn:
        order = Order(
            role="fill", dsn=dsn, jobs=jobs, concurrency=concurrency, chunk=max(1, jobs // 50), backend=backend
        )
        producer, worker = await measured(order)
        async with meter(dsn) as watch:
            seen[ground.name] = watch
    early = jobs // 10
    figures: dict[str, float | None] = {}
    for name, answer in (("worker", worker), ("producer", producer)):
        before, after = held(answer.samples, early), held(answer.samples, jobs)
        figures[f"{name} MiB after {early:,}"] = before
        figures[f"{name} MiB after {jobs:,}"] = after
        figures[f"{name} growth"] = after / before if before and after else None
    return {"engine": ground.name, "loop": backend, "what": f"c={concurrency}"}, figures


@click.command()
@common(("postgresql", "mariadb", "sqlite"), rounds=1)
@click.option("--jobs", default=500_000, show_default=True, help="Memory is compared with that after a tenth of them.")
@click.option("--concurrency", default=100, show_default=True)
@click.option("--loop", "loops", multiple=True, default=("asyncio",), show_default=True, help="Or trio, or uvloop.")
def memory(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    jobs: int,
    concurrency: int,
    loops: Sequence[str],
) -> None:
    """Resident memory of a worker and of a producer, early and late."""
    runs: list[Run] = []
    seen: dict[str, Meter] = {}
    with grounds(dsns, engines) as places:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for place in places:
                if place.name != "memory":
                    runs += [anyio.run(partial(once, place, loop, jobs, concurrency, seen)) for loop in loops]
    facts = gather(servers=[watch.version for watch in seen.values()])
    report = Report(title="memory", facts=facts, rows=gathered(runs), main="worker growth")
    publish([report], output=output, compare=compare)


if __name__ == "__main__":
    memory()
