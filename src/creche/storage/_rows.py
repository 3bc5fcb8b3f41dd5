"""The shape of a job's row, in words that all SQL adapters share: what a settlement, an error and a record look like as
columns. It knows no engine, runs no statement and reads no clock.

Adapters hand in and get out plain values: UUID, aware datetime, bytes and str. How an engine keeps those is its own
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from attrs import frozen

from creche._job import (
    AttemptError,
    DeadLetter,
    End,
    Failure,
    FollowUp,
    JobRecord,
    Origin,
    Progress,
    Settlement,
    Status,
)
from creche._lifecycle import GIVES_BACK, GOES_ON, TRANSITIONS

SUMMARY_LIMIT: Final = 500


# --- errors -----------------------------------------------------------------------------------------


class _StoredError(msgspec.Struct):
    """One element of the column `errors`: a JSON array, oldest first."""

    attempt: int
    failed_at: datetime  # ISO 8601 with an offset: people read this column too
    type: str
    message: str
    traceback: str = ""


_ERRORS: Final = msgspec.json.Decoder(list[_StoredError])


def failure_json(failure: Failure) -> str:
    """Return a failure as a JSON object: an element of `errors` but for `attempt` and `failed_at`, which the row and
    the database's clock know.
    """
    fields = {"type": failure.type, "message": failure.message, "traceback": failure.traceback}
    return msgspec.json.encode(fields).decode()


def summary(failure: Failure) -> str:
    """Return one line for the column `last_error`, which nothing but people reads."""
    return f"{failure.type}: {failure.message}"[:SUMMARY_LIMIT]


def attempt_errors(text: str | bytes) -> Sequence[AttemptError]:
    """Return the column `errors` as values, oldest first."""
    return tuple(
        AttemptError(
            attempt=stored.attempt,
            failed_at=stored.failed_at,
            error=Failure(type=stored.type, message=stored.message, traceback=stored.traceback),
        )
        for stored in _ERRORS.decode(text)
    )


def last_failure(text: str | bytes) -> Failure | None:
    """Return the newest of the column `errors`."""
    if len(text) <= 2:  # [] is what nearly every row has
        return None
    errors = attempt_errors(text)
    return errors[-1].error if errors else None


# --- callbacks --------------------------------------------------------------------------------------


class _StoredFailure(msgspec.Struct):
    type: str
    message: str
    traceback: str = ""


class _StoredOrigin(msgspec.Struct):
    """The column `origin`: a JSON object."""

    id: UUID
    type: str
    queue_name: str
    status: Status
    error: _StoredFailure | None = None


_ORIGIN: Final = msgspec.json.Decoder(_StoredOrigin)


def callbacks_document(callbacks: Iterable[FollowUp]) -> dict[str, list[dict[str, Any]]]:
    """Return callbacks as the column `callbacks` keeps them: lists by `on`, so that SQL takes a whole list by its name,
    and what is not called for stays. An `on` that nothing has is left out.

    `then` is such an object again, and left out if there is nothing in it.
    """
    document: dict[str, list[dict[str, Any]]] = {}
    for each in callbacks:
        element: dict[str, Any] = {
            "id": str(each.id),
            "type": each.type,
            "queue_name": each.queue_name,
            "priority": each.priority,
            "max_attempts": each.max_attempts,
            "head": each.head,
        }
        if each.tail is not None:
            element["tail"] = each.tail
        if each.then:
            element["then"] = callbacks_document(each.then)
        document.setdefault(each.on.value, []).append(element)
    return document


def callbacks_json(callbacks: Iterable[FollowUp]) -> str | None:
    """Return the column `callbacks`, NULL if there are none."""
    document = callbacks_document(callbacks)
    return msgspec.json.encode(document).decode() if document else None


def origin_json(origin: Origin | None) -> str | None:
    """Return the column `origin`, which follow_up.sql writes alike."""
    if origin is None:
        return None
    error = origin.error
    fields: dict[str, Any] = {
        "id": origin.job_id,
        "type": origin.type,
        "queue_name": origin.queue_name,
        "status": origin.status.value,
    }
    if error is not None:
        fields["error"] = {"type": error.type, "message": error.message, "traceback": error.traceback}
    return msgspec.json.encode(fields).decode()


def origin(text: str | bytes | None) -> Origin | None:
    """Return the column `origin` as a value."""
    if text is None:
        return None
    stored = _ORIGIN.decode(text)
    error = stored.error
    return Origin(
        job_id=stored.id,
        type=stored.type,
        queue_name=stored.queue_name,
        status=stored.status,
        error=None if error is None else Failure(type=error.type, message=error.message, traceback=error.traceback),
    )


# --- settlements ------------------------------------------------------------------------------------


@frozen(kw_only=True)
class SettlementColumns:
    """One settlement as the parameters of `settle.sql`: what `creche._lifecycle` says, so that SQL need not.

    Attributes:
        status: the state that follows, unless the row says otherwise: a job that goes on and whose cancellation was
            asked for is `cancelled`, and a `scheduled` one that is due already is `pending`.
        due: `available_at` is set: to the moment, or else to the delay from the database's now.
        error: a JSON object, see `failure_json`; `last_error` is its summary.
    """

    status: Status
    due: bool
    delay: float
    available_at: datetime | None
    gives_back: bool
    goes_on: bool
    result: str | None
    error: str | None
    last_error: str | None


def settlement_columns(settlement: Settlement) -> SettlementColumns:
    """Return the columns that a settlement writes."""
    event, error = settlement.event, settlement.error
    status = TRANSITIONS[Status.PROCESSING, event]
    return SettlementColumns(
        status=status,
        due=status is Status.SCHEDULED,
        delay=settlement.delay,
        available_at=settlement.available_at,
        gives_back=event in GIVES_BACK,
        goes_on=event in GOES_ON,
        result=None if settlement.result is None else settlement.result.decode(),
        error=None if error is None else failure_json(error),
        last_error=None if error is None else summary(error),
    )


# --- records ----------------------------------------------------------------------------------------


def job_record(row: Mapping[str, Any]) -> JobRecord:
    """Return a row of `find.sql` or `list.sql`, its values already plain; `errors` is JSON text still."""
    return JobRecord(
        id=row["id"],
        queue_name=row["queue_name"],
        type=row["type"],
        payload=row["payload"],
        status=Status(row["status"]),
        priority=row["priority"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        available_at=row["available_at"],
        locked_until=row["locked_until"],
        locked_by=row["locked_by"],
        last_error=last_failure(row["errors"]),
        idempotency_key=row["idempotency_key"],
        fingerprint=row["fingerprint"],
        cancel_requested=bool(row["cancel_requested"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        completed_at=row["completed_at"],
        result=row["result"],
        result_expires_at=row["result_expires_at"],
        progress=progress(row["progress"], row["progress_message"]),
        origin=origin(row["origin"]),
    )


def progress(fraction: float | None, message: str | None) -> Progress | None:
    """Return the columns `progress` and `progress_message` as a value."""
    return None if fraction is None else Progress(fraction=fraction, message=message or "")


def end(status: str, result: bytes | None, errors: str | bytes | None) -> End | None:
    """Return a row of `watch.sql`: how a job ended, None if it is active. `errors` is JSON text, if it failed."""
    ended = Status(status)
    if ended.active:
        return None
    error = last_failure(errors) if ended is Status.FAILED and errors is not None else None
    return End(status=ended, result=result, error=error)


def dead_letter(row: Mapping[str, Any]) -> DeadLetter:
    """Return a row of `dead_letters.sql`, its values already plain; `errors` is JSON text still."""
    return DeadLetter(
        job_id=row["job_id"],
        queue_name=row["queue_name"],
        type=row["type"],
        payload=row["payload"],
        priority=row["priority"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        created_at=row["created_at"],
        buried_at=row["buried_at"],
        errors=attempt_errors(row["errors"]),
    )
