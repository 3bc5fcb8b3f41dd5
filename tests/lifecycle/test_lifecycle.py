"""The transition table and what is decided from it, without a storage."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creche._backoff import ExponentialBackoff, recovery_delay
from creche._ids import new_job_id
from creche._job import ACTIVE, FINISHED, Event, Failure, Lease, Settlement, Status
from creche._lifecycle import (
    BURIES,
    GIVES_BACK,
    GOES_ON,
    SETTLING,
    TRANSITIONS,
    Aborted,
    Case,
    Discarded,
    Failed,
    IllegalTransition,
    Outcome,
    Released,
    Snoozed,
    Succeeded,
    after,
    decide,
)
from creche.errors import OptionInvalid

LEASE = Lease(job_id=new_job_id(), token=3, nonce=-5)
BOOM = Failure(type="E", message="boom")


class Constant:
    """A back-off that answers one thing, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def delay(self, attempt: int) -> float | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


def case(attempt: int = 1, max_attempts: int = 3, backoff: Any = None) -> Case:
    return Case(lease=LEASE, attempt=attempt, max_attempts=max_attempts, backoff=backoff or Constant(7.5))


# --- the table --------------------------------------------------------------------------------------


def test_every_event_happens_in_some_state_and_every_state_is_reached() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert set(TRANSITIONS.values()) == set(Status)


def test_a_finished_job_moves_only_when_somebody_asks_for_another_go() -> None:
    assert {event for status, event in TRANSITIONS if status in FINISHED} == {Event.REVIVE}
    assert (Status.COMPLETED, Event.REVIVE) not in TRANSITIONS


def test_every_active_state_has_a_way_to_each_end() -> None:
    for start in ACTIVE:
        reached = {start}
        while more := {after(s, e, due=False) for s, e in TRANSITIONS if s in reached and s in ACTIVE} - reached:
            reached |= more
        assert reached >= FINISHED


def test_only_the_holder_of_a_lease_can_settle_and_only_while_it_processes() -> None:
    assert {status for status, event in TRANSITIONS if event in SETTLING} == {Status.PROCESSING}


def test_the_sets_of_events_agree_with_the_table() -> None:
    assert GIVES_BACK <= SETTLING
    for (_, event), following in TRANSITIONS.items():
        assert (event in BURIES) == (following is Status.FAILED)
        if event in GOES_ON | GIVES_BACK:
            assert following in {Status.PENDING, Status.SCHEDULED}


@pytest.mark.parametrize(("cell", "following"), TRANSITIONS.items())
def test_the_table_is_followed(cell: tuple[Status, Event], following: Status) -> None:
    assert after(*cell, due=False) is following


@pytest.mark.parametrize("cell", [c for c in itertools.product(Status, Event) if c not in TRANSITIONS])
@pytest.mark.parametrize("cancel_requested", [False, True])
def test_what_the_table_does_not_have_is_refused(cell: tuple[Status, Event], cancel_requested: bool) -> None:
    with pytest.raises(IllegalTransition, match=f"{cell[1]} can't happen to a job that is {cell[0]}"):
        after(*cell, cancel_requested=cancel_requested)


@pytest.mark.parametrize("event", [Event.RETRY, Event.SNOOZE])
def test_a_job_that_is_due_already_is_pending_and_not_scheduled(event: Event) -> None:
    assert after(Status.PROCESSING, event, due=True) is Status.PENDING
    assert after(Status.PROCESSING, event, due=False) is Status.SCHEDULED


def test_a_recovered_job_that_is_due_already_is_left_to_promote() -> None:
    assert after(Status.PROCESSING, Event.RECOVER, due=True) is Status.SCHEDULED


@pytest.mark.parametrize("due", [False, True])
@pytest.mark.parametrize("event", sorted({e for s, e in TRANSITIONS if s is Status.PROCESSING}))
def test_what_would_go_on_is_cancelled_if_that_was_asked_for_and_what_ends_is_not(event: Event, due: bool) -> None:
    expected = Status.CANCELLED if event in GOES_ON else TRANSITIONS[Status.PROCESSING, event]
    assert after(Status.PROCESSING, event, due=due, cancel_requested=True) is expected


