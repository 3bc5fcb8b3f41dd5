"""Who takes part in a torture run, each in a process of its own: dispatchers that ask whether or not they are answered,
and workers. What befalls them is the conductor's business; what they did stands in their ledgers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from attrs import asdict, frozen

from creche import Queue, Worker, _reserver
from creche._job import Retention
from creche._limits import resident_memory
from creche._pace import Pace
from creche.errors import JobNotFound, StorageUnavailable
from creche.testing._backdoor import driver_errors
from creche.testing._ledger import Entry, Ledger
from creche.testing.torture._jobs import CALM, WILD, Jobs, queue_of
from creche.testing.torture._plan import CANCELLED, MIX, Plan
from creche.testing.torture._pulse import feel_the_pulse

_DAY: Final = 86_400.0
_FOR_EVER: Final = Retention(completed=_DAY, failed=_DAY, cancelled=_DAY)
_PAUSE: Final = 0.5  # seconds
_SIZES: Final = 2.0  # seconds between two notes on what a process has grown to


@frozen(kw_only=True)
class Ask:
    """One dispatch: what a caller wants, and goes on wanting until it is answered.

    Attributes:
        key: its idempotency key.
        kind: of job.
        number: what its handler goes by.
        borrowed: whether it is sent in a transaction of the caller's.
        rolled_back: whether that is rolled back.
        hasty: seconds after which the caller gives up the first time; None: never.
        cancel: seconds after which the job is cancelled; None: never.
    """

    key: str
    kind: str
    number: int
    borrowed: bool = False
    rolled_back: bool = False
    hasty: float | None = None
    cancel: float | None = None


def draw(key: str, plan: Plan, dice: random.Random) -> Ask:
    """Make up a dispatch."""
    kind = dice.choices(list(MIX), list(MIX.values()))[0]
    borrowed = dice.randrange(100) < plan.borrowed
    hasty = None
    if not borrowed and dice.randrange(100) < plan.hasty:
        hasty = dice.choice([0.001, 0.002, 0.005, 0.01])
    return Ask(
        key=key,
        kind=kind,
        number=dice.randrange(plan.fingerprints if kind == "flight" else 10_000),
        borrowed=borrowed,
        rolled_back=borrowed and dice.random() < 0.5,
        hasty=hasty,
        cancel=dice.uniform(0, plan.lease) if dice.randrange(100) < CANCELLED.get(kind, 0) else None,
    )


class _RollBackError(Exception):
    """Leaves a transaction."""


def _leave(*, rolled_back: bool) -> None:
    if rolled_back:
        raise _RollBackError


class Dispatcher:
    """Sends jobs at a steady rate, each until it is known to be there.

    Args:
        dsn: of the database.
        ledger: of this process.
        plan: of the run.
        unanswered: what a dispatcher that was killed has left without an answer: it is sent again first.
    """

    def __init__(self, dsn: str, ledger: Ledger, plan: Plan, unanswered: Sequence[Entry] = ()) -> None:
        self._file = dsn.startswith("sqlite")
        self._queue = Queue(dsn if self._file else f"{dsn}&call_timeout={plan.answer:g}")
        self._ledger = ledger
        self._plan = plan
        self._unanswered = unanswered
        self._dice = random.Random(f"{plan.seed}/{ledger.who}")
        self._jobs = Jobs(self._queue, dsn, ledger, plan)

    async def run(self, until: float) -> None:
        """Dispatch until a moment of `time.monotonic`, and end when everything is answered."""
        async with AsyncExitStack() as stack:
            await self._open(stack)
            async with anyio.create_task_group() as asks:
                await self._ask_all(asks, until)

    async def _open(self, stack: AsyncExitStack) -> None:
        while True:
            try:
                await stack.enter_async_context(self._queue)
            except StorageUnavailable as error:
                self._ledger.note("unopened", error=str(error))
                await anyio.sleep(0.1)
            else:
                return

    async def _ask_all(self, asks: TaskGroup, until: float) -> None:
        for entry in self._unanswered:
            self._ledger.note("took over", key=entry["key"], ask=entry["ask"])
            self._ledger.note("unknown", key=entry["key"], why="the caller was killed")
            asks.start_soon(self._ask, Ask(**entry["ask"]))
        number = 0
        due = time.monotonic()
        while (now := time.monotonic()) < until:
            if now < due:
                await anyio.sleep(due - now)
            due = max(due, now - 1) + self._dice.expovariate(self._plan.rate / self._plan.dispatchers)
            number += 1
            ask = draw(f"{self._ledger.who}/{number}", self._plan, self._dice)
            self._ledger.note("asked", key=ask.key, ask=asdict(ask))
            asks.start_soon(self._ask, ask)

    async def _ask(self, ask: Ask) -> None:
        job_id = await self._insist(ask)
        if job_id is not None and ask.cancel is not None:
            await anyio.sleep(ask.cancel)
            await self._cancel(job_id)

    async def _insist(self, ask: Ask) -> str | None:
        """Send a dispatch until it is answered; return the job's id, None if it was rolled back."""
        haste, borrowed = ask.hasty, ask.borrowed
        while True:
            self._ledger.note("sent", key=ask.key)
            with anyio.move_on_after(haste) as scope:
                try:
                    return await (self._borrow(ask) if borrowed else self._dispatch(ask))
                except StorageUnavailable as error:
                    # A file says what became of it, and what was never sent has become of nothing.
                    known = self._file or str(error).startswith("no connection")
                    what = "refused" if known else "unknown"
                    self._ledger.note(what, key=ask.key, why="no answer", error=str(error)[:80])
                    if ask.rolled_back:
                        return None  # whatever became of it, nobody asked to commit it
            if scope.cancelled_caught:
                self._ledger.note("unknown", key=ask.key, why="the caller gave up")
            haste, borrowed = None, False
            await anyio.sleep(self._dice.uniform(0.2, 1.0))

    async def _dispatch(self, ask: Ask, connection: Any = None) -> str:
        arguments: dict[str, Any] = {"number": ask.number}
        if ask.kind != "flight":
            arguments["key"] = ask.key
        receipt = await self._queue.dispatch(
            ask.kind, arguments, queue=queue_of(ask.kind, ask.number), idempotency_key=ask.key, connection=connection
        )
        if connection is None:
            self._answered(ask, str(receipt.job_id), receipt.inserted)
        return str(receipt.job_id)

    async def _borrow(self, ask: Ask) -> str | None:
        """Send a dispatch in a transaction of the caller's, where what its driver raises is nobody's to translate, and
        nobody but the caller says how long it may take.
        """
        try:
            with anyio.fail_after(None if self._file else self._plan.answer):
                async with self._queue.storage.transaction() as transaction:
                    job_id = await self._dispatch(ask, transaction.connection)
                    _leave(rolled_back=ask.rolled_back)
        except _RollBackError:
            self._ledger.note("rolled back", key=ask.key)
            return None
        except TimeoutError as error:
            raise StorageUnavailable("the caller waited for long enough") from error
        except driver_errors() as error:
            raise StorageUnavailable(str(error)) from error
        self._answered(ask, job_id, None)
        return job_id

    def _answered(self, ask: Ask, job_id: str, inserted: bool | None) -> None:
        self._ledger.note("receipt", key=ask.key, job=job_id, inserted=inserted)

    async def _cancel(self, job_id: str) -> None:
        self._ledger.note("cancelling", job=job_id)
        while True:
            try:
                status = await self._queue.cancel(job_id)
            except StorageUnavailable:
                await anyio.sleep(0.1)
            except JobNotFound:
                self._ledger.note("vanished", job=job_id)
                return
            else:
                self._ledger.note("cancelled", job=job_id, status=status)
                return


