"""A blocked event loop: who blocks it is named, and its leases are renewed by a thread. On a real clock and files."""

from __future__ import annotations

import ctypes
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Self
from uuid import UUID

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from creche import Job, Queue, Status, Worker, events
from creche._job import Extension, Lease, Progress, Retention, Settled, Settlement
from creche.abc import Storage, Transaction
from creche.storage import open_storage
from creche.storage.memory import MemoryStorage
from engine_kit import until

pytestmark = pytest.mark.anyio

LEASE = 2.0  # seconds, of which a third is left for an answer: a busy machine may be slow


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def queue(database: Path) -> AsyncIterator[Queue]:
    async with Queue(f"sqlite:///{database}") as queue:
        yield queue


def watchdogs() -> int:
    return [thread.name for thread in threading.enumerate()].count("creche watchdog")


class Bailiff:
    """Takes what no lease holds, from a thread of its own, as another process's worker would."""

    def __init__(self, database: Path) -> None:
        self._dsn = f"sqlite:///{database}"
        self._ended = threading.Event()
        self.taken: list[int] = []
        self._thread = threading.Thread(target=lambda: anyio.run(self._run))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _run(self) -> None:
        queue = Queue(self._dsn)

        @queue.task("block", max_attempts=5)
        async def block(job: Job) -> int:
            self.taken.append(job.attempt)
            return job.attempt

        async with queue, Worker(queue, lease=LEASE):
            await anyio.to_thread.run_sync(self._ended.wait)


