"""Values to SQLite's columns and back: ids as text, times as microseconds, sets as JSON arrays. It runs no statement.

What operators see of queues and workers stands in `_sqlite_views.py`; what SQL adapters write alike, in `_rows.py`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from creche._job import (
    ERRORS_KEPT,
    FINISHED,
    WAKE_HORIZON,
    DeadLetter,
    End,
    FollowUp,
    Insertion,
    JobRecord,
    Lease,
    NewJob,
    Progress,
    ReservedJob,
    Retention,
    Settlement,
    Status,
)
from creche.storage import _rows

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CHUNK: Final = 16 << 20  # characters
_HORIZON: Final = int(WAKE_HORIZON * 1_000_000)


# --- single values ----------------------------------------------------------------------------------


def moment(now: datetime | None) -> int:
    """Return `now`, or the host's clock: SQLite has no other. Called with the write lock held."""
    return time.time_ns() // 1_000 if now is None else (now - _EPOCH) // _MICROSECOND


def microseconds(seconds: float) -> int:
    """Return a duration as columns keep it."""
    return timedelta(seconds=seconds) // _MICROSECOND


def array(values: Iterable[object]) -> str:
    """Return what `json_each` turns into rows: dicts become objects, everything else text."""
    return msgspec.json.encode([value if isinstance(value, dict) else str(value) for value in values]).decode()


def choice(values: Iterable[object] | None) -> str | None:
    """Return a filter's array; None takes all."""
    return None if values is None else array(values)


def chunks(columns: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """Cut a batch so that each part's JSON stays far below what SQLite takes as one value."""
    chunk: list[dict[str, Any]] = []
    size = 0
    for row in columns:
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if chunk and size > _CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
    if chunk:
        yield chunk


def until(due: Iterable[int | None], now: int) -> float | None:
    """Return the seconds until the earliest of some moments, 0 if it is over, None if there is none."""
    earliest = min((at for at in due if at is not None), default=None)
    return None if earliest is None else max(0, earliest - now) / 1_000_000


def soon(due_at: int, now: int) -> bool:
    """Whether a job that is due then is worth a wake now."""
    return due_at - now < _HORIZON


def wakes(row: sqlite3.Row, now: int) -> bool:
    """Whether a job that has just been settled is ready again, or soon."""
    return Status(row["status"]).active and soon(row["available_at"], now)


def instant(value: int) -> datetime:
    """Return a moment as columns keep it."""
    return _EPOCH + value * _MICROSECOND


# --- what goes in -----------------------------------------------------------------------------------


def job_columns(job: NewJob, now: int) -> dict[str, Any]:
    """Return one element of what `insert` takes, and the parameters of `find_standing`."""
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
        "fingerprint": None if job.fingerprint is None else job.fingerprint.hex(),
        "result_ttl": None if job.result_ttl is None else microseconds(job.result_ttl),
        "callbacks": _rows.callbacks_json(job.callbacks),
        "origin": _rows.origin_json(job.origin),
    }


def joined_callbacks(recorded: str | None, more: Iterable[FollowUp], written: Collection[str]) -> str | None:
    """Return the column `callbacks` with more in it; None if there is nothing new.

    Args:
        recorded: the column.
        more: what is to be there too.
        written: the ids of those that are jobs already.
    """
    document: dict[str, list[dict[str, Any]]] = {} if recorded is None else msgspec.json.decode(recorded)
    known = {each["id"] for listed in document.values() for each in listed}.union(written)
    new = [each for each in more if str(each.id) not in known]
    for on, listed in _rows.callbacks_document(new).items():
        document.setdefault(on, []).extend(listed)
    return msgspec.json.encode(document).decode() if new else None


def lease_columns(held: Lease) -> dict[str, Any]:
    """Return what every fenced statement compares."""
    return {"id": str(held.job_id), "token": held.token, "nonce": held.nonce}


def renewal_columns(held: Lease, progress: Progress | None) -> dict[str, Any]:
    """Return one element of what `extend` takes."""
    if progress is None:
        return lease_columns(held)
    return {**lease_columns(held), "progress": float(progress.fraction), "progress_message": progress.message}


