"""Values to SQLite's columns and back: ids as text, times as microseconds, sets as JSON arrays. It runs no statement.

What both SQL adapters write alike stands in `_rows.py`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from creche._job import (
    ERRORS_KEPT,
    WAKE_HORIZON,
    DeadLetter,
    Insertion,
    JobRecord,
    Lease,
    NewJob,
    ReservedJob,
    Settlement,
    Status,
)
from creche.storage import _rows

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_HORIZON: Final = int(WAKE_HORIZON * 1_000_000)


# --- single values ----------------------------------------------------------------------------------


def moment(now: datetime | None) -> int:
    """Return `now`, or the host's clock: SQLite has no other. Called with the write lock held."""
    return time.time_ns() // 1_000 if now is None else (now - _EPOCH) // _MICROSECOND


def microseconds(seconds: float) -> int:
    """Return a duration as columns keep it."""
    return timedelta(seconds=seconds) // _MICROSECOND


def array(values: Iterable[object] | None) -> str | None:
    """Return what `json_each` turns into rows; None, which a filter takes for "all"."""
    return None if values is None else json.dumps([str(value) for value in values])


def until(due: Iterable[int | None], now: int) -> float | None:
    """Return the seconds until the earliest of some moments, 0 if it is over, None if there is none."""
    earliest = min((at for at in due if at is not None), default=None)
    return None if earliest is None else max(0, earliest - now) / 1_000_000


def soon(due_at: int, now: int) -> bool:
    """Whether a job that is due then is worth a wake now."""
    return due_at - now < _HORIZON


def _datetime(value: int) -> datetime:
    return _EPOCH + value * _MICROSECOND


# --- what goes in -----------------------------------------------------------------------------------


def job_columns(job: NewJob, now: int) -> dict[str, Any]:
    """Return the parameters of `insert`, `find_standing` and `expire_results`."""
    due = now + microseconds(job.delay) if job.available_at is None else moment(job.available_at)
    return {
        "id": str(job.id),
        "queue_name": job.queue_name,
        "type": job.type,
        "payload": job.payload.decode(),
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "available_at": due,
        "idempotency_key": job.idempotency_key,
        "fingerprint": job.fingerprint,
        "result_ttl": None if job.result_ttl is None else microseconds(job.result_ttl),
        "now": now,
    }


def lease_columns(lease: Lease) -> dict[str, Any]:
    """Return what every fenced statement compares."""
    return {"id": str(lease.job_id), "token": lease.token, "nonce": lease.nonce}


def failing_columns(now: int) -> dict[str, Any]:
    """Return what statements need that add to a row's errors."""
    return {"now": now, "failed_at": _datetime(now).isoformat(), "errors_kept": ERRORS_KEPT}


def settlement_columns(settlement: Settlement, now: int) -> dict[str, Any]:
    """Return the parameters of `settle`, `settled_before` and `write_dead_letter`."""
    columns = _rows.settlement_columns(settlement)
    due = now + microseconds(columns.delay) if columns.available_at is None else moment(columns.available_at)
    return {
        **lease_columns(settlement.lease),
        **failing_columns(now),
        "status": columns.status,
        "due_at": due if columns.due else None,
        "gives_back": columns.gives_back,
        "goes_on": columns.goes_on,
        "result": columns.result,
        "error": columns.error,
        "last_error": columns.last_error,
    }


# --- what comes out ---------------------------------------------------------------------------------


def inserted(job: NewJob, status: str) -> Insertion:
    """Return the answer to a job whose row is new."""
    return Insertion(job_id=job.id, status=Status(status), inserted=True, fingerprint=job.fingerprint)


def standing(job: NewJob, row: sqlite3.Row) -> Insertion:
    """Return the answer to a job in whose place a row stands."""
    job_id = UUID(row["id"])
    return Insertion(
        job_id=job_id,
        status=Status(row["status"]),
        inserted=job_id == job.id,
        fingerprint=row["fingerprint"],
        result=None if row["result"] is None else row["result"].encode(),
    )


def reserved(row: sqlite3.Row) -> ReservedJob:
    """Return a row of `reserve`."""
    return ReservedJob(
        lease=Lease(job_id=UUID(row["id"]), token=row["token"], nonce=row["nonce"]),
        queue_name=row["queue_name"],
        type=row["type"],
        payload=row["payload"].encode(),
        priority=row["priority"],
        attempt=row["attempts"],
        max_attempts=row["max_attempts"],
        created_at=_datetime(row["created_at"]),
    )


def record(row: sqlite3.Row) -> JobRecord:
    """Return a row of `find` or `list`."""
    return _rows.job_record(_plain(row))


def dead_letter(row: sqlite3.Row) -> DeadLetter:
    """Return a row of `dead_letters`."""
    return _rows.dead_letter(_plain(row))


_READERS: Final[Mapping[str, Callable[[Any], object]]] = {
    **dict.fromkeys(("id", "job_id"), UUID),
    **dict.fromkeys(("payload", "result"), str.encode),
    **dict.fromkeys(
        ("available_at", "locked_until", "created_at", "updated_at", "completed_at", "buried_at", "result_expires_at"),
        _datetime,
    ),
}


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    return {
        name: value if value is None or name not in _READERS else _READERS[name](value)
        for name, value in zip(row.keys(), row, strict=True)
    }
