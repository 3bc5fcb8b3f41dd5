"""Callbacks: which ends write them, and how often. What is in them, and those of dispatches that join, stand apart."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._job import (
    CALLBACK_LIMIT,
    CHAIN_LIMIT,
    Event,
    Failure,
    FollowUp,
    JobFilter,
    JobRecord,
    Lease,
    On,
    Origin,
    ReservedJob,
    Settlement,
    Status,
)
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    FOREVER,
    LEASE,
    SETTLES_WITH,
    T0,
    Suite,
    add,
    at,
    everything,
    follow_up,
    hold,
    lapse,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
    written,
)
from creche.testing._conformance_ends import WAYS, Way, begin, end, id_of
from creche.testing._conformance_listen import hear
from creche.testing._conformance_reserve import forged

GO_ON: Final = (Event.RETRY, Event.RELEASE, Event.SNOOZE)


def one_of_each(**options: Any) -> dict[On, FollowUp]:
    """Return a callback for each end."""
    return {on: follow_up(on=on, **options) for on in On}


async def remove(storage: Storage, job_ids: set[UUID]) -> None:
    """Make waiting jobs go, as if their retention were over; those that ended at T0 or later stay."""
    await storage.cancel(job_ids, now=at(-LEASE))
    await maintain(storage, retention=evolve(FOREVER, cancelled=LEASE), now=T0)
    assert not await storage.find(job_ids)


class CallbackConformance(Suite):
    """Which callbacks are written, when, and how often."""

    @pytest.mark.parametrize("way", list(WAYS.values()), ids=list(WAYS))
    async def test_the_end_of_a_job_writes_the_callbacks_that_it_calls_for(self, storage: Storage, way: Way) -> None:
        callbacks = {
            on: follow_up(on=on, type=f"on {on}", queue_name="é q", priority=-3, max_attempts=9, head="[", tail=",1]")
            for on in On
        }
        begun = await begin(storage, way, type="origin's", queue_name="origin's q", callbacks=tuple(callbacks.values()))
        assert not await written(storage, callbacks.values())
        over = await end(storage, way, begun)
        due = {callbacks[on] for on in On if on.calls_for(way.status)}
        assert await written(storage, callbacks.values()) == {each.id for each in due}
        origin = Origin(
            job_id=id_of(begun), type="origin's", queue_name="origin's q", status=way.status, error=way.error
        )
        payload = b"[%s,1]" % (way.result or b"null")
        for each in due:
            assert await row(storage, each.id) == JobRecord(
                id=each.id,
                queue_name="é q",
                type=f"on {each.on}",
                payload=payload,
                status=Status.PENDING,
                priority=-3,
                attempts=0,
                max_attempts=9,
                available_at=over,
                locked_until=None,
                locked_by=None,
                last_error=None,
                idempotency_key=None,
                fingerprint=None,
                cancel_requested=False,
                created_at=over,
                updated_at=over,
                completed_at=None,
                result=None,
                result_expires_at=None,
                progress=None,
                origin=origin,
            )
        shown = await storage.list(JobFilter(queues=frozenset({"é q"})), 5)
        assert {record.id: record for record in shown} == await storage.find([each.id for each in due])
        taken = (await reserve(storage, 5, queues=["é q"], now=over)).jobs
        assert [job.id for job in taken] == sorted(each.id for each in due)
        for job in taken:
            assert job == ReservedJob(
                lease=Lease(job_id=job.id, token=job.lease.token, nonce=job.lease.nonce),
                queue_name="é q",
                type=job.type,
                payload=payload,
                priority=-3,
                attempt=1,
                max_attempts=9,
                created_at=over,
                origin=origin,
            )

    @pytest.mark.parametrize("event", GO_ON)
    async def test_a_job_that_goes_on_writes_none_and_keeps_them(self, storage: Storage, event: Event) -> None:
        callbacks = one_of_each()
        lease = await hold(storage, queue_name="q", callbacks=tuple(callbacks.values()))
        assert await settle(storage, lease, event, error=BOOM if event is Event.RETRY else None)
        assert not await written(storage, callbacks.values())
        await settle(storage, (await take(storage, queues=["q"])).lease, Event.SUCCEED, result=b"1")
        assert await written(storage, callbacks.values()) == {callbacks[On.SUCCESS].id, callbacks[On.ALWAYS].id}
        assert (await row(storage, callbacks[On.ALWAYS].id)).origin == Origin(
            job_id=lease.job_id, type="work", queue_name="q", status=Status.COMPLETED
        )

    async def test_a_recovered_job_writes_none_and_keeps_them(self, storage: Storage) -> None:
        callbacks = one_of_each()
        stale = await hold(storage, queue_name="q", max_attempts=2, callbacks=tuple(callbacks.values()))
        ready = await lapse(storage, now=at(LEASE))
        assert not await written(storage, callbacks.values())
        assert not await settle(storage, stale, Event.SUCCEED, now=ready, result=b"1")
        await take(storage, queues=["q"], now=ready)
        assert not await settle(storage, stale, Event.FAIL, now=ready, error=BOOM)
        assert not await written(storage, callbacks.values())
        assert (await maintain(storage, now=at(3 * LEASE))).buried == 1
        assert await written(storage, callbacks.values()) == {callbacks[On.FAILURE].id, callbacks[On.ALWAYS].id}

    async def test_a_lease_that_is_not_held_writes_none(self, storage: Storage) -> None:
        callback = follow_up(on=On.ALWAYS)
        lease = await hold(storage, callbacks=(callback,))
        for event in (Event.SUCCEED, Event.FAIL, Event.ABORT):
            for each in forged(lease):
                assert not await settle(storage, each, event, **SETTLES_WITH[event])
        assert not await written(storage, [callback])

    @pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.ABORT])
    async def test_settled_twice_they_are_written_once(self, storage: Storage, event: Event) -> None:
        callbacks = one_of_each()
        lease = await hold(storage, callbacks=tuple(callbacks.values()))
        assert await settle(storage, lease, event, **SETTLES_WITH[event])
        before = await everything(storage)
        assert await settle(storage, lease, event, now=at(1), **SETTLES_WITH[event])
        assert await everything(storage) == before
        await remove(storage, await written(storage, callbacks.values()))
        assert await settle(storage, lease, event, now=at(2), **SETTLES_WITH[event])
        assert not await written(storage, callbacks.values())

    async def test_cancelled_twice_they_are_written_once(self, storage: Storage) -> None:
        callback = follow_up(on=On.ALWAYS)
        job_id = await add(storage, callbacks=(callback,))
        await storage.cancel([job_id, job_id], now=T0)
        before = await everything(storage)
        await storage.cancel([job_id], now=at(1))
        assert await everything(storage) == before
        await remove(storage, {callback.id})
        assert await storage.cancel([job_id], now=at(2)) == {job_id: Status.CANCELLED}
        assert not await written(storage, [callback])

    async def test_a_job_that_fails_again_after_a_retry_runs_no_callback_again(self, storage: Storage) -> None:
        callbacks = one_of_each()
        lease = await hold(storage, queue_name="q", callbacks=tuple(callbacks.values()))
        for now in (T0, at(1), at(2)):
            assert await settle(storage, lease, Event.FAIL, error=BOOM, now=now)
            ran = await written(storage, callbacks.values())
            assert ran == ({callbacks[On.FAILURE].id, callbacks[On.ALWAYS].id} if now <= at(1) else set())
            if now == at(1):
                await remove(storage, ran)
            await storage.retry([lease.job_id], now=now)
            lease = (await take(storage, queues=["q"], now=now)).lease
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(3))
        assert await written(storage, callbacks.values()) == {callbacks[On.SUCCESS].id}

    @pytest.mark.parametrize("first", [Event.FAIL, Event.ABORT])
    async def test_a_job_that_succeeds_after_a_retry_runs_those_that_had_not_run(
        self, storage: Storage, first: Event
    ) -> None:
        callbacks = one_of_each(head="", tail="")
        lease = await hold(storage, queue_name="q", callbacks=tuple(callbacks.values()))
        assert await settle(storage, lease, first, **SETTLES_WITH[first])
        before = await written(storage, callbacks.values())
        assert callbacks[On.SUCCESS].id not in before
        earlier = await storage.find(before)
        await storage.retry([lease.job_id], now=at(1))
        again = (await take(storage, queues=["q"], now=at(1))).lease
        assert await settle(storage, again, Event.SUCCEED, result=b"2", now=at(2))
        assert await written(storage, callbacks.values()) == before | {callbacks[On.SUCCESS].id}
        assert await storage.find(before) == earlier
        follower = await row(storage, callbacks[On.SUCCESS].id)
        assert (follower.payload, follower.available_at) == (b"2", at(2))
        assert follower.origin == Origin(job_id=lease.job_id, type="work", queue_name="q", status=Status.COMPLETED)

    async def test_each_job_of_a_batch_has_its_own(self, storage: Storage) -> None:
        jobs = [
            new_job(callbacks=tuple(one_of_each(head=f'["{number}",', tail="]").values()) if number % 4 else ())
            for number in range(40)
        ]
        await storage.insert(jobs, now=T0)
        leases = [job.lease for job in (await reserve(storage, len(jobs))).jobs]
        assert [lease.job_id for lease in leases] == [job.id for job in jobs]
        events = [(Event.SUCCEED, Event.FAIL, Event.ABORT, Event.RETRY, Event.SUCCEED)[n % 5] for n in range(len(jobs))]
        batch = [
            Settlement(
                lease=lease,
                event=event,
                result=b"%d" % number if event is Event.SUCCEED else None,
                error=Failure(type="E", message=str(number)) if event in {Event.FAIL, Event.RETRY} else None,
            )
            for number, (lease, event) in enumerate(zip(leases, events, strict=True))
        ]
        batch.insert(7, Settlement(lease=forged(leases[6])[0], event=Event.FAIL, error=BOOM))
        await storage.settle(batch, now=at(1))
        expected: dict[UUID, tuple[bytes, Origin]] = {}
        ended = {Event.SUCCEED: Status.COMPLETED, Event.FAIL: Status.FAILED, Event.ABORT: Status.CANCELLED}
        for number, (job, event) in enumerate(zip(jobs, events, strict=True)):
            if event not in ended:
                continue
            error = Failure(type="E", message=str(number)) if event is Event.FAIL else None
            result = str(number) if event is Event.SUCCEED else "null"
            origin = Origin(job_id=job.id, type="work", queue_name="default", status=ended[event], error=error)
            for each in job.callbacks:
                if each.on.calls_for(ended[event]):
                    expected[each.id] = (f'["{number}",{result}]'.encode(), origin)
        shown = await storage.list(JobFilter(queues=frozenset({"after"})), 1_000)
        assert {record.id: (record.payload, record.origin) for record in shown} == expected

    async def test_a_thousand_jobs_that_end_in_one_batch_have_each_its_own(self, storage: Storage) -> None:
        jobs = [new_job(callbacks=(follow_up(head="[", tail="]"),)) for _ in range(1_000)]
        await storage.insert(jobs, now=T0)
        leases = [job.lease for job in (await reserve(storage, 1_000)).jobs]
        ends = [
            Settlement(lease=lease, event=Event.SUCCEED, result=b"%d" % number) for number, lease in enumerate(leases)
        ]
        assert (await storage.settle(ends, now=T0)).accepted == set(leases)
        taken = (await reserve(storage, 1_000, queues=["after"])).jobs
        assert [job.id for job in taken] == [job.callbacks[0].id for job in jobs]
        assert [job.payload for job in taken] == [b"[%d]" % number for number in range(1_000)]
        assert [job.origin and job.origin.job_id for job in taken] == [job.id for job in jobs]

    async def test_many_jobs_that_end_without_a_holder_have_each_its_own(self, storage: Storage) -> None:
        waiting = [new_job(queue_name="waiting", callbacks=tuple(one_of_each().values())) for _ in range(10)]
        held = [new_job(max_attempts=1, callbacks=tuple(one_of_each().values())) for _ in range(10)]
        await storage.insert(waiting + held, now=T0)
        await reserve(storage, len(held))
        await storage.cancel([job.id for job in waiting], now=at(1))
        assert (await maintain(storage, now=at(LEASE))).buried == len(held)
        expected = {
            each.id: (job.id, Status.CANCELLED if job in waiting else Status.FAILED)
            for job in waiting + held
            for each in job.callbacks
            if each.on is On.ALWAYS or (each.on is On.FAILURE and job in held)
        }
        shown = await storage.list(JobFilter(queues=frozenset({"after"})), 1_000)
        origins = {record.id: record.origin for record in shown}
        assert {follower: origin and (origin.job_id, origin.status) for follower, origin in origins.items()} == expected

    async def test_a_job_may_have_as_many_as_a_dispatch_and_they_run_in_the_order_given(self, storage: Storage) -> None:
        callbacks = tuple(follow_up(head=f'{{"number":{number}}}') for number in range(CALLBACK_LIMIT))
        lease = await hold(storage, callbacks=callbacks)
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        taken = (await reserve(storage, CALLBACK_LIMIT + 1, queues=["after"])).jobs
        assert [(job.id, job.payload.decode()) for job in taken] == [(each.id, each.head) for each in callbacks]

    async def test_a_chain_runs_link_by_link_each_with_the_result_before(self, storage: Storage) -> None:
        links: list[FollowUp] = []
        for number in reversed(range(CHAIN_LIMIT)):
            then = () if not links else (links[0],)
            links.insert(0, follow_up(type=f"link {number}", head=f'{{"é\\"{number}":', tail="}", then=then))
        lease = await hold(storage, type="link -1", queue_name="first", callbacks=(links[0],))
        queue = "first"
        for number, link in enumerate(links):
            assert not await written(storage, links[number:])
            result = f'["\\"{number}"]'
            assert await settle(storage, lease, Event.SUCCEED, result=result.encode(), now=at(number))
            job = await take(storage, queues=["after"], now=at(number))
            assert (job.id, job.type) == (link.id, link.type)
            assert job.payload.decode() == f"{link.head}{result}}}"
            assert job.origin == Origin(
                job_id=lease.job_id, type=f"link {number - 1}", queue_name=queue, status=Status.COMPLETED
            )
            lease, queue = job.lease, "after"
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(99))
        assert not (await reserve(storage, queues=["after"], now=at(99))).jobs

    async def test_a_chain_branches_and_breaks_where_a_link_fails(self, storage: Storage) -> None:
        good, bad, last = follow_up(), follow_up(on=On.FAILURE), follow_up(on=On.ALWAYS)
        chain = follow_up(then=(good, evolve(bad, then=(last,))))
        lease = await hold(storage, callbacks=(chain,))
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        link = (await take(storage, queues=["after"])).lease
        await settle(storage, link, Event.FAIL, error=BOOM, now=at(1))
        assert await written(storage, [good, bad, last]) == {bad.id}
        await storage.cancel([bad.id], now=at(2))
        assert await written(storage, [good, bad, last]) == {bad.id, last.id}
        origin = (await row(storage, last.id)).origin
        assert origin == Origin(job_id=bad.id, type="follow", queue_name="after", status=Status.CANCELLED)

    async def test_rivals_that_end_one_job_write_its_callbacks_once(self, storage: Storage) -> None:
        for number in range(5):
            callbacks = one_of_each(queue_name=f"after {number}")
            lease = await hold(storage, max_attempts=1, callbacks=tuple(callbacks.values()))

            async def succeed(lease: Lease = lease) -> None:
                await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(LEASE))

            async with create_task_group() as rivals:
                rivals.start_soon(succeed)
                rivals.start_soon(maintain, storage)
                rivals.start_soon(succeed)
                rivals.start_soon(lambda: maintain(storage, now=at(LEASE)))
            status = (await row(storage, lease.job_id)).status
            assert status in {Status.COMPLETED, Status.FAILED}
            calls = {each.id for on, each in callbacks.items() if on.calls_for(status)}
            assert await written(storage, callbacks.values()) == calls
            origins = [record.origin for record in (await storage.find(calls)).values()]
            assert [origin and origin.status for origin in origins] == [status, status]

    async def test_a_job_that_was_made_by_a_callback_is_like_any_other(self, storage: Storage) -> None:
        callback = follow_up(max_attempts=2)
        await settle(storage, await hold(storage, callbacks=(callback,)), Event.SUCCEED, result=b"1")
        first = await take(storage, queues=["after"])
        await settle(storage, first.lease, Event.RETRY, error=BOOM)
        second = await take(storage, queues=["after"])
        assert (second.attempt, second.origin) == (2, first.origin)
        await settle(storage, second.lease, Event.FAIL, error=BOOM)
        await storage.retry([callback.id], now=at(1))
        third = await take(storage, queues=["after"], now=at(1))
        assert (third.attempt, third.origin) == (1, first.origin)

    async def test_a_job_without_callbacks_has_no_origin_and_no_follower(self, storage: Storage) -> None:
        job_id = await add(storage)
        job = await take(storage)
        assert job.origin is None
        await settle(storage, job.lease, Event.SUCCEED, result=b"1")
        assert [record.id for record in await storage.list(JobFilter(), 10)] == [job_id]
        assert (await row(storage, job_id)).origin is None


class CallbackWakeConformance(Suite):
    """Callbacks that are written wake those who listen for them."""

    @pytest.mark.parametrize("way", list(WAYS.values()), ids=list(WAYS))
    async def test_the_callbacks_of_an_end_wake(self, wakeful: Storage, way: Way) -> None:
        callbacks = tuple(follow_up(on=On.ALWAYS, queue_name=name) for name in ("after", "é'", "nobody's"))
        begun = await begin(wakeful, way, callbacks=callbacks)
        async with wakeful.listen(["after", "é'", "other"]) as listener:
            await end(wakeful, way, begun)
            await hear(listener, "after", "é'")

    async def test_a_callback_that_was_written_elsewhere_wakes(self, wakeful: Storage, another: Storage) -> None:
        lease = await hold(wakeful, callbacks=(follow_up(),))
        async with wakeful.listen(["after"]) as listener:
            assert await settle(another, lease, Event.SUCCEED, result=b"1")
            await hear(listener, "after")
        assert (await take(wakeful, queues=["after"])).origin is not None
