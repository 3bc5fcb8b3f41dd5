"""The oracle: the memory storage, with a look into it, and what it takes to follow rivals. It judges nobody."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

from attrs import evolve

from creche._job import RATE_WINDOW, Lease
from creche.storage._memory_rows import Row
from creche.storage._memory_views import Settings
from creche.storage.memory import MemoryStorage
from creche.testing._machine_rows import StoredJob, StoredRows


class Oracle(MemoryStorage):
    """The contract, executable, that a storage is compared with."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[UUID, tuple[tuple[object, ...], StoredJob]] = {}
        self._must_wake: set[str] = set()
        self._may_wake: set[str] = set()

    def rows(self) -> StoredRows:
        """Return all that is kept."""
        return StoredRows(jobs={job_id: self._stored(row) for job_id, row in self._rows.items()}, letters=self._dead)

    def has(self, job_id: UUID) -> bool:
        """Whether there is such a job."""
        return job_id in self._rows

    def limits(self, now: datetime) -> list[datetime]:
        """Return the moments to come at which something changes by itself, in their order."""
        moments = {each.expires_at for each in self._workers.values()}
        for record in (row.record for row in self._rows.values()):
            moments |= {record.available_at, record.locked_until or now, record.result_expires_at or now}
            if record.completed_at is not None:
                moments.add(record.completed_at + timedelta(seconds=RATE_WINDOW))
        return sorted(moment for moment in moments if moment > now)

    def give(self, lease: Lease, worker: str) -> None:
        """Make somebody the holder of a job that is held: which of several rivals took it, no contract says."""
        row = self._rows[lease.job_id]
        row.token, row.nonce = lease.token, lease.nonce
        row.change(locked_by=worker)

    def wakes(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return who has to be woken since this was asked last, and who may be."""
        must, may = frozenset(self._must_wake), frozenset(self._may_wake)
        self._must_wake, self._may_wake = set(), set()
        return must, may

    def copy(self) -> Oracle:
        """Return another one that knows the same, and has woken nobody."""
        other = Oracle()
        other._know(self)
        other._epoch, other._origin = self._epoch, self._origin
        return other

    def become_one_of(self, copies: Sequence[Oracle], *, exact: bool) -> None:
        """Know what copies of this one know. They differ in whom they woke; which of them is the right one, nobody can
        say: who was woken by all of them has to be woken, and who was by any may be.

        Args:
            copies: one at least.
            exact: whether one of them is what came of it to the letter; else nobody has to be woken.
        """
        self._know(copies[0])
        wakes = [each.wakes() for each in copies]
        self._may_wake = self._may_wake.union(*(may for _, may in wakes))
        if exact:
            first, *others = (must for must, _ in wakes)
            self._must_wake |= first.intersection(*others)

    def _know(self, other: Oracle) -> None:
        self._rows = {job_id: _copy(row) for job_id, row in other._rows.items()}
        self._dead = dict(other._dead)
        self._settings = Settings(dict(other._settings.paused), dict(other._settings.retentions))
        self._workers = dict(other._workers)

    def _wake(self, queues: Iterable[str]) -> None:
        woken = frozenset(queues)
        self._must_wake |= woken
        self._may_wake |= woken
        super()._wake(woken)

    @contextmanager
    def without(self, job_id: UUID | None) -> Generator[None]:
        """Hide a job for the length of the block, as a row is hidden that somebody else has locked."""
        row = None if job_id is None else self._rows.pop(job_id, None)
        try:
            yield
        finally:
            if row is not None:
                self._rows[row.record.id] = row

    def _stored(self, row: Row) -> StoredJob:
        # Records are replaced, not changed; most rows are as they were when they were looked at last.
        state = (row.record, row.token, row.nonce, row.single_flight, row.errors, tuple(row.callbacks))
        seen = self._seen.get(row.record.id)
        if seen is not None and all(one is other or one == other for one, other in zip(seen[0], state, strict=True)):
            return seen[1]
        self._seen[row.record.id] = state, stored_job(row)
        return self._seen[row.record.id][1]


def stored_job(row: Row) -> StoredJob:
    """Return a row of the memory storage as any other database's."""
    return StoredJob(
        record=row.record,
        token=row.token,
        nonce=row.nonce,
        single_flight=row.single_flight,
        errors=tuple(row.errors),
        callbacks=row.callbacks,
    )


def _copy(row: Row) -> Row:
    return evolve(row, errors=[*row.errors], callbacks=[*row.callbacks], watchers={*row.watchers})
