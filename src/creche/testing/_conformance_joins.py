"""Callbacks of dispatches that join: each runs once, whoever inserted the job. Those of one dispatch stand apart."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._job import Event, FollowUp, JobFilter, NewJob, On, Origin, Settlement, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    FOREVER,
    LEASE,
    T0,
    Suite,
    add,
    ask,
    at,
    bring,
    everything,
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
from creche.testing._conformance_callbacks import one_of_each
from creche.testing._conformance_ends import RESULT
from creche.testing._conformance_listen import hear

MEETS: Final[dict[str, dict[str, Any]]] = {
    "by fingerprint": {"fingerprint": bytes(32), "result_ttl": 600.0},
    "by key": {"idempotency_key": "once"},
}
"""What makes a dispatch meet another one, in the same queue."""

CALLERS: Final = 50
ROUNDS: Final = 8

by_both = pytest.mark.parametrize("meets", list(MEETS.values()), ids=list(MEETS))


async def succeed(storage: Storage, queue: str = "q", result: bytes = RESULT) -> None:
    """Bring the one job of a queue that is active to its end."""
    (record,) = await storage.list(JobFilter(queues=frozenset({queue})), 2)
    if record.status is Status.SCHEDULED:
        await storage.retry([record.id], now=T0)
    lease = (await take(storage, queues=[queue])).lease
    assert await settle(storage, lease, Event.SUCCEED, result=result)


async def origins(storage: Storage, callbacks: list[FollowUp]) -> list[Origin | None]:
    """Return the origins of callbacks that have been written, in their order."""
    found = await storage.find([each.id for each in callbacks])
    return [found[each.id].origin for each in callbacks]


class JoinConformance(Suite):
    """Dispatches that find a job in their place, one after another."""

    @by_both
    @pytest.mark.parametrize("status", [Status.PENDING, Status.SCHEDULED, Status.PROCESSING])
    async def test_a_dispatch_that_joins_adds_its_callbacks(
        self, storage: Storage, status: Status, meets: dict[str, Any]
    ) -> None:
        mine, yours = one_of_each(), one_of_each(head="[", tail="]")
        lease = await bring(storage, status, queue_name="q", callbacks=tuple(mine.values()), **meets)
        before = await everything(storage)
        answer = await ask(storage, queue_name="q", callbacks=tuple(yours.values()), **meets)
        assert (answer.job_id, answer.inserted, answer.status) == (lease.job_id, False, status)
        assert await everything(storage) == before
        if status is Status.PROCESSING:
            assert await settle(storage, lease, Event.SUCCEED, result=RESULT)
        else:
            await succeed(storage)
        expected = {each[on].id for each in (mine, yours) for on in (On.SUCCESS, On.ALWAYS)}
        assert await written(storage, [*mine.values(), *yours.values()]) == expected
        assert (await row(storage, yours[On.SUCCESS].id)).payload == b"[" + RESULT + b"]"
        assert (await row(storage, yours[On.SUCCESS].id)).origin == (await row(storage, mine[On.SUCCESS].id)).origin

    @by_both
    async def test_a_job_without_callbacks_gets_those_of_whoever_joins(
        self, storage: Storage, meets: dict[str, Any]
    ) -> None:
        lease = await hold(storage, queue_name="q", **meets)
        callbacks = [follow_up() for _ in range(3)]
        for each in callbacks:
            assert not (await ask(storage, queue_name="q", callbacks=(each,), **meets)).inserted
        assert not await written(storage, callbacks)
        await settle(storage, lease, Event.SUCCEED, result=RESULT)
        taken = (await reserve(storage, 5, queues=["after"])).jobs
        assert [job.id for job in taken] == [each.id for each in callbacks]

    @by_both
    async def test_they_stay_with_a_job_that_is_tried_again(self, storage: Storage, meets: dict[str, Any]) -> None:
        lease = await hold(storage, queue_name="q", **meets)
        callback = follow_up()
        await ask(storage, queue_name="q", callbacks=(callback,), **meets)
        await settle(storage, lease, Event.RETRY, error=BOOM)
        assert not await written(storage, [callback])
        await succeed(storage)
        assert await written(storage, [callback]) == {callback.id}

    async def test_they_reach_across_queues(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="there", fingerprint=bytes(32))
        callback = follow_up(queue_name="here")
        await ask(storage, queue_name="here", fingerprint=bytes(32), callbacks=(callback,))
        await settle(storage, lease, Event.SUCCEED, result=RESULT)
        origin = (await take(storage, queues=["here"])).origin
        assert origin == Origin(job_id=lease.job_id, type="work", queue_name="there", status=Status.COMPLETED)

    @pytest.mark.parametrize(
        ("status", "meets"),
        [
            (Status.COMPLETED, MEETS["by fingerprint"]),
            (Status.COMPLETED, MEETS["by key"]),
            (Status.FAILED, MEETS["by key"]),
            (Status.CANCELLED, MEETS["by key"]),
        ],
    )
    async def test_those_of_a_dispatch_that_meets_a_job_that_is_over_are_written_at_once(
        self, storage: Storage, status: Status, meets: dict[str, Any]
    ) -> None:
        first = one_of_each()
        lease = await bring(storage, status, type="ocr", queue_name="q", callbacks=tuple(first.values()), **meets)
        before = await everything(storage)
        callbacks = one_of_each(head="[", tail="]")
        job = new_job(queue_name="q", callbacks=tuple(callbacks.values()), **meets)
        (answer,) = await storage.insert([job], now=at(30))
        assert (answer.job_id, answer.inserted, answer.status) == (lease.job_id, False, status)
        due = {each.id for on, each in callbacks.items() if on.calls_for(status)}
        assert await written(storage, callbacks.values()) == due
        failed = status is Status.FAILED
        result = RESULT if status is Status.COMPLETED else None
        assert answer.result == result
        for record in (await storage.find(due)).values():
            assert record.payload == b"[" + (result or b"null") + b"]"
            assert (record.status, record.available_at, record.created_at) == (Status.PENDING, at(30), at(30))
            assert record.origin == Origin(
                job_id=lease.job_id, type="ocr", queue_name="q", status=status, error=BOOM if failed else None
            )
        after = await everything(storage)
        assert set(before[0]) <= set(after[0])  # type: ignore[call-overload]
        assert await storage.insert([job], now=at(31)) == [answer]
        assert await everything(storage) == after

    @pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
    async def test_those_that_an_end_does_not_call_for_wait_for_another_end(
        self, storage: Storage, status: Status
    ) -> None:
        lease = await bring(storage, status, queue_name="q", idempotency_key="once")
        callbacks = one_of_each()
        job = new_job(queue_name="q", idempotency_key="once", callbacks=tuple(callbacks.values()))
        await storage.insert([job], now=T0)
        ran = await written(storage, callbacks.values())
        assert callbacks[On.SUCCESS].id not in ran
        await storage.retry([lease.job_id], now=at(1))
        await settle(storage, (await take(storage, queues=["q"], now=at(1))).lease, Event.SUCCEED, result=b"1")
        assert await written(storage, callbacks.values()) == ran | {callbacks[On.SUCCESS].id}

    @by_both
    async def test_a_dispatch_that_is_sent_twice_records_its_callbacks_once(
        self, storage: Storage, meets: dict[str, Any]
    ) -> None:
        mine = new_job(queue_name="q", callbacks=tuple(one_of_each().values()), **meets)
        yours = new_job(queue_name="q", callbacks=tuple(one_of_each().values()), **meets)
        await storage.insert([mine], now=T0)
        for _ in range(2):
            assert [each.inserted for each in await storage.insert([mine, yours, mine, yours], now=T0)] == [
                *(True, False),
                *(True, False),
            ]
        lease = (await take(storage, queues=["q"])).lease
        await storage.insert([yours, mine], now=T0)
        assert await settle(storage, lease, Event.SUCCEED, result=RESULT)
        calls = {each.id for job in (mine, yours) for each in job.callbacks if each.on is not On.FAILURE}
        shown = await storage.list(JobFilter(queues=frozenset({"after"})), 20)
        assert {record.id for record in shown} == calls
        before = await everything(storage)
        answers = await storage.insert([yours, mine], now=at(1))
        assert [(each.job_id, each.inserted) for each in answers] == [(mine.id, False), (mine.id, True)]
        assert await everything(storage) == before
        for job in (await reserve(storage, 20, queues=["after"], now=at(2))).jobs:
            await settle(storage, job.lease, Event.SUCCEED, result=b"1", now=at(2))
        before = await everything(storage)
        await storage.insert([mine, yours], now=at(3))
        assert await everything(storage) == before

    async def test_one_that_is_sent_again_after_a_job_was_revived_runs_no_callback_again(
        self, storage: Storage
    ) -> None:
        callbacks = one_of_each()
        job = new_job(queue_name="q", callbacks=tuple(callbacks.values()))
        await storage.insert([job], now=T0)
        await settle(storage, (await take(storage, queues=["q"])).lease, Event.FAIL, error=BOOM)
        before = await storage.find([callbacks[On.FAILURE].id, callbacks[On.ALWAYS].id])
        assert len(before) == 2
        await storage.retry([job.id], now=at(1))
        await storage.insert([job], now=at(1))
        await settle(storage, (await take(storage, queues=["q"], now=at(1))).lease, Event.SUCCEED, result=b"1")
        assert await storage.find(before) == before
        assert await written(storage, callbacks.values()) == {each.id for each in callbacks.values()}

    async def test_one_that_is_sent_again_when_the_job_that_it_joined_has_failed_keeps_its_callbacks(
        self, storage: Storage
    ) -> None:
        first = await hold(storage, queue_name="first", fingerprint=bytes(32))
        callbacks = one_of_each()
        job = new_job(queue_name="q", fingerprint=bytes(32), callbacks=tuple(callbacks.values()))
        assert [each.job_id for each in await storage.insert([job], now=T0)] == [first.job_id]
        await settle(storage, first, Event.FAIL, error=BOOM)
        ran = {callbacks[On.FAILURE].id, callbacks[On.ALWAYS].id}
        before = await storage.find(ran)
        assert before.keys() == ran
        assert [each.job_id for each in await storage.insert([job], now=at(1))] == [job.id]
        await succeed(storage)
        assert await written(storage, callbacks.values()) == {each.id for each in callbacks.values()}
        assert await storage.find(ran) == before
        after = await storage.find([callbacks[On.SUCCESS].id])
        await storage.retry([first.job_id], now=at(2))
        await settle(storage, (await take(storage, queues=["first"], now=at(2))).lease, Event.SUCCEED, result=b"1")
        assert await storage.find([callbacks[On.SUCCESS].id]) == after

    @by_both
    async def test_of_one_batch_those_that_join_add_theirs_to_the_first(
        self, storage: Storage, meets: dict[str, Any]
    ) -> None:
        jobs = [new_job(queue_name="q", callbacks=(follow_up(),), **meets) for _ in range(5)]
        alone = new_job(queue_name="alone", callbacks=(follow_up(queue_name="elsewhere"),))
        answers = await storage.insert([*jobs[:3], alone, *jobs[3:]], now=T0)
        assert [answer.job_id for answer in answers] == [*[jobs[0].id] * 3, alone.id, *[jobs[0].id] * 2]
        await succeed(storage)
        taken = (await reserve(storage, 10, queues=["after"])).jobs
        assert [job.id for job in taken] == [job.callbacks[0].id for job in jobs]
        assert {job.origin and job.origin.job_id for job in taken} == {jobs[0].id}

    async def test_of_one_batch_each_dispatch_finds_the_job_that_answers_for_it(self, storage: Storage) -> None:
        keyed = await hold(storage, queue_name="q", idempotency_key="k")
        cached = await bring(storage, Status.COMPLETED, fingerprint=bytes(32), result_ttl=60.0)
        failed = await bring(storage, Status.FAILED, queue_name="q", idempotency_key="failed")
        fresh = new_job(queue_name="fresh", fingerprint=b"f" * 32, callbacks=(follow_up(),))
        batch = [
            new_job(queue_name="q", idempotency_key="k", callbacks=(follow_up(),)),
            new_job(fingerprint=bytes(32), callbacks=(follow_up(), follow_up(on=On.FAILURE))),
            fresh,
            new_job(queue_name="q", idempotency_key="failed", callbacks=(follow_up(on=On.FAILURE),)),
            new_job(fingerprint=b"f" * 32, idempotency_key="unused", callbacks=(follow_up(),)),
            new_job(),
        ]
        await storage.insert(batch, now=T0)
        at_once = [batch[1].callbacks[0], batch[3].callbacks[0]]
        everyone = [each for job in batch for each in job.callbacks]
        assert await written(storage, everyone) == {each.id for each in at_once}
        assert [each and each.job_id for each in await origins(storage, at_once)] == [cached.job_id, failed.job_id]
        await settle(storage, keyed, Event.SUCCEED, result=b"1")
        await succeed(storage, "fresh")
        later = [batch[0].callbacks[0], fresh.callbacks[0], batch[4].callbacks[0]]
        assert [each and each.job_id for each in await origins(storage, later)] == [keyed.job_id, fresh.id, fresh.id]

    async def test_a_refresh_leaves_its_callbacks_to_the_new_job(self, storage: Storage) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=bytes(32), result_ttl=60.0)
        callback = follow_up(head="", tail="")
        new = await ask(storage, queue_name="q", fingerprint=bytes(32), refresh=True, callbacks=(callback,))
        assert not await written(storage, [callback])
        await succeed(storage, result=b'"new"')
        assert (await row(storage, callback.id)).payload == b'"new"'
        assert [each and each.job_id for each in await origins(storage, [callback])] == [new.job_id]

    async def test_a_stale_result_writes_no_callback(self, storage: Storage) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=bytes(32), result_ttl=60.0)
        callback = follow_up(on=On.ALWAYS)
        assert (await ask(storage, fingerprint=bytes(32), callbacks=(callback,), now=at(60))).inserted
        assert not await written(storage, [callback])

    async def test_a_callback_that_was_written_at_once_goes_on_with_its_chain(self, storage: Storage) -> None:
        await bring(storage, Status.COMPLETED, fingerprint=bytes(32), result_ttl=60.0)
        last = follow_up(queue_name="last", head="[", tail="]")
        first = follow_up(head="", tail="", then=(last,))
        await ask(storage, fingerprint=bytes(32), callbacks=(first,))
        job = await take(storage, queues=["after"])
        assert job.payload == RESULT
        await settle(storage, job.lease, Event.SUCCEED, result=b"2")
        assert (await take(storage, queues=["last"])).payload == b"[2]"

    @by_both
    async def test_a_joined_job_that_waits_wakes(self, wakeful: Storage, meets: dict[str, Any]) -> None:
        async with wakeful.listen(["q"]) as listener:
            await add(wakeful, queue_name="q", **meets)
            await hear(listener, "q")
            await ask(wakeful, queue_name="q", callbacks=(follow_up(),), **meets)
            await hear(listener, "q")

    @by_both
    async def test_callbacks_that_are_written_at_once_wake(self, wakeful: Storage, meets: dict[str, Any]) -> None:
        await bring(wakeful, Status.COMPLETED, queue_name="q", **meets)
        async with wakeful.listen(["after"]) as listener:
            await ask(wakeful, queue_name="q", callbacks=(follow_up(),), **meets)
            await hear(listener, "after")
        assert (await take(wakeful, queues=["after"])).payload == b"{}"


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
