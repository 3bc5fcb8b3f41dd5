"""The worker: settings, signals, and a supervisor with its services. What the services do is theirs."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from importlib.metadata import version
from types import TracebackType
from typing import Final, Self

import anyio
from anyio import TASK_STATUS_IGNORED, CancelScope, create_task_group
from anyio.abc import TaskGroup, TaskStatus

from creche._attempt import Handlers, Job
from creche._backoff import ExponentialBackoff
from creche._events import Hook, check_hooks
from creche._handlers import PlainHandler, TaskHandlers
from creche._ids import new_worker_name
from creche._job import WORKER_NAME_LIMIT, Presence, Retention, check_boolean, check_integer, check_name, seconds
from creche._limits import StopReason
from creche._nursery import background, current_backend
from creche._queue import Queue
from creche._stacks import describe_tasks
from creche._supervisor import Health, Settings, Summary, Supervisor
from creche._tasks import is_asynchronous, queues_of
from creche.abc import Backoff
from creche.errors import OptionInvalid, TaskInvalid, UsageError

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_ONE_WORD: Final = 0.1  # seconds: `timeout` and service managers tell the process, and then its whole group
_CONCURRENCY: Final = 10
_CONCURRENCY_LIMIT: Final = 10_000


class Worker:
    """Runs jobs of a queue: `anyio.run(worker.run)`, `await tg.start(worker.run)`, or `async with queue, worker:`.

    Args:
        queue: whose jobs; opened by `run` if it is not open.
        queues: names, in the order in which they are served, or a mapping that says of each how many of its jobs run at
            once (None: as many as the worker has room for). None: those that the queue's tasks are dispatched to, the
            default one first.
        weights: of queues (1, if it is not named): which one is asked first is then drawn anew each time, so that a
            queue of weight 3 comes before one of weight 1 three times out of four and none starves. None: always in
            the order of `queues`; the second gets what the first leaves.
        concurrency: how many jobs at once; 10, or the sum if each queue has a number of its own.
        lease: seconds that a job is ours for; it is renewed three times in that time. So long after its last
            renewal the job of a killed worker runs again.
        grace: seconds that running jobs get when the worker is told to stop, before they are cancelled and given
            back. Kubernetes kills after 30 s by default: keep it below what your platform gives.
        job_timeout: seconds after which an attempt is cancelled and has failed (`JobTimeout`), for tasks that have none
            of their own; None: never.
        max_jobs: how many attempts it begins; then it finishes them and ends, so that whatever supervises it starts a
            fresh one. None: as many as come.
        max_memory: bytes of resident memory of this process above which, when a job has ended, no other begins: it
            finishes those it holds, and ends. None: as many as there are.
        prefetch: how many jobs, at most, are reserved ahead of a slot, so that short ones never wait for the database:
            only as many as are likely to end while a reserve is on its way, by the rate and the time that were
            measured, so none where jobs are long, and about 16 MiB of payloads at most. Those that wait are under
            leases like the others; they are given back unspent when the worker stops, or when they have waited for a
            second. 0: none.
        burst: end when nothing is left to do: nothing is ready, due or running. What is scheduled for later is left.
        backoff: delays between attempts, for tasks that have none of their own.
        poll_interval: seconds after which a worker looks for work that nobody told it of. None: five; on PostgreSQL,
            while its notifications are heard, upkeep looks every ten, and nobody else.
        retention: how long finished jobs are kept, of queues that have no retention of their own
            (`queue.set_retention`). With `completed=0` a job's row goes when it succeeds, which costs the database
            least; then wait for the results of tasks that have a `result_ttl`: the others leave none. And a dispatch
            whose answer is lost is then sent again and run twice, if its job has succeeded meanwhile.
        hooks: callables, or `creche.events.Hooks` with a method for each event that they want.
        handler: one `async def handle(job: Job)` for all jobs, instead of the queue's tasks.
        name: what `locked_by` says, at most 50 bytes; host, pid and a random part are added, for a name may come back.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        queues: Sequence[str] | Mapping[str, int | None] | None = None,
        weights: Mapping[str, int] | None = None,
        concurrency: int | None = None,
        lease: float | timedelta = 30.0,
        grace: float | timedelta = 30.0,
        job_timeout: float | timedelta | None = None,
        max_jobs: int | None = None,
        max_memory: int | None = None,
        prefetch: int = 2_000,
        burst: bool = False,
        backoff: Backoff | None = None,
        poll_interval: float | timedelta | None = None,
        retention: Retention | None = None,
        hooks: Sequence[Hook] = (),
        handler: Callable[[Job], Awaitable[object]] | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(queues, str) or (queues is not None and not queues):
            raise OptionInvalid("queues", queues, "a sequence of at least one name")
        self._queue = queue
        self._queues = None if queues is None else [check_name("queues", each) for each in queues]
        self._limits = _check_limits(queues)
        self._weights = None if weights is None else _check_weights(weights, self._queues)
        self._concurrency = _check_concurrency(concurrency, self._queues, self._limits)
        self._lease = seconds("lease", lease, positive=True)
        self._grace = seconds("grace", grace)
        self._job_timeout = None if job_timeout is None else seconds("job_timeout", job_timeout, positive=True)
        self._max_jobs = None if max_jobs is None else check_integer("max_jobs", max_jobs, 1, 1 << 62)
        self._max_memory = None if max_memory is None else check_integer("max_memory", max_memory, 1 << 20, 1 << 62)
        self._prefetch = check_integer("prefetch", prefetch, 0, 10_000)
        self._burst = check_boolean("burst", burst)
        self._backoff = backoff or ExponentialBackoff()
        self._poll_interval = None if poll_interval is None else seconds("poll_interval", poll_interval, positive=True)
        self._retention = retention or Retention()
        self._hooks = check_hooks(hooks)
        if handler is not None and not is_asynchronous(handler):
            raise TaskInvalid(f"{handler!r}: a worker's one handler is async: `async def handle(job: Job)`")
        self._handler = handler
        self._name = None if name is None else check_name("name", name, WORKER_NAME_LIMIT)
        self._supervisor: Supervisor | None = None
        self._running = self._stopping = self._quiet = False
        self._opening: CancelScope | None = None
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Worker on {self._queue!r}, concurrency {self._concurrency}>"

    @property
    def queue(self) -> Queue:
        """Whose jobs it runs."""
        return self._queue

    @property
    def concurrency(self) -> int:
        """How many jobs it runs at once."""
        return self._concurrency

    @property
    def grace(self) -> float:
        """Seconds that running jobs get when it is told to stop."""
        return self._grace

    @property
    def health(self) -> Health:
        """How it is, at this moment: for probes. May be asked by any thread."""
        supervisor = self._supervisor
        if supervisor is not None:
            return supervisor.health
        return Health(live=True, ready=False, reason="it is starting" if self._running else "it does not run")

    def quiet(self) -> None:
        """Reserve no more jobs, and stay: what runs is finished, all else goes on until `stop`. It can't be undone."""
        self._quiet = self._running
        if self._supervisor is not None:
            self._supervisor.quiet()

    def stop(self) -> None:
        """Stop reserving, let running jobs finish for `grace` seconds, then cancel them and give them back.

        A second call skips the grace. Returns at once; `run` returns when it is done.
        """
        self._stopping = self._running
        if self._supervisor is not None:
            self._supervisor.stop()
        elif self._opening is not None:
            self._opening.cancel()

    async def run(self, *, signals: bool | None = None, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> Summary:
        """Work until told to stop, or until a limit is reached.

        Args:
            signals: whether signals mean something: SIGTERM and SIGINT `stop()`, SIGUSR1 `quiet()`, and SIGUSR2 prints
                what every task is doing to stderr. None: if nobody else has a say, that is in the main thread, not
                started by `tg.start(…)`, and no other handler for SIGTERM is there.
            task_status: `await tg.start(worker.run)` returns when it reserves.

        A synchronous handler that is still in its thread when the grace is over can't be ended: its lease is given
        back, its result thrown away, but on asyncio the process ends only when the thread does.

        Cancelled, it gives back what it holds, inside a shield of some seconds, and lets the cancellation through.

        Returns:
            What it did, and why it ended.

        Raises:
            StatementRejected: the database refused the first reserve: its account lacks a right, say.
            SchemaOutdated, StorageUnavailable: the queue could not be opened. Once it works, an outage of the
                database does not end it: it goes on when the database is back.
        """
        if signals is None:
            signals = task_status is TASK_STATUS_IGNORED and _signals_are_free()
        if self._running:
            raise UsageError(f"{self!r} runs already: make another worker")
        self._running, self._stopping, self._quiet = True, False, False
        try:
            if signals:
                return await self._run_with_signals(task_status)
            return await self._run(task_status)
        finally:
            self._supervisor = None
            self._running = False

    async def _run(self, task_status: TaskStatus[None]) -> Summary:
        with CancelScope() as self._opening:
            if self._stopping:
                self._opening.cancel()
            async with AsyncExitStack() as stack:
                if not self._queue.is_open:
                    await stack.enter_async_context(self._queue)
                if not self._opening.cancel_called:
                    supervisor = self._make_supervisor()
                    if self._quiet:
                        supervisor.quiet()
                    self._supervisor = supervisor  # from now on it is the one that is told to stop
                    return await supervisor.run(task_status=task_status)
        task_status.started()
        return Summary(reason=StopReason.STOPPED)

    async def _run_with_signals(self, task_status: TaskStatus[None]) -> Summary:
        with anyio.open_signal_receiver(*_SIGNALS) as received:

            async def obey() -> None:
                told = -math.inf
                async for number in received:
                    stop = number not in {signal.SIGUSR1, signal.SIGUSR2}
                    if not stop or anyio.current_time() - told > _ONE_WORD:
                        self._obey(number)
                    told = anyio.current_time() if stop else told

            async with background() as services:
                services.start_soon(obey, name="signals")
                return await self._run(task_status)

    def _obey(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGUSR1:
                self.quiet()
            case signal.SIGUSR2:
                sys.stderr.write(describe_tasks())
                sys.stderr.flush()
            case _:
                self.stop()

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
        queues = self._queues or queues_of(list(queue.tasks))
        presence = Presence(
            name=f"{self._name}:{new_worker_name()}" if self._name else new_worker_name(),
            host=socket.gethostname(),
            pid=os.getpid(),
            backend=current_backend(),
            version=version("creche"),
            queues=tuple(queues),
            concurrency=self._concurrency,
        )
        settings = Settings(
            presence=presence,
            limits=self._limits,
            weights=None if self._weights is None else {name: self._weights.get(name, 1) for name in queues},
            types=types,
            lease=self._lease,
            grace=self._grace,
            job_timeout=self._job_timeout,
            max_jobs=self._max_jobs,
            max_memory=self._max_memory,
            prefetch=self._prefetch,
            burst=self._burst,
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


def _check_limits(queues: Sequence[str] | Mapping[str, int | None] | None) -> Mapping[str, int]:
    if not isinstance(queues, Mapping):
        return {}
    return {
        name: check_integer(f"queues[{name!r}]", limit, 1, _CONCURRENCY_LIMIT)
        for name, limit in queues.items()
        if limit is not None
    }


def _check_weights(weights: Mapping[str, int], queues: Sequence[str] | None) -> Mapping[str, int]:
    for name, weight in weights.items():
        if queues is not None and name not in queues:
            raise OptionInvalid("weights", name, f"only queues that are served: {', '.join(queues)}")
        check_integer(f"weights[{name!r}]", weight, 1, 1_000_000)
    return dict(weights)


def _check_concurrency(concurrency: int | None, queues: Sequence[str] | None, limits: Mapping[str, int]) -> int:
    if concurrency is not None:
        return check_integer("concurrency", concurrency, 1, _CONCURRENCY_LIMIT)
    return sum(limits.values()) if queues and len(limits) == len(queues) else _CONCURRENCY
