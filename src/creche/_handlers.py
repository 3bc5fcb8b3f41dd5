"""How a worker calls handlers: registered tasks, or one plain function. It settles nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio.to_thread
from anyio import CapacityLimiter

from creche._attempt import Job
from creche._calls import encode_result
from creche._tasks import Tasks
from creche.abc import Backoff, Serializer


class TaskHandlers:
    """Calls registered tasks.

    Args:
        tasks: which.
        serializer: payloads and results pass through it.
        threads: how many synchronous handlers run at once.
    """

    def __init__(self, tasks: Tasks, serializer: Serializer, threads: CapacityLimiter) -> None:
        self._tasks = tasks
        self._serializer = serializer
        self._threads = threads

    def backoff(self, type: str) -> Backoff | None:
        """Return the task's own back-off."""
        return self._tasks.get(type).backoff if type in self._tasks else None

    async def call(self, job: Job, payload: bytes) -> bytes:
        """Run the handler of `job`; return its result as JSON text."""
        task = self._tasks.get(job.type)
        positional, named = task.signature.decode(payload, self._serializer)
        if task.signature.takes_job:
            positional.insert(0, job)
        if task.asynchronous:
            result = await task.function(*positional, **named)
        else:
            run = partial(task.function, *positional, **named)
            result = await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads)
        return encode_result(self._serializer, result, job.type)


class PlainHandler:
    """Calls one handler for every job, for people who route by hand.

    Args:
        function: `async def handle(job: Job)`.
        serializer: results pass through it.
    """

    def __init__(self, function: Callable[[Job], Awaitable[object]], serializer: Serializer) -> None:
        self._function = function
        self._serializer = serializer

    def backoff(self, type: str) -> Backoff | None:  # noqa: ARG002 - part of the Protocol
        """There are no tasks here that could have one."""
        return None

    async def call(self, job: Job, payload: bytes) -> bytes:  # noqa: ARG002 - part of the Protocol
        """Run the handler; return its result as JSON text."""
        return encode_result(self._serializer, await self._function(job), job.type)
