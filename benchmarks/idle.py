"""What a worker costs that has nothing to do: `python -m benchmarks idle`. Nothing else may use the servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import click

from benchmarks._grounds import Ground, grounds
from benchmarks._options import common, publish, say
from creche import Queue
from creche.bench import Meter, Order, Report, gather, gathered, meter
from creche.bench import idle as measured

Run = tuple[Mapping[str, str], Mapping[str, float | None]]


async def once(ground: Ground, backend: str, queues: int, seconds: float, seen: dict[str, Meter]) -> Run:
    """Measure one worker on a database of its own."""
    with ground.database() as dsn:
        await Queue(dsn).migrate()
        order = Order(role="work", dsn=dsn, queues=[f"bench{number}" for number in range(queues)], backend=backend)
        async with meter(dsn) as watch:
            seen[ground.name] = watch
            labels = {"engine": ground.name, "loop": backend, "queues": str(queues)}
            return labels, (await measured(order, watch, seconds=seconds)).figures()


@click.command()
@common(("postgresql", "mariadb", "sqlite"), rounds=1)
@click.option("--seconds", default=60.0, show_default=True, help="For which each worker is watched.")
@click.option("--queues", multiple=True, type=int, default=(1, 20), show_default=True)
@click.option("--loop", "loops", multiple=True, default=("asyncio", "trio"), show_default=True, help="Or uvloop.")
def idle(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    seconds: float,
    queues: Sequence[int],
    loops: Sequence[str],
) -> None:
    """Statements per second, and CPU, of a worker with nothing to do."""
    runs: list[Run] = []
    seen: dict[str, Meter] = {}
    with grounds(dsns, engines) as places:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for place in places:
                if place.name == "memory":
                    continue
                for loop in loops:
                    runs += [anyio.run(partial(once, place, loop, count, seconds, seen)) for count in queues]
    settings = {name: f"statements: {watch.words}" for name, watch in seen.items()}
    facts = gather(servers=[watch.version for watch in seen.values()], settings=settings)
    report = Report(title="idle worker", facts=facts, rows=gathered(runs), main="statements/s")
    publish([report], output=output, compare=compare)


if __name__ == "__main__":
    idle()
