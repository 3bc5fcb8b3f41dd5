"""Workers: who is there, since when, and what they hold. What a worker does with its jobs is no matter here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._job import NAME_LIMIT, Event, Presence, Progress, WorkerRecord, WorkerState
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    LEASE,
    T0,
    Suite,
    add,
    at,
    everything,
    extend,
    hold_as,
    lapse,
    maintain,
    new_job,
    reserve,
    settle,
    take,
)

TTL = 30.0


def presence(name: str = "w", **options: Any) -> Presence:
    """Return what a worker like any other says of itself, but for `options`."""
    defaults: dict[str, Any] = {
        "host": "host",
        "pid": 1,
        "backend": "asyncio",
        "version": "1.0",
        "queues": ("default",),
        "concurrency": 10,
    }
    return Presence(name=name, **{**defaults, **options})


async def names(storage: Storage, *, now: datetime = T0) -> list[str]:
    """Return who is there."""
    return [worker.presence.name for worker in await storage.workers(now=now)]


class WorkersConformance(Suite):
    """`Storage.announce`, `Storage.withdraw` and `Storage.workers`."""

    async def test_at_first_nobody_is_there(self, storage: Storage) -> None:
        assert list(await storage.workers(now=T0)) == []

    @pytest.mark.parametrize("state", list(WorkerState))
    async def test_who_is_announced_is_there_with_all_that_was_said(self, storage: Storage, state: WorkerState) -> None:
        said = Presence(
            name="host:1:ab",
            host='höst\U0001f423 it\'s "a" \\ %s',
            pid=4_194_304,
            backend="trio",
            version="0.1.dev1+g0",
            queues=("b", "a", "ä'\\"),
            concurrency=1_000,
            state=state,
        )
        await storage.announce(said, TTL, now=at(1.000_001))
        (worker,) = await storage.workers(now=at(2))
        assert worker == WorkerRecord(presence=said, started_at=at(1.000_001), seen_at=at(1.000_001), jobs=worker.jobs)
        assert list(worker.jobs) == []

    async def test_repeated_it_replaces_what_was_said_but_not_when_it_began(self, storage: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        said = presence(queues=("x", "y"), concurrency=3, state=WorkerState.QUIET, host="elsewhere", pid=2)
        for now in (at(10), at(10), at(25.5)):
            await storage.announce(said, TTL, now=now)
            (worker,) = await storage.workers(now=now)
            assert (worker.presence, worker.started_at, worker.seen_at) == (said, T0, now)

    async def test_it_is_there_until_its_time_has_run_out_and_no_longer(self, storage: Storage) -> None:
        await storage.announce(presence("brief"), 0.5, now=T0)
        await storage.announce(presence("long"), TTL, now=T0)
        assert await names(storage, now=at(0.499_999)) == ["brief", "long"]
        assert await names(storage, now=at(0.5)) == ["long"]
        assert await names(storage, now=at(29.999_999)) == ["long"]
        assert await names(storage, now=at(30)) == []

    async def test_its_time_counts_from_the_last_word_as_that_says(self, storage: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        await storage.announce(presence(), TTL, now=at(20))
        assert await names(storage, now=at(49.999_999)) == ["w"]
        await storage.announce(presence(), 5, now=at(21))
        assert await names(storage, now=at(25.999_999)) == ["w"]
        assert await names(storage, now=at(26)) == []

    async def test_upkeep_forgets_who_was_not_seen_and_nobody_else(self, storage: Storage) -> None:
        await storage.announce(presence("gone"), 10, now=T0)
        await storage.announce(presence("there"), 20, now=T0)
        await maintain(storage, now=at(9.999_999))
        assert await names(storage, now=at(9.999_999)) == ["gone", "there"]
        await maintain(storage, now=at(10))
        # The clock goes back, for only so it can be seen who was forgotten.
        assert await names(storage, now=at(9)) == ["there"]
        for name in ("gone", "there"):
            await storage.announce(presence(name), TTL, now=at(15))
        found = {worker.presence.name: worker.started_at for worker in await storage.workers(now=at(15))}
        assert found == {"gone": at(15), "there": T0}

    async def test_to_be_there_is_no_upkeep(self, storage: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        idle = await maintain(storage, now=at(100))
        assert (idle.recovered, idle.buried, idle.promoted, idle.pruned) == (0, 0, 0, 0)
        assert (idle.next_due_in, idle.next_expiry_in) == (None, None)

    async def test_who_withdraws_is_forgotten_at_once(self, storage: Storage) -> None:
        for name in ("one", "two"):
            await storage.announce(presence(name), TTL, now=T0)
        for _ in range(2):
            await storage.withdraw("one")
            assert await names(storage) == ["two"]
        await storage.announce(presence("one"), TTL, now=at(5))
        assert [worker.started_at for worker in await storage.workers(now=at(5))] == [at(5), T0]

    async def test_to_withdraw_who_is_unknown_is_no_error(self, storage: Storage) -> None:
        await storage.withdraw("nobody")
        await storage.announce(presence(), TTL, now=T0)
        await storage.withdraw("nobody")
        assert await names(storage) == ["w"]

    async def test_to_say_that_one_is_there_changes_no_job(self, storage: Storage) -> None:
        await hold_as(storage, "w")
        before = await everything(storage)
        await storage.announce(presence(), TTL, now=at(1))
        await storage.withdraw("w")
        assert await everything(storage) == before

    async def test_workers_come_by_name_and_none_is_taken_for_another(self, storage: Storage) -> None:
        said = [*DISTINCT_NAMES, "n" * NAME_LIMIT, "é" * (NAME_LIMIT // 2), "\\'\"%s\U0001f423", "\uffee"]
        for number, name in enumerate(said):
            await storage.announce(presence(name, pid=number), TTL, now=at(number / 100))
        found = await storage.workers(now=at(1))
        assert [worker.presence.name for worker in found] == sorted(said)
        assert {worker.presence.name: worker.presence.pid for worker in found} == {
            name: number for number, name in enumerate(said)
        }
        for number, name in enumerate(said, start=1):
            await storage.withdraw(name)
            assert await names(storage, now=at(1)) == sorted(said[number:])

    async def test_a_worker_may_serve_many_queues(self, storage: Storage) -> None:
        said = presence(queues=tuple(f"{number:03} ä'\\" + "n" * 100 for number in range(500)))
        await storage.announce(said, TTL, now=T0)
        assert [worker.presence for worker in await storage.workers(now=T0)] == [said]

    async def test_without_a_moment_it_is_there_now(self, storage: Storage) -> None:
        await storage.announce(presence(), 3_600)
        (worker,) = await storage.workers()
        assert worker.started_at == worker.seen_at
        assert worker.started_at.utcoffset() == timedelta(0)
        assert abs(worker.seen_at - datetime.now(UTC)) < timedelta(minutes=5)  # another machine's clock, maybe
        await maintain(storage, now=datetime.now(UTC) + timedelta(days=1))
        assert list(await storage.workers()) == []


class HoldingsConformance(Suite):
    """`Storage.workers`: the jobs that each holds."""

    async def test_each_is_shown_with_what_it_holds(self, storage: Storage) -> None:
        for name in ("one", "two", "idle"):
            await storage.announce(presence(name), TTL, now=T0)
        jobs = [new_job(type=f"type {number}", queue_name="q") for number in range(5)]
        await storage.insert(jobs, now=T0)
        for worker in ("one", "two", "one"):
            await take(storage, queues=["q"], worker=worker)
        shown = {worker.presence.name: [job.job_id for job in worker.jobs] for worker in await storage.workers(now=T0)}
        assert shown == {"idle": [], "one": [jobs[0].id, jobs[2].id], "two": [jobs[1].id]}

    async def test_of_a_job_it_shows_how_far_it_is_and_what_is_left_of_its_lease(self, storage: Storage) -> None:
        await storage.announce(presence(), 10 * LEASE, now=T0)
        await add(storage, queue_name="q ä", type="t's")
        first = await take(storage, queues=["q ä"], worker="another start")
        await settle(storage, first.lease, Event.RETRY, error=BOOM)
        again = await take(storage, queues=["q ä"], worker="w")
        said = Progress(fraction=0.25, message="it's ä\U0001f423")
        await storage.extend([again.lease], LEASE, progress={again.lease: said}, now=at(10))
        for now, left in ((at(10), LEASE), (at(20.5), LEASE - 10.5), (at(10 + LEASE), 0), (at(15.25 + LEASE), -5.25)):
            (worker,) = await storage.workers(now=now)
            (job,) = worker.jobs
            assert (job.job_id, job.queue_name, job.type) == (again.id, "q ä", "t's")
            assert (job.attempt, job.progress) == (2, said)
            assert job.lease_left == pytest.approx(left, abs=1e-5)

    async def test_its_jobs_come_by_id(self, storage: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        jobs = [new_job(priority=number * 7 % 20) for number in range(20)]
        await storage.insert(jobs[::-1], now=T0)
        for _ in range(20):
            await take(storage, worker="w")
        (worker,) = await storage.workers(now=T0)
        assert [job.job_id for job in worker.jobs] == [job.id for job in jobs]
        assert {job.progress for job in worker.jobs} == {None}

    @pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.RELEASE, Event.SNOOZE, Event.ABORT])
    async def test_an_attempt_that_is_over_is_not_shown(self, storage: Storage, event: Event) -> None:
        await storage.announce(presence(), TTL, now=T0)
        lease, other = await hold_as(storage, "w"), await hold_as(storage, "w")
        await settle(storage, lease, event, error=BOOM if event is Event.FAIL else None)
        (worker,) = await storage.workers(now=T0)
        assert [job.job_id for job in worker.jobs] == [other.job_id]

    async def test_a_job_that_another_took_over_is_shown_with_the_other(self, storage: Storage) -> None:
        for name in ("one", "two"):
            await storage.announce(presence(name), 10 * LEASE, now=T0)
        lease = await hold_as(storage, "one", queue_name="q")
        ready = await lapse(storage, now=at(LEASE))
        assert [list(worker.jobs) for worker in await storage.workers(now=ready)] == [[], []]
        await take(storage, queues=["q"], worker="two", now=ready)
        shown = [[job.job_id for job in worker.jobs] for worker in await storage.workers(now=ready)]
        assert shown == [[], [lease.job_id]]

    async def test_a_job_whose_end_is_asked_for_is_still_held(self, storage: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        lease = await hold_as(storage, "w")
        await storage.cancel([lease.job_id], now=at(1))
        assert await extend(storage, lease, now=at(1))
        (worker,) = await storage.workers(now=at(1))
        assert [job.job_id for job in worker.jobs] == [lease.job_id]

    async def test_whoever_holds_jobs_and_was_not_announced_is_not_there(self, storage: Storage) -> None:
        await hold_as(storage, "w")
        assert list(await storage.workers(now=T0)) == []
        await storage.announce(presence(), TTL, now=T0)
        await storage.withdraw("w")
        assert list(await storage.workers(now=T0)) == []

    async def test_names_that_a_collation_would_confuse_hold_each_their_own(self, storage: Storage) -> None:
        held = {name: (await hold_as(storage, name)).job_id for name in DISTINCT_NAMES}
        for name in DISTINCT_NAMES:
            await storage.announce(presence(name), TTL, now=T0)
        shown = {worker.presence.name: [job.job_id for job in worker.jobs] for worker in await storage.workers(now=T0)}
        assert shown == {name: [job_id] for name, job_id in held.items()}

    async def test_a_worker_may_hold_a_thousand(self, storage: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        await storage.insert([new_job() for _ in range(1_000)], now=T0)
        taken = (await reserve(storage, 1_000, worker="w")).jobs
        (worker,) = await storage.workers(now=T0)
        assert [job.job_id for job in worker.jobs] == sorted(job.id for job in taken)


class WorkersAtOnceConformance(Suite):
    """Workers that come and go at once, in more places than one."""

    async def test_of_many_who_announce_one_worker_at_once_it_is_there_once(self, storage: Storage) -> None:
        await self._announce_at_once(storage, storage)

    async def test_of_many_who_announce_one_worker_in_two_places_it_is_there_once(
        self, storage: Storage, another: Storage
    ) -> None:
        await self._announce_at_once(storage, another)

    async def _announce_at_once(self, storage: Storage, elsewhere: Storage) -> None:
        said = [presence(pid=number) for number in range(8)]

        async def announce(number: int) -> None:
            place = (storage, elsewhere)[number % 2]
            await place.announce(said[number], TTL, now=at(number))
            await place.announce(presence(f"own {number}"), TTL, now=T0)

        async with create_task_group() as group:
            for number in range(8):
                group.start_soon(announce, number)
        one, *others = sorted(await elsewhere.workers(now=at(9)), key=lambda worker: worker.presence.name != "w")
        assert one.presence in said
        assert one.seen_at == at(one.presence.pid)
        assert one.started_at in {at(number) for number in range(8)}
        assert [worker.presence.name for worker in others] == [f"own {number}" for number in range(8)]

    async def test_what_one_announced_the_other_sees_and_may_withdraw(self, storage: Storage, another: Storage) -> None:
        await storage.announce(presence(), TTL, now=T0)
        await another.announce(presence(state=WorkerState.STOPPING), TTL, now=at(1))
        held = await hold_as(storage, "w")
        mine, theirs = await storage.workers(now=at(1)), await another.workers(now=at(1))
        assert [evolve(worker, jobs=tuple(worker.jobs)) for worker in mine] == [
            evolve(worker, jobs=tuple(worker.jobs)) for worker in theirs
        ]
        (worker,) = mine
        assert (worker.presence.state, worker.started_at, worker.seen_at) == (WorkerState.STOPPING, T0, at(1))
        assert [job.job_id for job in worker.jobs] == [held.job_id]
        await another.withdraw("w")
        assert list(await storage.workers(now=at(1))) == []

    async def test_workers_come_and_go_while_upkeep_forgets_others(self, storage: Storage) -> None:
        for number in range(10):
            await storage.announce(presence(f"old {number}"), 1, now=T0)

        async def come(number: int) -> None:
            for now in (at(5), at(6)):
                await storage.announce(presence(f"new {number}"), TTL, now=now)
            if number % 2:
                await storage.withdraw(f"new {number}")

        async def look_after() -> None:
            for _ in range(3):
                await maintain(storage, now=at(6))

        async with create_task_group() as group:
            for number in range(6):
                group.start_soon(come, number)
                if number < 3:
                    group.start_soon(look_after)
        assert await names(storage, now=T0) == ["new 0", "new 2", "new 4"]
        assert {worker.started_at for worker in await storage.workers(now=at(6))} == {at(5)}
