"""Every error of creche, under one root, grouped by who can act on it; and what a handler raises to steer its own job,
which is no error, under another. It raises none, but for a signal without sense.

An error says what to do next and carries its facts as attributes; the message is built in the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from signal import Signals
from typing import Any
from uuid import UUID

__all__ = [
    "ConfigurationError",
    "CrecheError",
    "Discard",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobTimeout",
    "LeaseLost",
    "ListenerDeaf",
    "MissingExtra",
    "NoCurrentJob",
    "NotCommitted",
    "OptionInvalid",
    "PayloadInvalid",
    "ProcessDied",
    "QueueNotOpen",
    "RaisedInProcess",
    "ResultInvalid",
    "Retry",
    "SchemaOutdated",
    "Snooze",
    "StatementRejected",
    "Steer",
    "StorageError",
    "StorageUnavailable",
    "TaskInvalid",
    "TasksNotIncluded",
    "TypeTaken",
    "UnknownDSN",
    "UnknownType",
    "UsageError",
    "WaitTimeout",
]


def rebuilt(kind: type[BaseException], args: tuple[Any, ...], state: Mapping[str, Any]) -> BaseException:
    """Return an exception as it was, without calling its class again: that takes other arguments than `args`."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class CrecheError(Exception):
    """The root: `except CrecheError` catches whatever creche raises on purpose."""

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        """Come out of another process as it went in."""
        return rebuilt, (type(self), self.args, self.__dict__)


# --- the author of the calling code can act ---------------------------------------------------------


class UsageError(CrecheError):
    """The call itself is wrong; nothing was written."""


class QueueNotOpen(UsageError):
    """The queue was used outside `async with queue:`."""

    def __init__(self) -> None:
        super().__init__("the queue is not open: use `async with queue:` around this call")


class NoCurrentJob(UsageError):
    """`current_job()` was called outside a handler."""

    def __init__(self) -> None:
        super().__init__("there is no current job here: this works only inside a handler that a worker runs")


class OptionInvalid(UsageError, ValueError):
    """An option of a dispatch, a task, a queue or a worker has a value that makes no sense."""

    def __init__(self, option: str, value: object, rule: str) -> None:
        self.option = option
        self.value = value
        self.rule = rule
        super().__init__(f"{option}={value!r}: {rule}")


class TaskInvalid(UsageError, TypeError):
    """A function can't be a task, or a callable can't be a hook; the message says why."""


class TasksNotIncluded(UsageError):
    """A task of a registry that no queue has included can't be dispatched: there is nowhere to send it."""

    def __init__(self) -> None:
        super().__init__("these tasks belong to no queue: queue.include(tasks)")


class TypeTaken(UsageError):
    """Two tasks were registered under one job type."""

    def __init__(self, type: str) -> None:
        self.type = type
        super().__init__(f"the job type {type!r} is registered already: give one of the two tasks another name")


class UnknownType(UsageError, LookupError):
    """No task is registered under this job type."""

    def __init__(self, type: str, near: Iterable[str] = ()) -> None:
        self.type = type
        self.near = tuple(near)
        hint = (
            f"did you mean {' or '.join(map(repr, self.near))}?"
            if self.near
            else f"register it with `@queue.task({type!r})` or `queue.include(tasks)`; if its handler runs elsewhere, "
            "name the queue that it serves, or declare the type with `queue.foreign(…)`"
        )
        super().__init__(f"no task is registered as {type!r}: {hint}")


class PayloadInvalid(UsageError, ValueError):
    """Arguments don't fit the handler's signature, or hold what some engine can't store.

    `path` points into the payload in JSONPath style: `$` is the whole, `$.rows[3].price` one value.
    """

    def __init__(self, reason: str, *, path: str = "$", type: str | None = None) -> None:
        self.reason = reason
        self.path = path
        self.type = type
        where = f" of {type!r}" if type else ""
        super().__init__(f"the payload{where} is refused at `{path}`: {reason}")


class ResultInvalid(UsageError, ValueError):
    """A result that can't be: a handler returned what can't be stored (the attempt counts as failed), or what is
    stored doesn't fit the annotation that it is read for.
    """

    def __init__(self, reason: str, *, path: str = "$", type: str | None = None) -> None:
        self.reason = reason
        self.path = path
        self.type = type
        where = f" of {type!r}" if type else ""
        super().__init__(f"the result{where} is refused at `{path}`: {reason}")


# --- whoever installs or configures can act --------------------------------------------------------


class ConfigurationError(CrecheError):
    """The installation or its settings must change first."""


class UnknownDSN(ConfigurationError, ValueError):
    """The DSN names no storage that creche has."""

    def __init__(self, scheme: str, known: Iterable[str]) -> None:
        self.scheme = scheme
        self.known = tuple(known)
        what = f"DSNs that begin with {scheme!r}" if scheme else "a DSN without a scheme"
        super().__init__(f"there is no storage for {what}: use one of {', '.join(self.known)}")


class MissingExtra(ConfigurationError, ImportError):
    """A driver is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        self.module = module
        super().__init__(f"{module} is not installed: pip install 'creche[{extra}]'")


class SchemaOutdated(ConfigurationError):
    """The database's schema is older than this version of creche, or not there at all."""

    def __init__(self, *, found: int, needed: int) -> None:
        self.found = found
        self.needed = needed
        state = f"is at version {found}" if found else "is missing"
        super().__init__(f"the database's schema {state}, version {needed} is needed: run `creche migrate`")


# --- whoever runs the database can act -------------------------------------------------------------


class StorageError(CrecheError):
    """The database said no."""


