"""Watch: how jobs ended, and who is told of an end that is still to come. Other listeners stand apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from anyio import create_task_group, fail_after

from creche._ids import new_job_id
from creche._job import WATCH_LIMIT, End, Event, Failure, Retention, Settlement, Status
from creche.abc import Listener, Storage
from creche.testing._conformance_base import (
    BOOM,
    LEASE,
    PATIENCE,
    T0,
    Suite,
    add,
    at,
    bring,
    everything,
    follow_up,
    hold,
    maintain,
    new_job,
    reserve,
    settle,
    take,
)
from creche.testing._conformance_ends import RESULT, WAYS, Way, begin, end, id_of
from creche.testing._conformance_listen import hear

ME = "watcher é'1"
OTHER = "watcher é'2"


def today() -> datetime:
    """Return a moment of the database's own clock, by which watches are forgotten."""
    return datetime.now(UTC)


async def first_wake(listener: Listener) -> frozenset[str]:
    """Return what the first wake says."""
    with fail_after(PATIENCE):
        return await listener.wait()


class WatchConformance(Suite):
    """`Storage.watch`: what it answers."""

    async def test_a_watch_says_of_each_job_how_it_ended(self, storage: Storage) -> None:
        ids = {status: (await bring(storage, status)).job_id for status in Status}
        expected = {
            ids[Status.PENDING]: None,
            ids[Status.SCHEDULED]: None,
            ids[Status.PROCESSING]: None,
            ids[Status.COMPLETED]: End(status=Status.COMPLETED, result=RESULT),
            ids[Status.FAILED]: End(status=Status.FAILED, error=BOOM),
            ids[Status.CANCELLED]: End(status=Status.CANCELLED),
        }
        asked = [*ids.values(), new_job_id(), ids[Status.FAILED]]
        assert await storage.watch(asked) == expected
        assert await storage.watch(asked, watcher=ME) == expected
        assert await storage.watch(asked, watcher=ME, over=asked) == expected
        await add(storage)
        assert await storage.watch([ids[Status.FAILED]]) == {ids[Status.FAILED]: End(status=Status.FAILED, error=BOOM)}

    @pytest.mark.parametrize("way", list(WAYS.values()), ids=list(WAYS))
    async def test_whoever_watches_to_the_end_gets_the_end(self, storage: Storage, way: Way) -> None:
        job_id = id_of(begun := await begin(storage, way))
        assert await storage.watch([job_id], watcher=ME) == {job_id: None}
        await end(storage, way, begun)
        expected = {job_id: End(status=way.status, result=way.result, error=way.error)}
        assert await storage.watch([job_id], watcher=ME) == expected
        assert await storage.watch([job_id]) == expected

    async def test_an_error_that_was_got_over_is_not_how_it_ended(self, storage: Storage) -> None:
        first, second = await add(storage), await add(storage, queue_name="second")
        for queue in ("default", "second"):
            await settle(storage, (await take(storage, queues=[queue])).lease, Event.RETRY, error=BOOM)
        await settle(storage, (await take(storage)).lease, Event.SUCCEED, result=b"1")
        await storage.cancel([second], now=T0)
        assert await storage.watch([first, second]) == {
            first: End(status=Status.COMPLETED, result=b"1"),
            second: End(status=Status.CANCELLED),
        }

    async def test_a_job_that_was_made_ready_again_has_no_end(self, storage: Storage) -> None:
        lease = await bring(storage, Status.FAILED, queue_name="q")
        await storage.retry([lease.job_id], now=T0)
        assert await storage.watch([lease.job_id]) == {lease.job_id: None}
        last = Failure(type="E", message="the last one")
        await settle(storage, (await take(storage, queues=["q"])).lease, Event.DISCARD, error=last)
        assert await storage.watch([lease.job_id]) == {lease.job_id: End(status=Status.FAILED, error=last)}

    async def test_a_result_and_an_error_are_whole(self, storage: Storage) -> None:
        text = 'it\'s "100%" \\ $1 :x ? {0}\r\n\té 漢字 😀 \x7f\x01'
        error = Failure(type=text, message=text, traceback=text * 200)
        result = b'["' + "é漢😀".encode() * 30_000 + b'"]'
        good, bad = await hold(storage), await hold(storage)
        await settle(storage, good, Event.SUCCEED, result=result)
        await settle(storage, bad, Event.FAIL, error=error)
        assert await storage.watch([good.job_id, bad.job_id]) == {
            good.job_id: End(status=Status.COMPLETED, result=result),
            bad.job_id: End(status=Status.FAILED, error=error),
        }

    async def test_watching_nothing_does_nothing(self, storage: Storage) -> None:
        assert await storage.watch([]) == {}
        assert await storage.watch([], watcher=ME) == {}
        assert await storage.watch([], watcher=ME, over=[new_job_id()]) == {}
        assert await storage.watch([new_job_id()], watcher=ME) == {}
        assert await storage.watch([new_job_id()]) == {}

    @pytest.mark.parametrize("watcher", [None, ME])
    async def test_a_watch_changes_nothing_that_people_see(self, storage: Storage, watcher: str | None) -> None:
        ids = [(await bring(storage, status)).job_id for status in Status]
        before = await everything(storage)
        await storage.watch(ids, watcher=watcher)
        await storage.watch(ids[:2], watcher=watcher, over=ids)
        assert await everything(storage) == before

    async def test_a_watched_job_can_still_be_taken_and_its_holder_keeps_it(self, storage: Storage) -> None:
        waiting = await add(storage, queue_name="q")
        lease = await hold(storage)
        await storage.watch([waiting, lease.job_id], watcher=ME)
        assert (await take(storage, queues=["q"])).id == waiting
        assert await settle(storage, lease, Event.SUCCEED, result=b"1")

    async def test_a_watched_job_can_be_pruned(self, storage: Storage) -> None:
        lease = await hold(storage)
        await storage.watch([lease.job_id], watcher=ME)
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        later = WAYS["it is cancelled while it is ready"]
        begun = await begin(storage, later)
        await storage.watch([id_of(begun)], watcher=ME)
        await end(storage, later, begun)
        await maintain(storage, retention=Retention(completed=0, failed=0, cancelled=0), now=at(2 * LEASE))
        assert await storage.watch([lease.job_id, id_of(begun)], watcher=ME, over=[lease.job_id]) == {}

    async def test_many_are_watched_by_many_at_once(self, storage: Storage) -> None:
        jobs = [new_job() for _ in range(100)]
        await storage.insert(jobs, now=T0)
        ids = [job.id for job in jobs]

        async def watch(number: int) -> None:
            mine = ids[number:] + ids[:number]
            assert await storage.watch(mine, watcher=f"w{number}") == dict.fromkeys(mine)
            assert await storage.watch(mine[:50], watcher=f"w{number}", over=mine) == dict.fromkeys(mine[:50])

        async def work() -> None:
            leases = [job.lease for job in (await reserve(storage, 100)).jobs]
            await storage.extend(leases, LEASE, now=T0)

        async with create_task_group() as watchers:
            for number in range(0, 80, 10):
                watchers.start_soon(watch, number)
            watchers.start_soon(work)


