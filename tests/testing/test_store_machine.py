"""`store_machine` itself: it notices what breaks the contract, on whichever side, and shows it by a short program."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from msgspec.structs import replace

import broken_storages as broken
from creche._job import (
    Event,
    Extension,
    FollowUp,
    Insertion,
    JobRecord,
    Lease,
    NewJob,
    Reservation,
    ReservedJob,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
)
from creche._lifecycle import SETTLING
from creche.abc import Storage
from creche.storage.memory import MemoryStorage
from creche.testing import StoredJob, StoredRows, store_machine
from creche.testing._machine_draws import START, UNKEPT
from creche.testing._machine_oracle import Oracle
from creche.testing._machine_promises import UPKEEP, PromiseBroken, Promises, Reach
from creche.testing._machine_rivals import agreeing

CAUGHT: Final = [
    broken.ForgetsTheNonce,
    broken.TakesOneTooMany,
    broken.LooksThenInserts,
    broken.CountsReleases,
    broken.SettlesTwice,
    broken.RecoversBehindTheHoldersBack,
    broken.KeepsWhatNobodyKeeps,
    broken.DeletesHoweverItEnds,
    broken.DeletesWhatAnotherHolds,
    broken.DeletesWhatIsOfUse,
    broken.NeverSaysThatItIsGone,
]


def play(machine: type[RuleBasedStateMachine], *phases: Phase, programs: int = 300, steps: int = 30) -> None:
    """Play the same programs each time: whether they find something is no matter of luck."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=programs,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            phases=[Phase.generate, *phases],
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("mutant", CAUGHT)
def test_a_storage_that_breaks_the_contract_is_caught(mutant: type[MemoryStorage], backend: str) -> None:
    # It ends with the first program that fails; which one that is depends on what Hypothesis has read in other modules.
    with pytest.raises(AssertionError):
        play(store_machine(mutant, backend=backend), programs=4_000)


def test_a_program_that_fails_is_made_short() -> None:
    with pytest.raises(AssertionError) as failed:
        play(store_machine(broken.CountsReleases, backend="asyncio"), Phase.shrink, steps=10)
    program = [line for note in failed.value.__notes__ for line in note.splitlines() if "state." in line]
    *_, last, teardown = program
    assert len(program) <= 10, program  # of fifteen lines: three to begin with, ten steps, good night
    assert "release" in last.lower()
    assert teardown == "state.teardown()"


def test_one_that_keeps_the_contract_passes() -> None:
    play(store_machine(MemoryStorage, backend="trio"), programs=20)


def test_it_may_be_opened_by_a_coroutine_function() -> None:
    async def open_storage() -> Storage:
        return MemoryStorage()

    play(store_machine(open_storage, backend="asyncio"), programs=5)


def test_what_else_is_compared_is_called_after_each_step() -> None:
    heard: list[str] = []

    @asynccontextmanager
    async def also(oracle: Storage, storage: Storage) -> AsyncGenerator[Callable[[str], None]]:
        assert await oracle.stats() == await storage.stats() == []
        yield heard.append

    play(store_machine(MemoryStorage, backend="asyncio", also=also), programs=5)
    assert "dispatch" in heard


def test_what_the_database_itself_says_is_what_counts() -> None:
    with pytest.raises(AssertionError, match="missing"):
        play(store_machine(MemoryStorage, backend="asyncio", rows=lambda: StoredRows(jobs={}, letters={})))


def test_without_hypothesis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("hypothesis", "creche.testing._machine"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match="pip install hypothesis"):
        store_machine(MemoryStorage, backend="asyncio")


# --- rivals: which answers can be explained ----------------------------------------------------------


