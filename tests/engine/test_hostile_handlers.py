"""What handlers, hooks and storages do that they should not: it ends their own attempt or call, and nothing more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Self
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest

from creche import (
    CrecheError,
    Job,
    JobCancelled,
    JobFailed,
    Queue,
    QueueNotOpen,
    Receipt,
    Status,
    WaitTimeout,
    Worker,
    events,
)
from creche._job import Settlement
from creche.abc import Listener
from creche.errors import OptionInvalid, StatementRejected, StorageUnavailable
from creche.storage.memory import MemoryStorage
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio

VIRTUAL = pytest.mark.parametrize("anyio_backend", ["virtual"], indirect=True)
ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return virtual_time() if request.param == "virtual" else request.param


class Unusual(BaseException):
    """What `except Exception` does not catch."""


# --- handlers and hooks -----------------------------------------------------------------------------


@ASYNCIO
@pytest.mark.parametrize("how", ["future", "self"])
async def test_a_cancellation_that_nobody_asked_for_fails_the_attempt(queue: Queue, how: str) -> None:
    @queue.task("bad", max_attempts=1)
    async def bad() -> None:
        if how == "future":
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(1)

    @queue.task("good")
    async def good() -> str:
        return "still here"

    async with Worker(queue):
        receipt = await bad.dispatch()
        with pytest.raises(JobFailed, match="CancelledError"):
            await receipt.wait(10)
        assert await (await good.dispatch()).wait(10) == "still here"


@ASYNCIO
async def test_a_hook_that_leaks_a_cancellation_ends_no_worker(queue: Queue) -> None:
    def leak(_: events.WorkerEvent) -> NoReturn:
        raise asyncio.CancelledError

    async def leak_later(_: events.WorkerEvent) -> NoReturn:
        await anyio.lowlevel.checkpoint()
        raise asyncio.CancelledError

    @queue.task("good")
    async def good() -> str:
        return "still here"

    async with Worker(queue, hooks=[leak, leak_later]):
        for _ in range(3):
            assert await (await good.dispatch()).wait(10) == "still here"


async def test_an_unusual_error_in_a_child_task_fails_the_attempt(queue: Queue) -> None:
    async def child() -> None:
        raise Unusual("deep down")

    @queue.task("bad", max_attempts=1)
    async def bad() -> None:
        async with anyio.create_task_group() as children:
            children.start_soon(child)

    async with Worker(queue):
        receipt = await bad.dispatch()
        with pytest.raises(JobFailed):
            await receipt.wait(10)


async def test_a_slot_belongs_to_the_thread_until_it_ends(queue: Queue) -> None:
    release = threading.Event()
    running: list[int] = []

    @queue.task("stuck")
    def stuck(number: int) -> None:
        running.append(number)
        release.wait(20)

    @queue.task("quick")
    async def quick() -> str:
        return "at last"

    async with Worker(queue, concurrency=2, lease=0.6, grace=0):
        receipts = await queue.dispatch_many(stuck.call(number) for number in range(2))
        await until(lambda: len(running) == 2)
        for receipt in receipts:
            await queue.cancel(receipt.job_id)
        for receipt in receipts:
            with pytest.raises(JobCancelled):
                await receipt.wait(10)
        waiting = await quick.dispatch()
        await anyio.sleep(0.3)
        record = await queue.look_up(waiting.job_id)
        assert record
        assert (record.status, record.attempts) == (Status.PENDING, 0)  # not reserved: there is no room to run it
        release.set()
        assert await waiting.wait(10) == "at last"


async def test_a_handler_does_not_begin_after_a_neighbour_blocked_the_loop_past_its_lease(queue: Queue) -> None:
    begun: list[tuple[int, bool]] = []

    @queue.task("work", max_attempts=5)
    async def work(job: Job, number: int) -> None:
        begun.append((job.attempt, anyio.current_time() < job.deadline))
        if len(begun) == 1:
            time.sleep(0.8)  # noqa: ASYNC251 - it is what a careless handler does

    receipts = await queue.dispatch_many(work.call(number) for number in range(5))
    async with Worker(queue, lease=0.5, concurrency=5):
        for receipt in receipts:
            await receipt.wait(20)
    assert len(begun) >= 5
    assert all(in_time for _, in_time in begun)


@VIRTUAL
async def test_a_hook_that_hangs_holds_up_a_stop_no_longer_than_the_last_settle_may(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    async def hang(_: events.WorkerEvent) -> None:
        await anyio.sleep_forever()

    async with Worker(queue, hooks=[hang]):
        await (await work.dispatch()).wait(10)
        began = anyio.current_time()
    assert anyio.current_time() - began <= 5.1


# --- storages ---------------------------------------------------------------------------------------


@VIRTUAL
async def test_a_settle_that_hangs_is_sent_again(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    async with Worker(queue, lease=9):
        storage.hang = {"settle"}
        receipt = await work.dispatch()
        await anyio.sleep(1)
        storage.hang = set()
        assert await receipt.wait(10) == "done"


@VIRTUAL
async def test_no_more_is_run_while_too_many_ends_wait_to_be_written(queue: Queue, storage: Faulty) -> None:
    runs = 0

    @queue.task("work")
    async def work() -> None:
        nonlocal runs
        runs += 1

    await queue.dispatch_many(work.call() for _ in range(3_000))
    async with Worker(queue, concurrency=2):
        storage.down = {"settle"}
        await anyio.sleep(60)
        assert runs == 2_000
        storage.down = set()
        await until(lambda: runs == 3_000)


class Flapping(Faulty):
    """Listening works, and breaks at once."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.listens = 0

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncIterator[Listener]:
        self.listens += 1
        yield self

    async def wait(self) -> NoReturn:
        await anyio.lowlevel.checkpoint()
        raise self.error


