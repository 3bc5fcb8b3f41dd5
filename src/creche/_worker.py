"""The worker: settings, signals, and a supervisor with its services. What the services do is theirs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import anyio
from anyio import TASK_STATUS_IGNORED, create_task_group
from anyio.abc import TaskGroup, TaskStatus

from creche._attempt import Handlers, Job
from creche._backoff import ExponentialBackoff
from creche._events import Hook
from creche._handlers import PlainHandler, TaskHandlers
from creche._ids import new_worker_name
from creche._job import Retention, check_integer, check_name, seconds
from creche._queue import Queue
from creche._supervisor import Settings, Supervisor
from creche._tasks import is_asynchronous, queues_of
from creche.abc import Backoff
from creche.errors import OptionInvalid, TaskInvalid, UsageError

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """Runs jobs of a queue: `anyio.run(worker.run)`, `await tg.start(worker.run)`, or `async with queue, worker:`.

    Args:
        queue: whose jobs; opened by `run` if it is not open.
        queues: names, in the order in which they are served; None: those that the queue's tasks are dispatched
            to, the default one first.
        concurrency: how many jobs at once.
        lease: seconds that a job is ours for; it is renewed three times in that time. So long after its last
            renewal the job of a killed worker runs again.
        grace: seconds that running jobs get when the worker is told to stop, before they are cancelled and given
            back. Kubernetes kills after 30 s by default: keep it below what your platform gives.
        backoff: delays between attempts, for tasks that have none of their own.
        poll_interval: seconds after which a worker looks for work that nobody told it of.
        retention: how long finished jobs are kept.
        hooks: called with each event (`creche.events`).
        handler: one `async def handle(job: Job)` for all jobs, instead of the queue's tasks.
        name: what `locked_by` says; a random part is added, for a name may come back.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 10,
        lease: float | timedelta = 30.0,
        grace: float | timedelta = 30.0,
        backoff: Backoff | None = None,
        poll_interval: float | timedelta = 5.0,
        retention: Retention | None = None,
        hooks: Sequence[Hook] = (),
        handler: Callable[[Job], Awaitable[object]] | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(queues, str) or (queues is not None and not queues):
            raise OptionInvalid("queues", queues, "a sequence of at least one name")
        self._queue = queue
        self._queues = None if queues is None else [check_name("queues", each) for each in queues]
        self._concurrency = check_integer("concurrency", concurrency, 1, 10_000)
        self._lease = seconds("lease", lease, positive=True)
        self._grace = seconds("grace", grace)
        self._backoff = backoff or ExponentialBackoff()
        self._poll_interval = seconds("poll_interval", poll_interval, positive=True)
        self._retention = retention or Retention()
        self._hooks = tuple(hooks)
        if handler is not None and not is_asynchronous(handler):
            raise TaskInvalid(f"{handler!r}: a worker's one handler is async: `async def handle(job: Job)`")
        self._handler = handler
        self._name = name
        self._supervisor: Supervisor | None = None
        self._running = self._stopping = False
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Worker on {self._queue!r}, concurrency {self._concurrency}>"

    @property
    def queue(self) -> Queue:
        """Whose jobs it runs."""
        return self._queue

    def stop(self) -> None:
        """Stop reserving, let running jobs finish for `grace` seconds, then cancel them and give them back.

        A second call skips the grace. Returns at once; `run` returns when it is done.
        """
        self._stopping = self._running
        if self._supervisor is not None:
            self._supervisor.stop()

    async def run(self, *, signals: bool | None = None, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Work until told to stop.

        Args:
            signals: whether SIGTERM and SIGINT mean `stop()`. None: if nobody else has a say, that is in the main
                thread, not started by `tg.start(…)`, and no other handler for SIGTERM is there.
            task_status: `await tg.start(worker.run)` returns when it reserves.

        A synchronous handler that is still in its thread when the grace is over can't be ended: its lease is given
        back, its result thrown away, but on asyncio the process ends only when the thread does.

        Cancelled, it gives back what it holds, inside a shield of some seconds, and lets the cancellation through.

        Raises:
            SchemaOutdated, StorageUnavailable: the queue could not be opened. Once it works, an outage of the
                database does not end it: it goes on when the database is back.
        """
        if signals is None:
            signals = task_status is TASK_STATUS_IGNORED and _signals_are_free()
        if self._running:
            raise UsageError(f"{self!r} runs already: make another worker")
        self._running, self._stopping = True, False
        try:
            async with AsyncExitStack() as stack:
                if not self._queue.is_open:
                    await stack.enter_async_context(self._queue)
                supervisor = self._supervisor = self._make_supervisor()
                if self._stopping:  # while the queue was being opened
                    supervisor.stop()
                if signals:
                    await _run_with_signals(supervisor, task_status)
                else:
                    await supervisor.run(task_status=task_status)
        finally:
            self._supervisor = None
            self._running = False

    async def __aenter__(self) -> Self:
        tasks = create_task_group()
        await tasks.__aenter__()
        try:
            await tasks.start(self.run, name="worker")
        except Exception:  # as it is: a task group would wrap it
            await tasks.__aexit__(None, None, None)
            raise
        except BaseException as error:
            await tasks.__aexit__(type(error), error, error.__traceback__)
            raise
        self._tasks = tasks
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, self._tasks = self._tasks, None
        if tasks is None:
            return None
        self.stop()
        if not isinstance(error, Exception):
            return await tasks.__aexit__(kind, error, trace)
        self.stop()  # something went wrong: no grace
        await tasks.__aexit__(None, None, None)  # the block's own exception comes out as it is, after a clean stop
        return None

    def _make_supervisor(self) -> Supervisor:
        queue = self._queue
        handlers: Handlers
        types: Collection[str] | None
        if self._handler is not None:
            handlers, types = PlainHandler(self._handler, queue.serializer, queue.result_limit), None
        else:
            handlers = TaskHandlers(queue.tasks, queue.serializer, queue.result_limit)
            types = queue.tasks.types
            if not types:
                hint = "register one with `@queue.task(…)`, or give `handler=`"
                raise UsageError(f"{queue!r} has no task that a worker could run: {hint}")
        settings = Settings(
            name=f"{self._name}:{new_worker_name()}" if self._name else new_worker_name(),
            queues=self._queues or queues_of(list(queue.tasks)),
            types=types,
            concurrency=self._concurrency,
            lease=self._lease,
            grace=self._grace,
            poll_interval=self._poll_interval,
            maintenance_interval=min(15.0, max(1.0, self._lease / 2)),
            retention=self._retention,
            backoff=self._backoff,
            hooks=self._hooks,
        )
        return Supervisor(
            settings,
            storage=queue.storage,
            handlers=handlers,
            serializer=queue.serializer,
            result_limit=queue.result_limit,
            settled=queue.settled,
        )


def _signals_are_free() -> bool:
    alone = threading.current_thread() is threading.main_thread()
    return alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def _run_with_signals(supervisor: Supervisor, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(*_SIGNALS) as received:
        async with create_task_group() as tasks:

            async def stop_on_signal() -> None:
                async for _ in received:
                    supervisor.stop()

            tasks.start_soon(stop_on_signal, name="signals")
            await supervisor.run(task_status=task_status)
            tasks.cancel_scope.cancel()
