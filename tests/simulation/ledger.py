"""The ledger: what was seen, from outside of every process, and whether it may be.

It is told by the database of every change, by handlers when they begin and end, by dispatchers of what was
acknowledged, and by the world of faults; it tells nobody anything until the end. The numbers (I1 to I11) are those of
docs/reliability.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

import trio
from attrs import define, frozen

from creche import Job
from creche._job import Extension, JobRecord, Lease, Settled, Settlement, Status
from creche.storage._memory_rows import Row
from simulation.clocks import START
from simulation.lives import Life
from simulation.plan import WorkerPlan
from simulation.rules import OVER, Cause, Seen, broken_by_row, broken_by_settlement

UPKEEP: Final = 15 * 1.2  # seconds between two rounds of upkeep of a worker, at most
CALMING: Final = 70.0  # seconds after a fault: what hangs is given up, back-offs run out, listeners listen again
_SHOWN: Final = 160

__all__ = ["Cause", "Ledger", "Visit"]


@define(eq=False)
class Visit:
    """A handler inside of its job."""

    life: Life
    job: Job
    lease: Lease
    began: float
    how: str = "is inside"
    result: bytes | None = None  # if it returns
    committing: bool = False  # its own transaction may have ended the attempt
    swallowing: bool = False  # it was cancelled, and ignores that for a while
    forgotten: float = math.inf  # since when its lease is one that never was, after a failover
    asked: float = math.inf  # since when its job is to be cancelled

    @property
    def excused(self) -> bool:
        """Whether somebody else may be in the job at the same time, and it is not the engine's fault."""
        now = trio.current_time()
        return self.swallowing or self.life.frozen or self.life.thawed_at == now or self.forgotten <= now


@frozen
class _Snapshot:
    seen: Mapping[UUID, Seen]
    issued: Mapping[UUID, tuple[Life | None, Lease]]
    time: float


