"""What a measured process is asked for, and what it answers: one line of JSON each way, and "go" in between.

A process of ours and one of a rival's keep the same protocol, so nothing here knows what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from attrs import asdict, evolve, field, frozen

Role = Literal["fill", "dispatch", "drain", "work", "pace"]

QUEUE: Final = "bench"
CHUNK: Final = 10_000  # jobs per statement of a bulk dispatch
STALLED: Final = 20.0  # seconds without a job after which a worker that knows of more is given up
QUIET: Final = 3.0  # seconds after which a worker that found nothing is idle
LULL: Final = 1.0  # seconds without a job after which a worker takes its queue for drained, where others work too


@frozen(kw_only=True)
class Order:
    """What a process is to do once it is told to go.

    Attributes:
        role: `fill` dispatches in bulk, `dispatch` one by one, `pace` one by one with pauses; `drain` works until it
            has run `jobs` jobs, or found none for `lull` seconds after the first; `work` works until it is told to
            stop, which is what its "go" means.
        dsn: the database.
        jobs: how many.
        queues: names; jobs are dispatched to the last, workers serve all in this order.
        concurrency: of the worker.
        callers: who dispatch one by one at the same time.
        chunk: jobs per bulk dispatch.
        payload: bytes of JSON, about.
        seconds: that a handler sleeps; 0 returns at once.
        lull: seconds; see `drain`.
        pause: seconds between dispatches, on average.
        wait: whether `pace` waits for each job's end.
        keep: whether the rows of completed jobs are kept.
        count_calls: whether to count Python's calls, which makes everything slower.
        count_statements: whether to count what is sent to SQLite, which makes it slower.
        here: the process dispatches the jobs that it drains itself: the database is in its memory.
        limit: seconds after which it ends, whatever is left to do; None: when it has done all.
        guest: the database is somebody's: nothing is migrated, and no upkeep is done, for that is done to all queues.
        backend: `asyncio`, `uvloop` or `trio`.
        options: more arguments of the worker, by name.
    """

    role: Role
    dsn: str = field(repr=False)
    jobs: int = 0
    queues: Sequence[str] = (QUEUE,)
    concurrency: int = 10
    callers: int = 1
    chunk: int = CHUNK
    payload: int = 10
    seconds: float = 0.0
    lull: float = STALLED
    pause: float = 0.1
    wait: bool = False
    keep: bool = True
    count_calls: bool = False
    count_statements: bool = False
    here: bool = False
    limit: float | None = None
    guest: bool = False
    backend: str = "asyncio"
    options: Mapping[str, Any] = field(factory=dict[str, Any])

    def to(self, role: Role, **changes: Any) -> Order:
        """Return the same for another role."""
        return evolve(self, role=role, **changes)

    def encode(self) -> bytes:
        """Return it as a line."""
        return msgspec.json.encode(asdict(self)) + b"\n"

    @classmethod
    def decode(cls, line: bytes | str) -> Order:
        """Read a line."""
        return cls(**msgspec.json.decode(line))


@frozen(kw_only=True)
class Answer:
    """What a process says of itself when it is done; moments are of the monotonic clock, which all processes share.

    Attributes:
        count: jobs that it dispatched, or ran.
        began: when it was told to go; of a worker, when its first handler began, or since when it was idle.
        ended: when the last dispatch was answered, or the last handler ended.
        closed: when everything was written and the worker had ended.
        cpu: seconds that the process computed between "go" and `closed`, in all its threads.
        rss: resident bytes at the end.
        calls: Python functions called between `began` and `ended`; None if they were not counted.
        statements: that were sent, if the process was to count them, and no server does.
        moments: pairs of a job's number and when something happened to it.
        waited: seconds from before each dispatch to the end of its wait.
        samples: resident bytes after so many jobs.
        settings: what it was set to, for people.
        versions: of what it is made of.
    """

    count: int
    began: float
    ended: float
    closed: float
    cpu: float
    rss: int
    calls: int | None = None
    statements: int | None = None
    moments: Sequence[tuple[int, float]] = ()
    waited: Sequence[float] = ()
    samples: Sequence[tuple[int, int]] = ()
    settings: str = ""
    versions: Mapping[str, str] = field(factory=dict[str, str])

    def encode(self) -> bytes:
        """Return it as a line."""
        return msgspec.json.encode(asdict(self)) + b"\n"

    @classmethod
    def decode(cls, line: bytes | str) -> Answer:
        """Read a line; what is not known here is passed over.

        Raises:
            msgspec.DecodeError: it is no answer.
        """
        return msgspec.json.decode(line, type=cls)
