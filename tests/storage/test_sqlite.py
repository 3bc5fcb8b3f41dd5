"""SQLite: the contract, and what rivals, a full disk, a fork or a cancellation can do to a file.

Time is handed in or, where a lock is waited for, bounded from above; nothing sleeps to be right.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from creche._ids import new_job_id
from creche._job import Event, JobFilter, Lease, NewJob, Retention, Settlement, Status
from creche.abc import Storage
from creche.errors import ConfigurationError, OptionInvalid, StatementRejected, StorageUnavailable, UsageError
from creche.storage import _sqlite3 as driver
from creche.storage import _sqlite_schema as schema
from creche.storage.sqlite import SQLiteStorage
from creche.testing import StorageConformance

pytestmark = pytest.mark.anyio

T0 = datetime(2030, 1, 1, tzinfo=UTC)
SOON = 5.0  # seconds: what takes longer hangs
FOREVER = Retention(completed=1e9, failed=1e9, cancelled=1e9)


class TestConformance(StorageConformance):
    @pytest.fixture
    async def unopened(self, tmp_path: Path) -> Storage:
        return SQLiteStorage(tmp_path / "jobs.db", synchronous="NORMAL")

    def open_another(self, storage: Storage) -> Storage:
        assert isinstance(storage, SQLiteStorage)
        return SQLiteStorage(storage._database.path, synchronous="NORMAL")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SQLiteStorage]:
    async with SQLiteStorage(path, busy_timeout=SOON) as storage:
        yield storage


def job(**options: Any) -> NewJob:
    return NewJob(**{"id": new_job_id(), "type": "work", "payload": b"{}", **options})


async def take(storage: SQLiteStorage, limit: int = 1) -> list[Lease]:
    reservation = await storage.reserve(["default"], limit, lease=60, worker="w", nonce=7, now=T0)
    return [reserved.lease for reserved in reservation.jobs]


def connections(storage: SQLiteStorage) -> driver.Open:
    opened = storage._database._open
    assert opened is not None
    return opened


async def pragma(storage: SQLiteStorage, name: str) -> object:
    return await anyio.to_thread.run_sync(lambda: connections(storage).writer.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def lock_held(path: Path) -> Iterator[None]:
    """Hold the file's write lock, as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def works(storage: SQLiteStorage) -> bool:
    """Whether a whole round works: no transaction was left open, no lock is held."""
    (insertion,) = await storage.insert([job()])
    assert not connections(storage).writer.in_transaction
    return insertion.job_id in await storage.find([insertion.job_id])


# --- durability, and what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2), ("EXTRA", 3)])
async def test_a_commit_waits_for_what_was_asked(path: Path, synchronous: driver.Synchronous, level: int) -> None:
    async with SQLiteStorage(path, synchronous=synchronous) as storage:
        assert await pragma(storage, "synchronous") == level


async def test_by_default_a_commit_waits_for_the_disk(storage: SQLiteStorage) -> None:
    assert await pragma(storage, "synchronous") == 2
    assert await pragma(storage, "journal_mode") == "wal"
    assert await pragma(storage, "foreign_keys") == 1


@pytest.mark.parametrize("path", [":memory:", "", "file::memory:?cache=shared", "file:jobs.db?mode=memory"])
def test_what_is_no_file_is_refused_and_the_memory_storage_named(path: str) -> None:
    with pytest.raises(OptionInvalid, match="MemoryStorage"):
        SQLiteStorage(path)


def test_a_level_of_durability_that_is_none_is_refused() -> None:
    with pytest.raises(OptionInvalid, match="NORMAL, FULL, EXTRA"):
        SQLiteStorage("jobs.db", synchronous="OFF")  # type: ignore[arg-type]  # that is the test


def test_a_path_is_taken_from_where_the_storage_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = SQLiteStorage("jobs.db")
    monkeypatch.chdir("/")
    assert repr(storage) == f"<SQLiteStorage {tmp_path / 'jobs.db'}>"


