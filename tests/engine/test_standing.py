"""How a worker stands: what it says of itself, when it is quiet, what probes and the registry see; and cancelling."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from typing import Self

import anyio
import pytest
import trio

from creche import Job, JobCancelled, Queue, Retention, Status, StopReason, Worker, events
from creche._job import Presence, WorkerState
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return virtual_time()


# --- quiet ------------------------------------------------------------------------------------------


async def test_a_quiet_worker_finishes_what_it_holds_and_takes_nothing_more(queue: Queue) -> None:
    ran: list[int] = []

    @queue.task("work")
    async def work(number: int) -> None:
        await anyio.sleep(20)
        ran.append(number)

    worker = Worker(queue, lease=10)
    async with worker:
        await work.dispatch(1)
        await anyio.sleep(1)
        worker.quiet()
        late = await work.dispatch(2)
        await anyio.sleep(600)
        assert ran == [1]
        assert (await queue.receipt(late.job_id)).status is Status.PENDING
        assert [each.presence.state for each in await queue.workers()] == [WorkerState.QUIET]
        assert (worker.health.live, worker.health.ready) == (True, False)


class Steps(trio.abc.Instrument):
    """Counts how often each task ran, by its name."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name.rpartition(".")[2]] += 1


async def test_an_idle_worker_wakes_up_to_poll_to_be_seen_and_for_upkeep_and_for_nothing_else(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    async with Worker(queue):
        await (await work.dispatch()).wait()
        await anyio.sleep(60)
        trio.lowlevel.add_instrument(steps := Steps())
        await anyio.sleep(3_600)
        trio.lowlevel.remove_instrument(steps)
    assert {name for name, count in steps.of.items() if count > 2} == {"reserver", "registry", "maintainer"}


class SlowToOpen(Faulty):
    """A storage that takes a while to reach."""

    async def __aenter__(self) -> Self:
        await anyio.sleep(30)
        return await super().__aenter__()


async def test_a_worker_may_be_told_to_be_quiet_while_its_queue_opens() -> None:
    storage = SlowToOpen()
    queue = Queue(storage)

    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await anyio.sleep(5)
        worker.quiet()
        await anyio.sleep(60)
        assert not worker.health.ready
        worker.stop()
    assert "reserve" not in storage.calls


# --- the registry -----------------------------------------------------------------------------------


async def test_a_worker_is_registered_while_it_runs_and_not_after(queue: Queue) -> None:
    @queue.task("work", queue="ocr")
    async def work() -> None:
        await anyio.sleep(30)

    receipt = await work.dispatch()
    async with Worker(queue, concurrency=3, lease=10, name="ocr-box"):
        await anyio.sleep(5)
        (record,) = await queue.workers()
        assert record.presence.name.startswith("ocr-box:")
        assert record.presence.queues == ("default", "ocr")
        assert (record.presence.concurrency, record.presence.backend) == (3, "trio")
        (job,) = record.jobs
        assert (job.job_id, job.type, job.attempt) == (receipt.job_id, "work", 1)
        assert 5 < job.lease_left <= 10
        assert (await queue.stats()).workers == await queue.workers()
        await anyio.sleep(100)
        assert len(await queue.workers()) == 1  # it says so again and again
    assert await queue.workers() == []


async def test_a_worker_that_stops_is_seen_to_stop_until_it_has_given_back_what_it_held(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(1_000)

    await work.dispatch()
    worker = Worker(queue, grace=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await anyio.sleep(5)
        worker.stop()
        await anyio.sleep(30)
        (record,) = await queue.workers()
        assert record.presence.state is WorkerState.STOPPING
        assert len(record.jobs) == 1
    assert await queue.workers() == []


async def test_a_registry_that_is_away_disturbs_no_job(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> str:
        await anyio.sleep(100)
        return "done"

    storage.down = {"announce", "withdraw"}
    receipt = await work.dispatch()
    worker = Worker(queue, lease=10)
    async with worker:
        assert await receipt.wait() == "done"
        assert not worker.health.ready
        storage.down = {"withdraw"}
        await anyio.sleep(30)
        assert worker.health.ready


async def test_a_killed_worker_is_forgotten_by_itself(queue: Queue, storage: Faulty) -> None:
    presence = Presence(name="gone", host="h", pid=1, backend="trio", version="0", queues=("default",), concurrency=1)
    await storage.announce(presence, 35)

    @queue.task("work")
    async def work() -> None: ...

    async with Worker(queue):
        await anyio.sleep(1)
        assert len(await queue.workers()) == 2
        await anyio.sleep(60)
        (left,) = await queue.workers()
        assert left.presence.name != "gone"
        assert list(storage._workers) == [left.presence.name]  # its row, too


# --- health -----------------------------------------------------------------------------------------


async def test_health_follows_the_worker_and_its_database(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue)
    assert (worker.health.live, worker.health.ready) == (True, False)
    async with worker:
        await anyio.sleep(1)
        assert (worker.health.live, worker.health.ready, worker.health.reason) == (True, True, "")
        storage.down = {"reserve"}
        await anyio.sleep(20)
        assert (worker.health.live, worker.health.ready) == (True, False)
        assert "database" in worker.health.reason
        storage.down = set()
        await anyio.sleep(20)
        assert worker.health.ready
        worker.stop()
        assert not worker.health.ready


# --- queues -----------------------------------------------------------------------------------------


async def test_a_paused_queue_is_left_alone_and_a_resumed_one_served_at_once(queue: Queue) -> None:
    started: list[float] = []

    @queue.task("work")
    async def work() -> None:
        started.append(anyio.current_time())

    await queue.pause("default")
    async with Worker(queue, poll_interval=60):
        await work.dispatch()
        await anyio.sleep(600)
        assert started == []
        (stats,) = (await queue.stats()).queues
        assert isinstance(stats.paused_at, datetime)
        resumed = anyio.current_time()
        await queue.resume("default")
        await until(lambda: bool(started))
        assert started[0] - resumed < 1


async def test_a_queue_keeps_its_finished_jobs_as_it_was_told(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    await queue.set_retention("long", Retention(completed=10_000))
    kept = await work.options(queue="long").dispatch()
    pruned = await work.dispatch()
    async with Worker(queue, queues=["long", "default"], retention=Retention(completed=100)):
        await anyio.sleep(1_000)
        assert await queue.look_up(pruned.job_id) is None
        assert await queue.look_up(kept.job_id) is not None
        await anyio.sleep(10_000)
        assert await queue.look_up(kept.job_id) is None


# --- cancelling -------------------------------------------------------------------------------------


async def test_a_running_job_is_cancelled_at_once_and_not_with_the_next_renewal(queue: Queue) -> None:
    seen: dict[str, object] = {}

    @queue.task("long")
    async def long(job: Job) -> None:
        try:
            await anyio.sleep(1_000)
        except anyio.get_cancelled_exc_class():
            seen.update(at=anyio.current_time(), why=job.cancel_reason)
            raise
        finally:
            seen["cleaned"] = True

    told: list[object] = []
    receipt = await long.dispatch()
    async with Worker(queue, lease=600, hooks=[told.append]):
        await anyio.sleep(10)
        asked = anyio.current_time()
        assert await queue.cancel(receipt.job_id) is Status.PROCESSING
        with pytest.raises(JobCancelled):
            await receipt.wait(timeout=5)
    assert isinstance(at := seen["at"], float)
    assert at - asked < 0.1
    assert (seen["why"], seen["cleaned"]) == ("cancelled", True)
    assert (await queue.receipt(receipt.job_id)).status is Status.CANCELLED
    assert sum(isinstance(event, events.JobCancelled) for event in told) == 1


async def test_the_reason_travels_with_the_cancellation_itself(queue: Queue) -> None:
    texts: list[str] = []

    @queue.task("long")
    async def long() -> None:
        try:
            await anyio.sleep(1_000)
        except anyio.get_cancelled_exc_class() as error:
            texts.append(repr(getattr(error, "reason", None)) + str(error))
            raise

    receipt = await long.dispatch()
    async with Worker(queue):
        await anyio.sleep(1)
        await queue.cancel(receipt.job_id)
        await anyio.sleep(1)
    assert "the job was cancelled" in texts[0]


async def test_cancelling_one_job_leaves_its_neighbours_alone(queue: Queue, storage: Faulty) -> None:
    @queue.task("work", max_attempts=1)
    async def work() -> str:
        await anyio.sleep(100)
        return "done"

    doomed, other = await work.dispatch(), await work.dispatch()
    async with Worker(queue, lease=600):
        await anyio.sleep(1)
        await queue.cancel(doomed.job_id)
        assert await other.wait() == "done"
    assert storage.calls["extend"] <= 3  # one for the cancellation, and what the clock asks for


async def test_a_thousand_that_are_cancelled_one_by_one_cost_a_few_renewals(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(1_000)

    receipts = await queue.dispatch_many([work.call() for _ in range(1_000)])
    async with Worker(queue, lease=600, concurrency=1_000):
        await anyio.sleep(1)
        asked = anyio.current_time()
        for receipt in receipts:
            await queue.cancel(receipt.job_id)
        for receipt in receipts:
            with pytest.raises(JobCancelled):
                await receipt.wait()
        assert anyio.current_time() - asked < 1
    assert storage.calls["extend"] <= 5


async def test_a_wake_that_is_lost_costs_no_more_than_a_renewal(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task("long")
    async def long() -> None:
        await anyio.sleep(1_000)

    receipt = await long.dispatch()
    async with Worker(queue, lease=30):
        await anyio.sleep(1)
        monkeypatch.setattr(storage, "_wake", lambda names: None)
        asked = anyio.current_time()
        await queue.cancel(receipt.job_id)
        with pytest.raises(JobCancelled):
            await receipt.wait()
        assert anyio.current_time() - asked <= 10.1


async def test_many_are_cancelled_retried_and_deleted_by_what_they_are(queue: Queue) -> None:
    @queue.task("work", max_attempts=1)
    async def work(number: int) -> None:
        raise ValueError

    @queue.task("other")
    async def other() -> None: ...

    await queue.dispatch_many([work.call(number) for number in range(250)])
    await other.dispatch()
    assert await queue.cancel_all(types=["work"], older_than=3_600) == 0
    assert await queue.cancel_all(types=["work"]) == 250
    assert await queue.cancel_all(types=["work"]) == 0
    assert await queue.retry_all(types=["work"]) == 0  # failed ones, unless told otherwise
    assert await queue.retry_all(types=["work"], statuses=[Status.CANCELLED]) == 250
    summary = await Worker(queue, burst=True).run()
    assert (summary.reason, summary.dead) == (StopReason.DRAINED, 250)
    assert len(await queue.dead_letters(limit=1_000)) == 250
    assert await queue.delete_all(types=["work"], statuses=[Status.COMPLETED]) == 0
    assert await queue.delete_all(types=["work"]) == 250
    assert await queue.dead_letters() == []
    assert {job.type for job in await queue.jobs()} == {"other"}


async def test_what_was_dispatched_a_moment_ago_by_a_clock_that_is_ahead_is_cancelled_with_the_rest(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task("work")
    async def work() -> None: ...

    await work.dispatch()
    behind = time.time_ns() - 1_000_000_000
    monkeypatch.setattr("creche._bulk.time.time_ns", lambda: behind)
    assert await queue.cancel_all(types=["work"]) == 1


async def test_a_job_that_is_active_is_not_deleted(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    receipt = await work.dispatch()
    assert await queue.delete(receipt.job_id) is Status.PENDING
    await Worker(queue, burst=True).run()
    assert await queue.delete(receipt.job_id) is Status.COMPLETED
    assert await queue.look_up(receipt.job_id) is None


async def test_a_worker_that_is_stopped_while_its_queue_opens_ends() -> None:
    queue = Queue(SlowToOpen())

    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        await anyio.sleep(5)
        assert worker.health.reason == "it is starting"
        told = anyio.current_time()
        worker.stop()
    assert anyio.current_time() - told < 1
    assert not queue.is_open


class OpensOnCall(Faulty):
    """A storage that is reached when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = anyio.Event()

    async def __aenter__(self) -> Self:
        await self.let.wait()
        return await super().__aenter__()


async def test_a_worker_that_is_stopped_at_the_moment_when_its_queue_is_open_ends() -> None:
    storage = OpensOnCall()
    queue = Queue(storage)

    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue)
    async with anyio.create_task_group() as tasks:

        async def stop() -> None:
            await anyio.sleep(5)
            storage.let.set()
            worker.stop()  # it is woken already, and not told of any cancellation

        tasks.start_soon(stop)
        await tasks.start(worker.run)
    assert not queue.is_open
    assert "reserve" not in storage.calls
