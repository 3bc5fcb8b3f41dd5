"""The figures of a torture run: how much there was, how soon it recovered, who was late. It judges nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final

from attrs import frozen

from creche.testing.torture._overruns import overruns
from creche.testing.torture._story import Story

PAIRED: Final = "(two faults at once)"
_GROWN_UP: Final = 60.0  # seconds after which a process has no reason to grow any more


@frozen(kw_only=True)
class Spread:
    """Durations, in seconds.

    Attributes:
        count: how many there were.
    """

    count: int
    p50: float
    p99: float
    longest: float


def spread(values: Iterable[float]) -> Spread | None:
    """Return how values are spread; None if there are none."""
    if not (found := sorted(values)):
        return None
    return Spread(
        count=len(found),
        p50=found[len(found) // 2],
        p99=found[min(len(found) - 1, len(found) * 99 // 100)],
        longest=found[-1],
    )


def counts(story: Story) -> Mapping[str, int]:
    """Return how much there was."""
    statuses = Counter(row.status for row in story.rows)
    what = Counter(entry["what"] for entry in story.entries)
    attempts = [attempt for attempts in story.attempts.values() for attempt in attempts]
    return {
        "dispatches": what["asked"],
        "dispatches that were answered": len({entry["key"] for entry in story.all("receipt")}),
        "joined a job that was on its way": sum(e["inserted"] is False for e in story.all("receipt")),
        "rolled back with their caller's transaction": what["rolled back"],
        "jobs": len(story.rows),
        "completed": statuses["completed"],
        "dead": statuses["failed"],
        "cancelled": statuses["cancelled"],
        "attempts": len(attempts),
        "faults": what["mended"],
        "workers that died": sum(not who.startswith("dispatcher") for who in story.deaths),
        "dispatchers that died": sum(who.startswith("dispatcher") for who in story.deaths),
        "leases that were lost": what["lost"],
    }


def unknown_outcomes(story: Story) -> Mapping[str, int]:
    """Return how often nobody could know whether something was done, by what it was: the wire's cuts are what the
    database was told; the others are what callers had to ask again for.
    """
    once = {(entry["key"], entry["why"]) for entry in story.all("unknown")}  # however often it was sent again
    found = Counter(f"dispatch: {why}" for _, why in once)
    found.update(f"answer cut off: {entry['about']}" for entry in story.all("cut") if entry["sent"])
    for attempts in story.attempts.values():
        for attempt in attempts:
            if attempt.who in story.deaths and attempt.ending is not None and attempt.acked is None:
                found["end of an attempt: its worker died"] += 1
    return dict(sorted(found.items()))


def attempts_per_completed_job(story: Story) -> float:
    """Return how many it took, on average."""
    return fmean([row.attempts for row in story.rows if row.status == "completed"] or [0])


def recoveries(story: Story) -> Mapping[str, Spread]:
    """Return, by kind of fault, how long it took from its end until the next end of an attempt was accepted."""
    acks = [entry["at"] for entry in story.all("acked")]
    broke = {entry["number"]: entry["at"] for entry in story.all("broke")}
    faults = [(broke[entry["number"]], entry["at"], entry["fault"]) for entry in story.all("mended")]
    found = defaultdict[str, list[float]](list)
    for begun, mended, fault in faults:
        if (place := bisect_right(acks, mended)) < len(acks):
            recovered = acks[place]
            alone = sum(other[0] < recovered and begun < other[1] for other in faults) == 1
            found[fault if alone else PAIRED].append(recovered - mended)
    return {fault: one for fault, values in sorted(found.items()) if (one := spread(values))}


def second_runs(story: Story) -> Spread | None:
    """Return how long it took until what a dead worker had run at its first attempt began again."""
    return spread(
        latter.began - former.died
        for attempts in story.attempts.values()
        for former, latter in pairwise(attempts)
        if former.died is not None and former.number == 1
    )


def answers(story: Story) -> Spread | None:
    """Return how long dispatchers waited for an answer."""
    asked = {entry["key"]: entry["at"] for entry in story.all("asked")}
    return spread(entry["at"] - asked[entry["key"]] for entry in story.all("receipt"))


@frozen(kw_only=True)
class Late:
    """Handlers that were alive after their own deadline, for one reason.

    Attributes:
        count: how many.
        outlived: of them, how many were still alive when their lease was over.
        longest: milliseconds after their own deadline.
        awake: milliseconds of that in which they could have ended, at most.
    """

    count: int
    outlived: int
    longest: float
    awake: float


def lateness(story: Story) -> Mapping[str, Late]:
    """Return who was late, by reason."""
    found = defaultdict[str, list[tuple[bool, float, float]]](list)
    for overrun in overruns(story):
        found[overrun.why or "no reason"].append((overrun.outlived, 1_000 * overrun.past, 1_000 * overrun.awake))
    return {
        why: Late(
            count=len(late),
            outlived=sum(each[0] for each in late),
            longest=max(each[1] for each in late),
            awake=max(each[2] for each in late),
        )
        for why, late in sorted(found.items())
    }


@frozen(kw_only=True)
class Growth:
    """What a worker that lived long had grown to, from the second quarter of its life to the last: medians."""

    who: str
    seconds: float
    files: tuple[float, float]
    tasks: tuple[float, float]
    memory: tuple[float, float]


def growth(story: Story) -> Sequence[Growth]:
    """Return how the elders grew."""
    found: list[Growth] = []
    for who, sizes in story.by("who", "size").items():
        if who.startswith("elder") and (age := sizes[-1]["at"] - sizes[0]["at"]) > _GROWN_UP:
            quarter = len(sizes) // 4
            early, late = sizes[quarter : 2 * quarter], sizes[-quarter:]
            files, tasks, memory = (
                (median(each[what] for each in early), median(each[what] for each in late))
                for what in ("files", "tasks", "memory")
            )
            found.append(Growth(who=who, seconds=age, files=files, tasks=tasks, memory=memory))
    return found