@pytest.mark.parametrize("name", ["with space.db", "a?mode=memory.db", "100%41.db", "käse#1.db"])
async def test_a_path_is_no_url(tmp_path: Path, name: str) -> None:
    async with SQLiteStorage(tmp_path / name) as storage:
        assert await works(storage)
    assert [entry.name async for entry in anyio.Path(tmp_path).iterdir()] == [name]


async def test_an_sqlite_that_is_too_old_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigurationError, match=r"3\.37\.0 is needed"):
        async with SQLiteStorage(path):
            pytest.fail("opened")


async def test_a_storage_that_is_not_open_says_so(path: Path) -> None:
    storage = SQLiteStorage(path)
    with pytest.raises(UsageError, match="async with storage"):
        await storage.insert([job()])
    async with storage:
        with pytest.raises(UsageError, match="open already"):
            await storage.__aenter__()
        assert await works(storage)
    with pytest.raises(UsageError, match="async with storage"):
        await storage.stats()
    async with storage:
        assert len(await storage.list(JobFilter(), 10)) == 1


async def test_closing_lets_a_write_finish_and_turns_away_what_still_waits(path: Path) -> None:
    storage = SQLiteStorage(path)
    begun, go_on = threading.Event(), threading.Event()
    refused: list[str] = []

    def work(connection: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait(SOON)
        connection.execute("INSERT INTO creche_migrations VALUES (9999, 'test', 0)")

    async def insert() -> None:
        try:
            await storage.insert([job()])
        except UsageError as error:
            refused.append(str(error))

    async with anyio.create_task_group() as tasks, storage:
        tasks.start_soon(storage._database.write, work)
        await anyio.to_thread.run_sync(begun.wait, SOON)
        tasks.start_soon(insert)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert refused in ([], ["the storage was closed before this call had its turn"])
    async with storage:
        assert (await storage._database.read(schema.version)) == 9_999


async def test_closing_leaves_one_file_and_nothing_to_collect(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.insert([job()])
    del storage
    gc.collect()
    assert [entry.name async for entry in anyio.Path(path.parent).iterdir()] == ["jobs.db"]


# --- errors -----------------------------------------------------------------------------------------


async def test_a_folder_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match=r"nowhere/jobs\.db: it can't be opened: its folder must exist"):
        async with SQLiteStorage(tmp_path / "nowhere" / "jobs.db"):
            pytest.fail("opened")


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="it can't be opened"):
        await SQLiteStorage(tmp_path).migrate()


async def test_a_file_that_is_no_database_is_not_touched(path: Path) -> None:
    content = b"Dear diary, " * 1_000
    await anyio.Path(path).write_bytes(content)
    with pytest.raises(StorageUnavailable, match="not an SQLite database"):
        async with SQLiteStorage(path):
            pytest.fail("opened")
    assert await anyio.Path(path).read_bytes() == content


async def test_a_file_that_may_not_be_written_is_unavailable(storage: SQLiteStorage) -> None:
    connections(storage).writer.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageUnavailable, match="may not write"):
        await storage.insert([job()])
    connections(storage).writer.execute("PRAGMA query_only = OFF")
    assert await works(storage)


async def test_a_statement_that_can_never_work_is_rejected(storage: SQLiteStorage) -> None:
    with pytest.raises(StatementRejected, match="json_valid"):
        await storage.insert([job(payload=b"no JSON")])
    with pytest.raises(StatementRejected, match="can't decode"):
        await storage.insert([job(payload=b'"\xff"')])
    with pytest.raises(StatementRejected, match="surrogates not allowed"):
        await storage.reserve(["default"], 1, lease=1, worker="\ud800", nonce=1)
    assert await works(storage)


async def test_a_batch_with_one_bad_job_writes_none(storage: SQLiteStorage) -> None:
    with pytest.raises(StatementRejected):
        await storage.insert([job(), job(payload=b"no JSON"), job()])
    assert await storage.list(JobFilter(), 10) == []