class Ledger:
    """Everything that was seen. `violations` is empty as long as all promises are kept."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.broken = trio.Event()
        self.counts: Counter[str] = Counter()
        self.results: defaultdict[UUID, set[bytes | None]] = defaultdict(set)
        self.forgotten: set[UUID] = set()  # jobs about which something was lost with a primary
        self._hash = sha256()
        self._lines: deque[str] = deque(maxlen=_SHOWN)
        self._numbers: dict[UUID, int] = {}
        self._seen: dict[UUID, Seen] = {}
        self._pruned: set[UUID] = set()
        self._issued: dict[UUID, tuple[Life | None, Lease]] = {}
        self._visits: dict[tuple[Life | None, Lease], Visit] = {}
        self._inside: defaultdict[UUID, set[Visit]] = defaultdict(set)
        self._flying: defaultdict[bytes, set[UUID]] = defaultdict(set)
        self._pending_since: dict[UUID, float] = {}
        self._serving: dict[Life, WorkerPlan] = {}
        self._busy: Counter[Life] = Counter()
        self._full_until: defaultdict[str, float] = defaultdict(lambda: -math.inf)
        self._troubles = 0
        self._calm_since = 0.0
        self.acknowledged: dict[UUID, str] = {}
        self.followed: set[UUID] = set()
        self._followers: Counter[UUID] = Counter()

    # --- the record ---------------------------------------------------------------------------------

    def note(self, who: object, what: str) -> None:
        """Write down an event."""
        line = f"{trio.current_time():12.3f}  {who!s:<4}  {what}"
        self._hash.update(line.encode())
        self._lines.append(line)

    def fail(self, what: str) -> None:
        """Write down that a promise is broken."""
        self.note("!!!!", what)
        self.violations.append(f"at {trio.current_time():.3f}: {what}")
        self.broken.set()

    def digest(self) -> str:
        """Return the hash of all events."""
        return self._hash.hexdigest()

    def timeline(self) -> str:
        """Return the last events, for people."""
        return "\n".join(self._lines)

    def name(self, job_id: UUID) -> str:
        """Return what a job is called here: a number, for ids tell nobody anything."""
        return f"job {self._numbers.setdefault(job_id, len(self._numbers))}"

    # --- faults -------------------------------------------------------------------------------------

    def trouble(self, began: bool) -> None:
        """Something goes wrong from now on, or does no more."""
        self._troubles += 1 if began else -1
        self._calm_since = math.inf if self._troubles else trio.current_time() + CALMING

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong, and has not for a while: who was killed is forgotten, who hung has given up."""
        return trio.current_time() >= self._calm_since

    def serves(self, life: Life, plan: WorkerPlan) -> None:
        """A worker is up."""
        self._serving[life] = plan

    def serves_no_more(self, life: Life) -> None:
        """It is down."""
        self._serving.pop(life, None)
        for visits in self._inside.values():
            for visit in [visit for visit in visits if visit.life is life]:
                visits.discard(visit)
                visit.how = "was killed"
                self.counts["handlers killed"] += 1
                if life.alive:
                    self.fail(f"{life} has ended, and {self.name(visit.job.id)} is still inside")

    def snapshot(self) -> _Snapshot:
        """Return what a standby knows."""
        return _Snapshot(dict(self._seen), dict(self._issued), trio.current_time())

    def rewrite(self, snapshot: object, rows: Mapping[UUID, Row]) -> None:
        """A standby took over: what it does not know never happened."""
        assert isinstance(snapshot, _Snapshot)
        undone = {job_id for job_id, seen in self._seen.items() if snapshot.seen.get(job_id) is not seen}
        self.forgotten |= undone
        self.counts["jobs lost with a primary"] += len(self._seen.keys() - snapshot.seen.keys())
        self.counts["jobs set back by a failover"] += len(undone)
        for job_id in undone:
            for visit in self._inside[job_id]:
                row = rows.get(job_id)
                if row is None or row.record.status is not Status.PROCESSING or not row.holds(visit.lease):
                    visit.forgotten = min(visit.forgotten, trio.current_time())
        self._seen, self._issued = dict(snapshot.seen), dict(snapshot.issued)
        self._flying.clear()
        for job_id, seen in self._seen.items():
            self._keep_track(job_id, seen.record)
            if seen.record.status is Status.PENDING:
                self._pending_since[job_id] = trio.current_time()

    # --- rows ---------------------------------------------------------------------------------------

    def observe(self, cause: Cause, rows: Mapping[UUID, Row], moment: datetime) -> None:
        """Look at all rows that have changed."""
        for job_id, row in rows.items():
            before = self._seen.get(job_id)
            if before is not None and before.record is row.record:
                continue
            for what in broken_by_row(before, row, cause, moment):
                self.fail(f"{self.name(job_id)}: {what}")
            self._seen[job_id] = Seen(row.record, row.token, row.nonce)
            self._account(before.record if before else None, row.record, cause)
        if len(rows) < len(self._seen):
            for job_id in self._seen.keys() - rows.keys():
                gone = self._seen.pop(job_id)
                self._pruned.add(job_id)
                if cause is not Cause.MAINTAIN or gone.record.status not in OVER:
                    self.fail(f"I6: {self.name(job_id)} vanished, {gone.record.status}")

    def _account(self, was: JobRecord | None, row: JobRecord, cause: Cause) -> None:
        if was is not None and was.status is row.status:
            if row.cancel_requested and not was.cancel_requested:
                self.note("db", f"{self.name(row.id)}: somebody wants it cancelled")
                for visit in self._inside[row.id]:
                    visit.asked = min(visit.asked, trio.current_time())
            return
        now = trio.current_time()
        self.note("db", f"{self.name(row.id)}: {row.status} by {cause}, attempts {row.attempts}/{row.max_attempts}")
        self.counts[f"{cause}: {row.status}"] += 1
        self._keep_track(row.id, row)
        if was is None and row.origin is not None:
            self._followers[row.origin.job_id] += 1
        if row.status is Status.PENDING:
            self._pending_since[row.id] = now
        if was is None:
            return
        match cause, was.status:
            case Cause.RESERVE, _:
                self._check_wait(was, now)
            case Cause.MAINTAIN, Status.SCHEDULED:
                self._check_late(row, "promoted", _seconds(was.available_at))
            case Cause.MAINTAIN, Status.PROCESSING if was.locked_until is not None:
                self._check_late(row, "taken back", _seconds(was.locked_until))
            case _:
                pass

    def _keep_track(self, job_id: UUID, record: JobRecord) -> None:
        if record.fingerprint is None:
            return
        flying = self._flying[record.fingerprint]
        if record.status.active:
            flying.add(job_id)
        else:
            flying.discard(job_id)
        if len(flying) > 1:
            names = ", ".join(self.name(each) for each in flying)
            self.fail(f"I10: active with one fingerprint: {names}")

    def _check_wait(self, was: JobRecord, now: float) -> None:
        """In calm, a ready job waits for a free slot, or for as long as a lost wake costs: one poll."""
        since = max(self._pending_since[was.id], self._calm_since, self._full_until[was.queue_name])
        polls = [plan.poll_interval for plan in self._serving.values() if was.queue_name in plan.queues]
        if now - since > max(polls, default=0.0) * 1.1 + 0.5:
            self.fail(f"I11: {self.name(was.id)} waited for {now - since:.1f} s, though there was room")

    def _check_late(self, row: JobRecord, what: str, due: float) -> None:
        late = trio.current_time() - max(due, self._calm_since)
        if late > UPKEEP + 0.5:
            self.fail(f"I11: {self.name(row.id)} was {what} {late:.1f} s late")

    # --- leases -------------------------------------------------------------------------------------

    def issue(self, life: Life | None, leases: Sequence[Lease], limit: int) -> None:
        """A reserve handed out leases."""
        if len(leases) > limit:
            self.fail(f"{life} asked for {limit} jobs, and got {len(leases)}")
        for lease in leases:
            for visit in self._inside[lease.job_id]:
                if not visit.excused:
                    self.fail(f"I2: {self.name(lease.job_id)} is given to {life}, and {visit.life} is inside")
            self._issued[lease.job_id] = (life, lease)

    def extended(self, life: Life | None, answer: Extension) -> None:
        """A renewal took effect."""
        for lease in answer.held:
            self._check_holder(life, lease, "renewed")

    def settled(
        self, life: Life | None, settlement: Settlement, was: JobRecord | None, after: JobRecord | None, answer: Settled
    ) -> None:
        """A settle was executed; `after` is None if it had no effect."""
        lease = settlement.lease
        if was is None or after is None:
            self.counts["settles without effect"] += 1
            return
        self._check_holder(life, lease, f"settled ({settlement.event})")
        if lease not in answer.accepted:
            self.fail(f"I4: {self.name(lease.job_id)} was changed by a settle that was refused")
        for what in broken_by_settlement(settlement, self._visits.get((life, lease)), was, after):
            self.fail(f"{self.name(lease.job_id)}: {what}")
        self.results[lease.job_id].add(settlement.result)

    def _check_holder(self, life: Life | None, lease: Lease, what: str) -> None:
        holder = self._issued.get(lease.job_id)
        if holder != (life, lease):
            self.fail(f"I4: {self.name(lease.job_id)} was {what} by {life}, and {holder and holder[0]} holds it")

    # --- handlers -----------------------------------------------------------------------------------

    def enter(self, life: Life, job: Job) -> Visit:
        """A handler begins."""
        now = trio.current_time()
        visit = Visit(life=life, job=job, lease=job.lease, began=now)
        if not life.alive:
            return visit
        self.note(life, f"{self.name(job.id)}: attempt {job.attempt} begins")
        if self._issued.get(job.id) != (life, job.lease) and job.id not in self.forgotten:
            self.fail(f"I4: {life} began {self.name(job.id)} under a lease that is somebody else's")
        if job.deadline <= now and life.thawed_at != now:
            self.fail(f"I2: {life} began {self.name(job.id)} when its lease was over")
        for other in self._inside[job.id]:
            if other.excused:
                self.counts["two inside, and the first swallowed its cancellation, or was frozen or forgotten"] += 1
            else:
                self.fail(f"I2: {life} began {self.name(job.id)}, and {other.life} is inside")
        if (life, job.lease) in self._visits:
            self.fail(f"I1: {life} began {self.name(job.id)} twice under one lease")
        self._visits[life, job.lease] = visit
        self._inside[job.id].add(visit)
        self._busy[life] += 1
        plan = self._serving.get(life)
        if plan is not None and self._busy[life] > plan.concurrency:
            self.fail(f"{life} runs {self._busy[life]} jobs at once, of {plan.concurrency}")
        return visit

    def leave(self, visit: Visit, how: str) -> None:
        """A handler ends."""
        life, job, now = visit.life, visit.job, trio.current_time()
        if not life.alive:
            return
        visit.how = how
        self.note(life, f"{self.name(job.id)}: attempt {job.attempt} {how}")
        self.counts[f"handlers that {how}"] += 1
        for queue in ("default", "bulk"):
            if not any(
                self._busy[each] < plan.concurrency for each, plan in self._serving.items() if queue in plan.queues
            ):
                self._full_until[queue] = now
        self._busy[life] -= 1
        self._inside[job.id].discard(visit)
        if visit.swallowing:
            self.counts["handlers that swallowed a cancellation"] += 1
            return
        if now > max(job.deadline, life.thawed_at):
            self.fail(f"I2: {life} left {self.name(job.id)} {now - job.deadline:.3f} s after its lease was over")
        plan = self._serving.get(life)
        told = min(max(moment, self._calm_since) for moment in (visit.forgotten, visit.asked))
        if plan is not None and now > told + plan.lease / 3 + 1.5:
            self.fail(f"{life} left {self.name(job.id)} {now - told:.1f} s after a renewal should have told it to")

    # --- dispatchers --------------------------------------------------------------------------------

    def acknowledge(self, job_id: UUID, what: str, *, followed: bool) -> None:
        """A dispatch was answered."""
        self.note("db", f"{self.name(job_id)}: acknowledged to {what}")
        if job_id not in self._seen and job_id not in self._pruned and job_id not in self.forgotten:
            self.fail(f"I6: {self.name(job_id)} was acknowledged, and is not there")
        before = self.acknowledged.setdefault(job_id, what)
        if what.startswith("key") and before.startswith("key") and before != what:
            self.fail(f"{self.name(job_id)} answers for {before}, and for {what}")
        if followed:
            self.followed.add(job_id)

    def got(self, job_id: UUID, result: bytes) -> None:
        """Somebody waited for a job, and got this."""
        if result not in self.results[job_id]:
            self.fail(f"I10: who waited for {self.name(job_id)} got {result!r}")

    # --- the end ------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> Sequence[str]:
        """Jobs that are not over."""
        return [
            f"{self.name(job_id)} ({seen.record.status})"
            for job_id, seen in self._seen.items()
            if seen.record.status.active
        ]

    def finish(self) -> None:
        """Everybody has stopped."""
        known = self._seen.keys() | self._pruned
        for job_id in self.acknowledged.keys() - self.forgotten:
            if job_id not in known:
                self.fail(f"I6: {self.name(job_id)} was acknowledged, and is gone")
            elif job_id in self.followed and not self._followers[job_id]:
                self.fail(f"I7: {self.name(job_id)} is over, and nothing followed")
        self.note("end", f"{sorted(self.counts.items())}")


def _seconds(moment: datetime) -> float:
    return moment.timestamp() - START
