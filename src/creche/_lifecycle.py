"""The life of a job, as a table: the only place that says how a state changes. It writes nothing.

Storages keep this table in their own language (SQL, a dict); the conformance suite holds them to it, row by row.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from attrs import field, frozen
from msgspec import Struct

from creche._backoff import ExponentialBackoff
from creche._job import DELAY_LIMIT, Event, Failure, Lease, Settlement, Status, seconds

if TYPE_CHECKING:
    from creche.abc import Backoff

PENDING, SCHEDULED, PROCESSING = Status.PENDING, Status.SCHEDULED, Status.PROCESSING
COMPLETED, FAILED, CANCELLED = Status.COMPLETED, Status.FAILED, Status.CANCELLED

TRANSITIONS: Final[dict[tuple[Status, Event], Status]] = {
    # the way through
    (SCHEDULED, Event.PROMOTE): PENDING,
    (PENDING, Event.RESERVE): PROCESSING,
    (PROCESSING, Event.SUCCEED): COMPLETED,
    # an attempt that failed
    (PROCESSING, Event.RETRY): SCHEDULED,
    (PROCESSING, Event.FAIL): FAILED,
    (PROCESSING, Event.DISCARD): FAILED,
    # an attempt that is given back
    (PROCESSING, Event.RELEASE): PENDING,
    (PROCESSING, Event.SNOOZE): SCHEDULED,
    # an attempt whose lease ran out
    (PROCESSING, Event.RECOVER): SCHEDULED,
    (PROCESSING, Event.BURY): FAILED,
    # somebody asked for an end: at once while it waits, by way of its holder while it runs
    (PENDING, Event.CANCEL): CANCELLED,
    (SCHEDULED, Event.CANCEL): CANCELLED,
    (PROCESSING, Event.CANCEL): PROCESSING,
    (PROCESSING, Event.ABORT): CANCELLED,
    # somebody asked for another go
    (SCHEDULED, Event.REVIVE): PENDING,
    (FAILED, Event.REVIVE): PENDING,
    (CANCELLED, Event.REVIVE): PENDING,
}

SETTLING: Final = frozenset(
    {Event.SUCCEED, Event.RETRY, Event.FAIL, Event.DISCARD, Event.RELEASE, Event.SNOOZE, Event.ABORT}
)
"""What a holder may say; everything else is said by somebody who does not hold the lease, and so changes the token."""

GIVES_BACK: Final = frozenset({Event.RELEASE, Event.SNOOZE})
"""The attempt is restored: it does not count."""

BURIES: Final = frozenset({Event.FAIL, Event.DISCARD, Event.BURY})
"""A dead letter is written."""

GOES_ON: Final = frozenset({Event.RETRY, Event.RELEASE, Event.SNOOZE, Event.RECOVER})
"""The job would run again; if its cancellation was asked for meanwhile, it ends as cancelled instead."""


class IllegalTransition(Exception):
    """An event met a state in which it can't happen."""


def after(status: Status, event: Event, *, due: bool = True, cancel_requested: bool = False) -> Status:
    """Return the state that follows.

    Args:
        status: the state before.
        event: what happened.
        due: whether the job's `available_at` has come; a job that would be `scheduled` though it is due is
            `pending`, for nothing else would promote it in time. Not so after RECOVER: the same upkeep promotes.
        cancel_requested: whether somebody asked for the job's cancellation while it ran.
    """
    try:
        following = TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(f"{event} can't happen to a job that is {status}") from None
    if cancel_requested and event in GOES_ON:
        return CANCELLED
    return PENDING if following is SCHEDULED and due and event is not Event.RECOVER else following


# --- how an attempt ended, and what follows from it -------------------------------------------------


class Succeeded(Struct, frozen=True, kw_only=True, gc=False):
    """The handler returned; `result` is JSON text."""

    result: bytes


@frozen(kw_only=True)
class Failed:
    """The handler raised, or asked for another attempt after `delay` seconds (None: the back-off's)."""

    error: Failure
    delay: float | None = None


@frozen(kw_only=True)
class Discarded:
    """The handler said that trying again is of no use."""

    error: Failure


@frozen(kw_only=True)
class Snoozed:
    """The handler put the job off."""

    delay: float | None = None
    until: datetime | None = None


@frozen
class Released:
    """The attempt was interrupted by us: it is given back unspent."""


@frozen
class Aborted:
    """The attempt was cancelled because somebody asked for it."""


Outcome = Succeeded | Failed | Discarded | Snoozed | Released | Aborted


@frozen(kw_only=True)
class Case:
    """What `decide` has to know about the attempt besides how it ended."""

    lease: Lease
    attempt: int
    max_attempts: int
    backoff: Backoff = field(factory=ExponentialBackoff)


def decide(case: Case, outcome: Outcome) -> Settlement:
    """Turn the end of an attempt into what is written about it. Pure, but for the back-off's jitter.

    A back-off that raises, or answers nonsense, is replaced by the default one for this decision: it never
    settles a job wrongly.
    """
    lease = case.lease
    match outcome:
        case Succeeded(result=result):
            return Settlement(lease=lease, event=Event.SUCCEED, result=result)
        case Failed(error=error, delay=delay):
            if case.attempt >= case.max_attempts:
                return Settlement(lease=lease, event=Event.FAIL, error=error)
            wait = _delay(case.backoff, case.attempt) if delay is None else delay
            if wait is None:
                return Settlement(lease=lease, event=Event.FAIL, error=error)
            return Settlement(lease=lease, event=Event.RETRY, error=error, delay=min(wait, DELAY_LIMIT))
        case Discarded(error=error):
            return Settlement(lease=lease, event=Event.DISCARD, error=error)
        case Snoozed(delay=delay, until=until):
            delay = min(delay or 0.0, DELAY_LIMIT)
            return Settlement(lease=lease, event=Event.SNOOZE, delay=delay, available_at=until)
        case Released():
            return Settlement(lease=lease, event=Event.RELEASE)
        case Aborted():
            return Settlement(lease=lease, event=Event.ABORT)


def _delay(backoff: Backoff, attempt: int) -> float | None:
    try:
        delay = backoff.delay(attempt)
        return None if delay is None else seconds("delay", delay)
    except Exception:  # noqa: BLE001, S110 - whatever a strategy raises, the attempt still needs a delay
        pass
    return ExponentialBackoff().delay(attempt)
