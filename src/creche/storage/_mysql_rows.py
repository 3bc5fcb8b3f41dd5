"""Values as the literals and JSON documents that MySQL's statements take, and rows as the contract's values.

It runs no statement. What a settlement or a record looks like as columns, all SQL adapters share: see `_rows.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from creche._job import (
    DeadLetter,
    End,
    FollowUp,
    JobRecord,
    Lease,
    NewJob,
    Progress,
    ReservedJob,
    Settlement,
    Status,
)
from creche.storage import _rows
from creche.storage._batches import in_lease_order, lease_order
from creche.storage._mysql_calls import Row
from creche.storage._mysql_literals import Expression, literal, moment_text

_ENCODER: Final = msgspec.json.Encoder()
_NAMES: Final = msgspec.json.Decoder(list[str])
_MICROSECOND: Final = timedelta(microseconds=1)
_NEWEST: Final = b"\xff" * 16

# What makes a row stand in the place of another: its id, its idempotency key, its fingerprint.
BY_ID: Final = 1
BY_KEY: Final = 2
BY_FINGERPRINT: Final = 3
CLAIMS: Final = (BY_ID, BY_KEY, BY_FINGERPRINT)


# --- single values ----------------------------------------------------------------------------------


def microseconds(seconds: float) -> int:
    """Return a duration as columns and intervals have it."""
    return timedelta(seconds=seconds) // _MICROSECOND


def seconds_until(due: int | None) -> float | None:
    """Return the seconds until something is due: 0 if it has been for a while, None if there is nothing."""
    return None if due is None else max(0, due) / 1_000_000


def page_end(before: UUID | None) -> UUID | bytes:
    """Return the id that a page's ids are below: of the last row of the page before, or one above all."""
    return _NEWEST if before is None else before


def document(elements: Sequence[object]) -> str:
    """Return what JSON_TABLE turns into rows."""
    return _tame(_ENCODER.encode(elements).decode())


def _tame(text: str) -> str:
    """Return the same JSON without a quote after a backslash, for which a literal would have to be in hexadecimal: as a
    whole, and twice as long. No such backslash belongs to that quote, for JSON escapes none.
    """
    return text.replace("\\'", "\\\\u0027")


def callbacks_document(callbacks: Iterable[FollowUp]) -> str | None:
    """Return the column `callbacks`, NULL if there are none."""
    text = _rows.callbacks_json(callbacks)
    return None if text is None else _tame(text)


# --- what goes in -----------------------------------------------------------------------------------


def is_plain(job: NewJob) -> bool:
    """Return whether a job has no name but its id, and its status needs no clock."""
    return job.idempotency_key is None and job.fingerprint is None and job.available_at is None


def plain_status(job: NewJob) -> str:
    """Return the status in which a job is inserted whose delay is known."""
    return "scheduled" if microseconds(job.delay) else "pending"


def job_row(job: NewJob, now: Expression, *, anywhere: bool = False) -> str:
    """Return a job as a row of `insert.sql`; `anywhere`: see `literal`."""
    delay = microseconds(job.delay)
    if job.available_at is not None:
        due = Expression(literal(job.available_at))
        status: object = Expression(f"IF({due} > {now}, 'scheduled', 'pending')")
    else:
        due = Expression(f"{now} + INTERVAL {delay} MICROSECOND") if delay else now
        status = plain_status(job)
    columns = (
        job.id,
        job.queue_name,
        job.type,
        job.payload.decode(),
        status,
        job.priority,
        job.max_attempts,
        due,
        job.idempotency_key,
        job.fingerprint,
        job.fingerprint is not None,
        None if job.result_ttl is None else microseconds(job.result_ttl),
        "[]",
        callbacks_document(job.callbacks),
        _rows.origin_json(job.origin),
        now,
        now,
    )
    return f"({literal(columns, anywhere=anywhere)})"


def asked_element(place: int, job: NewJob, claims: Collection[int] = CLAIMS) -> str:
    """Return what `find_standing.sql` looks for: the claims that are of interest."""
    by_id, by_key, by_fingerprint = (claim in claims for claim in CLAIMS)
    return document_element(
        {
            "place": place,
            "id": job.id.hex if by_id else None,
            "queue_name": job.queue_name,
            "idempotency_key": job.idempotency_key if by_key else None,
            "fingerprint": job.fingerprint.hex() if job.fingerprint is not None and by_fingerprint else None,
        }
    )


def settlement_element(settlement: Settlement) -> str:
    """Return one settlement of `settle.sql`."""
    columns, lease = _rows.settlement_columns(settlement), settlement.lease
    return document_element(
        {
            "id": lease.job_id.hex,
            "token": lease.token,
            "nonce": lease.nonce,
            "status": columns.status,
            "goes_on": int(columns.goes_on),
            "gives_back": int(columns.gives_back),
            "due": int(columns.due),
            "delay": microseconds(columns.delay),
            "available_at": None if columns.available_at is None else moment_text(columns.available_at),
            "result": columns.result,
            "error": columns.error,
            "last_error": columns.last_error,
        }
    )


def settlement_elements(settlements: Iterable[Settlement]) -> Sequence[str]:
    """Return the settlements of `settle.sql`, sorted: rows are locked in one order."""
    return [settlement_element(settlement) for settlement in in_lease_order(settlements)]


def document_element(columns: dict[str, Any]) -> str:
    """Return one element of a document that is put together later."""
    return _tame(_ENCODER.encode(columns).decode())


