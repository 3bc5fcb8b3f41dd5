"""One job inside its lease: the cancel scope, the handler's view of its job, and how the attempt ended.

It reserves nothing and writes nothing; the settler does the writing.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, Protocol, cast
from uuid import UUID

import anyio
import anyio.lowlevel
from anyio import CancelScope, get_cancelled_exc_class
from attrs import evolve, frozen

from creche._calls import encode_result
from creche._job import (
    MESSAGE_LIMIT,
    CancelReason,
    Event,
    Lease,
    Origin,
    Progress,
    Settlement,
    check_fraction,
    check_seconds,
)
from creche._leases import Held, Verdict
from creche._lifecycle import Aborted, Discarded, Failed, Outcome, Released, Snoozed, Succeeded
from creche._logs import about
from creche._patience import ANSWER, Patience, answered_within
from creche._payload import MAX_RESULT, Refused, clean, describe
from creche.abc import Backoff, Serializer, Storage, Transaction
from creche.errors import (
    Discard,
    JobTimeout,
    LeaseLost,
    NoCurrentJob,
    OptionInvalid,
    PayloadInvalid,
    Retry,
    Snooze,
    StorageUnavailable,
    UsageError,
)

_log = logging.getLogger("creche")

_NO_RESULT: Final = b"null"
_RELEASED: Final = Released()

_current: ContextVar[Job] = ContextVar("creche_current_job")


class Job:
    """The attempt that is running, as its handler sees it.

    A handler gets it by annotating its first parameter `Job`, or from `current_job()`.
    """

    def __init__(self, held: Held, desk: Desk, started: float) -> None:
        self._held = held
        self._desk = desk
        self._started = started
        self._transacting = False
        self._result: bytes | None = None
        self._thread = threading.get_ident()
        self._left: CancelReason | None = None
        self.limit: CancelScope | None = None  # ends the attempt at its job_timeout

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.type!r}, attempt {self.attempt} of {self.max_attempts}>"

    @property
    def id(self) -> UUID:
        """The job's id."""
        return self._held.job.id

    @property
    def type(self) -> str:
        """The job type: the name its task is registered under."""
        return self._held.job.type

    @property
    def queue_name(self) -> str:
        """The queue that it was reserved from."""
        return self._held.job.queue_name

    @property
    def priority(self) -> int:
        """Larger is sooner."""
        return self._held.job.priority

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._held.job.attempt

    @property
    def max_attempts(self) -> int:
        """How many attempts there are at most."""
        return self._held.job.max_attempts

    @property
    def created_at(self) -> datetime:
        """When it was dispatched, UTC, by the database's clock."""
        return self._held.job.created_at

    @property
    def origin(self) -> Origin | None:
        """The job whose end this one follows, if it is a callback: its id, type, queue, status, and its last error if
        it failed. Not to be taken for this job itself, which has attempts of its own.
        """
        return self._held.job.origin

    @property
    def payload_text(self) -> bytes:
        """The arguments as they are stored: JSON text in UTF-8."""
        return self._held.job.payload

    @property
    def lease(self) -> Lease:
        """The right under which this attempt runs."""
        return self._held.lease

    @property
    def deadline(self) -> float:
        """When that right ends unless it is renewed, on the event loop's clock (`anyio.current_time()`)."""
        return self._held.deadline

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why this attempt is being cancelled; None if it is not. For `finally` blocks and for those that catch the
        event loop's cancellation to clean up: it is the loop's own, and has to be let through. A handler in a thread,
        which nothing ends, may ask it now and then, and end by itself.
        """
        if self._left is not None:
            return self._left
        match self._held.verdict:
            case Verdict.LOST:
                return CancelReason.LEASE_LOST
            case Verdict.ASKED:
                return CancelReason.CANCELLED
            case _ if threading.get_ident() != self._thread:  # where no scope can be asked
                return None
            case _ if self.limit is not None and self.limit.cancel_called:
                return CancelReason.TIMEOUT
            case _ if anyio.current_effective_deadline() == -math.inf:
                return CancelReason.SHUTDOWN
            case _:
                return None

    @property
    def payload(self) -> Any:
        """The arguments, as plain dicts, lists, strings and numbers.

        Raises:
            PayloadInvalid: what is stored is not JSON; left alone, it fails the attempt.
        """
        return self.arguments(Any)

    def arguments(self, type: Any) -> Any:
        """Return the arguments shaped as `type` says: a dataclass, an attrs or msgspec class, a TypedDict.

        Raises:
            PayloadInvalid: they don't fit; left alone, it fails the attempt.
        """
        try:
            return self._desk.serializer.decode(self._held.job.payload, type)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self.type) from None

    def leave(self) -> None:
        """The attempt ends before its handler, which is in a thread: remember why, for the thread may ask."""
        self._left = self.cancel_reason

    async def extend(self, seconds: float) -> None:
        """Make sure that the lease lasts at least `seconds` from now; the worker goes on renewing it besides. After the
        job's own transaction there is no lease, and none is needed: then it does nothing.

        Raises:
            LeaseLost: somebody else may have the job; stop.
            StorageUnavailable: nobody knows; the lease lasts as long as it did.
        """
        seconds = check_seconds("seconds", seconds, positive=True)
        held = self._held
        if held.settled:
            await anyio.lowlevel.checkpoint()
            return
        sent = anyio.current_time()
        with answered_within(ANSWER, "an extension"):
            extension = await self._desk.storage.extend([self.lease], seconds)
        if self.lease in extension.held:
            held.postpone(sent + seconds - self._desk.margin)
        elif not (held.settling or held.settled):  # its own transaction may have ended it while we asked
            held.revoke(Verdict.LOST)
            raise LeaseLost(self.id)

    async def progress(self, fraction: float, message: str = "") -> None:
        """Say how far this attempt has come. It is written a moment later, at most once a second, and the last word
        counts; so it may be called as often as there is something to say. What is said in the last second before the
        attempt ends may be left unwritten: that it has ended says more. A checkpoint.

        Args:
            fraction: from 0 to 1.
            message: for people; at most 500 characters are kept.

        Raises:
            LeaseLost: somebody else may have the job; stop.
        """
        news = Progress(fraction=check_fraction("fraction", fraction), message=_message(message))
        await anyio.lowlevel.checkpoint()
        if self._held.verdict is Verdict.LOST:
            raise LeaseLost(self.id)
        if not self._held.settled:
            self._desk.reported(self._held, news)

    # --- a transaction of the handler's own, which ends the attempt ---------------------------------

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Write, and end this attempt, in one transaction of the queue's own database: exactly once, whatever crashes.

        ```python
        async with job.transaction() as connection:
            await connection.execute("INSERT INTO invoices …", …)
            job.set_result({"invoice": 17})  # the job's result, None without it
        ```

        When the block is left, the job is completed, and both are committed together; its callbacks, too. Left by an
        exception, or cancelled, nothing of it stays and the attempt goes on (and fails, if nobody catches). What the
        handler does afterwards changes nothing about the job. A job has one such transaction.

        Cancelled while it is being committed (by a stop, or by a timeout of the handler's own), its outcome may be
        unknown here: what was written is there once all the same if the job is completed, and else not at all; but the
        events of this attempt may tell of another end. Who waits for a commit's answer when the lease ends, goes on
        waiting for two seconds at most.

        Returns:
            The connection: psycopg's own on PostgreSQL; on MySQL and SQLite one with `execute(sql, parameters)`, which
            returns a cursor with `fetchone`, `fetchall`, `rowcount` and `lastrowid`. Send neither COMMIT nor ROLLBACK
            through it. What it raises is the driver's.

        Raises:
            LeaseLost: another worker may have the job: everything was rolled back.
            StorageUnavailable: no connection, or it broke: everything was rolled back. If the commit's own answer was
                lost, this waits until its outcome is known.
            UsageError: there was one already, or one is open.
        """
        return self._transaction()

    def set_result(self, result: object) -> None:
        """Give the job's result, within the block of `transaction`: it ends before the handler returns.

        Raises:
            ResultInvalid: it can't be stored.
            UsageError: there is no such block here: return the result.
        """
        if not self._transacting:
            raise UsageError("a result is given inside of `async with job.transaction()`: elsewhere, return it")
        self._result = encode_result(self._desk.serializer, result, self.type, self._desk.result_limit)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Any]:
        if self._transacting or self._held.settled:
            raise UsageError(f"{self!r} has its transaction already: it ends the attempt, so there is one")
        held = self._held
        limit = math.inf if self.limit is None else self.limit.deadline
        lease = CancelScope()  # who waits for a commit is shielded from being cancelled, but heeds deadlines
        self._transacting, self._result = True, None
        try:
            with lease:
                async with self._desk.storage.transaction() as transaction:
                    yield transaction.connection
                    held.settling = True
                    if self.limit is not None:  # the handler was in time, and a commit is not cut off
                        self.limit.deadline = math.inf
                    await self._settle_in(transaction)
                    lease.deadline = held.end
            if lease.cancelled_caught:
                raise StorageUnavailable("no answer to the commit while the lease lasted")  # noqa: TRY301 - see below
        except StorageUnavailable:
            if not held.settling or not await self._was_committed():
                raise
        finally:
            self._transacting = held.settling = False
            if self.limit is not None:
                self.limit.deadline = limit
        self._desk.committed(held, anyio.current_time() - self._started)

    def _success(self) -> Settlement:
        return Settlement(lease=self.lease, event=Event.SUCCEED, result=self._result or _NO_RESULT)

    async def _settle_in(self, transaction: Transaction) -> None:
        with answered_within(ANSWER, "a settle"):
            accepted = await transaction.settle(self._success())
        if not accepted:
            self._held.revoke(Verdict.LOST)
            raise LeaseLost(self.id)

    async def _was_committed(self) -> bool:
        """Find out what became of a commit that was not answered. The lease's deadline ends this, if nothing else does.

        To extend the lease waits for the row, and so until that transaction is over. If the lease is still held, it was
        rolled back. If not, this attempt's own settle is known to the storage, or its job was pruned since; or somebody
        else has the job.
        """
        patience = Patience(f"job {self.id}", longest=1.0)
        while True:
            try:
                with answered_within(ANSWER, "an extension"):
                    extension = await self._desk.storage.extend([self.lease], 1.0)
                if self.lease in extension.held:
                    return False
                with answered_within(ANSWER, "a settle"):
                    settled = await self._desk.storage.settle([self._success()])
            except StorageUnavailable as error:
                await patience.after(error)
                continue
            if self.lease in settled.gone and not self._held.expired:
                return True  # nobody else can have ended it, so it is this that was committed, and pruned since
            if self.lease in settled.lost:
                self._held.revoke(Verdict.LOST)
                raise LeaseLost(self.id)
            return True

    def afterthought(self, outcome: Outcome | None) -> None:
        """The handler is over, after its transaction had ended the job: tell the operator what came too late."""
        match outcome:
            case Failed(error=error) | Discarded(error=error):
                what = f"raised {error.type}: {error.message}\n{error.traceback}"
            case Snoozed():
                what = "asked for another time"
            case Succeeded(result=result) if result != _NO_RESULT and self._result is None:
                what = "returned a result, which is not kept: give it with `job.set_result(…)` inside of the block"
            case _:
                return
        text = "job %s %r was completed by its own transaction; its handler then %s"
        _log.error(text, self.id, self.type, what, extra=about(self))