# --- what is decided --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "settlement"),
    [
        (Succeeded(result=b"1"), Settlement(lease=LEASE, event=Event.SUCCEED, result=b"1")),
        (Failed(error=BOOM), Settlement(lease=LEASE, event=Event.RETRY, error=BOOM, delay=7.5)),
        (Failed(error=BOOM, delay=2.0), Settlement(lease=LEASE, event=Event.RETRY, error=BOOM, delay=2.0)),
        (Failed(error=BOOM, delay=0.0), Settlement(lease=LEASE, event=Event.RETRY, error=BOOM)),
        (Discarded(error=BOOM), Settlement(lease=LEASE, event=Event.DISCARD, error=BOOM)),
        (Snoozed(delay=4.0), Settlement(lease=LEASE, event=Event.SNOOZE, delay=4.0)),
        (
            Snoozed(until=datetime(2030, 1, 1, tzinfo=UTC)),
            Settlement(lease=LEASE, event=Event.SNOOZE, available_at=datetime(2030, 1, 1, tzinfo=UTC)),
        ),
        (Released(), Settlement(lease=LEASE, event=Event.RELEASE)),
        (Aborted(), Settlement(lease=LEASE, event=Event.ABORT)),
    ],
)
def test_each_outcome_becomes_its_settlement(outcome: Outcome, settlement: Settlement) -> None:
    assert decide(case(), outcome) == settlement


@pytest.mark.parametrize("delay", [None, 0.0, 5.0])
@pytest.mark.parametrize("attempt", [3, 4])
def test_the_last_attempt_fails_for_good_whatever_delay_was_asked_for(attempt: int, delay: float | None) -> None:
    settlement = decide(case(attempt=attempt), Failed(error=BOOM, delay=delay))
    assert settlement == Settlement(lease=LEASE, event=Event.FAIL, error=BOOM)


@pytest.mark.parametrize(
    "outcome", [Succeeded(result=b"1"), Released(), Aborted(), Snoozed(delay=1.0), Discarded(error=BOOM)]
)
def test_only_a_failure_cares_which_attempt_it_was(outcome: Outcome) -> None:
    assert decide(case(attempt=3), outcome) == decide(case(attempt=1), outcome)


def test_a_backoff_that_gives_up_fails_the_job_for_good() -> None:
    class GivesUp:
        def delay(self, attempt: int) -> float | None:
            return None if attempt == 2 else 1.0

    assert decide(case(attempt=1, backoff=GivesUp()), Failed(error=BOOM)).event is Event.RETRY
    assert decide(case(attempt=2, backoff=GivesUp()), Failed(error=BOOM)).event is Event.FAIL


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("broken"),
        float("nan"),
        float("inf"),
        -float("inf"),
        -1.0,
        -1e-300,
        "soon",
        [1],
        object(),
        1e300,
        True,
    ],
)
def test_a_backoff_that_raises_or_answers_nonsense_is_replaced_by_the_default(answer: object) -> None:
    settlement = decide(case(backoff=Constant(answer)), Failed(error=BOOM))
    assert settlement.event is Event.RETRY
    assert 0.9 <= settlement.delay <= 1.1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_backoff_does_not_hold_up_the_end_of_the_process(stop: type[BaseException]) -> None:
    class Stops:
        def delay(self, attempt: int) -> float | None:
            raise stop

    with pytest.raises(stop):
        decide(case(backoff=Stops()), Failed(error=BOOM))


# --- the default back-off ---------------------------------------------------------------------------


@given(
    base=st.floats(0, 1e6),
    multiplier=st.floats(1, 1e9),
    cap=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    attempt=st.integers(-5, 10**9),
)
def test_a_delay_is_never_negative_and_never_beyond_the_cap(
    base: float, multiplier: float, cap: float, jitter: float, attempt: int
) -> None:
    assert 0 <= ExponentialBackoff(base, multiplier, cap, jitter).delay(attempt) <= cap


