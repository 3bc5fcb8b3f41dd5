"""A handler's own transaction on MySQL and MariaDB: what it writes and how its attempt ends are one thing."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import anyio
import pytest
from asyncmy.errors import MySQLError, OperationalError, ProgrammingError

from creche._ids import new_job_id
from creche._job import Event, FollowUp, JobFilter, Lease, NewJob, Settlement, Status
from creche.errors import StorageUnavailable, UsageError
from creche.storage._mysql_session import TransactionConnection, with_parameters
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import connect_mysql
from databases import empty_database
from mysql_contract import Raw, Server

# ruff: noqa: PT012 - where the block's end is what raises, the block is what is tested

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[tuple[str, Raw]]:
    """A migrated database with a table of the application's."""
    with empty_database(server) as dsn, closing(connect_mysql(dsn)) as raw, raw.cursor() as cursor:
        anyio.run(MySQLStorage(dsn).migrate)
        cursor.execute(
            "CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(200), data LONGBLOB, UNIQUE (name))"
            " DEFAULT CHARACTER SET utf8mb4"
        )
        yield dsn, raw


@pytest.fixture
async def storage(database: tuple[str, Raw]) -> AsyncIterator[MySQLStorage]:
    dsn, raw = database
    with raw.cursor() as cursor:
        for table in ("creche_jobs", "creche_dead_letters", "creche_watches", "orders"):
            cursor.execute(f"DELETE FROM {table}")
    async with MySQLStorage(dsn, call_timeout=3, pool_size=2) as storage:
        yield storage


@pytest.fixture
def names(database: tuple[str, Raw]) -> Any:
    """Ask what stands in the application's table."""

    def names() -> set[str]:
        with database[1].cursor() as cursor:
            cursor.execute("SELECT name FROM orders")
            return {name for (name,) in cursor.fetchall()}

    return names


async def reserved(storage: MySQLStorage, **options: Any) -> Lease:
    await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}", **options)])
    reservation = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1)
    return reservation.jobs[0].lease


def success(lease: Lease) -> Settlement:
    return Settlement(lease=lease, event=Event.SUCCEED, result=b"1")


async def status(storage: MySQLStorage, lease: Lease) -> Status:
    return (await storage.find([lease.job_id]))[lease.job_id].status


# --- one thing --------------------------------------------------------------------------------------


async def test_a_commit_writes_the_order_the_end_and_what_follows(storage: MySQLStorage, names: Any) -> None:
    callback = FollowUp(id=new_job_id(), type="next", queue_name="after", head="<", tail=">")
    lease = await reserved(storage, callbacks=(callback,))
    await storage.watch([lease.job_id], watcher="me")
    async with storage.listen(["after"]) as after, storage.listen(["me"]) as me:
        async with storage.transaction() as transaction:
            cursor = await transaction.connection.execute("INSERT INTO orders (name) VALUES (%s)", ["one"])
            assert (cursor.rowcount, cursor.description) == (1, None)
            assert cursor.lastrowid
            assert await transaction.settle(success(lease))
            assert names() == set()
            assert await status(storage, lease) is Status.PROCESSING
        with anyio.fail_after(3):
            await after.wait()
            await me.wait()
    assert names() == {"one"}
    assert await status(storage, lease) is Status.COMPLETED
    (followed,) = await storage.list(JobFilter(queues=frozenset({"after"})), 9)
    assert (followed.id, followed.payload) == (callback.id, b"<1>")


async def test_an_exception_leaves_nothing(storage: MySQLStorage, names: Any) -> None:
    lease = await reserved(storage)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with storage.transaction() as transaction:
                await transaction.connection.execute("INSERT INTO orders (name) VALUES ('one')")
                await transaction.settle(success(lease))
                raise ZeroDivisionError
    assert names() == set()
    assert await status(storage, lease) is Status.PROCESSING


async def test_a_cancellation_leaves_nothing_and_drops_the_connection(storage: MySQLStorage, names: Any) -> None:
    lease = await reserved(storage)
    with anyio.move_on_after(0.2):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders (name) VALUES ('one')")
            await transaction.settle(success(lease))
            await anyio.sleep_forever()
    await storage.extend([lease], 60)  # waits until the server has noticed
    assert names() == set()
    assert await status(storage, lease) is Status.PROCESSING


async def test_a_dispatch_in_it_is_a_part_of_it(storage: MySQLStorage) -> None:
    lease = await reserved(storage)
    for leave in (True, False):
        new = NewJob(id=new_job_id(), type="t", payload="'ä\\".encode(), fingerprint=b"f" * 32)
        try:
            async with storage.transaction() as transaction:
                (answer,) = await storage.insert([new], connection=transaction.connection)
                assert answer.inserted
                assert await storage.find([new.id]) == {}
                assert await transaction.settle(success(lease))
                assert not leave or 1 // 0
        except ZeroDivisionError:
            assert await storage.find([new.id]) == {}
    assert (await storage.find([new.id]))[new.id].payload == new.payload


