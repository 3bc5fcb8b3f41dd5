"""What a worker tells: typed events, and hooks that cannot break a job. It changes nothing.

A hook is any callable, sync or async, that takes one event. Sync hooks are called where the event happens, so they
must be short; async hooks run in a task of their own, for at most HOOK_TIMEOUT seconds. What a hook raises is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any, Final
from uuid import UUID

import anyio
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

    def attach(self, tasks: TaskGroup) -> None:
        """Run async hooks in this task group."""
        self._tasks = tasks

    def tell(self, event: WorkerEvent) -> None:
        """Hand an event to every hook. Never raises, never waits."""
        for hook in self._hooks:
            try:
                answer = hook(event)
                if isawaitable(answer) and self._tasks is not None:
                    self._tasks.start_soon(_finish, hook, event, answer)
            except Exception:  # noqa: BLE001 - whatever a hook raises stays with the hook
                _log.exception("hook %r failed on %s", hook, type(event).__name__)


async def _finish(hook: Hook, event: WorkerEvent, answer: Awaitable[object]) -> None:
    try:
        with anyio.fail_after(HOOK_TIMEOUT, shield=True):
            await answer
    except Exception:  # noqa: BLE001 - whatever a hook raises stays with the hook
        _log.exception("hook %r failed on %s", hook, type(event).__name__)
