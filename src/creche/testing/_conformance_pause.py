"""Pause and resume: which queues hand out jobs. How long they keep them stands apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from anyio import create_task_group

from creche._job import NAME_LIMIT, Event, Retention, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    LEASE,
    PUT_OFF,
    T0,
    Suite,
    add,
    at,
    bring,
    everything,
    extend,
    hold,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
)
from creche.testing._conformance_listen import hear


async def paused(storage: Storage) -> dict[str, datetime]:
    """Return since when which queues are paused."""
    return {each.queue_name: each.paused_at for each in await storage.stats(now=T0) if each.paused_at is not None}


class PauseConformance(Suite):
    """`Storage.pause` and `Storage.resume`."""

    async def test_a_paused_queue_hands_out_nothing_until_it_is_resumed(self, storage: Storage) -> None:
        job_id = await add(storage, queue_name="q")
        await storage.pause(["q"], now=T0)
        for now in (T0, at(1), at(86_400)):
            assert not (await reserve(storage, 5, queues=["q"], now=now)).jobs
        assert (await row(storage, job_id)).status is Status.PENDING
        await storage.resume(["q"])
        assert (await take(storage, queues=["q"])).id == job_id

    async def test_it_hands_out_nothing_to_anybody(self, storage: Storage) -> None:
        await add(storage, queue_name="q", type="t", priority=100)
        await storage.pause(["q"], now=T0)
        for worker in ("one", "two"):
            assert not (await reserve(storage, 5, queues=["q"], worker=worker)).jobs
            assert not (await reserve(storage, 5, queues=["q"], worker=worker, types=["t"])).jobs

    async def test_what_runs_goes_on(self, storage: Storage) -> None:
        leases = [await hold(storage, queue_name="q") for _ in range(3)]
        await storage.pause(["q"], now=T0)
        for lease in leases:
            assert await extend(storage, lease, now=at(1))
        assert await settle(storage, leases[0], Event.SUCCEED, result=b"1", now=at(2))
        assert await settle(storage, leases[1], Event.RELEASE, now=at(2))
        assert await settle(storage, leases[2], Event.FAIL, error=BOOM, now=at(2))
        assert [(await row(storage, lease.job_id)).status for lease in leases] == [
            Status.COMPLETED,
            Status.PENDING,
            Status.FAILED,
        ]
        assert not (await reserve(storage, 5, queues=["q"], now=at(2))).jobs

    async def test_what_is_dispatched_waits(self, storage: Storage) -> None:
        await storage.pause(["q"], now=T0)
        jobs = [new_job(queue_name="q", fingerprint=bytes(32)), new_job(queue_name="q", priority=5)]
        assert [each.status for each in await storage.insert(jobs, now=at(1))] == [Status.PENDING] * 2
        joined = new_job(queue_name="q", fingerprint=bytes(32))
        assert (await storage.insert([joined], now=at(1)))[0].job_id == jobs[0].id
        assert not (await reserve(storage, 5, queues=["q"], now=at(1))).jobs
        await storage.resume(["q"])
        taken = (await reserve(storage, 5, queues=["q"], now=at(1))).jobs
        assert [job.id for job in taken] == [jobs[1].id, jobs[0].id]

    async def test_a_paused_queue_is_as_if_it_had_not_been_named(self, storage: Storage) -> None:
        await storage.insert([new_job(queue_name=name, priority=9) for name in "abc" * 3], now=T0)
        await add(storage, queue_name="b", delay=1)
        await add(storage, queue_name="c", delay=5)
        await storage.pause(["b"], now=T0)
        without = await reserve(storage, 4, queues=["c", "b", "a"])
        assert [job.queue_name for job in without.jobs] == ["c", "c", "c", "a"]
        assert without.next_due_in == pytest.approx(5, abs=1e-5)

    async def test_where_all_are_paused_there_is_nothing_to_come_either(self, storage: Storage) -> None:
        for name in ("a", "b"):
            await add(storage, queue_name=name)
            await add(storage, queue_name=name, delay=5)
        await storage.pause(["a", "b"], now=T0)
        for limit in (1, 100):
            nothing = await reserve(storage, limit, queues=["a", "b"], now=at(1))
            assert not nothing.jobs
            assert nothing.next_due_in is None
        await storage.resume(["b"])
        again = await reserve(storage, 5, queues=["a", "b"], now=at(1))
        assert [job.queue_name for job in again.jobs] == ["b"]
        assert again.next_due_in == pytest.approx(4, abs=1e-5)

    async def test_one_that_is_paused_already_stays_so_since_then(self, storage: Storage) -> None:
        await storage.pause(["q"], now=at(1.000_001))
        await storage.pause(["other", "q"], now=at(2))
        assert await paused(storage) == {"q": at(1.000_001), "other": at(2)}
        await storage.resume(["q"])
        assert await paused(storage) == {"other": at(2)}
        await storage.pause(["q"], now=at(3))
        assert await paused(storage) == {"other": at(2), "q": at(3)}

    async def test_both_can_be_sent_again(self, storage: Storage) -> None:
        await add(storage, queue_name="q")
        for _ in range(2):
            await storage.pause(["q", "empty"], now=at(1))
            assert await paused(storage) == {"q": at(1), "empty": at(1)}
        for _ in range(2):
            await storage.resume(["q", "empty"])
            assert await paused(storage) == {}
        await take(storage, queues=["q"])

    async def test_to_pause_or_resume_nothing_or_what_nobody_knows_is_no_error(self, storage: Storage) -> None:
        await add(storage)
        await storage.pause([], now=T0)
        await storage.resume([])
        await storage.resume(["unknown"])
        assert await paused(storage) == {}
        assert [each.queue_name for each in await storage.stats(now=T0)] == ["default"]
        await take(storage)

    async def test_a_name_may_stand_twice(self, storage: Storage) -> None:
        await storage.pause(["q", "q", "r"], now=T0)
        assert await paused(storage) == {"q": T0, "r": T0}
        await storage.resume(["r", "q", "r"])
        assert await paused(storage) == {}

    async def test_queues_that_a_collation_would_confuse_are_paused_one_by_one(self, storage: Storage) -> None:
        names = [*DISTINCT_NAMES, "n" * NAME_LIMIT, "é" * (NAME_LIMIT // 2), "\\'\"%s\U0001f423"]
        for number, name in enumerate(names):
            await storage.pause([name], now=at(number))
            await storage.insert([new_job(queue_name=each) for each in names], now=T0)
            taken = {job.queue_name for job in (await reserve(storage, 10_000, queues=names)).jobs}
            assert taken == {*names} - {name}
            assert await paused(storage) == {name: at(number)}
            await storage.resume([each for each in names if each != name])
            assert await paused(storage) == {name: at(number)}
            await storage.resume([name])
            assert {job.queue_name for job in (await reserve(storage, 10_000, queues=names)).jobs} == {name}

    async def test_a_thousand_queues_are_one_batch(self, storage: Storage) -> None:
        names = [f"q{number:04}" for number in range(1_000)]
        await storage.pause(names, now=T0)
        assert await paused(storage) == dict.fromkeys(names, T0)
        await storage.insert([new_job(queue_name=name) for name in (names[0], names[-1], "open")], now=T0)
        taken = (await reserve(storage, 5, queues=[*names, "open"])).jobs
        assert [job.queue_name for job in taken] == ["open"]
        await storage.resume(names)
        assert await paused(storage) == {}

    async def test_a_paused_queue_is_looked_after_as_the_others_are(self, storage: Storage) -> None:
        held, last = await hold(storage, queue_name="q"), await hold(storage, queue_name="q", max_attempts=1)
        scheduled = await add(storage, queue_name="q", delay=5)
        done = await bring(storage, Status.COMPLETED, queue_name="q")
        await storage.pause(["q"], now=T0)
        upkeep = await maintain(storage, now=at(4))
        assert upkeep.next_due_in == pytest.approx(1, abs=1e-5)
        upkeep = await maintain(storage, retention=Retention(completed=1), now=at(LEASE))
        assert (upkeep.recovered, upkeep.buried, upkeep.promoted, upkeep.pruned) == (1, 1, 1, 1)
        assert (await maintain(storage, now=at(LEASE + PUT_OFF))).promoted == 1
        found = await storage.find([held.job_id, last.job_id, scheduled, done.job_id])
        assert {job_id: record.status for job_id, record in found.items()} == {
            held.job_id: Status.PENDING,
            last.job_id: Status.FAILED,
            scheduled: Status.PENDING,
        }
        assert not (await reserve(storage, 5, queues=["q"], now=at(100))).jobs

    async def test_people_can_cancel_and_retry_in_it(self, storage: Storage) -> None:
        failed, waiting = await bring(storage, Status.FAILED, queue_name="q"), await add(storage, queue_name="q")
        await storage.pause(["q"], now=T0)
        assert await storage.cancel([waiting], now=T0) == {waiting: Status.CANCELLED}
        assert await storage.retry([failed.job_id], now=T0) == {failed.job_id: Status.PENDING}
        assert not (await reserve(storage, 5, queues=["q"])).jobs

    async def test_to_pause_and_resume_changes_no_job(self, storage: Storage) -> None:
        for status in Status:
            await bring(storage, status, queue_name=f"only {status}")
        before = await everything(storage)
        await storage.pause([f"only {status}" for status in Status], now=at(1))
        assert await everything(storage) == before
        await storage.resume([f"only {status}" for status in Status])
        assert await everything(storage) == before

    async def test_without_a_moment_it_is_paused_since_now(self, storage: Storage) -> None:
        await storage.pause(["q"])
        since = (await paused(storage))["q"]
        assert since.utcoffset() == timedelta(0)
        assert abs(since - datetime.now(UTC)) < timedelta(minutes=5)  # the database's clock may be another machine's


class PauseAtOnceConformance(Suite):
    """Pause and resume, while others work."""

    async def test_what_is_paused_while_jobs_are_taken_hands_out_nothing_more(self, storage: Storage) -> None:
        await self._pause_while_jobs_are_taken(storage, storage)

    async def test_a_pause_elsewhere_holds_here_while_jobs_are_taken(self, storage: Storage, another: Storage) -> None:
        await self._pause_while_jobs_are_taken(storage, another)

    async def _pause_while_jobs_are_taken(self, storage: Storage, elsewhere: Storage) -> None:
        jobs = [new_job(queue_name="q") for _ in range(40)]
        await storage.insert(jobs, now=T0)
        taken: list[UUID] = []
        over = False

        async def rival() -> None:
            while not over and (batch := (await reserve(storage, 1, queues=["q"])).jobs):
                taken.extend(job.id for job in batch)

        async def pause() -> None:
            nonlocal over
            await elsewhere.pause(["q"], now=T0)
            assert not (await reserve(storage, 1, queues=["q"])).jobs
            over = True

        async with create_task_group() as group:
            for _ in range(3):
                group.start_soon(rival)
            group.start_soon(pause)
        assert not (await reserve(storage, 100, queues=["q"])).jobs
        await elsewhere.resume(["q"])
        taken.extend(job.id for job in (await reserve(storage, 100, queues=["q"])).jobs)
        assert sorted(taken) == [job.id for job in jobs]

    async def test_what_one_paused_the_other_hands_out_no_more(self, storage: Storage, another: Storage) -> None:
        await add(storage, queue_name="q")
        await another.pause(["q"], now=at(1))
        assert not (await reserve(storage, 5, queues=["q"])).jobs
        await storage.pause(["q"], now=at(2))
        assert await paused(another) == await paused(storage) == {"q": at(1)}
        await storage.resume(["q"])
        assert await paused(another) == {}
        await take(another, queues=["q"])

    async def test_of_many_who_pause_at_once_one_says_since_when(self, storage: Storage) -> None:
        await self._pause_at_once(storage, storage)

    async def test_of_many_who_pause_in_two_places_one_says_since_when(
        self, storage: Storage, another: Storage
    ) -> None:
        await self._pause_at_once(storage, another)

    async def _pause_at_once(self, storage: Storage, elsewhere: Storage) -> None:
        names = [f"q{number}" for number in range(20)]

        async def pause(number: int) -> None:
            # In opposite orders, so that each may wait for the other.
            there, order = ((storage, names), (elsewhere, names[::-1]))[number % 2]
            await there.pause(order, now=at(number))

        async with create_task_group() as group:
            for number in range(8):
                group.start_soon(pause, number)
        since = await paused(storage)
        assert since.keys() == {*names}
        assert {*since.values()} <= {at(number) for number in range(8)}
        async with create_task_group() as group:
            for there, order in ((storage, names), (elsewhere, names[::-1])) * 2:
                group.start_soon(there.resume, order)
        assert await paused(storage) == {}


class PauseWakeConformance(Suite):
    """Resume: who is woken."""

    async def test_to_resume_a_queue_wakes_who_listens_to_it(self, wakeful: Storage) -> None:
        names = ["q", "it's ä"]
        await wakeful.pause([*names, "other"], now=T0)
        async with wakeful.listen(names) as listener:
            await wakeful.resume([*names, "other"])
            await hear(listener, *names)

    async def test_to_resume_again_wakes_again(self, wakeful: Storage) -> None:
        # The answer to the first may have been lost, and its wakes with it.
        await wakeful.pause(["q"], now=T0)
        async with wakeful.listen(["q"]) as listener:
            for _ in range(2):
                await wakeful.resume(["q"])
                await hear(listener, "q")

    async def test_to_resume_elsewhere_wakes(self, wakeful: Storage, another: Storage) -> None:
        await wakeful.pause(["q"], now=T0)
        async with wakeful.listen(["q"]) as listener:
            await another.resume(["q"])
            await hear(listener, "q")
