"""What operators see: rows of PostgreSQL as queues and workers. It runs no statement."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter

from creche._job import QueueStats, Retention, RunningJob, Status, WorkerRecord
from creche.storage._postgresql_calls import Row
from creche.storage._presences import decode_presence
from creche.storage._rows import progress


def queue_stats(rows: Sequence[Row]) -> Sequence[QueueStats]:
    """Return the rows of `stats.sql`, by queue: one for each state that its jobs are in, or one without a state."""
    return [_queue(name, list(group)) for name, group in groupby(rows, itemgetter(0))]


def _queue(name: str, rows: Sequence[Row]) -> QueueStats:
    _, _, _, _, _, paused_at, *kept = rows[0]
    counted = [(Status(status), jobs, ready, finished) for _, status, jobs, ready, finished, *_ in rows if status]
    return QueueStats(
        queue_name=name,
        counts={status: jobs for status, jobs, _, _ in counted},
        oldest_ready=next((ready for status, _, ready, _ in counted if status is Status.PENDING), None),
        finished=sum(finished for _, _, _, finished in counted),
        paused_at=_utc(paused_at),
        retention=_retention(*kept),
    )


def _retention(completed: float | None, failed: float | None, cancelled: float | None) -> Retention | None:
    if completed is None or failed is None or cancelled is None:
        return None
    return Retention(completed=completed, failed=failed, cancelled=cancelled)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


def worker_records(rows: Sequence[Row]) -> Sequence[WorkerRecord]:
    """Return the rows of `workers.sql`, by worker: one for each job that it holds, or one without a job."""
    return [_worker(list(group)) for _, group in groupby(rows, itemgetter(0))]


def _worker(rows: Sequence[Row]) -> WorkerRecord:
    presence, started_at, seen_at, *_ = rows[0]
    return WorkerRecord(
        presence=decode_presence(presence),
        started_at=started_at.astimezone(UTC),
        seen_at=seen_at.astimezone(UTC),
        jobs=[_running(row) for row in rows if row[3] is not None],
    )


def _running(row: Row) -> RunningJob:
    _, _, _, job_id, queue_name, job_type, attempts, lease_left, fraction, message = row
    return RunningJob(
        job_id=job_id,
        queue_name=queue_name,
        type=job_type,
        attempt=attempts,
        lease_left=lease_left,
        progress=progress(fraction, message),
    )
