"""Waits for jobs to end, on behalf of everybody in this process: one query per tick, not one per waiter.

It reads only; cancelling a waiter never touches its job.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import anyio
from attrs import define, field

from creche._job import JobRecord
from creche._patience import ANSWER, Patience, answered_within
from creche.abc import Storage
from creche.errors import QueueNotOpen, StatementRejected, StorageError

_SOON: Final = 0.02  # seconds
_SELDOM: Final = 0.5


@define(eq=False)
class _Waiter:
    over: anyio.Event = field(factory=anyio.Event)
    record: JobRecord | None = None
    error: Exception | None = None


class Waiters:
    """Everybody who waits, by job."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiters: dict[UUID, set[_Waiter]] = {}
        self._interval = _SOON
        self._look = anyio.Event()

    async def wait(self, job_id: UUID) -> JobRecord | None:
        """Wait until a job is over; return its row, or None if there is no such job.

        Raises:
            QueueNotOpen: the queue was closed meanwhile.
            StatementRejected: the job's row can't be read.
        """
        waiter = _Waiter()
        self._waiters.setdefault(job_id, set()).add(waiter)
        self._interval = _SOON
        self._look.set()
        try:
            await waiter.over.wait()
        finally:
            waiting = self._waiters.get(job_id, set())
            waiting.discard(waiter)
            if not waiting:
                self._waiters.pop(job_id, None)
        if waiter.error is not None:
            raise waiter.error
        return waiter.record

    def settled(self, job_id: UUID) -> None:
        """A worker of this process wrote the end of a job: whoever waits for it need not wait for the tick."""
        if job_id in self._waiters:
            self._look.set()

    async def run(self) -> None:
        """Look, while anybody waits, until cancelled."""
        try:
            await self._look_and_look()
        finally:
            for job_id in list(self._waiters):
                self._answer(job_id, self._waiters[job_id], QueueNotOpen())

    async def _look_and_look(self) -> None:
        patience = Patience("receipts")
        while True:
            if not self._waiters:
                self._look = anyio.Event()
                await self._look.wait()
            self._look = anyio.Event()
            try:
                await self._tell()
            except StorageError as error:
                await patience.after(error)
                continue
            patience.success()
            with anyio.move_on_after(self._interval):
                await self._look.wait()
            self._interval = min(_SELDOM, self._interval * 1.5)

    async def _tell(self) -> None:
        # Whoever joins while the question is on its way is told by the next answer: this one may be older.
        asked = {job_id: set(waiters) for job_id, waiters in self._waiters.items()}
        try:
            with answered_within(ANSWER, "a look at jobs that are waited for"):
                records = await self._storage.find(list(asked))
        except StatementRejected:
            await self._tell_one_by_one(asked)
            return
        for job_id, waiters in asked.items():
            record = records.get(job_id)
            if record is None or not record.status.active:
                self._answer(job_id, waiters, record)

    async def _tell_one_by_one(self, asked: dict[UUID, set[_Waiter]]) -> None:
        """Something about one of them can't be read: that is no reason to keep the others waiting."""
        for job_id, waiters in asked.items():
            try:
                with answered_within(ANSWER, "a look at a job that is waited for"):
                    record = (await self._storage.find([job_id])).get(job_id)
            except StatementRejected as error:
                self._answer(job_id, waiters, error)
            else:
                if record is None or not record.status.active:
                    self._answer(job_id, waiters, record)

    def _answer(self, job_id: UUID, waiters: set[_Waiter], answer: JobRecord | Exception | None) -> None:
        for waiter in list(waiters):
            if isinstance(answer, Exception):
                waiter.error = answer
            else:
                waiter.record = answer
            waiter.over.set()
        left = self._waiters.get(job_id, set()) - waiters
        if left:
            self._waiters[job_id] = left
        else:
            self._waiters.pop(job_id, None)
