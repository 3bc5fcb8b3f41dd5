"""The values that travel between the engine and a storage: frozen, keyword-only, refusing nonsense at birth.

They hold no connection, read no clock and decide nothing.

Those of which each dispatch or each attempt makes one are msgspec's structs, the others are attrs classes: two thousand
jobs that are reserved ahead are ten thousand objects, which take a tenth of the time to make, and of which the garbage
collector knows nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Self, final, overload
from uuid import UUID

from attrs import Attribute, field, frozen
from msgspec import Struct

from creche.errors import OptionInvalid, check_moment

DEFAULT_QUEUE: Final = "default"
DEFAULT_MAX_ATTEMPTS: Final = 3
NAME_LIMIT: Final = 128  # bytes of UTF-8: fits every engine's index keys and a NOTIFY payload
KEY_LIMIT: Final = 255
MAX_ATTEMPTS_LIMIT: Final = 32_767
PRIORITY_LIMIT: Final = 100
ERRORS_KEPT: Final = 20  # per job: a row with thousands of tracebacks helps nobody
WAKE_HORIZON: Final = 30.0  # seconds: whatever becomes due sooner wakes listeners at once
CALLBACK_LIMIT: Final = 100  # per dispatch
CHAIN_LIMIT: Final = 8  # links: each is a level of JSON more, and MariaDB reads no more than 31
MESSAGE_LIMIT: Final = 500  # characters of what a handler says about its progress
WORKER_NAME_LIMIT: Final = 50  # bytes: host, pid and a random part come after it, and the whole is a name to wake by
RATE_WINDOW: Final = 60.0  # seconds
WATCH_LIMIT: Final = 3_600.0  # seconds after which a watch that was not repeated may be forgotten
DELAY_LIMIT: Final = 100 * 365 * 86_400.0  # a century: beyond it some engine's dates overflow
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Status(StrEnum):
    """Where a job is in its life. `scheduled` is pending, not yet due."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        """Whether there is still something to come."""
        return self in ACTIVE


ACTIVE: Final = frozenset({Status.PENDING, Status.SCHEDULED, Status.PROCESSING})
FINISHED: Final = frozenset(Status) - ACTIVE


# --- what makes sense -------------------------------------------------------------------------------


def check_name(option: str, value: object, limit: int = NAME_LIMIT) -> str:
    """Return a queue's, a type's or a key's name, or raise OptionInvalid."""
    if not isinstance(value, str) or not value:
        raise OptionInvalid(option, value, "a non-empty string")
    if _CONTROL.search(value):
        raise OptionInvalid(option, value, "no control characters")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise OptionInvalid(option, value, "no lone surrogates: some engine can't store them") from None
    if size > limit:
        raise OptionInvalid(option, value[:40] + "…", f"at most {limit} bytes of UTF-8, this has {size}")
    return value


@lru_cache(maxsize=1024)
def _is_name(value: str) -> bool:
    """Return whether `check_name` takes it. Remembered: there are few queues and types, and many jobs."""
    try:
        check_name("name", value)
    except OptionInvalid:
        return False
    return True


def check_seconds(option: str, value: object, *, positive: bool = False) -> float:
    """Return a duration in seconds as a float, or raise OptionInvalid."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise OptionInvalid(option, value, "a number of seconds")
    if value < 0 or (positive and value == 0):
        raise OptionInvalid(option, value, "seconds, more than zero" if positive else "seconds, zero or more")
    if value > DELAY_LIMIT:
        raise OptionInvalid(option, value, "seconds, at most a hundred years")
    return float(value)


def seconds(option: str, value: object, *, positive: bool = False) -> float:
    """Return a duration, seconds or a timedelta, as seconds, or raise OptionInvalid."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    return check_seconds(option, value, positive=positive)


def check_fraction(option: str, value: object) -> float:
    """Return a number from 0 to 1 as a float, or raise OptionInvalid."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OptionInvalid(option, value, "a number from 0 to 1")
    return float(value)


def check_integer(option: str, value: object, low: int, high: int) -> int:
    """Return an integer between two bounds, both included, or raise OptionInvalid."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionInvalid(option, value, f"a whole number from {low} to {high}")
    return value


def check_boolean(option: str, value: object) -> bool:
    """Return True or False, or raise OptionInvalid: a 1 or a "no" was meant as something else."""
    if not isinstance(value, bool):
        raise OptionInvalid(option, value, "True or False")
    return value


