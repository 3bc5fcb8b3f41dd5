"""The queue: the one thing that an application holds. It dispatches, looks up, cancels; it runs no job."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast, overload
from uuid import UUID

from attrs import evolve, frozen

from creche import _waiting
from creche._bulk import dispatched_before, matching
from creche._callbacks import Callback, Callbacks, When, record
from creche._calls import NO_OPTIONS, Call, Options, around_result, encode_payload, make_follow_up, make_options
from creche._ids import new_job_id, new_job_ids
from creche._inserter import Inserter, inserting
from creche._job import (
    ACTIVE,
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_QUEUE,
    FINISHED,
    AlikeJobs,
    DeadLetter,
    End,
    FollowUp,
    JobFilter,
    JobRecord,
    NewJob,
    On,
    QueueStats,
    Retention,
    Status,
    WorkerRecord,
    check_integer,
    check_name,
    seconds,
)
from creche._nursery import background
from creche._payload import MAX_RESULT, JSONSerializer, Refused, fingerprint, to_plain
from creche._receipt import Receipt, issue, issue_again
from creche._tasks import Task, TaskDecorator, Tasks
from creche.abc import Backoff, Fingerprint, Serializer, Storage
from creche.errors import JobNotFound, OptionInvalid, PayloadInvalid, QueueNotOpen, UnknownType
from creche.storage import open_storage

R = TypeVar("R")

DEFAULT_DSN: Final = "sqlite:///creche.db"
RESULT_CEILING: Final = 8 << 20  # bytes: half of what a MySQL server takes as one statement unless it is told otherwise
_MOST_ROWS: Final = 1_000_000  # of one page: whoever wants more wants pages


@frozen(kw_only=True)
class Stats:
    """How it all stands.

    Attributes:
        queues: each that has jobs, is paused, or has a retention of its own, by its name.
        workers: those that live, by their names.
    """

    queues: Sequence[QueueStats]
    workers: Sequence[WorkerRecord]


class Queue:
    """Jobs on a database.

    Use it as `async with queue:`, once at a time; tasks are registered before or after.

    Args:
        dsn: the database's URL, or a storage; None takes `CRECHE_DSN`, else `DATABASE_URL`, else the SQLite file
            `creche.db` in the working folder.
        serializer: values to JSON text and back.
        fingerprint: names unique work; 32 bytes from a job type and plain arguments.
        result_limit: bytes of JSON that a result may have; above it, the attempt fails.
    """

    def __init__(
        self,
        dsn: str | Storage | None = None,
        *,
        serializer: Serializer | None = None,
        fingerprint: Fingerprint = fingerprint,
        result_limit: int = MAX_RESULT,
    ) -> None:
        if dsn is None:
            dsn = os.environ.get("CRECHE_DSN") or os.environ.get("DATABASE_URL") or DEFAULT_DSN
        self._storage = open_storage(dsn) if isinstance(dsn, str) else dsn
        self._serializer = serializer or JSONSerializer()
        self._fingerprint = fingerprint
        self.result_limit: Final = check_integer("result_limit", result_limit, 4, RESULT_CEILING)
        self._foreign: set[str] = set()
        self._waiters = _waiting.Waiters(self._storage)
        self._inserter: Inserter | None = None
        self._stack: AsyncExitStack | None = None
        self._entered = False
        self.tasks: Final = Tasks()
        self.tasks.bind(self)

    def __repr__(self) -> str:
        return f"<Queue on {self._storage!r}, {len(self.tasks)} tasks>"

    # --- lifecycle ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it is inside its `async with` block."""
        return self._stack is not None

    @property
    def storage(self) -> Storage:
        """Where its jobs are."""
        return self._storage

    @property
    def serializer(self) -> Serializer:
        """What turns values into JSON text and back."""
        return self._serializer

    async def __aenter__(self) -> Self:
        if self._entered:
            hint = "open already: put one `async with queue:` around all that uses it, workers too"
            raise OptionInvalid("queue", self, hint)
        self._entered = True
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._storage)
                self._waiters = _waiting.Waiters(self._storage)
                stack.callback(self._waiters.close)
                services = await stack.enter_async_context(background())
                services.start_soon(self._waiters.run, name="receipts")
                self._inserter = await stack.enter_async_context(inserting(self._storage))
                self._stack = stack.pop_all()
        except BaseException:
            self._entered = False
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        stack, self._stack, self._inserter = self._stack, None, None
        try:
            return None if stack is None else await stack.__aexit__(kind, error, trace)
        finally:
            self._entered = False

    async def migrate(self) -> Sequence[str]:
        """Bring the database's schema to this version; return the names of the migrations that were applied.

        Works on a queue that is not open. Any number of processes may call it at once.
        """
        return await self._storage.migrate()

    # --- tasks --------------------------------------------------------------------------------------

    def task(
        self,
        type: str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        result_ttl: float | timedelta | None = None,
        unique: bool | None = None,
        backoff: Backoff | None = None,
        job_timeout: float | timedelta | None = None,
        cpu: bool = False,
    ) -> TaskDecorator:
        """Register a function as the handler of a job type; see `Tasks.task` for the options."""
        return self.tasks.task(
            type,
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            result_ttl=result_ttl,
            unique=unique,
            backoff=backoff,
            job_timeout=job_timeout,
            cpu=cpu,
        )

    def callback(
        self,
        type: str,
        *,
        on: When = "success",
        queue: str | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        job_timeout: float | timedelta | None = None,
    ) -> TaskDecorator:
        """Register a function to run when a job is over; see `Tasks.callback` for the options."""
        return self.tasks.callback(
            type,
            on=on,
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            backoff=backoff,
            job_timeout=job_timeout,
        )

    def include(self, tasks: Tasks) -> None:
        """Take in the tasks of another module: `tasks = Tasks()` there, `queue.include(tasks)` here."""
        self.tasks.include(tasks)

    def foreign(self, *types: str) -> None:
        """Declare job types whose handlers are registered elsewhere, so that they can be dispatched by name."""
        self._foreign.update(types)

    # --- dispatch -----------------------------------------------------------------------------------

    @overload
    async def dispatch(
        self,
        what: Call[R],
        /,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        available_at: datetime | None = None,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
        result_ttl: float | timedelta | None = None,
        unique: bool | None = None,
        refresh: bool | None = None,
        callbacks: Callbacks | None = None,
        connection: Any = None,
    ) -> Receipt[R]: ...
    @overload
    async def dispatch(
        self,
        what: str,
        payload: object = None,
        /,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        available_at: datetime | None = None,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
        result_ttl: float | timedelta | None = None,
        unique: bool | None = None,
        refresh: bool | None = None,
        callbacks: Callbacks | None = None,
        connection: Any = None,
    ) -> Receipt[Any]: ...
    async def dispatch(self, what: str | Call[Any], payload: object = None, /, **options: Any) -> Receipt[Any]:
        """Ask for a job: a call made by `task.call(…)`, or a job type with its payload.

        A payload for a task that is registered here is checked against its signature. A type that is not is
        taken if it is sent on purpose: `queue=` names where its handler listens, or `queue.foreign(type)` has
        declared it, or this process registers no tasks at all.

        Args:
            what: the call, or the job type.
            payload: an object of the handler's arguments by name; None for none. A call has its own already.
            options: see `Task.options`; they come before those of the call.

        Raises:
            UnknownType: no such task, and nothing says that there is one elsewhere; lists near names.
            PayloadInvalid, OptionInvalid: refused before anything was written.
            QueueNotOpen: use `async with queue:`.
            StorageUnavailable: the database can't be reached. The job may have been written; with an
                idempotency key it can be sent again without harm.

        What is dispatched while a dispatch of this process is on its way is written in one statement with the others
        that are, and each gets its own answer or error. It is then written in a task of the queue's, and in no
        caller's context. A dispatch with an idempotency key, a fingerprint, callbacks or a `connection` is written by
        itself.

        Cancelled, it raises at once. The job may or may not have been written; never half. Others are not disturbed.
        """
        asked = make_options(**options) if options else NO_OPTIONS
        if not isinstance(what, Call):
            return await self.dispatch_call(self._call(what, payload, asked))
        if payload is not None:
            raise OptionInvalid("payload", payload, "a call has its arguments already: give them to `task.call(…)`")
        return await self.dispatch_call(evolve(what, options=asked.over(what.options)) if options else what)

    async def dispatch_call(self, call: Call[R]) -> Receipt[R]:
        """Send one call."""
        inserter = self._inserter
        if inserter is None:
            raise QueueNotOpen
        connection = call.options.connection
        if connection is not None:
            return (await self.dispatch_many([call]))[0]
        return issue(await inserter.insert(self._new_job(call, new_job_id())), self, call.returns)

    async def dispatch_many(self, calls: Iterable[Call[R]]) -> Sequence[Receipt[R]]:
        """Ask for many jobs in one statement, all or nothing; return their receipts in order.

        Raises:
            OptionInvalid: one of them is no call, or they name different connections.
            QueueNotOpen, StorageUnavailable: see `dispatch`.
        """
        storage = self._open()
        asked = _calls(calls)
        connection = _one_connection(asked)
        jobs = self._new_jobs(asked)
        insertions = await storage.insert(jobs, connection=connection)
        borrowed = connection is not None
        return [
            issue(insertion, self, call.returns, borrowed=borrowed)
            for call, insertion in zip(asked, insertions, strict=True)
        ]

    def _call(self, type: str, payload: object, options: Options) -> Call[Any]:
        if isinstance(type, Task):
            raise OptionInvalid("type", type, "a call, made by `task.call(…)`, or a job type's name")
        check_name("type", type)
        if type in self.tasks:
            task: Task[..., Any] = self.tasks.get(type)
            return task.call_with(options, task.signature.check({} if payload is None else payload))
        self._check_foreign(type, options.queue)
        try:
            plain = to_plain({} if payload is None else payload)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=type) from None
        encoded = encode_payload(self._serializer, plain, type, plain=plain)
        return Call(type=type, payload=encoded, arguments=plain, options=options)

    def _check_foreign(self, type: str, queue: str | None) -> None:
        if type in self._foreign or not len(self.tasks):
            return
        near = self.tasks.near(type)
        if near or queue is None:
            raise UnknownType(type, near)

    def _follow_up(self, callback: Callback) -> FollowUp:
        target = callback.target
        if not isinstance(target, str):
            return target.follow_up(callback.on, callback.arguments)
        name = check_name("type", target)
        if name in self.tasks:
            task: Task[..., Any] = self.tasks.get(name)
            return task.follow_up(callback.on, callback.arguments)
        self._check_foreign(name, None)
        try:
            given = to_plain(dict(callback.arguments))
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=name) from None
        payload = around_result(self._serializer, given, None if "result" in given else "result", name)
        return make_follow_up(name, Options(), callback.on or On.SUCCESS, payload)

    def _new_jobs(self, calls: Sequence[Call[Any]]) -> Sequence[NewJob]:
        ids = new_job_ids(len(calls))
        if len(calls) > 1:
            first = calls[0]
            options = first.options
            # Nothing of such options is a job's own, so that one is checked for all.
            shared = not (options.single_flight or options.callbacks or options.idempotency_key)
            if shared and all(call.options is options and call.type == first.type for call in calls):
                return AlikeJobs(self._new_job(first, ids[0]), ids, [call.payload for call in calls])
        return [self._new_job(call, job_id) for call, job_id in zip(calls, ids, strict=True)]

    def _new_job(self, call: Call[Any], job_id: UUID) -> NewJob:
        options = call.options
        if options.refresh and not options.single_flight:
            raise OptionInvalid(
                "refresh", options.refresh, "a task with a result_ttl: nothing else has a cached result"
            )
        return NewJob(
            id=job_id,
            type=call.type,
            payload=call.payload,
            queue_name=options.queue or DEFAULT_QUEUE,
            priority=options.priority or 0,
            max_attempts=options.max_attempts or DEFAULT_MAX_ATTEMPTS,
            delay=options.delay or 0.0,
            available_at=options.available_at,
            idempotency_key=options.idempotency_key,
            fingerprint=self._fingerprint(call.type, call.arguments) if options.single_flight else None,
            result_ttl=options.result_ttl,
            refresh=bool(options.refresh),
            callbacks=record(options.callbacks, self._follow_up) if options.callbacks else (),
        )

    # --- afterwards ---------------------------------------------------------------------------------

    async def receipt(self, job_id: UUID | str) -> Receipt[Any]:
        """Return how a job stands now.

        Raises:
            JobNotFound: never dispatched here, or pruned since.
        """
        row = await self.look_up(_uuid(job_id))
        if row is None:
            raise JobNotFound(_uuid(job_id))
        returns = self.tasks.get(row.type).signature.returns if row.type in self.tasks else Any
        return issue_again(row, self, returns)

    async def cancel(self, job_id: UUID | str) -> Status:
        """Cancel a job: at once while it waits, by way of its worker while it runs.

        Its handler then gets the event loop's own cancellation, and its `finally` blocks run; `Job.cancel_reason` tells
        them why. A handler in a thread can't be ended: its attempt is, and what it returns is thrown away.

        Returns:
            `cancelled` if it was waiting; `processing` if its worker was woken, and learns of it with the next renewal
            at the latest; else how it had ended before.

        Raises:
            JobNotFound: never dispatched here, or pruned since.
        """
        return _only(_uuid(job_id), await self._open().cancel([_uuid(job_id)]))

    async def retry(self, job_id: UUID | str) -> Status:
        """Make a failed, cancelled or scheduled job ready now, with all its attempts.

        Returns:
            `pending` if it is ready again; any other status: it was left as it is (it runs, is completed, or
            another job has its fingerprint now).

        Raises:
            JobNotFound: never dispatched here, or pruned since.
        """
        return _only(_uuid(job_id), await self._open().retry([_uuid(job_id)]))

    async def jobs(
        self,
        *,
        queues: Collection[str] | None = None,
        types: Collection[str] | None = None,
        statuses: Collection[Status] | None = None,
        limit: int = 100,
        before: UUID | None = None,
    ) -> Sequence[JobRecord]:
        """Return rows of jobs, newest first.

        Args:
            queues: only of these.
            types: only of these job types.
            statuses: only in these.
            limit: how many at most.
            before: the last id of the page before.
        """
        limit = check_integer("limit", limit, 0, _MOST_ROWS)
        return await self._open().list(_where(queues, types, statuses), limit, before=before)

    async def delete(self, job_id: UUID | str) -> Status:
        """Delete a job that is over, with its cached result and its dead letter.

        Returns:
            How it had ended. A status that is active: it was left as it is; cancel it first.

        Raises:
            JobNotFound: never dispatched here, or gone already.
        """
        return _only(_uuid(job_id), await self._open().delete([_uuid(job_id)]))

    async def dead_letters(self, *, limit: int = 100, before: UUID | None = None) -> Sequence[DeadLetter]:
        """Return the copies of jobs that failed for good, with their errors, newest first.

        Args:
            limit: how many at most.
            before: the last id of the page before.
        """
        return await self._open().dead_letters(check_integer("limit", limit, 0, _MOST_ROWS), before=before)

    # --- many at once -------------------------------------------------------------------------------

    async def cancel_all(
        self,
        *,
        queues: Collection[str] | None = None,
        types: Collection[str] | None = None,
        statuses: Collection[Status] = ACTIVE,
        older_than: float | timedelta = 0.0,
    ) -> int:
        """Cancel all jobs that match, page by page; return how many. Those that are dispatched meanwhile are left.

        Args:
            queues: only of these.
            types: only of these job types.
            statuses: of the active ones, only these.
            older_than: seconds since they were dispatched.
        """
        where = _where(queues, types, ACTIVE.intersection(statuses))
        return await self._to_all(self._open().cancel, where, older_than, {Status.CANCELLED, Status.PROCESSING})

    async def retry_all(
        self,
        *,
        queues: Collection[str] | None = None,
        types: Collection[str] | None = None,
        statuses: Collection[Status] = (Status.FAILED,),
        older_than: float | timedelta = 0.0,
    ) -> int:
        """Make all failed, cancelled or scheduled jobs that match ready now; return how many. See `cancel_all`."""
        retriable = {Status.FAILED, Status.CANCELLED, Status.SCHEDULED}
        where = _where(queues, types, retriable.intersection(statuses))
        return await self._to_all(self._open().retry, where, older_than, {Status.PENDING})

    async def delete_all(
        self,
        *,
        queues: Collection[str] | None = None,
        types: Collection[str] | None = None,
        statuses: Collection[Status] = FINISHED,
        older_than: float | timedelta = 0.0,
    ) -> int:
        """Delete all jobs that are over and match; return how many. See `cancel_all`."""
        where = _where(queues, types, FINISHED.intersection(statuses))
        return await self._to_all(self._open().delete, where, older_than, FINISHED)

    async def _to_all(
        self,
        act: Callable[[Collection[UUID]], Awaitable[Mapping[UUID, Status]]],
        where: JobFilter,
        older_than: float | timedelta,
        done: Collection[Status],
    ) -> int:
        count = 0
        before = dispatched_before(seconds("older_than", older_than))
        async for page in matching(self._open(), where, before=before):
            statuses = await act([job.id for job in page])
            count += sum(status in done for status in statuses.values())
        return count

    # --- queues, and who serves them ----------------------------------------------------------------

    async def pause(self, *names: str) -> None:
        """Hand out no more jobs of these queues, to any worker, until they are resumed. What runs goes on."""
        await self._open().pause(_names(names))

    async def resume(self, *names: str) -> None:
        """Hand out jobs of these queues again."""
        await self._open().resume(_names(names))

    async def set_retention(self, name: str, retention: Retention | None) -> None:
        """Say how long the finished jobs of a queue are kept, whatever its workers say; None: let them."""
        await self._open().set_retention(check_name("name", name), retention)

    async def workers(self) -> Sequence[WorkerRecord]:
        """Return the workers that live, and what they hold; one that was killed is among them for a minute at most."""
        return await self._open().workers()

    async def stats(self) -> Stats:
        """Return how each queue stands, and who works. It counts every job: not for a loop."""
        storage = self._open()
        return Stats(queues=await storage.stats(), workers=await storage.workers())

    async def look_up(self, job_id: UUID) -> JobRecord | None:
        """Return a job's row, or None."""
        return (await self._open().find([job_id])).get(job_id)

    async def wait_for(self, job_id: UUID) -> End | None:
        """Return how a job ended, once it is over; None if there is no such job."""
        self._open()
        return await self._waiters.wait(job_id)

    def settled(self, job_ids: Collection[UUID]) -> None:
        """A worker of this process wrote the ends of jobs."""
        self._waiters.settled(job_ids)

    def _open(self) -> Storage:
        if self._stack is None:
            raise QueueNotOpen
        return self._storage


