"""The auditor: believes the ledgers that dispatchers, workers and fate write for themselves, and compares them with the
rows of every server. Whatever it objects to breaks a promise. It is a function of the story alone.

A cluster that replicates asynchronously loses something with each failover, and then begins another history: what was
lost is counted, and the promises hold within each history.
"""

from __future__ import annotations

import statistics
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

from attrs import field, frozen

from creche import Status
from creche.testing._herd import ended_well
from creche.testing._ledger import Entry


@frozen(kw_only=True)
class Plan:
    """What is done. Times are in seconds.

    Attributes:
        jobs: how many are dispatched.
        rate: so many per second, unless too many have no answer yet.
        every: so often something happens to a server.
        strikes: so often at least; and as long as there is something to dispatch.
        faults: what happens, in turn.
        lease: of a worker.
        workers: processes.
        concurrency: of each.
        dispatchers: processes.
        loop: "asyncio", "trio", or "both" by turns.
    """

    jobs: int = 1_500
    rate: float = 60.0
    every: float = 6.0
    strikes: int = 3
    faults: Sequence[str] = ("kill",)
    lease: float = 12.0
    workers: int = 4
    concurrency: int = 6
    dispatchers: int = 2
    loop: str = "both"


@frozen(kw_only=True)
class Row:
    """A job as a server has it; `result` is the name of the run that completed it."""

    id: str
    number: int
    status: str
    result: str | None


@frozen(kw_only=True)
class Story:
    """All that is known.

    Attributes:
        entries: of all ledgers, in the order of time.
        rows: of the jobs, as one server has them.
        copies: the same, of servers that have to agree.
        lossy: whether a failover may lose something.
    """

    plan: Plan
    entries: Sequence[Entry]
    rows: Sequence[Row]
    copies: Mapping[str, Sequence[Row]] = field(factory=dict)
    lossy: bool = False

    def all(self, *what: str) -> list[Entry]:
        return [entry for entry in self.entries if entry["what"] in what]

    def by(self, fact: str, *what: str) -> dict[Any, list[Entry]]:
        """Return entries by the value of one of their facts, each list in the order of time."""
        found = defaultdict[Any, list[Entry]](list)
        for entry in self.all(*what):
            found[entry[fact]].append(entry)
        return found

    def history(self, entry: Entry) -> int:
        """Return in which history something happened: the number of failovers that came before it and may have lost."""
        return bisect([turn["at"] for turn in self.all("turn")], entry["at"]) if self.lossy else 0

    @property
    def last(self) -> int:
        """The history that goes on."""
        return len(self.all("turn")) if self.lossy else 0


@frozen
class Run:
    """A handler's run, from its beginning until it was over, or its process was."""

    name: str
    job: str
    begin: float
    end: float
    history: int


def runs(story: Story) -> list[Run]:
    """Return every handler's run, in the order of their beginnings."""
    left = {entry["run"]: entry["at"] for entry in story.all("left")}
    died = {entry["name"]: entry["at"] for entry in story.all("killed", "ended")}
    now = max((entry["at"] for entry in story.entries), default=0.0)
    return [
        Run(begun["run"], begun["job"], begun["at"], _ended(begun, left, died, now), story.history(begun))
        for begun in story.all("begin")
    ]


def _ended(begun: Entry, left: Mapping[str, float], died: Mapping[str, float], now: float) -> float:
    return left.get(begun["run"], died.get(begun["who"], now))


# --- what was lost, undone, done twice ----------------------------------------------------------------


def lost(story: Story) -> list[Entry]:
    """Return the dispatches that were acknowledged, and of which nothing is there."""
    found = {row.id for row in story.rows}
    return [receipt for receipt in story.all("receipt") if receipt["job"] not in found]


def undone(story: Story) -> list[Entry]:
    """Return the completions that were accepted, and don't stand."""
    results = {row.id: row.result for row in story.rows if row.status == Status.COMPLETED}
    return [acked for acked in story.all("acked") if results.get(acked["job"]) != acked["run"]]


def twice(story: Story) -> list[Sequence[Entry]]:
    """Return the completions of each job of which several were accepted."""
    return [accepted for accepted in story.by("job", "acked").values() if len(accepted) > 1]


def overlapping(story: Story) -> list[tuple[Run, Run]]:
    """Return the pairs of runs of one job that had its lease at the same time."""
    found = defaultdict[str, list[Run]](list)
    for run in runs(story):
        found[run.job].append(run)
    return [
        (former, latter) for each in found.values() for former, latter in pairwise(each) if latter.begin < former.end
    ]


# --- objections ---------------------------------------------------------------------------------------
# Each check is a generator of objections, in words; silence is consent.

Check: TypeAlias = Callable[[Story], Iterator[str]]