def unanswered(entries: Sequence[Entry]) -> list[Entry]:
    """Return which dispatches of a ledger have no answer: whoever sits in the killed one's place asks again."""
    over = {entry["key"] for entry in entries if entry["what"] in {"receipt", "rolled back"}}
    begun = [entry for entry in entries if entry["what"] in {"asked", "took over"} and entry["key"] not in over]
    # What was to be rolled back was not committed: its caller does not want it any more.
    return [entry for entry in begun if not entry["ask"]["rolled_back"]]


class _Hoarder(Pace):
    """Reserves ahead as many jobs as it may, however long they take."""

    @property
    def ahead(self) -> int:
        return self._cap


class Workman:
    """Works, until it is told to end, or killed.

    Args:
        dsn: of the database.
        ledger: of this process.
        plan: of the run.
        gentle: whether it takes only what ends no process.
    """

    def __init__(self, dsn: str, ledger: Ledger, plan: Plan, *, gentle: bool) -> None:
        self._queue = Queue(dsn)
        self._jobs = Jobs(self._queue, dsn, ledger, plan)
        if plan.hoard:
            setattr(_reserver, "Pace", _Hoarder)  # noqa: B010 - nobody would want it but us
        self._worker = Worker(
            self._queue,
            queues=[CALM] if gentle else [WILD, CALM],
            concurrency=plan.concurrency,
            lease=plan.lease,
            grace=plan.lease,
            poll_interval=1.0,
            prefetch=plan.hoard or 2_000,
            retention=_FOR_EVER,
            hooks=[self._jobs.hear],
        )
        self._ledger = ledger

    async def run(self) -> None:
        """Work."""
        self._jobs.set_clock()
        feel_the_pulse(self._ledger)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._note_sizes)
            await self._work()
            tasks.cancel_scope.cancel()

    async def _work(self) -> None:
        try:
            async with self._queue:
                self._ledger.note("opened")
                summary = await self._worker.run()
        except StorageUnavailable as error:
            self._ledger.note("unopened", error=str(error))
            await anyio.sleep(_PAUSE)  # before somebody starts the next one
        else:
            self._ledger.note("stopped", reason=summary.reason)

    async def _note_sizes(self) -> None:
        while True:
            await anyio.sleep(_SIZES)
            tasks = len(anyio.get_running_tasks())
            self._ledger.note("size", tasks=tasks, files=_open_files(), memory=resident_memory())


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
