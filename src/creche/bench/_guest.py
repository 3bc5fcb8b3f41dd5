"""Measuring in a database that others use: in a queue of its own, of which nothing is left. It touches no other queue.

No migration, no upkeep (that is done to all queues), no VACUUM, no reading of counters, which are everybody's.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import anyio
from anyio import CancelScope
from attrs import evolve

from creche._bulk import matching
from creche._job import FINISHED, JobFilter
from creche.abc import Storage
from creche.bench._measure import Latency, Work, dispatched, drained, latency
from creche.bench._meters import NoMeter
from creche.bench._orders import Order
from creche.errors import CrecheError, StorageError

PREFIX: Final = "creche-bench-"
PAGE: Final = 1_000  # jobs that are dispatched, or deleted, at a time: nobody waits long for a transaction of ours
PAUSE: Final = 0.1  # seconds between the dispatches of a latency run, on average
FAREWELL: Final = 300.0  # seconds in which everything has been deleted
_NOBODY: Final = NoMeter("")


class LeftBehind(CrecheError):
    """Jobs of a benchmark could not be deleted; the message says how to.

    Attributes:
        queue: their queue.
    """

    def __init__(self, queue: str, why: str) -> None:
        self.queue = queue
        cancel, delete = (f"`creche jobs {verb} --queue {queue} --yes`" for verb in ("cancel", "delete"))
        super().__init__(f"jobs are left in the queue {queue}: {why}: delete them by {cancel} and {delete}")


class Guest:
    """Measures in somebody's database, run by run. What a run has done is deleted after it; what still waits is there
    for the next one.

    Args:
        storage: where everything is deleted; open.
        order: the database, the event loop, and the bounds of each run: `jobs`, and `limit` in seconds.

    Attributes:
        queue: a queue's name, which nobody else has.
        made: how many jobs were dispatched, as far as runs have ended.
    """

    def __init__(self, storage: Storage, order: Order) -> None:
        self.queue: Final = PREFIX + secrets.token_hex(6)
        self.made = 0
        self._storage = storage
        self._order = evolve(order, queues=(self.queue,), chunk=PAGE, guest=True)
        self._all = JobFilter(queues=frozenset({self.queue}))
        self._waiting = 0
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
        work = await drained(order, _NOBODY, processes=processes)
        self._waiting -= work.jobs
        await self._delete(evolve(self._all, statuses=FINISHED), enough=work.jobs)
        return work

    async def dispatch(self, *, callers: int) -> Work:
        """Measure single dispatches, by so many callers at once.

        Raises:
            ChildFailed: the process failed.
        """
        work = await self._dispatch(self._order.to("dispatch", callers=callers))
        self.made += callers  # each of them dispatched one to open its connection
        self._waiting += callers
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
        found = await latency(self._order.to("pace", concurrency=concurrency, pause=PAUSE, wait=True))
        self.made += len(found.begun)
        return found

    async def _dispatch(self, order: Order) -> Work:
        work = await dispatched(order, _NOBODY)
        self.made += work.jobs
        self._waiting += work.jobs
        return work

    # --- going ------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Delete no more: `leave` then says what is left."""
        self._farewell.cancel()

    async def leave(self) -> None:
        """Delete whatever is left, though it be cancelled.

        Raises:
            LeftBehind: that could not be done, or took minutes.
        """
        self._farewell.deadline = anyio.current_time() + FAREWELL
        with self._farewell:
            try:
                await self._withdraw()
                held = await self._delete(self._all)
            except StorageError as error:
                raise LeftBehind(self.queue, f"{error}; when it answers again") from error
            if held:
                raise LeftBehind(self.queue, f"{held} are held by a process that died; when their leases have run out")
            return
        raise LeftBehind(self.queue, "deleting them was broken off")

    async def _withdraw(self) -> None:
        """Take workers that died from the list of those that are there."""
        for each in await self._storage.workers():
            if self.queue in each.presence.queues:
                await self._storage.withdraw(each.presence.name)

    async def _delete(self, which: JobFilter, *, enough: int | None = None) -> int:
        """Delete jobs, until so many are gone if that is known: to look for more would be to look at everybody's.

        Returns:
            How many a worker holds still.
        """
        held = gone = 0
        async with aclosing(matching(self._storage, which, page=PAGE)) as pages:
            async for page in pages:
                await self._storage.cancel([job.id for job in page if job.status not in FINISHED])
                statuses = await self._storage.delete([job.id for job in page])
                held += sum(status not in FINISHED for status in statuses.values())
                gone += len(page)
                if enough is not None and gone >= enough:
                    break
        return held


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