def _message(message: object) -> str:
    if not isinstance(message, str):
        raise OptionInvalid("message", message, "a string")
    return clean(message[:MESSAGE_LIMIT])


def current_job() -> Job:
    """Return the job whose handler is running here.

    Raises:
        NoCurrentJob: this code was not called by a worker.
    """
    try:
        return _current.get()
    except LookupError:
        raise NoCurrentJob from None


class Handlers(Protocol):
    """What the engine has to know about handlers."""

    async def call(self, job: Job, payload: bytes) -> bytes:
        """Run the handler of `job`; return its result as JSON text."""
        ...

    def backoff(self, type: str) -> Backoff | None:
        """Return the back-off of this job type, if it has one of its own."""
        ...

    def job_timeout(self, type: str) -> float | None:
        """Return the seconds that an attempt of this job type may take, if it says so itself."""
        ...

    def stuck(self, queue_name: str | None = None) -> int:
        """Return how many handlers still sit in threads that their attempts had to leave: of this queue's jobs, or in
        all.
        """
        ...

    def close(self) -> None:
        """Let go of what was kept for the next attempts: there are none."""
        ...


@frozen(kw_only=True)
class Desk:
    """What a handler's `Job` asks, and tells.

    Attributes:
        storage: for handlers that extend their own lease, or end their attempt themselves.
        serializer: for handlers that read their payload by hand.
        result_limit: bytes of JSON that a result may have.
        margin: seconds by which our deadline comes before the database's.
        reported: called with what a handler says of its progress.
        committed: called when a handler's own transaction has ended its attempt, with the seconds that it took.
    """

    storage: Storage
    serializer: Serializer
    result_limit: int = MAX_RESULT
    margin: float
    reported: Callable[[Held, Progress], None]
    committed: Callable[[Held, float], None]


