"""What people say of queues, and workers of themselves, on MySQL: the statements, and rows as the contract's values.

It sends nothing, and wakes nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from attrs import define, field

from creche._job import Presence, QueueStats, Retention, RunningJob, Status, WorkerRecord
from creche.storage import _rows
from creche.storage._mysql_calls import Row
from creche.storage._mysql_literals import Expression, Render, literal
from creche.storage._mysql_rows import microseconds, seconds_until
from creche.storage._presences import decode_presence, encode_presence

# --- statements -------------------------------------------------------------------------------------


def pausing(render: Render, queues: Collection[str], *, now: Expression) -> str:
    """Return the statement that pauses queues. Sorted: rows are locked in one order."""
    paused = Expression(", ".join(f"({literal((queue, now))})" for queue in sorted(set(queues))))
    return render("pause", paused=paused, now=now)


def resuming(render: Render, queues: Collection[str]) -> Sequence[str]:
    """Return the statements that end a pause."""
    names = sorted(set(queues))
    return [render("resume", queues=names), render("forget_queues", queues=names)]


def keeping(render: Render, queue: str, retention: Retention | None) -> Sequence[str]:
    """Return the statements that give a queue a retention of its own, or take it away."""
    if retention is None:
        return [render("keep_as_told", queue=queue), render("forget_queues", queues=[queue])]
    return [render("keep", queue=queue, **kept(retention))]


def kept(retention: Retention) -> dict[str, int]:
    """Return for how many microseconds jobs are kept, by their status."""
    return {
        status.value: microseconds(getattr(retention, status.value))
        for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
    }


def announcing(render: Render, presence: Presence, ttl: float, *, now: Expression) -> str:
    """Return the statement that notes a worker."""
    text = encode_presence(presence)
    return render("announce", name=presence.name, presence=text, ttl=microseconds(ttl), now=now)


# --- rows -------------------------------------------------------------------------------------------


@define
class _Standing:
    counts: dict[Status, int] = field(factory=dict[Status, int])
    oldest_ready: float | None = None
    finished: int = 0
    paused_at: datetime | None = None
    retention: Retention | None = None


def queue_stats(counted: Iterable[Row], said: Iterable[Row]) -> Sequence[QueueStats]:
    """Return the rows of `stats.sql` and of `queues.sql`."""
    standing: dict[str, _Standing] = defaultdict(_Standing)
    for queue, status, jobs, waiting, finished in counted:
        each = standing[queue.decode()]
        each.counts[Status(status)] = jobs
        each.finished += finished
        if waiting is not None:
            each.oldest_ready = seconds_until(waiting)
    for queue, paused_at, *keep in said:
        each = standing[queue.decode()]
        each.paused_at = None if paused_at is None else paused_at.replace(tzinfo=UTC)
        each.retention = _retention(*keep)
    return [
        QueueStats(
            queue_name=queue,
            counts=each.counts,
            oldest_ready=each.oldest_ready,
            finished=each.finished,
            paused_at=each.paused_at,
            retention=each.retention,
        )
        for queue, each in sorted(standing.items())
    ]


def _retention(completed: int | None, failed: int | None, cancelled: int | None) -> Retention | None:
    if completed is None or failed is None or cancelled is None:
        return None
    return Retention(completed=completed / 1e6, failed=failed / 1e6, cancelled=cancelled / 1e6)


def worker_records(present: Iterable[Row], running: Iterable[Row]) -> Sequence[WorkerRecord]:
    """Return the rows of `workers.sql`, with those of `running.sql` that are theirs."""
    held: dict[str, list[RunningJob]] = defaultdict(list)
    for row in running:
        held[row[0].decode()].append(_running(row))
    presences = [(decode_presence(text), started_at, seen_at) for text, started_at, seen_at in present]
    return [
        WorkerRecord(
            presence=presence,
            started_at=started_at.replace(tzinfo=UTC),
            seen_at=seen_at.replace(tzinfo=UTC),
            jobs=sorted(held[presence.name], key=lambda job: job.job_id),
        )
        for presence, started_at, seen_at in presences
    ]


def _running(row: Row) -> RunningJob:
    _, job_id, queue, job_type, attempt, left, fraction, message = row
    return RunningJob(
        job_id=UUID(bytes=job_id),
        queue_name=queue.decode(),
        type=job_type.decode(),
        attempt=attempt,
        lease_left=left / 1e6,
        progress=_rows.progress(fraction, message),
    )
