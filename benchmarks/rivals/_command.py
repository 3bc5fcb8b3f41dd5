"""The races: in each round every contestant runs once, on a fresh database of the same server.

How many jobs a run has comes from a round before the first, which is thrown away: as many as take some seconds. So a
slow contestant is measured for as long as a fast one. A run that fails, or takes too long, ends no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import click
from attrs import evolve, frozen

from benchmarks._grounds import FileGround, Ground, grounds
from benchmarks._options import chosen, common, publish, say
from benchmarks.rivals import _pgbench as pgbench
from benchmarks.rivals._contestants import ENTRIES, Entry
from benchmarks.rivals._environment import Missing
from benchmarks.rivals._pgbench import Bare
from creche import Queue
from creche.bench import (
    Contestant,
    Meter,
    Order,
    Report,
    Row,
    Work,
    dispatched,
    drained,
    gather,
    gathered,
    idle,
    latency,
    meter,
)
from creche.errors import CrecheError

Figures = Mapping[str, float | None]

PAYLOAD: Final = 21  # bytes: {"text":"xxxxxxxxxx"}
FEWEST: Final = 300  # jobs of a run
PROBE: Final = 400  # jobs of the round that is thrown away
COUNTED: Final = 2_000  # jobs of the round that counts Python's calls


@frozen(kw_only=True)
class Race:
    """What is measured of every contestant.

    Attributes:
        kind: `drain`, `dispatch`, `bulk`, `latency`, `idle`.
    """

    kind: str
    concurrency: int = 10
    processes: int = 1
    callers: int = 1

    @property
    def sized(self) -> bool:
        """Whether a run has as many jobs as take some seconds."""
        return self.kind not in {"latency", "idle"}

    @property
    def name(self) -> str:
        """What it is, for a table."""
        match self.kind:
            case "drain":
                return f"drain c={self.concurrency}" + (f" × {self.processes}" if self.processes > 1 else "")
            case "dispatch":
                return "dispatch, 1 at a time" if self.callers == 1 else f"dispatch, {self.callers} at once"
            case "bulk":
                return "dispatch, bulk"
            case _:
                return self.kind


RACES: Final = (
    *(Race(kind="drain", concurrency=concurrency) for concurrency in (1, 10, 100)),
    Race(kind="drain", concurrency=10, processes=2),
    Race(kind="dispatch"),
    Race(kind="dispatch", callers=16),
    Race(kind="bulk"),
    Race(kind="latency"),
    Race(kind="idle"),
)

BARE: Final = {
    "drain c=1": (Bare(batch=1), Bare(batch=1, keep=True)),
    "drain c=10": (Bare(batch=1, clients=16),),
    "drain c=100": (Bare(), Bare(keep=True)),
    "drain c=10 × 2": (Bare(clients=2),),
}
INSERTS: Final = {
    "dispatch, 1 at a time": ((1, 1),),
    "dispatch, 16 at once": ((1, 16),),
    "dispatch, bulk": ((pgbench.ROWS, 1),),
}


@frozen
class Runner:
    """Runs one contestant in one race, once.

    Attributes:
        settings: what contestants were set to, as they said it; it grows.
        seconds: that a run should take.
        patience: seconds after which it has failed.
        most: jobs of a run.
    """

    places: Mapping[str, Ground]
    seconds: float
    patience: float
    most: int
    settings: dict[str, str]
    rates: dict[tuple[str, str], float]

    def jobs(self, race: Race, name: str) -> int:
        """Return how many jobs a run has."""
        rate = self.rates.get((race.name, name))
        return PROBE if rate is None else max(FEWEST, min(self.most, int(rate * self.seconds)))

    async def run(self, race: Race, entry: Entry, who: Contestant, calls: bool) -> Figures:
        """Run it on a database of its own."""
        who = evolve(who, patience=self.patience)
        with self.places[entry.engine].database() as dsn:
            jobs = COUNTED if calls else self.jobs(race, entry.name)
            order = Order(
                role="drain", dsn=dsn, jobs=jobs, payload=PAYLOAD, concurrency=race.concurrency, callers=race.callers
            )
            order = order.to("drain", count_calls=calls, **entry.changes)
            if entry.name.startswith("creche"):
                await Queue(dsn).migrate()
            async with meter(dsn) as watch:
                return await self._run(race, entry, order, who, watch)

    async def _run(self, race: Race, entry: Entry, order: Order, who: Contestant, watch: Meter) -> Figures:
        match race.kind:
            case "drain":
                await dispatched(order.to("fill", count_calls=False, chunk=1_000), watch, who)
                await watch.tidy()
                return self._note(race, entry, await drained(order, watch, who, processes=race.processes))
            case "dispatch":
                return self._note(race, entry, await dispatched(order.to("dispatch"), watch, who))
            case "bulk":
                return self._note(race, entry, await dispatched(order.to("fill"), watch, who))
            case "latency":
                return (await latency(order.to("pace", jobs=40), who)).figures()
            case _:
                return (await idle(order.to("work"), watch, who, seconds=10)).figures()

    def _note(self, race: Race, entry: Entry, work: Work) -> Figures:
        for answer in work.answers:
            versions = ", ".join(f"{name} {value}" for name, value in answer.versions.items())
            said = f"{answer.settings} [{versions}]" if answer.settings else ""
            if said:
                self.settings[f"{entry.name}, {race.name}"] = said
        figures = work.figures()
        if (rate := figures.get("jobs/s")) is not None:
            self.rates[race.name, entry.name] = rate
        return figures

    async def bare(self, race: Race, bare: Bare, binary: str, _calls: bool) -> Figures:
        """Run the bare statements of a drain."""
        with self.places["postgresql"].database() as dsn:
            async with meter(dsn) as watch:
                figures = await pgbench.drain(
                    bare,
                    binary,
                    dsn,
                    watch,
                    jobs=self.jobs(race, bare.name),
                    payload=PAYLOAD,
                    patience=self.patience,
                )
        self.rates[race.name, bare.name] = figures["jobs/s"] or 0.0
        return figures

    async def insert(
        self,
        race: Race,
        name: str,
        rows: int,
        clients: int,
        binary: str,
        _calls: bool,
    ) -> Figures:
        """Run the bare statements of a dispatch."""
        with self.places["postgresql"].database() as dsn:
            async with meter(dsn) as watch:
                jobs = self.jobs(race, name)
                figures = await pgbench.insert(
                    binary,
                    dsn,
                    watch,
                    jobs=jobs,
                    payload=PAYLOAD,
                    patience=self.patience,
                    rows=rows,
                    clients=clients,
                )
        self.rates[race.name, name] = figures["jobs/s"] or 0.0
        return figures


@click.command()
@common(("postgresql",), rounds=5)
@click.option("--seconds", default=3.0, show_default=True, help="That a run should take.")
@click.option(
    "--patience",
    default=120.0,
    show_default=True,
    help="Seconds, after those that it should take, until a run is given up: it has failed.",
)
@click.option("--jobs", "most", default=200_000, show_default=True, help="Of a run, at most.")
@click.option(
    "--only",
    multiple=True,
    help="The contestant of this name, else all with this in their name; and creche. May be repeated.",
)
@click.option(
    "--race", "wanted", multiple=True, help="The race of this name, else all with this in their name; may be repeated."
)
def rivals(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    seconds: float,
    patience: float,
    most: int,
    only: Sequence[str],
    wanted: Sequence[str],
) -> None:
    """What creche does, beside its rivals and beside the bare statements.

    A run that fails is told of, and the others go on; the exit code is 1 if that leaves anybody without figures in a
    race.
    """
    notes: list[Row] = []
    here: list[tuple[Entry, Contestant]] = []
    asked = {*chosen([entry.name for entry in ENTRIES], only), "creche"}
    if any("SQLite" in name for name in asked):
        asked.add("creche, SQLite")
    for entry in ENTRIES:
        if entry.name not in asked:
            continue
        found = entry.start()
        if isinstance(found, Missing):
            notes.append(Row(labels={"contestant": entry.name, "what": "all"}, note=f"not measured: {found.why}"))
            say(f"{entry.name}: not measured: {found.why}")
        else:
            here.append((entry, found))
    binary: str | Missing = pgbench.pgbench()
    if only and not any("pgbench".startswith(each) for each in only):
        binary = Missing("not asked for")
    elif isinstance(binary, Missing):
        notes.append(Row(labels={"contestant": "pgbench", "what": "all"}, note=f"not measured: {binary.why}"))
    meant = chosen([race.name for race in RACES], wanted)
    races = [race for race in RACES if race.name in meant]

    with grounds(dsns, engines) as places:
        engines_here: dict[str, Ground] = {"sqlite": FileGround()}
        engines_here.update((place.name, place) for place in places)
        here = [(entry, who) for entry, who in here if entry.engine in engines_here]
        if "postgresql" not in engines_here:
            binary = Missing("needs a PostgreSQL")
        runner = Runner(engines_here, seconds, seconds + patience, most, {}, {})
        rows, lost = _run_all([*_visits(runner, races, here, binary)], rounds)
        servers = [anyio.run(_about, place) for place in engines_here.values()]
    settings = {**{version: str(its) for version, its in servers if its}, **runner.settings}
    facts = gather(servers=[version for version, _ in servers], settings=settings)
    reports = [
        Report(title=f"rivals: {title}", facts=facts, rows=rows, main=main, beside=beside)
        for title, main, beside, rows in _sorted([*rows, *notes])
    ]
    publish(reports, output=output, compare=compare)
    if lost:
        say(f"no run succeeded: {'; '.join(f'{visit.name}, {visit.race.name}' for visit in lost)}")
        raise click.exceptions.Exit(1)


async def _about(place: Ground) -> tuple[str, Mapping[str, str]]:
    with place.database() as dsn:
        async with meter(dsn) as watch:
            return watch.version, watch.settings


def _sorted(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, list[Row]]]:
    """Put rows into tables: by engine and kind of race, in the order of races."""
    order = {race.name: number for number, race in enumerate(RACES)}
    ranked = sorted(rows, key=lambda row: order.get(row.labels["what"], len(order)))
    kinds = {"latency": "handler p50 ms", "idle": "statements/s"}
    for engine, first in (("SQLite", "creche, SQLite"), ("PostgreSQL", "creche")):
        of_engine = [row for row in ranked if ("SQLite" in row.labels["contestant"]) == (engine == "SQLite")]
        work = [row for row in of_engine if row.labels["what"] not in kinds]
        tables = [
            (kind, main, [row for row in of_engine if row.labels["what"] == kind]) for kind, main in kinds.items()
        ]
        for title, main, found in (*tables, ("drain and dispatch", "jobs/s", work)):
            if found:
                yield f"{title}, {engine}", main, first, found


@frozen(kw_only=True)
class Visit:
    """One contestant in one race.

    Attributes:
        run: measures it once; it is told whether to count calls.
        counts: whether that makes sense.
    """

    name: str
    race: Race
    run: Callable[[bool], Awaitable[Figures]]
    counts: bool = False

    @property
    def labels(self) -> Mapping[str, str]:
        """What the row is called."""
        return {"contestant": self.name, "what": self.race.name}


def _visits(
    runner: Runner, races: Sequence[Race], here: Sequence[tuple[Entry, Contestant]], binary: str | Missing
) -> Iterator[Visit]:
    """What a round consists of, race by race."""
    for race in races:
        for entry, who in here:
            if race.kind in entry.races:
                run = partial(runner.run, race, entry, who)
                yield Visit(name=entry.name, race=race, run=run, counts=entry.python and race.processes == 1)
        if isinstance(binary, str):
            for bare in BARE.get(race.name, ()):
                yield Visit(name=bare.name, race=race, run=partial(runner.bare, race, bare, binary))
            for rows, clients in INSERTS.get(race.name, ()):
                name = f"pgbench, {rows} a time, {clients} clients"
                yield Visit(name=name, race=race, run=partial(runner.insert, race, name, rows, clients, binary))


def _run_all(visits: Sequence[Visit], rounds: int) -> tuple[Sequence[Row], Sequence[Visit]]:
    """Run so many rounds, after one that is thrown away and before one that counts calls.

    Returns:
        A row for each visit, and the visits without a run that succeeded in any of these rounds.
    """
    runs: list[tuple[Mapping[str, str], Figures]] = [(visit.labels, {}) for visit in visits]
    failures: list[tuple[Mapping[str, str], str]] = []
    measured: set[Visit] = set()

    def once(visit: Visit, when: str, *, calls: bool = False) -> Figures | None:
        say(f"  {visit.race.name}: {visit.name}")
        try:
            return anyio.run(visit.run, calls)
        except Exception as error:  # noqa: BLE001 - whatever it was: it ends this run, and not what others have measured
            say(f"{visit.name}, {visit.race.name}, {when}: the run failed: {type(error).__name__}: {error}")
            failures.append((visit.labels, f"{when}: {_why(error)}"))
            return None

    say("a round to see how fast everybody is")
    unknown = {visit for visit in visits if visit.race.sized and once(visit, "the first round") is None}
    for number in range(rounds):
        when = f"round {number + 1}"
        say(f"{when} of {rounds}")
        for visit in visits:
            if visit in unknown:  # how many jobs take some seconds is to be found out still
                if once(visit, when) is None:
                    continue
                unknown.remove(visit)
            figures = once(visit, when)
            if figures is not None:
                measured.add(visit)
                runs.append((visit.labels, figures))
    say("counting calls")
    counted = [visit for visit in visits if visit.counts and visit.race.sized and visit not in unknown]
    runs += [(visit.labels, once(visit, "counting calls", calls=True) or {}) for visit in counted]
    failed = [labels for labels, _ in failures]
    return gathered(runs, failures), [visit for visit in visits if visit not in measured and visit.labels in failed]


def _why(error: Exception) -> str:
    """Return in a line why a run failed: what we say of it, and the last that the process said."""
    first, *rest = str(error).strip().splitlines() or [""]
    words = first if isinstance(error, CrecheError) else f"{type(error).__name__}: {first}"
    return f"{words} {rest[-1]}" if rest else words.rstrip(": ")