@VIRTUAL
@pytest.mark.parametrize("error", [StorageUnavailable("planted"), StatementRejected("planted")])
async def test_a_listener_that_breaks_again_and_again_is_replaced_seldom_and_polling_does(error: Exception) -> None:
    storage = Flapping(error)
    async with Queue(storage) as queue:

        @queue.task("work")
        async def work() -> str:
            return "done"

        async with Worker(queue):
            await anyio.sleep(60)
            assert storage.listens <= 25
            assert await (await work.dispatch()).wait(10) == "done"


class Grudging(Faulty):
    """Refuses to store errors that say a certain word."""

    async def settle(self, settlements: Sequence[Settlement], **named: Any) -> Any:
        if any(each.error is not None and "unstorable" in each.error.message for each in settlements):
            raise StatementRejected("planted: what a word")
        return await super().settle(settlements, **named)


async def test_an_error_that_cannot_be_stored_is_replaced_not_lost() -> None:
    async with Queue(Grudging()) as queue:

        @queue.task("bad", max_attempts=1)
        async def bad() -> None:
            raise ValueError("unstorable")

        @queue.task("good")
        async def good() -> str:
            return "done"

        async with Worker(queue):
            failing, fine = await bad.dispatch(), await good.dispatch()
            with pytest.raises(JobFailed, match="ValueError: the database refused to store"):
                await failing.wait(10)
            assert await fine.wait(10) == "done"


# --- opening and closing ----------------------------------------------------------------------------


class Slow(Faulty):
    """Takes a while to open, as every real database does."""

    async def __aenter__(self) -> Self:
        await anyio.sleep(0.2)
        await super().__aenter__()
        return self


async def test_a_stop_while_the_queue_is_being_opened_is_not_lost() -> None:
    queue = Queue(Slow())

    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as host:
            host.start_soon(worker.run)
            await anyio.wait_all_tasks_blocked()
            worker.stop()


async def test_two_workers_cannot_both_open_one_queue() -> None:
    queue = Queue(Slow())

    @queue.task("work")
    async def work() -> None: ...

    first = Worker(queue)
    async with anyio.create_task_group() as host:
        host.start_soon(first.run)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(OptionInvalid, match="around all that uses it"):
            await Worker(queue).run()
        first.stop()


# --- waiting ----------------------------------------------------------------------------------------


async def test_a_wait_ends_when_its_queue_is_closed(storage: Faulty) -> None:
    queue = Queue(storage)
    queue.foreign("never")
    ended: list[Exception] = []

    async with anyio.create_task_group() as waiters, queue:
        receipt = await queue.dispatch("never")

        async def wait() -> None:
            try:
                await receipt.wait(60)
            except QueueNotOpen as error:
                ended.append(error)

        waiters.start_soon(wait)
        waiters.start_soon(wait)
        await anyio.sleep(0.05)
    assert len(set(map(id, ended))) == 2  # to each its own: its traceback grows where it is raised


