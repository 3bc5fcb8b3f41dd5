"""What a worker tells: typed events, and hooks that cannot break a job. It changes nothing.

A hook is a callable, sync or async, that takes one event; or an object with methods that are named after the events
they want. Sync hooks are called where the event happens, so they must be short; async hooks run in a task of their own,
for at most HOOK_TIMEOUT seconds. What a hook raises is logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import isawaitable, signature
from typing import Any, ClassVar, Final, TypeAlias
from uuid import UUID

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup
from attrs import frozen

from creche._job import Failure
from creche._logs import fields
from creche.errors import OptionInvalid

_log = logging.getLogger("creche")

HOOK_TIMEOUT: Final = 10.0  # seconds
_LEAST: Final = 1.0  # seconds that a hook gets when it begins in the worker's last moment


@frozen(kw_only=True)
class WorkerEvent:
    """Something happened to a worker.

    Attributes:
        name: of the kind of event, such as `job.succeeded`.
        worker: the name of this start of this worker.
    """

    name: ClassVar[str]

    worker: str


@frozen(kw_only=True)
class WorkerStarted(WorkerEvent):
    """`worker.started`: it reserves from now on."""

    name = "worker.started"

    queues: Sequence[str]


@frozen(kw_only=True)
class WorkerIdle(WorkerEvent):
    """`worker.idle`: nothing runs, and nothing was ready."""

    name = "worker.idle"


@frozen(kw_only=True)
class WorkerStopped(WorkerEvent):
    """`worker.stopped`: it holds nothing any more."""

    name = "worker.stopped"


@frozen(kw_only=True)
class StorageConflicted(WorkerEvent):
    """`storage.conflicted`: the database undid transactions of this process in favour of others, and they were run
    again. A few belong to every busy database; many tell of something that holds its locks for long.

    Attributes:
        conflicts: how many, since the last such event.
    """

    name = "storage.conflicted"

    conflicts: int


@frozen(kw_only=True)
class JobEvent(WorkerEvent):
    """Something happened to an attempt of a job."""

    job_id: UUID
    type: str
    queue_name: str
    attempt: int


@frozen(kw_only=True)
class JobReserved(JobEvent):
    """`job.reserved`: this worker holds its lease."""

    name = "job.reserved"


@frozen(kw_only=True)
class JobStarted(JobEvent):
    """`job.started`: the handler is about to be called."""

    name = "job.started"


@frozen(kw_only=True)
class JobSucceeded(JobEvent):
    """`job.succeeded`: the handler returned. `job.acked` tells when that is written."""

    name = "job.succeeded"

    seconds: float


@frozen(kw_only=True)
class JobFailed(JobEvent):
    """`job.failed`: the attempt failed; `retry_in` is None if it was the last one."""

    name = "job.failed"

    seconds: float
    error: Failure
    retry_in: float | None


@frozen(kw_only=True)
class JobReleased(JobEvent):
    """`job.released`: given back, the attempt restored: a stop, a snooze, or a job that waited for a slot too long.
    `job.acked` tells when that is written.
    """

    name = "job.released"


@frozen(kw_only=True)
class JobDeadLettered(JobEvent):
    """`job.dead_lettered`: failed for good."""

    name = "job.dead_lettered"

    error: Failure


@frozen(kw_only=True)
class JobAcked(JobEvent):
    """`job.acked`: the storage accepted how the attempt ended; that it was released, too."""

    name = "job.acked"


@frozen(kw_only=True)
class JobRenewed(JobEvent):
    """`job.renewed`: its lease was extended."""

    name = "job.renewed"


@frozen(kw_only=True)
class JobProgressed(JobEvent):
    """`job.progressed`: what the handler said of its progress is written. Once a second at most, and the last it said.

    Attributes:
        fraction: from 0 to 1.
        message: for people.
    """

    name = "job.progressed"

    fraction: float
    message: str


@frozen(kw_only=True)
class JobLeaseLost(JobEvent):
    """`job.lease_lost`: the attempt was cancelled, or its end refused; another worker may have the job."""

    name = "job.lease_lost"


@frozen(kw_only=True)
class JobCancelled(JobEvent):
    """`job.cancelled`: the attempt was cancelled because somebody asked for it."""

    name = "job.cancelled"


_KINDS: Final[Sequence[type[WorkerEvent]]] = (
    WorkerStarted,
    WorkerIdle,
    WorkerStopped,
    StorageConflicted,
    JobReserved,
    JobStarted,
    JobProgressed,
    JobRenewed,
    JobSucceeded,
    JobFailed,
    JobReleased,
    JobCancelled,
    JobLeaseLost,
    JobAcked,
    JobDeadLettered,
)
EVENTS: Final[Mapping[str, type[WorkerEvent]]] = {kind.name: kind for kind in _KINDS}

_METHODS: Final = {kind.name.replace(".", "_"): kind for kind in _KINDS}
_SUBJECTS: Final = ("worker_", "job_", "storage_")


class Hooks:
    """A hook with a method for each event: override those that are wanted, as `def` or as `async def`.

    An object of any other class will do, too, if its methods are named like these; type checkers want this one.
    """

    def worker_started(self, event: WorkerStarted) -> object:
        """See `WorkerStarted`."""

    def worker_idle(self, event: WorkerIdle) -> object:
        """See `WorkerIdle`."""

    def worker_stopped(self, event: WorkerStopped) -> object:
        """See `WorkerStopped`."""

    def storage_conflicted(self, event: StorageConflicted) -> object:
        """See `StorageConflicted`."""

    def job_reserved(self, event: JobReserved) -> object:
        """See `JobReserved`."""

    def job_started(self, event: JobStarted) -> object:
        """See `JobStarted`."""

    def job_progressed(self, event: JobProgressed) -> object:
        """See `JobProgressed`."""

    def job_renewed(self, event: JobRenewed) -> object:
        """See `JobRenewed`."""

    def job_succeeded(self, event: JobSucceeded) -> object:
        """See `JobSucceeded`."""

    def job_failed(self, event: JobFailed) -> object:
        """See `JobFailed`."""

    def job_released(self, event: JobReleased) -> object:
        """See `JobReleased`."""

    def job_cancelled(self, event: JobCancelled) -> object:
        """See `JobCancelled`."""

    def job_lease_lost(self, event: JobLeaseLost) -> object:
        """See `JobLeaseLost`."""

    def job_acked(self, event: JobAcked) -> object:
        """See `JobAcked`."""

    def job_dead_lettered(self, event: JobDeadLettered) -> object:
        """See `JobDeadLettered`."""


Listener: TypeAlias = Callable[[Any], Awaitable[object] | object]
Hook: TypeAlias = Listener | Hooks


# --- what a hook is ---------------------------------------------------------------------------------


def check_hooks(hooks: Iterable[Hook]) -> Sequence[Hook]:
    """Return hooks that can be called, or raise OptionInvalid."""
    try:
        checked = tuple(hooks)
    except TypeError:
        raise OptionInvalid("hooks", hooks, "a sequence of hooks: hooks=[hook]") from None
    for hook in checked:
        if why := _unfit(hook):
            raise OptionInvalid("hooks", hook, why)
    return checked


def _unfit(hook: Hook) -> str | None:
    public = {name for name in dir(hook) if not name.startswith("_") and callable(getattr(hook, name, None))}
    if isinstance(hook, type):
        return "a class: give an object of it" if public & _METHODS.keys() else "a class: give a function or an object"
    for name in sorted(public - _METHODS.keys()):
        near = get_close_matches(name, _METHODS, n=1, cutoff=0.85)
        if near or name.startswith(_SUBJECTS):
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(_METHODS)}"
            return f"no event is named like its method {name!r}: {hint} (a method of another kind begins with _)"
    listeners = [getattr(hook, name) for name in public & _METHODS.keys()]
    if not listeners:
        if not callable(hook):
            return f"a callable that takes an event, or an object with methods such as {next(iter(_METHODS))!r}"
        listeners = [hook]
    return next(
        (f"{_name(each)} must take one argument, the event" for each in listeners if not _takes_one(each)), None
    )


def _takes_one(listener: Listener) -> bool:
    try:
        signature(listener).bind(None)
    except TypeError:
        return False
    except ValueError:  # written in C, and it does not say
        return True
    return True


def _listeners(hooks: Sequence[Hook]) -> Mapping[type[WorkerEvent], Sequence[Listener]]:
    """Return who hears of which event, in the order in which the hooks were given."""
    heard: dict[type[WorkerEvent], list[Listener]] = {kind: [] for kind in _KINDS}
    for hook in hooks:
        own = {kind: getattr(hook, name) for name, kind in _METHODS.items() if _has(hook, name)}
        for kind, listeners in heard.items():
            if kind in own:
                listeners.append(own[kind])
            elif not own and callable(hook):
                listeners.append(hook)
    return heard


def _has(hook: Hook, method: str) -> bool:
    return method in dir(hook) and getattr(type(hook), method, None) is not getattr(Hooks, method)


# --- how it is called -------------------------------------------------------------------------------


class Announcer:
    """Hands events to hooks.

    Args:
        hooks: called in order.
    """

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._listeners = _listeners(hooks)
        self._tasks: TaskGroup | None = None
        self._scopes: set[CancelScope] = set()
        self._end = math.inf

    def hurry(self, seconds: float) -> None:
        """The worker ends: whatever hooks still run end within so many seconds, and those that begin from now on get no
        longer than that, or _LEAST.
        """
        self._end = anyio.current_time() + seconds
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._end)

    def attach(self, tasks: TaskGroup) -> None:
        """Run async hooks in this task group."""
        self._tasks = tasks

    def tell(self, event: WorkerEvent) -> None:
        """Hand an event to every hook that hears of it. Raises nothing but KeyboardInterrupt, and never waits."""
        for listener in self._listeners[type(event)]:
            try:
                answer = listener(event)
                if isawaitable(answer):
                    self._begin(listener, event, answer)
            except KeyboardInterrupt:  # of whoever sits at the terminal
                raise
            except BaseException:  # noqa: BLE001 - nothing waits here: no cancellation is ours
                _log_failure(listener, event)

    def _begin(self, listener: Listener, event: WorkerEvent, answer: Awaitable[object]) -> None:
        if self._tasks is None:  # pragma: no cover - nothing is told before the services run
            raise AssertionError
        self._tasks.start_soon(self._finish, listener, event, answer, name=f"hook {_name(listener)}")

    async def _finish(self, listener: Listener, event: WorkerEvent, answer: Awaitable[object]) -> None:
        now = anyio.current_time()
        scope = CancelScope(deadline=min(now + HOOK_TIMEOUT, max(self._end, now + _LEAST)), shield=True)
        self._scopes.add(scope)
        try:
            with scope:
                await answer
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a cancellation that is not the scope's is the hook's own
            _log_failure(listener, event)
        finally:
            self._scopes.discard(scope)
        if scope.cancelled_caught:
            _log.error("hook %s took too long over %s", _name(listener), event.name, extra=_about(event))


def _log_failure(listener: Listener, event: WorkerEvent) -> None:
    _log.exception("hook %s failed on %s", _name(listener), event.name, extra=_about(event))


def _name(listener: Listener) -> str:
    """Return a hook's name, and no `repr`, which may raise, and may tell what is nobody's business."""
    return str(getattr(listener, "__qualname__", type(listener).__qualname__))


def _about(event: WorkerEvent) -> dict[str, object]:
    if not isinstance(event, JobEvent):
        return {"worker": event.worker}
    return {"worker": event.worker, **fields(event.job_id, event.type, event.queue_name, event.attempt)}