class WatchWakeConformance(Suite):
    """`Storage.watch`: who is woken."""

    @pytest.mark.parametrize("way", list(WAYS.values()), ids=list(WAYS))
    async def test_the_end_of_a_job_wakes_who_watches_it(self, wakeful: Storage, way: Way) -> None:
        now = today()
        async with wakeful.listen([ME]) as listener:
            begun = await begin(wakeful, way, now=now)
            await wakeful.watch([id_of(begun)], watcher=ME)
            await end(wakeful, way, begun, now=now)
            await hear(listener, ME)

    @pytest.mark.parametrize("name", ["it succeeds", "it is cancelled while it is ready", "it is buried"])
    async def test_an_end_that_was_written_elsewhere_wakes_who_watches(
        self, wakeful: Storage, another: Storage, name: str
    ) -> None:
        now = today()
        way = WAYS[name]
        async with wakeful.listen([ME]) as listener:
            begun = await begin(another, way, now=now)
            assert await wakeful.watch([id_of(begun)], watcher=ME) == {id_of(begun): None}
            await end(another, way, begun, now=now)
            await hear(listener, ME)
            ended = End(status=way.status, result=way.result, error=way.error)
            assert await wakeful.watch([id_of(begun)]) == {id_of(begun): ended}

    async def test_every_watcher_of_a_job_is_woken_and_nobody_else(self, wakeful: Storage) -> None:
        watched, alone = await hold(wakeful), await hold(wakeful)
        names = ["w1", "w2", "w3"]
        async with wakeful.listen([*names, "w4"]) as listener, wakeful.listen(["w2"]) as second:
            for name in names:
                await wakeful.watch([watched.job_id], watcher=name)
            await wakeful.watch([alone.job_id], watcher="w4")
            assert await settle(wakeful, watched, Event.SUCCEED, result=b"1")
            heard = set[str]()
            while heard < {*names}:
                heard |= await first_wake(listener)
            assert heard == {*names}
            await hear(second, "w2")

    async def test_each_job_of_a_batch_wakes_its_own_watchers(self, wakeful: Storage) -> None:
        leases = [await hold(wakeful) for _ in range(6)]
        async with wakeful.listen([f"w{number}" for number in range(6)]) as listener:
            for number, lease in enumerate(leases):
                await wakeful.watch([lease.job_id], watcher=f"w{number}")
            ended = [Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in leases[:4]]
            goes_on = [Settlement(lease=lease, event=Event.RETRY, error=BOOM) for lease in leases[4:]]
            await wakeful.settle([*ended, *goes_on], now=T0)
            heard = set[str]()
            while heard < {"w0", "w1", "w2", "w3"}:
                heard |= await first_wake(listener)
            assert heard == {"w0", "w1", "w2", "w3"}

    async def test_a_watcher_is_told_once_and_can_watch_again(self, wakeful: Storage) -> None:
        lease = await hold(wakeful, queue_name="q")
        async with wakeful.listen([ME]) as listener:
            for attempt in range(3):
                assert await wakeful.watch([lease.job_id], watcher=ME) == {lease.job_id: None}
                assert await settle(wakeful, lease, Event.FAIL, error=BOOM, now=at(attempt))
                await hear(listener, ME)
                await wakeful.retry([lease.job_id], now=at(attempt))
                lease = (await take(wakeful, queues=["q"], now=at(attempt))).lease

    async def test_a_watch_that_is_over_wakes_nobody(self, wakeful: Storage) -> None:
        lease = await hold(wakeful)
        async with wakeful.listen([ME, OTHER]) as listener:
            for watcher in (ME, OTHER):
                await wakeful.watch([lease.job_id], watcher=watcher)
            await wakeful.watch([], watcher=ME, over=[lease.job_id, new_job_id()])
            assert await settle(wakeful, lease, Event.SUCCEED, result=b"1")
            assert await first_wake(listener) <= {OTHER}

    async def test_one_call_gives_up_some_watches_and_begins_others(self, wakeful: Storage) -> None:
        first, second = await hold(wakeful), await hold(wakeful)
        async with wakeful.listen([ME, OTHER]) as listener:
            await wakeful.watch([first.job_id], watcher=ME)
            await wakeful.watch([first.job_id], watcher=OTHER)
            await wakeful.watch([second.job_id], watcher=ME, over=[first.job_id])
            assert await settle(wakeful, first, Event.SUCCEED, result=b"1")
            assert await first_wake(listener) <= {OTHER}
            assert await settle(wakeful, second, Event.SUCCEED, result=b"2")
            await hear(listener, ME)

    async def test_without_a_watcher_nobody_is_woken(self, wakeful: Storage) -> None:
        lease = await hold(wakeful, callbacks=(follow_up(),))
        async with wakeful.listen([ME, "after", "default"]) as listener:
            await wakeful.watch([lease.job_id])
            assert await settle(wakeful, lease, Event.SUCCEED, result=b"1")
            assert await first_wake(listener) <= {"after"}

    async def test_a_watch_that_is_repeated_outlives_any_upkeep(self, wakeful: Storage) -> None:
        lease = await hold(wakeful)
        async with wakeful.listen([ME]) as listener:
            await wakeful.watch([lease.job_id], watcher=ME)
            for days in (0, 1):
                later = today() + timedelta(days=days, seconds=WATCH_LIMIT + 1)
                await maintain(wakeful, now=later)
                assert await wakeful.watch([lease.job_id], watcher=ME) == {lease.job_id: None}
            assert await settle(wakeful, lease, Event.SUCCEED, result=b"1")
            await hear(listener, ME)

    async def test_a_fresh_watch_outlives_an_upkeep(self, wakeful: Storage) -> None:
        lease = await hold(wakeful)
        async with wakeful.listen([ME]) as listener:
            await wakeful.watch([lease.job_id], watcher=ME)
            await maintain(wakeful, now=today() + timedelta(seconds=WATCH_LIMIT / 2))
            assert await settle(wakeful, lease, Event.SUCCEED, result=b"1")
            await hear(listener, ME)

    async def test_a_forgotten_watch_harms_nobody(self, storage: Storage) -> None:
        lease = await hold(storage)
        await storage.watch([lease.job_id], watcher=ME)
        await maintain(storage, now=today() + timedelta(days=365 * 10))
        assert await storage.watch([], watcher=ME, over=[lease.job_id]) == {}
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        assert (await storage.watch([lease.job_id], watcher=ME)).keys() == {lease.job_id}
