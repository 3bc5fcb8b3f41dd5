"""Callbacks of many dispatches at once, and of those that come while a job ends: each runs once."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._job import Event, FollowUp, JobFilter, NewJob, On, Settlement, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    FOREVER,
    LEASE,
    T0,
    Suite,
    ask,
    at,
    bring,
    follow_up,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
    written,
)
from creche.testing._conformance_joins import by_both, succeed

CALLERS: Final = 50
ROUNDS: Final = 8


class JoinAtOnceConformance(Suite):
    """Dispatches that find a job in their place, at the same moment as others."""

    @by_both
    async def test_of_many_that_join_at_once_every_callback_runs_once(
        self, storage: Storage, meets: dict[str, Any]
    ) -> None:
        await _all_join([storage], meets)

    @by_both
    async def test_of_many_that_join_in_two_places_every_callback_runs_once(
        self, storage: Storage, another: Storage, meets: dict[str, Any]
    ) -> None:
        await _all_join([storage, another], meets)

    @pytest.mark.parametrize("ending", [Event.SUCCEED, Event.FAIL, Event.CANCEL, Event.BURY])
    @by_both
    async def test_a_dispatch_that_joins_while_a_job_ends_has_its_callback_run_once(
        self, storage: Storage, meets: dict[str, Any], ending: Event
    ) -> None:
        await _join_and_end([storage, storage], meets, ending)

    @by_both
    async def test_a_dispatch_that_joins_in_one_place_while_a_job_ends_in_another_has_its_callback_run_once(
        self, storage: Storage, another: Storage, meets: dict[str, Any]
    ) -> None:
        await _join_and_end([storage, another], meets, Event.SUCCEED)

    async def test_a_dispatch_that_joins_while_a_job_is_revived_has_its_callback_run_once(
        self, storage: Storage
    ) -> None:
        for number in range(ROUNDS):
            queue = f"q{number}"
            lease = await bring(storage, Status.FAILED, queue_name=queue, idempotency_key="once")
            joining = _bring_each(4, queue_name=queue, idempotency_key="once")
            async with create_task_group() as group:
                for place, each in enumerate(joining):
                    if place == number % 4:
                        group.start_soon(partial(storage.retry, [lease.job_id], now=T0))
                    group.start_soon(partial(storage.insert, [each], now=T0))
            await succeed(storage, queue)
            await _assert_all_ran(storage, joining)

    async def test_a_dispatch_that_meets_a_job_while_it_is_pruned_has_its_callback_run_once(
        self, storage: Storage
    ) -> None:
        for number in range(ROUNDS):
            queue = f"q{number}"
            await bring(storage, Status.COMPLETED, queue_name=queue, idempotency_key="once")
            joining = _bring_each(4, queue_name=queue, idempotency_key="once")
            retention = evolve(FOREVER, completed=0)
            async with create_task_group() as group:
                for place, each in enumerate(joining):
                    if place == number % 4:
                        group.start_soon(partial(maintain, storage, retention=retention, now=T0))
                    group.start_soon(partial(storage.insert, [each], now=T0))
            await _cancel_all(storage, queue)
            await _assert_all_ran(storage, joining)

    async def test_a_dispatch_that_joins_while_a_result_is_refreshed_has_its_callback_run_once(
        self, storage: Storage
    ) -> None:
        for number in range(ROUNDS):
            options = {"queue_name": f"q{number}", "fingerprint": bytes([number]) * 32, "result_ttl": 600.0}
            await bring(storage, Status.COMPLETED, **options)
            joining = [evolve(each, refresh=place % 3 == 1) for place, each in enumerate(_bring_each(6, **options))]
            async with create_task_group() as group:
                for each in joining:
                    group.start_soon(partial(storage.insert, [each], now=T0))
            await _cancel_all(storage, f"q{number}")
            await _assert_all_ran(storage, joining)

    async def test_batches_that_join_and_end_the_same_jobs_in_opposite_orders_lose_no_callback(
        self, storage: Storage
    ) -> None:
        for number in range(3):
            queue = f"q{number}"
            await storage.insert([new_job(queue_name=queue, idempotency_key=str(key)) for key in range(16)], now=T0)
            leases = [job.lease for job in (await reserve(storage, 8, queues=[queue])).jobs]
            waiting = [record.id for record in await storage.list(JobFilter(), 100) if record.queue_name == queue]
            ends = [Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in leases]
            batches = [
                [_bring_each(1, queue_name=queue, idempotency_key=str(key))[0] for key in range(16)][::order]
                for order in (1, -1) * 3
            ]
            async with create_task_group() as group:
                group.start_soon(partial(storage.insert, batches[0], now=T0))
                group.start_soon(partial(storage.insert, batches[1], now=T0))
                group.start_soon(partial(storage.settle, ends[:5], now=T0))
                group.start_soon(partial(storage.cancel, waiting, now=T0))
                group.start_soon(partial(storage.insert, batches[2], now=T0))
                group.start_soon(partial(storage.settle, ends[:2:-1], now=T0))
                group.start_soon(partial(storage.cancel, waiting[::-1], now=T0))
                for batch in batches[3:]:
                    group.start_soon(partial(storage.insert, batch, now=T0))
            await _assert_all_ran(storage, [job for batch in batches for job in batch])

    async def test_of_many_that_send_the_same_job_at_once_every_callback_runs_once(self, storage: Storage) -> None:
        for number in range(ROUNDS):
            job = new_job(queue_name=f"q{number}", idempotency_key="k")
            sent = [evolve(job, callbacks=each.callbacks) for each in _bring_each(CALLERS)]
            async with create_task_group() as callers:
                for each in sent:
                    callers.start_soon(partial(storage.insert, [each], now=T0))
            await succeed(storage, job.queue_name)
            await _assert_all_ran(storage, sent)

    async def test_jobs_that_are_joined_all_the_time_are_still_taken(self, storage: Storage) -> None:
        jobs = [new_job(queue_name="q", idempotency_key=str(number)) for number in range(10)]
        await storage.insert(jobs, now=T0)
        callbacks = [[follow_up(on=On.ALWAYS) for _ in jobs] for _ in range(5)]
        done: set[Any] = set()

        async def join(some: list[FollowUp]) -> None:
            for number, each in enumerate(some):
                await ask(storage, queue_name="q", idempotency_key=str(number), callbacks=(each,))

        async def work() -> None:
            while len(done) < len(jobs):
                for job in (await reserve(storage, 3, queues=["q"])).jobs:
                    assert await settle(storage, job.lease, Event.SUCCEED, result=b"1")
                    assert job.id not in done
                    done.add(job.id)

        async with create_task_group() as group:
            for each in callbacks:
                group.start_soon(join, each)
            group.start_soon(work)
        everyone = [each for some in callbacks for each in some]
        assert await written(storage, everyone) == {each.id for each in everyone}


def _bring_each(count: int, **options: Any) -> list[NewJob]:
    """Return dispatches that bring a callback each, for any end."""
    return [new_job(callbacks=(follow_up(on=On.ALWAYS),), **options) for _ in range(count)]


async def _cancel_all(storage: Storage, queue: str) -> None:
    """End whatever waits in a queue."""
    waiting = JobFilter(queues=frozenset({queue}), statuses=frozenset({Status.PENDING}))
    await storage.cancel([record.id for record in await storage.list(waiting, 100)], now=T0)


async def _assert_all_ran(storage: Storage, jobs: list[NewJob]) -> None:
    """Hold that what these dispatches brought has been written, and waits."""
    found = await storage.find([each.id for job in jobs for each in job.callbacks])
    assert found.keys() == {each.id for job in jobs for each in job.callbacks}
    assert {record.status for record in found.values()} == {Status.PENDING}
    assert all(record.origin is not None for record in found.values())


async def _all_join(places: list[Storage], meets: dict[str, Any]) -> None:
    """Let many dispatch the same work with a callback each, and one end it."""
    storage = places[0]
    jobs = _bring_each(CALLERS, queue_name="q", **meets)
    ids: set[Any] = set()

    async def send(place: Storage, job: NewJob) -> None:
        (answer,) = await place.insert([job], now=T0)
        ids.add(answer.job_id)

    async with create_task_group() as callers:
        for number, job in enumerate(jobs):
            callers.start_soon(send, places[number % len(places)], job)
    assert len(ids) == 1
    await succeed(storage)
    taken = (await reserve(storage, 2 * CALLERS, queues=["after"])).jobs
    assert sorted(job.id for job in taken) == sorted(job.callbacks[0].id for job in jobs)


async def _join_and_end(places: list[Storage], meets: dict[str, Any], ending: Event) -> None:
    """Let some dispatch the same work with a callback each while somebody ends it, again and again.

    Some find it in time, and some find it over; some find nothing, insert it again, and that is ended afterwards.
    """
    storage, elsewhere = places
    for number in range(ROUNDS):
        queue = f"q{number}"
        options = {**meets, "queue_name": queue, "max_attempts": 1}
        if "fingerprint" in meets:
            options["fingerprint"] = bytes([number]) * 32
        (job,) = _bring_each(1, **options)
        await storage.insert([job], now=T0)
        lease = (await take(storage, queues=[queue])).lease if ending is not Event.CANCEL else None
        joining = _bring_each(6, **options)

        async def finish(job: NewJob = job, lease: Any = lease) -> None:
            if ending is Event.CANCEL:
                await elsewhere.cancel([job.id], now=T0)
            elif ending is Event.BURY:
                await maintain(elsewhere, now=at(LEASE))
            else:
                error = BOOM if ending is Event.FAIL else None
                assert await settle(elsewhere, lease, ending, result=None if error else b"1", error=error)

        async with create_task_group() as group:
            for place, each in enumerate(joining):
                if place == number % 6:
                    group.start_soon(finish)
                group.start_soon(partial(storage.insert, [each], now=T0))
        if ending is Event.BURY and (await row(storage, job.id)).status.active:
            assert (await maintain(storage, now=at(LEASE))).buried == 1  # it skips the rows that others write just now
        await _cancel_all(storage, queue)
        await _assert_all_ran(storage, [job, *joining])
        shown = await storage.list(JobFilter(queues=frozenset({"after"})), 1_000)
        assert len(shown) == (number + 1) * 7