@given(st.integers(1, 8), st.floats(0, 1))
def test_a_delay_stays_within_its_jitter(attempt: int, jitter: float) -> None:
    middle = 2.0 ** (attempt - 1)
    delay = ExponentialBackoff(jitter=jitter).delay(attempt)
    assert middle * (1 - jitter) - 1e-9 <= delay <= middle * (1 + jitter) + 1e-9


def test_without_jitter_the_delays_are_the_formulas() -> None:
    backoff = ExponentialBackoff(base=1.5, multiplier=3.0, cap=100.0, jitter=0.0)
    assert [backoff.delay(attempt) for attempt in (1, 2, 3, 4, 5, 10_000)] == pytest.approx(
        [1.5, 4.5, 13.5, 40.5, 100.0, 100.0]
    )


def test_jitter_spreads() -> None:
    assert len({ExponentialBackoff().delay(3) for _ in range(20)}) > 1


@pytest.mark.parametrize("multiplier", [1.0, 1.000_001, 2.0, 1e300])
@pytest.mark.parametrize("attempt", [10_000, 10**9])
def test_a_very_late_attempt_does_not_overflow(multiplier: float, attempt: int) -> None:
    assert 0 <= ExponentialBackoff(multiplier=multiplier).delay(attempt) <= 300


@pytest.mark.parametrize(
    "options",
    [
        {"base": -1.0},
        {"base": float("nan")},
        {"base": float("inf")},
        {"cap": -0.1},
        {"cap": float("inf")},
        {"cap": "300"},
        {"multiplier": 0.99},
        {"multiplier": float("inf")},
        {"multiplier": float("nan")},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": float("nan")},
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused_and_says_which_option(options: dict[str, Any]) -> None:
    with pytest.raises(OptionInvalid) as caught:
        ExponentialBackoff(**options)
    assert caught.value.option == next(iter(options))


# --- after a lease that ran out ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "delays"),
    [
        ("000000000000", [0, 0, 0, 0]),
        ("000100010001", [15, 30, 61, 122]),
        ("800000000000", [500_000, 0, 0, 4_000_000]),
        ("000080000000", [0, 1_000_000, 0, 0]),
        ("000000008000", [0, 0, 2_000_000, 0]),
        ("ffffffffffff", [999_984, 1_999_969, 3_999_938, 7_999_877]),
    ],
)
def test_a_recovery_is_put_off_by_a_part_that_groups_of_bits_in_the_id_take_turns_to_say(
    bits: str, delays: list[int]
) -> None:
    job_id = UUID(f"01941f29-7c00-7000-8000-{bits}")
    assert [recovery_delay(job_id, attempt) for attempt in (1, 2, 3, 4)] == delays


@given(st.uuids(), st.integers(1, 10**6))
def test_a_recovery_is_put_off_by_less_than_its_span(job_id: UUID, attempt: int) -> None:
    assert 0 <= recovery_delay(job_id, attempt) < 1_000_000 * min(2 ** (attempt - 1), 64)


def test_ids_that_are_made_in_one_go_are_put_off_by_all_parts_of_the_span_alike() -> None:
    ids = [new_job_id() for _ in range(2_000)]
    for attempt in (1, 2, 3):
        tenths = [recovery_delay(job_id, attempt) * 10 // (1_000_000 << (attempt - 1)) for job_id in ids]
        assert all(100 < tenths.count(tenth) < 300 for tenth in range(10))  # 200 each: seven standard deviations


def test_jobs_that_are_due_together_after_one_attempt_are_not_after_the_next() -> None:
    ids = [UUID(int=new_job_id().int & ~(0xFFFF << 32)) for _ in range(100)]
    assert {recovery_delay(job_id, 1) for job_id in ids} == {0}
    assert len({recovery_delay(job_id, 2) for job_id in ids}) > 90
