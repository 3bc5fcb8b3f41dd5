"""A guest deletes all that it made, and only that, and says so where it can't."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from creche._ids import new_job_id, new_nonce
from creche._job import JobFilter, NewJob, Presence, WorkerState
from creche.abc import Storage
from creche.bench import Order
from creche.bench._guest import PAGE, Guest, LeftBehind, visiting
from creche.storage import open_storage

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_dsn"))


@pytest.fixture
async def storage(dsn: str) -> AsyncGenerator[Storage]:
    found = open_storage(dsn)
    await found.migrate()
    async with found:
        yield found


async def insert(storage: Storage, queue: str, number: int) -> None:
    jobs = [NewJob(id=new_job_id(), type="bench.noop", payload=b"{}", queue_name=queue) for _ in range(number)]
    await storage.insert(jobs)


async def left(storage: Storage) -> dict[str, int]:
    return {each.queue_name: sum(each.counts.values()) for each in await storage.stats()}


def a_guest(storage: Storage, dsn: str, jobs: int = 50) -> Guest:
    return Guest(storage, Order(role="drain", dsn=dsn, jobs=jobs, limit=10.0))


async def test_it_leaves_nothing_of_more_than_a_page(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn)
    await insert(storage, "mail", 3)
    await insert(storage, guest.queue, PAGE + 5)
    await guest.leave()
    assert await left(storage) == {"mail": 3}


async def test_it_takes_workers_that_died_from_the_list_and_no_others(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn)
    for name, queue in (("theirs", "mail"), ("ours", guest.queue)):
        who = Presence(name=name, host="h", pid=1, backend="asyncio", version="1", queues=(queue,), concurrency=1)
        assert who.state is WorkerState.RUNNING
        await storage.announce(who, 60)
    await guest.leave()
    assert [each.presence.name for each in await storage.workers()] == ["theirs"]


async def test_what_a_dead_process_holds_is_told_with_what_to_do(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn)
    await insert(storage, guest.queue, 3)
    await storage.reserve([guest.queue], 1, lease=60, worker="dead", nonce=new_nonce())
    with pytest.raises(LeftBehind, match=f"creche jobs delete --queue {guest.queue}") as caught:
        await guest.leave()
    assert caught.value.queue == guest.queue
    assert await left(storage) == {guest.queue: 1}


async def test_hurried_it_says_what_is_left(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn)
    await insert(storage, guest.queue, 3)
    guest.hurry()
    with pytest.raises(LeftBehind, match=guest.queue):
        await guest.leave()


async def test_a_block_that_raises_leaves_nothing_either(storage: Storage, dsn: str) -> None:
    async def fail() -> None:
        async with visiting(storage, Order(role="drain", dsn=dsn, jobs=5, limit=10.0)) as guest:
            await insert(storage, guest.queue, 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await left(storage) == {}


async def test_a_drain_begins_with_what_the_last_run_left_waiting(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn)
    bulk = await guest.dispatch_in_bulk()
    single = await guest.dispatch(callers=2)
    assert (bulk.jobs, single.jobs, guest.made) == (50, 50, 102)
    work = await guest.drain(concurrency=2, prefetch=0, processes=1, jobs=90)
    assert guest.made == 102, "there was enough"
    assert len(await storage.list(JobFilter(), 1_000)) == guest.made - work.jobs, "what is done is deleted at once"
    await guest.leave()
    assert await left(storage) == {}


async def test_several_workers_of_a_drain_share_the_jobs(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn)
    work = await guest.drain(concurrency=2, prefetch=10, processes=2)
    assert (work.jobs, len(work.answers)) == (50, 2)
    assert await left(storage) == {}


async def test_latency_is_of_as_many_jobs_as_were_ordered(storage: Storage, dsn: str) -> None:
    guest = a_guest(storage, dsn, jobs=2)
    found = await guest.latency(concurrency=1)
    assert len(found.begun) == len(found.waited) == guest.made == 2
    await guest.leave()
    assert await left(storage) == {}