def check_aware(option: str, value: object) -> datetime:
    """Return a moment in UTC that every engine can store, or raise OptionInvalid."""
    return check_moment(option, value)


def _name(limit: int = NAME_LIMIT) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: object) -> None:
        if value is not None:
            check_name(attribute.name, value, limit)

    return validate


def _names(_: object, attribute: Attribute[Any], value: Collection[object] | None) -> None:
    for name in value or ():
        check_name(attribute.name, name)


def _seconds(_: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None:
        check_seconds(attribute.name, value)


def _check_fingerprint(value: object) -> None:
    if not isinstance(value, bytes) or len(value) != 32:
        raise OptionInvalid("fingerprint", value, "32 bytes of SHA-256, or None")


def _integer(low: int, high: int) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: object) -> None:
        check_integer(attribute.name, value, low, high)

    return validate


# --- what goes in -----------------------------------------------------------------------------------


@frozen(kw_only=True)
class Failure:
    """An error as a row can keep it: text that every engine stores, capped, without local variables."""

    type: str
    message: str
    traceback: str = ""


class On(StrEnum):
    """After which end of a job a callback runs. One that was cancelled has neither succeeded nor failed."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"

    def calls_for(self, status: Status) -> bool:
        """Whether a job that ended so is followed."""
        return self is ON.get(status) or (self is On.ALWAYS and status in FINISHED)


ON: Final = {Status.COMPLETED: On.SUCCESS, Status.FAILED: On.FAILURE}


@frozen(kw_only=True)
class Origin:
    """The job whose end a callback follows, as it had ended then.

    Attributes:
        error: the last one, if it failed.
    """

    job_id: UUID
    type: str
    queue_name: str
    status: Status
    error: Failure | None = None


@frozen(kw_only=True)
class FollowUp:
    """A callback as it is recorded with a job: the job that is written when that one is over.

    Attributes:
        id: of the job that will be written; drawn by the client, so that a callback is never recorded twice.
        on: after which end.
        head: the text of its payload, up to the place where the result stands.
        tail: what comes after the result (`null`, if there is none); None: `head` is the payload, without a result.
        then: its own callbacks.
    """

    id: UUID
    type: str = field(validator=_name())
    queue_name: str = field(default=DEFAULT_QUEUE, validator=_name())
    priority: int = field(default=0, validator=_integer(-PRIORITY_LIMIT, PRIORITY_LIMIT))
    max_attempts: int = field(default=DEFAULT_MAX_ATTEMPTS, validator=_integer(1, MAX_ATTEMPTS_LIMIT))
    on: On = On.SUCCESS
    head: str
    tail: str | None = None
    then: tuple[FollowUp, ...] = ()

    def after(self, origin: Origin, result: bytes | None) -> NewJob:
        """Return the job that follows, whatever `on` says."""
        payload = self.head if self.tail is None else f"{self.head}{(result or b'null').decode()}{self.tail}"
        return NewJob(
            id=self.id,
            type=self.type,
            payload=payload.encode(),
            queue_name=self.queue_name,
            priority=self.priority,
            max_attempts=self.max_attempts,
            callbacks=self.then,
            origin=origin,
        )


@frozen(kw_only=True)
class NewJob:
    """A job as it is handed to `Storage.insert`.

    Attributes:
        id: drawn by the client (UUIDv7), so that a dispatch whose answer was lost can be sent again.
        payload: JSON text in UTF-8, already checked; the handler sees exactly these bytes.
        delay: seconds until it is due, by the database's clock; `available_at` names a moment instead.
        idempotency_key: the caller's own name for this dispatch, unique within the queue while the row lives.
        fingerprint: 32 bytes; given, this dispatch joins the job that holds the same fingerprint.
        result_ttl: seconds for which a completed job goes on answering for its fingerprint.
        refresh: a cached result, however fresh, does not answer for the fingerprint; an active job does.
        callbacks: what is to run when the job that answers for this dispatch is over.
        origin: the job that this one follows, if it is a callback.
    """

    id: UUID
    type: str
    payload: bytes
    queue_name: str = DEFAULT_QUEUE
    priority: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    delay: float = 0.0
    available_at: datetime | None = None
    idempotency_key: str | None = None
    fingerprint: bytes | None = None
    result_ttl: float | None = None
    refresh: bool = False
    callbacks: tuple[FollowUp, ...] = ()
    origin: Origin | None = None

    def __attrs_post_init__(self) -> None:
        # Ten thousand of these are made at a time, nearly all alike: what is as usual is seen without a call for each.
        if not (
            self.type.__class__ is str
            and self.queue_name.__class__ is str
            and _is_name(self.type)
            and _is_name(self.queue_name)
            and self.priority.__class__ is self.max_attempts.__class__ is int
            and -PRIORITY_LIMIT <= self.priority <= PRIORITY_LIMIT
            and 1 <= self.max_attempts <= MAX_ATTEMPTS_LIMIT
        ):
            check_name("type", self.type)
            check_name("queue_name", self.queue_name)
            check_integer("priority", self.priority, -PRIORITY_LIMIT, PRIORITY_LIMIT)
            check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS_LIMIT)
        if self.delay.__class__ is not float or self.delay:
            check_seconds("delay", self.delay)
        if self.available_at is not None:
            check_aware("available_at", self.available_at)
            if self.delay:
                raise OptionInvalid("available_at", self.available_at, "give `delay` or `available_at`, not both")
        if self.idempotency_key is not None:
            check_name("idempotency_key", self.idempotency_key, KEY_LIMIT)
        if self.fingerprint is not None:
            _check_fingerprint(self.fingerprint)
        if self.result_ttl is not None:
            check_seconds("result_ttl", self.result_ttl)


@final
class AlikeJobs(Sequence[NewJob]):
    """Jobs that differ in their ids and payloads only, each made when it is asked for: a storage that needs no more
    than the columns makes none of ten thousand.

    Args:
        like: what all have in common: no name of a job's own, and no callbacks.
        ids: theirs.
        payloads: theirs, in the same order.
    """

    __slots__ = ("ids", "like", "payloads")

    def __init__(self, like: NewJob, ids: Sequence[UUID], payloads: Sequence[bytes]) -> None:
        self.like: Final = like
        self.ids: Final = ids
        self.payloads: Final = payloads

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int, /) -> NewJob: ...
    @overload
    def __getitem__(self, place: slice, /) -> Self: ...
    def __getitem__(self, place: int | slice, /) -> NewJob | Self:
        if isinstance(place, slice):
            return type(self)(self.like, self.ids[place], self.payloads[place])
        like = self.like
        return NewJob(
            id=self.ids[place],
            type=like.type,
            payload=self.payloads[place],
            queue_name=like.queue_name,
            priority=like.priority,
            max_attempts=like.max_attempts,
            delay=like.delay,
            available_at=like.available_at,
            result_ttl=like.result_ttl,
            refresh=like.refresh,
            origin=like.origin,
        )


class Insertion(Struct, frozen=True, kw_only=True, gc=False):
    """What a storage answers to one NewJob: a new row, or the one that stood there already.

    Attributes:
        inserted: whether the row of `job_id` is the one this NewJob asked for (also when it was sent twice).
        result: JSON text, if that job is completed.
    """

    job_id: UUID
    status: Status
    inserted: bool
    fingerprint: bytes | None = None
    result: bytes | None = None


# --- what a worker holds ----------------------------------------------------------------------------


class Lease(Struct, frozen=True, kw_only=True, gc=False):
    """The right to run one attempt. Every write about a running job carries it.

    Attributes:
        token: rises with every reservation, never falls (an attempt count may).
        nonce: 64 random bits drawn by the client, as a signed integer: a failover that loses commits
            issues a bare counter twice.
    """

    job_id: UUID
    token: int
    nonce: int

    def __hash__(self) -> int:
        return hash(self.job_id.int)  # few jobs are held twice, and each is looked up a few times


class ReservedJob(Struct, frozen=True, kw_only=True, gc=False):
    """What `Storage.reserve` hands out: enough to run one attempt.

    Attributes:
        attempt: the number of this attempt, counted from 1.
    """

    lease: Lease
    queue_name: str
    type: str
    payload: bytes
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    origin: Origin | None = None

    @property
    def id(self) -> UUID:
        """The job's id."""
        return self.lease.job_id