async def test_a_handler_that_blocks_the_loop_for_three_leases_runs_once(
    queue: Queue, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()
    ended: list[int] = []

    @queue.task("block", max_attempts=5)
    async def block(job: Job) -> int:
        begun.set()
        time.sleep(3 * LEASE)  # noqa: ASYNC251 - that is the offence
        await anyio.lowlevel.checkpoint()
        ended.append(job.attempt)
        return job.attempt

    receipt = await block.dispatch()
    with caplog.at_level(logging.ERROR, logger="creche"):
        async with Worker(queue, lease=LEASE):
            await anyio.to_thread.run_sync(begun.wait)
            with Bailiff(database) as rival:
                assert await receipt.wait(timeout=40) == 1
    assert (ended, rival.taken) == ([1], [])
    blocked = [record.getMessage() for record in caplog.records if "blocked" in record.getMessage()]
    assert f"job {receipt.job_id}" in blocked[0]
    assert "test_watchdog.py" in blocked[0]
    assert "time.sleep(3 * LEASE)" in blocked[0]
    assert len(blocked) == 1


async def test_those_who_wait_beside_it_keep_their_leases_too(queue: Queue, database: Path) -> None:
    begun = threading.Event()
    neighbours: list[int] = []

    @queue.task("beside", max_attempts=5)
    async def beside(job: Job) -> None:
        await anyio.sleep(4 * LEASE)
        neighbours.append(job.attempt)

    @queue.task("block", max_attempts=5)
    async def block() -> None:
        await anyio.sleep(0.3 * LEASE)
        begun.set()
        time.sleep(2.5 * LEASE)  # noqa: ASYNC251 - that is the offence

    waiting = [await beside.dispatch() for _ in range(5)]
    await block.dispatch()
    async with Worker(queue, lease=LEASE):
        for receipt in waiting:
            await receipt.wait(timeout=40)
    assert neighbours == [1] * 5


async def test_a_hook_that_blocks_is_reported_and_changes_no_outcome(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(event: events.WorkerEvent) -> None:
        if isinstance(event, events.JobStarted):
            time.sleep(2.2 * LEASE)

    @queue.task("work", max_attempts=1)
    async def work() -> str:
        return "done"

    receipt = await work.dispatch()
    with caplog.at_level(logging.ERROR, logger="creche"):
        async with Worker(queue, lease=LEASE, hooks=[hook]):
            assert await receipt.wait(timeout=40) == "done"
    assert any("time.sleep(2.2 * LEASE)" in record.getMessage() for record in caplog.records)


async def test_a_loop_that_turns_is_reported_by_nobody(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    @queue.task("work")
    def work() -> str:
        time.sleep(2 * LEASE)  # in its thread it may
        return "done"

    receipt = await work.dispatch()
    worker = Worker(queue, lease=LEASE)
    with caplog.at_level(logging.ERROR, logger="creche"):
        async with worker:
            assert await receipt.wait(timeout=40) == "done"
            assert worker.health.live
    assert caplog.records == []


async def test_health_tells_other_threads_of_a_blocked_loop(queue: Queue) -> None:
    seen: list[tuple[bool, str]] = []

    @queue.task("block")
    async def block() -> None:
        watcher = threading.Thread(target=look)
        watcher.start()
        time.sleep(2 * LEASE)  # noqa: ASYNC251 - that is the offence
        watcher.join()

    def look() -> None:
        time.sleep(1.8 * LEASE)
        seen.append((worker.health.live, worker.health.reason))

    receipt = await block.dispatch()
    worker = Worker(queue, lease=LEASE)
    async with worker:
        await receipt.wait(timeout=40)
        assert worker.health.live
    (live, reason), *_ = seen
    assert not live
    assert "blocked" in reason


async def test_what_was_taken_over_all_the_same_is_lost_to_the_one_that_blocked(queue: Queue, database: Path) -> None:
    outcomes: list[str] = []

    @queue.task("block", max_attempts=5)
    async def block(job: Job) -> str:
        with sqlite3.connect(database) as connection:  # as if nobody had renewed it, and a rival had come
            connection.execute("UPDATE creche_jobs SET token = token + 1")
        connection.close()
        time.sleep(1.5 * LEASE)  # noqa: ASYNC251 - that is the offence
        try:
            await anyio.sleep(5)
        finally:
            outcomes.append(str(job.cancel_reason))
        return "too late"

    receipt = await block.dispatch()
    async with Worker(queue, lease=LEASE, grace=0):
        await until(lambda: bool(outcomes))
    assert outcomes[0] == "lease lost"
    assert (await queue.receipt(receipt.job_id)).status is not Status.COMPLETED


class FullPipe(logging.Handler):
    """What a log's reader that has stopped reading does to whoever writes, while all others wait for the lock."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "creche.application":
            time.sleep(3 * LEASE)


async def test_a_loop_that_is_blocked_by_the_log_itself_keeps_its_leases(queue: Queue, database: Path) -> None:
    begun = threading.Event()

    @queue.task("block", max_attempts=5)
    async def block(job: Job) -> int:
        begun.set()
        logging.getLogger("creche.application").error("a line that nobody reads")
        await anyio.lowlevel.checkpoint()
        return job.attempt

    pipe = FullPipe()
    logging.getLogger("creche").addHandler(pipe)
    try:
        receipt = await block.dispatch()
        async with Worker(queue, lease=LEASE):
            await anyio.to_thread.run_sync(begun.wait)
            with Bailiff(database) as rival:
                assert await receipt.wait(timeout=40) == 1
        assert rival.taken == []
    finally:
        logging.getLogger("creche").removeHandler(pipe)


class Unreachable(MemoryStorage):
    """A storage that another thread tries to reach for ever."""

    def twin(self) -> Storage:
        return Unreachable()

    async def __aenter__(self) -> Self:
        if threading.current_thread().name == "creche watchdog":
            await anyio.sleep_forever()
        return await super().__aenter__()


async def test_a_twin_that_does_not_open_is_given_up_when_the_worker_ends(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(Unreachable())

    @queue.task("block")
    async def block() -> None:
        time.sleep(LEASE)  # noqa: ASYNC251 - that is the offence

    async with queue:
        receipt = await block.dispatch()
        async with Worker(queue, lease=2 * LEASE):
            await receipt.wait(timeout=40)
    assert watchdogs() == 0
    assert [record.getMessage() for record in caplog.records if "watchdog" in record.getMessage()] == []


async def test_a_twin_that_does_not_open_is_tried_again_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(Unreachable())

    @queue.task("block")
    async def block(job: Job) -> None:
        if job.attempt == 1:  # which loses its lease, for nobody renews it
            time.sleep(3 * LEASE)  # noqa: ASYNC251 - that is the offence

    async with queue:
        receipt = await block.dispatch()
        async with Worker(queue, lease=LEASE, hooks=[lambda _: None]):
            await until(lambda: any("no connection in" in record.getMessage() for record in caplog.records))
            await receipt.wait(timeout=40)
    assert watchdogs() == 0
    assert len([record for record in caplog.records if "watchdog: " in record.getMessage()]) == 1


class Noting(MemoryStorage):
    """A twin that renews whatever it is asked for, and passes on what that was."""

    def __init__(self, renewed: SimpleQueue[set[Lease]]) -> None:
        super().__init__()
        self._renewed = renewed

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        self._renewed.put(set(leases))
        return Extension(held=frozenset(leases), lost=frozenset(), cancel_requested=frozenset())


class SlowToCommit(MemoryStorage):
    """A storage whose transactions are about to be committed until they may be."""

    def __init__(self) -> None:
        super().__init__()
        self.committing = anyio.Event()
        self.may_commit = anyio.Event()
        self.renewed: SimpleQueue[set[Lease]] = SimpleQueue()

    def twin(self) -> Storage:
        return Noting(self.renewed)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        async with super().transaction() as transaction:
            yield transaction
            self.committing.set()
            await self.may_commit.wait()


async def test_a_job_that_its_own_transaction_has_locked_keeps_nobody_from_being_renewed() -> None:
    queue = Queue(storage := SlowToCommit())
    renewed: list[set[UUID]] = []
    locked: list[Job] = []
    deadlines: list[float] = []

    @queue.task("write")
    async def write(job: Job) -> None:
        locked.append(job)
        async with job.transaction():
            job.set_result(None)

    @queue.task("block")
    async def block() -> None:
        await storage.committing.wait()
        # The loop stands still until the thread has renewed, and no longer: the twin's word prolongs nothing in memory.
        deadlines.append(locked[0].deadline)
        renewed.append({lease.job_id for lease in storage.renewed.get(timeout=8 * LEASE)})
        time.sleep(0.2)  # noqa: ASYNC251 - until the thread has drawn its conclusions
        deadlines.append(locked[0].deadline)
        storage.may_commit.set()

    async with queue, Worker(queue, lease=10 * LEASE):
        written, blocked = await write.dispatch(), await block.dispatch()
        await blocked.wait(timeout=40)
        await written.wait(timeout=40)
    assert renewed == [{blocked.job_id}]
    assert deadlines[0] == deadlines[1]  # a lock is no lease: where its connection is cut, others have the job


class SlowToSettle(MemoryStorage):
    """A storage that begins to end an attempt and, until it may go on, has its job locked."""

    def __init__(self) -> None:
        super().__init__()
        self.settling: anyio.Event = anyio.Event()
        self.may_settle = anyio.Event()
        self.renewed: SimpleQueue[set[Lease]] = SimpleQueue()

    def twin(self) -> Storage:
        return Noting(self.renewed)

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        self.settling.set()
        await self.may_settle.wait()
        return await super().settle(settlements, retention=retention, now=now)


async def test_a_job_that_its_settle_has_locked_keeps_nobody_from_being_renewed() -> None:
    queue = Queue(storage := SlowToSettle())
    renewed: list[set[UUID]] = []

    @queue.task("short")
    async def short() -> None: ...

    @queue.task("block")
    async def block() -> None:
        await storage.settling.wait()
        # The loop stands still until the thread has renewed what runs, and then what has ended.
        renewed.extend({lease.job_id for lease in storage.renewed.get(timeout=8 * LEASE)} for _ in range(2))
        storage.may_settle.set()

    async with queue, Worker(queue, lease=10 * LEASE):
        blocked, ended = await block.dispatch(), await short.dispatch()
        await blocked.wait(timeout=40)
        await ended.wait(timeout=40)
    assert renewed == [{blocked.job_id}, {ended.job_id}]


async def test_no_thread_is_left_when_the_worker_has_ended(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None: ...

    async with Worker(queue):
        await until(lambda: watchdogs() == 1)
    assert watchdogs() == 0


async def test_a_storage_that_no_thread_can_reach_is_not_watched() -> None:
    queue = Queue(open_storage("memory://"))

    @queue.task("work")
    async def work() -> None: ...

    async with queue, Worker(queue):
        await anyio.sleep(0.1)
        assert watchdogs() == 0


async def test_a_process_that_stands_still_as_a_whole_is_not_blamed_on_its_loop(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    @queue.task("still")
    async def still() -> None:
        ctypes.PyDLL(None).usleep(1_600_000)  # without letting go of the interpreter

    receipt = await still.dispatch()
    with caplog.at_level(logging.WARNING, logger="creche"):
        async with Worker(queue, lease=10):
            await receipt.wait(timeout=40)
            await until(lambda: bool(caplog.records))
    assert "stood still" in caplog.records[0].getMessage()
    assert not any("blocked" in record.getMessage() for record in caplog.records)
