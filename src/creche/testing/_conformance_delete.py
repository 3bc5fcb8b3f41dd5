"""Delete: what is over can go, with all that belongs to it. What goes by itself, in time, stands apart."""

from __future__ import annotations

from uuid import UUID

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._ids import new_job_id
from creche._job import Event, Insertion, JobFilter, On, Retention, Settlement, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    T0,
    Suite,
    ask,
    at,
    bring,
    everything,
    extend,
    follow_up,
    hold,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
    written,
)

PRINT = bytes(range(32))
OVER = [Status.COMPLETED, Status.FAILED, Status.CANCELLED]


class DeleteConformance(Suite):
    """`Storage.delete`."""

    @pytest.mark.parametrize("status", OVER)
    async def test_a_job_that_is_over_is_deleted_and_no_other(self, storage: Storage, status: Status) -> None:
        for each in Status:
            await bring(storage, each)
        before = await everything(storage)
        lease = await bring(storage, status)
        assert await storage.delete([lease.job_id]) == {lease.job_id: status}
        assert await storage.find([lease.job_id]) == {}
        assert await everything(storage) == before

    @pytest.mark.parametrize("status", [status for status in Status if status.active])
    async def test_one_that_is_active_is_left_as_it_is(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        before = await everything(storage)
        for _ in range(2):
            assert await storage.delete([lease.job_id]) == {lease.job_id: status}
            assert await everything(storage) == before
        assert await extend(storage, lease, now=at(1)) is (status is Status.PROCESSING)

    @pytest.mark.parametrize("status", [status for status in Status if status.active])
    async def test_one_that_was_active_is_cancelled_first(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        await storage.cancel([lease.job_id], now=T0)
        if status is Status.PROCESSING:
            assert await storage.delete([lease.job_id]) == {lease.job_id: Status.PROCESSING}
            assert await settle(storage, lease, Event.ABORT)
        assert await storage.delete([lease.job_id]) == {lease.job_id: Status.CANCELLED}
        assert await storage.find([lease.job_id]) == {}

    async def test_sent_again_it_finds_nothing_more(self, storage: Storage) -> None:
        failed = await bring(storage, Status.FAILED)
        assert await storage.delete([failed.job_id]) == {failed.job_id: Status.FAILED}
        before = await everything(storage)
        assert await storage.delete([failed.job_id]) == {}
        assert await everything(storage) == before

    async def test_many_are_answered_at_once_and_unknown_ones_not_at_all(self, storage: Storage) -> None:
        ids = {status: (await bring(storage, status)).job_id for status in Status}
        asked = [*ids.values(), new_job_id(), ids[Status.FAILED], ids[Status.PENDING]]
        assert await storage.delete(asked) == {job_id: status for status, job_id in ids.items()}
        assert (await storage.find(ids.values())).keys() == {ids[status] for status in Status if status.active}
        assert await storage.delete({new_job_id()}) == {}
        assert await storage.delete([]) == {}

    async def test_a_thousand_are_one_batch(self, storage: Storage) -> None:
        await storage.insert([new_job() for _ in range(1_000)], now=T0)
        leases = [job.lease for job in (await reserve(storage, 1_000)).jobs]
        ended = [Settlement(lease=lease, event=Event.FAIL, error=BOOM) for lease in leases[1:]]
        await storage.settle(ended, now=T0)
        expected = {lease.job_id: Status.FAILED for lease in leases[1:]} | {leases[0].job_id: Status.PROCESSING}
        assert await storage.delete([lease.job_id for lease in leases]) == expected
        assert [record.id for record in await storage.list(JobFilter(), 2_000)] == [leases[0].job_id]
        assert list(await storage.dead_letters(2_000)) == []

    @pytest.mark.parametrize("event", [Event.FAIL, Event.DISCARD])
    async def test_its_dead_letter_goes_and_no_other(self, storage: Storage, event: Event) -> None:
        other = await bring(storage, Status.FAILED)
        lease = await hold(storage)
        await settle(storage, lease, event, error=BOOM)
        assert len(await storage.dead_letters(10)) == 2
        await storage.delete([lease.job_id])
        assert [letter.job_id for letter in await storage.dead_letters(10)] == [other.job_id]

    async def test_its_cached_result_goes(self, storage: Storage) -> None:
        lease = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=600.0)
        assert (await ask(storage, fingerprint=PRINT, now=at(1))).job_id == lease.job_id
        assert await storage.delete([lease.job_id]) == {lease.job_id: Status.COMPLETED}
        fresh = await ask(storage, fingerprint=PRINT, now=at(1))
        assert fresh.inserted
        assert (fresh.status, fresh.result) == (Status.PENDING, None)

    async def test_its_idempotency_key_is_free_again(self, storage: Storage) -> None:
        lease = await bring(storage, Status.COMPLETED, queue_name="q", idempotency_key="k")
        assert (await ask(storage, queue_name="q", idempotency_key="k")).job_id == lease.job_id
        await storage.delete([lease.job_id])
        assert (await ask(storage, queue_name="q", idempotency_key="k")).inserted

    @pytest.mark.parametrize("status", OVER)
    async def test_what_is_deleted_can_be_dispatched_anew_with_the_same_id(
        self, storage: Storage, status: Status
    ) -> None:
        job = new_job(queue_name="q", payload=b"[1]", fingerprint=PRINT, idempotency_key="k", result_ttl=60.0)
        lease = await bring(storage, status, id=job.id, queue_name="q", fingerprint=PRINT, idempotency_key="k")
        await storage.delete([job.id])
        (answer,) = await storage.insert([job], now=at(5))
        assert answer == Insertion(job_id=job.id, status=Status.PENDING, inserted=True, fingerprint=PRINT)
        record = await row(storage, job.id)
        assert (record.payload, record.attempts, record.created_at) == (b"[1]", 0, at(5))
        assert (record.last_error, record.result, record.completed_at) == (None, None, None)
        again = await take(storage, queues=["q"], now=at(5))
        assert again.attempt == 1
        assert not await extend(storage, lease, now=at(5))
        assert not await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(5))
        assert await settle(storage, again.lease, Event.FAIL, error=BOOM, now=at(6))
        (letter,) = await storage.dead_letters(10)
        assert [(error.attempt, error.failed_at) for error in letter.errors] == [(1, at(6))]

    @pytest.mark.parametrize("status", OVER)
    async def test_the_lease_that_ended_it_is_lost(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        await storage.delete([lease.job_id])
        before = await everything(storage)
        assert not await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(1))
        assert not await extend(storage, lease, now=at(1))
        assert await everything(storage) == before

    async def test_it_can_neither_be_retried_nor_cancelled(self, storage: Storage) -> None:
        lease = await bring(storage, Status.FAILED)
        await storage.delete([lease.job_id])
        assert await storage.retry([lease.job_id], now=at(1)) == {}
        assert await storage.cancel([lease.job_id], now=at(1)) == {}
        assert await storage.watch([lease.job_id], watcher="me", over=[lease.job_id]) == {}

    async def test_callbacks_that_had_not_had_their_turn_go_with_it(self, storage: Storage) -> None:
        job = new_job(queue_name="q")
        callback = follow_up(on=On.FAILURE)
        await bring(storage, Status.COMPLETED, id=job.id, queue_name="q", callbacks=(callback,))
        await storage.delete([job.id])
        await storage.insert([job], now=T0)
        await settle(storage, (await take(storage, queues=["q"])).lease, Event.FAIL, error=BOOM)
        assert await written(storage, [callback]) == set()

    async def test_the_job_that_followed_it_stays_and_knows_where_it_came_from(self, storage: Storage) -> None:
        callback = follow_up()
        lease = await bring(storage, Status.COMPLETED, callbacks=(callback,))
        before = await row(storage, callback.id)
        assert await storage.delete([lease.job_id]) == {lease.job_id: Status.COMPLETED}
        assert await row(storage, callback.id) == before
        assert before.origin is not None
        assert before.origin.job_id == lease.job_id
        assert (await take(storage, queues=["after"])).origin == before.origin

    async def test_a_watched_job_can_be_deleted_when_it_is_over(self, storage: Storage) -> None:
        lease = await hold(storage)
        await storage.watch([lease.job_id], watcher="me")
        assert await storage.delete([lease.job_id]) == {lease.job_id: Status.PROCESSING}
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        assert await storage.delete([lease.job_id]) == {lease.job_id: Status.COMPLETED}
        assert await storage.watch([lease.job_id], watcher="me") == {}

    async def test_its_queue_is_counted_without_it(self, storage: Storage) -> None:
        for status in OVER:
            lease = await bring(storage, status, queue_name=status)
            await storage.delete([lease.job_id])
        assert list(await storage.stats(now=T0)) == []


