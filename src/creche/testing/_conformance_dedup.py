"""Keys and fingerprints: of many dispatches one inserts, and the others find it. Other parts of insert stand apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from anyio import create_task_group

from creche._job import Event, Insertion, JobFilter, Lease, NewJob, Retention, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    DISTINCT_NAMES,
    LEASE,
    SETTLES_WITH,
    T0,
    Suite,
    add,
    ask,
    at,
    bring,
    everything,
    follow_up,
    hold,
    lapse,
    maintain,
    new_job,
    row,
    settle,
    take,
)

PRINT = b"\x00" * 31 + b"\xff"
OTHER_PRINT = b"\xff" + b"\x00" * 31
CALLERS = 20
ROUNDS = 10
"""At first most callers wait while connections are made, and come one after the other: no rivals of anybody yet."""


async def _at_once(storage: Storage, batches: Sequence[Sequence[NewJob]]) -> list[tuple[NewJob, Insertion]]:
    """Insert batches at once; return each job with its answer."""
    answered: list[tuple[NewJob, Insertion]] = []

    async def send(batch: Sequence[NewJob]) -> None:
        answered.extend(zip(batch, await storage.insert(batch, now=T0), strict=True))

    async with create_task_group() as callers:
        for batch in batches:
            callers.start_soon(send, batch)
    return answered


async def _winner(storage: Storage, **options: Any) -> UUID:
    """Dispatch the same job many times at once; return the id that all of them got, and that one of them inserted."""
    answered = await _at_once(storage, [[new_job(**options)] for _ in range(CALLERS)])
    inserted = [job.id for job, answer in answered if answer.inserted]
    assert len(inserted) == 1
    assert [answer.job_id for _, answer in answered] == inserted * CALLERS
    return inserted[0]


class KeyConformance(Suite):
    """Idempotency keys."""

    @pytest.mark.parametrize("status", list(Status))
    async def test_a_key_finds_its_job_in_any_state_and_changes_nothing(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status, queue_name="q", idempotency_key="once")
        before = await everything(storage)
        answer = await ask(storage, queue_name="q", idempotency_key="once", payload=b"[2]", priority=9, now=at(9))
        result = b'{"ok":true}' if status is Status.COMPLETED else None
        assert answer == Insertion(job_id=lease.job_id, status=status, inserted=False, result=result)
        assert await everything(storage) == before

    async def test_a_key_belongs_to_its_queue(self, storage: Storage) -> None:
        mine = await add(storage, queue_name="mine", idempotency_key="once")
        other = await add(storage, queue_name="other", idempotency_key="once")
        assert (await ask(storage, queue_name="mine", idempotency_key="once")).job_id == mine
        assert (await ask(storage, queue_name="other", idempotency_key="once")).job_id == other

    async def test_keys_and_queues_that_a_collation_would_confuse_are_different(self, storage: Storage) -> None:
        keys = [new_job(idempotency_key=name) for name in DISTINCT_NAMES]
        queues = [new_job(idempotency_key="k", queue_name=name) for name in DISTINCT_NAMES]
        assert all(answer.inserted for answer in await storage.insert(keys + queues, now=T0))
        again = [new_job(idempotency_key=name) for name in DISTINCT_NAMES]
        answers = await storage.insert(again, now=T0)
        assert [answer.job_id for answer in answers] == [job.id for job in keys]
        assert not any(answer.inserted for answer in answers)

    async def test_a_key_is_free_when_its_row_was_pruned(self, storage: Storage) -> None:
        lease = await bring(storage, Status.COMPLETED, queue_name="q", idempotency_key="once")
        await maintain(storage, retention=Retention(completed=10), now=at(11))
        again = await ask(storage, queue_name="q", idempotency_key="once", now=at(12))
        assert again.inserted
        assert again.job_id != lease.job_id

    async def test_jobs_without_a_key_never_meet(self, storage: Storage) -> None:
        assert all(answer.inserted for answer in await storage.insert([new_job(), new_job()], now=T0))
        assert (await ask(storage)).inserted

    async def test_within_a_batch_the_first_of_a_key_inserts(self, storage: Storage) -> None:
        jobs = [new_job(idempotency_key=key) for key in ("a", "b", "a", "b", "a")]
        answers = await storage.insert(jobs, now=T0)
        assert [answer.inserted for answer in answers] == [True, True, False, False, False]
        first, second = jobs[0].id, jobs[1].id
        assert [answer.job_id for answer in answers] == [first, second, first, second, first]

    async def test_of_many_callers_with_one_key_exactly_one_inserts(self, storage: Storage) -> None:
        winners = [await _winner(storage, idempotency_key=f"once {number}") for number in range(ROUNDS)]
        assert sorted(record.id for record in await storage.list(JobFilter(), CALLERS)) == sorted(winners)

    async def test_the_key_is_asked_before_the_fingerprint_and_the_id_before_both(self, storage: Storage) -> None:
        keyed = await add(storage, idempotency_key="once")
        printed = await add(storage, fingerprint=PRINT)
        assert (await ask(storage, idempotency_key="once", fingerprint=PRINT)).job_id == keyed
        assert (await ask(storage, idempotency_key="new", fingerprint=PRINT)).job_id == printed
        resent = await ask(storage, id=printed, idempotency_key="once", fingerprint=OTHER_PRINT)
        assert (resent.job_id, resent.inserted) == (printed, True)

    async def test_a_dispatch_that_joined_leaves_its_key_and_its_fingerprint_unused(self, storage: Storage) -> None:
        await add(storage, fingerprint=PRINT)
        assert not (await ask(storage, fingerprint=PRINT, idempotency_key="once")).inserted
        assert (await ask(storage, idempotency_key="once")).inserted
        assert not (await ask(storage, idempotency_key="once", fingerprint=OTHER_PRINT)).inserted
        assert (await ask(storage, fingerprint=OTHER_PRINT)).inserted


class FingerprintConformance(Suite):
    """Single flight, and the results that answer in a job's place."""

    async def test_a_job_that_joins_leaves_its_key_to_the_next_in_the_batch(self, storage: Storage) -> None:
        flying = await ask(storage, fingerprint=PRINT)
        joining = new_job(fingerprint=PRINT, idempotency_key="once")
        keyed = new_job(idempotency_key="once")
        answers = await storage.insert([joining, keyed], now=T0)
        assert [(each.job_id, each.inserted) for each in answers] == [(flying.job_id, False), (keyed.id, True)]

    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED, Status.PROCESSING])
    async def test_a_fingerprint_joins_the_active_job(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status, fingerprint=PRINT)
        before = await everything(storage)
        # An expired lease changes nothing: until it is recovered, the job is active.
        for now in (T0, at(10 * LEASE)):
            assert await ask(storage, fingerprint=PRINT, now=now) == Insertion(
                job_id=lease.job_id, status=status, inserted=False, fingerprint=PRINT
            )
        assert await everything(storage) == before

    async def test_a_fingerprint_reaches_across_queues(self, storage: Storage) -> None:
        there = await add(storage, fingerprint=PRINT, queue_name="there")
        assert (await ask(storage, fingerprint=PRINT, queue_name="here")).job_id == there

    async def test_another_fingerprint_is_another_job(self, storage: Storage) -> None:
        prints = [PRINT, OTHER_PRINT, b"q" * 31 + b" ", b"q" * 31 + b"\x00", b"Q" * 31 + b" ", bytes(32)]
        jobs = [new_job(fingerprint=each) for each in prints]
        assert all(answer.inserted for answer in await storage.insert(jobs, now=T0))
        found = await storage.find([job.id for job in jobs])
        assert [found[job.id].fingerprint for job in jobs] == prints

    async def test_a_fresh_result_answers_until_its_time_is_over(self, storage: Storage) -> None:
        lease = await hold(storage, fingerprint=PRINT, result_ttl=60.0)
        await settle(storage, lease, Event.SUCCEED, result=b'[1, "two"]', now=at(30))
        assert (await row(storage, lease.job_id)).result_expires_at == at(90)
        fresh = await ask(storage, fingerprint=PRINT, now=at(89.999_999))
        assert fresh == Insertion(
            job_id=lease.job_id, status=Status.COMPLETED, inserted=False, fingerprint=PRINT, result=b'[1, "two"]'
        )
        stale = await ask(storage, fingerprint=PRINT, now=at(90))
        assert stale.inserted
        assert stale.result is None
        assert (await ask(storage, fingerprint=PRINT, now=at(90))).job_id == stale.job_id
        assert (await row(storage, lease.job_id)).status is Status.COMPLETED

    async def test_what_counts_is_how_long_the_completed_job_was_meant_to_answer(self, storage: Storage) -> None:
        lease = await hold(storage, fingerprint=PRINT, result_ttl=60.0)
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        assert not (await ask(storage, fingerprint=PRINT, now=at(59), result_ttl=1.0)).inserted
        assert (await ask(storage, fingerprint=PRINT, now=at(61), result_ttl=3_600.0)).inserted

    @pytest.mark.parametrize("result_ttl", [None, 0.0])
    async def test_without_a_time_to_answer_the_fingerprint_is_free_at_completion(
        self, storage: Storage, result_ttl: float | None
    ) -> None:
        lease = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=result_ttl)
        again = await ask(storage, fingerprint=PRINT)
        assert again.inserted
        assert again.job_id != lease.job_id

    @pytest.mark.parametrize("event", [Event.FAIL, Event.DISCARD, Event.ABORT])
    async def test_a_job_that_did_not_complete_frees_its_fingerprint(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage, fingerprint=PRINT, result_ttl=60.0)
        await settle(storage, lease, event, **SETTLES_WITH[event])
        assert (await row(storage, lease.job_id)).result_expires_at is None
        assert (await ask(storage, fingerprint=PRINT)).inserted

    async def test_a_job_that_was_cancelled_or_buried_frees_its_fingerprint(self, storage: Storage) -> None:
        waiting = await add(storage, fingerprint=PRINT, result_ttl=60.0)
        await storage.cancel([waiting], now=T0)
        lease = await hold(storage, fingerprint=PRINT, result_ttl=60.0, max_attempts=1)
        assert lease.job_id != waiting
        await maintain(storage, now=at(LEASE + 1))
        assert (await ask(storage, fingerprint=PRINT, now=at(LEASE + 1))).inserted

    async def test_a_job_that_is_tried_again_keeps_its_fingerprint(self, storage: Storage) -> None:
        lease = await hold(storage, fingerprint=PRINT, max_attempts=2)
        await maintain(storage, now=at(LEASE))
        assert await ask(storage, fingerprint=PRINT, now=at(LEASE)) == Insertion(
            job_id=lease.job_id, status=Status.SCHEDULED, inserted=False, fingerprint=PRINT
        )
        ready = await lapse(storage, now=at(LEASE))
        assert (await ask(storage, fingerprint=PRINT, now=ready)).status is Status.PENDING

    async def test_within_a_batch_the_first_of_a_fingerprint_inserts(self, storage: Storage) -> None:
        jobs = [new_job(fingerprint=each) for each in (PRINT, OTHER_PRINT, PRINT, PRINT, OTHER_PRINT)]
        answers = await storage.insert(jobs, now=T0)
        assert [answer.inserted for answer in answers] == [True, True, False, False, False]
        first, second = jobs[0].id, jobs[1].id
        assert [answer.job_id for answer in answers] == [first, second, first, first, second]

    async def test_a_mixed_batch_is_answered_in_order(self, storage: Storage) -> None:
        active = await add(storage, fingerprint=PRINT)
        keyed = await add(storage, idempotency_key="once")
        cached = await hold(storage, fingerprint=OTHER_PRINT, result_ttl=60.0)
        await settle(storage, cached, Event.SUCCEED, result=b"7")
        fresh, scheduled = new_job(), new_job(delay=60)
        resent = new_job(id=active)
        answers = await storage.insert(
            [
                new_job(fingerprint=OTHER_PRINT),
                fresh,
                new_job(idempotency_key="once"),
                resent,
                new_job(fingerprint=PRINT),
                scheduled,
            ],
            now=at(1),
        )
        assert [(answer.job_id, answer.inserted, answer.status, answer.result) for answer in answers] == [
            (cached.job_id, False, Status.COMPLETED, b"7"),
            (fresh.id, True, Status.PENDING, None),
            (keyed, False, Status.PENDING, None),
            (active, True, Status.PENDING, None),
            (active, False, Status.PENDING, None),
            (scheduled.id, True, Status.SCHEDULED, None),
        ]

    async def test_of_many_callers_with_one_fingerprint_exactly_one_inserts(self, storage: Storage) -> None:
        winners = [await _winner(storage, fingerprint=bytes([number]) * 32) for number in range(ROUNDS)]
        assert sorted(record.id for record in await storage.list(JobFilter(), CALLERS)) == sorted(winners)

    async def test_of_many_callers_after_a_result_went_stale_exactly_one_inserts(self, storage: Storage) -> None:
        old: Lease = await hold(storage, fingerprint=PRINT, result_ttl=60.0, now=at(-120))
        await settle(storage, old, Event.SUCCEED, result=b"1", now=at(-120))
        answered = await _at_once(storage, [[new_job(fingerprint=PRINT)] for _ in range(CALLERS)])
        (winner,) = [job for job, answer in answered if answer.inserted]
        assert {answer.job_id for _, answer in answered} == {winner.id}
        assert winner.id != old.job_id

    async def test_rival_batches_in_opposite_orders_neither_block_nor_share(self, storage: Storage) -> None:
        prints = [bytes([number]) * 32 for number in range(8)]

        def batch(order: int) -> list[NewJob]:
            return [new_job(fingerprint=each, idempotency_key=each.hex()) for each in prints[::order]]

        answered = await _at_once(storage, [batch(order) for order in (1, -1) * 5])
        winners: dict[bytes, set[UUID]] = {each: set() for each in prints}
        inserted: dict[bytes, int] = dict.fromkeys(prints, 0)
        for job, answer in answered:
            assert job.fingerprint is not None
            winners[job.fingerprint].add(answer.job_id)
            inserted[job.fingerprint] += answer.inserted
        assert all(len(ids) == 1 for ids in winners.values())
        assert set(inserted.values()) == {1}


