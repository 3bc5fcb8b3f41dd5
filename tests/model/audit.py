"""The audit: what was promised about a job, and a ledger of what really happened to it. No rule may read the ledger.

It belongs to the job's history: a failover that loses the last writes loses their entries, too, for what is promised
then is promised of the history that is left.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from creche._job import FINISHED, Event, Status
from creche._lifecycle import GIVES_BACK, SETTLING, TRANSITIONS
from model.rules import UPKEEP, Lease, Row, Rules


class Promise(Enum):
    """What must hold in every state, and of every step."""

    FENCED = "nothing that a stale holder says takes effect"
    ALONE = "a handler that may run holds the lease in the database, for at least as long as it believes"
    COUNTED = "the row counts the attempts that were spent and no other, so each number is given out once"
    BOUNDED = "there are never more attempts than the maximum"
    ONCE = "the end of an attempt takes effect once"
    TRUTHFUL = "an end that was accepted is the end that was written"
    FINAL = "a job ends once, and is over until somebody asks for another go"
    KEPT = "what is completed stays completed"
    EARNED = "a job is completed by a handler that succeeded, and by nothing else"
    PATIENT = "upkeep buries only what has used its attempts, and whose lease has run out"
    OBEYED = "a job whose cancellation was asked for never goes on, and no other is cancelled"
    LETTER = "a job has a dead letter if, and only if, it has failed"
    FOLLOWED = "a callback is written once, at the first end that calls for it"
    FINITE = "if every worker that takes it dies, upkeep still brings the job to an end"


class Ledger(NamedTuple):
    """What happened."""

    owner: int = 0  # the nonce of the last lease; 0 if somebody else has moved the job since
    ended: Event | None = None  # how its owner ended the attempt
    numbers: int = 0  # a bit for each attempt of this life that was given out, and not given back
    ends: int = 0  # how often this life has ended
    followed: int = 0  # how often the callback was written, in any life


class Job(NamedTuple):
    """The row, and its ledger."""

    row: Row = Row()
    ledger: Ledger = Ledger()


class Audit:
    """Keeps the ledger, and says what is broken.

    Args:
        max_attempts: of the job.
    """

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts

    def enter(self, job: Job, event: Event, row: Row, lease: Lease | None = None) -> tuple[Job, Promise | None]:
        """Write down that an event made this of the row, said by the holder of `lease` if any; say what it broke."""
        before, ledger = job
        broken = self._broken_by(job, event, row, lease)
        if event in SETTLING:
            ledger = ledger._replace(ended=event)
        elif event is Event.RESERVE:
            ledger = ledger._replace(owner=row.nonce, ended=None, numbers=ledger.numbers | 1 << row.attempts)
        elif event is not Event.PROMOTE and row.status is not Status.PROCESSING:
            ledger = ledger._replace(owner=0, ended=None)
        if event in GIVES_BACK and lease is not None:
            ledger = ledger._replace(numbers=ledger.numbers & ~(1 << lease.attempt))
        if event is Event.REVIVE and before.status in FINISHED:
            ledger = ledger._replace(numbers=0, ends=0)
        if row.status in FINISHED:
            ledger = ledger._replace(ends=ledger.ends + 1, followed=ledger.followed + before.callback)
        return Job(row, ledger), broken

    def renew(self, job: Job, row: Row, lease: Lease) -> tuple[Job, Promise | None]:
        """Write down that a lease was renewed; say what that broke."""
        return Job(row, job.ledger), None if lease.nonce == job.ledger.owner else Promise.FENCED

    def accept(self, job: Job, event: Event, lease: Lease) -> Promise | None:
        """Say what is broken by telling the holder of `lease` that its end was accepted, though nothing was written."""
        return None if (lease.nonce, event) == (job.ledger.owner, job.ledger.ended) else Promise.TRUTHFUL

    def _broken_by(self, job: Job, event: Event, row: Row, lease: Lease | None) -> Promise | None:
        before, ledger = job
        if lease is not None and lease.nonce != ledger.owner:
            return Promise.FENCED
        if lease is not None and ledger.ended is not None:
            return Promise.ONCE
        if before.status is Status.COMPLETED and row.status is not Status.COMPLETED:
            return Promise.KEPT
        if row.status is Status.COMPLETED and event is not Event.SUCCEED:
            return Promise.EARNED
        if before.status in FINISHED and event is not Event.REVIVE:
            return Promise.FINAL
        if event is Event.BURY and (before.left > 0 or ledger.numbers.bit_count() < self.max_attempts):
            return Promise.PATIENT
        if row.status is Status.CANCELLED and not (event in {Event.CANCEL, Event.ABORT} or before.cancel_requested):
            return Promise.OBEYED
        if before.cancel_requested and event is not Event.REVIVE and row.status in {Status.PENDING, Status.SCHEDULED}:
            return Promise.OBEYED
        return None

    def broken_in(self, job: Job) -> Promise | None:
        """Say what is broken in a job as it stands."""
        row, ledger = job
        spent = ledger.numbers.bit_count()
        over = row.status in FINISHED
        if spent > self.max_attempts:
            return Promise.BOUNDED
        if row.attempts != spent:
            return Promise.COUNTED
        if ledger.ends != over:
            return Promise.FINAL
        if row.dead_letter != (row.status is Status.FAILED):
            return Promise.LETTER
        if ledger.followed > 1 or (over and not ledger.followed):
            return Promise.FOLLOWED
        return None


def ends_by_itself(rules: Rules, row: Row) -> bool:
    """Whether the job comes to an end if from now on whoever takes it dies, and only upkeep goes on."""
    for _ in range(4 * (rules.max_attempts + 1)):
        if row.status in FINISHED:
            return True
        row = row._replace(left=0)
        said = (each for each in (*UPKEEP, Event.RESERVE) if (row.status, each) in TRANSITIONS and rules.may(row, each))
        event = next(said, None)
        if event is None:
            return False
        row = rules.write(row, event, due=False, nonce=1)
    return False
