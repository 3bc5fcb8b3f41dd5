"""What a worker tells: typed events, and hooks that cannot break a job. It changes nothing.

A hook is any callable, sync or async, that takes one event. Sync hooks are called where the event happens, so they
must be short; async hooks run in a task of their own, for at most HOOK_TIMEOUT seconds. What a hook raises is logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any, Final
from uuid import UUID

import anyio
from anyio import CancelScope, get_cancelled_exc_class
from anyio.abc import TaskGroup
from attrs import frozen

from creche._job import Failure

_log = logging.getLogger("creche")

HOOK_TIMEOUT: Final = 10.0  # seconds


@frozen(kw_only=True)
class WorkerEvent:
    """Something happened to a worker."""

    worker: str


@frozen(kw_only=True)
class WorkerStarted(WorkerEvent):
    """`worker.started`: it reserves from now on."""

    queues: Sequence[str]


@frozen(kw_only=True)
class WorkerIdle(WorkerEvent):
    """`worker.idle`: nothing runs, and nothing was ready."""


@frozen(kw_only=True)
class WorkerStopped(WorkerEvent):
    """`worker.stopped`: it holds nothing any more."""


@frozen(kw_only=True)
class StorageConflicted(WorkerEvent):
    """`storage.conflicted`: the database undid transactions of this process in favour of others, and they were run
    again. A few belong to every busy database; many tell of something that holds its locks for long.

    Attributes:
        conflicts: how many, since the last such event.
    """

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


@frozen(kw_only=True)
class JobStarted(JobEvent):
    """`job.started`: the handler is about to be called."""


@frozen(kw_only=True)
class JobSucceeded(JobEvent):
    """`job.succeeded`: the handler returned. `job.acked` tells when that is written."""

    seconds: float


@frozen(kw_only=True)
class JobFailed(JobEvent):
    """`job.failed`: the attempt failed; `retry_in` is None if it was the last one."""

    seconds: float
    error: Failure
    retry_in: float | None


@frozen(kw_only=True)
class JobReleased(JobEvent):
    """`job.released`: given back, the attempt restored (a stop, or a snooze)."""


@frozen(kw_only=True)
class JobDeadLettered(JobEvent):
    """`job.dead_lettered`: failed for good."""

    error: Failure


@frozen(kw_only=True)
class JobAcked(JobEvent):
    """`job.acked`: the storage accepted how the attempt ended."""


@frozen(kw_only=True)
class JobRenewed(JobEvent):
    """`job.renewed`: its lease was extended."""


@frozen(kw_only=True)
class JobProgressed(JobEvent):
    """`job.progressed`: what the handler said of its progress is written. Once a second at most, and the last it said.

    Attributes:
        fraction: from 0 to 1.
        message: for people.
    """

    fraction: float
    message: str


@frozen(kw_only=True)
class JobLeaseLost(JobEvent):
    """`job.lease_lost`: the attempt was cancelled, or its end refused; another worker may have the job."""


@frozen(kw_only=True)
class JobCancelled(JobEvent):
    """`job.cancelled`: the attempt was cancelled because somebody asked for it."""


Hook = Callable[[Any], Awaitable[object] | object]


class Announcer:
    """Hands events to hooks.

    Args:
        hooks: called in order.
    """

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks
        self._tasks: TaskGroup | None = None
        self._scopes: set[CancelScope] = set()
        self._end = math.inf

    def hurry(self, seconds: float) -> None:
        """The worker ends: whatever hooks still run, or begin from now on, end within so many seconds."""
        self._end = anyio.current_time() + seconds
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._end)

    def attach(self, tasks: TaskGroup) -> None:
        """Run async hooks in this task group."""
        self._tasks = tasks

    def tell(self, event: WorkerEvent) -> None:
        """Hand an event to every hook. Never raises, never waits."""
        for hook in self._hooks:
            try:
                answer = hook(event)
                if isawaitable(answer) and self._tasks is not None:
                    self._tasks.start_soon(self._finish, hook, event, answer)
            except (Exception, get_cancelled_exc_class()):  # noqa: BLE001 - nothing waits here: no cancellation is ours
                _log.exception("hook %r failed on %s", hook, type(event).__name__)

    async def _finish(self, hook: Hook, event: WorkerEvent, answer: Awaitable[object]) -> None:
        scope = CancelScope(deadline=min(anyio.current_time() + HOOK_TIMEOUT, self._end), shield=True)
        self._scopes.add(scope)
        try:
            with scope:
                await answer
        except (Exception, get_cancelled_exc_class()):  # noqa: BLE001 - one that is not the scope's is the hook's own
            _log.exception("hook %r failed on %s", hook, type(event).__name__)
        finally:
            self._scopes.discard(scope)
        if scope.cancelled_caught:
            _log.error("hook %r took too long over %s", hook, type(event).__name__)
