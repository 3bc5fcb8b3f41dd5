"""The rows of the memory storage, and what is read off one. They read no clock and know no other row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from attrs import define, evolve, field

from creche._job import (
    ERRORS_KEPT,
    AttemptError,
    DeadLetter,
    End,
    Failure,
    FollowUp,
    JobRecord,
    Lease,
    NewJob,
    ReservedJob,
    Status,
)


@define(kw_only=True)
class Row:
    """A job's row: its record, and what only the contract looks at."""

    record: JobRecord
    token: int = 0
    nonce: int = 0
    single_flight: bool = False  # this is the job that a dispatch of the same fingerprint joins
    result_ttl: float | None = None
    errors: list[AttemptError] = field(factory=list[AttemptError])
    callbacks: list[FollowUp] = field(factory=list[FollowUp])
    watchers: set[str] = field(factory=set[str])

    def change(self, **changes: object) -> None:
        """Write some fields of the record."""
        self.record = evolve(self.record, **changes)  # type: ignore[arg-type]  # field names are checked by evolve

    def holds(self, lease: Lease) -> bool:
        """Return whether this is the lease that was given out last."""
        return self.token == lease.token and self.nonce == lease.nonce

    def seize(self) -> None:
        """Somebody who doesn't hold the lease changes the row: whoever held it must notice."""
        self.token += 1
        self.nonce = 0

    def keep_error(self, error: Failure, moment: datetime) -> None:
        """Add an error to those that are kept."""
        kept = [*self.errors, AttemptError(attempt=self.record.attempts, failed_at=moment, error=error)]
        self.errors = kept[-ERRORS_KEPT:]
        self.change(last_error=error)


def new_row(job: NewJob, moment: datetime) -> Row:
    """Return the row that a dispatch writes."""
    due = job.available_at or moment + timedelta(seconds=job.delay)
    record = JobRecord(
        id=job.id,
        queue_name=job.queue_name,
        type=job.type,
        payload=job.payload,
        status=Status.SCHEDULED if due > moment else Status.PENDING,
        priority=job.priority,
        attempts=0,
        max_attempts=job.max_attempts,
        available_at=due.astimezone(UTC),
        locked_until=None,
        locked_by=None,
        last_error=None,
        idempotency_key=job.idempotency_key,
        fingerprint=job.fingerprint,
        cancel_requested=False,
        created_at=moment,
        updated_at=moment,
        completed_at=None,
        result=None,
        result_expires_at=None,
        progress=None,
        origin=job.origin,
    )
    return Row(
        record=record,
        single_flight=job.fingerprint is not None,
        result_ttl=job.result_ttl,
        callbacks=[*job.callbacks],
    )


def due_in(row: Row, moment: datetime) -> float:
    """Return the seconds until a job is due; negative since then."""
    return (row.record.available_at - moment).total_seconds()


def reserved(row: Row) -> ReservedJob:
    """Return what a worker gets of a job."""
    record = row.record
    return ReservedJob(
        lease=Lease(job_id=record.id, token=row.token, nonce=row.nonce),
        queue_name=record.queue_name,
        type=record.type,
        payload=record.payload,
        priority=record.priority,
        attempt=record.attempts,
        max_attempts=record.max_attempts,
        created_at=record.created_at,
        origin=record.origin,
    )


def dead_letter(row: Row, moment: datetime) -> DeadLetter:
    """Return the copy of a job that is buried now."""
    record = row.record
    return DeadLetter(
        job_id=record.id,
        queue_name=record.queue_name,
        type=record.type,
        payload=record.payload,
        priority=record.priority,
        attempts=record.attempts,
        max_attempts=record.max_attempts,
        created_at=record.created_at,
        buried_at=moment,
        errors=tuple(row.errors),
    )


def end_of(record: JobRecord) -> End | None:
    """Return how a job ended; None while it is active."""
    if record.status.active:
        return None
    error = record.last_error if record.status is Status.FAILED else None
    return End(status=record.status, result=record.result, error=error)
