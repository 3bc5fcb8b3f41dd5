"""The contract, executable: jobs in a dict, on the event loop's own clock. It survives nothing.

Adapter number one: the oracle that every SQL adapter is compared with, the storage for unit tests of code that
dispatches jobs, and, under trio's MockClock, the ground for simulated days. It reads as the contract does; where
it is slower than it could be, that is why.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import anyio
import anyio.lowlevel

from creche._backoff import recovery_delay
from creche._job import (
    FINISHED,
    WAKE_HORIZON,
    DeadLetter,
    End,
    Event,
    Extension,
    Failure,
    Finding,
    FollowUp,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    Origin,
    Presence,
    Progress,
    QueueStats,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Severity,
    Status,
    Upkeep,
    WorkerRecord,
)
from creche._lifecycle import BURIES, GIVES_BACK, TRANSITIONS, after
from creche.abc import Capabilities, Listener, Storage, Transaction
from creche.errors import OptionInvalid
from creche.storage._batches import unkept
from creche.storage._memory_listener import MemoryListener
from creche.storage._memory_rows import Row, dead_letter, due_in, end_of, new_row, reserved
from creche.storage._memory_views import Attendance, Settings, queue_stats, worker_records

_CAPABILITIES: Final = Capabilities(listen=True, shared=False, durable=False)


class MemoryStorage:
    """Keeps jobs in this process's memory, for as long as this object lives.

    Opening it again, also under another event loop, finds the same jobs.
    """

    def __init__(self) -> None:
        self._rows: dict[UUID, Row] = {}
        self._dead: dict[UUID, DeadLetter] = {}
        self._settings = Settings()
        self._workers: dict[str, Attendance] = {}
        self._listeners: set[MemoryListener] = set()
        self._epoch = datetime.now(UTC)
        self._origin = 0.0

    def __repr__(self) -> str:
        return f"<MemoryStorage of {len(self._rows)} jobs>"

    @property
    def capabilities(self) -> Capabilities:
        """Wakes by itself, within this process."""
        return _CAPABILITIES

    @property
    def conflicts(self) -> int:
        """None: nothing here is ever undone."""
        return 0

    async def __aenter__(self) -> Self:
        self._epoch = max(self._epoch, datetime.now(UTC))
        self._origin = anyio.current_time()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._epoch = self._now()

    async def migrate(self) -> Sequence[str]:
        """There is no schema to migrate."""
        await anyio.lowlevel.checkpoint()
        return []

    async def pending_migrations(self) -> Sequence[tuple[str, str]]:
        """There is no schema to migrate."""
        await anyio.lowlevel.checkpoint()
        return []

    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:  # noqa: ARG002 - no connections here
        """See `Storage.check`. There is one thing to say about it."""
        await anyio.lowlevel.checkpoint()
        return [
            Finding(
                check="durability",
                severity=Severity.WARNING,
                message="jobs are kept in this process's memory: no other process sees them, and they end with it",
                advice="use SQLite, PostgreSQL, MySQL or MariaDB for jobs that matter",
            )
        ]

    def twin(self) -> Storage | None:
        """None: another thread can't look into this one's dicts while it changes them."""
        return None

    # --- dispatch -----------------------------------------------------------------------------------

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        """See `Storage.insert`. There are no handles on it."""
        if connection is not None:
            raise OptionInvalid("connection", connection, "None: this storage has no transactions")
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        answers: list[Insertion] = []
        woken: set[str] = set()
        for job in jobs:
            row = self._standing(job, moment)
            if row is None:
                row = self._rows[job.id] = new_row(job, moment)
                if due_in(row, moment) < WAKE_HORIZON:
                    woken.add(job.queue_name)
            else:
                woken |= self._record(job.callbacks, row, moment)
            record = row.record
            answers.append(
                Insertion(
                    job_id=record.id,
                    status=record.status,
                    inserted=record.id == job.id,
                    fingerprint=record.fingerprint,
                    result=record.result,
                )
            )
        self._wake(woken)
        return answers

    def _standing(self, job: NewJob, moment: datetime) -> Row | None:
        """Return the row that stands in the place of `job`."""
        if job.id in self._rows:
            return self._rows[job.id]
        if job.idempotency_key is not None:
            for row in self._rows.values():
                if (row.record.queue_name, row.record.idempotency_key) == (job.queue_name, job.idempotency_key):
                    return row
        return self._flying(job.fingerprint, moment, refresh=job.refresh)

    def _flying(self, fingerprint: bytes | None, moment: datetime, *, refresh: bool = False) -> Row | None:
        """Return the job that holds a fingerprint, after taking it from a cached result that is stale."""
        if fingerprint is None:
            return None
        for row in self._rows.values():
            if row.single_flight and row.record.fingerprint == fingerprint:
                expiry = row.record.result_expires_at
                row.single_flight = expiry is None or (expiry > moment and not refresh)
                return row if row.single_flight else None
        return None

    def _record(self, callbacks: Sequence[FollowUp], row: Row, moment: datetime) -> set[str]:
        """Add callbacks to those of a job that stands, and write those that its end calls for; return whom to wake."""
        known = {each.id for each in row.callbacks} | self._rows.keys()
        new = [each for each in callbacks if each.id not in known]
        row.callbacks += new
        if not row.record.status.active:
            return self._follow(row, moment)
        return {row.record.queue_name} if new and row.record.status is Status.PENDING else set()

    def _follow(self, row: Row, moment: datetime) -> set[str]:
        """Write the callbacks that a job's end calls for; return whom to wake: their queues, and those who watch it."""
        record = row.record
        failed = record.status is Status.FAILED
        origin = Origin(
            job_id=record.id,
            type=record.type,
            queue_name=record.queue_name,
            status=record.status,
            error=record.last_error if failed else None,
        )
        due = [each for each in row.callbacks if each.on.calls_for(record.status)]
        row.callbacks = [each for each in row.callbacks if each not in due]
        woken, row.watchers = row.watchers, set()
        for each in due:
            if each.id not in self._rows:
                self._rows[each.id] = new_row(each.after(origin, record.result), moment)
                woken.add(each.queue_name)
        return woken

    # --- leases -------------------------------------------------------------------------------------

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
        """See `Storage.reserve`."""
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        open_queues = [queue for queue in queues if queue not in self._settings.paused]
        rank = {queue: place for place, queue in reversed(list(enumerate(open_queues)))}
        ready = (
            row
            for row in self._rows.values()
            if row.record.status is Status.PENDING
            and row.record.queue_name in rank
            and (types is None or row.record.type in types)
        )

        def order(row: Row) -> tuple[int, int, datetime, UUID]:
            record = row.record
            return rank[record.queue_name], -record.priority, record.available_at, record.id

        taken = heapq.nsmallest(limit, ready, key=order)
        for row in taken:
            row.token += 1
            row.nonce = nonce
            row.change(
                status=after(row.record.status, Event.RESERVE),
                attempts=row.record.attempts + 1,
                locked_until=moment + timedelta(seconds=lease),
                locked_by=worker,
                updated_at=moment,
                progress=None,
            )
        return Reservation(jobs=[reserved(row) for row in taken], next_due_in=self._next_due_in(rank, moment))

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        """See `Storage.extend`."""
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        held = {lease: row for lease in leases if (row := self._held(lease))}
        for lease, row in held.items():
            until = moment + timedelta(seconds=seconds)
            row.change(locked_until=max(until, row.record.locked_until or until))
            if progress and lease in progress:
                row.change(progress=progress[lease])
        return Extension(
            held=frozenset(held),
            lost=frozenset(leases) - held.keys(),
            cancel_requested=frozenset(lease for lease, row in held.items() if row.record.cancel_requested),
        )

    def holds(self, lease: Lease) -> bool:
        """Return whether an attempt could be ended under this lease."""
        return self._held(lease) is not None

    def _held(self, lease: Lease) -> Row | None:
        row = self._rows.get(lease.job_id)
        return row if row and row.record.status is Status.PROCESSING and row.holds(lease) else None

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        """See `Storage.settle`."""
        await anyio.lowlevel.checkpoint()
        return self.settle_now(settlements, retention=retention, now=now)

    def settle_now(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        """End attempts without letting anybody else in before. What goes at once goes first, as it does in databases: a
        callback that has run, and goes, is written again by the end of another job with which it is recorded.
        """
        short = [settlement.lease for settlement in unkept(settlements, retention)]
        moment = self._moment(now)
        accepted = self._delete_unkept(short)
        woken: set[str] = set()
        for settlement in settlements:
            lease = settlement.lease
            row = self._rows.get(lease.job_id)
            if row is None or not row.holds(lease):
                continue
            accepted.add(lease)  # also when it was settled before: the token is still the holder's own
            if row.record.status is Status.PROCESSING:
                woken |= self._end_attempt(row, settlement, moment)
                if row.record.status.active and due_in(row, moment) < WAKE_HORIZON:
                    woken.add(row.record.queue_name)
        self._wake(woken)
        lost = frozenset(settlement.lease for settlement in settlements) - accepted
        gone = frozenset(lease for lease in lost if lease.job_id not in self._rows)
        return Settled(accepted=frozenset(accepted), lost=lost, gone=gone)

    def _delete_unkept(self, leases: Collection[Lease]) -> set[Lease]:
        """Delete jobs that succeed, and that their worker does not keep, if nothing else keeps them; return which."""
        gone = {lease for lease in leases if (row := self._held(lease)) and not self._kept(row)}
        for lease in gone:
            del self._rows[lease.job_id]
        return gone

    def _kept(self, row: Row) -> bool:
        own = self._settings.retentions.get(row.record.queue_name)
        used = bool(row.callbacks or row.watchers) or row.result_ttl is not None
        return used or (own is not None and own.completed > 0)

    def _end_attempt(self, row: Row, settlement: Settlement, moment: datetime) -> set[str]:
        event = settlement.event
        due = None
        if event in {Event.RETRY, Event.SNOOZE}:
            due = settlement.available_at or moment + timedelta(seconds=settlement.delay)
        if settlement.error is not None:
            row.keep_error(settlement.error, moment)
        if event in GIVES_BACK:
            row.change(attempts=row.record.attempts - 1)
        if event is Event.SUCCEED:
            row.change(result=settlement.result)
        return self._move(row, event, moment, due=due)

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`."""
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        recovered, buried, woken = self._recover(limit, moment)
        due = [
            row
            for row in self._rows.values()
            if row.record.status is Status.SCHEDULED and row.record.available_at <= moment
        ][:limit]
        for row in due:
            row.change(status=after(Status.SCHEDULED, Event.PROMOTE), updated_at=moment)
            woken.add(row.record.queue_name)
        pruned = self._prune(limit, retention, moment)
        self._workers = {name: each for name, each in self._workers.items() if each.expires_at > moment}
        self._wake(woken)
        return Upkeep(
            recovered=recovered,
            buried=buried,
            promoted=len(due),
            pruned=pruned,
            next_due_in=self._next_due_in(None, moment),
            next_expiry_in=self._next_expiry_in(moment),
        )

    def _recover(self, limit: int, moment: datetime) -> tuple[int, int, set[str]]:
        expired = [
            row
            for row in self._rows.values()
            if row.record.status is Status.PROCESSING
            and row.record.locked_until is not None
            and row.record.locked_until <= moment
        ][:limit]
        buried = 0
        woken: set[str] = set()
        for row in expired:
            record = row.record
            spent = record.attempts >= record.max_attempts and not record.cancel_requested
            error = Failure(type="LeaseExpired", message=f"the lease of attempt {record.attempts} ran out")
            row.keep_error(error, moment)
            row.seize()
            due = moment + timedelta(microseconds=recovery_delay(record.id, record.attempts))
            woken |= self._move(row, Event.BURY if spent else Event.RECOVER, moment, due=due)
            buried += spent
        return len(expired) - buried, buried, woken

    def _prune(self, limit: int, retention: Retention, moment: datetime) -> int:
        def overdue(ended: datetime, queue_name: str, status: Status) -> timedelta:
            return moment - ended - self._settings.kept(queue_name, status, retention)

        jobs = [
            (overdue(record.completed_at, record.queue_name, record.status), record.id)
            for record in (row.record for row in self._rows.values())
            if record.completed_at is not None and (record.result_expires_at or moment) <= moment
        ]
        letters = [
            (overdue(letter.buried_at, letter.queue_name, Status.FAILED), letter.job_id)
            for letter in self._dead.values()
        ]
        gone = _most_overdue(jobs, limit)
        for job_id in gone:
            del self._rows[job_id]
        for job_id in _most_overdue(letters, limit):
            del self._dead[job_id]
        return len(gone)

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        rows = self._of(job_ids)
        woken: set[str] = set()
        for row in rows:
            if row.record.status is Status.PROCESSING:
                row.change(cancel_requested=True, updated_at=moment)
                woken.add(row.record.locked_by or "")
            elif row.record.status.active:
                row.seize()
                woken |= self._move(row, Event.CANCEL, moment)
        self._wake(woken)
        return {row.record.id: row.record.status for row in rows}

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        rows = self._of(job_ids)
        woken: set[str] = set()
        for row in rows:
            record = row.record
            rival = self._flying(record.fingerprint, moment)
            if (record.status, Event.REVIVE) not in TRANSITIONS or (rival is not None and rival is not row):
                continue
            row.seize()
            row.single_flight = record.fingerprint is not None
            self._dead.pop(record.id, None)
            row.change(
                status=after(record.status, Event.REVIVE),
                attempts=0 if record.status in FINISHED else record.attempts,
                available_at=moment,
                cancel_requested=False,
                completed_at=None,
                updated_at=moment,
            )
            woken.add(record.queue_name)
        self._wake(woken)
        return {row.record.id: row.record.status for row in rows}

    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        """See `Storage.delete`."""
        await anyio.lowlevel.checkpoint()
        statuses = {row.record.id: row.record.status for row in self._of(job_ids)}
        for job_id, status in statuses.items():
            if status in FINISHED:
                del self._rows[job_id]
                self._dead.pop(job_id, None)
        return statuses

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """See `Storage.find`."""
        await anyio.lowlevel.checkpoint()
        return {row.record.id: row.record for row in self._of(job_ids)}

    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        """See `Storage.watch`."""
        await anyio.lowlevel.checkpoint()
        if watcher is not None:
            for row in self._of(over):
                row.watchers.discard(watcher)
            for row in self._of(job_ids):
                if row.record.status.active:
                    row.watchers.add(watcher)
        return {row.record.id: end_of(row.record) for row in self._of(job_ids)}

    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        """See `Storage.list`."""
        await anyio.lowlevel.checkpoint()
        shown = (
            row.record
            for row in self._rows.values()
            if (where.queues is None or row.record.queue_name in where.queues)
            and (where.types is None or row.record.type in where.types)
            and (where.statuses is None or row.record.status in where.statuses)
            and (before is None or row.record.id < before)
        )
        return heapq.nlargest(limit, shown, key=lambda record: record.id)

    async def dead_letters(self, limit: int, *, before: UUID | None = None) -> Sequence[DeadLetter]:
        """See `Storage.dead_letters`."""
        await anyio.lowlevel.checkpoint()
        shown = (letter for letter in self._dead.values() if before is None or letter.job_id < before)
        return heapq.nlargest(limit, shown, key=lambda letter: letter.job_id)

    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        """See `Storage.stats`."""
        await anyio.lowlevel.checkpoint()
        return queue_stats(self._records(), self._settings, self._moment(now))

    # --- queues, and who serves them ----------------------------------------------------------------

    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        """See `Storage.pause`."""
        await anyio.lowlevel.checkpoint()
        for queue in queues:
            self._settings.paused.setdefault(queue, self._moment(now))

    async def resume(self, queues: Collection[str]) -> None:
        """See `Storage.resume`."""
        await anyio.lowlevel.checkpoint()
        for queue in queues:
            self._settings.paused.pop(queue, None)
        self._wake(queues)

    async def set_retention(self, queue_name: str, retention: Retention | None) -> None:
        """See `Storage.set_retention`."""
        await anyio.lowlevel.checkpoint()
        if retention is None:
            self._settings.retentions.pop(queue_name, None)
        else:
            self._settings.retentions[queue_name] = retention

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        """See `Storage.announce`."""
        await anyio.lowlevel.checkpoint()
        moment = self._moment(now)
        before = self._workers.get(presence.name)
        self._workers[presence.name] = Attendance(
            presence=presence,
            started_at=before.started_at if before else moment,
            seen_at=moment,
            expires_at=moment + timedelta(seconds=ttl),
        )

    async def withdraw(self, name: str) -> None:
        """See `Storage.withdraw`."""
        await anyio.lowlevel.checkpoint()
        self._workers.pop(name, None)

    async def workers(self, *, now: datetime | None = None) -> Sequence[WorkerRecord]:
        """See `Storage.workers`."""
        await anyio.lowlevel.checkpoint()
        return worker_records(self._workers.values(), self._records(), self._moment(now))

    # --- transactions and wakes ---------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        """See `Storage.transaction`. Nothing can be written in it but the end of an attempt."""
        transaction = _MemoryTransaction(self)
        await anyio.lowlevel.checkpoint()
        yield transaction
        transaction.commit()

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        """See `Storage.listen`."""
        listener = MemoryListener(queues)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _wake(self, queues: Iterable[str]) -> None:
        woken = frozenset(queues)
        for listener in self._listeners:
            listener.ring(woken)

    # --- rows ---------------------------------------------------------------------------------------

    def _moment(self, now: datetime | None) -> datetime:
        return self._now() if now is None else now.astimezone(UTC)

    def _now(self) -> datetime:
        return self._epoch + timedelta(seconds=anyio.current_time() - self._origin)

    def _of(self, job_ids: Collection[UUID]) -> Sequence[Row]:
        return [self._rows[job_id] for job_id in dict.fromkeys(job_ids) if job_id in self._rows]

    def _records(self) -> Sequence[JobRecord]:
        return [row.record for row in self._rows.values()]

    def _next_due_in(self, queues: Collection[str] | None, moment: datetime) -> float | None:
        due = [
            row.record.available_at
            for row in self._rows.values()
            if row.record.status is Status.SCHEDULED and (queues is None or row.record.queue_name in queues)
        ]
        return max(0.0, (min(due) - moment).total_seconds()) if due else None

    def _next_expiry_in(self, moment: datetime) -> float | None:
        locks = (row.record.locked_until for row in self._rows.values())
        first = min((until for until in locks if until is not None), default=None)
        return None if first is None else max(0.0, (first - moment).total_seconds())

    def _move(self, row: Row, event: Event, moment: datetime, *, due: datetime | None = None) -> set[str]:
        """End a hold, or a wait: write the state that follows, and what goes with it; return whom to wake.

        Without a new due time the job stands in its queue where it stood.
        """
        record = row.record
        due = due or record.available_at
        status = after(record.status, event, due=due <= moment, cancel_requested=record.cancel_requested)
        row.change(
            status=status,
            available_at=due if status.active else record.available_at,
            locked_until=None,
            locked_by=None,
            updated_at=moment,
        )
        if status in FINISHED:
            ttl = row.result_ttl if status is Status.COMPLETED else None
            row.change(
                completed_at=moment,
                result_expires_at=None if ttl is None else moment + timedelta(seconds=ttl),
            )
            row.single_flight = row.single_flight and ttl is not None
        if event in BURIES:
            self._dead[record.id] = dead_letter(row, moment)
        return self._follow(row, moment) if status in FINISHED else set()


class _MemoryTransaction:
    """The end of an attempt, held back until the block is left."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._ends: list[tuple[Settlement, datetime | None]] = []

    @property
    def connection(self) -> None:
        """There is no database to write to."""
        return

    async def settle(self, settlement: Settlement, *, now: datetime | None = None) -> bool:
        """See `Transaction.settle`."""
        await anyio.lowlevel.checkpoint()
        self._ends.append((settlement, now))
        return self._storage.holds(settlement.lease)

    def commit(self) -> None:
        """Write it. Nobody comes in between: the end was the last thing that was done."""
        for settlement, now in self._ends:
            self._storage.settle_now([settlement], now=now)


def _most_overdue(ended: Iterable[tuple[timedelta, UUID]], limit: int) -> Sequence[UUID]:
    over = sorted((each for each in ended if each[0] >= timedelta(0)), reverse=True)
    return [job_id for _, job_id in over[:limit]]