@frozen(kw_only=True)
class Reservation:
    """The answer to `Storage.reserve`.

    Attributes:
        jobs: in the order in which they should start.
        next_due_in: seconds until the earliest scheduled job of these queues is due (0 when one is due
            and waits for `maintain` to promote it); None if nothing is scheduled.
    """

    jobs: Sequence[ReservedJob]
    next_due_in: float | None


@frozen(kw_only=True)
class Extension:
    """The answer to `Storage.extend`; `cancel_requested` is a part of `held`."""

    held: frozenset[Lease]
    lost: frozenset[Lease]
    cancel_requested: frozenset[Lease]


@frozen(kw_only=True)
class Progress:
    """How far an attempt has come, as its handler says.

    Attributes:
        fraction: from 0 to 1.
        message: for people.
    """

    fraction: float
    message: str = ""


# --- how an attempt ends ----------------------------------------------------------------------------


class Event(StrEnum):
    """What can happen to a job. The transitions are `creche._lifecycle.TRANSITIONS`."""

    PROMOTE = "promote"
    RESERVE = "reserve"
    SUCCEED = "succeed"
    RETRY = "retry"
    FAIL = "fail"
    DISCARD = "discard"
    RELEASE = "release"
    SNOOZE = "snooze"
    ABORT = "abort"
    RECOVER = "recover"
    BURY = "bury"
    CANCEL = "cancel"
    REVIVE = "revive"