def test_a_dispatch_may_say_how_the_job_that_it_joined_stands_by_now_and_nothing_else() -> None:
    early = Insertion(job_id=JOB, status=Status.PENDING, inserted=False, fingerprint=b"f")
    late = replace(early, status=Status.COMPLETED)
    assert agreeing([(early,)], [(late,)], rows(DONE))
    assert not agreeing([(early,)], [(late,)])
    assert not agreeing([(early,)], [(late,)], rows(RUNNING))
    assert agreeing([(early,)], [(late,)], rows())  # over, and deleted since
    assert not agreeing([(early,)], [(replace(late, status=Status.PROCESSING),)], rows())
    assert not agreeing([(early,)], [(replace(late, inserted=True),)], rows(DONE))
    assert not agreeing([(early,)], [(replace(late, result=b"1"),)], rows(DONE))


def test_of_two_that_maintain_one_may_do_what_the_other_would_have_done() -> None:
    nothing = Upkeep(recovered=0, buried=0, promoted=0, pruned=0, next_due_in=None, next_expiry_in=None)
    both = [evolve(nothing, recovered=2, promoted=1), nothing]
    assert agreeing(both, [evolve(nothing, recovered=2), evolve(nothing, promoted=1)])
    assert not agreeing(both, [evolve(nothing, recovered=2), nothing])


@pytest.mark.anyio
async def test_of_several_explanations_only_those_have_to_be_woken_whom_all_of_them_wake() -> None:
    oracle = Oracle()
    copies = [oracle.copy(), oracle.copy()]
    for copy, queues in zip(copies, (["a", "b"], ["b", "c"]), strict=True):
        await copy.insert([NewJob(id=UUID(int=n), type="t", queue_name=q, payload=b"{}") for n, q in enumerate(queues)])
    nobody = frozenset[str]()
    oracle.become_one_of(copies, exact=True)
    assert oracle.wakes() == (frozenset("b"), frozenset("abc"))
    assert oracle.wakes() == (nobody, nobody)
    oracle.become_one_of([copies[0].copy()], exact=False)
    assert oracle.wakes() == (nobody, nobody)
    assert {row.record.queue_name for row in oracle.rows().jobs.values()} == {"a", "b"}


# --- the promises: what breaks one is noticed, without any oracle -----------------------------------

JOB: Final = UUID(int=1)
LEASE: Final = Lease(job_id=JOB, token=1, nonce=7)
UNTIL: Final = START + timedelta(seconds=30)
AFTER: Final = START + timedelta(seconds=31)
FOLLOWS: Final = FollowUp(id=UUID(int=2), type="t", head="{}")


def stored(status: Status, **changes: Any) -> StoredJob:
    """Return a row that is of one piece, but for the changes."""
    running = status is Status.PROCESSING
    record = JobRecord(
        id=JOB,
        queue_name="q",
        type="t",
        payload=b"{}",
        status=status,
        priority=0,
        attempts=0 if status in {Status.PENDING, Status.SCHEDULED} else 1,
        max_attempts=2,
        available_at=START,
        locked_until=UNTIL if running else None,
        locked_by="w" if running else None,
        last_error=None,
        idempotency_key=None,
        fingerprint=None,
        cancel_requested=False,
        created_at=START,
        updated_at=START,
        completed_at=None if status.active else START,
        result=None,
        result_expires_at=None,
    )
    own: dict[str, Any] = {
        name: changes.pop(name) for name in ("token", "nonce", "single_flight", "callbacks") if name in changes
    }
    fence: dict[str, Any] = (
        {} if status in {Status.PENDING, Status.SCHEDULED} else {"token": LEASE.token, "nonce": LEASE.nonce}
    )
    facts: dict[str, Any] = {**fence, **own}
    return StoredJob(record=evolve(record, **changes), **facts)


PENDING, RUNNING, DONE = stored(Status.PENDING), stored(Status.PROCESSING), stored(Status.COMPLETED)
RESERVES: Final = Reach(events=frozenset({Event.RESERVE}), touches=[JOB])
SETTLES: Final = Reach(events=SETTLING, touches=[JOB], adds=True)
MAINTAINS: Final = Reach(events=UPKEEP, touches=None, adds=True, removes=True)
TWIN: Final = UUID(int=3)

