"""Dispatch and drain no-op jobs: engine beside engine and loop beside loop, in interleaved rounds.

`python -m benchmarks throughput`. Each figure comes from processes of its own, on a database of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import click
from attrs import frozen

from benchmarks._grounds import ENGINES, Ground, grounds
from benchmarks._options import chosen, common, publish, say
from benchmarks._shares import limited
from creche.bench import Meter, Order, Report, dispatched, drained, gather, gathered, meter

Run = tuple[Mapping[str, str], Mapping[str, float | None]]


@frozen(kw_only=True)
class Scene:
    """One thing to measure.

    Attributes:
        processes: workers.
        kind: a drain, or a way to dispatch.
        share: of a core, that each worker may take.
    """

    kind: str = "drain"
    concurrency: int = 10
    processes: int = 1
    payload: int = 100
    milliseconds: int = 0
    backend: str = "asyncio"
    keep: bool = True
    share: float = 1.0

    @property
    def words(self) -> str:
        """What it is, for a table."""
        if self.kind != "drain":
            return self.kind
        words = f"drain c={self.concurrency}"
        words += f" × {self.processes} processes" if self.processes > 1 else ""
        words += f", {self.payload} B" if self.payload != 100 else ""
        words += f", {self.milliseconds} ms" if self.milliseconds else ""
        words += "" if self.keep else ", rows deleted"
        return words + (f", {self.share:g} of a core each" if self.share < 1 else "")


def scenes(backends: Sequence[str], *, full: bool) -> Iterator[Scene]:
    """What there is to measure, the quick ones or all."""
    for backend in backends:
        for keep in (True, False):
            for concurrency in (1, 10, 100):
                yield Scene(concurrency=concurrency, backend=backend, keep=keep)
        yield Scene(concurrency=10, processes=2, backend=backend)
        yield Scene(kind="dispatch, 1 caller", backend=backend)
        yield Scene(kind="dispatch, 16 callers", backend=backend)
        yield Scene(kind="dispatch, bulk", backend=backend)
        if full:
            for processes in (1, 2):
                yield Scene(concurrency=100, processes=processes, backend=backend, keep=False, share=0.25)
            yield Scene(concurrency=1, processes=2, backend=backend)
            yield Scene(concurrency=100, processes=2, backend=backend)
            for milliseconds in (1, 20):
                for concurrency in (10, 100):
                    yield Scene(concurrency=concurrency, milliseconds=milliseconds, backend=backend)
            yield Scene(concurrency=100, payload=10_000, backend=backend)
            yield Scene(kind="dispatch, bulk", payload=10_000, backend=backend)


def order_of(scene: Scene, dsn: str, jobs: int) -> Order:
    """Return the order that a scene comes to."""
    seconds = scene.milliseconds / 1_000
    if seconds:  # as many as take two seconds
        jobs = min(jobs, int(2 * scene.concurrency / seconds))
    elif scene.concurrency * scene.processes == 1:
        jobs = max(1, jobs // 4)
    return Order(
        role="drain",
        dsn=dsn,
        jobs=max(1, jobs // (1 + scene.payload // 1_000)),
        concurrency=scene.concurrency,
        payload=scene.payload,
        seconds=seconds,
        backend=scene.backend,
        keep=scene.keep,
    )


async def measure(scene: Scene, order: Order, watch: Meter, *, calls: bool) -> Mapping[str, float | None]:
    """Measure one scene once."""
    match scene.kind:
        case "dispatch, 1 caller":
            singles = order.to("dispatch", jobs=max(1, order.jobs // 10), count_calls=calls, count_statements=calls)
            return (await dispatched(singles, watch)).figures()
        case "dispatch, 16 callers":
            singles = order.to(
                "dispatch", jobs=max(16, order.jobs // 5), callers=16, count_calls=calls, count_statements=calls
            )
            return (await dispatched(singles, watch)).figures()
        case "dispatch, bulk":
            bulk = order.to("fill", count_calls=calls, count_statements=calls)
            return (await dispatched(bulk, watch)).figures()
        case _:
            here = order.dsn.startswith("memory")
            if not here:
                await dispatched(order.to("fill"), watch)
                await watch.tidy()
            drain = order.to("drain", here=here, count_calls=calls, count_statements=calls)
            with limited(scene.share) as workers:
                return (await drained(drain, watch, workers, processes=scene.processes)).figures()


async def once(ground: Ground, scene: Scene, jobs: int, seen: dict[str, Meter], *, calls: bool) -> Run:
    """Measure one scene on a database of its own."""
    with ground.database() as dsn:
        order = order_of(scene, dsn, jobs)
        async with meter(dsn) as watch:
            seen[ground.name] = watch
            if order.dsn.startswith("memory") and scene.processes > 1:
                return {}, {}
            labels = {"engine": ground.name, "loop": scene.backend, "what": scene.words}
            return labels, await measure(scene, order, watch, calls=calls)


@click.command()
@common(ENGINES, rounds=5)
@click.option("--jobs", default=50_000, show_default=True, help="Of a drain; at concurrency 1, a quarter of it.")
@click.option("--loop", "loops", multiple=True, default=("asyncio", "trio"), show_default=True, help="Or uvloop.")
@click.option(
    "--full",
    is_flag=True,
    help="Handlers of 1 and 20 ms, payloads of 10 kB, more processes, shares of a core (root, on Linux).",
)
@click.option("--only", default="", help="What is called this, else all that has this in its name.")
def throughput(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    jobs: int,
    loops: Sequence[str],
    full: bool,
    only: str,
) -> None:
    """Jobs per second, and what each costs."""
    runs: list[Run] = []
    seen: dict[str, Meter] = {}
    with grounds(dsns, engines) as places:
        every = [*scenes(loops, full=full)]
        meant = chosen({scene.words for scene in every}, [only] if only else [])
        visits = [(scene, place) for scene in every for place in places if scene.words in meant]
        for share in {scene.share for scene, _ in visits}:
            with limited(share):  # or it is known now, and not after half of a round
                pass
        for number in range(rounds + 1):
            calls = number == rounds  # the last round counts Python's calls, which takes longer
            say(f"round {number + 1} of {rounds}" if not calls else "counting calls")
            for scene, place in visits:
                size = max(1, jobs // 10) if calls else jobs
                labels, figures = anyio.run(partial(once, place, scene, size, seen, calls=calls))
                if labels:
                    runs.append((labels, figures))
    settings = {name: f"{watch.settings}; statements: {watch.words}" for name, watch in seen.items()}
    facts = gather(servers=[watch.version for watch in seen.values()], settings=settings)
    publish([Report(title="throughput", facts=facts, rows=gathered(runs))], output=output, compare=compare)


if __name__ == "__main__":
    throughput()
