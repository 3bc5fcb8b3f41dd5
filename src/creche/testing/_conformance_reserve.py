"""Reserve and extend: who gets which job, for how long, and what a lease is worth. How it ends stands apart."""

from __future__ import annotations

from datetime import timedelta

import pytest
from anyio import create_task_group
from msgspec.structs import replace

from creche._ids import new_job_id
from creche._job import Event, Extension, Lease, ReservedJob, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    LEASE,
    T0,
    Suite,
    add,
    at,
    bring,
    everything,
    extend,
    hold,
    lapse,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
)


def forged(lease: Lease) -> list[Lease]:
    """Return what is close to a lease, and is none."""
    return [
        replace(lease, nonce=lease.nonce ^ 1),
        replace(lease, nonce=~lease.nonce),
        replace(lease, token=lease.token + 1),
        replace(lease, token=lease.token - 1),
        replace(lease, job_id=new_job_id()),
    ]


class ReserveConformance(Suite):
    """`Storage.reserve`."""

    async def test_a_reserved_job_is_handed_out_with_all_that_an_attempt_needs(self, storage: Storage) -> None:
        job = new_job(type="ocr", payload=b"[1]", queue_name="q", priority=3, max_attempts=7)
        await storage.insert([job], now=T0)
        reservation = await reserve(storage, 5, queues=["q"], lease=90.5, worker="host:1", nonce=-12, now=at(1))
        (taken,) = reservation.jobs
        assert taken == ReservedJob(
            lease=Lease(job_id=job.id, token=taken.lease.token, nonce=-12),
            queue_name="q",
            type="ocr",
            payload=b"[1]",
            priority=3,
            attempt=1,
            max_attempts=7,
            created_at=T0,
        )
        record = await row(storage, job.id)
        assert (record.status, record.attempts) == (Status.PROCESSING, 1)
        assert (record.locked_until, record.locked_by) == (at(91.5), "host:1")
        assert (record.updated_at, record.created_at, record.available_at) == (at(1), T0, T0)
        assert not record.cancel_requested

    @pytest.mark.parametrize("nonce", [-(1 << 63), -1, 0, 1, (1 << 63) - 1])
    async def test_any_64_bits_are_a_nonce(self, storage: Storage, nonce: int) -> None:
        await add(storage)
        lease = (await take(storage, nonce=nonce)).lease
        assert lease.nonce == nonce
        assert await extend(storage, lease)
        assert await settle(storage, lease, Event.SUCCEED, result=b"1")

    async def test_never_more_than_the_limit_and_never_fewer_while_there_are_jobs(self, storage: Storage) -> None:
        await storage.insert([new_job() for _ in range(10)], now=T0)
        assert [len((await reserve(storage, 4)).jobs) for _ in range(4)] == [4, 4, 2, 0]

    async def test_higher_priority_first_then_the_earlier_due_then_the_older(self, storage: Storage) -> None:
        jobs = [
            new_job(priority=priority, available_at=at(-due))
            for priority in (0, -100, 100, 5)
            for due in (1, 30, 10, 10)
        ]
        await storage.insert(jobs[::-1], now=T0)
        taken = (await reserve(storage, len(jobs))).jobs
        expected = sorted(jobs, key=lambda job: (-job.priority, job.available_at, job.id))
        assert [job.id for job in taken] == [job.id for job in expected]

    async def test_the_limit_cuts_the_order_and_not_another_one(self, storage: Storage) -> None:
        jobs = [new_job(priority=number % 7, available_at=at(-(number % 5))) for number in range(35)]
        await storage.insert(jobs, now=T0)
        expected = sorted(jobs, key=lambda job: (-job.priority, job.available_at, job.id))
        taken = [job.id for _ in range(5) for job in (await reserve(storage, 7)).jobs]
        assert taken == [job.id for job in expected]

    async def test_queues_are_served_in_the_order_given(self, storage: Storage) -> None:
        first = await add(storage, queue_name="b", priority=-100, now=at(2))
        second = await add(storage, queue_name="a", priority=100, now=at(1))
        third = await add(storage, queue_name="c", priority=100, now=at(0))
        await add(storage, queue_name="elsewhere")
        taken = (await reserve(storage, 10, queues=["b", "a", "c"], now=at(3))).jobs
        assert [job.id for job in taken] == [first, second, third]

    async def test_the_limit_holds_across_queues(self, storage: Storage) -> None:
        await storage.insert([new_job(queue_name=name) for name in "aabbcc"], now=T0)
        taken = (await reserve(storage, 3, queues=["c", "a", "b"])).jobs
        assert [job.queue_name for job in taken] == ["c", "c", "a"]

    async def test_queues_that_a_collation_would_confuse_are_different(self, storage: Storage) -> None:
        jobs = {name: new_job(queue_name=name) for name in DISTINCT_NAMES}
        await storage.insert(list(jobs.values()), now=T0)
        for name, job in jobs.items():
            assert [taken.id for taken in (await reserve(storage, 20, queues=[name])).jobs] == [job.id]

    async def test_only_jobs_of_the_types_asked_for_are_taken(self, storage: Storage) -> None:
        jobs = {name: new_job(type=name) for name in DISTINCT_NAMES}
        await storage.insert(list(jobs.values()), now=T0)
        assert not (await reserve(storage, 20, types=["unknown"])).jobs
        assert not (await reserve(storage, 20, types=[])).jobs
        for name, job in jobs.items():
            assert [taken.id for taken in (await reserve(storage, 20, types={name, "unknown"})).jobs] == [job.id]

    async def test_jobs_of_other_types_do_not_use_up_the_limit(self, storage: Storage) -> None:
        await storage.insert([new_job(type="other", priority=9) for _ in range(5)], now=T0)
        mine = await add(storage, type="mine")
        assert [job.id for job in (await reserve(storage, 2, types=["mine"])).jobs] == [mine]

    async def test_a_reserved_job_is_nobody_elses_until_it_is_recovered(self, storage: Storage) -> None:
        await hold(storage, queue_name="q", lease=LEASE)
        for now in (T0, at(LEASE), at(100 * LEASE)):
            assert not (await reserve(storage, 10, queues=["q"], now=now)).jobs
        ready = await lapse(storage, now=at(100 * LEASE))
        assert (await take(storage, queues=["q"], now=ready)).attempt == 2

    @pytest.mark.parametrize("status", [status for status in Status if status is not Status.PENDING])
    async def test_only_pending_jobs_are_taken(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status, queue_name="q")
        before = await everything(storage)
        # Also when the hour that a scheduled one waits is over: it is promoted first.
        for now in (T0, at(7_200)):
            assert not (await reserve(storage, 10, queues=["q"], now=now)).jobs
        assert await everything(storage) == before
        assert (await row(storage, lease.job_id)).status is status

    async def test_each_reservation_counts_an_attempt_and_raises_the_token(self, storage: Storage) -> None:
        await add(storage, max_attempts=5)
        tokens: list[int] = []
        for attempt in (1, 2, 3, 4, 5):
            job = await take(storage)
            assert job.attempt == attempt
            tokens.append(job.lease.token)
            await settle(storage, job.lease, Event.RETRY, error=BOOM)
        assert tokens == sorted(set(tokens))

    async def test_the_token_rises_also_where_the_attempt_does_not(self, storage: Storage) -> None:
        await add(storage)
        tokens: list[int] = []
        for _ in range(3):
            job = await take(storage)
            assert job.attempt == 1
            tokens.append(job.lease.token)
            await settle(storage, job.lease, Event.RELEASE)
        await maintain(storage)
        assert tokens == sorted(set(tokens))

    async def test_the_next_due_job_is_announced(self, storage: Storage) -> None:
        assert (await reserve(storage, queues=["a", "b"])).next_due_in is None
        await add(storage, queue_name="elsewhere", delay=1)
        await add(storage, queue_name="a")
        assert (await reserve(storage, queues=["a", "b"])).next_due_in is None
        await add(storage, queue_name="a", delay=90.5)
        await add(storage, queue_name="b", delay=30.25)
        for now, seconds in ((T0, 30.25), (at(30), 0.25), (at(30.25), 0.0), (at(500), 0.0)):
            reservation = await reserve(storage, queues=["a", "b"], now=now)
            assert not reservation.jobs
            assert reservation.next_due_in == pytest.approx(seconds, abs=1e-5)

    async def test_the_next_due_job_is_announced_along_with_a_full_batch(self, storage: Storage) -> None:
        await storage.insert([new_job(), new_job(), new_job(delay=5)], now=T0)
        reservation = await reserve(storage, 1)
        assert len(reservation.jobs) == 1
        assert reservation.next_due_in == pytest.approx(5.0, abs=1e-5)

    async def test_rivals_share_no_job_and_leave_none(self, storage: Storage) -> None:
        jobs = [new_job(priority=number % 3) for number in range(60)]
        await storage.insert(jobs, now=T0)
        taken: list[ReservedJob] = []

        async def rival(name: str) -> None:
            while batch := (await reserve(storage, 7, worker=name)).jobs:
                assert len(batch) <= 7
                taken.extend(batch)

        async with create_task_group() as rivals:
            for number in range(6):
                rivals.start_soon(rival, f"rival {number}")
        assert sorted(job.id for job in taken) == sorted(job.id for job in jobs)
        assert {job.attempt for job in taken} == {1}

    async def test_rivals_for_one_job_are_one_winner(self, storage: Storage) -> None:
        await add(storage)
        taken: list[ReservedJob] = []

        async def rival() -> None:
            taken.extend((await reserve(storage, 5)).jobs)

        async with create_task_group() as rivals:
            for _ in range(8):
                rivals.start_soon(rival)
        (winner,) = taken
        assert await extend(storage, winner.lease)

    async def test_leases_of_a_second_and_of_a_month_last_as_long_as_they_say(self, storage: Storage) -> None:
        for lease in (1.0, 30 * 86_400.0, 0.000_001):
            held = await hold(storage, lease=lease)
            assert (await row(storage, held.job_id)).locked_until == T0 + timedelta(seconds=lease)


