"""How a worker calls handlers: registered tasks, or one plain function. It settles nothing."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter, get_cancelled_exc_class

from creche._attempt import Job
from creche._calls import encode_result
from creche._logs import about
from creche._processes import Processes
from creche._tasks import Tasks
from creche.abc import Backoff, Serializer

_log = logging.getLogger("creche")


class Threads:
    """Runs synchronous handlers in threads, and counts those that outlive their attempts.

    A thread can't be ended. Its attempt can, so a slot belongs to the thread: while it runs, nobody else may have it.
    How many run at once is decided where slots are given out, so the limiter here has no limit.
    """

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(math.inf)
        self._lock = threading.Lock()
        self._stuck: Counter[str | None] = Counter()  # by queue; None: of all

    def stuck(self, queue_name: str | None = None) -> int:
        """Return how many outlive their attempts: of this queue's jobs, or in all."""
        return self._stuck.get(queue_name, 0)

    async def run(self, function: Callable[[], Any], job: Job) -> Any:
        """Call `function` in a thread. Cancelled, it leaves the thread to itself, and its result is thrown away; where
        it has not begun yet, it never does.
        """
        running = left = False

        def count(by: int) -> None:
            for each in (None, job.queue_name):
                self._stuck[each] += by

        def in_thread() -> Any:
            nonlocal running
            with self._lock:
                if left:
                    return None
                running = True
            try:
                return function()
            finally:
                with self._lock:
                    running = False
                    count(-left)

        try:
            return await anyio.to_thread.run_sync(in_thread, abandon_on_cancel=True, limiter=self._limiter)
        except get_cancelled_exc_class():
            job.leave()
            with self._lock:
                left = True
                count(+running)
            if running:
                text = "a handler goes on in its thread, which takes a slot until it ends: %s"
                _log.warning(text, _name(function), extra=about(job))
            raise


def _name(function: Callable[[], Any]) -> str:
    """Return a handler's name, never its arguments: they are nobody's business."""
    inner = function.func if isinstance(function, partial) else function
    return getattr(inner, "__qualname__", type(inner).__name__)


class TaskHandlers:
    """Calls registered tasks.

    Args:
        tasks: which.
        serializer: payloads and results pass through it.
        limit: bytes of JSON that a result may have.
    """

    def __init__(self, tasks: Tasks, serializer: Serializer, limit: int) -> None:
        self._tasks = tasks
        self._limit = limit
        self._serializer = serializer
        self._threads = Threads()
        self._processes = Processes()

    def stuck(self, queue_name: str | None = None) -> int:
        """Return how many handlers still sit in threads that their attempts had to leave."""
        return self._threads.stuck(queue_name)

    def close(self) -> None:
        """End the processes that wait for work."""
        self._processes.close()

    def backoff(self, type: str) -> Backoff | None:
        """Return the task's own back-off."""
        task = self._tasks.find(type)
        return None if task is None else task.backoff

    def job_timeout(self, type: str) -> float | None:
        """Return the task's own limit."""
        task = self._tasks.find(type)
        return None if task is None else task.job_timeout

    async def call(self, job: Job, payload: bytes) -> bytes:
        """Run the handler of `job`; return its result as JSON text."""
        task = self._tasks.get(job.type)
        positional, named = task.signature.decode(payload, self._serializer)
        if task.signature.takes_job:
            positional.insert(0, job)
        if task.asynchronous:
            result = await task.function(*positional, **named)
        elif task.cpu:
            result = await self._processes.run(task.function.__module__, task.function.__qualname__, positional, named)
        else:
            result = await self._threads.run(partial(task.function, *positional, **named), job)
        return encode_result(self._serializer, result, job.type, self._limit)


class PlainHandler:
    """Calls one handler for every job, for people who route by hand.

    Args:
        function: `async def handle(job: Job)`.
        serializer: results pass through it.
        limit: bytes of JSON that a result may have.
    """

    def __init__(self, function: Callable[[Job], Awaitable[object]], serializer: Serializer, limit: int) -> None:
        self._function = function
        self._limit = limit
        self._serializer = serializer

    def backoff(self, type: str) -> Backoff | None:  # noqa: ARG002 - part of the Protocol
        """There are no tasks here that could have one."""
        return None

    def job_timeout(self, type: str) -> float | None:  # noqa: ARG002 - part of the Protocol
        """There are no tasks here that could have one."""
        return None

    def stuck(self, queue_name: str | None = None) -> int:  # noqa: ARG002 - part of the Protocol
        """There are no threads here."""
        return 0

    def close(self) -> None:
        """There are no processes here."""

    async def call(self, job: Job, payload: bytes) -> bytes:  # noqa: ARG002 - part of the Protocol
        """Run the handler; return its result as JSON text."""
        return encode_result(self._serializer, await self._function(job), job.type, self._limit)
