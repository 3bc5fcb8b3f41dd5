"""The one database: the memory storage, watched. Whatever an operation changes is shown to the ledger before anybody
else can do something.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from typing import Final, Self
from uuid import UUID

import trio
from attrs import frozen

from creche._job import (
    DeadLetter,
    Extension,
    Insertion,
    Lease,
    NewJob,
    Progress,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
)
from creche.storage._memory_listener import MemoryListener
from creche.storage._memory_rows import Row
from creche.storage.memory import MemoryStorage
from simulation.clocks import START
from simulation.ledger import Cause, Ledger
from simulation.lives import caller

EPOCH: Final = datetime.fromtimestamp(START, UTC)


@frozen
class Standby:
    """The database as its standby has it."""

    rows: dict[UUID, Row]
    dead: dict[UUID, DeadLetter]
    ledger: object


class Database(MemoryStorage):
    """Its clock is right, and goes on whatever happens."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._epoch = EPOCH
        self._ledger = ledger

    async def __aenter__(self) -> Self:
        return self

    def attach(self, listener: MemoryListener) -> None:
        """Ring this one too."""
        self._listeners.add(listener)

    def detach(self, listener: MemoryListener) -> None:
        """Ring it no more."""
        self._listeners.discard(listener)

    # --- high availability, with an asynchronous standby --------------------------------------------

    def replicate(self) -> Standby:
        """Return what a standby knows at this moment."""
        return Standby(
            {job_id: _copy(row) for job_id, row in self._rows.items()}, dict(self._dead), self._ledger.snapshot()
        )

    def fail_over(self, standby: Standby) -> None:
        """Go on from what the standby knows."""
        self._rows, self._dead = standby.rows, standby.dead
        self._ledger.rewrite(standby.ledger, self._rows)

    # --- operations, watched ------------------------------------------------------------------------

    async def begin(self) -> None:
        """Begin a transaction: a round trip."""
        await trio.lowlevel.checkpoint()

    def _changed(self, cause: Cause) -> None:
        self._ledger.observe(cause, self._rows, self._now())

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        answers = await super().insert(jobs, now=now, connection=connection)
        self._changed(Cause.INSERT)
        return answers

    async def reserve(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        lease: float,
        worker: str,
        nonce: int,
        types: Collection[str] | None = None,
        now: datetime | None = None,
    ) -> Reservation:
        answer = await super().reserve(queues, limit, lease=lease, worker=worker, nonce=nonce, types=types, now=now)
        self._ledger.counts["reserves"] += 1
        if answer.jobs:
            self._ledger.issue(caller(), [job.lease for job in answer.jobs], limit)
            self._changed(Cause.RESERVE)
        return answer

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        answer = await super().extend(leases, seconds, progress=progress, now=now)
        self._ledger.extended(caller(), answer)
        self._changed(Cause.EXTEND)
        return answer

    def settle_now(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        before = [row.record if (row := self._rows.get(each.lease.job_id)) else None for each in settlements]
        answer = super().settle_now(settlements, retention=retention, now=now)
        for settlement, record in zip(settlements, before, strict=True):
            row = self._rows.get(settlement.lease.job_id)
            after = row.record if row is not None and row.record is not record else None
            self._ledger.settled(caller(), settlement, record, after, answer)
        self._changed(Cause.SETTLE)
        return answer

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        answer = await super().maintain(limit, retention=retention, now=now)
        if answer.recovered or answer.buried or answer.promoted or answer.pruned:
            self._changed(Cause.MAINTAIN)
        return answer

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        return await self._seen(Cause.CANCEL, super().cancel, job_ids)

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        return await self._seen(Cause.RETRY, super().retry, job_ids)

    async def _seen(
        self,
        cause: Cause,
        operation: Callable[[Collection[UUID]], Awaitable[Mapping[UUID, Status]]],
        job_ids: Collection[UUID],
    ) -> Mapping[UUID, Status]:
        answer = await operation(job_ids)
        self._changed(cause)
        return answer


def _copy(row: Row) -> Row:
    twin = copy(row)
    twin.errors, twin.callbacks, twin.watchers = [*row.errors], [*row.callbacks], {*row.watchers}
    return twin