class ExtendConformance(Suite):
    """`Storage.extend`."""

    async def test_extending_nothing_does_nothing(self, storage: Storage) -> None:
        empty = frozenset[Lease]()
        assert await storage.extend([], 60, now=T0) == Extension(held=empty, lost=empty, cancel_requested=empty)

    async def test_it_says_which_are_held_which_are_lost_and_whose_end_is_wanted(self, storage: Storage) -> None:
        held, asked, settled = [await hold(storage) for _ in range(3)]
        await storage.cancel([asked.job_id], now=T0)
        await settle(storage, settled, Event.SUCCEED, result=b"1")
        unknown = Lease(job_id=new_job_id(), token=1, nonce=1)
        assert await storage.extend({held, asked, settled, unknown}, 90, now=at(10)) == Extension(
            held=frozenset({held, asked}), lost=frozenset({settled, unknown}), cancel_requested=frozenset({asked})
        )
        for lease in (held, asked):
            assert (await row(storage, lease.job_id)).locked_until == at(100)
        assert (await row(storage, settled.job_id)).locked_until is None

    async def test_it_never_brings_a_deadline_nearer(self, storage: Storage) -> None:
        lease = await hold(storage, lease=100)
        assert await extend(storage, lease, 10, now=at(1))
        assert (await row(storage, lease.job_id)).locked_until == at(100)
        assert await extend(storage, lease, 99.5, now=at(1))
        assert (await row(storage, lease.job_id)).locked_until == at(100.5)

    async def test_it_keeps_the_lease_and_the_attempt(self, storage: Storage) -> None:
        lease = await hold(storage)
        for now in (10, 70, 120):
            assert await extend(storage, lease, LEASE, now=at(now))
        record = await row(storage, lease.job_id)
        assert (record.status, record.attempts) == (Status.PROCESSING, 1)
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(130))

    async def test_a_lease_that_ran_out_and_was_not_recovered_is_still_held(self, storage: Storage) -> None:
        lease = await hold(storage)
        assert await extend(storage, lease, LEASE, now=at(10 * LEASE))
        assert (await row(storage, lease.job_id)).locked_until == at(11 * LEASE)
        assert (await maintain(storage, now=at(10.5 * LEASE))).recovered == 0

    async def test_a_lease_that_was_recovered_is_lost(self, storage: Storage) -> None:
        lease = await hold(storage)
        await maintain(storage, now=at(LEASE + 1))
        before = await everything(storage)
        assert not await extend(storage, lease, now=at(LEASE + 2))
        assert await everything(storage) == before

    async def test_a_lease_that_another_holder_followed_is_lost_and_theirs_is_not(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q")
        theirs = (await take(storage, queues=["q"], now=await lapse(storage, now=at(LEASE)))).lease
        assert not await extend(storage, lease, 9_000, now=at(LEASE + 2))
        assert (await row(storage, lease.job_id)).locked_until == at(2 * LEASE + 1)
        assert await extend(storage, theirs, now=at(LEASE + 2))

    @pytest.mark.parametrize("status", [status for status in Status if status is not Status.PROCESSING])
    async def test_a_lease_whose_attempt_ended_is_lost(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        before = await everything(storage)
        assert not await extend(storage, lease, now=at(1))
        assert await everything(storage) == before

    async def test_to_extend_token_and_nonce_must_both_be_right(self, storage: Storage) -> None:
        lease = await hold(storage)
        before = await everything(storage)
        forgeries = forged(lease)
        answer = await storage.extend(forgeries, 9_000, now=at(1))
        assert answer.lost == set(forgeries)
        assert not answer.held
        assert await everything(storage) == before
        assert await extend(storage, lease, now=at(1))

    async def test_pairs_are_compared_as_pairs(self, storage: Storage) -> None:
        first, second = await hold(storage), await hold(storage)
        crossed = [replace(first, nonce=second.nonce), replace(second, nonce=first.nonce)]
        answer = await storage.extend([*crossed, first], LEASE, now=at(1))
        assert answer.held == {first}
        assert answer.lost == set(crossed)

    async def test_a_thousand_leases_are_one_batch(self, storage: Storage) -> None:
        await storage.insert([new_job() for _ in range(1_000)], now=T0)
        leases = [job.lease for job in (await reserve(storage, 1_000)).jobs]
        stale = [replace(lease, nonce=lease.nonce ^ 1) for lease in leases[::10]]
        answer = await storage.extend([*leases[1::2], *stale], 2 * LEASE, now=at(1))
        assert answer.held == set(leases[1::2])
        assert answer.lost == set(stale)