class Settlement(Struct, frozen=True, kw_only=True, gc=False):
    """One attempt's end, decided; `Storage.settle` only writes it.

    Attributes:
        event: one of SUCCEED, RETRY, FAIL, DISCARD, RELEASE, SNOOZE, ABORT.
        delay: RETRY and SNOOZE: seconds until the job is due again, by the database's clock.
        available_at: SNOOZE: the moment itself, instead of a delay.
        result: SUCCEED: JSON text.
        error: RETRY, FAIL and DISCARD: what went wrong.
    """

    lease: Lease
    event: Event
    delay: float = 0.0
    available_at: datetime | None = None
    result: bytes | None = None
    error: Failure | None = None

    def __post_init__(self) -> None:
        # Not by validators: there is one for each job that ends, and nearly none has a delay.
        if self.delay != 0.0:
            check_seconds("delay", self.delay)
        if self.available_at is not None:
            check_aware("available_at", self.available_at)


@frozen(kw_only=True)
class Settled:
    """The answer to `Storage.settle`: each lease is in exactly one of the first two.

    Attributes:
        gone: those of the lost whose job is no longer there at all. Where nobody else can have taken it, for the lease
            lasts, it is one's own settle that deleted it, and whose answer was lost.
    """

    accepted: frozenset[Lease]
    lost: frozenset[Lease]
    gone: frozenset[Lease] = frozenset()


# --- upkeep, and what people see --------------------------------------------------------------------


@frozen(kw_only=True)
class Retention:
    """For how many seconds a finished job's row is kept; a fresh cached result keeps its row longer."""

    completed: float = field(default=86_400.0, validator=_seconds)
    failed: float = field(default=14 * 86_400.0, validator=_seconds)
    cancelled: float = field(default=86_400.0, validator=_seconds)


@frozen(kw_only=True)
class Upkeep:
    """What one `Storage.maintain` did, in jobs. A count that reached the limit means: there may be more.

    Attributes:
        recovered: taken back from a lease that had run out, and put off a little (or cancelled, if asked).
        buried: the same, but that was the last attempt: failed, with a dead letter.
        promoted: scheduled jobs that became due.
        pruned: finished jobs whose retention was over.
        next_due_in: seconds until the next scheduled job of any queue is due; None if there is none.
        next_expiry_in: seconds until the first lease runs out, unless it is renewed; None if there is none.
        ready: queues, not paused, in which something was ready before; None where this was not looked for.
    """

    recovered: int
    buried: int
    promoted: int
    pruned: int
    next_due_in: float | None = None
    next_expiry_in: float | None = None
    ready: frozenset[str] | None = field(default=None, eq=False)  # a hint, which not every storage gives


@frozen(kw_only=True)
class JobRecord:
    """A job's row, as people and dashboards see it. Times are UTC, by the database's clock."""

    id: UUID
    queue_name: str
    type: str
    payload: bytes
    status: Status
    priority: int
    attempts: int
    max_attempts: int
    available_at: datetime
    locked_until: datetime | None
    locked_by: str | None
    last_error: Failure | None
    idempotency_key: str | None
    fingerprint: bytes | None
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    result: bytes | None
    result_expires_at: datetime | None
    progress: Progress | None = None
    origin: Origin | None = None