async def test_on_a_full_file_writing_fails_and_reading_works(storage: SQLiteStorage) -> None:
    (before,) = await storage.insert([job()])
    pages = await pragma(storage, "page_count")
    await pragma(storage, f"max_page_count = {pages}")
    with pytest.raises(StorageUnavailable, match="no room left"):
        await storage.insert([job(payload=b'"' + b"x" * 100_000 + b'"')])
    assert set(await storage.find([before.job_id])) == {before.job_id}
    assert len(await storage.stats()) == 1
    await pragma(storage, "max_page_count = 1000000")
    assert await works(storage)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_on_a_full_disk_nothing_is_lost_and_work_goes_on_when_there_is_room(small_disk: Path) -> None:
    async with SQLiteStorage(small_disk / "jobs.db") as storage:
        written = 0

        async def fill() -> None:
            nonlocal written
            while True:
                await storage.insert([job(payload=b'"' + b"x" * 50_000 + b'"')])
                written += 1

        with pytest.raises(StorageUnavailable, match=r"no room left|failed to read or write"):
            await fill()
        assert written
        assert len(await storage.list(JobFilter(), 1_000)) == written
        await anyio.run_process(["mount", "-o", "remount,size=8m", str(small_disk)])
        assert await works(storage)
        assert len(await storage.list(JobFilter(), 1_000)) == written + 1


# --- locks ------------------------------------------------------------------------------------------


async def test_a_lock_that_another_process_holds_too_long_is_unavailable(path: Path) -> None:
    async with SQLiteStorage(path, busy_timeout=0.05) as storage:
        with lock_held(path):
            with pytest.raises(StorageUnavailable, match="longer than busy_timeout"):
                await storage.insert([job()])
            assert await storage.list(JobFilter(), 10) == []  # readers do not wait for writers
        assert await works(storage)