async def test_a_lost_lease_writes_nothing(storage: MySQLStorage, names: Any) -> None:
    lease = await reserved(storage)
    stale = Lease(job_id=lease.job_id, token=lease.token, nonce=7)
    with pytest.raises(LookupError):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders (name) VALUES ('one')")
            if not await transaction.settle(success(stale)):
                raise LookupError
    assert names() == set()


async def test_long_transactions_starve_no_renewal_and_wait_for_each_other(storage: MySQLStorage) -> None:
    lease = await reserved(storage)
    began = 0

    async def hold() -> None:
        nonlocal began
        async with storage.transaction() as transaction:
            began += 1
            await transaction.connection.execute("SELECT SLEEP(1.5)")

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(hold)
        await anyio.sleep(0.7)
        assert began == 2
        with anyio.fail_after(0.5):
            assert (await storage.extend([lease], 60)).held == {lease}
    assert began == 4


# --- errors -----------------------------------------------------------------------------------------


async def test_the_users_errors_are_the_drivers_and_the_transaction_goes_on(storage: MySQLStorage, names: Any) -> None:
    lease = await reserved(storage)
    async with storage.transaction() as transaction:
        connection = transaction.connection
        await connection.execute("INSERT INTO orders (name) VALUES ('one')")
        with pytest.raises(MySQLError, match="1062"):
            await connection.execute("INSERT INTO orders (name) VALUES ('one')")
        with pytest.raises(ProgrammingError):
            await connection.execute("NONSENSE")
        await connection.execute("INSERT INTO orders (name) VALUES ('two')")
        assert await transaction.settle(success(lease))
    assert names() == {"one", "two"}


async def test_a_lost_connection_is_the_drivers_error_too(
    storage: MySQLStorage, database: tuple[str, Raw], names: Any
) -> None:
    lease = await reserved(storage)
    with pytest.raises(OperationalError):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders (name) VALUES ('one')")
            cursor = await transaction.connection.execute("SELECT CONNECTION_ID()")
            with database[1].cursor() as killer:
                killer.execute(f"KILL {(await cursor.fetchone() or [0])[0]}")
            await transaction.connection.execute("SELECT 1")
    assert names() == set()
    assert await status(storage, lease) is Status.PROCESSING


async def test_a_commit_without_an_answer_is_an_unknown_outcome(
    storage: MySQLStorage, database: tuple[str, Raw]
) -> None:
    lease = await reserved(storage)
    with pytest.raises(StorageUnavailable):
        async with storage.transaction() as transaction:
            cursor = await transaction.connection.execute("SELECT CONNECTION_ID()")
            number = (await cursor.fetchone() or [0])[0]
            await transaction.settle(success(lease))
            with database[1].cursor() as killer:
                killer.execute(f"KILL {number}")
    await storage.extend([lease], 60)


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "CREATE TABLE IF NOT EXISTS other (id INT)"])
async def test_whoever_ends_the_transaction_is_told_and_nothing_is_settled_outside(
    storage: MySQLStorage, statement: str
) -> None:
    lease = await reserved(storage)
    with pytest.raises(UsageError, match="COMMIT"):
        async with storage.transaction() as transaction:
            with pytest.raises(UsageError):
                await transaction.connection.execute(statement)
            await transaction.settle(success(lease))
    with pytest.raises(UsageError, match="COMMIT"):
        async with storage.transaction() as transaction:
            with pytest.raises(UsageError):
                await transaction.connection.execute(statement)
    assert await status(storage, lease) is Status.PROCESSING


async def test_a_deadlock_that_is_swallowed_settles_nothing(
    storage: MySQLStorage, database: tuple[str, Raw], names: Any
) -> None:
    dsn, raw = database
    with raw.cursor() as cursor:
        cursor.execute("INSERT INTO orders (id, name) VALUES (1, 'a'), (2, 'b')")
    lease = await reserved(storage)

    def rival() -> None:
        with closing(connect_mysql(dsn, autocommit=False)) as other, other.cursor() as cursor:
            # With more to undo, it is not the one that is undone.
            cursor.executemany("INSERT INTO orders (name) VALUES (%s)", [[f"weight {n}"] for n in range(50)])
            cursor.execute("UPDATE orders SET data = 'x' WHERE id = 2")
            ready.set()
            cursor.execute("UPDATE orders SET data = 'x' WHERE id = 1")
            other.rollback()

    ready = threading.Event()

    async def meet(connection: TransactionConnection) -> None:
        await connection.execute("UPDATE orders SET data = 'y' WHERE id = 1")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, rival)
            await anyio.to_thread.run_sync(ready.wait)
            await anyio.sleep(0.2)
            with pytest.raises(MySQLError, match="1213"):
                await connection.execute("UPDATE orders SET data = 'y' WHERE id = 2")

    with pytest.raises(StorageUnavailable, match="undone"):
        async with storage.transaction() as transaction:
            await meet(transaction.connection)
            await transaction.settle(success(lease))
    assert await status(storage, lease) is Status.PROCESSING
    assert names() == {"a", "b"}


