"""Callbacks of dispatches that join: each runs once, whoever inserted the job. Those of one dispatch stand apart, and
what happens when several join at once, too.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from creche._job import Event, FollowUp, JobFilter, On, Origin, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    T0,
    Suite,
    add,
    ask,
    at,
    bring,
    everything,
    follow_up,
    hold,
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
