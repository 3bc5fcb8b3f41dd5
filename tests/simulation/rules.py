"""What may become of a row, and what may be written about an attempt: rules of the contract, said once more, and apart
from the code that keeps them. They remember nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import frozen

from creche._job import Event, JobRecord, Settlement, Status
from creche.storage._memory_rows import Row

if TYPE_CHECKING:
    from simulation.ledger import Visit

PENDING, SCHEDULED, PROCESSING = Status.PENDING, Status.SCHEDULED, Status.PROCESSING
COMPLETED, FAILED, CANCELLED = Status.COMPLETED, Status.FAILED, Status.CANCELLED
WAITING: Final = frozenset({PENDING, SCHEDULED})
OVER: Final = frozenset({COMPLETED, FAILED, CANCELLED})


class Cause(StrEnum):
    """The operation that changed a row."""

    INSERT = "insert"
    RESERVE = "reserve"
    EXTEND = "extend"
    SETTLE = "settle"
    MAINTAIN = "maintain"
    CANCEL = "cancel"
    RETRY = "retry"


@frozen
class Seen:
    """A row as it was seen last."""

    record: JobRecord
    token: int
    nonce: int


# --- how a row may change ---------------------------------------------------------------------------

Check = Callable[[Seen, Row, datetime], str | None]


def _new_token(before: Seen, row: Row, _: datetime) -> str | None:
    return None if row.token > before.token else "I4: somebody else decided, and the old token stands"


def _same_token(before: Seen, row: Row, _: datetime) -> str | None:
    return None if (row.token, row.nonce) == (before.token, before.nonce) else "I4: its holder's settle took the token"


def _counted(before: Seen, row: Row, _: datetime) -> str | None:
    went = f"from {before.record.attempts} to {row.record.attempts}"
    return None if row.record.attempts == before.record.attempts + 1 else f"I1: reserved, and attempts went {went}"


def _uncounted(before: Seen, row: Row, _: datetime) -> str | None:
    went = f"from {before.record.attempts} to {row.record.attempts}"
    return None if row.record.attempts == before.record.attempts else f"I1: attempts went {went}"


def _ran_out(before: Seen, _: Row, moment: datetime) -> str | None:
    until = before.record.locked_until
    return None if until is not None and until <= moment else f"I9: taken back, and its lease lasts until {until}"


def _spent(before: Seen, _: Row, __: datetime) -> str | None:
    attempts, most = before.record.attempts, before.record.max_attempts
    return None if attempts >= most else f"I9: buried after {attempts} attempts of {most}"


def _due(before: Seen, _: Row, moment: datetime) -> str | None:
    due = before.record.available_at
    return None if due <= moment else f"promoted before it is due at {due}"


def _not_shorter(before: Seen, row: Row, moment: datetime) -> str | None:
    was, after = before.record.locked_until or moment, row.record.locked_until or moment
    return None if after >= was else "a renewal made a lease shorter"


STEPS: Final[Mapping[tuple[Cause, Status, Status], tuple[Check, ...]]] = {
    (Cause.RESERVE, PENDING, PROCESSING): (_new_token, _counted),
    (Cause.EXTEND, PROCESSING, PROCESSING): (_same_token, _uncounted, _not_shorter),
    **{(Cause.SETTLE, PROCESSING, after): (_same_token,) for after in OVER | WAITING},
    (Cause.MAINTAIN, PROCESSING, SCHEDULED): (_new_token, _uncounted, _ran_out),
    (Cause.MAINTAIN, PROCESSING, CANCELLED): (_new_token, _uncounted, _ran_out),
    (Cause.MAINTAIN, PROCESSING, FAILED): (_new_token, _uncounted, _ran_out, _spent),
    (Cause.MAINTAIN, SCHEDULED, PENDING): (_uncounted, _due),
    (Cause.CANCEL, PENDING, CANCELLED): (_new_token, _uncounted),
    (Cause.CANCEL, SCHEDULED, CANCELLED): (_new_token, _uncounted),
    (Cause.CANCEL, PROCESSING, PROCESSING): (_same_token, _uncounted),
    (Cause.RETRY, SCHEDULED, PENDING): (_new_token, _uncounted),
    (Cause.RETRY, FAILED, PENDING): (_new_token,),
    (Cause.RETRY, CANCELLED, PENDING): (_new_token,),
}


def broken_by_row(before: Seen | None, row: Row, cause: Cause, moment: datetime) -> Iterator[str]:
    """Yield what is wrong with how a row has changed."""
    after = row.record
    if after.attempts > after.max_attempts:
        yield f"I5: {after.attempts} attempts of {after.max_attempts}"
    if before is None:
        yield from _broken_by_birth(after, cause)
        return
    was = before.record.status
    checks = STEPS.get((cause, was, after.status))
    if checks is None:
        yield f"I3: {was} to {after.status} by {cause}"
        return
    yield from filter(None, (check(before, row, moment) for check in checks))


def _broken_by_birth(after: JobRecord, cause: Cause) -> Iterator[str]:
    if after.status not in WAITING or after.attempts:
        yield f"a row appeared that is {after.status} after {after.attempts} attempts"
    if after.origin is None and cause is not Cause.INSERT:
        yield f"a row appeared by {cause} that follows nobody"


# --- what may be written about an attempt -----------------------------------------------------------


def _succeeded(settlement: Settlement, visit: Visit | None, _: JobRecord) -> str | None:
    if visit is None or not (visit.how == "returned" or visit.committing):
        return f"I8: completed, though its handler {_how(visit)}"
    same = settlement.result == visit.result
    return None if same else f"I8: completed with {settlement.result!r}, not with {visit.result!r}"


def _failed(settlement: Settlement, visit: Visit | None, _: JobRecord) -> str | None:
    right = _how(visit).startswith("raised")
    return None if right else f"I8: {settlement.event} was written, and its handler {_how(visit)}"


def _put_off(_: Settlement, visit: Visit | None, __: JobRecord) -> str | None:
    return None if _how(visit) == "raised Snooze" else f"put off, though its handler {_how(visit)}"


def _aborted(_: Settlement, __: Visit | None, was: JobRecord) -> str | None:
    return None if was.cancel_requested else "aborted, though nobody had asked"


def _given_back(_: Settlement, visit: Visit | None, __: JobRecord) -> str | None:
    return "I8: given back, though its handler returned" if _how(visit) == "returned" else None


def _how(visit: Visit | None) -> str:
    return visit.how if visit else "never began"


ENDS: Final = {
    Event.SUCCEED: _succeeded,
    Event.RETRY: _failed,
    Event.FAIL: _failed,
    Event.DISCARD: _failed,
    Event.SNOOZE: _put_off,
    Event.ABORT: _aborted,
    Event.RELEASE: _given_back,
}
RESTORED: Final = {Event.RELEASE: 1, Event.SNOOZE: 1}  # attempts


def broken_by_settlement(
    settlement: Settlement, visit: Visit | None, was: JobRecord, after: JobRecord
) -> Iterator[str]:
    """Yield what is wrong with what was written about an attempt, by what its handler is known to have done."""
    if what := ENDS[settlement.event](settlement, visit, was):
        yield what
    if after.attempts != was.attempts - RESTORED.get(settlement.event, 0):
        yield f"I1: attempts went from {was.attempts} to {after.attempts} by {settlement.event}"
