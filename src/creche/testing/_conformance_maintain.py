"""Maintain: what is taken back, promoted and pruned, and when. It covers no settling."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._backoff import recovery_delay
from creche._job import AttemptError, Event, JobFilter, Retention, Status, Upkeep
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    LEASE,
    PUT_OFF,
    T0,
    Suite,
    add,
    ask,
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

MICROSECOND: Final = timedelta(microseconds=1)
IDLE = Upkeep(recovered=0, buried=0, promoted=0, pruned=0, next_due_in=None)


class RecoverConformance(Suite):
    """`Storage.maintain`: leases that ran out."""

    async def test_on_an_empty_storage_there_is_nothing_to_do(self, storage: Storage) -> None:
        assert await maintain(storage) == IDLE

    @pytest.mark.parametrize("status", list(Status))
    async def test_what_needs_nothing_is_left_alone(self, storage: Storage, status: Status) -> None:
        await bring(storage, status)
        before = await everything(storage)
        upkeep = await maintain(storage, now=at(LEASE - 0.000_001))
        assert (upkeep.recovered, upkeep.buried, upkeep.promoted, upkeep.pruned) == (0, 0, 0, 0)
        assert await everything(storage) == before

    async def test_a_job_whose_lease_ran_out_is_due_a_little_later(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q", available_at=at(-5), max_attempts=2)
        upkeep = await maintain(storage, now=at(LEASE))
        assert (upkeep.recovered, upkeep.buried, upkeep.promoted) == (1, 0, 0)
        record = await row(storage, lease.job_id)
        assert (record.status, record.attempts) == (Status.SCHEDULED, 1)
        assert at(LEASE) < record.available_at < at(LEASE + PUT_OFF)
        assert upkeep.next_due_in == pytest.approx((record.available_at - at(LEASE)).total_seconds(), abs=1e-5)
        assert (record.locked_until, record.locked_by, record.updated_at) == (None, None, at(LEASE))
        assert record.last_error is not None
        assert record.last_error.type == "LeaseExpired"
        assert "1" in record.last_error.message
        assert (await maintain(storage, now=record.available_at - MICROSECOND)).promoted == 0
        assert not (await reserve(storage, queues=["q"], now=record.available_at - MICROSECOND)).jobs
        assert (await maintain(storage, now=record.available_at)).promoted == 1
        again = await take(storage, queues=["q"], now=record.available_at)
        assert again.attempt == 2
        assert again.lease.token > lease.token

    async def test_jobs_that_were_held_together_are_due_at_moments_of_their_own(self, storage: Storage) -> None:
        neighbours = [new_job() for _ in range(10)]
        await storage.insert(neighbours, now=T0)
        await reserve(storage, 10)
        assert (await maintain(storage, now=at(LEASE))).recovered == 10
        found = await storage.find([job.id for job in neighbours])
        delays = [found[job.id].available_at - at(LEASE) for job in neighbours]
        assert delays == [timedelta(microseconds=recovery_delay(job.id, 1)) for job in neighbours]
        assert len(set(delays)) > 5  # of ids that a second draws, two may agree in 16 bits

    @pytest.mark.parametrize("bits", ["000180007fff", "0123456789ab", "fedcba987654", "ffffffffffff"])
    async def test_how_much_later_is_drawn_from_the_id_and_doubles_with_each_attempt(
        self, storage: Storage, bits: str
    ) -> None:
        job_id = await add(storage, id=UUID(f"01941f29-7c00-7000-8000-{bits}"), max_attempts=10)
        now = T0
        for attempt in range(1, 10):
            assert (await take(storage, now=now)).attempt == attempt
            now += timedelta(seconds=LEASE)
            await maintain(storage, now=now)
            record = await row(storage, job_id)
            later = timedelta(microseconds=recovery_delay(job_id, attempt))
            assert (record.status, record.available_at) == (Status.SCHEDULED, now + later)
            assert later <= timedelta(seconds=min(2 ** (attempt - 1), 64))
            now += later
            assert (await maintain(storage, now=now)).promoted == 1

    async def test_a_recovered_job_that_is_due_at_once_is_promoted_at_once(self, storage: Storage) -> None:
        job_id = await add(storage, id=UUID("01941f29-7c00-7000-8000-0000ffffffff"))
        await take(storage)
        assert await maintain(storage, now=at(LEASE)) == Upkeep(recovered=1, buried=0, promoted=1, pruned=0)
        record = await row(storage, job_id)
        assert (record.status, record.available_at) == (Status.PENDING, at(LEASE))
        assert (await take(storage, now=at(LEASE))).attempt == 2

    async def test_a_recovered_job_takes_its_place_by_the_moment_when_it_is_due(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q")
        before = await add(storage, queue_name="q", now=at(LEASE))
        behind = await add(storage, queue_name="q", now=at(LEASE + PUT_OFF))
        ready = await lapse(storage, now=at(LEASE))
        taken = (await reserve(storage, 5, queues=["q"], now=ready)).jobs
        assert [job.id for job in taken] == [before, lease.job_id, behind]

    async def test_people_need_not_wait_for_a_recovered_job(self, storage: Storage) -> None:
        first, second = await hold(storage, queue_name="q"), await hold(storage)
        await maintain(storage, now=at(LEASE))
        both = await storage.retry([first.job_id], now=at(LEASE)), await storage.cancel([second.job_id], now=at(LEASE))
        assert both == ({first.job_id: Status.PENDING}, {second.job_id: Status.CANCELLED})
        assert (await take(storage, queues=["q"], now=at(LEASE))).attempt == 2

    async def test_the_first_lease_to_run_out_is_announced(self, storage: Storage) -> None:
        await hold(storage)
        later = await hold(storage, now=at(5))
        assert (await maintain(storage, now=at(6))).next_expiry_in == pytest.approx(LEASE - 6, abs=1e-5)
        await storage.extend([later], 3 * LEASE, now=at(6))
        over = await maintain(storage, now=at(LEASE))
        assert over.recovered + over.buried == 1
        assert over.next_expiry_in == pytest.approx(2 * LEASE + 6, abs=1e-5)
        await settle(storage, later, Event.SUCCEED, result=b"1", now=at(LEASE))
        assert (await maintain(storage, now=at(LEASE))).next_expiry_in is None

    async def test_a_lease_that_ran_out_on_the_last_attempt_buries_its_job(self, storage: Storage) -> None:
        job_id = await add(storage, max_attempts=2, payload=b"[1]")
        await settle(storage, (await take(storage)).lease, Event.RETRY, error=BOOM)
        await take(storage)
        assert await maintain(storage, now=at(LEASE + 1)) == Upkeep(recovered=0, buried=1, promoted=0, pruned=0)
        record = await row(storage, job_id)
        assert (record.status, record.attempts, record.completed_at) == (Status.FAILED, 2, at(LEASE + 1))
        (letter,) = await storage.dead_letters(10)
        assert (letter.job_id, letter.payload, letter.buried_at) == (job_id, b"[1]", at(LEASE + 1))
        assert (letter.attempts, letter.max_attempts) == (2, 2)
        first, last = letter.errors
        assert first == AttemptError(attempt=1, failed_at=T0, error=BOOM)
        assert (last.attempt, last.failed_at, last.error) == (2, at(LEASE + 1), record.last_error)
        assert last.error.type == "LeaseExpired"
        assert "2" in last.error.message

    @pytest.mark.parametrize("max_attempts", [1, 2])
    async def test_a_lease_that_ran_out_after_a_cancellation_was_asked_for_ends_in_it(
        self, storage: Storage, max_attempts: int
    ) -> None:
        lease = await hold(storage, max_attempts=max_attempts)
        await storage.cancel([lease.job_id], now=T0)
        assert await maintain(storage, now=at(LEASE + 1)) == Upkeep(recovered=1, buried=0, promoted=0, pruned=0)
        record = await row(storage, lease.job_id)
        assert (record.status, record.completed_at, record.available_at) == (Status.CANCELLED, at(LEASE + 1), T0)
        assert record.last_error is not None
        assert record.last_error.type == "LeaseExpired"
        assert list(await storage.dead_letters(10)) == []

    @pytest.mark.parametrize("cancelled", [False, True])
    async def test_what_ends_by_it_and_is_kept_for_no_time_goes_in_the_same_call(
        self, storage: Storage, cancelled: bool
    ) -> None:
        lease = await hold(storage, max_attempts=1)
        if cancelled:
            await storage.cancel([lease.job_id], now=T0)
        nothing_kept = Retention(completed=0, failed=0, cancelled=0)
        upkeep = await maintain(storage, retention=nothing_kept, now=at(LEASE))
        assert upkeep == Upkeep(recovered=int(cancelled), buried=int(not cancelled), promoted=0, pruned=1)
        assert await storage.find([lease.job_id]) == {}
        assert list(await storage.dead_letters(10)) == []

    async def test_an_extended_lease_is_not_taken_back(self, storage: Storage) -> None:
        lease = await hold(storage)
        await extend(storage, lease, LEASE, now=at(30))
        assert (await maintain(storage, now=at(89))).recovered == 0
        assert (await maintain(storage, now=at(91))).recovered == 1

    async def test_a_job_that_kills_its_worker_each_time_runs_out_of_attempts(self, storage: Storage) -> None:
        job_id = await add(storage, max_attempts=3)
        for attempt in (1, 2, 3):
            assert (await take(storage, now=at(attempt * 100))).attempt == attempt
            await maintain(storage, now=at(attempt * 100 + LEASE))
            await maintain(storage, now=at(attempt * 100 + 99))
        assert (await row(storage, job_id)).status is Status.FAILED
        assert not (await reserve(storage, now=at(1_000))).jobs
        (letter,) = await storage.dead_letters(10)
        assert [error.attempt for error in letter.errors] == [1, 2, 3]


class PromoteConformance(Suite):
    """`Storage.maintain`: what became due."""

    async def test_if_it_says_what_is_ready_it_names_the_queues_that_are(self, storage: Storage) -> None:
        assert (await maintain(storage)).ready in (None, frozenset())
        for name in ("a", "a", "b", "paused"):
            await add(storage, queue_name=name)
        await add(storage, queue_name="later", delay=30)
        await storage.pause(["paused"], now=T0)
        assert (await maintain(storage)).ready in (None, frozenset({"a", "b"}))

    async def test_a_due_job_is_promoted_at_its_time_and_not_before(self, storage: Storage) -> None:
        job_id = await add(storage, delay=30)
        early = await maintain(storage, now=at(29.5))
        assert early.promoted == 0
        assert early.next_due_in == pytest.approx(0.5, abs=1e-5)
        assert await maintain(storage, now=at(30)) == Upkeep(recovered=0, buried=0, promoted=1, pruned=0)
        record = await row(storage, job_id)
        assert (record.status, record.available_at, record.attempts) == (Status.PENDING, at(30), 0)

    async def test_promoted_jobs_are_served_by_when_they_were_due(self, storage: Storage) -> None:
        late = await add(storage, delay=20)
        early = await add(storage, delay=10)
        ready = await add(storage, now=at(15))
        await maintain(storage, now=at(30))
        assert [job.id for job in (await reserve(storage, 5, now=at(30))).jobs] == [early, ready, late]

    async def test_the_next_due_job_of_any_queue_is_announced(self, storage: Storage) -> None:
        await add(storage, queue_name="a", delay=60)
        await add(storage, queue_name="b", delay=20)
        assert (await maintain(storage)).next_due_in == pytest.approx(20, abs=1e-5)
        assert (await maintain(storage, now=at(25))).next_due_in == pytest.approx(35, abs=1e-5)
        assert (await maintain(storage, now=at(99))).next_due_in is None

    async def test_what_the_limit_left_over_is_due_at_once(self, storage: Storage) -> None:
        await storage.insert([new_job(delay=5) for _ in range(3)], now=T0)
        assert await maintain(storage, 2, now=at(9)) == Upkeep(
            recovered=0, buried=0, promoted=2, pruned=0, next_due_in=0.0
        )
        assert await maintain(storage, 2, now=at(9)) == Upkeep(recovered=0, buried=0, promoted=1, pruned=0)


class PruneConformance(Suite):
    """`Storage.maintain`: what nobody needs any more, and the sum of all it does."""

    @pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
    async def test_a_finished_job_is_kept_for_its_states_retention(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        retention = Retention(**{"completed": 10, "failed": 10, "cancelled": 10, status.value: 100})
        assert (await maintain(storage, retention=retention, now=at(99.999_999))).pruned == 0
        assert lease.job_id in await storage.find([lease.job_id])
        assert len(await storage.dead_letters(10)) == (status is Status.FAILED)
        assert (await maintain(storage, retention=retention, now=at(100))).pruned == 1
        assert await storage.find([lease.job_id]) == {}
        assert list(await storage.dead_letters(10)) == []

    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED, Status.PROCESSING])
    async def test_an_active_job_is_never_pruned(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        upkeep = await maintain(storage, retention=Retention(completed=0, failed=0, cancelled=0), now=at(86_400 * 999))
        assert upkeep.pruned == 0
        assert lease.job_id in await storage.find([lease.job_id])

    async def test_retention_counts_from_the_end_and_not_from_the_beginning(self, storage: Storage) -> None:
        lease = await hold(storage, lease=1_000)
        await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(500))
        assert (await maintain(storage, retention=Retention(completed=100), now=at(599))).pruned == 0
        assert (await maintain(storage, retention=Retention(completed=100), now=at(600))).pruned == 1

    async def test_a_fresh_result_keeps_its_row(self, storage: Storage) -> None:
        lease = await bring(storage, Status.COMPLETED, fingerprint=bytes(32), result_ttl=100.0)
        brief = Retention(completed=0, failed=0, cancelled=0)
        assert (await maintain(storage, retention=brief, now=at(99))).pruned == 0
        assert (await ask(storage, fingerprint=bytes(32), now=at(99))).job_id == lease.job_id
        assert (await maintain(storage, retention=brief, now=at(101))).pruned == 1

    async def test_the_limit_holds_for_each_kind(self, storage: Storage) -> None:
        for _ in range(3):
            await hold(storage, max_attempts=3)
            await add(storage, delay=1)
            await bring(storage, Status.COMPLETED)
        retention = Retention(completed=1)
        counts: list[tuple[int, int, int]] = []
        for _ in range(3):
            upkeep = await maintain(storage, 2, retention=retention, now=at(LEASE + 1))
            counts.append((upkeep.recovered + upkeep.buried, upkeep.promoted, upkeep.pruned))
        assert counts == [(2, 2, 2), (1, 1, 1), (0, 0, 0)]

    async def test_done_twice_it_finds_nothing_the_second_time(self, storage: Storage) -> None:
        await hold(storage, max_attempts=1)
        await hold(storage, max_attempts=2)
        await add(storage, delay=1)
        await bring(storage, Status.CANCELLED)
        retention = Retention(cancelled=1)
        first = await maintain(storage, retention=retention, now=at(LEASE + 1))
        assert first == Upkeep(recovered=1, buried=1, promoted=1, pruned=1, next_due_in=first.next_due_in)
        before = await everything(storage)
        again = await maintain(storage, retention=retention, now=at(LEASE + 1))
        assert again == evolve(IDLE, next_due_in=first.next_due_in)
        assert await everything(storage) == before

    async def test_rivals_count_each_job_once(self, storage: Storage) -> None:
        await storage.insert([new_job(max_attempts=1 + number % 2) for number in range(40)], now=T0)
        await reserve(storage, 40)
        await storage.insert([new_job(delay=5) for _ in range(20)], now=T0)
        for _ in range(10):
            await bring(storage, Status.COMPLETED)
        done: list[Upkeep] = []

        async def rival() -> None:
            while True:
                upkeep = await maintain(storage, 7, retention=Retention(completed=1), now=at(LEASE + 1))
                done.append(upkeep)
                if upkeep.recovered + upkeep.buried + upkeep.promoted + upkeep.pruned == 0:
                    return

        async with create_task_group() as rivals:
            for _ in range(4):
                rivals.start_soon(rival)
        assert sum(upkeep.recovered for upkeep in done) == 20
        assert sum(upkeep.buried for upkeep in done) == 20
        assert sum(upkeep.promoted for upkeep in done) == 20
        assert sum(upkeep.pruned for upkeep in done) == 10
        assert len(await storage.list(JobFilter(statuses=frozenset({Status.SCHEDULED})), 100)) == 20
        assert len(await storage.list(JobFilter(statuses=frozenset({Status.PENDING})), 100)) == 20
        assert len(await storage.dead_letters(100)) == 20