BROKEN: Final[dict[str, tuple[list[StoredJob], list[StoredJob], Reach]]] = {
    "nothing lost": ([PENDING], [], MAINTAINS),
    "nothing lost: it is gone": ([DONE], [], SETTLES),
    "nobody asked": ([], [PENDING, stored(Status.PENDING, id=TWIN)], SETTLES),
    "fenced": ([RUNNING], [DONE], evolve(SETTLES, touches=[])),
    "tokens never fall": ([RUNNING], [evolve(RUNNING, token=0)], SETTLES),
    "the table of states": ([DONE], [stored(Status.PENDING, token=2)], SETTLES),
    "one holder: the row says": ([PENDING], [evolve(RUNNING, nonce=8)], RESERVES),
    "one holder: .* somebody took it away": ([RUNNING], [stored(Status.SCHEDULED, token=2, attempts=1)], MAINTAINS),
    "recorded, and neither there nor written": ([stored(Status.PENDING, callbacks=[FOLLOWS])], [RUNNING], RESERVES),
    "its callbacks were not written": ([RUNNING], [evolve(DONE, callbacks=[FOLLOWS])], SETTLES),
    "held, and not running": ([RUNNING], [stored(Status.COMPLETED, locked_until=UNTIL, locked_by="w")], SETTLES),
    "running, and not held": ([PENDING], [stored(Status.PROCESSING, locked_until=None, locked_by=None)], RESERVES),
    "half held": ([RUNNING], [stored(Status.PENDING, token=1, nonce=7, locked_by="w")], SETTLES),
    "over at no time": ([RUNNING], [stored(Status.COMPLETED, completed_at=None)], SETTLES),
    "pending before its time": ([RUNNING], [stored(Status.PENDING, token=1, nonce=7, available_at=UNTIL)], SETTLES),
    "fewer attempts than none": ([RUNNING], [stored(Status.PENDING, token=1, nonce=7, attempts=-1)], SETTLES),
    "bounded attempts": ([PENDING], [stored(Status.PROCESSING, attempts=3)], RESERVES),
    "waiting for an attempt": ([RUNNING], [stored(Status.PENDING, token=1, nonce=7, attempts=2)], SETTLES),
    "single flight: 2 jobs active": (
        [PENDING],
        [stored(Status.PENDING, fingerprint=b"f"), stored(Status.PENDING, fingerprint=b"f", id=FOLLOWS.id)],
        SETTLES,
    ),
    "single flight: 2 jobs answering": (
        [RUNNING],
        [
            stored(Status.COMPLETED, fingerprint=b"f", single_flight=True),
            stored(Status.PENDING, fingerprint=b"f", single_flight=True, id=FOLLOWS.id),
        ],
        SETTLES,
    ),
    "single flight: 2 jobs of one key": (
        [PENDING],
        [stored(Status.PENDING, idempotency_key="k"), stored(Status.PENDING, idempotency_key="k", id=FOLLOWS.id)],
        SETTLES,
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_promise_that_is_broken_is_noticed_on_the_rows_alone(promise: str) -> None:
    before, after, reach = BROKEN[promise]
    promises = at_first(*before)
    if reach is SETTLES:
        promises.settled([Settlement(lease=LEASE, event=Event.SUCCEED)], accepted(LEASE))
    if reach is RESERVES:
        promises.reserved(reservation(LEASE), UNTIL, START)
    with pytest.raises(PromiseBroken, match=promise):
        promises.keep(rows(*after), reach, START)


def test_a_job_may_be_deleted_dispatched_anew_and_cancelled_at_once() -> None:
    before = stored(Status.CANCELLED, token=3, callbacks=[FOLLOWS], attempts=0)
    anew = stored(Status.CANCELLED, token=1, attempts=0)
    reach = evolve(SETTLES, events=frozenset({*SETTLING, Event.CANCEL}))
    at_first(before).keep(rows(anew), evolve(reach, deletes=[JOB]), START)
    with pytest.raises(PromiseBroken, match="tokens never fall"):
        at_first(before).keep(rows(anew), reach, START)


def ends(promises: Promises, event: Event = Event.SUCCEED, retention: Retention | None = UNKEPT) -> Promises:
    """Let the holder end the job, by a settle that is accepted."""
    promises.settled([Settlement(lease=LEASE, event=event)], accepted(LEASE), retention)
    return promises


def ends_again(promises: Promises, *, gone: bool, retention: Retention | None = UNKEPT) -> Promises:
    """Let the holder end the job by a settle that is not accepted."""
    lost = frozenset({LEASE})
    answer = Settled(accepted=frozenset(), lost=lost, gone=lost if gone else frozenset())
    promises.settled([Settlement(lease=LEASE, event=Event.SUCCEED)], answer, retention)
    return promises


def test_what_succeeds_and_nothing_keeps_is_gone_at_once() -> None:
    ends(at_first(RUNNING)).keep(rows(), SETTLES, START)
    with pytest.raises(PromiseBroken, match="kept for no time"):
        ends(at_first(RUNNING)).keep(rows(DONE), SETTLES, START)


@pytest.mark.parametrize(
    ("event", "retention"),
    [
        (Event.SUCCEED, None),
        (Event.SUCCEED, Retention(completed=0.000001, failed=0.0, cancelled=0.0)),
        *((event, Retention(completed=0.0, failed=0.0, cancelled=0.0)) for event in sorted(SETTLING - {Event.SUCCEED})),
    ],
)
def test_no_other_end_takes_the_row_along(event: Event, retention: Retention | None) -> None:
    with pytest.raises(PromiseBroken, match="nothing lost"):
        ends(at_first(RUNNING), event, retention).keep(rows(), SETTLES, START)


USED: Final[dict[str, Callable[[Promises], None]]] = {
    "answers for its fingerprint": lambda promises: promises.dispatched(
        [NewJob(id=JOB, type="t", payload=b"{}", fingerprint=bytes(32), result_ttl=1.0)]
    ),
    "its queue keeps it": lambda promises: promises.uses.keeps("q", Retention(completed=1.0)),
    "is watched": lambda promises: promises.watched("somebody", [JOB], []),
    "is watched again": lambda promises: promises.watched("somebody", [JOB], [JOB]),
    "got a callback just now": lambda promises: promises.joined(
        [Insertion(job_id=JOB, status=Status.PROCESSING, inserted=False, fingerprint=None)]
    ),
}


@pytest.mark.parametrize("use", USED)
def test_what_somebody_has_a_use_for_stays_when_it_succeeds(use: str) -> None:
    stays, goes = at_first(RUNNING), at_first(RUNNING)
    for promises in (stays, goes):
        USED[use](promises)
        ends(promises)
    stays.keep(rows(DONE), SETTLES, START)
    with pytest.raises(PromiseBroken, match="nothing lost"):
        goes.keep(rows(), SETTLES, START)


def test_what_others_follow_stays_when_it_succeeds() -> None:
    followed = evolve(RUNNING, callbacks=(FOLLOWS,))
    written = stored(Status.PENDING, id=FOLLOWS.id)
    ends(at_first(followed)).keep(rows(DONE, written), SETTLES, START)
    with pytest.raises(PromiseBroken, match="nothing lost"):
        ends(at_first(followed)).keep(rows(written), SETTLES, START)


def test_what_is_of_no_more_use_goes_when_it_succeeds() -> None:
    promises = at_first(RUNNING)
    promises.uses.keeps("q", Retention(completed=1.0))
    promises.uses.keeps("q", None)
    promises.watched("somebody", [JOB], [])
    promises.watched("somebody", [], [JOB])
    with pytest.raises(PromiseBroken, match="kept for no time"):
        ends(promises).keep(rows(DONE), SETTLES, START)


def test_whoever_watched_what_may_have_been_over_lets_go_of_it() -> None:
    promises = at_first(RUNNING)
    promises.watched("somebody", [JOB], [])
    there_and_back = evolve(SETTLES, events=frozenset({*SETTLING, Event.REVIVE}))
    promises.keep(rows(stored(Status.PROCESSING, cancel_requested=True)), there_and_back, START)
    assert promises.uses.told() == {"somebody": {JOB}}
    assert promises.uses.told() == {}
    ends(promises).keep(rows(), SETTLES, START)


def test_what_went_with_its_end_may_be_called_for_again_beside_it() -> None:
    calls = stored(Status.PROCESSING, id=TWIN, callbacks=[evolve(FOLLOWS, id=JOB)])
    other = replace(LEASE, job_id=TWIN)
    promises = at_first(RUNNING)
    promises.dispatched([NewJob(id=TWIN, type="t", payload=b"{}")])
    promises.reserved(reservation(other), UNTIL, START)
    promises._rows = rows(RUNNING, calls).jobs
    both = [Settlement(lease=lease, event=Event.SUCCEED) for lease in (LEASE, other)]
    promises.settled(both, accepted(LEASE, other), UNKEPT)
    promises.keep(rows(PENDING, stored(Status.COMPLETED, id=TWIN)), evolve(SETTLES, touches=[TWIN]), START)


def test_whoever_ends_again_what_went_is_told_that_it_is_gone() -> None:
    ends_again(ends(at_first(RUNNING)), gone=True).keep(rows(), SETTLES, START)
    ends_again(at_first(), gone=True).keep(rows(), SETTLES, START)
    ends_again(at_first(RUNNING), gone=False).keep(rows(RUNNING), SETTLES, START)
    ends_again(at_first(), gone=False, retention=None).keep(rows(), SETTLES, START)
    for broken_one, found in {
        ends_again(ends(at_first(RUNNING)), gone=False): rows(),
        ends_again(at_first(), gone=False): rows(),
        ends_again(at_first(RUNNING), gone=True): rows(RUNNING),
    }.items():
        with pytest.raises(PromiseBroken, match="gone or not"):
            broken_one.keep(found, SETTLES, START)


def at_first(*jobs: StoredJob) -> Promises:
    """Return promises that have seen these rows, of which those that run are held."""
    promises = Promises()
    promises.dispatched([NewJob(id=JOB, type="t", payload=b"{}", callbacks=(FOLLOWS,))])
    for job in jobs:
        if job.record.status is Status.PROCESSING:
            promises.reserved(reservation(LEASE), UNTIL, START)
    promises._rows = rows(*jobs).jobs
    return promises


def rows(*jobs: StoredJob) -> StoredRows:
    return StoredRows(jobs={job.record.id: job for job in jobs}, letters={})


def accepted(*leases: Lease) -> Settled:
    return Settled(accepted=frozenset(leases), lost=frozenset())


def reservation(lease: Lease) -> Reservation:
    job = ReservedJob(
        lease=lease, queue_name="q", type="t", payload=b"{}", priority=0, attempt=1, max_attempts=2, created_at=START
    )
    return Reservation(jobs=[job], next_due_in=None)


def test_a_second_lease_is_noticed_while_the_first_is_valid() -> None:
    promises = at_first(RUNNING)
    with pytest.raises(PromiseBroken, match="one holder"):
        promises.reserved(reservation(replace(LEASE, token=2)), UNTIL, START)
    promises.reserved(reservation(replace(LEASE, token=2)), UNTIL, AFTER)


def test_a_lease_that_is_prolonged_for_somebody_else_is_noticed() -> None:
    stale = replace(LEASE, nonce=8)
    with pytest.raises(PromiseBroken, match="fenced"):
        at_first(RUNNING).extended(
            Extension(held=frozenset({stale}), lost=frozenset(), cancel_requested=frozenset()), 5.0, START
        )


def test_whoever_decides_on_a_retry_at_the_last_attempt_gives_one_more() -> None:
    last = stored(Status.PROCESSING, attempts=2)
    promises = at_first(last)
    promises.settled([Settlement(lease=LEASE, event=Event.RETRY)], accepted(LEASE))
    waits = stored(Status.PENDING, token=1, nonce=7, attempts=2)
    promises.keep(rows(waits), SETTLES, START)
    promises.reserved(reservation(replace(LEASE, token=2)), UNTIL, START)
    promises.keep(rows(stored(Status.PROCESSING, token=2, attempts=3)), RESERVES, START)