def check_lost(story: Story) -> Iterator[str]:
    """What was acknowledged is there, unless a failover came after it that may lose something."""
    for receipt in lost(story):
        if story.history(receipt) == story.last:
            yield f"number {receipt['number']} was dispatched as {receipt['job']}, and is not there"
    for acked in undone(story):
        if story.history(acked) == story.last:
            yield f"{acked['run']} completed {acked['job']}, which does not say so"


def check_twice(story: Story) -> Iterator[str]:
    """A job is completed once, in each history; and no lease is accepted twice in any."""
    for accepted in twice(story):
        for history, times in Counter(map(story.history, accepted)).items():
            if times > 1:
                yield f"{accepted[0]['job']} was completed {times} times in history {history}"
    for run, times in Counter(acked["run"] for acked in story.all("acked")).items():
        if times > 1:
            yield f"the lease of {run} was accepted {times} times"


def check_leases(story: Story) -> Iterator[str]:
    """Nobody has a job's lease while somebody else has it."""
    for former, latter in overlapping(story):
        if former.history == latter.history:
            yield f"{latter.name} began {former.end - latter.begin:.3f} s before the end of {former.name}"


def check_rest(story: Story) -> Iterator[str]:
    """Every job is over, has succeeded, and is there once."""
    for status, count in Counter(row.status for row in story.rows).items():
        if status != Status.COMPLETED:
            yield f"{count} jobs are {status}"
    numbers = Counter(row.number for row in story.rows)
    yield from (f"number {number} is there {count} times" for number, count in numbers.items() if count > 1)
    missing = set(range(story.plan.jobs)) - numbers.keys() - {receipt["number"] for receipt in lost(story)}
    if missing:
        yield f"{len(missing)} numbers were never dispatched: {sorted(missing)[:5]}"


def check_copies(story: Story) -> Iterator[str]:
    """All servers agree."""
    expected = set(story.rows)
    for server, rows in story.copies.items():
        if differing := expected ^ set(rows):
            yield f"{server} has other rows: {len(differing)} differ"


def check_processes(story: Story) -> Iterator[str]:
    """Nobody ended by himself."""
    dismissed = min((entry["at"] for entry in story.all("dismissed")), default=0.0)
    for entry in story.all("ended"):
        if not ended_well(entry, dismissed):
            yield f"{entry['name']} ended with {entry['code']}"


def check_weather(story: Story) -> Iterator[str]:
    """Something happened, and hit somebody: or there is nothing to see."""
    struck, acked = story.all("struck"), [entry["at"] for entry in story.all("acked")]
    if len(struck) < max(1, story.plan.strikes):
        yield f"{len(struck)} faults are few"
    for entry in struck:
        if not any(at < entry["at"] for at in acked) or not any(at > entry["at"] for at in acked):
            yield f"{entry['fault']} came before or after everything else"
    if not story.all("raised", "conflicted", "lease lost") and all(run.end - run.begin < 1 for run in runs(story)):
        yield "nobody noticed anything"


CHECKS: Final[Mapping[str, Check]] = {
    "nothing lost": check_lost,
    "nothing settled twice": check_twice,
    "one holder at a time": check_leases,
    "every job is over, once": check_rest,
    "all servers agree": check_copies,
    "nobody crashed": check_processes,
    "there were faults": check_weather,
}


def audit(story: Story) -> dict[str, list[str]]:
    """Return all objections, by check."""
    found = {name: list(check(story)) for name, check in CHECKS.items()}
    return {name: objections for name, objections in found.items() if objections}


# --- figures ------------------------------------------------------------------------------------------


def counts(story: Story) -> dict[str, int]:
    """Return what happened, in numbers."""
    acked = [entry["at"] for entry in story.all("acked")]
    recovery = [first - each["at"] for each in story.all("struck") for first in _next(acked, each["at"])]
    faults = Counter(f"faults: {entry['kind']}" for entry in story.all("struck"))
    return {
        "dispatches that were acknowledged": len(story.all("receipt")),
        "jobs completed": sum(row.status == Status.COMPLETED for row in story.rows),
        "lost: dispatches": len(lost(story)),
        "lost: completions": len(undone(story)),
        "settled twice": len(twice(story)),
        "two holders at once": len(overlapping(story)),
        "jobs that are not over": sum(Status(row.status).active for row in story.rows),
        **faults,
        "histories": story.last + 1,
        "runs": len(story.all("begin")),
        "leases lost": len(story.all("lease lost")),
        "dispatches that raised, and were sent again": len(story.all("raised")),
        "transactions that were run again": sum(entry["conflicts"] for entry in story.all("conflicted")),
        "ms from a fault to the next completion, median": round(1_000 * statistics.median(recovery or [0.0])),
        "ms from a fault to the next completion, longest": round(1_000 * max(recovery, default=0.0)),
        "ms without any completion, longest": round(1_000 * max((b - a for a, b in pairwise(acked)), default=0.0)),
        "seconds in all": round(acked[-1] - acked[0]) if acked else 0,
    }


def _next(times: Sequence[float], at: float) -> Sequence[float]:
    return times[bisect(times, at) :][:1]