class RefreshConformance(Suite):
    """Dispatches that want a new result."""

    async def test_a_fresh_result_does_not_answer_a_refresh(self, storage: Storage) -> None:
        old = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0)
        before = await row(storage, old.job_id)
        answer = await ask(storage, fingerprint=PRINT, refresh=True, result_ttl=60.0, now=at(1))
        assert answer == Insertion(
            job_id=answer.job_id, status=Status.PENDING, inserted=True, fingerprint=PRINT, result=None
        )
        assert answer.job_id != old.job_id
        assert await row(storage, old.job_id) == before

    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED, Status.PROCESSING])
    async def test_an_active_job_answers_a_refresh(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status, fingerprint=PRINT, result_ttl=60.0)
        before = await everything(storage)
        assert await ask(storage, fingerprint=PRINT, refresh=True, now=at(1)) == Insertion(
            job_id=lease.job_id, status=status, inserted=False, fingerprint=PRINT
        )
        assert await everything(storage) == before

    async def test_a_refresh_of_nothing_inserts(self, storage: Storage) -> None:
        first = await ask(storage, fingerprint=PRINT, refresh=True)
        assert first.inserted
        assert (await ask(storage, fingerprint=PRINT)).job_id == first.job_id
        assert (await ask(storage, refresh=True)).inserted

    async def test_a_stale_result_does_not_answer_a_refresh(self, storage: Storage) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0)
        assert (await ask(storage, fingerprint=PRINT, refresh=True, now=at(60))).inserted

    async def test_after_a_refresh_the_new_job_answers_and_then_its_result_does(self, storage: Storage) -> None:
        old = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=600.0)
        new = await ask(storage, fingerprint=PRINT, refresh=True, result_ttl=60.0, queue_name="new", now=at(1))
        for refresh in (False, True):
            joined = await ask(storage, fingerprint=PRINT, refresh=refresh, now=at(2))
            assert (joined.job_id, joined.status, joined.result) == (new.job_id, Status.PENDING, None)
        lease = (await take(storage, queues=["new"], now=at(3))).lease
        assert await settle(storage, lease, Event.SUCCEED, result=b'"new"', now=at(3))
        answer = await ask(storage, fingerprint=PRINT, now=at(4))
        assert answer == Insertion(
            job_id=new.job_id, status=Status.COMPLETED, inserted=False, fingerprint=PRINT, result=b'"new"'
        )
        again = await ask(storage, fingerprint=PRINT, refresh=True, now=at(5))
        assert again.inserted
        assert again.job_id not in {old.job_id, new.job_id}

    @pytest.mark.parametrize("event", [Event.FAIL, Event.ABORT])
    async def test_after_a_refresh_that_failed_the_old_result_does_not_come_back(
        self, storage: Storage, event: Event
    ) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=600.0)
        new = await ask(storage, fingerprint=PRINT, refresh=True, queue_name="new")
        lease = (await take(storage, queues=["new"])).lease
        await settle(storage, lease, event, **SETTLES_WITH[event])
        plain = await ask(storage, fingerprint=PRINT, now=at(1))
        assert plain.inserted
        assert plain.job_id != new.job_id

    async def test_a_refresh_that_is_sent_twice_inserts_once(self, storage: Storage) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=600.0)
        job = new_job(fingerprint=PRINT, refresh=True, result_ttl=600.0, queue_name="new")
        first = await storage.insert([job], now=T0)
        assert await storage.insert([job], now=at(1)) == first
        lease = (await take(storage, queues=["new"])).lease
        await settle(storage, lease, Event.SUCCEED, result=b"2", now=at(2))
        before = await everything(storage)
        (again,) = await storage.insert([job], now=at(3))
        assert (again.job_id, again.inserted, again.result) == (job.id, True, b"2")
        assert await everything(storage) == before
        assert (await ask(storage, fingerprint=PRINT, now=at(4))).job_id == job.id

    async def test_a_key_answers_a_refresh_too(self, storage: Storage) -> None:
        old = await bring(
            storage, Status.COMPLETED, queue_name="q", idempotency_key="k", fingerprint=PRINT, result_ttl=60.0
        )
        answer = await ask(storage, queue_name="q", idempotency_key="k", fingerprint=PRINT, refresh=True)
        assert (answer.job_id, answer.inserted, answer.status) == (old.job_id, False, Status.COMPLETED)
        assert (await ask(storage, fingerprint=PRINT)).job_id == old.job_id

    async def test_in_one_batch_a_key_answers_a_refresh_too(self, storage: Storage) -> None:
        cached = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0)
        first = new_job(idempotency_key="k")
        second = new_job(idempotency_key="k", fingerprint=PRINT, refresh=True)
        answers = await storage.insert([first, second], now=T0)
        assert [answer.job_id for answer in answers] == [first.id] * 2
        assert (await ask(storage, fingerprint=PRINT)).job_id == cached.job_id

    async def test_a_refresh_concerns_no_other_fingerprint(self, storage: Storage) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0)
        other = await bring(storage, Status.COMPLETED, fingerprint=OTHER_PRINT, result_ttl=60.0)
        assert (await ask(storage, fingerprint=PRINT, refresh=True)).inserted
        assert (await ask(storage, fingerprint=OTHER_PRINT)).job_id == other.job_id

    async def test_a_job_whose_result_was_refreshed_is_pruned_as_if_it_had_not_been(self, storage: Storage) -> None:
        old = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0)
        await ask(storage, fingerprint=PRINT, refresh=True)
        await maintain(storage, retention=Retention(completed=10), now=at(59))
        assert (await row(storage, old.job_id)).result_expires_at == at(60)
        await maintain(storage, retention=Retention(completed=10), now=at(60))
        assert old.job_id not in await storage.find([old.job_id])

    async def test_in_one_batch_a_refresh_lets_go_for_those_that_come_after_it(self, storage: Storage) -> None:
        old = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0)
        jobs = [new_job(fingerprint=PRINT, refresh=refresh) for refresh in (False, True, False, True)]
        answers = await storage.insert(jobs, now=at(1))
        new = jobs[1].id
        assert [(answer.job_id, answer.inserted) for answer in answers] == [
            (old.job_id, False),
            (new, True),
            (new, False),
            (new, False),
        ]

    @pytest.mark.parametrize(("refresh", "seconds"), [(False, 60), (True, 1)])
    async def test_a_result_is_let_go_for_a_job_whose_key_another_of_its_batch_left_unused(
        self, storage: Storage, refresh: bool, seconds: float
    ) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=OTHER_PRINT, result_ttl=60.0)
        first = new_job(fingerprint=PRINT, callbacks=(follow_up(),))
        joining = new_job(fingerprint=PRINT, idempotency_key="once")
        keyed = new_job(fingerprint=OTHER_PRINT, idempotency_key="once", refresh=refresh)
        answers = await storage.insert([first, joining, keyed], now=at(seconds))
        assert [(each.job_id, each.inserted) for each in answers] == [
            (first.id, True),
            (first.id, False),
            (keyed.id, True),
        ]

    async def test_of_many_callers_that_refresh_exactly_one_inserts(self, storage: Storage) -> None:
        old = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=600.0)
        answered = await _at_once(storage, [[new_job(fingerprint=PRINT, refresh=True)] for _ in range(CALLERS)])
        (winner,) = [job for job, answer in answered if answer.inserted]
        assert {answer.job_id for _, answer in answered} == {winner.id}
        assert len(answered) == CALLERS
        assert {record.id for record in await storage.list(JobFilter(), 10)} == {winner.id, old.job_id}

    async def test_those_who_refresh_and_those_who_do_not_never_share_two_new_jobs(self, storage: Storage) -> None:
        old = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=600.0)
        jobs = [new_job(fingerprint=PRINT, refresh=number % 3 == 0) for number in range(CALLERS)]
        answered = await _at_once(storage, [[job] for job in jobs])
        (winner,) = [job for job, answer in answered if answer.inserted]
        assert winner.refresh
        assert {answer.job_id for job, answer in answered if job.refresh} == {winner.id}
        assert {answer.job_id for job, answer in answered if not job.refresh} <= {winner.id, old.job_id}