async def test_what_a_handler_sets_is_gone_with_its_block(storage: MySQLStorage) -> None:
    for _ in range(3):
        async with storage.transaction() as transaction:
            connection = transaction.connection
            cursor = await connection.execute("SELECT @mine, @@time_zone, DATABASE() LIKE 'creche%', @@sql_mode")
            mine, zone, here, mode = await cursor.fetchone() or (0, 0, 0, "")
            assert (mine, zone, here) == (None, "+00:00", 1)
            assert "NO_BACKSLASH_ESCAPES" in mode
            await connection.execute("SET @mine = 1, time_zone = '+02:00'")
            await connection.execute("USE information_schema")


async def test_the_end_is_exact_and_at_home_whatever_a_handler_set(storage: MySQLStorage) -> None:
    for statement in ("SET NAMES latin1", "SET character_set_client = gbk", "USE mysql", "SET sql_safe_updates = 1"):
        callback = FollowUp(id=new_job_id(), type="next", queue_name="after", head='["\u00e4", ', tail="]")
        lease = await reserved(storage, callbacks=(callback,))
        result = '"\u00e4\u20ac\U0001f423"'.encode()
        async with storage.transaction() as transaction:
            await transaction.connection.execute(statement)
            assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=result))
        found = await storage.find([lease.job_id, callback.id])
        assert found[lease.job_id].result == result
        assert found[callback.id].payload == '["\u00e4", '.encode() + result + b"]"


# --- parameters and rows ----------------------------------------------------------------------------


async def test_values_come_back_as_they_went(storage: MySQLStorage) -> None:
    texts = ["", "'", "\\", "\\'", "%s %% %(a)s", "ä€\U0001f423", "a\x00b\n", "; DROP TABLE orders -- "]
    data = [text.encode() for text in texts] + [bytes(range(256))]
    async with storage.transaction() as transaction:
        connection = transaction.connection
        for text in texts:
            cursor = await connection.execute("SELECT %s AS `a b`, %s, '%%'", (text, 1))
            assert cursor.description is not None
            assert cursor.description[0][0] == "a b"
            assert await cursor.fetchall() == [(text, 1, "%")]
            cursor = await connection.execute("SELECT %(text)s, %(text)s", {"text": text, "unused": 1})
            assert await cursor.fetchone() == (text, text)
            assert await cursor.fetchone() is None
        for binary in data:
            cursor = await connection.execute("INSERT INTO orders (data) VALUES (%s)", [binary])
            found = await connection.execute("SELECT data FROM orders WHERE id = %s", [cursor.lastrowid])
            assert await found.fetchall() == [(binary,)]
        moment = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=timezone(timedelta(hours=2)))
        values: dict[str, tuple[object, object]] = {
            "DECIMAL(20, 5)": (Decimal("-1234.50000"), Decimal("-1234.50000")),
            "DATE": (date(2026, 2, 3), date(2026, 2, 3)),
            "DATETIME(6)": (moment, moment.astimezone(UTC).replace(tzinfo=None)),
            "TIME(6)": (timedelta(days=-1, seconds=5, microseconds=7), timedelta(days=-1, seconds=5, microseconds=7)),
            "SIGNED": (True, 1),
            "DOUBLE": (0.1, 0.1),
            "CHAR": (None, None),
        }
        for kind, (sent, expected) in values.items():
            cursor = await connection.execute(f"SELECT CAST(%s AS {kind})", [sent])
            assert await cursor.fetchall() == [(expected,)]
        cursor = await connection.execute("SELECT CAST(%s AS TIME)", [time(1, 2, 3)])
        assert await cursor.fetchone() == (timedelta(hours=1, minutes=2, seconds=3),)


async def test_rows_are_iterated_and_many_statements_counted(storage: MySQLStorage, names: Any) -> None:
    async with storage.transaction() as transaction:
        connection = transaction.connection
        cursor = await connection.executemany("INSERT INTO orders (name) VALUES (%(n)s)", ({"n": n} for n in "abc"))
        assert cursor.rowcount == 3
        cursor = await connection.execute("SELECT name FROM orders WHERE name IN %s ORDER BY name", [["a", "c"]])
        assert [row async for row in cursor] == [("a",), ("c",)]
        cursor = await connection.execute("UPDATE orders SET name = name")
        assert cursor.rowcount == 3, "as found, changed or not"
        cursor = await connection.execute("SELECT '100%'")
        assert await cursor.fetchone() == ("100%",)
    assert names() == {"a", "b", "c"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN"), uuid4(), {"a": 1}, object()])
def test_what_is_no_parameter_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        with_parameters("SELECT %s", [value])


def test_a_single_text_is_no_list_of_parameters() -> None:
    with pytest.raises(TypeError):
        with_parameters("SELECT %s, %s", "ab")
