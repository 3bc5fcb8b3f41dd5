"""Batches as the JSON documents that PostgreSQL's statements take, and rows as the values that the contract gives.

It runs no statement. What a settlement or a record looks like as columns, all SQL adapters share: see `_rows.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import msgspec

from creche._job import Event, FollowUp, Lease, NewJob, Progress, ReservedJob, Settlement, Status
from creche._lifecycle import TRANSITIONS
from creche.storage._batches import in_lease_order, lease_order
from creche.storage._postgresql_calls import Row
from creche.storage._rows import callbacks_document, origin, origin_json, settlement_columns

_ENCODER: Final = msgspec.json.Encoder()
_COMPLETED: Final = str(TRANSITIONS[Status.PROCESSING, Event.SUCCEED])


def _document(elements: list[dict[str, Any]]) -> str:
    return _ENCODER.encode(elements).decode()


def jobs_document(jobs: Iterable[NewJob]) -> str:
    """Return `insert.sql`'s jobs, which `find_standing.sql` and `expire_results.sql` read as well."""
    return _document([_job(job) for job in jobs])


def _job(job: NewJob) -> dict[str, Any]:
    element: dict[str, Any] = {
        "id": job.id,
        "queue_name": job.queue_name,
        "type": job.type,
        "payload": job.payload.decode(),
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "delay": job.delay,
        "available_at": job.available_at,
        "idempotency_key": job.idempotency_key,
        "fingerprint": None if job.fingerprint is None else f"\\x{job.fingerprint.hex()}",
        "result_ttl": job.result_ttl,
    }
    # What few jobs have: a key that is not there is NULL.
    if job.refresh:
        element["refresh"] = True
    if job.callbacks:
        element["callbacks"] = callbacks_document(job.callbacks)
    if job.origin is not None:
        element["origin"] = msgspec.Raw((origin_json(job.origin) or "null").encode())
    return element


def joins_document(joins: Mapping[UUID, Iterable[FollowUp]]) -> str:
    """Return the callbacks of `attach.sql`, by the job that they are for."""
    return _document([{"id": job_id, "callbacks": callbacks_document(each)} for job_id, each in joins.items()])


def leases_document(leases: Iterable[Lease], progress: Mapping[Lease, Progress] | None = None) -> str:
    """Return the leases of `extend.sql` and `settled_before.sql`, sorted: rows are locked in one order."""
    elements: list[dict[str, Any]] = []
    for lease in sorted(leases, key=lease_order):
        element: dict[str, Any] = {"id": lease.job_id, "token": lease.token, "nonce": lease.nonce}
        if progress and (said := progress.get(lease)):
            element |= {"progress": said.fraction, "progress_message": said.message}
        elements.append(element)
    return _document(elements)


def settlements_document(settlements: Iterable[Settlement], *, followed: bool = False) -> str:
    """Return the settlements of `settle.sql`, sorted: rows are locked in one order.

    Args:
        settlements: which.
        followed: `follow_up.sql` comes next, so also jobs with callbacks can be ended.
    """
    elements: list[dict[str, Any]] = []
    for settlement in in_lease_order(settlements):
        lease = settlement.lease
        if settlement.event is Event.SUCCEED:  # what nearly all are; a key that is not there is NULL
            element = {"id": lease.job_id, "token": lease.token, "nonce": lease.nonce, "status": _COMPLETED}
            if settlement.result is not None:
                element["result"] = settlement.result.decode()
            if followed:
                element["followed"] = True
            elements.append(element)
            continue
        columns = settlement_columns(settlement)
        elements.append(
            {
                "id": lease.job_id,
                "token": lease.token,
                "nonce": lease.nonce,
                "status": columns.status,
                "goes_on": columns.goes_on,
                "gives_back": columns.gives_back,
                "due": columns.due,
                "delay": columns.delay,
                "available_at": columns.available_at,
                "result": columns.result,
                "error": columns.error,
                "last_error": columns.last_error,
                "followed": followed,
            }
        )
    return _document(elements)


def by_lease(rows: Iterable[Row]) -> dict[Lease, Any]:
    """Return what comes after the three columns of a lease, by lease."""
    return {Lease(job_id=row[0], token=row[1], nonce=row[2]): row[3:] for row in rows}


def seconds_until(due: float | None) -> float | None:
    """Return how long it is until something is due: 0 if it has been for a while, None if there is nothing."""
    return None if due is None else max(0.0, due)


def texts(names: Collection[str] | None) -> list[str] | None:
    """Return an array, or None for "whatever they are"."""
    return None if names is None else sorted(names)


@lru_cache(256)
def array(names: tuple[str, ...] | None) -> str | None:
    """Return an array as PostgreSQL reads it from a text, or None for "whatever they are". A reserve has the same ones
    each time, and psycopg would look at each name of a list.
    """
    if names is None:
        return None
    quoted = ['"' + name.replace("\\", r"\\").replace('"', r"\"") + '"' for name in names]
    return "{" + ",".join(quoted) + "}"


def reserved_job(row: Row, nonce: int) -> ReservedJob:
    """Return a row of `reserve.sql`."""
    _, job_id, token, queue_name, job_type, payload, priority, attempts, max_attempts, created_at, followed = row
    return ReservedJob(
        lease=Lease(job_id=job_id, token=token, nonce=nonce),
        queue_name=queue_name,
        type=job_type,
        payload=payload,
        priority=priority,
        attempt=attempts,
        max_attempts=max_attempts,
        created_at=created_at.astimezone(UTC),
        origin=origin(followed),
    )


def plain(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row with its times in UTC, whatever the session's time zone is."""
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in row.items()}
