"""A worker limits itself: how many jobs, how long each, which queues, and when it has done enough. In virtual time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.to_thread
import pytest

from creche import Job, JobCancelled, Queue, Retry, Status, StopReason, Worker, current_job
from creche._limits import resident_memory
from creche.errors import OptionInvalid
from engine_kit import Faulty, virtual_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return virtual_time()


class Gauge:
    """How many handlers run at once, at most, by queue and in all."""

    def __init__(self) -> None:
        self.most: Counter[str] = Counter()
        self._now: Counter[str] = Counter()

    async def run(self, seconds: float = 1.0) -> None:
        name = current_job().queue_name
        for each in (name, "all"):
            self._now[each] += 1
            self.most[each] = max(self.most[each], self._now[each])
        await anyio.sleep(seconds)
        for each in (name, "all"):
            self._now[each] -= 1


@pytest.fixture
def gauge(queue: Queue) -> Gauge:
    gauge = Gauge()

    @queue.task("measured")
    async def measured(number: int) -> None:
        await gauge.run()

    return gauge


async def dispatch(queue: Queue, count: int, name: str = "default") -> None:
    task = queue.tasks.get("measured")
    await queue.dispatch_many([task.options(queue=name).call(number) for number in range(count)])


# --- enough jobs, enough memory, nothing left -------------------------------------------------------


async def test_after_max_jobs_it_finishes_what_it_holds_and_ends(queue: Queue, gauge: Gauge) -> None:
    await dispatch(queue, 20)
    summary = await Worker(queue, max_jobs=7, concurrency=5, grace=0).run()
    assert (summary.reason, summary.succeeded, summary.released) == (StopReason.MAX_JOBS, 7, 0)
    (stats,) = (await queue.stats()).queues
    assert stats.counts == {Status.COMPLETED: 7, Status.PENDING: 13}
    assert gauge.most["all"] == 5


async def test_what_it_holds_when_it_has_done_enough_is_not_cut_off_by_the_grace(queue: Queue) -> None:
    @queue.task("long")
    async def long() -> str:
        await anyio.sleep(3_600)
        return "done"

    receipt = await long.dispatch()
    summary = await Worker(queue, max_jobs=1, lease=10, grace=1).run()
    assert (summary.reason, summary.succeeded) == (StopReason.MAX_JOBS, 1)
    assert (await queue.receipt(receipt.job_id)).result == "done"


async def test_a_stop_while_it_finishes_gives_the_grace_and_no_more(queue: Queue) -> None:
    @queue.task("long")
    async def long() -> None:
        await anyio.sleep(3_600)

    receipt = await long.dispatch()
    worker = Worker(queue, max_jobs=1, lease=10, grace=5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await anyio.sleep(60)
        worker.stop()
        told = anyio.current_time()
    assert anyio.current_time() - told == pytest.approx(5, abs=0.5)
    row = await queue.look_up(receipt.job_id)
    assert row is not None
    assert (row.status, row.attempts) == (Status.PENDING, 0)


async def test_above_max_memory_it_begins_nothing_more(queue: Queue, gauge: Gauge) -> None:
    await dispatch(queue, 10)
    assert resident_memory() > 2 << 20
    summary = await Worker(queue, max_memory=2 << 20, concurrency=3).run()
    assert summary.reason is StopReason.MAX_MEMORY
    assert summary.succeeded == 3  # those that it held: at least one, whatever the limit


async def test_below_max_memory_it_goes_on(queue: Queue, gauge: Gauge) -> None:
    await dispatch(queue, 10)
    summary = await Worker(queue, max_memory=1 << 40, concurrency=3, burst=True).run()
    assert (summary.reason, summary.succeeded) == (StopReason.DRAINED, 10)


async def test_a_burst_ends_when_nothing_is_left_and_knows_what_died(queue: Queue, gauge: Gauge) -> None:
    @queue.task("dies", max_attempts=1)
    async def dies() -> None:
        raise ValueError

    await dispatch(queue, 25)
    await dies.dispatch()
    summary = await Worker(queue, burst=True, concurrency=3).run()
    assert (summary.reason, summary.succeeded, summary.failed, summary.dead) == (StopReason.DRAINED, 25, 1, 1)
    assert anyio.current_time() < 3_600


async def test_a_burst_takes_along_what_its_jobs_dispatch_and_leaves_what_is_due_later(queue: Queue) -> None:
    @queue.task("chain")
    async def chain(left: int) -> None:
        await anyio.sleep(1)
        if left:
            await chain.dispatch(left - 1)

    @queue.task("again", max_attempts=5)
    async def again() -> None:
        raise Retry(delay=600)

    await chain.dispatch(5)
    later = await chain.options(delay=3_600).dispatch(0)
    retried = await again.dispatch()
    start = anyio.current_time()
    summary = await Worker(queue, burst=True).run()
    assert (summary.succeeded, summary.failed, summary.dead) == (6, 1, 0)
    assert anyio.current_time() - start < 10
    assert (await queue.receipt(later.job_id)).status is Status.SCHEDULED
    assert (await queue.receipt(retried.job_id)).status is Status.SCHEDULED


async def test_a_burst_on_an_empty_queue_ends_at_once(queue: Queue, gauge: Gauge) -> None:
    start = anyio.current_time()
    summary = await Worker(queue, burst=True).run()
    assert (summary.reason, summary.succeeded) == (StopReason.DRAINED, 0)
    assert anyio.current_time() - start < 1


async def test_a_burst_waits_for_a_database_that_is_away(queue: Queue, storage: Faulty, gauge: Gauge) -> None:
    await dispatch(queue, 3)
    storage.down = {"reserve"}
    async with anyio.create_task_group() as tasks:

        async def repair() -> None:
            await anyio.sleep(60)
            storage.down = set()

        tasks.start_soon(repair)
        summary = await Worker(queue, burst=True).run()
    assert summary.succeeded == 3


async def test_a_burst_ends_at_once_when_its_last_lease_is_lost_while_its_end_is_written(
    queue: Queue, storage: Faulty
) -> None:
    @queue.task("work", max_attempts=1)
    async def work(job: Job) -> None:
        storage._rows[job.id].seize()  # as a rival's takeover does
        storage.slow = {"settle"}

    await work.dispatch()
    start = anyio.current_time()
    with anyio.fail_after(600):
        await Worker(queue, burst=True, poll_interval=36_000).run()
    assert anyio.current_time() - start < 10


async def test_a_quiet_worker_stays_whatever_limit_it_reaches(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(10)

    receipt = await work.dispatch()
    worker = Worker(queue, max_memory=2 << 20)
    async with worker:
        await anyio.sleep(1)
        worker.quiet()
        await receipt.wait()
        await anyio.sleep(600)
        assert worker.health.reason == "it is quiet: it reserves nothing more"


# --- queues -----------------------------------------------------------------------------------------


async def test_a_queue_has_a_concurrency_of_its_own(queue: Queue, gauge: Gauge) -> None:
    await dispatch(queue, 30, "ocr")
    await dispatch(queue, 30, "mail")
    worker = Worker(queue, queues={"ocr": 4, "mail": 2}, burst=True)
    assert worker.concurrency == 6
    summary = await worker.run()
    assert summary.succeeded == 60
    assert gauge.most == {"ocr": 4, "mail": 2, "all": 6}


async def test_a_slot_that_becomes_free_in_a_limited_queue_is_filled_at_once(queue: Queue, gauge: Gauge) -> None:
    await dispatch(queue, 20, "ocr")
    start = anyio.current_time()
    await Worker(queue, queues={"ocr": 2, "mail": 8}, poll_interval=60, burst=True).run()
    assert anyio.current_time() - start == pytest.approx(10, abs=0.5)  # twenty jobs of a second, two at a time


async def test_queues_without_a_number_share_the_room_of_the_worker(queue: Queue, gauge: Gauge) -> None:
    for name in ("ocr", "mail", "default"):
        await dispatch(queue, 20, name)
    summary = await Worker(queue, queues={"ocr": 1, "mail": None, "default": None}, concurrency=5, burst=True).run()
    assert summary.succeeded == 60
    assert gauge.most["ocr"] == 1
    assert gauge.most["all"] == 5
    assert gauge.most["mail"] == 4  # all the room that the queue before it leaves


async def test_strict_order_serves_the_second_queue_with_what_the_first_leaves(queue: Queue) -> None:
    order: list[str] = []

    @queue.task("note")
    async def note() -> None:
        order.append(current_job().queue_name)
        await anyio.sleep(1)

    for name in ("low", "high"):
        for _ in range(10):
            await note.options(queue=name).dispatch()
    await Worker(queue, queues=["high", "low"], concurrency=1, burst=True).run()
    assert order == ["high"] * 10 + ["low"] * 10


async def test_weighted_order_starves_nobody_and_keeps_the_proportion(queue: Queue) -> None:
    order: list[str] = []

    @queue.task("note")
    async def note() -> None:
        order.append(current_job().queue_name)
        await anyio.sleep(1)

    for name in ("heavy", "light"):
        await queue.dispatch_many([note.options(queue=name).call() for _ in range(800)])
    worker = Worker(queue, queues=["heavy", "light"], weights={"heavy": 3}, concurrency=1, max_jobs=800)
    await worker.run()
    assert 520 < Counter(order)["heavy"] < 680  # 600 expected, with a deviation of 12


@pytest.mark.parametrize(
    "options",
    [
        {"queues": {"a": 0}},
        {"queues": {"a": True}},
        {"queues": {}},
        {"queues": {"": 1}},
        {"queues": ["a"], "weights": {"b": 1}},
        {"queues": ["a"], "weights": {"a": 0}},
        {"max_jobs": 0},
        {"max_memory": 1_000},
        {"max_memory": "512MB"},
        {"burst": 1},
        {"job_timeout": 0},
        {"name": "x" * 51},
    ],
)
async def test_nonsense_is_refused_at_once(queue: Queue, options: Mapping[str, Any]) -> None:
    with pytest.raises(OptionInvalid):
        Worker(queue, **options)


# --- time -------------------------------------------------------------------------------------------


async def test_an_attempt_that_takes_too_long_is_cancelled_and_has_failed(queue: Queue) -> None:
    reasons: list[object] = []

    @queue.task("slow", max_attempts=2)
    async def slow(job: Job) -> None:
        try:
            await anyio.sleep(100)
        finally:
            reasons.append(job.cancel_reason)

    receipt = await slow.dispatch()
    summary = await Worker(queue, job_timeout=5, max_jobs=1).run()
    assert (summary.failed, summary.dead) == (1, 0)
    row = await queue.look_up(receipt.job_id)
    assert row is not None
    assert row.last_error is not None
    assert (row.status, row.attempts) == (Status.SCHEDULED, 1)
    assert row.last_error.type == "creche.errors.JobTimeout"
    assert "5 s" in row.last_error.message
    assert reasons == ["timeout"]


async def test_a_task_says_itself_how_long_it_may_take(queue: Queue) -> None:
    @queue.task("patient", job_timeout=50)
    async def patient() -> str:
        await anyio.sleep(40)
        return "done"

    receipt = await patient.dispatch()
    await Worker(queue, job_timeout=5, burst=True).run()
    assert (await queue.receipt(receipt.job_id)).status is Status.COMPLETED


async def test_what_is_raised_while_it_ends_for_its_time_is_shown_and_it_is_still_a_timeout(queue: Queue) -> None:
    @queue.task("untidy", max_attempts=1, job_timeout=5)
    async def untidy() -> None:
        try:
            await anyio.sleep(100)
        finally:
            raise ValueError("the table is on fire")

    receipt = await untidy.dispatch()
    await Worker(queue, burst=True).run()
    row = await queue.look_up(receipt.job_id)
    assert row is not None
    assert row.last_error is not None
    assert row.last_error.type == "creche.errors.JobTimeout"
    assert "the table is on fire" in row.last_error.traceback


async def test_a_handler_that_is_told_of_its_timeout_and_comes_to_a_result_has_succeeded(queue: Queue) -> None:
    @queue.task("stubborn", max_attempts=1, job_timeout=5)
    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(7)
        return "late"

    receipt = await stubborn.dispatch()
    await Worker(queue, burst=True).run()
    assert (await queue.receipt(receipt.job_id)).result == "late"


async def test_a_commit_is_not_cut_off_by_the_time_that_an_attempt_may_take(queue: Queue, storage: Faulty) -> None:
    @queue.task("write", max_attempts=1, job_timeout=5)
    async def write(job: Job) -> str:
        storage.slow = {"commit"}
        await anyio.sleep(4.5)
        async with job.transaction():
            job.set_result("written")
        await anyio.sleep(100)  # what comes afterwards is
        return "of no interest"

    receipt = await write.dispatch()
    start = anyio.current_time()
    summary = await Worker(queue, burst=True).run()
    assert (summary.succeeded, summary.failed) == (1, 0)
    assert (await queue.receipt(receipt.job_id)).result == "written"
    assert anyio.current_time() - start < 10


async def test_a_timeout_is_no_lost_lease_and_no_shutdown(queue: Queue) -> None:
    reasons: dict[str, object] = {}

    @queue.task("wait", max_attempts=5)
    async def wait(job: Job, name: str) -> None:
        try:
            await anyio.sleep(1_000)
        finally:
            reasons[name] = job.cancel_reason

    held = await wait.dispatch("stopped")
    async with Worker(queue, lease=10, grace=1):
        await anyio.sleep(5)
    assert reasons == {"stopped": "shutdown"}
    row = await queue.look_up(held.job_id)
    assert row is not None
    assert (row.status, row.attempts) == (Status.PENDING, 0)


# --- threads that outlive their attempts ------------------------------------------------------------


async def test_a_thread_that_outlives_its_attempt_keeps_the_place_in_its_queue(queue: Queue) -> None:
    begun, ended = threading.Event(), threading.Event()

    @queue.task("stuck", queue="one")
    def stuck() -> None:
        begun.set()
        ended.wait(60)

    @queue.task("other", queue="one")
    def other() -> str:
        return "done"

    try:
        async with Worker(queue, queues={"one": 1, "two": 5}, poll_interval=36_000):
            left = await stuck.dispatch()
            await anyio.to_thread.run_sync(begun.wait)
            await queue.cancel(left.job_id)
            with pytest.raises(JobCancelled):
                await left.wait()
            receipt = await other.dispatch()
            await anyio.sleep(100)
            assert (await receipt.refresh()).status is Status.PENDING
            ended.set()
            with anyio.fail_after(18_000):  # nobody rings, so one looks now and then
                assert await receipt.wait() == "done"
    finally:
        ended.set()


async def test_a_handler_in_a_thread_may_ask_why_its_attempt_is_over(queue: Queue) -> None:
    asked: list[object] = []
    begun, over = threading.Event(), threading.Event()

    @queue.task("polite")
    def polite(job: Job) -> None:
        begun.set()
        while (reason := job.cancel_reason) is None:
            over.wait(0.001)
        asked.append(reason)
        over.set()

    await polite.dispatch()
    try:
        async with Worker(queue, grace=0):
            await anyio.to_thread.run_sync(begun.wait)
        await anyio.to_thread.run_sync(over.wait, 60)
    finally:
        over.set()
    assert asked == ["shutdown"]