@frozen(kw_only=True)
class End:
    """How a job ended: what whoever waits for it wants to know.

    Attributes:
        result: JSON text, if it is completed.
        error: the last one, if it failed.
    """

    status: Status
    result: bytes | None = None
    error: Failure | None = None


@frozen(kw_only=True)
class AttemptError:
    """One failed attempt of a job."""

    attempt: int
    failed_at: datetime
    error: Failure


@frozen(kw_only=True)
class DeadLetter:
    """The copy of a job that has used its last attempt, with its errors, oldest first."""

    job_id: UUID
    queue_name: str
    type: str
    payload: bytes
    priority: int
    attempts: int
    max_attempts: int
    created_at: datetime
    buried_at: datetime
    errors: Sequence[AttemptError]


@frozen(kw_only=True)
class JobFilter:
    """Which jobs `Storage.list` shows: all that match every field that is given."""

    queues: frozenset[str] | None = field(default=None, validator=_names)
    types: frozenset[str] | None = field(default=None, validator=_names)
    statuses: frozenset[Status] | None = None


@frozen(kw_only=True)
class QueueStats:
    """How one queue stands.

    Attributes:
        counts: how many jobs are in which state; a state that no job is in is not named.
        oldest_ready: seconds that the oldest ready job has been due; None if none is ready.
        finished: how many jobs came to an end within the last RATE_WINDOW seconds, and are still there.
        paused_at: since when it is paused, UTC; None if it is not.
        retention: how long its finished jobs are kept, if it has a retention of its own.
    """

    queue_name: str
    counts: dict[Status, int]
    oldest_ready: float | None
    finished: int = 0
    paused_at: datetime | None = None
    retention: Retention | None = None


class CancelReason(StrEnum):
    """Why an attempt is being cancelled."""

    CANCELLED = "cancelled"  # somebody cancelled the job
    TIMEOUT = "timeout"  # it ran for longer than its job_timeout
    LEASE_LOST = "lease lost"  # another worker may have the job
    SHUTDOWN = "shutdown"  # the worker ends, and gives the job back


# --- who works, and what is wrong -------------------------------------------------------------------


class WorkerState(StrEnum):
    """What a worker does at this moment. `quiet` reserves nothing more, and stays; `stopping` ends soon."""

    RUNNING = "running"
    QUIET = "quiet"
    STOPPING = "stopping"


@frozen(kw_only=True)
class Presence:
    """What a worker says of itself.

    Attributes:
        name: of this start of this worker; what `locked_by` says of its jobs.
        backend: the event loop that it runs on: asyncio or trio.
        version: of creche.
        queues: names, in the order in which they are served.
        concurrency: how many jobs it runs at once.
    """

    name: str = field(validator=_name())
    host: str
    pid: int
    backend: str
    version: str
    queues: tuple[str, ...]
    concurrency: int
    state: WorkerState = WorkerState.RUNNING


@frozen(kw_only=True)
class RunningJob:
    """A job in a worker's hands.

    Attributes:
        lease_left: seconds until its lease runs out, by the database's clock; negative if it has.
    """

    job_id: UUID
    queue_name: str
    type: str
    attempt: int
    lease_left: float
    progress: Progress | None = None


@frozen(kw_only=True)
class WorkerRecord:
    """A live worker, as people and dashboards see it. Times are UTC, by the database's clock.

    Attributes:
        started_at: when it was first seen.
        seen_at: when it last said that it is there.
        jobs: what it holds, by the job's id.
    """

    presence: Presence
    started_at: datetime
    seen_at: datetime
    jobs: Sequence[RunningJob]


class Severity(StrEnum):
    """How bad a finding is: `problem`: it does not work, or not as promised; `warning`: it will hurt one day."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@frozen(kw_only=True)
class Finding:
    """What a storage found out about its database.

    Attributes:
        check: what was looked at, in a word or two that do not change: `schema`, `isolation`, `clock`.
        message: what was found.
        advice: what to do about it; empty if there is nothing to do.
    """

    check: str
    severity: Severity
    message: str
    advice: str = ""