def failing_columns(now: int) -> dict[str, Any]:
    """Return what statements need that add to a row's errors."""
    return {"now": now, "failed_at": instant(now).isoformat(), "errors_kept": ERRORS_KEPT}


def settlement_columns(settlement: Settlement, now: int) -> dict[str, Any]:
    """Return one element of what `settle` and `settled_before` take."""
    columns = _rows.settlement_columns(settlement)
    due = now + microseconds(columns.delay) if columns.available_at is None else moment(columns.available_at)
    return {
        **lease_columns(settlement.lease),
        "status": columns.status,
        "due_at": due if columns.due else None,
        "gives_back": columns.gives_back,
        "goes_on": columns.goes_on,
        "result": columns.result,
        "error": columns.error,
        "last_error": columns.last_error,
    }


def retention_columns(retention: Retention) -> dict[str, int]:
    """Return what `prune` and `set_retention` take."""
    return {str(status): microseconds(getattr(retention, status)) for status in FINISHED}


# --- what comes out ---------------------------------------------------------------------------------


def lease(row: sqlite3.Row) -> Lease:
    """Return the lease that a row of `reserve` or `extend` is under."""
    return Lease(job_id=UUID(row["id"]), token=row["token"], nonce=row["nonce"])


def inserted(job: NewJob, status: str) -> Insertion:
    """Return the answer to a job whose row is new."""
    return Insertion(job_id=job.id, status=Status(status), inserted=True, fingerprint=job.fingerprint)


def standing_columns(row: Sequence[Any]) -> Mapping[str, Any]:
    """Return a row of `find_standing` by name: a caller's connection names nothing."""
    return dict(zip(("id", "status", "fingerprint", "result", "queue_name", "callbacks"), row, strict=True))


def standing(job: NewJob, row: Mapping[str, Any]) -> Insertion:
    """Return the answer to a job in whose place a row stands."""
    job_id = UUID(row["id"])
    return Insertion(
        job_id=job_id,
        status=Status(row["status"]),
        inserted=job_id == job.id,
        fingerprint=None if row["fingerprint"] is None else bytes.fromhex(row["fingerprint"]),
        result=None if row["result"] is None else row["result"].encode(),
    )


def reserved(row: sqlite3.Row) -> ReservedJob:
    """Return a row of `reserve`."""
    return ReservedJob(
        lease=lease(row),
        queue_name=row["queue_name"],
        type=row["type"],
        payload=row["payload"].encode(),
        priority=row["priority"],
        attempt=row["attempts"],
        max_attempts=row["max_attempts"],
        created_at=instant(row["created_at"]),
        origin=_rows.origin(row["origin"]),
    )


def ended(changed: Iterable[sqlite3.Row]) -> set[UUID]:
    """Return those jobs that a change has ended."""
    return {UUID(row["id"]) for row in changed if not Status(row["status"]).active}


def requests(found: Iterable[sqlite3.Row]) -> frozenset[tuple[str, str, int]]:
    """Return the rows of `asked`."""
    return frozenset((row["locked_by"], row["id"], row["token"]) for row in found)


def end(row: sqlite3.Row) -> End | None:
    """Return a row of `watch`."""
    return _rows.end(row["status"], None if row["result"] is None else row["result"].encode(), row["errors"])


def record(row: sqlite3.Row) -> JobRecord:
    """Return a row of `find` or `list`."""
    return _rows.job_record(_plain(row))


def dead_letter(row: sqlite3.Row) -> DeadLetter:
    """Return a row of `dead_letters`."""
    return _rows.dead_letter(_plain(row))


_READERS: Final[Mapping[str, Callable[[Any], object]]] = {
    **dict.fromkeys(("id", "job_id"), UUID),
    **dict.fromkeys(("payload", "result"), str.encode),
    "fingerprint": bytes.fromhex,
    **dict.fromkeys(
        ("available_at", "locked_until", "created_at", "updated_at", "completed_at", "buried_at", "result_expires_at"),
        instant,
    ),
}


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    return {
        name: value if value is None or name not in _READERS else _READERS[name](value)
        for name, value in zip(row.keys(), row, strict=True)
    }