class Runner:
    """Runs attempts.

    Args:
        handlers: what to call.
        desk: for the `Job` that handlers see.
        ended: called with how each attempt ended (None: there is nothing left to say, its lease is lost), and with the
            moment at which it had begun.
        job_timeout: seconds that an attempt may take whose type says nothing of it; None: as long as it likes.
    """

    def __init__(
        self,
        handlers: Handlers,
        desk: Desk,
        *,
        ended: Callable[[Held, Outcome | None, float], None],
        job_timeout: float | None = None,
    ) -> None:
        self._handlers = handlers
        self._desk = desk
        self._ended = ended
        self._job_timeout = job_timeout
        self._kind = CancelScope

    async def run(self, held: Held, now: float) -> None:
        """Run one attempt inside its lease, and tell how it ended.

        Cancelled from outside, the attempt ends as released, and the cancellation goes on.
        """
        job = Job(held, self._desk, now)
        token = _current.set(job)
        outcome: Outcome | None = _RELEASED
        try:
            if held.verdict is not None:  # while it waited for a slot
                outcome = Aborted() if held.verdict is Verdict.ASKED else None
            elif held.end > now:  # a neighbour may have blocked the loop past it, and nobody has looked since
                outcome = await self._inside_lease(held, job)
        finally:
            _current.reset(token)
            if held.settled:
                job.afterthought(outcome)
            else:
                self._ended(held, outcome, now)

    async def _inside_lease(self, held: Held, job: Job) -> Outcome | None:
        timeout = self._handlers.job_timeout(held.job.type) or self._job_timeout
        outcome: Outcome | None = None
        scope = held.scope(self._kind)
        self._kind = type(scope)  # the event loop's own: to have each chosen by anyio again costs a third of a scope
        try:
            with scope:
                if timeout is None:
                    outcome = await _outcome(self._handlers.call(job, held.job.payload))
                else:
                    outcome = await self._in_time(job, timeout)
        except Exception as error:  # noqa: BLE001 - a task group that was cancelled and failed while it cleaned up
            outcome = Failed(error=describe(error))
        except get_cancelled_exc_class() as error:
            if anyio.current_effective_deadline() == -math.inf:
                raise
            # On asyncio a handler may let out a cancellation that is not ours: of a future, or of its own task.
            outcome = Failed(error=describe(error))
        if isinstance(outcome, Succeeded):
            return outcome  # it finished, however late; the fence decides what it is worth
        if held.verdict is Verdict.ASKED:
            return Aborted()
        if scope.cancel_called:  # the deadline passed, or the lease is known to be lost
            return None
        if anyio.current_effective_deadline() == -math.inf:
            return _RELEASED  # an error raised while the whole worker was being cancelled is no failure of the job
        return outcome

    async def _in_time(self, job: Job, timeout: float) -> Outcome:
        """Call the handler, for as long as an attempt may take."""
        late = describe(JobTimeout(timeout))
        outcome: Outcome = Failed(error=late)
        with CancelScope(deadline=anyio.current_time() + timeout) as job.limit:
            outcome = await _outcome(self._handlers.call(job, job.payload_text))
        if job.limit.cancel_called and isinstance(outcome, Failed):  # what it raised while it was made to end
            return Failed(error=evolve(late, traceback=outcome.error.traceback))
        return outcome


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first


async def _outcome(handling: Coroutine[Any, Any, bytes]) -> Outcome:
    try:
        return Succeeded(result=await handling)
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(get_cancelled_exc_class())
        if cancelled is not None:
            raise _leaf(cancelled) from None  # the scope that it belongs to must see it bare
        if rest is None or rest.subgroup((KeyboardInterrupt, GeneratorExit)) is not None:
            raise
        return Failed(error=describe(rest))
    except Snooze as snooze:
        return Snoozed(delay=snooze.delay, until=snooze.until)
    except Discard as discard:
        return Discarded(error=describe(discard))
    except Retry as retry:
        return Failed(error=describe(retry), delay=retry.delay)
    except (get_cancelled_exc_class(), KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever else a handler raises ends its attempt, and nothing more
        return Failed(error=describe(error))
