"""Defects, planted one at a time: what each of the protocol's rules is for. A rule that could go without breaking a
promise would be superstition, and a promise that no defect breaks might be one that is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

from attrs import field, frozen

from creche._job import Event, Status
from creche._lifecycle import TRANSITIONS
from model.audit import Promise
from model.rules import Lease, Row, Rules

# --- what SQL leaves out -----------------------------------------------------------------------------


class FencedByNothing(Rules):
    """`UPDATE … WHERE id = :id AND status = 'processing'`: no token in the guard."""

    def holds(self, row: Row, lease: Lease) -> bool:
        return row.status is Status.PROCESSING or super().holds(row, lease)


class FencedByAttempt(Rules):
    """The number of the attempt is taken for a fencing token; it repeats when one is given back."""

    def holds(self, row: Row, lease: Lease) -> bool:
        return row.attempts == lease.attempt if row.status is Status.PROCESSING else super().holds(row, lease)


class FencedByCounter(Rules):
    """The token has no random bits: a counter that only grows, until a failover sets it back."""

    def holds(self, row: Row, lease: Lease) -> bool:
        return row.token == lease.token


class RenewedById(Rules):
    """The renewal alone has no token in its guard."""

    def extend(self, row: Row, lease: Lease) -> Row | None:
        return row._replace(left=max(row.left, self.lease)) if row.status is Status.PROCESSING else None


class SettledWhateverTheState(Rules):
    """A settle that was heard before is written again."""

    def settle(self, row: Row, lease: Lease, event: Event, *, due: bool) -> Row | None:
        return super().settle(row._replace(status=Status.PROCESSING), lease, event, due=due)


class RecoveredOnTheWorkersClock(Rules):
    """The end of a lease is judged by a clock that is ahead of the database's."""

    def expired(self, row: Row) -> bool:
        return row.left <= 1


class RecoveredWithoutCounting(Rules):
    """A job whose lease ran out is recovered whatever its attempts."""

    def spent(self, row: Row) -> bool:
        return False


class RecoveredUnderTheSameToken(Rules):
    """Recovering a job leaves its token, so the former holder may still be told that its end was accepted."""

    def seizes(self, row: Row, event: Event) -> bool:
        return event is not Event.RECOVER and super().seizes(row, event)


class CancelledUnderTheSameToken(Rules):
    """So does cancelling a job that waits."""

    def seizes(self, row: Row, event: Event) -> bool:
        return event is not Event.CANCEL and super().seizes(row, event)


class RevivedUnderTheSameToken(Rules):
    """So does making it ready again."""

    def seizes(self, row: Row, event: Event) -> bool:
        return event is not Event.REVIVE and super().seizes(row, event)


class BuriedWithoutALook(Rules):
    """What has used its attempts is buried without a look at its lease."""

    def may(self, row: Row, event: Event) -> bool:
        return self.spent(row) if event is Event.BURY else super().may(row, event)


class CountedWhenItFails(Rules):
    """An attempt is counted when it has failed, and not when it is reserved."""

    def counted(self, row: Row, event: Event) -> int:
        if event is Event.RESERVE:
            return row.attempts
        return row.attempts + 1 if event in {Event.RETRY, Event.FAIL} else super().counted(row, event)


class ReleaseCounts(Rules):
    """An attempt that was given back counts all the same."""

    def counted(self, row: Row, event: Event) -> int:
        return row.attempts if event is Event.RELEASE else super().counted(row, event)


class SpentForEver(Rules):
    """A job that is made ready again keeps the attempts of its life before."""

    def counted(self, row: Row, event: Event) -> int:
        return row.attempts if event is Event.REVIVE else super().counted(row, event)


class CancellationForgotten(Rules):
    """What would go on goes on, though its cancellation was asked for."""

    def following(self, row: Row, event: Event, due: bool) -> Status:
        return super().following(row._replace(cancel_requested=False), event, due)


class CallbackKept(Rules):
    """A callback that was written stays on the row."""

    def keeps_callback(self, row: Row, status: Status) -> bool:
        return row.callback


class DeadLetterKept(Rules):
    """A job that is made ready again leaves its dead letter behind."""

    def unburies(self, event: Event) -> bool:
        return False


# --- what a worker gets wrong ------------------------------------------------------------------------


class DeadlineFromAfter(Rules):
    """The local deadline is counted from when the answer came."""

    def deadline(self, since: int) -> int:
        return self.lease


class RenewalUnread(Rules):
    """Nobody reads what the renewal answered."""

    def heeds(self, held: bool) -> bool:
        return True


class FailedAckRequeued(Rules):
    """A success whose answer was lost is turned into a failure."""

    def resend(self, event: Event) -> Event:
        return Event.RETRY


class TriedOnceMore(Rules):
    """A failure is tried again whatever the number of the attempt."""

    def decide(self, lease: Lease, outcome: object) -> Event:
        event = super().decide(lease, outcome)  # type: ignore[arg-type]
        return Event.RETRY if event is Event.FAIL else event


# --- what the table could say ------------------------------------------------------------------------

