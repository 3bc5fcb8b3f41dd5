"""A guest deletes all that it made, and only that, and says so where it can't."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any
from uuid import UUID

import anyio
import pytest

from creche._bulk import dispatched_before
from creche._ids import new_job_id, new_nonce
from creche._job import JobFilter, JobRecord, NewJob, Presence, WorkerState
from creche.abc import Storage
from creche.bench import Answer, Contestant, Order, Reading, Work
from creche.bench import _guest as guests
from creche.bench._guest import LOOK, PAGE, Guest, LeftBehind, visiting
from creche.bench._measure import PATIENCE
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


async def test_it_never_looks_at_what_was_there_before_it_came(
    storage: Storage, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dispatched_before(3_600)
    assert old is not None
    ids = [UUID(int=old.int + number) for number in range(3 * LOOK)]
    await storage.insert([NewJob(id=each, type="mail.send", payload=b"{}", queue_name="mail") for each in ids])
    seen: set[UUID] = set()
    look = storage.list

    async def watched(where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        assert where == JobFilter(), "whatever else is asked for, all rows may be read"
        found = await look(where, limit, before=before)
        seen.update(job.id for job in found)
        return found

    monkeypatch.setattr(storage, "list", watched)
    async with visiting(storage, Order(role="drain", dsn=dsn, jobs=50, limit=10.0)) as guest:
        await guest.drain(concurrency=2, prefetch=0, processes=1)
        await insert(storage, guest.queue, LOOK + 5)
    assert await left(storage) == {"mail": 3 * LOOK}
    assert len(seen.intersection(ids)) <= LOOK, "of one page there may be a rest"


async def test_what_was_cut_off_and_comes_late_is_deleted_too(
    storage: Storage, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [3, 1]
    monkeypatch.setattr(guests, "LATE", 0.0)
    remove = storage.delete

    async def delete_and_be_late(job_ids: Sequence[UUID]) -> Any:
        statuses = await remove(job_ids)
        if late:
            await insert(storage, guest.queue, late.pop())
        return statuses

    async def never(*_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(guests, "dispatched", never)
    guest = a_guest(storage, dsn)
    await insert(storage, guest.queue, 2)
    with anyio.move_on_after(0):
        await guest.dispatch_in_bulk()
    monkeypatch.setattr(storage, "delete", delete_and_be_late)
    await guest.leave()
    assert await left(storage) == {}
    assert not late


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
    with pytest.raises(LeftBehind, match=f"`creche prune .*creche jobs delete --queue {guest.queue}") as caught:
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
    assert (bulk.jobs, single.jobs) == (50, 50)
    work = await guest.drain(concurrency=2, prefetch=0, processes=1, jobs=90)
    assert len(await storage.list(JobFilter(), 1_000)) == 102 - work.jobs, "there was enough; what is done is deleted"
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
    assert len(found.begun) == len(found.waited) == 2
    await guest.leave()
    assert await left(storage) == {}


# --- what it makes of what was measured; nothing runs --------------------------------------------------------


class Stub:
    """Stands in for `drained`."""

    def __init__(self, jobs: int, *, began: float, ended: float, closed: float) -> None:
        self.by = Contestant()
        answer = Answer(count=jobs, began=began, ended=ended, closed=closed, cpu=0.0, rss=0)
        self._work = Work(jobs=jobs, seconds=ended - began, answers=[answer], server=Reading())

    async def __call__(self, _order: Order, _watch: object, by: Contestant, **_how: int) -> Work:
        self.by = by
        return self._work


async def measured(stub: Stub, limit: float, monkeypatch: pytest.MonkeyPatch) -> Work:
    async def filled(order: Order, *_: object) -> Work:
        return Work(jobs=order.jobs, seconds=1.0, answers=[], server=Reading())

    monkeypatch.setattr(guests, "drained", stub)
    monkeypatch.setattr(guests, "dispatched", filled)
    async with open_storage("memory://") as storage:
        guest = Guest(storage, Order(role="drain", dsn="memory://", jobs=50, limit=limit))
        return await guest.drain(concurrency=1, prefetch=0, processes=1)


async def test_of_one_job_no_rate_is_told_but_that_of_all_the_time_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stub(1, began=5.0, ended=5.000001, closed=7.1)
    assert (await measured(one, 2.0, monkeypatch)).rate == 0.5
    given_up = Stub(4, began=5.0, ended=5.5, closed=7.0)
    assert (await measured(given_up, 600.0, monkeypatch)).rate == 2.0
    all_of_them = Stub(50, began=5.0, ended=6.0, closed=7.1)
    assert (await measured(all_of_them, 2.0, monkeypatch)).rate == 50


async def test_who_may_run_for_long_is_waited_for_as_long_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(50, began=0.0, ended=600.0, closed=601.0)
    await measured(stub, 600.0, monkeypatch)
    assert stub.by.patience == 600.0 + PATIENCE


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("sqlite:///my jobs.db", "--dsn 'sqlite:///my jobs.db'`"),
        ("postgresql://app:secret@db/jobs", "--dsn 'postgresql://app:***@db/jobs'`"),
    ],
)
def test_its_advice_names_the_database_and_no_password(dsn: str, shown: str) -> None:
    for error in (LeftBehind("creche-bench-1", dsn, "deleting was broken off;"), LeftBehind("q", dsn, held=2)):
        assert str(error).count(shown) == (3 if error.held else 2)
        assert "secret" not in str(error)
        assert ("with the password for ***" in str(error)) == ("***" in shown)
