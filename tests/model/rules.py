"""The rules of the lease protocol: one job's row, and what each statement makes of it. They know no worker and no time
but the row's own, and they check nothing: that is the audit's business.

Which state follows which event is not written here: it is read from creche's own table, by creche's own function. What
the table leaves to SQL is a method below, and each says which tests hold every storage to the same rule. A defect is a
subclass that does one thing differently.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from creche import _job, _lifecycle
from creche._ids import new_job_id
from creche._job import FINISHED, Event, Failure, Status
from creche._lifecycle import BURIES, GIVES_BACK, SETTLING

UPKEEP: Final = (Event.PROMOTE, Event.RECOVER, Event.BURY)
PEOPLE: Final = (Event.CANCEL, Event.REVIVE)

_BOOM: Final = Failure(type="E", message="boom")

OUTCOMES: Final[tuple[_lifecycle.Outcome, ...]] = (
    _lifecycle.Succeeded(result=b"null"),
    _lifecycle.Failed(error=_BOOM, delay=1.0),
    _lifecycle.Discarded(error=_BOOM),
    _lifecycle.Snoozed(delay=1.0),
    _lifecycle.Released(),
)
"""How a handler may end by itself. `Aborted` comes only after it was told that its end is wanted."""


class Lease(NamedTuple):
    """What a holder knows of its right: the fencing token, and the number of the attempt."""

    token: int
    nonce: int
    attempt: int


class Row(NamedTuple):
    """The job, as the database has it."""

    status: Status = Status.PENDING
    attempts: int = 0
    token: int = 0
    nonce: int = 0
    left: int = 0  # ticks until `locked_until`; 0: the lease has run out, or there is none
    cancel_requested: bool = False
    callback: bool = True  # one is recorded, for whatever end, and not written yet
    dead_letter: bool = False


class Rules:
    """What the database does, and what a worker makes of its answers.

    Args:
        max_attempts: of the job.
        lease: in ticks.
    """

    def __init__(self, *, max_attempts: int = 2, lease: int = 2) -> None:
        self.max_attempts = max_attempts
        self.lease = lease

    # --- which event may happen: the conditions of the statements ------------------------------------

    def holds(self, row: Row, lease: Lease) -> bool:
        """The fence of `extend` and `settle`: the whole token, not the attempt, and not the time that is left.

        Held to by: test_to_settle_token_and_nonce_must_both_be_right,
        test_to_extend_token_and_nonce_must_both_be_right,
        test_a_lease_that_ran_out_but_was_not_recovered_settles,
        test_a_lease_that_ran_out_and_was_not_recovered_is_still_held.
        """
        return row.token == lease.token and row.nonce == lease.nonce

    def expired(self, row: Row) -> bool:
        """Whether the lease has run out, by the database's clock.

        Held to by: test_an_extended_lease_is_not_taken_back,
        test_a_reserved_job_is_nobody_elses_until_it_is_recovered.
        """
        return row.left == 0

    def spent(self, row: Row) -> bool:
        """Whether it was the last attempt: then the job is buried, unless somebody wanted its end anyway.

        Held to by: test_a_lease_that_ran_out_on_the_last_attempt_buries_its_job,
        test_a_lease_that_ran_out_after_a_cancellation_was_asked_for_ends_in_it.
        """
        return row.attempts >= self.max_attempts and not row.cancel_requested

    def may(self, row: Row, event: Event) -> bool:
        """Whether somebody without a lease may say this now. The table has been asked already.

        PROMOTE: when a job is due is not modelled, so its time may have come at any moment.
        """
        match event:
            case Event.RECOVER:
                return self.expired(row) and not self.spent(row)
            case Event.BURY:
                return self.expired(row) and self.spent(row)
            case _:
                return True

    # --- what it writes ------------------------------------------------------------------------------

    def following(self, row: Row, event: Event, due: bool) -> Status:
        """The table's own answer.

        Held to by: test_an_event_leads_where_the_table_says,
        test_a_job_whose_cancellation_was_asked_for_does_not_go_on.
        """
        return _lifecycle.after(row.status, event, due=due, cancel_requested=row.cancel_requested)

    def counted(self, row: Row, event: Event) -> int:
        """An attempt counts when it is reserved, and is restored when it is given back; another life begins anew.

        Held to by: test_an_attempt_counts_unless_it_is_given_back, test_a_finished_job_starts_anew,
        test_a_scheduled_job_is_ready_now_and_its_attempts_still_count.
        """
        if event is Event.RESERVE:
            return row.attempts + 1
        if event in GIVES_BACK:
            return row.attempts - 1
        return 0 if event is Event.REVIVE and row.status in FINISHED else row.attempts

    def seizes(self, row: Row, event: Event) -> bool:
        """Whoever moves a job without holding its lease changes the token, so that a former holder must notice. To
        promote it, and to ask its holder for its end, takes nothing away from anybody.

        Held to by: test_a_recovered_lease_writes_nothing, test_a_given_back_lease_is_lost_once_the_job_is_cancelled,
        test_a_settled_lease_is_lost_once_the_job_was_retried,
        test_a_cancellation_that_was_asked_for_does_not_take_the_lease_away.
        """
        asks = event is Event.CANCEL and row.status is Status.PROCESSING
        return event not in SETTLING and event is not Event.PROMOTE and not asks

    def write(self, row: Row, event: Event, *, due: bool, nonce: int = 0) -> Row:
        """Return the row after an event that may happen; `nonce` is the random part of a reservation's token.

        Held to by: test_each_reservation_counts_an_attempt_and_raises_the_token,
        test_a_dead_letter_is_written_for_those_that_are_buried_and_for_no_other,
        test_a_job_that_is_processing_no_longer_has_no_deadline.
        """
        status = self.following(row, event, due)
        token, drawn = (row.token + 1, nonce) if self.seizes(row, event) else (row.token, row.nonce)
        revives = event is Event.REVIVE
        return Row(
            status=status,
            attempts=self.counted(row, event),
            token=token,
            nonce=drawn,
            left=self.lease if event is Event.RESERVE else row.left if status is Status.PROCESSING else 0,
            cancel_requested=(row.cancel_requested or event is Event.CANCEL) and not revives,
            callback=self.keeps_callback(row, status),
            dead_letter=event in BURIES or (row.dead_letter and not self.unburies(event)),
        )

    def keeps_callback(self, row: Row, status: Status) -> bool:
        """It is written, and taken off the row, by what ends the job.

        Held to by: test_the_end_of_a_job_writes_the_callbacks_that_it_calls_for,
        test_a_job_that_fails_again_after_a_retry_runs_no_callback_again.
        """
        return row.callback and status not in FINISHED

    def unburies(self, event: Event) -> bool:
        """Whether the dead letter goes.

        Held to by: test_a_finished_job_starts_anew.
        """
        return event is Event.REVIVE

    def settle(self, row: Row, lease: Lease, event: Event, *, due: bool) -> Row | None:
        """The row after its holder's word; unchanged if that was heard before; None: refused, the lease is lost.

        Held to by: test_a_lease_that_another_holder_followed_writes_nothing,
        test_settled_twice_is_accepted_twice_and_written_once.
        """
        if not self.holds(row, lease):
            return None
        return self.write(row, event, due=due) if (row.status, event) in _lifecycle.TRANSITIONS else row

    def extend(self, row: Row, lease: Lease) -> Row | None:
        """The row whose lease was renewed; None if it is not held: then it is lost.

        Held to by: test_it_never_brings_a_deadline_nearer, test_a_lease_whose_attempt_ended_is_lost.
        """
        if row.status is Status.PROCESSING and self.holds(row, lease):
            return row._replace(left=max(row.left, self.lease))
        return None

    # --- what a worker makes of it -------------------------------------------------------------------

    def deadline(self, since: int) -> int:
        """How many ticks a lease lasts for its holder, who asked for it so many ticks ago: the database counts from
        later. (The engine takes a margin off besides, for what a cancelled handler needs to end.)
        """
        return max(self.lease - since, 0)

    def heeds(self, held: bool) -> bool:
        """Whether the handler may go on after the answer to a renewal."""
        return held

    def decide(self, lease: Lease, outcome: _lifecycle.Outcome) -> Event:
        """The engine's own decision."""
        return _decide(lease.attempt, self.max_attempts, outcome)

    def resend(self, event: Event) -> Event:
        """What is said when the answer to a settle was lost: the same again."""
        return event


@lru_cache
def _decide(attempt: int, max_attempts: int, outcome: _lifecycle.Outcome) -> Event:
    lease = _job.Lease(job_id=new_job_id(), token=1, nonce=1)
    return _lifecycle.decide(_lifecycle.Case(lease=lease, attempt=attempt, max_attempts=max_attempts), outcome).event