class StorageUnavailable(StorageError):
    """The database can't be reached, or did not answer in time. What was sent may or may not have
    taken effect; every write of creche can be sent again.
    """


class StatementRejected(StorageError):
    """The database refused a statement for good: sending it again can't help."""


class ListenerDeaf(StorageError):
    """LISTEN succeeded but nothing is heard (PgBouncer in transaction mode does that): poll instead."""


# --- whoever asked for the job can act -------------------------------------------------------------


class JobError(CrecheError):
    """How one job went."""

    def __init__(self, job_id: UUID, message: str) -> None:
        self.job_id = job_id
        super().__init__(message)


class JobNotFound(JobError, LookupError):
    """No such job: it was never dispatched here, or its retention is over."""

    def __init__(self, job_id: UUID, message: str | None = None) -> None:
        why = "never dispatched to this database, or pruned since"
        super().__init__(job_id, message or f"there is no job {job_id}: {why}")


class NotCommitted(JobNotFound):
    """The job was dispatched within a transaction of the caller's, and is not there: that was not committed."""

    def __init__(self, job_id: UUID) -> None:
        what = f"job {job_id} was dispatched with `connection=…`, and is not there"
        super().__init__(job_id, f"{what}: commit that transaction, then wait; if it was rolled back, so was the job")


class JobFailed(JobError):
    """The job used its last attempt. `type`, `message` and `traceback` are the last error's, as text."""

    def __init__(self, job_id: UUID, *, type: str, message: str, traceback: str = "") -> None:
        self.type = type
        self.message = message
        self.traceback = traceback
        super().__init__(job_id, f"job {job_id} failed: {type}: {message}")


class JobCancelled(JobError):
    """The job was cancelled before it could complete."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(job_id, f"job {job_id} was cancelled")


class LeaseLost(JobError):
    """The attempt no longer owns its job: another worker may hold it now. Stop, write nothing more."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(job_id, f"the lease of job {job_id} is lost: another worker may have taken it over")


class JobTimeout(CrecheError, TimeoutError):
    """The attempt ran for longer than its `job_timeout`, and was cancelled: it failed, and counts."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        super().__init__(f"the attempt was cancelled after its job_timeout of {timeout:g} s")


class ProcessDied(CrecheError):
    """The process in which a handler ran ended before the handler did: the attempt failed, and counts.

    Attributes:
        handler: its module and name.
        status: the exit status; negative for a signal; None if it could not be found out.
    """

    def __init__(self, handler: str, status: int | None) -> None:
        self.handler = handler
        self.status = status
        super().__init__(f"the process of {handler} {_ended(status)} before the handler returned")


class RaisedInProcess(CrecheError):
    """A handler raised in its process what can't come out of it as it is; its traceback is this one's cause.

    Attributes:
        handler: its module and name.
        type: of what it raised, by name.
        message: what that said.
    """

    def __init__(self, handler: str, *, type: str, message: str) -> None:
        self.handler = handler
        self.type = type
        self.message = message
        super().__init__(f"{handler} raised {type}: {message}")


class WaitTimeout(JobError, TimeoutError):
    """The job was not over in time. It goes on; wait again, or cancel it."""

    def __init__(self, job_id: UUID, timeout: float, status: Any) -> None:
        self.timeout = timeout
        self.status = status
        state = f"is still {status}" if status else "can't be looked up, and was not over"
        super().__init__(job_id, f"job {job_id} {state} after {timeout:g} s")


# --- a handler steers its own job -------------------------------------------------------------------


class Steer(Exception):
    """The root of what a handler may raise to end its attempt in another way than success or failure."""

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        """Come out of another process as it went in."""
        return rebuilt, (type(self), self.args, self.__dict__)


class Retry(Steer):
    """Raise it to fail this attempt and have another one: the attempt counts.

    Args:
        reason: what the job's error record will say.
        delay: seconds, or a timedelta, until the next attempt; None leaves it to the back-off. On the last attempt
            the job fails all the same.
    """

    def __init__(
        self, reason: str = "the handler asked for a retry", *, delay: float | timedelta | None = None
    ) -> None:
        delay = None if delay is None else _seconds("delay", delay)
        self.reason = reason
        self.delay = delay
        super().__init__(reason)


class Snooze(Steer):
    """Raise it to put the job off: the attempt is given back.

    Args:
        delay: seconds, or a timedelta, from now, by the database's clock.
        until: instead of `delay`, an aware datetime.
    """

    def __init__(self, delay: float | timedelta | None = None, *, until: datetime | None = None) -> None:
        if (delay is None) == (until is None):
            raise OptionInvalid("delay", delay, "give exactly one of `delay` and `until`")
        self.delay = None if delay is None else _seconds("delay", delay)
        self.until = None if until is None else check_moment("until", until)
        super().__init__(f"snoozed for {self.delay} s" if self.until is None else f"snoozed until {self.until}")


class Discard(Steer):
    """Raise it to fail the job for good, however many attempts are left.

    Args:
        reason: what the job's error record and its dead letter will say.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def _seconds(option: str, value: object) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise OptionInvalid(option, value, "seconds, zero or more, or a timedelta")
    return value


def _ended(status: int | None) -> str:
    if status is None:
        return "ended"
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}" + (" (out of memory, perhaps)" if name == "SIGKILL" else "")


def check_moment(option: str, value: object) -> datetime:
    """Return a moment in UTC that every engine can store, or raise OptionInvalid."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise OptionInvalid(option, value, "an aware datetime, such as datetime.now(UTC) + timedelta(hours=1)")
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        moment = None
    if moment is None or not 1000 <= moment.year <= 9000:
        raise OptionInvalid(option, value, "a moment between the years 1000 and 9000, in UTC")
    return moment
