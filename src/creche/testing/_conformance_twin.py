"""Twin: another storage on the same jobs, for a thread with an event loop of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from threading import Thread
from typing import Any, Final

import anyio
import pytest
from anyio import create_task_group, to_thread

from creche._job import Event, JobFilter, Progress, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    LEASE,
    PATIENCE,
    Suite,
    add,
    at,
    everything,
    extend,
    hold,
    row,
    settle,
    take,
)

LOOPS: Final = ["asyncio", "trio"]


def elsewhere(twin: Storage, use: Callable[[Storage], Awaitable[Any]], backend: str) -> Callable[[], Any]:
    """Return what opens a twin in an event loop of its own, uses and closes it; for another thread to call."""

    async def main() -> Any:
        with anyio.fail_after(PATIENCE):
            async with twin:
                return await use(twin)

    return partial(anyio.run, main, backend=backend)


def while_blocked(call: Callable[[], Any]) -> Any:
    """Call something in another thread, and let this one, with its event loop, do nothing at all meanwhile."""
    answers: list[Any] = []
    thread = Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(2 * PATIENCE)
    assert not thread.is_alive(), "the twin waits for the thread that it should be independent of"
    assert answers, "the twin failed; what its thread raised is told by pytest"
    return answers[0]


def _twin_of(storage: Storage) -> Storage:
    twin = storage.twin()
    if twin is None:
        pytest.skip("this storage says that it can have no twin")
    return twin


class TwinConformance(Suite):
    """`Storage.twin`."""

    @pytest.fixture
    def twin(self, storage: Storage) -> Storage:
        """The twin of an open storage. (Not async: what skips in a task would end the tests' task.)"""
        return _twin_of(storage)

    @pytest.fixture
    def early(self, unopened: Storage) -> Storage:
        """The twin of a storage that is not open."""
        return _twin_of(unopened)

    async def test_a_storage_that_several_processes_can_use_has_a_twin(self, unopened: Storage) -> None:
        twin = unopened.twin()
        assert (twin is not None) >= unopened.capabilities.shared
        assert twin is not unopened

    async def test_it_is_another_one_on_the_same_jobs_and_can_do_the_same(
        self, storage: Storage, twin: Storage
    ) -> None:
        assert twin is not storage
        assert twin.capabilities == storage.capabilities
        lease = await hold(storage)
        async with twin:
            assert await everything(twin) == await everything(storage)
            assert await settle(twin, lease, Event.SUCCEED, result=b"1")
        assert (await row(storage, lease.job_id)).status is Status.COMPLETED

    async def test_each_is_one_of_its_own(self, storage: Storage, twin: Storage) -> None:
        other = storage.twin()
        assert other is not None
        assert other is not twin
        async with twin, other:
            job_id = await add(other)
            assert (await row(twin, job_id)).status is Status.PENDING

    @pytest.mark.parametrize("backend", LOOPS)
    async def test_it_works_in_a_thread_with_another_event_loop(
        self, storage: Storage, twin: Storage, backend: str
    ) -> None:
        lease = await hold(storage)

        async def work(place: Storage) -> None:
            await add(place, queue_name="q")
            taken = await take(place, queues=["q"])
            assert await settle(place, taken.lease, Event.SUCCEED, result=b"1")
            assert await extend(place, lease, LEASE, now=at(30))

        async with create_task_group() as group:
            # Beside it, the storage itself is at work in its own thread.
            for number in range(10):
                group.start_soon(partial(add, storage, queue_name=f"beside {number}"))
            await to_thread.run_sync(elsewhere(twin, work, backend))
        (done,) = await storage.list(JobFilter(queues=frozenset("q")), 2)
        assert done.status is Status.COMPLETED
        assert (await row(storage, lease.job_id)).locked_until == at(30 + LEASE)
        assert len(await storage.list(JobFilter(), 100)) == 12

    @pytest.mark.parametrize("backend", LOOPS)
    async def test_it_renews_leases_while_the_event_loop_is_blocked(
        self, storage: Storage, twin: Storage, backend: str
    ) -> None:
        held, asked, lost = [await hold(storage) for _ in range(3)]
        await storage.cancel([asked.job_id], now=at(1))
        await settle(storage, lost, Event.SUCCEED, result=b"1")
        said = Progress(fraction=0.5)

        async def renew(place: Storage) -> Any:
            for now in (at(10), at(20)):
                answer = await place.extend([held, asked, lost], LEASE, progress={held: said}, now=now)
            return answer

        answer = while_blocked(elsewhere(twin, renew, backend))
        assert (answer.held, answer.lost, answer.cancel_requested) == ({held, asked}, {lost}, {asked})
        record = await row(storage, held.job_id)
        assert (record.locked_until, record.progress) == (at(20 + LEASE), said)
        assert await settle(storage, held, Event.SUCCEED, result=b"1", now=at(30))

    async def test_it_can_be_used_by_one_thread_after_another(self, storage: Storage, twin: Storage) -> None:
        lease = await hold(storage)
        deadlines: list[datetime | None] = []
        for number, backend in enumerate(LOOPS * 2):
            renew = partial(extend, lease=lease, seconds=LEASE, now=at(number))
            assert await to_thread.run_sync(elsewhere(twin, renew, backend))
            deadlines.append((await row(storage, lease.job_id)).locked_until)
        assert deadlines == [at(number + LEASE) for number in range(4)]

    async def test_closed_it_leaves_the_other_open(self, storage: Storage, twin: Storage) -> None:
        for _ in range(3):
            async with twin:
                await add(twin)
            await take(storage)

    async def test_it_needs_no_open_storage_beside_it(self, unopened: Storage, early: Storage) -> None:
        await unopened.migrate()
        async with unopened:
            lease = await hold(unopened)
        async with early:
            assert await extend(early, lease, now=at(1))
            async with unopened:
                assert await settle(unopened, lease, Event.SUCCEED, result=b"1", now=at(2))
            assert (await row(early, lease.job_id)).status is Status.COMPLETED
