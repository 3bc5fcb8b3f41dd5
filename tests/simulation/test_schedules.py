"""The engine's services and the pool on asyncio, in orders that its loop would seldom choose, cancelled at each await.

`detangle` explores schedules and shrinks what fails; it prints a token that replays it.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import detangle
import pytest

from creche import Queue, Status, Worker
from creche._ids import new_job_id
from creche._inserter import Inserter, inserting
from creche._job import Event, JobFilter, Lease, NewJob, Retention, Settlement
from creche._leases import Held, Holdings, Verdict
from creche._renewer import Renewer
from creche._settler import Settler
from creche.storage._pool import Pool
from creche.storage.memory import MemoryStorage
from toys import Toy, ToyDriver, assert_whole

RUNS = 5_000 if os.environ.get("CRECHE_HYPOTHESIS_PROFILE") == "deep" else 150
LEASE = 10.0


def explore(scenario: Callable[[], Coroutine[Any, Any, None]], *, shrink: bool = True) -> None:
    """Run a scenario in many orders. Drawn by priorities they would starve anyio, which cancels by calling again."""
    detangle.explore(scenario, runs=RUNS, strategy=detangle.RandomWalk(1), database=False, shrink=shrink)


async def cancelled_somewhere(host: Callable[[], Awaitable[None]], points: int = 60) -> None:
    """Run `host` in a task of its own that may be cancelled at any await, or at none."""
    task = asyncio.ensure_future(host())
    detangle.inject_cancellation(task, points)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def reserved(storage: MemoryStorage, count: int) -> list[Held]:
    """Return that many jobs under leases, as a reserver would take them."""
    await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}") for _ in range(count)])
    sent = anyio.current_time()
    taken = await storage.reserve(["default"], count, lease=LEASE, worker="w", nonce=1)
    return [Held(job, sent + LEASE - 1) for job in taken.jobs]


# --- the pool ---------------------------------------------------------------------------------------


async def borrowers() -> None:
    driver = ToyDriver(delay=0.01)
    pool = Pool(driver, size=2)
    lent: set[Toy] = set()

    async def borrow() -> None:
        async with pool.acquire(timeout=5) as connection:
            assert connection not in lent
            lent.add(connection)
            try:
                await anyio.lowlevel.checkpoint()
            finally:
                lent.discard(connection)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(cancelled_somewhere, borrow, 12)
    assert driver.open <= 2
    await assert_whole(pool, 2)
    await pool.aclose()
    assert driver.open == 0


def test_the_pool_leaks_nothing_and_lends_nothing_twice() -> None:
    explore(borrowers)


def test_a_pool_that_forgets_a_slot_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget(self: Pool[Toy], timeout: float, queueing: float) -> Any:
        await self._slots.acquire()
        return await self._find(timeout)  # and a slot is gone if that is cancelled

    monkeypatch.setattr(Pool, "_checkout", forget)
    with pytest.raises(detangle.BugFound):
        explore(borrowers, shrink=False)


# --- the inserter -----------------------------------------------------------------------------------


async def dispatching() -> None:
    storage = MemoryStorage()
    answered: list[NewJob] = []
    async with storage, inserting(storage) as inserter:

        async def ask() -> None:
            for _ in range(2):
                job = NewJob(id=new_job_id(), type="work", payload=b"{}")
                answer = await inserter.insert(job)
                assert (answer.job_id, answer.inserted) == (job.id, True)
                answered.append(job)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(cancelled_somewhere, ask, 12)
        await ask()  # whoever went has left the way free
        written = {job.id for job in await storage.list(JobFilter(), 20)}
        assert written >= {job.id for job in answered}


def test_the_inserter_answers_each_caller_for_its_own_job_whoever_is_cancelled() -> None:
    explore(dispatching)


def test_an_inserter_that_lets_callers_join_what_was_sent_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inserter, "_seal", lambda self, batch: None)
    with pytest.raises(detangle.BugFound):
        explore(dispatching, shrink=False)


# --- the settler ------------------------------------------------------------------------------------


async def settling() -> None:
    storage = MemoryStorage()
    async with storage:
        holdings, answers = Holdings(), Counter[tuple[Lease, bool]]()
        settler = Settler(
            storage,
            holdings,
            timeout=3,
            retention=Retention(),
            answered=lambda batch, lost: answers.update((held.lease, held.lease not in lost) for held, _ in batch),
        )
        submitted: list[Lease] = []
        held = await reserved(storage, 5)

        async def host() -> None:
            async with anyio.create_task_group() as services:
                services.start_soon(settler.run)
                try:
                    for each in held:
                        holdings.take([each])
                        submitted.append(each.lease)
                        settler.submit(each, Settlement(lease=each.lease, event=Event.SUCCEED, result=b"1"))
                        await anyio.lowlevel.checkpoint()
                finally:
                    settler.close(5)

        await cancelled_somewhere(host)
        assert answers == Counter((lease, True) for lease in submitted)
        assert not len(holdings)
        completed = await storage.list(JobFilter(statuses=frozenset({Status.COMPLETED})), 10)
        assert {job.id for job in completed} == {lease.job_id for lease in submitted}


def test_the_settler_writes_each_end_once_whenever_its_host_is_cancelled() -> None:
    explore(settling)


def test_a_settler_without_a_shield_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Settler) -> None:
        await self._write_all()

    monkeypatch.setattr(Settler, "run", run)
    with pytest.raises(detangle.BugFound):
        explore(settling, shrink=False)


# --- the renewer ------------------------------------------------------------------------------------


async def renewing() -> None:
    """Of three jobs one is lost, one is to be cancelled, one goes on for three leases."""
    storage = MemoryStorage()
    async with storage:
        holdings = Holdings()
        renewer = Renewer(
            storage, holdings, lease=LEASE, margin=1, renewed=lambda held: None, progressed=lambda held, progress: None
        )
        lost, asked, kept = held = await reserved(storage, 3)
        ends: dict[Held, float] = {}

        async def attempt(each: Held, seconds: float) -> None:
            with each.scope():
                await anyio.sleep(seconds)
            ends[each] = anyio.current_time()

        async def host() -> None:
            async with anyio.create_task_group() as services:
                services.start_soon(renewer.run)
                try:
                    async with anyio.create_task_group() as attempts:
                        for each in held:
                            holdings.take([each])
                            attempts.start_soon(attempt, each, 3 * LEASE)
                        storage._rows[lost.job.id].seize()
                        await storage.cancel([asked.job.id])
                        renewer.hurry()
                finally:
                    renewer.stop()

        began = anyio.current_time()
        await cancelled_somewhere(host, points=20)
        if len(ends) == 3:  # not cancelled: each ended when it had to
            assert (lost.verdict, asked.verdict, kept.verdict) == (Verdict.LOST, Verdict.ASKED, None)
            assert max(ends[lost], ends[asked]) - began < LEASE / 3
            assert ends[kept] - began >= 3 * LEASE
        else:
            assert anyio.current_time() - began < LEASE  # nothing of it lives on


def test_the_renewer_tells_of_what_it_learned_and_ends_with_its_host() -> None:
    explore(renewing)


# --- the reserver, with all the others --------------------------------------------------------------


async def working(ends: Counter[Status]) -> None:
    storage = MemoryStorage()
    queue = Queue(storage)

    @queue.task("work", max_attempts=1)
    async def work(length: int) -> None:
        for _ in range(length):
            await anyio.lowlevel.checkpoint()

    async with queue:
        await queue.dispatch_many([work.call(7 * number) for number in range(3)])
    worker = Worker(queue, concurrency=2, lease=600, burst=True)
    await cancelled_somewhere(lambda: _run(worker), points=80)
    jobs = await storage.list(JobFilter(), 10)
    ends.update(job.status for job in jobs)
    assert {(job.status, job.attempts) for job in jobs} <= {(Status.PENDING, 0), (Status.COMPLETED, 1)}
    assert storage._workers == {}


async def _run(worker: Worker) -> None:
    await worker.run(signals=False)


def test_a_worker_leaves_no_job_behind_wherever_it_is_cancelled() -> None:
    ends = Counter[Status]()
    explore(lambda: working(ends))
    assert ends.keys() == {Status.PENDING, Status.COMPLETED}  # it was cancelled early and late, or not at all
