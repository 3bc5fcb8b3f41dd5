"""A handler's transaction on SQLite: its writes and the end of its attempt are committed together, or not at all."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from creche._ids import new_job_id
from creche._job import Event, Failure, FollowUp, JobFilter, Lease, NewJob, On, Settlement, Status
from creche.errors import StatementRejected, StorageUnavailable, UsageError
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

T0 = datetime(2030, 1, 1, tzinfo=UTC)
SOON = 5.0  # seconds: what takes longer hangs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SQLiteStorage]:
    async with SQLiteStorage(path, busy_timeout=SOON) as storage:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, note TEXT)")
        yield storage


def job(**options: Any) -> NewJob:
    return NewJob(**{"id": new_job_id(), "type": "work", "payload": b"{}", **options})


async def hold(storage: SQLiteStorage, **options: Any) -> Lease:
    await storage.insert([job(**options)], now=T0)
    (reserved,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=7, now=T0)).jobs
    return reserved.lease


def success(lease: Lease, result: bytes = b"1") -> Settlement:
    return Settlement(lease=lease, event=Event.SUCCEED, result=result)


def orders(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT number, note FROM orders ORDER BY number").fetchall()


async def status(storage: SQLiteStorage, lease: Lease) -> Status:
    return (await storage.find([lease.job_id]))[lease.job_id].status


async def works(storage: SQLiteStorage) -> bool:
    """Whether nothing is locked."""
    with anyio.fail_after(SOON):
        (insertion,) = await storage.insert([job()])
    return insertion.inserted


# --- all or nothing ---------------------------------------------------------------------------------


async def test_writes_and_the_end_are_committed_together(storage: SQLiteStorage, path: Path) -> None:
    callback = FollowUp(id=new_job_id(), type="notify", head="[", tail="]")
    lease = await hold(storage, callbacks=(callback,))
    async with storage.transaction() as shared:
        await shared.connection.execute("INSERT INTO orders VALUES (?, ?)", (1, "é😀"))
        assert await shared.settle(success(lease, b'"done"'), now=T0)
        assert orders(path) == []
        assert await status(storage, lease) is Status.PROCESSING
    assert orders(path) == [(1, "é😀")]
    assert await status(storage, lease) is Status.COMPLETED
    assert (await storage.find([callback.id]))[callback.id].payload == b'["done"]'


async def test_an_exception_leaves_nothing(storage: SQLiteStorage, path: Path) -> None:
    callback = FollowUp(id=new_job_id(), type="notify", head="1", on=On.ALWAYS)
    lease = await hold(storage, callbacks=(callback,))

    async def transact() -> None:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
            assert await shared.settle(success(lease))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await transact()
    assert orders(path) == []
    assert await status(storage, lease) is Status.PROCESSING
    assert await storage.find([callback.id]) == {}
    assert (await storage.settle([success(lease)])).accepted == {lease}
    assert await works(storage)


async def test_a_cancellation_leaves_nothing(storage: SQLiteStorage, path: Path) -> None:
    lease = await hold(storage)
    with anyio.CancelScope() as scope:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
            assert await shared.settle(success(lease))
            scope.cancel()
    assert scope.cancelled_caught
    assert orders(path) == []
    assert await status(storage, lease) is Status.PROCESSING
    assert await works(storage)


async def test_whatever_moment_it_is_cancelled_at_the_two_stay_together(storage: SQLiteStorage, path: Path) -> None:
    seen = set[bool]()
    for number in range(40):
        lease = await hold(storage)
        with anyio.move_on_after(number / 4_000):
            async with storage.transaction() as shared:
                await shared.connection.execute("INSERT INTO orders VALUES (?, NULL)", [number])
                assert await shared.settle(success(lease))
        done = await status(storage, lease) is Status.COMPLETED
        assert ((number, None) in orders(path)) is done
        seen.add(done)
        await storage.settle([success(lease)])
    assert seen == {False, True}


async def test_a_lost_lease_is_told_and_nothing_is_written_for_it(storage: SQLiteStorage, path: Path) -> None:
    lease = await hold(storage)
    await storage.settle([Settlement(lease=lease, event=Event.RELEASE)], now=T0)
    (again,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=8, now=T0)).jobs

    async def transact() -> None:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
            assert not await shared.settle(success(lease))
            raise LookupError

    with pytest.raises(LookupError):
        await transact()
    assert orders(path) == []
    assert (await storage.settle([success(again.lease)])).accepted == {again.lease}


async def test_an_attempt_that_was_ended_before_is_lost_here_so_that_its_writes_are_not_made_twice(
    storage: SQLiteStorage,
) -> None:
    lease = await hold(storage)
    await storage.settle([success(lease)])
    async with storage.transaction() as shared:
        assert not await shared.settle(success(lease))


@pytest.mark.parametrize("event", [Event.FAIL, Event.RETRY, Event.SNOOZE])
async def test_every_end_can_be_written(storage: SQLiteStorage, event: Event) -> None:
    lease = await hold(storage)
    error = None if event is Event.SNOOZE else Failure(type="E", message="m")
    async with storage.transaction() as shared:
        assert await shared.settle(Settlement(lease=lease, event=event, error=error, delay=5 if not error else 0))
    assert await status(storage, lease) is {Event.FAIL: Status.FAILED, Event.RETRY: Status.PENDING}.get(
        event, Status.SCHEDULED
    )
    assert len(await storage.dead_letters(5)) == (event is Event.FAIL)


async def test_a_transaction_in_which_nothing_is_done_takes_no_lock(storage: SQLiteStorage, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        async with storage.transaction():
            pass
    assert await works(storage)


async def test_jobs_that_are_dispatched_through_its_connection_are_committed_with_it(
    storage: SQLiteStorage, path: Path
) -> None:
    lease = await hold(storage)
    new = job(payload='{"it\'s": "é😀"}'.encode())

    async def fail() -> None:
        async with storage.transaction() as shared:
            await storage.insert([new], connection=shared.connection)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await storage.find([new.id]) == {}
    async with SQLiteStorage(path) as other:
        async with storage.transaction() as shared:
            (insertion,) = await storage.insert([new], connection=shared.connection)
            assert insertion.inserted
            assert await other.find([new.id]) == {}
            assert await shared.settle(success(lease))
        assert (await other.find([new.id]))[new.id].payload == new.payload


async def test_who_watches_a_job_hears_of_its_end_after_the_commit(storage: SQLiteStorage) -> None:
    lease = await hold(storage)
    async with storage.listen(["mine"]) as listener:
        await storage.watch([lease.job_id], watcher="mine")
        async with storage.transaction() as shared:
            assert await shared.settle(success(lease))
            await anyio.sleep(0.05)
            assert not listener._rung.is_set()  # type: ignore[attr-defined]  # a look behind the protocol
        with anyio.fail_after(SOON):
            assert await listener.wait() in ({"mine"}, set())


# --- what the user's statements are answered --------------------------------------------------------


async def test_a_cursor_answers_as_those_of_drivers_do(storage: SQLiteStorage) -> None:
    async with storage.transaction() as shared:
        execute = shared.connection.execute
        written = await execute("INSERT INTO orders (note) VALUES ('a'), ('b'), ('c')")
        assert (written.rowcount, written.lastrowid, written.description) == (3, 3, None)
        assert await written.fetchone() is None
        assert await written.fetchall() == []
        more = await shared.connection.executemany("INSERT INTO orders VALUES (?, ?)", [(7, "x"), (8, "y")])
        assert more.rowcount == 2
        found = await execute("SELECT number, note FROM orders WHERE number > :least ORDER BY 1", {"least": 1})
        assert [column[0] for column in found.description or ()] == ["number", "note"]
        assert await found.fetchone() == (2, "b")
        assert type(await found.fetchone()) is tuple
        assert [row async for row in found] == [(7, "x"), (8, "y")]
        returned = await execute("DELETE FROM orders RETURNING number")
        assert returned.rowcount == 5
        assert len(await returned.fetchall()) == 5


async def test_errors_of_its_statements_are_the_drivers_and_it_goes_on(storage: SQLiteStorage, path: Path) -> None:
    async with storage.transaction() as shared:
        await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await shared.connection.execute("SELECT * FROM elsewhere")
        with pytest.raises(sqlite3.ProgrammingError):
            await shared.connection.execute("SELECT ?", (1, 2))
        await shared.connection.execute("INSERT INTO orders VALUES (2, NULL)")
    assert orders(path) == [(1, None), (2, None)]


async def test_an_end_that_can_not_be_written_is_rejected_as_elsewhere(storage: SQLiteStorage) -> None:
    lease = await hold(storage)
    with pytest.raises(StatementRejected, match="json_valid"):
        async with storage.transaction() as shared:
            await shared.settle(success(lease, b"no JSON"))
    assert await status(storage, lease) is Status.PROCESSING


async def test_savepoints_are_the_users_own(storage: SQLiteStorage, path: Path) -> None:
    async with storage.transaction() as shared:
        execute = shared.connection.execute
        await execute("INSERT INTO orders VALUES (1, NULL)")
        await execute("SAVEPOINT mine")
        await execute("INSERT INTO orders VALUES (2, NULL)")
        await execute("ROLLBACK TO mine")
        await execute("RELEASE mine")
    assert orders(path) == [(1, None)]


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_its_user_ended_is_over(storage: SQLiteStorage, word: str) -> None:
    lease = await hold(storage)

    async def transact() -> None:
        async with storage.transaction() as shared:
            with pytest.raises(UsageError, match="it was committed or rolled back"):
                await shared.connection.execute(word)
            with pytest.raises(UsageError, match="it was committed or rolled back"):
                await shared.connection.execute("INSERT INTO orders VALUES (2, NULL)")
            await shared.settle(success(lease))

    with pytest.raises(UsageError, match="it was committed or rolled back by a statement in it"):
        await transact()
    assert await status(storage, lease) is Status.PROCESSING
    assert await works(storage)


async def test_a_transaction_that_sqlite_rolled_back_is_over(storage: SQLiteStorage, path: Path) -> None:
    lease = await hold(storage)

    async def transact() -> None:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
            with pytest.raises(sqlite3.IntegrityError):
                await shared.connection.execute("INSERT OR ROLLBACK INTO orders VALUES (1, NULL)")
            await shared.settle(success(lease))

    with pytest.raises(UsageError, match="SQLite rolled it back"):
        await transact()
    assert orders(path) == []
    assert await status(storage, lease) is Status.PROCESSING
    assert await works(storage)


async def test_leaving_a_transaction_that_is_over_is_an_error_too(storage: SQLiteStorage) -> None:

    async def transact() -> None:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
            with pytest.raises(sqlite3.IntegrityError):
                await shared.connection.execute("INSERT OR ROLLBACK INTO orders VALUES (1, NULL)")

    with pytest.raises(UsageError, match="SQLite rolled it back"):
        await transact()


async def test_its_connection_is_of_no_use_after_the_block(storage: SQLiteStorage) -> None:
    async with storage.transaction() as shared:
        await shared.connection.execute("SELECT 1")
    with pytest.raises(UsageError, match="its block was left"):
        await shared.connection.execute("SELECT 1")
    with pytest.raises(UsageError, match="its block was left"):
        await shared.settle(success(Lease(job_id=new_job_id(), token=1, nonce=1)))


async def test_a_storage_that_is_not_open_has_no_transactions(path: Path) -> None:
    with pytest.raises(UsageError, match="async with storage"):
        async with SQLiteStorage(path).transaction():
            pytest.fail("begun")


# --- the one writer ---------------------------------------------------------------------------------


async def test_others_writes_wait_until_it_is_over_and_reads_do_not(storage: SQLiteStorage, path: Path) -> None:
    lease = await hold(storage)
    order: list[str] = []

    async def extend() -> None:
        assert (await storage.extend([lease], 60)).lost == {lease}
        order.append("extended")

    async with SQLiteStorage(path) as other, anyio.create_task_group() as tasks:

        async def insert() -> None:
            await other.insert([job()])
            order.append("inserted")

        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, NULL)")
            tasks.start_soon(extend)
            tasks.start_soon(insert)
            await anyio.sleep(0.1)
            assert len(await storage.list(JobFilter(), 5)) == 1
            assert await shared.settle(success(lease))
            order.append("settled")
    assert order[0] == "settled"
    assert sorted(order) == ["extended", "inserted", "settled"]


async def test_an_unwritten_transaction_holds_nobody_up(storage: SQLiteStorage) -> None:
    async with storage.transaction() as shared:
        assert await works(storage)
        await shared.connection.execute("SELECT 1")
    assert await works(storage)


async def test_writing_past_ones_own_transaction_fails_instead_of_waiting_for_ever(path: Path) -> None:
    async with SQLiteStorage(path, busy_timeout=0.05) as storage:
        async with storage.transaction() as shared:
            await shared.connection.execute("SELECT 1")
            with pytest.raises(StorageUnavailable, match="a handler's transaction in this process"):
                await storage.insert([job()])
        assert await works(storage)


async def test_a_lock_that_another_process_holds_too_long_is_unavailable_and_nobody_is_kept_waiting(path: Path) -> None:
    async with SQLiteStorage(path, busy_timeout=0.05) as storage:
        with closing(sqlite3.connect(path, isolation_level=None)) as rival:
            async with storage.transaction() as shared:
                rival.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageUnavailable, match="longer than busy_timeout"):
                    await shared.connection.execute("SELECT 1")
                rival.execute("ROLLBACK")
                assert await works(storage)
                await shared.connection.execute("SELECT 1")  # now it begins


async def test_those_who_wait_for_it_take_no_threads(storage: SQLiteStorage, path: Path) -> None:
    async def transact(number: int) -> None:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (?, NULL)", [number])

    async with anyio.create_task_group() as tasks, storage.transaction() as shared:
        await shared.connection.execute("SELECT 1")
        before = threading.active_count()
        for number in range(30):
            tasks.start_soon(transact, number)
            tasks.start_soon(storage.insert, [job()])
        await anyio.wait_all_tasks_blocked()
        assert threading.active_count() <= before + 1
    assert len(orders(path)) == 30
    assert len(await storage.list(JobFilter(), 50)) == 30


async def test_many_transactions_and_writes_take_turns(storage: SQLiteStorage, path: Path) -> None:
    async def settle(number: int) -> None:
        await storage.insert([job(queue_name=str(number))])
        (reserved,) = (await storage.reserve([str(number)], 1, lease=60, worker="w", nonce=7)).jobs
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (?, NULL)", [number])
            assert (await storage.find([reserved.id]))[reserved.id].status is Status.PROCESSING
            assert await shared.settle(success(reserved.lease))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(settle, number)
    assert len(orders(path)) == 30


async def test_one_transaction_may_be_used_by_several_tasks(storage: SQLiteStorage, path: Path) -> None:
    async with storage.transaction() as shared, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(shared.connection.execute, "INSERT INTO orders VALUES (?, NULL)", [number])
    assert len(orders(path)) == 20


async def test_a_statement_that_takes_for_ever_is_interrupted_when_it_is_cancelled(storage: SQLiteStorage) -> None:
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    begun = time.monotonic()
    with anyio.move_on_after(0.05) as scope:
        async with storage.transaction() as shared:
            await shared.connection.execute(endless)
    assert scope.cancelled_caught
    assert time.monotonic() - begun < SOON
    assert await works(storage)


async def test_a_write_that_was_interrupted_can_not_be_half_of_a_transaction(
    storage: SQLiteStorage, path: Path
) -> None:
    endless = """
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000)
        INSERT INTO orders (note) SELECT i FROM n
    """

    async def transact() -> None:
        async with storage.transaction() as shared:
            await shared.connection.execute("INSERT INTO orders VALUES (1, 'first')")
            with anyio.move_on_after(0.05) as scope:
                await shared.connection.execute(endless)
            assert scope.cancelled_caught
            await shared.connection.execute("INSERT INTO orders VALUES (2, 'second')")

    with pytest.raises(UsageError, match="SQLite rolled it back"):
        await transact()
    assert orders(path) == []


async def test_a_full_file_is_the_users_error_and_the_end_of_the_transaction(
    storage: SQLiteStorage, path: Path
) -> None:
    lease = await hold(storage)

    async def transact() -> None:
        async with storage.transaction() as shared:
            pages = await (await shared.connection.execute("PRAGMA page_count")).fetchone()
            assert pages is not None
            await shared.connection.execute(f"PRAGMA max_page_count = {pages[0]}")
            await shared.connection.execute("INSERT INTO orders VALUES (1, ?)", ["x" * 100_000])

    with pytest.raises(sqlite3.OperationalError, match="full"):
        await transact()
    assert await status(storage, lease) is Status.PROCESSING
    assert await works(storage)
