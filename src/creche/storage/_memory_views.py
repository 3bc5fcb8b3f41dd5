"""What operators see of the memory storage, and what they set in it: queues and workers. It reads no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from attrs import define, field, frozen

from creche._job import (
    RATE_WINDOW,
    JobRecord,
    Presence,
    QueueStats,
    Retention,
    RunningJob,
    Status,
    WorkerRecord,
)

_RATE_WINDOW: Final = timedelta(seconds=RATE_WINDOW)


@define
class Settings:
    """How queues are set; one that nobody has touched is in neither.

    Attributes:
        paused: since when.
        retentions: those that have one of their own.
    """

    paused: dict[str, datetime] = field(factory=dict[str, datetime])
    retentions: dict[str, Retention] = field(factory=dict[str, Retention])

    def kept(self, queue_name: str, status: Status, otherwise: Retention) -> timedelta:
        """Return for how long a queue keeps jobs that ended so."""
        retention = self.retentions.get(queue_name, otherwise)
        return timedelta(seconds=getattr(retention, status))


@frozen(kw_only=True)
class Attendance:
    """A worker as it was announced last."""

    presence: Presence
    started_at: datetime
    seen_at: datetime
    expires_at: datetime


def queue_stats(records: Sequence[JobRecord], settings: Settings, moment: datetime) -> Sequence[QueueStats]:
    """Return how each queue stands of which there is something to say."""
    of: dict[str, list[JobRecord]] = {name: [] for name in settings.paused.keys() | settings.retentions.keys()}
    for record in records:
        of.setdefault(record.queue_name, []).append(record)
    return [
        QueueStats(
            queue_name=queue,
            counts=dict(Counter(record.status for record in of[queue])),
            oldest_ready=_oldest_ready(of[queue], moment),
            finished=sum(_just_finished(record, moment) for record in of[queue]),
            paused_at=settings.paused.get(queue),
            retention=settings.retentions.get(queue),
        )
        for queue in sorted(of)
    ]


def _oldest_ready(records: Sequence[JobRecord], moment: datetime) -> float | None:
    due = [record.available_at for record in records if record.status is Status.PENDING]
    return (moment - min(moment, *due)).total_seconds() if due else None


def _just_finished(record: JobRecord, moment: datetime) -> bool:
    return record.completed_at is not None and record.completed_at + _RATE_WINDOW > moment


def worker_records(
    attendances: Iterable[Attendance], records: Sequence[JobRecord], moment: datetime
) -> Sequence[WorkerRecord]:
    """Return the workers that are there, with what they hold."""
    there = {each.presence.name: each for each in attendances if each.expires_at > moment}
    return [
        WorkerRecord(
            presence=there[name].presence,
            started_at=there[name].started_at,
            seen_at=there[name].seen_at,
            jobs=sorted(
                (_running(record, moment) for record in records if record.locked_by == name),
                key=lambda job: job.job_id,
            ),
        )
        for name in sorted(there)
    ]


def _running(record: JobRecord, moment: datetime) -> RunningJob:
    return RunningJob(
        job_id=record.id,
        queue_name=record.queue_name,
        type=record.type,
        attempt=record.attempts,
        lease_left=((record.locked_until or moment) - moment).total_seconds(),
        progress=record.progress,
    )