class DeleteAtOnceConformance(Suite):
    """`Storage.delete`, while others do something to the same jobs."""

    async def test_a_job_is_either_deleted_or_retried_when_both_are_tried_at_once(self, storage: Storage) -> None:
        await self._delete_and_retry(storage, storage)

    async def test_a_job_is_either_deleted_or_retried_when_both_are_tried_in_two_places(
        self, storage: Storage, another: Storage
    ) -> None:
        await self._delete_and_retry(storage, another)

    async def _delete_and_retry(self, storage: Storage, elsewhere: Storage) -> None:
        ids = [(await bring(storage, status)).job_id for status in (Status.FAILED, Status.CANCELLED) * 10]
        ended = {job_id: record.status for job_id, record in (await storage.find(ids)).items()}
        deleted: dict[UUID, Status] = {}
        retried: dict[UUID, Status] = {}

        async def delete(some: list[UUID]) -> None:
            deleted.update(await elsewhere.delete(some))

        async def retry(some: list[UUID]) -> None:
            retried.update(await storage.retry(some, now=at(1)))

        async with create_task_group() as group:
            for start in range(0, 20, 5):
                group.start_soon(delete, ids[start : start + 5][::-1])
                group.start_soon(retry, ids[start : start + 5])
        left = await storage.find(ids)
        assert {record.status for record in left.values()} <= {Status.PENDING}
        assert retried == dict.fromkeys(left, Status.PENDING)
        assert deleted == {job_id: Status.PENDING if job_id in left else ended[job_id] for job_id in ids}
        assert list(await storage.dead_letters(100)) == []

    async def test_of_those_who_delete_at_once_each_job_is_answered_and_gone(self, storage: Storage) -> None:
        await self._delete_at_once(storage, storage)

    async def test_of_those_who_delete_in_two_places_each_job_is_answered_and_gone(
        self, storage: Storage, another: Storage
    ) -> None:
        await self._delete_at_once(storage, another)

    async def _delete_at_once(self, storage: Storage, elsewhere: Storage) -> None:
        ids = [(await bring(storage, Status.FAILED)).job_id for _ in range(20)]
        answers: list[tuple[UUID, Status]] = []

        async def delete(place: Storage, order: list[UUID]) -> None:
            answers.extend((await place.delete(order)).items())

        async with create_task_group() as group:
            for place, order in ((storage, ids), (elsewhere, ids[::-1])) * 3:
                group.start_soon(delete, place, order)
        assert {*answers} == {(job_id, Status.FAILED) for job_id in ids}
        assert await storage.find(ids) == {}
        assert list(await storage.dead_letters(100)) == []

    async def test_a_dispatch_that_meets_what_is_being_deleted_is_answered_all_the_same(self, storage: Storage) -> None:
        await self._delete_and_insert(storage, storage)

    async def test_a_dispatch_elsewhere_that_meets_what_is_being_deleted_is_answered_all_the_same(
        self, storage: Storage, another: Storage
    ) -> None:
        await self._delete_and_insert(storage, another)

    async def _delete_and_insert(self, storage: Storage, elsewhere: Storage) -> None:
        jobs = [
            new_job(queue_name="q", result_ttl=600.0, fingerprint=bytes([number] * 32), idempotency_key=f"k{number}")
            for number in range(10)
        ]
        await storage.insert(jobs, now=T0)
        leases = [job.lease for job in (await reserve(storage, 10, queues=["q"])).jobs]
        await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in leases], now=T0)
        anew = [evolve(job, id=new_job_id()) for job in jobs]
        answers: list[Insertion] = []

        async def insert(start: int) -> None:
            answers.extend(await elsewhere.insert(anew[start : start + 5], now=at(1)))

        async with create_task_group() as group:
            group.start_soon(insert, 0)
            group.start_soon(storage.delete, [job.id for job in jobs])
            group.start_soon(insert, 5)
        known = {job.id: Status.COMPLETED for job in jobs} | {job.id: Status.PENDING for job in anew}
        assert len(answers) == len(jobs)
        assert all(answer.status is known[answer.job_id] for answer in answers)
        left = {record.id for record in await storage.list(JobFilter(), 100)}
        assert left == {answer.job_id for answer in answers if answer.inserted}
        assert {answer.job_id for answer in answers} <= {job.id for job in jobs} | left

    async def test_what_upkeep_prunes_meanwhile_is_gone_too(self, storage: Storage) -> None:
        ids = [(await bring(storage, Status.FAILED)).job_id for _ in range(20)]
        pruned: list[int] = []

        async def prune() -> None:
            pruned.append((await maintain(storage, retention=Retention(failed=1), now=at(9))).pruned)

        async with create_task_group() as group:
            group.start_soon(storage.delete, ids)
            group.start_soon(prune)
        while (upkeep := await maintain(storage, retention=Retention(failed=1), now=at(9))).pruned:
            pruned.append(upkeep.pruned)
        assert sum(pruned) <= len(ids)
        assert await storage.find(ids) == {}
        assert list(await storage.dead_letters(100)) == []
