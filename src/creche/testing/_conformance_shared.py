"""Shared: two storages on the same jobs, as two processes have them. What one storage does alone stands elsewhere."""

from __future__ import annotations

from anyio import create_task_group

from creche._job import Event, Insertion, JobFilter, ReservedJob, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    LEASE,
    T0,
    Suite,
    add,
    at,
    extend,
    hold,
    lapse,
    new_job,
    reserve,
    row,
    settle,
    take,
)
from creche.testing._conformance_listen import hear


class SharedConformance(Suite):
    """Two storages on the same jobs, if `open_another` makes a second one."""

    async def test_what_one_writes_the_other_sees(self, storage: Storage, another: Storage) -> None:
        job_id = await add(storage, queue_name="q")
        assert await row(another, job_id) == await row(storage, job_id)
        lease = (await take(another, queues=["q"])).lease
        assert await extend(storage, lease, now=at(1))
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(2))
        assert (await row(another, job_id)).status is Status.COMPLETED

    async def test_rivals_in_two_places_share_no_job_and_leave_none(self, storage: Storage, another: Storage) -> None:
        jobs = [new_job() for _ in range(60)]
        await storage.insert(jobs, now=T0)
        taken: list[ReservedJob] = []

        async def rival(place: Storage) -> None:
            while batch := (await reserve(place, 7)).jobs:
                taken.extend(batch)

        async with create_task_group() as rivals:
            for place in (storage, another) * 2:
                rivals.start_soon(rival, place)
        assert sorted(job.id for job in taken) == [job.id for job in jobs]

    async def test_of_many_callers_in_two_places_exactly_one_inserts(self, storage: Storage, another: Storage) -> None:
        answers: list[Insertion] = []

        async def send(place: Storage, number: int) -> None:
            job = new_job(fingerprint=bytes(32)) if number % 2 else new_job(idempotency_key="once")
            answers.extend(await place.insert([job], now=T0))

        async with create_task_group() as callers:
            for number in range(20):
                callers.start_soon(send, (storage, another)[number // 2 % 2], number)
        assert sum(answer.inserted for answer in answers) == 2
        assert {answer.job_id for answer in answers} == {record.id for record in await another.list(JobFilter(), 10)}

    async def test_a_lease_that_the_other_took_over_is_lost(self, storage: Storage, another: Storage) -> None:
        lease = await hold(storage, queue_name="q")
        theirs = (await take(another, queues=["q"], now=await lapse(another, now=at(LEASE)))).lease
        assert not await extend(storage, lease, now=at(LEASE + 2))
        assert not await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(LEASE + 2))
        assert await settle(another, theirs, Event.SUCCEED, result=b"2", now=at(LEASE + 3))
        assert (await row(storage, lease.job_id)).result == b"2"

    async def test_a_cancellation_reaches_a_holder_elsewhere(self, storage: Storage, another: Storage) -> None:
        lease = await hold(storage)
        await another.cancel([lease.job_id], now=at(1))
        assert (await storage.extend([lease], LEASE, now=at(2))).cancel_requested == {lease}

    async def test_an_insert_elsewhere_wakes(self, wakeful: Storage, another: Storage) -> None:
        async with wakeful.listen(["q"]) as listener:
            await add(another, queue_name="q")
            await hear(listener, "q")
