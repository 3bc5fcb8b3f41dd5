"""What is to happen in a simulation, as data: who works, what is dispatched, what goes wrong and when.

A plan is drawn by a `random.Random`: a seed's own, or one that Hypothesis guides and shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from random import Random
from typing import Final

from attrs import field, frozen

from creche._calls import DEFAULTS

ANYWHERE: Final = -1


class Kind(StrEnum):
    """What can go wrong."""

    SLOW = "slow"  # both ways, by a mean of `strength` seconds
    LOSSY = "lossy"  # each message is lost with a probability of `strength`, and the connection with it
    CUT = "cut"  # nothing goes through, and nobody is told
    NO_REQUESTS = "no requests"  # a partition one way
    NO_ANSWERS = "no answers"  # and the other: everything takes effect, and nobody learns of it
    DEAF = "deaf"  # wakes are lost, and nothing else
    DOWN = "down"  # the database refuses connections
    STALL = "stall"  # the database is frozen: what was sent takes effect when it goes on
    # these four `strength` steps of the process's tasks later
    PAUSE = "pause"  # SIGSTOP
    CRASH = "crash"  # SIGKILL
    TERM = "term"  # a polite stop
    ABORT = "abort"  # the host of the worker is cancelled
    CLOCK = "clock"  # the wall clock jumps by `strength` seconds
    FAILOVER = "failover"  # a standby takes over that has not seen the last seconds: they never happened


NETWORK: Final = frozenset(
    {Kind.SLOW, Kind.LOSSY, Kind.CUT, Kind.NO_REQUESTS, Kind.NO_ANSWERS, Kind.DEAF, Kind.DOWN, Kind.STALL}
)
DATABASE: Final = frozenset({Kind.DOWN, Kind.STALL, Kind.FAILOVER})  # felt everywhere


class Script(StrEnum):
    """What a handler does with its job; `length` says for how long."""

    WORK = "work"  # sleeps, and returns
    STEPS = "steps"  # in small steps, and tells of its progress
    FAIL = "fail"  # raises in all attempts but the last
    POISON = "poison"  # raises in all
    SNOOZE = "snooze"  # puts itself off once
    DISCARD = "discard"
    STUBBORN = "stubborn"  # ignores cancellation for a while
    KILL = "kill"  # takes its process along, in all attempts but the last
    COMMIT = "commit"  # ends its attempt in a transaction of its own
    EXTEND = "extend"  # extends its own lease


@frozen(kw_only=True)
class WorkerPlan:
    """A worker, and how it is set."""

    queues: tuple[str, ...] = ("default", "bulk")
    concurrency: int = 2
    lease: float = 30.0
    poll_interval: float = 5.0
    grace: float = 5.0


@frozen(kw_only=True)
class JobPlan:
    """A dispatch.

    Attributes:
        at: seconds from the beginning.
        dispatcher: who.
        length: seconds that its handler takes.
        key: its idempotency key is made of this number.
        piece: it is a unique piece of work, the one with this number.
        cancel_after: seconds after which its dispatcher cancels it.
        retry_after: seconds after which its dispatcher has it made ready again, if it failed or was cancelled.
        followed: it has a callback for each end.
        awaited: its dispatcher waits for it.
    """

    at: float
    dispatcher: int = 0
    script: Script = Script.WORK
    length: float = 1.0
    queue: str = "default"
    priority: int = 0
    delay: float = 0.0
    max_attempts: int = DEFAULTS.max_attempts or 1
    key: int | None = None
    piece: int | None = None
    cancel_after: float | None = None
    retry_after: float | None = None
    followed: bool = False
    awaited: bool = False


@frozen(kw_only=True)
class Fault:
    """Something that goes wrong, from one moment on, for a while.

    Attributes:
        where: the number of a process, workers first, then dispatchers; ANYWHERE: all of them.
        strength: what that is, `Kind` says.
    """

    at: float
    lasts: float
    kind: Kind
    where: int = ANYWHERE
    strength: float = 0.0


@frozen(kw_only=True)
class Plan:
    """All that is to happen; the rest (latencies, order of tasks, jitter) follows from `seed`."""

    seed: int
    hours: float
    dispatchers: int
    workers: tuple[WorkerPlan, ...]
    jobs: tuple[JobPlan, ...] = field(default=())
    faults: tuple[Fault, ...] = field(default=())


@frozen(kw_only=True)
class Shape:
    """How large plans are, and how dense: from how many to how many of each.

    Attributes:
        hours: at least so long; none: until all jobs are over.
        failover: those lose what was acknowledged, and with it some of the promises.
    """

    hours: tuple[int, int]
    episodes: tuple[int, int]
    jobs: tuple[int, int]
    faults: tuple[int, int]
    leases: tuple[int, ...] = (10, 15, 30, 60)
    polls: tuple[int, ...] = (2, 5, 15, 30)
    failover: bool = False


STORM: Final = Shape(hours=(0, 0), episodes=(1, 1), jobs=(5, 40), faults=(2, 14), leases=(10, 15, 30), failover=True)
MORNING: Final = Shape(hours=(1, 2), episodes=(1, 1), jobs=(3, 25), faults=(0, 8), polls=(5, 15, 30))
WEEKEND: Final = Shape(
    hours=(12, 60), episodes=(1, 2), jobs=(5, 40), faults=(0, 10), leases=(30, 60, 120), polls=(15, 30, 60)
)
EPISODE: Final = 400  # seconds in which things are dispatched, and go wrong

_LASTING: Final = (1, 5, 15, 40, 90, 240)


def plan_of(seed: int) -> Plan:
    """Return the plan of a seed. One in four is long and mostly idle, as weekends are; most hours are theirs."""
    return draw_plan(Random(seed), (STORM, MORNING, STORM, WEEKEND)[seed % 4])


def draw_plan(luck: Random, shape: Shape) -> Plan:
    """Draw a plan."""
    hours = luck.randint(*shape.hours)
    workers = tuple(_draw_worker(luck, shape, first=number == 0) for number in range(luck.randint(2, 4)))
    dispatchers = luck.randint(1, 2)
    jobs: list[JobPlan] = []
    faults: list[Fault] = []
    for _ in range(luck.randint(*shape.episodes)):
        start = luck.randint(0, hours * 3_600 * 2 // 3)
        wrong = [
            _draw_fault(luck, start, len(workers) + dispatchers, shape) for _ in range(luck.randint(*shape.faults))
        ]
        jobs += (_draw_job(luck, start, wrong, dispatchers) for _ in range(luck.randint(*shape.jobs)))
        faults += wrong
    return Plan(
        seed=luck.randint(0, 999_999),
        hours=hours,
        dispatchers=dispatchers,
        workers=workers,
        jobs=tuple(jobs),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )


def _draw_worker(luck: Random, shape: Shape, *, first: bool) -> WorkerPlan:
    return WorkerPlan(
        queues=("default", "bulk") if first else luck.choice([("default", "bulk"), ("default",), ("bulk", "default")]),
        concurrency=luck.randint(1, 5),
        lease=luck.choice(shape.leases),
        poll_interval=luck.choice(shape.polls),
        grace=luck.choice((0, 5, 30)),
    )


def _draw_job(luck: Random, start: int, faults: Sequence[Fault], dispatchers: int) -> JobPlan:
    kind = luck.randint(0, 9)
    script = luck.choice(list(Script)) if kind > 3 else Script.WORK
    at = start + luck.randint(0, EPISODE * 10) / 10
    if faults and luck.randint(0, 1):  # things that happen at about the same time are what this is about
        fault = luck.choice(faults)
        at = max(0.0, fault.at + luck.randint(-100, int(fault.lasts * 10)) / 10)
    return JobPlan(
        at=at,
        dispatcher=luck.randint(0, dispatchers - 1),
        script=script,
        length=luck.choice((0, 0, 1, 8, 30, 100)) if kind != 1 else luck.randint(0, 3_000) / 10,
        queue=luck.choice(("default", "bulk")),
        priority=luck.choice((0, 0, 10, -10)),
        delay=luck.choice((0, 0, 0, 3, 45, 300)),
        max_attempts=luck.randint(1, 5),
        key=luck.randint(0, 5) if luck.randint(0, 3) == 0 else None,
        piece=luck.randint(0, 4) if luck.randint(0, 3) == 0 else None,
        cancel_after=luck.randint(0, 60) if luck.randint(0, 7) == 0 else None,
        retry_after=luck.randint(0, 200) if luck.randint(0, 7) == 0 else None,
        followed=luck.randint(0, 5) == 0,
        awaited=luck.randint(0, 3) == 0,
    )


def _draw_fault(luck: Random, start: int, processes: int, shape: Shape) -> Fault:
    kind = luck.choice([kind for kind in Kind if shape.failover or kind is not Kind.FAILOVER])
    everywhere = kind in DATABASE or (kind in NETWORK and luck.randint(0, 2) == 0)
    strength: dict[Kind, tuple[float, ...]] = {
        Kind.SLOW: (0.1, 1, 4, 12),
        Kind.LOSSY: (0.1, 0.3, 0.7),
        **dict.fromkeys((Kind.PAUSE, Kind.CRASH, Kind.TERM, Kind.ABORT), (0, 3, 10, 40, 150)),
        Kind.CLOCK: (-86_400, -3_600, -1, 60, 86_400),
    }
    return Fault(
        at=start + luck.randint(0, EPISODE * 10) / 10,
        lasts=luck.choice(_LASTING) if kind is not Kind.FAILOVER else luck.choice((1, 3, 8)),
        kind=kind,
        where=ANYWHERE if everywhere else luck.randint(0, processes - 1),
        strength=luck.choice(strength.get(kind, (0,))),
    )
