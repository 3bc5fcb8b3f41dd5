"""One job inside its lease: the cancel scope, the handler's view of its job, and how the attempt ended.

It reserves nothing and writes nothing; the settler does the writing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, Protocol, cast
from uuid import UUID

import anyio
import anyio.lowlevel
from anyio import get_cancelled_exc_class
from attrs import frozen

from creche._job import Lease, check_seconds
from creche._leases import Held, Verdict
from creche._lifecycle import Aborted, Discarded, Failed, Outcome, Released, Snoozed, Succeeded
from creche._patience import ANSWER, answered_within
from creche._payload import Refused, describe
from creche.abc import Backoff, Serializer, Storage
from creche.errors import Discard, LeaseLost, NoCurrentJob, PayloadInvalid, Retry, Snooze

_current: ContextVar[Job] = ContextVar("creche_current_job")


class Job:
    """The attempt that is running, as its handler sees it.

    A handler gets it by annotating its first parameter `Job`, or from `current_job()`.
    """

    def __init__(self, held: Held, *, storage: Storage, serializer: Serializer, margin: float) -> None:
        self._held = held
        self._storage = storage
        self._serializer = serializer
        self._margin = margin

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
    def lease(self) -> Lease:
        """The right under which this attempt runs."""
        return self._held.lease

    @property
    def deadline(self) -> float:
        """When that right ends unless it is renewed, on the event loop's clock (`anyio.current_time()`)."""
        return self._held.deadline

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
            return self._serializer.decode(self._held.job.payload, type)
        except Refused as refused:
            raise PayloadInvalid(refused.reason, path=refused.path, type=self.type) from None

    async def extend(self, seconds: float) -> None:
        """Make sure that the lease lasts at least `seconds` from now; the worker goes on renewing it besides.

        Raises:
            LeaseLost: somebody else may have the job; stop.
            StorageUnavailable: nobody knows; the lease lasts as long as it did.
        """
        seconds = check_seconds("seconds", seconds, positive=True)
        sent = anyio.current_time()
        with answered_within(ANSWER, "an extension"):
            extension = await self._storage.extend([self.lease], seconds)
        if self.lease in extension.lost:
            self._held.revoke(Verdict.LOST)
            raise LeaseLost(self.id)
        self._held.postpone(sent + seconds - self._margin)


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

    def stuck(self) -> int:
        """Return how many handlers still sit in threads that their attempts had to leave."""
        ...


@frozen(kw_only=True)
class Result:
    """How an attempt ended; `outcome` is None when there is nothing left to say: the lease is lost."""

    outcome: Outcome | None
    seconds: float


class Runner:
    """Runs attempts.

    Args:
        handlers: what to call.
        storage: for handlers that extend their own lease.
        serializer: for handlers that read their payload by hand.
        margin: seconds by which our deadline comes before the database's.
    """

    def __init__(self, handlers: Handlers, *, storage: Storage, serializer: Serializer, margin: float) -> None:
        self._handlers = handlers
        self._storage = storage
        self._serializer = serializer
        self._margin = margin

    async def run(self, held: Held, ended: Callable[[Result], None]) -> None:
        """Run one attempt inside its lease, and tell how it ended.

        Cancelled from outside, the attempt ends as released, and the cancellation goes on.
        """
        job = Job(held, storage=self._storage, serializer=self._serializer, margin=self._margin)
        token = _current.set(job)
        start: Final = anyio.current_time()
        outcome: Outcome | None = Released()
        try:
            outcome = await _inside_lease(held, lambda: self._handlers.call(job, held.job.payload))
        finally:
            _current.reset(token)
            ended(Result(outcome=outcome, seconds=anyio.current_time() - start))


async def _inside_lease(held: Held, call: Callable[[], Coroutine[Any, Any, bytes]]) -> Outcome | None:
    outcome: Outcome | None = None
    scope = held.scope()
    try:
        with scope:
            await anyio.lowlevel.checkpoint()  # cancelled already: the handler's first line never runs
            # A neighbour may have blocked the loop past our deadline, and nobody has looked at the clock since.
            outcome = Released() if held.expired else await _outcome(call)
    except Exception as error:  # noqa: BLE001 - a task group that was cancelled and failed while it cleaned up
        outcome = Failed(error=describe(error))
    except get_cancelled_exc_class() as error:
        if scope.cancel_called or anyio.current_effective_deadline() == -math.inf:
            raise
        # On asyncio a handler may let out a cancellation that nobody here asked for: of a future, or of its own task.
        outcome = Failed(error=describe(error))
    if isinstance(outcome, Succeeded):
        return outcome  # it finished, however late; the fence decides what it is worth
    if held.verdict is Verdict.ASKED:
        return Aborted()
    if scope.cancel_called:  # the deadline passed, or the lease is known to be lost
        return None
    if anyio.current_effective_deadline() == -math.inf:
        return Released()  # an error raised while the whole worker was being cancelled is no failure of the job
    return outcome


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first


async def _outcome(call: Callable[[], Coroutine[Any, Any, bytes]]) -> Outcome:
    try:
        return Succeeded(result=await call())
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