def joined(elements: Iterable[str]) -> str:
    """Return the document of these elements."""
    return f"[{','.join(elements)}]"


def leases_document(leases: Iterable[Lease], progress: Mapping[Lease, Progress] | None = None) -> str:
    """Return the leases of `extend.sql`, sorted: rows are locked in one order."""
    return document([_extended(lease, (progress or {}).get(lease)) for lease in sorted(leases, key=lease_order)])


def _extended(lease: Lease, progress: Progress | None) -> dict[str, Any]:
    element: dict[str, Any] = {"id": lease.job_id.hex, "token": lease.token, "nonce": lease.nonce}
    if progress is not None:
        element |= {"progress": float(progress.fraction), "message": progress.message}
    return element


def is_lease(leases: Iterable[Lease]) -> Expression:
    """Return the condition that a row has one of these leases still."""
    jobs = defaultdict[tuple[int, int], list[UUID]](list)
    for lease in leases:
        jobs[lease.token, lease.nonce].append(lease.job_id)
    fenced = (f"token = {token} AND nonce = {nonce} AND id IN ({literal(ids)})" for (token, nonce), ids in jobs.items())
    return Expression(f"({' OR '.join(fenced)})")


def is_one_of(ids: Iterable[UUID]) -> Expression:
    """Return the condition that a row is one of these."""
    return Expression(f"id IN ({literal(ids)})")


def every(*conditions: Expression) -> Expression:
    """Return the condition that all of these hold."""
    return Expression(" AND ".join(conditions))


# --- what comes out ---------------------------------------------------------------------------------


def lease(row: Row) -> Lease:
    """Return the lease that a row begins with."""
    return Lease(job_id=UUID(bytes=row[0]), token=row[1], nonce=row[2])


def statuses(rows: Iterable[Row]) -> dict[UUID, Status]:
    """Return rows that begin with an id and a status."""
    return {UUID(bytes=row[0]): Status(row[1]) for row in rows}


def holders(rows: Iterable[Row]) -> set[str]:
    """Return the names of those who hold jobs in rows of `statuses.sql`."""
    return {row[2].decode() for row in rows if row[2] is not None}


def in_turn(claimed: Iterable[Row]) -> Sequence[Row]:
    """Return rows of `claim.sql` in the order in which they are to start: what is locked by ids comes in any."""
    return sorted(claimed, key=lambda row: (-row[5], row[9], row[0]))


def reserved_job(row: Row, nonce: int) -> ReservedJob:
    """Return a row of `claim.sql` as `reserve.sql` has left it."""
    job_id, token, queue_name, job_type, payload, priority, attempts, max_attempts, created_at, _, origin = row
    return ReservedJob(
        lease=Lease(job_id=UUID(bytes=job_id), token=token + 1, nonce=nonce),
        queue_name=queue_name.decode(),
        type=job_type.decode(),
        payload=payload.encode(),
        priority=priority,
        attempt=attempts + 1,
        max_attempts=max_attempts,
        created_at=_aware(created_at),
        origin=_rows.origin(origin),
    )


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


def _moment(moment: datetime | None) -> datetime | None:
    return None if moment is None else _aware(moment)


def _name(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def record(row: Row) -> JobRecord:
    """Return a row of `find.sql` or `list.sql`."""
    columns = dict(zip(_RECORD, row, strict=True))
    return _rows.job_record(
        {
            **columns,
            "id": UUID(bytes=columns["id"]),
            **{name: _name(columns[name]) for name in ("queue_name", "type", "idempotency_key", "locked_by")},
            **{name: _text(columns[name]) for name in ("payload", "result")},
            **{name: _moment(columns[name]) for name in _MOMENTS},
        }
    )


_RECORD: Final = (
    "id", "queue_name", "type", "payload", "status", "priority", "attempts", "max_attempts", "available_at",
    "locked_until", "locked_by", "errors", "idempotency_key", "fingerprint", "cancel_requested", "created_at",
    "updated_at", "completed_at", "result", "result_expires_at", "progress", "progress_message", "origin",
)  # fmt: skip
_MOMENTS: Final = ("available_at", "locked_until", "created_at", "updated_at", "completed_at", "result_expires_at")


def ends(rows: Iterable[Row]) -> dict[UUID, End | None]:
    """Return the rows of `watch.sql`."""
    return {UUID(bytes=job_id): _rows.end(status, result, errors) for job_id, status, result, errors in rows}


def woken(rows: Iterable[Row]) -> set[str]:
    """Return the names in the rows of `followed.sql`."""
    names: set[str] = set()
    for queues, watchers in rows:
        names.update(_NAMES.decode(queues) if queues else ())
        names.update(bytes.fromhex(name).decode() for name in (_NAMES.decode(watchers) if watchers else ()))
    return names


def dead_letter(row: Row) -> DeadLetter:
    """Return a row of `dead_letters.sql`."""
    job_id, queue_name, job_type, payload, priority, attempts, max_attempts, created_at, buried_at, errors = row
    return _rows.dead_letter(
        {
            "job_id": UUID(bytes=job_id),
            "queue_name": queue_name.decode(),
            "type": job_type.decode(),
            "payload": payload.encode(),
            "priority": priority,
            "attempts": attempts,
            "max_attempts": max_attempts,
            "created_at": _aware(created_at),
            "buried_at": _aware(buried_at),
            "errors": errors,
        }
    )
