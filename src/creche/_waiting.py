"""Waits for jobs to end, on behalf of everybody in this process: one query per tick, not one per waiter.

It reads only; cancelling a waiter never touches its job.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import anyio
from attrs import define, field

from creche._job import JobRecord
from creche._patience import Patience
from creche.abc import Storage
from creche.errors import StorageError

_SOON: Final = 0.02  # seconds
_SELDOM: Final = 0.5


@define(eq=False)
class _Waiter:
    over: anyio.Event = field(factory=anyio.Event)
    record: JobRecord | None = None


class Waiters:
    """Everybody who waits, by job."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiters: dict[UUID, set[_Waiter]] = {}
        self._interval = _SOON
        self._look = anyio.Event()

    async def wait(self, job_id: UUID) -> JobRecord | None:
        """Wait until a job is over; return its row, or None if there is no such job."""
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
        return waiter.record

    def settled(self, job_id: UUID) -> None:
        """A worker of this process wrote the end of a job: whoever waits for it need not wait for the tick."""
        if job_id in self._waiters:
            self._look.set()

    async def run(self) -> None:
        """Look, while anybody waits, until cancelled."""
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
        asked = list(self._waiters)
        records = await self._storage.find(asked)
        for job_id in asked:
            record = records.get(job_id)
            if record is None or not record.status.active:
                for waiter in self._waiters.pop(job_id, set()):
                    waiter.record = record
                    waiter.over.set()