async def test_a_lock_that_is_given_back_in_time_is_waited_for(storage: SQLiteStorage, path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        with lock_held(path):
            tasks.start_soon(storage.insert, [job()])
            await anyio.sleep(0.15)
    assert len(await storage.list(JobFilter(), 10)) == 1


async def test_opening_needs_no_lock_once_the_schema_is_there(storage: SQLiteStorage, path: Path) -> None:
    with lock_held(path):
        async with SQLiteStorage(path, busy_timeout=0):
            pass


async def test_a_transaction_whose_rollback_failed_is_rolled_back_before_the_next(storage: SQLiteStorage) -> None:
    connections(storage).writer.execute("BEGIN IMMEDIATE")
    assert await works(storage)


# --- cancellation -----------------------------------------------------------------------------------


async def test_a_write_that_waits_for_the_lock_gives_up_when_it_is_cancelled(path: Path) -> None:
    async with SQLiteStorage(path, busy_timeout=600) as storage:
        with lock_held(path):
            begun = time.monotonic()
            with anyio.move_on_after(0.05) as scope:
                await storage.insert([job()])
            assert scope.cancelled_caught
            assert time.monotonic() - begun < SOON
        assert await storage.list(JobFilter(), 10) == []
        assert await works(storage)


async def test_a_write_under_way_is_finished_when_it_is_cancelled(storage: SQLiteStorage) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO creche_migrations VALUES (9999, 'test', 0)")
        begun.set()
        go_on.wait(SOON)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(storage._database.write, work)
        await anyio.to_thread.run_sync(begun.wait, SOON)
        tasks.cancel_scope.cancel()
        go_on.set()
    count = await storage._database.read(
        lambda connection: connection.execute("SELECT count(*) FROM creche_migrations WHERE version = 9999").fetchone()
    )
    assert count[0] == 1
    assert await works(storage)


async def test_a_read_is_interrupted_when_it_is_cancelled(storage: SQLiteStorage) -> None:
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    for _ in range(3):
        with anyio.move_on_after(0.05) as scope:
            await storage._database.read(lambda connection: connection.execute(endless).fetchone())
        assert scope.cancelled_caught
        with anyio.fail_after(SOON):
            assert await works(storage)


async def test_a_read_does_not_wait_for_a_write(storage: SQLiteStorage) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait(SOON)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(storage._database.write, work)
        await anyio.to_thread.run_sync(begun.wait, SOON)
        with anyio.fail_after(SOON / 2):
            assert await storage.stats() == []
        go_on.set()


async def test_whatever_is_cancelled_at_whatever_moment_the_next_one_works(storage: SQLiteStorage) -> None:
    await storage.insert([job() for _ in range(50)])
    for microseconds in range(0, 4_000, 100):
        with anyio.move_on_after(microseconds / 1e6):
            await storage.insert([job()])
            await storage.find([lease.job_id for lease in await take(storage)])
    assert await works(storage)


# --- leases -----------------------------------------------------------------------------------------


async def test_a_stale_lease_is_lost_beside_the_current_one_of_the_same_job(storage: SQLiteStorage) -> None:
    await storage.insert([job()], now=T0)
    (stale,) = await take(storage)
    await storage.settle([Settlement(lease=stale, event=Event.RELEASE)], now=T0)
    (current,) = await take(storage)
    batch = [Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in (stale, current)]
    settled = await storage.settle(batch, now=T0)
    assert settled.accepted == frozenset({current})
    assert settled.lost == frozenset({stale})


async def test_a_batch_larger_than_one_value_of_sqlite_may_be_is_cut(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("creche.storage._sqlite_rows._CHUNK", 1_000)
    jobs = [job(payload=b'"' + b"x" * 300 + b'"', idempotency_key=str(number % 40)) for number in range(50)]
    answers = await storage.insert(jobs)
    assert [answer.inserted for answer in answers] == [True] * 40 + [False] * 10
    leases = await take(storage, 100)
    settlements = [Settlement(lease=lease, event=Event.SUCCEED, result=b'"' + b"y" * 300 + b'"') for lease in leases]
    assert len((await storage.settle(settlements)).accepted) == 40


async def test_promoting_begins_with_the_queue_that_has_waited_longest(storage: SQLiteStorage) -> None:
    for second, queue in enumerate("cab"):
        await storage.insert([job(queue_name=queue, delay=1 + second) for _ in range(2)], now=T0)
    later = T0.replace(minute=1)
    assert (await storage.maintain(3, retention=FOREVER, now=later)).promoted == 3
    ready = {stats.queue_name: stats.counts.get(Status.PENDING, 0) for stats in await storage.stats(now=later)}
    assert ready == {"a": 1, "b": 0, "c": 2}


# --- wakes ------------------------------------------------------------------------------------------


async def test_a_commit_of_another_process_wakes_and_says_any(storage: SQLiteStorage, path: Path) -> None:
    async with SQLiteStorage(path) as other, storage.listen(["default"]) as listener:
        await other.insert([job(queue_name="elsewhere")])
        with anyio.fail_after(SOON):
            assert await listener.wait() == frozenset()


async def test_what_another_process_committed_is_noticed_by_a_write_too(storage: SQLiteStorage, path: Path) -> None:
    async with SQLiteStorage(path) as other, storage.listen(["default"]) as listener:
        await other.insert([job()])
        await take(storage)
        assert listener._rung.is_set()  # type: ignore[attr-defined]  # a look at the room behind the protocol


async def test_own_commits_and_empty_reserves_of_others_wake_nobody(storage: SQLiteStorage, path: Path) -> None:
    await storage.insert([job()])
    async with SQLiteStorage(path) as other, storage.listen(["default"]) as listener:
        (lease,) = await take(storage)
        await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")])
        assert await take(other) == []
        with anyio.move_on_after(0.1) as scope:
            await listener.wait()
        assert scope.cancelled_caught


async def test_a_listener_that_nobody_waits_on_is_still_told(storage: SQLiteStorage) -> None:
    async with storage.listen(["a", "b"]) as listener:
        await storage.insert([job(queue_name="a"), job(queue_name="c")])
        await storage.insert([job(queue_name="b", delay=1)])
        await storage.insert([job(queue_name="a", delay=600)])
        assert await listener.wait() == {"a", "b"}


async def test_looking_for_commits_does_not_queue_behind_a_write(storage: SQLiteStorage, path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait(SOON)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(storage._database.write, work)
        await anyio.to_thread.run_sync(begun.wait, SOON)
        with anyio.fail_after(SOON / 2):
            await storage._look()
        go_on.set()


# --- threads, loops and processes -------------------------------------------------------------------


def test_the_library_may_be_used_from_any_thread() -> None:
    assert sqlite3.threadsafety == 3, "connections move from thread to thread: SQLite must have been built for that"


async def test_many_tasks_at_once_get_what_each_asked_for(storage: SQLiteStorage) -> None:
    async def round_trip(number: int) -> None:
        payload = b"%d" % number
        (insertion,) = await storage.insert([job(payload=payload, queue_name=str(number))])
        reservation = await storage.reserve([str(number)], 5, lease=60, worker="w", nonce=number)
        (reserved,) = reservation.jobs
        assert (reserved.id, reserved.payload) == (insertion.job_id, payload)
        settlement = Settlement(lease=reserved.lease, event=Event.SUCCEED, result=payload)
        assert (await storage.settle([settlement])).accepted == {reserved.lease}
        assert (await storage.find([reserved.id]))[reserved.id].result == payload

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(round_trip, number)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_under_trio_there_is_no_asyncio(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("an asyncio loop was made")

    monkeypatch.setattr(asyncio, "new_event_loop", refuse)
    monkeypatch.setattr(asyncio.BaseEventLoop, "__init__", refuse)
    async with SQLiteStorage(path) as storage, storage.listen(["default"]) as listener:
        assert await works(storage)
        assert await listener.wait() == {"default"}
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()


FORK = """
import gc, os, sys, anyio
from creche.errors import UsageError
from creche.storage.sqlite import SQLiteStorage

async def main():
    async with SQLiteStorage(sys.argv[1]) as storage:
        global child
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print(len(await storage.stats()))
            return
        for operation in (storage.stats(), storage.cancel([__import__("uuid").uuid4()]), storage._look()):
            try:
                await operation
            except UsageError as error:
                assert "fork" in str(error)
            else:
                os._exit(1)
        opened = id(storage._database._open.writer)
        await storage.__aexit__(None, None, None)
        gc.collect()
        from creche.storage import _sqlite3
        os._exit(0 if [id(it.writer) for it in _sqlite3._INHERITED] == [opened] else 2)

anyio.run(main)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_is_told_and_leaves_the_connection_alone(path: Path) -> None:
    done = subprocess.run(
        # The warning that forking beside threads is unwise is right, and what this test is about.
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORK, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


WORKER = """
import sys, anyio
from creche._ids import new_nonce
from creche._job import Event, Settlement
from creche.storage.sqlite import SQLiteStorage

async def main():
    async with SQLiteStorage(sys.argv[1], synchronous="NORMAL") as storage:
        sys.stdin.readline()
        while jobs := (await storage.reserve(["default"], 7, lease=60, worker="w", nonce=new_nonce())).jobs:
            for job in jobs:
                print(job.id)
            await storage.extend([job.lease for job in jobs], 90)
            settlements = [Settlement(lease=job.lease, event=Event.SUCCEED, result=job.payload) for job in jobs]
            assert not (await storage.settle(settlements)).lost

anyio.run(main, backend=sys.argv[2])
"""


async def test_two_processes_share_the_work_and_no_job_runs_twice(storage: SQLiteStorage, path: Path) -> None:
    jobs = [job(payload=b"%d" % number) for number in range(400)]
    await storage.insert(jobs)

    def run() -> list[list[str]]:
        workers = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", WORKER, str(path), backend],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for backend in ("asyncio", "trio")
        ]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        answers = [worker.communicate(timeout=60) for worker in workers]
        assert [error for _, error in answers] == ["", ""]
        return [out.split() for out, _ in answers]

    ran = await anyio.to_thread.run_sync(run)
    assert sorted(ran[0] + ran[1]) == [str(job.id) for job in jobs]
    found = await storage.find([job.id for job in jobs])
    assert {record.status for record in found.values()} == {Status.COMPLETED}
    assert {record.attempts for record in found.values()} == {1}
