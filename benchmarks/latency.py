"""How long an idle worker takes to begin a job that another process dispatches: `python -m benchmarks latency`.

On PostgreSQL the same is measured of a LISTEN, a NOTIFY and a claim written by hand, in the same rounds. To wait for a
result takes statements of its own, just while the worker reserves: so it is another run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import click

from benchmarks._grounds import Ground, grounds
from benchmarks._options import common, publish, say
from benchmarks.rivals import BARE
from creche import Queue
from creche.bench import CRECHE, Contestant, Meter, Order, Report, gather, gathered, meter
from creche.bench import latency as measured

Run = tuple[Mapping[str, str], Mapping[str, float | None]]


async def once(
    ground: Ground, who: Contestant, backend: str, *, wait: bool, jobs: int, pause: float, seen: dict[str, Meter]
) -> Run:
    """Measure one contestant on a database of its own."""
    with ground.database() as dsn:
        await Queue(dsn).migrate()
        async with meter(dsn) as watch:
            seen[ground.name] = watch
        order = Order(role="pace", dsn=dsn, jobs=jobs, pause=pause, wait=wait, backend=backend)
        name = f"creche, {backend}{', waited for' if wait else ''}" if who is CRECHE else who.name
        labels = {"who": name, "engine": ground.name}
        return labels, (await measured(order, who)).figures()


@click.command()
@common(("postgresql", "mariadb", "sqlite"), rounds=3)
@click.option("--jobs", default=100, show_default=True)
@click.option("--pause", default=0.1, show_default=True, help="Seconds between jobs, on average.")
@click.option("--loop", "loops", multiple=True, default=("asyncio", "trio"), show_default=True, help="Or uvloop.")
def latency(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    jobs: int,
    pause: float,
    loops: Sequence[str],
) -> None:
    """From before the dispatch to the handler's first line, and to the end of `wait()`."""
    runs: list[Run] = []
    seen: dict[str, Meter] = {}
    with grounds(dsns, engines) as places:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for place in places:
                if place.name == "memory":
                    continue
                who = [(CRECHE, loop, wait) for loop in loops for wait in (False, True)]
                if place.name == "postgresql":
                    who.append((BARE, "", False))
                for each, loop, wait in who:
                    run = partial(once, place, each, loop, wait=wait, jobs=jobs, pause=pause, seen=seen)
                    runs.append(anyio.run(run))
    facts = gather(servers=[watch.version for watch in seen.values()])
    report = Report(
        title="latency of an idle worker", facts=facts, rows=gathered(runs), main="handler p50 ms", beside=BARE.name
    )
    publish([report], output=output, compare=compare)


if __name__ == "__main__":
    latency()
