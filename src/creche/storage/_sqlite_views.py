"""What operators see of queues and workers, read off SQLite's rows. It runs no statement and reads no clock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from uuid import UUID

from creche._job import QueueStats, Retention, RunningJob, Status, WorkerRecord
from creche.storage import _rows
from creche.storage._presences import decode_presence
from creche.storage._sqlite_rows import instant


def stats(found: Iterable[sqlite3.Row], now: int) -> Sequence[QueueStats]:
    """Return the rows of `stats`, one for each state and one for what is said of a queue, as one for each queue."""
    by_queue: dict[str, list[sqlite3.Row]] = {}
    for row in found:
        by_queue.setdefault(row["queue_name"], []).append(row)
    return [_queue_stats(queue, by_queue[queue], now) for queue in sorted(by_queue)]


def _queue_stats(queue_name: str, found: Sequence[sqlite3.Row], now: int) -> QueueStats:
    said = next((row for row in found if row["status"] is None), None)
    oldest = next((row["oldest"] for row in found if row["oldest"] is not None), None)
    return QueueStats(
        queue_name=queue_name,
        counts={Status(row["status"]): row["jobs"] for row in found if row["status"] is not None},
        oldest_ready=None if oldest is None else max(0, now - oldest) / 1_000_000,
        finished=sum(row["just_finished"] for row in found),
        paused_at=None if said is None or said["paused_at"] is None else instant(said["paused_at"]),
        retention=None if said is None or said["keep_completed"] is None else _retention(said),
    )


def _retention(row: sqlite3.Row) -> Retention:
    return Retention(
        completed=row["keep_completed"] / 1_000_000,
        failed=row["keep_failed"] / 1_000_000,
        cancelled=row["keep_cancelled"] / 1_000_000,
    )


def workers(there: Iterable[sqlite3.Row], running: Iterable[sqlite3.Row], now: int) -> Sequence[WorkerRecord]:
    """Return the rows of `workers`, each with those of `running` that it holds."""
    held: dict[str, list[RunningJob]] = {}
    for row in running:
        held.setdefault(row["locked_by"], []).append(_running(row, now))
    return [
        WorkerRecord(
            presence=decode_presence(row["presence"]),
            started_at=instant(row["started_at"]),
            seen_at=instant(row["seen_at"]),
            jobs=sorted(held.get(row["name"], []), key=lambda job: job.job_id),
        )
        for row in there
    ]


def _running(row: sqlite3.Row, now: int) -> RunningJob:
    return RunningJob(
        job_id=UUID(row["id"]),
        queue_name=row["queue_name"],
        type=row["type"],
        attempt=row["attempts"],
        lease_left=(row["locked_until"] - now) / 1_000_000,
        progress=_rows.progress(row["progress"], row["progress_message"]),
    )
