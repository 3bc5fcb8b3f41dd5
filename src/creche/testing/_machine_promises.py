"""The promises, checked on rows alone, by an accountant who knows what was sent and what was answered.

It asks no oracle, so that it finds what storage and oracle would have in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from functools import cache
from itertools import product
from typing import Final
from uuid import UUID

from attrs import frozen

from creche._job import (
    FINISHED,
    Event,
    Extension,
    Insertion,
    Lease,
    NewJob,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Status,
)
from creche._lifecycle import TRANSITIONS, after
from creche.testing._machine_rows import StoredJob, StoredRows, ids_of
from creche.testing._machine_uses import Uses

NOBODY: Final[frozenset[UUID]] = frozenset()
UPKEEP: Final = frozenset({Event.RECOVER, Event.BURY, Event.PROMOTE})
THERE_AND_BACK: Final = frozenset({Event.SUCCEED, Event.REVIVE})

FOLLOWING: Final[Mapping[Event, frozenset[tuple[Status, Status]]]] = {
    event: frozenset(
        (status, after(status, event, due=due, cancel_requested=asked))
        for status in Status
        if (status, event) in TRANSITIONS
        for due, asked in product((False, True), repeat=2)
    )
    for event in Event
}
"""Which states may follow each other by an event, whatever the row says besides."""


@frozen(kw_only=True)
class Reach:
    """How far a call may reach.

    Attributes:
        events: what it may have happen to jobs.
        touches: whose rows it may change; None: anybody's.
        adds: whether there may be new rows: of jobs that were dispatched, and of callbacks.
        removes: whether finished jobs may go whose result answers nobody any more.
        deletes: which finished jobs may go in any case.
    """

    events: frozenset[Event] = frozenset()
    touches: Collection[UUID] | None = NOBODY
    adds: bool = False
    removes: bool = False
    deletes: Collection[UUID] = NOBODY


class PromiseBroken(AssertionError):
    """A row says that a promise was not kept."""


class Promises:
    """Remembers who was given what, and holds each new look at the rows to that."""

    def __init__(self) -> None:
        self.uses = Uses()
        self._rows: Mapping[UUID, StoredJob] = {}
        self._dispatched: set[UUID] = set()
        self._held: dict[UUID, tuple[Lease, datetime]] = {}
        self._beyond: set[UUID] = set()  # whoever decided gave them more attempts than they were to have
        # Since the last look:
        self._unkept: set[UUID] = set()  # they succeeded, and nothing keeps them
        self._anew: set[UUID] = set()  # they were dispatched, or called for, and may have been written once more
        self._lost: dict[Lease, bool] = {}  # of ends that leave nothing: whether there was no job to be ended

    # --- what was sent and answered -----------------------------------------------------------------

    def dispatched(self, jobs: Iterable[NewJob]) -> None:
        """Jobs were sent, and may be there from now on; so may what follows them."""
        jobs = list(jobs)
        self.uses.dispatched(jobs)
        for job in jobs:
            self._dispatched |= {job.id, *ids_of(job.callbacks)}

    def joined(self, insertions: Iterable[Insertion]) -> None:
        """Jobs were sent at once with other things that were done to them."""
        found = {each.job_id for each in insertions}
        self.uses.followed(found)
        self._anew |= found

    def reserved(self, reservation: Reservation, until: datetime, now: datetime) -> None:
        """Leases were given out. At most one that has not run out exists per job."""
        for job in reservation.jobs:
            held, deadline = self._held.get(job.id, (None, now))
            if deadline > now:
                raise PromiseBroken(f"one holder: {job.lease} was given out while {held} was valid until {deadline}")
            self._held[job.id] = job.lease, until

    def extended(self, extension: Extension, seconds: float, now: datetime) -> None:
        """Leases were prolonged."""
        for lease in extension.held:
            held, deadline = self._held.get(lease.job_id, (None, now))
            if held != lease:
                raise PromiseBroken(f"fenced: {lease} was prolonged, and {held} is who holds it")
            self._held[lease.job_id] = lease, max(deadline, now + timedelta(seconds=seconds))

    def watched(self, watcher: str, jobs: Iterable[UUID], over: Collection[UUID]) -> None:
        """Somebody watches those of the jobs that are not over yet; and no longer what is over."""
        there = [job_id for job_id in jobs if (job := self._rows.get(job_id)) and job.record.status.active]
        self.uses.watches(watcher, there, over)

    def settled(
        self, settlements: Collection[Settlement], settled: Settled, retention: Retention | None = None
    ) -> None:
        """Attempts were ended. What succeeded, and is kept for no time, is gone with it, if nobody has a use for it."""
        unkept = retention is not None and retention.completed == 0
        if unkept and any(settlement.event is Event.SUCCEED for settlement in settlements):
            self._lost |= {lease: lease in settled.gone for lease in settled.lost}
        for settlement in settlements:
            lease = settlement.lease
            if lease not in settled.accepted or self._held.get(lease.job_id, (None,))[0] != lease:
                continue
            del self._held[lease.job_id]
            job = self._rows.get(lease.job_id)
            self._anew |= {each.id for each in job.callbacks} if job else NOBODY
            if settlement.event is Event.RETRY and job and job.record.attempts >= job.record.max_attempts:
                self._beyond.add(lease.job_id)
            if unkept and settlement.event is Event.SUCCEED and job and not self.uses.of(job):
                self._unkept.add(lease.job_id)

    # --- what is seen -------------------------------------------------------------------------------

    def keep(self, rows: StoredRows, reach: Reach, now: datetime) -> None:
        """Hold the rows, as they read at this moment, to what they were, and to what was done."""
        jobs, before = rows.jobs, {job_id: job.at(now) for job_id, job in self._rows.items()}
        for job_id in before.keys() - jobs.keys():
            self._gone(before[job_id], reach, now)
        changed = [each for each, job in jobs.items() if (was := before.get(each)) is not job and was != job]
        for job_id in changed:
            job = jobs[job_id]
            was = before.get(job_id)
            if was is not None and not self._reborn(job, reach):
                self._moved(was, job, reach, now)
                self._written(was, job, jobs)
            elif not reach.adds or job_id not in self._dispatched:
                raise PromiseBroken(f"nobody asked for it: {job}")
            if job.record.attempts == 0:
                self._beyond.discard(job_id)
            anew = reach.events >= THERE_AND_BACK or (was is not None and job.token < was.token)
            if anew or not job.record.status.active:
                self.uses.ended(job_id)
            self._whole(job, now)
        self._unused(before, jobs, reach)
        if changed:
            _alone(jobs.values())
        self._rows = jobs

    def _gone(self, job: StoredJob, reach: Reach, now: datetime) -> None:
        """Nothing is lost: a row goes when it is over, and somebody cleans up; a fresh result keeps it. It goes at once
        when it has succeeded, and nothing keeps it.
        """
        record = job.record
        fresh = record.result_expires_at is not None and record.result_expires_at > now
        steps = _reachable(reach.events)
        over = not record.status.active or any((record.status, end) in steps for end in FINISHED)
        cleaned = record.id in reach.deletes or (reach.removes and not fresh)
        if record.id not in self._unkept and not (over and cleaned):
            raise PromiseBroken(f"nothing lost: it is gone, {job}")
        if record.status is Status.PROCESSING:
            self._let_go(job, reach, now)
        self._beyond.discard(record.id)
        self.uses.ended(record.id)

    def _moved(self, before: StoredJob, job: StoredJob, reach: Reach, now: datetime) -> None:
        """A state follows from another by an event that could happen, and only its holder has a job that runs."""
        was, status, job_id = before.record.status, job.record.status, job.record.id
        if reach.touches is not None and job_id not in reach.touches:
            raise PromiseBroken(f"fenced: nobody had anything to do with it, {before} became {job}")
        if job.token < before.token:
            raise PromiseBroken(f"tokens never fall: {before} became {job}")
        if was is not status and (was, status) not in _reachable(reach.events):
            raise PromiseBroken(f"the table of states: {before} became {job} by {sorted(reach.events) or 'nothing'}")
        if was is Status.PROCESSING and (status is not was or job.lease != before.lease):
            self._let_go(before, reach, now)
        if status is Status.PROCESSING and self._held.get(job_id, (None,))[0] != job.lease:
            raise PromiseBroken(f"one holder: the row says {job.lease}, and {self._held.get(job_id)} was given out")

    def _let_go(self, before: StoredJob, reach: Reach, now: datetime) -> None:
        """A job leaves its holder by its holder's word, or because the lease ran out."""
        if before.record.id not in self._held:
            return
        held, deadline = self._held[before.record.id]
        if not reach.events & UPKEEP or deadline > now:
            raise PromiseBroken(f"one holder: {held} was valid until {deadline}, and somebody took it away")
        del self._held[before.record.id]

    def _unused(self, before: Mapping[UUID, StoredJob], jobs: Mapping[UUID, StoredJob], reach: Reach) -> None:
        """What nobody has a use for is gone, and whoever ends it once more is told just that."""
        same = {each for each in before.keys() & jobs.keys() if not self._reborn(jobs[each], reach)}
        for job_id in same & self._unkept:
            raise PromiseBroken(f"kept for no time: it succeeded, nothing keeps it, and it is there, {jobs[job_id]}")
        for lease, gone in self._lost.items():
            absent = lease.job_id not in jobs and (lease.job_id not in before or lease.job_id in self._unkept)
            if (gone and lease.job_id in same) or (not gone and absent and lease.job_id not in reach.deletes):
                raise PromiseBroken(
                    f"gone or not: {lease} is {'there' if gone else 'gone'}, and the answer was not that"
                )
        self._unkept.clear()
        self._anew.clear()
        self._lost.clear()
        self.uses.looked()

    def _written(self, before: StoredJob, job: StoredJob, jobs: Mapping[UUID, StoredJob]) -> None:
        """A job's callbacks are written with its end, and those that it does not call for stay."""
        left = {each.id for each in job.callbacks}
        for each in before.callbacks:
            if each.id not in left and each.id not in jobs:
                raise PromiseBroken(f"recorded, and neither there nor written: {each} of {job}")

    def _reborn(self, job: StoredJob, reach: Reach) -> bool:
        """Whether a row may be another one than before, of the same id: what is gone can be dispatched anew, and where
        somebody deletes it, somebody else may have cancelled it since.
        """
        job_id = job.record.id
        deleted = job_id in reach.deletes or (job_id in self._unkept and job_id in self._anew)
        new = job.token == 0 or (deleted and job.token == 1)
        return (reach.removes or deleted) and reach.adds and new and job.record.attempts == 0

    def _whole(self, job: StoredJob, now: datetime) -> None:
        """A row is of one piece: what its state says is said by the rest of it."""
        record = job.record
        status = record.status
        held = record.locked_until is not None and record.locked_by is not None
        free = record.locked_until is None and record.locked_by is None
        spare = record.attempts < record.max_attempts or record.id in self._beyond
        wrong = {
            "held, and not running": held and status is not Status.PROCESSING,
            "running, and not held": not held and status is Status.PROCESSING,
            "half held": not held and not free,
            "over at no time, or at one while it is not": (record.completed_at is None) is not status.active,
            "pending before its time": status is Status.PENDING and record.available_at > now,
            "fewer attempts than none": record.attempts < 0,
            "bounded attempts": record.attempts > record.max_attempts and record.id not in self._beyond,
            "waiting for an attempt that it has not": status in {Status.PENDING, Status.SCHEDULED} and not spare,
            "its callbacks were not written": any(each.on.calls_for(status) for each in job.callbacks),
        }
        for what, so in wrong.items():
            if so:
                raise PromiseBroken(f"{what}: {job}")


def _alone(jobs: Collection[StoredJob]) -> None:
    """Single flight: one active job per fingerprint, one that answers for it, and one row per key of a queue."""
    records = [job.record for job in jobs]
    names: dict[str, list[object]] = {
        "active": [record.fingerprint for record in records if record.status.active],
        "answering": [job.record.fingerprint for job in jobs if job.single_flight],
        "of one key": [(each.queue_name, each.idempotency_key) for each in records if each.idempotency_key],
    }
    for what, found in names.items():
        for name, count in Counter(name for name in found if name is not None).items():
            if count > 1:
                raise PromiseBroken(f"single flight: {count} jobs {what} with {name!r}")


@cache
def _reachable(events: frozenset[Event]) -> frozenset[tuple[Status, Status]]:
    """Which states may follow each other by some of these events."""
    steps = frozenset(step for event in events for step in FOLLOWING[event])
    while more := {(a, d) for (a, b), (c, d) in product(steps, repeat=2) if b is c} - steps:
        steps |= more
    return steps
