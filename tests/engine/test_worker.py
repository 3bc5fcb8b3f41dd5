"""What a worker promises, on both event loops, on the memory storage."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from creche import Job, JobFailed, JSONSerializer, Queue, Status, Tasks, UnknownType, Worker, current_job, events
from creche._ids import new_job_id
from creche._job import NewJob
from creche.errors import NoCurrentJob, UsageError
from engine_kit import Faulty, until

pytestmark = pytest.mark.anyio


class Unusual(BaseException):
    """What test frameworks and interpreters raise past `except Exception`."""


async def test_a_worker_runs_in_a_block_beside_its_queue(queue: Queue) -> None:
    @queue.task("double")
    async def double(number: int) -> int:
        return 2 * number

    async with Worker(queue):
        assert await (await double.dispatch(21)).wait(10) == 42


async def test_a_worker_runs_in_somebody_elses_task_group(queue: Queue) -> None:
    @queue.task("double")
    async def double(number: int) -> int:
        return 2 * number

    async with anyio.create_task_group() as host:
        await host.start(Worker(queue).run)
        assert await (await double.dispatch(21)).wait(10) == 42
        host.cancel_scope.cancel()


async def test_a_worker_opens_a_queue_that_is_not_open(storage: Faulty) -> None:
    queue = Queue(storage)
    done = anyio.Event()

    @queue.task("work")
    async def work() -> None:
        done.set()

    async with queue:
        await work.dispatch()
    worker = Worker(queue)
    async with anyio.create_task_group() as host:
        host.start_soon(worker.run)
        with anyio.fail_after(10):
            await done.wait()
        worker.stop()
    assert not queue.is_open


async def test_a_blocks_own_exception_comes_out_as_it_is(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    with pytest.raises(ZeroDivisionError):
        async with Worker(queue):
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        async with Queue("memory://"):
            raise ZeroDivisionError


async def test_a_worker_without_anything_to_run_says_so(queue: Queue) -> None:
    with pytest.raises(UsageError, match="register one with"):
        await Worker(queue).run()
    with pytest.raises(UsageError, match="register one with"):
        async with Worker(queue):
            raise AssertionError("never reached")


async def test_a_worker_runs_once_at_a_time(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue)
    async with worker:
        with pytest.raises(UsageError, match="runs already"):
            await worker.run()


async def test_a_task_registered_while_the_worker_runs_is_served(queue: Queue) -> None:
    @queue.task("first")
    async def first() -> None: ...

    async with Worker(queue):

        @queue.task("second")
        async def second() -> str:
            return "served"

        assert await (await second.dispatch()).wait(10) == "served"


async def test_a_synchronous_handler_runs_in_a_thread_and_knows_its_job(queue: Queue) -> None:
    @queue.task("sync")
    def where(job: Job, name: str) -> dict[str, bool]:
        return {name: threading.current_thread() is not threading.main_thread(), "same": current_job() is job}

    async with Worker(queue):
        assert await (await where.dispatch("apart")).wait(10) == {"apart": True, "same": True}


async def test_one_plain_handler_takes_every_type(queue: Queue) -> None:
    queue.foreign("a", "b")

    async def handle(job: Job) -> object:
        return [job.type, job.payload]

    async with Worker(queue, handler=handle):
        assert await (await queue.dispatch("a", {"x": 1})).wait(10) == ["a", {"x": 1}]
        assert await (await queue.dispatch("b")).wait(10) == ["b", {}]


async def test_jobs_of_types_a_worker_does_not_know_are_left_for_others(storage: Faulty) -> None:
    async with Queue(storage) as ours:
        other = Queue(storage)

        @ours.task("known")
        async def known() -> str:
            return "ours"

        @other.task("strange")
        async def strange() -> str:
            return "theirs"

        async with Worker(ours):
            receipt = await ours.dispatch("strange", {}, queue="default")
            assert await (await known.dispatch()).wait(10) == "ours"
            record = await ours.look_up(receipt.job_id)
            assert record
            assert (record.status, record.attempts) == (Status.PENDING, 0)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        SystemExit(3),
        ExceptionGroup("many", [ValueError("one"), OSError("two")]),
        MemoryError(),
        TimeoutError(),
        StopAsyncIteration(),
        Unusual("not even an Exception"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_fails_its_attempt_and_nothing_else(queue: Queue, error: BaseException) -> None:
    @queue.task("bad", max_attempts=1)
    async def bad() -> None:
        raise error

    @queue.task("good")
    async def good() -> str:
        return "still here"

    async with Worker(queue, concurrency=1):
        receipt = await bad.dispatch()
        with pytest.raises(JobFailed):
            await receipt.wait(10)
        assert await (await good.dispatch()).wait(10) == "still here"


@pytest.mark.parametrize("type", ["async", "thread"])
async def test_a_recorded_traceback_begins_in_the_handler_and_shows_no_values(queue: Queue, type: str) -> None:
    def fail(secret: str) -> None:
        raise ValueError("inside")

    @queue.task("async", max_attempts=1)
    async def in_the_loop(secret: str) -> None:
        fail(secret)

    @queue.task("thread", max_attempts=1)
    def in_a_thread(secret: str) -> None:
        fail(secret)

    async with Worker(queue):
        receipt = await queue.dispatch(type, {"secret": "canary"})
        with pytest.raises(JobFailed) as caught:
            await receipt.wait(10)
    files = [line for line in caught.value.traceback.splitlines() if line.startswith("  File")]
    assert [Path(line.split('"')[1]).name for line in files] == ["test_worker.py", "test_worker.py"]
    assert "canary" not in caught.value.traceback


async def test_a_task_group_that_fails_while_the_worker_stops_is_given_back(queue: Queue) -> None:
    started = anyio.Event()

    @queue.task("messy")
    async def messy() -> None:
        async def fail_late() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError("while cleaning up")

        async with anyio.create_task_group() as children:
            children.start_soon(fail_late)
            children.start_soon(anyio.sleep_forever)
            started.set()
            await anyio.sleep_forever()

    receipt = await messy.dispatch()
    async with anyio.create_task_group() as host:
        await host.start(Worker(queue).run)
        with anyio.fail_after(10):
            await started.wait()
        host.cancel_scope.cancel()
    record = await queue.look_up(receipt.job_id)
    assert record
    assert (record.status, record.attempts) == (Status.PENDING, 0)


async def test_a_payload_that_does_not_fit_is_a_failed_attempt_with_a_clear_error(queue: Queue) -> None:
    @queue.task("typed")
    async def typed(number: int) -> int:
        return number

    rows = [
        NewJob(id=new_job_id(), type="typed", payload=payload, max_attempts=1)
        for payload in (b'{"number":"x"}', b"[1]", b"{nonsense", b"\xff\xfe")
    ]
    await queue.storage.insert(rows)
    async with Worker(queue):
        for row in rows:
            with pytest.raises(JobFailed) as caught:
                await (await queue.receipt(row.id)).wait(10)
            assert caught.value.type == "creche.errors.PayloadInvalid"


async def test_a_result_that_cannot_be_stored_is_a_failed_attempt_with_a_clear_error(queue: Queue) -> None:
    results: list[object] = [float("nan"), {"a": [object()]}, "\0", "x" * (1 << 20), 1 << 80]

    @queue.task("bad", max_attempts=1)
    async def bad(index: int) -> object:
        return results[index]

    async with Worker(queue):
        for receipt in await queue.dispatch_many(bad.call(index) for index in range(len(results))):
            with pytest.raises(JobFailed) as caught:
                await receipt.wait(10)
            assert caught.value.type == "creche.errors.ResultInvalid"


async def test_hooks_hear_everything_and_can_break_nothing(queue: Queue) -> None:
    heard: list[str] = []

    def listen(event: events.WorkerEvent) -> None:
        heard.append(type(event).__name__)

    def broken(event: events.WorkerEvent) -> None:
        raise RuntimeError("a hook's own problem")

    async def slow_and_broken(event: events.WorkerEvent) -> None:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("a hook's own problem")

    @queue.task("good")
    async def good() -> None: ...

    @queue.task("bad", max_attempts=1)
    async def bad() -> None:
        raise ValueError

    async with Worker(queue, hooks=[broken, slow_and_broken, listen]):
        await (await good.dispatch()).wait(10)
        receipt = await bad.dispatch()
        with pytest.raises(JobFailed):
            await receipt.wait(10)
    told = [name for name in heard if name not in {"WorkerIdle", "JobRenewed"}]  # that depends on the moment
    assert told[:5] == ["WorkerStarted", "JobReserved", "JobStarted", "JobSucceeded", "JobAcked"]
    assert told[5:] == ["JobReserved", "JobStarted", "JobFailed", "JobAcked", "JobDeadLettered", "WorkerStopped"]


async def test_a_raising_back_off_is_replaced_by_the_default(queue: Queue, storage: Faulty) -> None:
    class Broken:
        def delay(self, attempt: int) -> float | None:
            raise RuntimeError

    @queue.task("bad", backoff=Broken())
    async def bad() -> None:
        raise ValueError

    async with Worker(queue):
        receipt = await bad.dispatch()
        await until(lambda: bool(storage.settled))
    assert (await receipt.refresh()).status is Status.SCHEDULED
    assert 0.9 <= storage.settled[0].delay <= 1.1


async def test_tasks_of_another_module_are_included(queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task("elsewhere")
    async def elsewhere(number: int) -> int:
        return number + 1

    queue.include(tasks)
    async with Worker(queue):
        assert await (await elsewhere.dispatch(1)).wait(10) == 2


async def test_calling_a_task_just_runs_the_function(queue: Queue) -> None:
    @queue.task("direct")
    async def direct(number: int) -> int:
        return number + 1

    @queue.task("with.job")
    async def with_job(job: Job) -> None: ...

    assert await direct(1) == 2
    with pytest.raises(NoCurrentJob):
        await with_job()
    with pytest.raises(NoCurrentJob):
        current_job()


async def test_a_serializer_of_ones_own_is_used_for_payloads_and_results() -> None:
    class Shouting(JSONSerializer):
        def encode(self, value: object) -> bytes:
            return super().encode(value).upper()

    async with Queue("memory://", serializer=Shouting()) as queue:

        @queue.task("echo")
        async def echo(WORD: str) -> str:  # noqa: N803 - the serializer shouts keys too
            return WORD

        async with Worker(queue):
            assert await (await echo.dispatch("hello")).wait(10) == "HELLO"


async def test_dispatching_an_unknown_type_lists_near_names(queue: Queue) -> None:
    @queue.task("report.generate")
    async def generate() -> None: ...

    with pytest.raises(UnknownType, match=r"'report\.generate'") as caught:
        await queue.dispatch("report.generat", {}, queue="reports")
    assert caught.value.near == ("report.generate",)
    with pytest.raises(UnknownType):
        await queue.dispatch("something.else", {})
    await queue.dispatch("something.else", {}, queue="elsewhere")
    queue.foreign("declared")
    await queue.dispatch("declared")
    assert (await queue.stats()).queues[0].queue_name == "default"


def test_every_file_of_the_engine_knows_no_database() -> None:
    import creche

    modules = list(Path(creche.__file__).parent.glob("_*.py"))
    assert len(modules) > 20
    for module in modules:
        imports = [line for line in module.read_text("utf-8").splitlines() if "import" in line]
        assert not [line for line in imports if "psycopg" in line or "sqlite3" in line or "asyncmy" in line]
