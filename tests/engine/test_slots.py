"""What is reserved ahead, and what runs in a slot after what: short jobs never wait for the database, long ones are not
hoarded, and no job finds what another left behind.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest

from creche import (
    ExponentialBackoff,
    JobCancelled,
    JobNotFound,
    OptionInvalid,
    Queue,
    Retention,
    Status,
    StopReason,
    Summary,
    Worker,
    _pace,
    events,
)
from creche._pace import Pace
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio
VIRTUAL = pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="virtual")])


async def standing(queue: Queue) -> Counter[tuple[Status, int]]:
    """Return how many jobs are in which state, after how many attempts."""
    return Counter((job.status, job.attempts) for job in await queue.jobs(limit=10_000))


# --- reserved ahead ---------------------------------------------------------------------------------


async def drained(queue: Queue, storage: Faulty, *, prefetch: int) -> tuple[float, int]:
    """Run 200 jobs of a tenth of a second, one at a time, where each reserve takes a second; return the seconds that
    this took, and the number of reserves.
    """

    @queue.task("short")
    async def short() -> None:
        await anyio.sleep(0.1)

    await queue.dispatch_many(short.call() for _ in range(200))
    storage.slow = {"reserve"}
    began = anyio.current_time()
    await Worker(queue, concurrency=1, burst=True, prefetch=prefetch).run()
    assert await standing(queue) == {(Status.COMPLETED, 1): 200}
    return anyio.current_time() - began, storage.calls["reserve"]


@VIRTUAL
async def test_short_jobs_do_not_wait_for_reserves(queue: Queue, storage: Faulty) -> None:
    took, reserves = await drained(queue, storage, prefetch=1_000)
    assert 20 < took < 35  # they take 20
    assert reserves < 30


@VIRTUAL
async def test_switched_off_none_is_reserved_ahead(queue: Queue, storage: Faulty) -> None:
    took, reserves = await drained(queue, storage, prefetch=0)
    assert took > 220
    assert reserves > 200


@VIRTUAL
async def test_no_more_is_reserved_ahead_than_the_cap(queue: Queue, storage: Faulty) -> None:
    most = 0

    @queue.task("short")
    async def short() -> None:
        nonlocal most
        most = max(most, sum(row.record.status is Status.PROCESSING for row in storage._rows.values()))
        await anyio.sleep(0.01)

    await queue.dispatch_many(short.call() for _ in range(500))
    storage.slow = {"reserve"}
    await Worker(queue, concurrency=2, burst=True, prefetch=7).run()
    assert most <= 2 + 7 + 2  # two may be ended and not be written yet


@VIRTUAL
async def test_of_large_payloads_fewer_are_reserved_ahead(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    @queue.task("short")
    async def short(text: str) -> None:
        nonlocal most
        most = max(most, sum(row.record.status is Status.PROCESSING for row in storage._rows.values()))
        await anyio.sleep(0.01)

    await queue.dispatch_many(short.call("x" * 10_000) for _ in range(500))
    monkeypatch.setattr(_pace, "_BYTES", 75_000)
    storage.slow = {"reserve"}
    await Worker(queue, concurrency=2, burst=True).run()
    assert 2 < most <= 2 + 7 + 2  # two may be ended and not be written yet


@VIRTUAL
async def test_long_jobs_are_left_to_workers_that_have_a_slot(queue: Queue) -> None:
    @queue.task("long")
    async def long() -> None:
        await anyio.sleep(60)

    await queue.dispatch_many(long.call() for _ in range(50))
    async with Worker(queue, concurrency=2, grace=0):
        for _ in range(20):
            await anyio.sleep(30.5)
            counts = await standing(queue)
            assert sum(number for (status, _), number in counts.items() if status is Status.PROCESSING) == 2


@VIRTUAL
async def test_what_waits_behind_jobs_that_grew_long_is_given_back_unspent(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work(seconds: float) -> None:
        await anyio.sleep(seconds)

    await queue.dispatch_many(work.call(0.01) for _ in range(400))
    await queue.dispatch_many(work.call(600.0) for _ in range(100))
    storage.slow = {"reserve"}
    seen: Counter[str] = Counter()
    async with Worker(queue, concurrency=2, grace=0, hooks=[lambda event: seen.update([event.name])]):
        await until(lambda: seen["job.acked"] >= 400)
        await anyio.sleep(10)
        assert await standing(queue) == {
            (Status.COMPLETED, 1): 400,
            (Status.PROCESSING, 1): 2,
            (Status.PENDING, 0): 98,
        }
    assert seen["job.released"] > 10


async def blocked(queue: Queue, worker: Worker, begun: anyio.Event, unblock: anyio.Event) -> None:
    """Dispatch jobs so that in the end one runs, and others that were reserved ahead wait for it."""

    @queue.task("work")
    async def work(number: int) -> None:
        if number >= 100:
            begun.set()
            await unblock.wait()
        else:
            await anyio.sleep(0.01)

    await queue.dispatch_many(work.call(number) for number in range(150))


async def held(queue: Queue) -> int:
    return sum(number for (status, _), number in (await standing(queue)).items() if status is Status.PROCESSING)


@VIRTUAL
@pytest.mark.parametrize("word", ["stop", "quiet"])
async def test_told_to_begin_no_more_it_gives_back_what_it_has_not_begun(
    queue: Queue, storage: Faulty, word: str
) -> None:
    begun, unblock = anyio.Event(), anyio.Event()
    worker = Worker(queue, concurrency=1, grace=1_000)
    await blocked(queue, worker, begun, unblock)
    storage.slow = {"reserve"}
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await begun.wait()
        assert await held(queue) > 1
        getattr(worker, word)()
        await anyio.sleep(3)  # a reserve may have been on its way
        assert await standing(queue) == {
            (Status.COMPLETED, 1): 100,
            (Status.PROCESSING, 1): 1,
            (Status.PENDING, 0): 49,
        }
        unblock.set()
        worker.stop()
    assert await standing(queue) == {(Status.COMPLETED, 1): 101, (Status.PENDING, 0): 49}


@VIRTUAL
async def test_cancelled_it_gives_back_what_it_has_not_begun(queue: Queue, storage: Faulty) -> None:
    begun = anyio.Event()
    worker = Worker(queue, concurrency=1, grace=1_000)
    await blocked(queue, worker, begun, anyio.Event())
    storage.slow = {"reserve"}
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await begun.wait()
        assert await held(queue) > 1
        tasks.cancel_scope.cancel()
    assert await standing(queue) == {(Status.COMPLETED, 1): 100, (Status.PENDING, 0): 50}


@VIRTUAL
async def test_a_limit_on_jobs_counts_those_that_wait(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(0.01)

    await queue.dispatch_many(work.call() for _ in range(200))
    storage.slow = {"reserve"}
    summary = await Worker(queue, concurrency=3, max_jobs=101).run()
    assert summary.succeeded == 101
    assert await standing(queue) == {(Status.COMPLETED, 1): 101, (Status.PENDING, 0): 99}


@VIRTUAL
async def test_a_limit_on_jobs_keeps_none_waiting_behind_jobs_that_grew_long(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work(seconds: float) -> None:
        await anyio.sleep(seconds)

    await queue.dispatch_many(work.call(0.01) for _ in range(100))
    await queue.dispatch_many(work.call(600.0) for _ in range(100))
    storage.slow = {"reserve"}
    summaries: list[Summary] = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            summaries.append(await Worker(queue, concurrency=2, max_jobs=160).run(signals=False))

        tasks.start_soon(run)
        await anyio.sleep(300)
        assert await standing(queue) == {
            (Status.COMPLETED, 1): 100,
            (Status.PROCESSING, 1): 2,
            (Status.PENDING, 0): 98,
        }
    (summary,) = summaries
    assert (summary.reason, summary.succeeded) == (StopReason.MAX_JOBS, 160)
    assert summary.released > 10
    assert await standing(queue) == {(Status.COMPLETED, 1): 160, (Status.PENDING, 0): 40}


@VIRTUAL
async def test_one_that_is_cancelled_while_it_waits_for_a_slot_never_begins(queue: Queue, storage: Faulty) -> None:
    ran: list[int] = []

    @queue.task("work")
    async def work(number: int) -> None:
        ran.append(number)
        await anyio.sleep(0.2 if number == 100 else 0.01)

    receipts = await queue.dispatch_many(work.call(number) for number in range(120))
    storage.slow = {"reserve"}
    async with Worker(queue, concurrency=1):
        await until(lambda: 100 in ran)
        assert await queue.cancel(receipts[110].job_id) is Status.PROCESSING
        await until(lambda: 119 in ran)
        await receipts[119].wait()
        await until(lambda: storage._rows[receipts[110].job_id].record.status is Status.CANCELLED)
    assert 110 not in ran


@pytest.mark.parametrize("prefetch", [-1, True, 0.5, "many", 10_001])
async def test_how_many_are_reserved_ahead_must_make_sense(queue: Queue, prefetch: object) -> None:
    with pytest.raises(OptionInvalid, match="prefetch"):
        Worker(queue, prefetch=prefetch)  # type: ignore[arg-type]


async def test_the_pace_is_that_of_the_time_in_which_there_was_something_to_run() -> None:
    pace = Pace(1_000)
    assert pace.ahead == 0  # nothing is known
    pace.answered(0.1, [])
    pace.measure(10, 0.5)  # 20 a second
    assert pace.ahead == 2 * 2
    pace.measure(10, 60.5)  # a minute in which none ended
    assert pace.ahead == 2 * 2
    for number in range(1, 20):
        pace.measure(10 + number, 60.5 + 60 * number)
    assert pace.ahead == 0
    pace.measure(29 + 10_000, 60.5 + 60 * 19 + 10)  # a thousand a second, of which the newest counts for a third
    assert 50 < pace.ahead < 100
    pace.slow_down(10_129, 1_300.5)  # with a hundred that nobody had counted
    assert pace.ahead == 0
    pace.measure(10_129, 1_310.5)
    assert pace.ahead == 0


# --- in one slot after another ----------------------------------------------------------------------


async def test_jobs_begin_in_the_order_in_which_they_were_reserved(queue: Queue) -> None:
    ran: list[int] = []

    @queue.task("work")
    async def work(number: int) -> None:
        ran.append(number)

    await queue.dispatch_many(work.call(number) for number in range(1_200))
    await Worker(queue, concurrency=7, burst=True).run(signals=False)
    assert ran == list(range(1_200))


async def test_no_job_finds_the_context_variables_of_another(queue: Queue) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    found: list[str] = []

    @queue.task("work")
    async def work(name: str) -> None:
        found.append(tenant.get())
        tenant.set(name)
        await anyio.lowlevel.checkpoint()

    await queue.dispatch_many(work.call(f"tenant {number}") for number in range(50))
    await Worker(queue, concurrency=2, burst=True).run(signals=False)
    assert found == ["nobody"] * 50


async def test_no_job_finds_a_context_variable_that_cannot_be_compared(queue: Queue) -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compare me not")

        __hash__ = None  # type: ignore[assignment]

    var: ContextVar[object] = ContextVar("odd", default=None)
    odd, found = Odd(), list[object]()
    token = var.set(odd)

    @queue.task("work")
    async def work() -> None:
        found.append(var.get() is odd)
        var.set(Odd())

    await queue.dispatch_many(work.call() for _ in range(5))
    await Worker(queue, concurrency=1, burst=True).run(signals=False)
    var.reset(token)
    assert found == [True] * 5


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_a_handler_asked_for_itself_strikes_no_other(queue: Queue) -> None:
    ran = 0

    @queue.task("work", max_attempts=1)
    async def work() -> None:
        nonlocal ran
        ran += 1
        if ran % 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()  # and it ends before it could be told
        else:
            await anyio.lowlevel.checkpoint()

    await queue.dispatch_many(work.call() for _ in range(20))
    summary = await Worker(queue, concurrency=1, burst=True).run(signals=False)
    assert (summary.succeeded, ran) == (20, 20)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("after", [0.0, 0.001, 0.01])
async def test_a_cancellation_that_a_handler_left_behind_ends_no_worker(queue: Queue, after: float) -> None:
    ran = 0

    @queue.task("work", max_attempts=5, backoff=ExponentialBackoff(base=0))
    async def work() -> None:
        nonlocal ran
        ran += 1
        task = asyncio.current_task()
        assert task is not None
        if ran % 100 == 1:
            asyncio.get_running_loop().call_later(after, task.cancel)  # as a timer that nobody stops

    await queue.dispatch_many(work.call() for _ in range(2_000))
    summary = await Worker(queue, concurrency=2, burst=True).run(signals=False)
    assert (summary.reason, summary.succeeded, summary.dead) == (StopReason.DRAINED, 2_000, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_was_swallowed_is_not_in_the_next_job_s_task(queue: Queue) -> None:
    found: list[int] = []

    @queue.task("work")
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        found.append(task.cancelling())
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    await queue.dispatch_many(work.call() for _ in range(10))
    await Worker(queue, concurrency=1, burst=True).run(signals=False)
    assert found == [0] * 10


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_handler_that_cancels_its_own_task_while_it_is_cancelled_ends_as_cancelled_and_no_other_does(
    queue: Queue,
) -> None:
    begun, unblock = anyio.Event(), anyio.Event()

    @queue.task("odd")
    async def odd() -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    @queue.task("neighbour")
    async def neighbour() -> str:
        await unblock.wait()
        return "done"

    cancelled, other = await odd.dispatch(), await neighbour.dispatch()
    async with Worker(queue) as worker:
        await begun.wait()
        await queue.cancel(cancelled.job_id)
        with pytest.raises(JobCancelled):
            await cancelled.wait(timeout=10)
        assert worker.health.ready
        unblock.set()
        assert await other.wait(timeout=10) == "done"
    assert await standing(queue) == {(Status.CANCELLED, 1): 1, (Status.COMPLETED, 1): 1}


async def test_jobs_that_never_wait_leave_a_turn_to_others(queue: Queue, storage: Faulty) -> None:
    written: list[int] = []
    ran = 0

    @queue.task("work")
    async def work() -> None:
        nonlocal ran
        ran += 1
        written.append(len(storage.settled))

    await queue.dispatch_many(work.call() for _ in range(3_000))
    await Worker(queue, concurrency=1, burst=True).run(signals=False)
    assert ran == 3_000
    assert written[-1] > 1_000  # the first were settled while the last ran


# --- kept for no time -------------------------------------------------------------------------------


async def test_what_is_kept_for_no_time_is_gone_when_it_is_done(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None:
        pass

    await queue.dispatch_many(work.call() for _ in range(30))
    summary = await Worker(queue, burst=True, retention=Retention(completed=0)).run(signals=False)
    assert summary.succeeded == 30
    assert await standing(queue) == {}


async def test_where_jobs_are_kept_for_no_time_one_waits_for_those_whose_results_are(queue: Queue) -> None:
    @queue.task("cached", result_ttl=60)
    async def cached() -> int:
        return 7

    @queue.task("work")
    async def work() -> int:
        return 8

    receipts = await cached.dispatch(), await work.dispatch()
    await Worker(queue, burst=True, retention=Retention(completed=0)).run(signals=False)
    assert await receipts[0].wait(10) == 7
    with pytest.raises(JobNotFound):
        await receipts[1].wait(10)


@VIRTUAL
async def test_a_settle_that_deleted_and_was_not_answered_is_no_lost_lease(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None:
        pass

    await queue.dispatch_many(work.call() for _ in range(3))
    storage.lose_answer = {"settle"}
    seen: Counter[type[events.WorkerEvent]] = Counter()
    worker = Worker(
        queue, burst=True, retention=Retention(completed=0), hooks=[lambda event: seen.update([type(event)])]
    )
    summary = await worker.run()
    assert summary.succeeded == 3
    assert (seen[events.JobAcked], seen[events.JobLeaseLost]) == (3, 0)
    assert storage.calls["settle"] == 2