def test_an_interruption_of_the_queues_own_task_leaves_it_alone() -> None:
    """On trio Ctrl-C strikes whichever task runs just then."""

    class Interrupted(MemoryStorage):
        async def watch(self, *jobs: Any, **options: Any) -> NoReturn:
            await anyio.wait_all_tasks_blocked()
            raise KeyboardInterrupt

    told: list[CrecheError] = []

    async def wait(receipt: Receipt[Any]) -> None:
        try:
            await receipt.wait(60)
        except CrecheError as error:
            told.append(error)
            raise

    async def wait_for_some() -> None:
        queue = Queue(Interrupted())
        queue.foreign("never")
        async with queue, anyio.create_task_group() as waiters:
            for receipt in [await queue.dispatch("never") for _ in range(3)]:
                waiters.start_soon(wait, receipt)

    with pytest.raises(BaseExceptionGroup) as left:
        anyio.run(wait_for_some, backend="trio")
    interruption, others = left.value.split(KeyboardInterrupt)
    assert interruption
    assert others is None
    assert not told  # they were cancelled by it


async def test_waiting_for_no_time_looks_once(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    receipt = await work.dispatch()
    with pytest.raises(WaitTimeout, match="still pending after 0 s"):
        await receipt.wait(0)
    async with Worker(queue):
        await receipt.wait(10)
    assert await receipt.wait(0) == "done"


@VIRTUAL
@pytest.mark.parametrize("trouble", ["hang", "down"])
async def test_a_wait_keeps_its_time_though_the_storage_is_gone(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    queue.foreign("never")
    receipt = await queue.dispatch("never")

    async def unreachable(_: Collection[UUID], **__: object) -> NoReturn:
        if trouble == "hang":
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        raise StorageUnavailable("planted")

    monkeypatch.setattr(storage, "find", unreachable)
    monkeypatch.setattr(storage, "watch", unreachable)
    began = anyio.current_time()
    with pytest.raises(WaitTimeout, match="can't be looked up"):
        await receipt.wait(3)
    assert anyio.current_time() - began <= 4.1


async def test_a_row_that_cannot_be_read_keeps_nobody_else_waiting(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    queue.foreign("poison")
    poison = await queue.dispatch("poison")
    watch = storage.watch

    async def picky(job_ids: Collection[UUID], **options: Any) -> object:
        if poison.job_id in job_ids:
            raise StatementRejected("planted: a date out of range")
        return await watch(job_ids, **options)

    monkeypatch.setattr(storage, "watch", picky)
    refused: list[StatementRejected] = []

    async def wait_for_poison() -> None:
        try:
            await poison.wait(10)
        except StatementRejected as error:
            refused.append(error)

    async with Worker(queue), anyio.create_task_group() as waiters:
        waiters.start_soon(wait_for_poison)
        waiters.start_soon(wait_for_poison)
        assert await (await work.dispatch()).wait(10) == "done"
    assert len(set(map(id, refused))) == 2


async def test_whoever_waits_after_a_retry_is_not_told_of_the_failure_before(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    retried = False

    @queue.task("work", max_attempts=1)
    async def work() -> str:
        if not retried:
            raise ValueError("the first time")
        return "the second time"

    watch, asked, go_on = storage.watch, anyio.Event(), anyio.Event()

    async def slow(job_ids: Collection[UUID], **options: Any) -> object:
        answer = await watch(job_ids, **options)
        asked.set()
        await go_on.wait()
        return answer

    async with Worker(queue):
        receipt = await work.dispatch()
        with pytest.raises(JobFailed):
            await receipt.wait(10)
        monkeypatch.setattr(storage, "watch", slow)

        async def wait_before() -> None:
            with pytest.raises(JobFailed):
                await receipt.wait(10)

        async def wait_after() -> None:
            assert await receipt.wait(10) == "the second time"

        async with anyio.create_task_group() as waiters:
            waiters.start_soon(wait_before)
            await asked.wait()
            retried = True
            await queue.retry(receipt.job_id)
            waiters.start_soon(wait_after)
            await anyio.sleep(0.05)
            go_on.set()


async def test_a_handler_may_extend_by_way_of_current_job_in_a_child_task(queue: Queue) -> None:
    @queue.task("work")
    async def work(job: Job) -> bool:
        before = job.deadline
        async with anyio.create_task_group() as children:
            children.start_soon(job.extend, 1_000)
        return job.deadline > before + 900

    async with Worker(queue):
        assert await (await work.dispatch()).wait(10)
