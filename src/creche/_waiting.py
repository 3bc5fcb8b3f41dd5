"""Waits for jobs to end, on behalf of everybody in this process: one query per tick, not one per waiter.

Whoever waits for long is woken by the storage, where it can; ticks find what no wake told of. It reads only, but for
saying who waits; cancelling a waiter never touches its job.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Final
from uuid import UUID

import anyio
from attrs import define, field

from creche._ids import new_watcher_name
from creche._job import WATCH_LIMIT, End
from creche._patience import ANSWER, Patience, answered_within
from creche._wake import Bell, Listening
from creche.abc import Storage
from creche.errors import QueueNotOpen, StatementRejected, StorageError

_SOON: Final = 0.02  # seconds
_SELDOM: Final = 0.5
_HEARING: Final = 1.0  # seconds between ticks where the storage wakes us
_BETWEEN: Final = 0.01  # seconds between looks that wakes ask for
_LONG: Final = 0.1  # seconds between ticks from which on it is worth a listener
_AGAIN: Final = WATCH_LIMIT / 2
_LINGER: Final = 30.0  # seconds that a listener is kept for the next one who waits


@define(eq=False)
class _Waiter:
    over: anyio.Event = field(factory=anyio.Event)
    end: End | None = None
    error: Exception | None = None


class Waiters:
    """Everybody who waits, by job."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiters: dict[UUID, set[_Waiter]] = {}
        self._interval = _SOON
        self._bell = Bell()
        self._name = new_watcher_name()
        self._worth_listening = anyio.Event()
        self._listening: anyio.CancelScope | None = None
        self._watched: set[UUID] = set()
        self._watched_since = 0.0

    async def wait(self, job_id: UUID) -> End | None:
        """Wait until a job is over; return how it ended, or None if there is no such job.

        Raises:
            QueueNotOpen: the queue was closed meanwhile.
            StatementRejected: the job's row can't be read.
        """
        waiter = _Waiter()
        self._waiters.setdefault(job_id, set()).add(waiter)
        self._interval = _SOON
        self._bell.ring()
        try:
            await waiter.over.wait()
        finally:
            waiting = self._waiters.get(job_id, set())
            waiting.discard(waiter)
            if not waiting:
                self._waiters.pop(job_id, None)
        if waiter.error is not None:
            raise waiter.error
        return waiter.end

    def settled(self, job_ids: Collection[UUID]) -> None:
        """A worker of this process wrote the ends of jobs: whoever waits for one need not wait for the tick."""
        if self._waiters and not self._waiters.keys().isdisjoint(job_ids):
            self._bell.ring()

    async def run(self) -> None:
        """Look, while anybody waits, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, name="receipts' listener")
            await self._look_and_look()

    def close(self) -> None:
        """Let those go who wait still, when the queue is closed. Not before: where an interruption strikes the task
        that looks, those who wait inside of the queue's block are cancelled by it, and have nothing to add.
        """
        for job_id, waiters in list(self._waiters.items()):
            for waiter in list(waiters):  # to each an error of its own: a traceback grows wherever it is raised
                self._answer(job_id, {waiter}, QueueNotOpen())

    # --- looking ------------------------------------------------------------------------------------

    async def _look_and_look(self) -> None:
        patience = Patience("receipts")
        while True:
            self._bell.answer()
            looked = anyio.current_time()
            try:
                await self._tell()
            except StorageError as error:
                await patience.after(error)
                continue
            patience.success()
            if not self._waiters:
                await self._wait_for_somebody()
                continue
            await self._bell.rung_within(self._interval)
            await anyio.sleep_until(looked + _BETWEEN)
            self._interval = min(_HEARING if self._bell.listening else _SELDOM, self._interval * 1.5)
            if self._interval >= _LONG:
                self._worth_listening.set()

    async def _wait_for_somebody(self) -> None:
        if self._worth_listening.is_set():
            await self._bell.rung_within(_LINGER)
            if not self._waiters:
                self._worth_listening = anyio.Event()
                if self._listening is not None:
                    self._listening.cancel()
        else:
            await self._bell.rung_within(math.inf)

    async def _listen(self) -> None:
        while True:
            await self._worth_listening.wait()
            with anyio.CancelScope() as self._listening:
                await Listening(self._storage, [self._name], self._bell).run()
            self._watched.clear()

    async def _tell(self) -> None:
        # Whoever joins while the question is on its way is told by the next answer: this one may be older.
        asked = {job_id: set(waiters) for job_id, waiters in self._waiters.items()}
        try:
            with answered_within(ANSWER, "a look at jobs that are waited for"):
                ends = await self._look(asked.keys())
        except StatementRejected:
            await self._tell_one_by_one(asked)
            return
        for job_id, waiters in asked.items():
            self._answer_if_over(job_id, waiters, ends)

    async def _look(self, job_ids: AbstractSet[UUID]) -> Mapping[UUID, End | None]:
        """Look at all of them; have the storage wake us for those that it does not know of."""
        if not self._bell.listening:
            return await self._storage.watch(job_ids) if job_ids else {}
        now = anyio.current_time()
        if now - self._watched_since > _AGAIN:
            self._watched.clear()
            self._watched_since = now
        new, gone = job_ids - self._watched, self._watched - job_ids
        ends: dict[UUID, End | None] = {}
        if new or gone:
            ends.update(await self._storage.watch(new, watcher=self._name, over=gone))
            self._watched = set(job_ids)
        if known := job_ids - new:
            ends.update(await self._storage.watch(known))
        return ends

    async def _tell_one_by_one(self, asked: dict[UUID, set[_Waiter]]) -> None:
        """Something about one of them can't be read: that is no reason to keep the others waiting."""
        for job_id, waiters in asked.items():
            try:
                with answered_within(ANSWER, "a look at a job that is waited for"):
                    ends = await self._storage.watch([job_id])
            except StatementRejected as error:
                for waiter in list(waiters):
                    self._answer(job_id, {waiter}, StatementRejected(*error.args))
            else:
                self._answer_if_over(job_id, waiters, ends)

    # --- answering ----------------------------------------------------------------------------------

    def _answer_if_over(self, job_id: UUID, waiters: set[_Waiter], ends: Mapping[UUID, End | None]) -> None:
        if job_id not in ends or ends[job_id] is not None:
            self._answer(job_id, waiters, ends.get(job_id))

    def _answer(self, job_id: UUID, waiters: set[_Waiter], answer: End | Exception | None) -> None:
        for waiter in list(waiters):
            if isinstance(answer, Exception):
                waiter.error = answer
            else:
                waiter.end = answer
            waiter.over.set()
        left = self._waiters.get(job_id, set()) - waiters
        if left:
            self._waiters[job_id] = left
        else:
            self._waiters.pop(job_id, None)
