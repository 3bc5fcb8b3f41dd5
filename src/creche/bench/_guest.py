"""Measuring in a database that others use: in a queue of its own, of which nothing is left. It touches no other queue.

No migration, no upkeep (that is done to all queues), no VACUUM, no reading of counters, which are everybody's.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from shlex import quote
from typing import Final

import anyio
from anyio import CancelScope
from attrs import evolve

from creche._bulk import dispatched_before, matching
from creche._job import FINISHED, JobFilter, JobRecord
from creche.abc import Storage
from creche.bench._measure import CRECHE, PATIENCE, Latency, Work, dispatched, drained, latency
from creche.bench._meters import NoMeter
from creche.bench._orders import Order
from creche.errors import CrecheError, StorageError
from creche.storage import mask

PREFIX: Final = "creche-bench-"
PAGE: Final = 1_000  # jobs that are dispatched at a time: nobody waits long for a transaction of ours
LOOK: Final = 250  # rows that are looked at, and deleted, at a time: among them are others', with their payloads
EARLIER: Final = 60.0  # seconds before a guest came in which its ids may seem to be drawn: a clock may be set back
PAUSE: Final = 0.1  # seconds between the dispatches of a latency run, on average
FAREWELL: Final = 300.0  # seconds in which everything has been deleted
LATE: Final = 2.0  # seconds in which a server writes what it was sent, though nobody waits for its answer
_NOBODY: Final = NoMeter("")


class LeftBehind(CrecheError):
    """Jobs of a benchmark could not be deleted; the message says how to.

    Attributes:
        queue: their queue.
        held: how many of them are held by a process that died; 0 if nobody knows.
    """

    def __init__(self, queue: str, dsn: str, why: str = "", *, held: int = 0) -> None:
        self.queue = queue
        self.held = held
        shown = mask(dsn)
        where = f"--dsn {quote(shown)}"
        cancel, delete = (f"`creche jobs {verb} --queue {queue} --yes {where}`" for verb in ("cancel", "delete"))
        if held:
            why = (
                f"a process that died holds {held} of them. In half a minute a worker takes them back, or, where none "
                f"runs, `creche prune {where}`; then"
            )
        words = f"jobs are left in the queue {queue}: {why} delete them by {cancel} and {delete}"
        super().__init__(words if shown == dsn else f"{words}, with the password for ***")


class Guest:
    """Measures in somebody's database, run by run. What a run has done is deleted after it; what still waits is there
    for the next one.

    Args:
        storage: where everything is deleted; open.
        order: the database, the event loop, and the bounds of each run: `jobs`, and `limit` in seconds.

    Attributes:
        queue: a queue's name, which nobody else has.
    """

    def __init__(self, storage: Storage, order: Order) -> None:
        self.queue: Final = PREFIX + secrets.token_hex(6)
        self._storage = storage
        self._order = evolve(order, queues=(self.queue,), chunk=PAGE, guest=True)
        self._by = evolve(CRECHE, patience=PATIENCE + (order.limit or 0.0))  # it counts before the first job does
        self._since = dispatched_before(EARLIER)
        self._waiting = 0
        self._unanswered = False  # what was cut off may yet be written
        self._farewell = CancelScope(shield=True)

    async def drain(
        self, *, concurrency: int, prefetch: int, processes: int, seconds: float = 0.0, jobs: int | None = None
    ) -> Work:
        """Measure workers.

        Args:
            concurrency: of each.
            prefetch: of each.
            processes: how many.
            seconds: that a handler takes.
            jobs: how many are there for them; None: as many as the order says.

        Returns:
            What it took. Where jobs were left, that is all the time that the workers had, as far as the limit goes: of
            a few that ended in its first moment, that moment would tell nothing.

        Raises:
            ChildFailed: a process failed.
            JobsMissing: no job was run.
        """
        wanted = self._order.jobs if jobs is None else jobs
        if self._waiting < wanted:
            await self._dispatch(self._order.to("fill", jobs=wanted - self._waiting))
        order = self._order.to(
            "drain",
            jobs=min(wanted, self._waiting),
            concurrency=concurrency,
            seconds=seconds,
            options={"prefetch": prefetch},
        )
        work = await drained(order, _NOBODY, self._by, processes=processes)
        self._waiting -= work.jobs
        await self._delete_finished(work.jobs)
        return work if work.jobs >= order.jobs else _with_all_its_time(work, order.limit or 0.0)

    async def dispatch(self, *, callers: int) -> Work:
        """Measure single dispatches, by so many callers at once.

        Raises:
            ChildFailed: the process failed.
        """
        work = await self._dispatch(self._order.to("dispatch", callers=callers))
        self._waiting += callers  # each of them dispatched one to open its connection
        return work

    async def dispatch_in_bulk(self) -> Work:
        """Measure dispatches of a thousand jobs at a time.

        Raises:
            ChildFailed: the process failed.
        """
        return await self._dispatch(self._order.to("fill"))

    async def latency(self, *, concurrency: int) -> Latency:
        """Measure an idle worker, on one job at a time.

        Raises:
            ChildFailed: a process failed.
            JobsMissing: not every job was begun once.
        """
        with self._writing():
            return await latency(self._order.to("pace", concurrency=concurrency, pause=PAUSE, wait=True), self._by)

    async def _dispatch(self, order: Order) -> Work:
        with self._writing():
            work = await dispatched(order, _NOBODY, self._by)
        self._waiting += work.jobs
        return work

    @contextmanager
    def _writing(self) -> Generator[None]:
        """Remember that jobs were being written, unless the block ends well."""
        before, self._unanswered = self._unanswered, True
        yield
        self._unanswered = before

    # --- going ------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Delete no more: `leave` then says what is left."""
        self._farewell.cancel()

    async def leave(self) -> None:
        """Delete whatever is left, though it be cancelled.

        Raises:
            LeftBehind: that could not be done, or took minutes.
        """
        dsn = self._order.dsn
        self._farewell.deadline = anyio.current_time() + FAREWELL
        with self._farewell:
            try:
                await self._withdraw()
                held = await self._clear()
            except StorageError as error:
                raise LeftBehind(self.queue, dsn, f"{error}; when it answers again,") from error
            if held:
                raise LeftBehind(self.queue, dsn, held=held)
            return
        raise LeftBehind(self.queue, dsn, "deleting them was broken off;")

    async def _withdraw(self) -> None:
        """Take workers that died from the list of those that are there."""
        for each in await self._storage.workers():
            if self.queue in each.presence.queues:
                await self._storage.withdraw(each.presence.name)

    async def _clear(self) -> int:
        """Delete all of ours, and what comes late.

        Returns:
            How many a worker holds still.
        """
        _, held = await self._delete_all()
        while self._unanswered:
            await anyio.sleep(LATE)
            gone, held = await self._delete_all()
            self._unanswered = bool(gone)
        return held

    async def _delete_all(self) -> tuple[int, int]:
        """Delete what is there; return how many are gone, and how many a worker holds still."""
        gone = held = 0
        async with aclosing(self._ours()) as pages:
            async for page in pages:
                kept = await self._delete(page)
                gone, held = gone + len(page) - kept, held + kept
        return gone, held

    async def _delete_finished(self, number: int) -> None:
        """Delete so many that are over, and look for no more."""
        async with aclosing(self._ours()) as pages:
            async for page in pages:
                over = [job for job in page if job.status in FINISHED]
                await self._delete(over)
                number -= len(over)
                if number <= 0:
                    break

    async def _ours(self) -> AsyncGenerator[Sequence[JobRecord]]:
        """Yield our jobs, newest first, and look at none from before we came.

        Everybody's are read on the way, and left out here: of one queue's jobs alone no index knows the newest, so that
        a database asked for those reads all rows that it has.
        """
        async with aclosing(matching(self._storage, JobFilter(), page=LOOK)) as pages:
            async for page in pages:
                yield [job for job in page if job.queue_name == self.queue]
                if self._since is not None and page[-1].id < self._since:
                    break

    async def _delete(self, jobs: Sequence[JobRecord]) -> int:
        """Delete jobs; return how many a worker holds still."""
        await self._storage.cancel([job.id for job in jobs if job.status not in FINISHED])
        statuses = await self._storage.delete([job.id for job in jobs])
        return sum(status not in FINISHED for status in statuses.values())


def _with_all_its_time(work: Work, limit: float) -> Work:
    worked = [answer for answer in work.answers if answer.count]
    there = max(answer.closed for answer in worked) - min(answer.began for answer in worked)
    return evolve(work, seconds=max(work.seconds, min(limit, there)))


@asynccontextmanager
async def visiting(storage: Storage, order: Order) -> AsyncGenerator[Guest]:
    """Give out a guest for the length of the block; nothing of its jobs is left afterwards.

    Args:
        storage: of the database, with its schema; open.
        order: see `Guest`.

    Raises:
        LeftBehind: its jobs could not be deleted.
    """
    guest = Guest(storage, order)
    try:
        yield guest
    finally:
        await guest.leave()