Table = Mapping[tuple[Status, Event], Status]

STEAL: Final[Table] = {(Status.PROCESSING, Event.RESERVE): Status.PROCESSING}
CANCEL_AT_ONCE: Final[Table] = {(Status.PROCESSING, Event.CANCEL): Status.CANCELLED}
CANCEL_A_SUCCESS: Final[Table] = {(Status.COMPLETED, Event.CANCEL): Status.CANCELLED}
CANCEL_A_FAILURE: Final[Table] = {(Status.FAILED, Event.CANCEL): Status.CANCELLED}
REVIVE_A_SUCCESS: Final[Table] = {(Status.COMPLETED, Event.REVIVE): Status.PENDING}
RECOVER_AS_DONE: Final[Table] = {(Status.PROCESSING, Event.RECOVER): Status.COMPLETED}
RECOVER_THE_DEAD: Final[Table] = {(Status.CANCELLED, Event.RECOVER): Status.SCHEDULED}


@frozen(kw_only=True)
class Defect:
    """One of them, and what it leads to.

    Attributes:
        name: what is wrong.
        rules: the rules, with the defect in them.
        table: rows that creche's table gets besides its own.
        without: events that it loses.
        failover: whether it takes a failover to see it.
        breaks: the first promise that is broken.
        steps: how many it takes at least.
    """

    name: str
    rules: type[Rules] = Rules
    table: Table = field(factory=dict[tuple[Status, Event], Status])
    without: frozenset[Event] = frozenset()
    failover: bool = False
    breaks: Promise
    steps: int

    @property
    def watched(self) -> frozenset[Promise]:
        """All promises; but that a job comes to no end is broken from the first state on, and would hide the rest."""
        return frozenset(Promise) - ({Promise.FINITE} - {self.breaks})

    @contextmanager
    def planted(self) -> Iterator[Rules]:
        """Put it in place: in the table that creche itself reads, too."""
        kept = {cell: after for cell, after in TRANSITIONS.items() if cell[1] not in self.without}
        with patch.dict(TRANSITIONS, {**kept, **self.table}, clear=True):
            yield self.rules()


def _of(rules: type[Rules], breaks: Promise, steps: int, *, failover: bool = False) -> Defect:
    return Defect(name=rules.__name__, rules=rules, breaks=breaks, steps=steps, failover=failover)


DEFECTS: Final = (
    _of(FencedByNothing, Promise.FENCED, 6),
    _of(FencedByAttempt, Promise.FENCED, 6),
    _of(FencedByCounter, Promise.FENCED, 5, failover=True),
    _of(RenewedById, Promise.FENCED, 8),
    _of(SettledWhateverTheState, Promise.ONCE, 5),
    _of(RecoveredOnTheWorkersClock, Promise.ALONE, 4),
    _of(RecoveredWithoutCounting, Promise.BOUNDED, 10),
    _of(RecoveredUnderTheSameToken, Promise.TRUTHFUL, 7),
    _of(CancelledUnderTheSameToken, Promise.TRUTHFUL, 6),
    _of(RevivedUnderTheSameToken, Promise.TRUTHFUL, 6),
    _of(BuriedWithoutALook, Promise.PATIENT, 6),
    _of(CountedWhenItFails, Promise.COUNTED, 1),
    _of(ReleaseCounts, Promise.COUNTED, 4),
    _of(SpentForEver, Promise.COUNTED, 5),
    _of(CancellationForgotten, Promise.OBEYED, 5),
    _of(CallbackKept, Promise.FOLLOWED, 3),
    _of(DeadLetterKept, Promise.LETTER, 5),
    _of(DeadlineFromAfter, Promise.ALONE, 3),
    _of(RenewalUnread, Promise.ALONE, 7),
    _of(FailedAckRequeued, Promise.TRUTHFUL, 5),
    _of(TriedOnceMore, Promise.BOUNDED, 9),
    Defect(name="a reserve takes what somebody holds", table=STEAL, breaks=Promise.ALONE, steps=3),
    Defect(name="a cancel ends what runs", table=CANCEL_AT_ONCE, breaks=Promise.ALONE, steps=3),
    Defect(name="a cancel overrides a success", table=CANCEL_A_SUCCESS, breaks=Promise.KEPT, steps=5),
    Defect(name="a cancel overrides a failure", table=CANCEL_A_FAILURE, breaks=Promise.FINAL, steps=5),
    Defect(name="a success can be retried", table=REVIVE_A_SUCCESS, breaks=Promise.KEPT, steps=5),
    Defect(name="what ran out is taken for done", table=RECOVER_AS_DONE, breaks=Promise.EARNED, steps=4),
    Defect(name="what is cancelled is recovered", table=RECOVER_THE_DEAD, breaks=Promise.FINAL, steps=2),
    Defect(name="nobody buries", without=frozenset({Event.BURY}), breaks=Promise.FINITE, steps=0),
    Defect(name="nobody promotes", without=frozenset({Event.PROMOTE}), breaks=Promise.FINITE, steps=0),
)
