"""What a table that is full already does to a worker: `python -m benchmarks backlog`.

Each case has a database of its own, filled once; then pairs of drains follow each other, of so many jobs in an empty
table and of as many in the full one. What counts is the ratio of each pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import click
from anyio import to_thread

from benchmarks import _rows
from benchmarks._grounds import Ground, grounds
from benchmarks._options import common, publish, say
from creche import Queue
from creche.bench import QUEUE, Meter, Order, Report, dispatched, drained, gather, gathered, meter

CASES: Final = ("pending", "scheduled", "completed", "queues", "churn")
WORDS: Final = {
    "pending": "{rows:,} pending",
    "scheduled": "{rows:,} scheduled, at high priority",
    "completed": "{rows:,} completed",
    "queues": "50 queues, {rows:,} pending in the others",
    "churn": "{churn:,} jobs of churn under an old snapshot",
}
QUEUES: Final = 49
EARLIER: Final = 1 << 40  # numbers of rows that come after all others

Run = tuple[Mapping[str, str], Mapping[str, float | None]]


async def _fresh(dsn: str) -> None:
    await Queue(dsn).migrate()


async def fill(case: str, order: Order, watch: Meter, stack: ExitStack, *, rows: int, churn: int) -> None:
    """Make the table what the case says."""
    dsn = order.dsn
    await _fresh(dsn)
    match case:
        case "pending" | "scheduled" | "completed":
            await to_thread.run_sync(partial(_rows.write, dsn, rows, status=case))
        case "queues":
            await to_thread.run_sync(partial(_rows.write, dsn, rows, queue="other", queues=QUEUES))
        case _:
            stack.enter_context(_rows.old_snapshot(dsn))
            for done in range(0, churn, 50_000):
                part = order.to("fill", jobs=min(50_000, churn - done), options={})
                await dispatched(part, watch)
                await drained(part.to("drain"), watch)
    await watch.tidy()


async def pairs(
    ground: Ground, case: str, order: Order, *, rows: int, churn: int, rounds: int, seen: dict[str, Meter]
) -> list[Run]:
    """Measure one case."""
    runs: list[Run] = []
    labels = {"engine": ground.name, "what": WORDS[case].format(rows=rows, churn=churn)}
    with ExitStack() as stack:
        full = stack.enter_context(ground.database())
        async with meter(full) as watch:
            seen[ground.name] = watch
            await fill(case, order.to("drain", dsn=full), watch, stack, rows=rows, churn=churn)
            for number in range(rounds):
                with ground.database() as empty:
                    await _fresh(empty)
                    await to_thread.run_sync(_rows.write, empty, order.jobs)
                    async with meter(empty) as other:
                        await other.tidy()
                        base = (await drained(order.to("drain", dsn=empty), other)).figures()
                if case != "pending":
                    more = partial(_rows.write, full, order.jobs, first=EARLIER + number * order.jobs)
                    await to_thread.run_sync(more)
                if case != "churn":  # whose old snapshot lets nothing be tidied
                    await watch.tidy()
                figures = (await drained(order.to("drain", dsn=full), watch)).figures()
                rate, empty_rate = figures["jobs/s"], base["jobs/s"]
                share = rate / empty_rate if rate and empty_rate else None
                runs.append((labels, {"÷ empty": share, "empty jobs/s": empty_rate, **figures}))
    return runs


@click.command()
@common(("postgresql", "mariadb"), rounds=5)
@click.option("--rows", default=1_000_000, show_default=True, help="In the table already.")
@click.option("--churn", default=500_000, show_default=True, help="Jobs that came and went under the old snapshot.")
@click.option("--jobs", default=20_000, show_default=True, help="Of a drain.")
@click.option("--concurrency", default=100, show_default=True)
@click.option("--case", "cases", multiple=True, type=click.Choice(CASES), default=CASES, show_default=True)
def backlog(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    rows: int,
    churn: int,
    jobs: int,
    concurrency: int,
    cases: Sequence[str],
) -> None:
    """Jobs per second where a million others are in the way."""
    runs: list[Run] = []
    seen: dict[str, Meter] = {}
    order = Order(role="drain", dsn="", jobs=jobs, concurrency=concurrency, queues=(QUEUE,), options={"max_jobs": jobs})
    with grounds(dsns, engines) as places:
        for place in places:
            for case in cases:
                say(f"{place.name}: {case}")
                run = partial(pairs, place, case, order, rows=rows, churn=churn, rounds=rounds, seen=seen)
                runs += anyio.run(run)
    settings = {name: str(watch.settings) for name, watch in seen.items()}
    facts = gather(servers=[watch.version for watch in seen.values()], settings=settings)
    report = Report(title=f"backlog: drain of {jobs:,} at c={concurrency}", facts=facts, rows=gathered(runs))
    publish([report], output=output, compare=compare)


if __name__ == "__main__":
    backlog()