def _calls(calls: object) -> list[Call[Any]]:
    rule = "calls, made by `task.call(…)`"
    if not isinstance(calls, Iterable):
        raise OptionInvalid("calls", calls, rule)
    asked: list[Any] = list(cast("Iterable[object]", calls))
    for each in asked:
        if not isinstance(each, Call):
            raise OptionInvalid("calls", each, rule)
    return asked


def _one_connection(calls: Sequence[Call[Any]]) -> object:
    """Return the handle that a batch is to be dispatched through; None: our own."""
    connections = {id(call.options.connection): call.options.connection for call in calls}
    first = next(iter(connections.values()), None)
    if len(connections) > 1:
        raise OptionInvalid("connection", first, "the same one for all calls of a batch: it is written as one")
    return first


def _where(
    queues: Collection[str] | None, types: Collection[str] | None, statuses: Collection[Status] | None
) -> JobFilter:
    return JobFilter(
        queues=None if queues is None else frozenset(queues),
        types=None if types is None else frozenset(types),
        statuses=None if statuses is None else frozenset(statuses),
    )


def _names(names: Sequence[str]) -> Sequence[str]:
    return [check_name("name", name) for name in names]


def _uuid(job_id: UUID | str) -> UUID:
    if isinstance(job_id, UUID):
        return job_id
    try:
        return UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        raise OptionInvalid("job_id", job_id, "a UUID") from None


def _only(job_id: UUID, statuses: Mapping[UUID, Status]) -> Status:
    try:
        return statuses[job_id]
    except KeyError:
        raise JobNotFound(job_id) from None
