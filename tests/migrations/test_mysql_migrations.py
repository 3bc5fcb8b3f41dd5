"""The schema on MySQL and MariaDB: made by `migrate` alone, by one of many; what was cut off, the next completes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import pytest
from attrs import evolve

from creche import Queue, Worker
from creche._ids import new_job_id
from creche._job import NewJob
from creche.errors import ConfigurationError, SchemaOutdated, StatementRejected
from creche.storage import _asyncmy, _mysql_schema
from creche.storage._mysql_calls import bare
from creche.storage._sql import Migration, load
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import (
    ForeignServer,
    MariaDBServer,
    MySQLServer,
    PrivateServer,
    connect_mysql,
    private_mariadb,
    private_mysql,
)
from databases import empty_database
from missing import unless_missing

pytestmark = pytest.mark.anyio

Server: TypeAlias = MariaDBServer | MySQLServer | ForeignServer

NAMES = [migration.name for migration in load("mysql").migrations]
TABLES = {
    f"creche_{name}" for name in ("jobs", "dead_letters", "listeners", "migrations", "queues", "watches", "workers")
}
FAMILY = ["mariadb", "mysql"]


@pytest.fixture(scope="module", params=FAMILY)
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    with empty_database(server) as dsn:
        yield dsn


def ask(dsn: str, query: str) -> tuple[tuple[Any, ...], ...]:
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return tuple(cursor.fetchall())


def tables(dsn: str) -> set[str]:
    return {name for (name,) in ask(dsn, "SHOW TABLES")}


def with_migration(storage: MySQLStorage, sql: str) -> MySQLStorage:
    """As a later version of creche would have it."""
    dialect = storage._schema._dialect
    later = Migration(version=9_999, name="9999_later.sql", sql=sql)
    storage._schema._dialect = evolve(dialect, migrations=[*dialect.migrations, later])
    return storage


async def works(storage: MySQLStorage) -> bool:
    """Whether a job goes in and comes out of an open storage."""
    await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])
    return bool((await storage.reserve(["default"], 1, lease=1, worker="w", nonce=1)).jobs)


# --- what was asked for, and nothing else -----------------------------------------------------------


async def test_asking_what_is_pending_changes_nothing(dsn: str) -> None:
    pending = await MySQLStorage(dsn).pending_migrations()
    assert [name for name, _ in pending] == NAMES
    assert "CREATE TABLE IF NOT EXISTS creche_jobs" in pending[0][1]
    assert tables(dsn) == set()


async def test_opening_migrates_nothing(dsn: str) -> None:
    with pytest.raises(SchemaOutdated) as caught:
        async with MySQLStorage(dsn):
            pytest.fail("opened without a schema")
    assert (caught.value.found, caught.value.needed) == (0, int(NAMES[-1][:4]))
    assert tables(dsn) == set()


async def test_migrating_twice_does_nothing_the_second_time(dsn: str) -> None:
    storage = MySQLStorage(dsn)
    assert list(await storage.migrate()) == NAMES
    assert list(await storage.migrate()) == []
    assert list(await storage.pending_migrations()) == []
    assert tables(dsn) == TABLES


async def test_what_is_applied_is_written_down(dsn: str) -> None:
    await MySQLStorage(dsn).migrate()
    rows = ask(dsn, "SELECT version, name, applied_at > UTC_TIMESTAMP() - INTERVAL 1 HOUR FROM creche_migrations")
    assert list(rows) == [(int(name[:4]), name, 1) for name in NAMES]


async def test_a_migration_that_failed_midway_is_completed_by_the_next_one(dsn: str) -> None:
    half = "CREATE TABLE IF NOT EXISTS creche_half (n INT PRIMARY KEY)"
    with pytest.raises(StatementRejected, match="missing"):
        await with_migration(MySQLStorage(dsn), f"{half};\nSELECT n FROM missing;\n").migrate()
    assert tables(dsn) == {*TABLES, "creche_half"}  # nothing is undone here
    whole = with_migration(MySQLStorage(dsn), f"{half};\nCREATE TABLE missing (n INT PRIMARY KEY);\n")
    with pytest.raises(SchemaOutdated):
        async with whole:
            pytest.fail("opened with half a schema")
    assert list(await whole.migrate()) == ["9999_later.sql"]
    assert tables(dsn) == {*TABLES, "creche_half", "missing"}


async def test_a_first_migration_that_was_cut_off_is_completed_by_the_next_one(dsn: str) -> None:
    storage = MySQLStorage(dsn)
    ((_, sql),) = await storage.pending_migrations()
    first = sql[: sql.index("CREATE TABLE IF NOT EXISTS creche_dead_letters")]
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        for statement in bare(first).split(";\n"):
            cursor.execute(statement)
    with pytest.raises(SchemaOutdated) as caught:
        async with storage:
            pytest.fail("opened with half a schema")
    assert caught.value.found == 0
    assert list(await storage.migrate()) == NAMES
    async with storage:
        assert await works(storage)


async def test_an_older_schema_is_refused_until_it_is_migrated(dsn: str) -> None:
    storage = MySQLStorage(dsn)
    await storage.migrate()
    with_migration(storage, "ALTER TABLE creche_jobs ADD COLUMN later integer;\n")
    with pytest.raises(SchemaOutdated) as caught:
        async with storage:
            pytest.fail("opened with an old schema")
    assert (caught.value.found, caught.value.needed) == (int(NAMES[-1][:4]), 9_999)
    assert list(await storage.migrate()) == ["9999_later.sql"]
    async with storage, MySQLStorage(dsn) as older:  # which is still at work during the roll-out
        assert await works(older)


async def test_a_newer_schema_is_left_alone(dsn: str) -> None:
    await with_migration(MySQLStorage(dsn), "CREATE TABLE creche_later (n INT PRIMARY KEY);\n").migrate()
    storage = MySQLStorage(dsn)
    assert list(await storage.pending_migrations()) == []
    assert list(await storage.migrate()) == []
    assert "creche_later" in tables(dsn)
    async with storage:
        assert await works(storage)


# --- one of many ------------------------------------------------------------------------------------


async def test_of_many_that_migrate_at_once_one_does(dsn: str) -> None:
    applied: list[str] = []

    async def migrate() -> None:
        applied.extend(await MySQLStorage(dsn).migrate())

    async with anyio.create_task_group() as openers:
        for _ in range(8):
            openers.start_soon(migrate)
    assert applied == NAMES


async def test_a_migration_waits_for_another_as_long_as_that_takes(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_asyncmy, "GRACE", 0)  # statements end after a second
    lock = bare(load("mysql").statements["lock_migrations"]) % {"seconds": 0}
    applied: list[str] = []

    async def migrate() -> None:
        applied.extend(await MySQLStorage(dsn, call_timeout=1).migrate())

    async with anyio.create_task_group() as migrating:
        with closing(connect_mysql(dsn)) as other, other.cursor() as cursor:
            cursor.execute(lock)
            migrating.start_soon(migrate)
            await anyio.sleep(1.3)
            assert tables(dsn) == set()
    assert applied == NAMES  # whoever dies lets go


async def test_each_database_has_a_queue_of_its_own(server: Server, dsn: str) -> None:
    with empty_database(server) as elsewhere:
        storage, other = MySQLStorage(dsn), MySQLStorage(elsewhere)
        await storage.migrate()
        await other.migrate()
        async with storage, other, other.listen(["default"]) as listener:
            with anyio.move_on_after(0.2):  # it rings once when it has begun to sleep
                await listener.wait()
            await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])
            assert await other.stats() == []
            with anyio.move_on_after(0.2) as silence:
                await listener.wait()
            assert silence.cancelled_caught


@pytest.mark.parametrize(
    "name",
    ["it's", "two words", 'q`uo"te', "per%cent", "naïve-キュー", "a;b", "x" * 64],
    ids=["apostrophe", "blank", "quotes", "percent", "foreign", "semicolon", "long"],
)
async def test_the_database_s_name_may_be_any(server: Server, name: str) -> None:
    dsn = server.create_database(name)
    try:
        storage = MySQLStorage(dsn)
        assert list(await storage.migrate()) == NAMES
        async with storage, MySQLStorage(dsn) as other, other.listen(["default"]) as listener:
            await listener.wait()
            assert await works(storage)
            with anyio.fail_after(5):
                assert await listener.wait() == frozenset()
    finally:
        server.drop_database(name)


# --- servers that will not do -----------------------------------------------------------------------


async def test_a_server_that_is_too_old_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for oldest in ("OLDEST_MARIADB", "OLDEST_MYSQL"):
        monkeypatch.setattr(_mysql_schema, oldest, (99, 1, 0))
    storage = MySQLStorage(dsn)
    with pytest.raises(ConfigurationError, match=r"(MariaDB|MySQL) \d+\.\d+\.\d+ is too old.*99\.1"):
        await storage.migrate()
    with pytest.raises(ConfigurationError, match="too old"):
        async with storage:
            pytest.fail("opened on an old server")
    assert tables(dsn) == set()


PRIVATE = {"mariadb": private_mariadb, "mysql": private_mysql}


@pytest.fixture(scope="module", params=FAMILY)
def logging_server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """A server that writes a binary log, of which the format can be chosen."""
    private = PRIVATE[request.param](own=True, settings={"log_bin": "log-bin", "server_id": "1"})
    for server in unless_missing(private, required=request.param == "mariadb"):
        assert isinstance(server, PrivateServer)
        yield server


@contextmanager
def logged_as(server: PrivateServer, form: str) -> Iterator[str]:
    """The DSN of a database of a server that logs in this format; a session has what it found at its start."""
    dsn = server.create_database("logged")
    before = ask(dsn, "SHOW GLOBAL VARIABLES LIKE 'binlog_format'")
    if not before:
        pytest.skip("this server logs rows only")
    ask(dsn, f"SET GLOBAL binlog_format = {form}")
    try:
        yield dsn
    finally:
        ask(dsn, f"SET GLOBAL binlog_format = {before[0][1]}")
        server.drop_database("logged")


async def test_a_server_that_logs_statements_is_refused(logging_server: PrivateServer) -> None:
    with logged_as(logging_server, "STATEMENT") as dsn:
        storage = MySQLStorage(dsn)
        with pytest.raises(ConfigurationError, match="binlog_format to ROW or MIXED"):
            await storage.migrate()
        with pytest.raises(ConfigurationError, match="binlog_format"):
            async with storage:
                pytest.fail("opened on a server that can't log what is written")
        assert tables(dsn) == set()


@pytest.mark.parametrize("form", ["ROW", "MIXED"])
async def test_any_other_log_will_do(logging_server: PrivateServer, form: str) -> None:
    with logged_as(logging_server, form) as dsn:
        storage = MySQLStorage(dsn)
        assert list(await storage.migrate()) == NAMES
        async with storage:
            assert await works(storage)


async def test_a_server_that_knows_no_formats_of_its_log_will_do(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _asyncmy.Connection.run

    async def without(connection: _asyncmy.Connection, sql: str) -> list[_asyncmy.Answer]:
        return await run(connection, sql.replace("'binlog_format'", "'no_such_setting'"))

    monkeypatch.setattr(_asyncmy.Connection, "run", without)
    assert list(await MySQLStorage(dsn).migrate()) == NAMES


# --- privileges -------------------------------------------------------------------------------------

TO_MIGRATE = ("CREATE", "SELECT", "INSERT", "UPDATE")
TO_WORK = ("SELECT", "INSERT", "UPDATE", "DELETE")


@contextmanager
def account(dsn: str, *privileges: str) -> Iterator[str]:
    """The DSN of an account that has these privileges in this database, and no others."""
    parts, name = urlsplit(dsn), f"plain_{new_job_id().hex[-12:]}"
    ask(dsn, f"CREATE USER {name}@'%' IDENTIFIED BY 'pa55word'")
    ask(dsn, f"GRANT {', '.join(privileges)} ON `{parts.path[1:]}`.* TO {name}@'%'")
    try:
        yield parts._replace(netloc=f"{name}:pa55word@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        ask(dsn, f"DROP USER {name}@'%'")


async def test_an_account_needs_four_privileges_to_migrate(dsn: str) -> None:
    for without in ("CREATE", "INSERT", "UPDATE"):  # and SELECT, as soon as there is something to read
        rest = [privilege for privilege in TO_MIGRATE if privilege != without]
        with account(dsn, *rest) as plain, pytest.raises(StatementRejected, match=f"{without}.*denied"):
            await MySQLStorage(plain).migrate()
    with account(dsn, *TO_MIGRATE) as plain:
        assert list(await MySQLStorage(plain).migrate()) == NAMES
        assert list(await MySQLStorage(plain).migrate()) == []


async def test_an_account_needs_four_privileges_to_work_and_to_be_woken(dsn: str) -> None:
    await MySQLStorage(dsn).migrate()
    with account(dsn, *TO_WORK) as plain:
        here, there = Queue(plain), Queue(plain)

        @there.task("double")
        async def double(number: int) -> int:
            return 2 * number

        async with here, there, there.storage.listen(["default"]) as listener, Worker(there, poll_interval=60):
            await listener.wait()  # it rings once when it has begun to sleep
            receipt = await here.dispatch("double", {"number": 21})
            with anyio.fail_after(10):
                assert await listener.wait() == frozenset()
                assert await receipt.wait() == 42


async def test_an_account_wakes_another_one_s_workers_only_if_it_may_end_their_statements(dsn: str) -> None:
    await MySQLStorage(dsn).migrate()
    new = NewJob(id=new_job_id(), type="t", payload=b"{}")
    with account(dsn, *TO_WORK) as worker, account(dsn, *TO_WORK) as dispatcher:
        async with MySQLStorage(worker) as there, there.listen(["default"]) as listener:
            await listener.wait()  # it rings once when it has begun to sleep
            async with MySQLStorage(dispatcher) as here:
                await here.insert([new])
                with anyio.move_on_after(0.3) as silence:
                    await listener.wait()
                assert silence.cancelled_caught
            ((version,),) = ask(dsn, "SELECT VERSION()")
            privilege = "CONNECTION ADMIN" if "MariaDB" in version else "CONNECTION_ADMIN"
            ask(dsn, f"GRANT {privilege} ON *.* TO {urlsplit(dispatcher).username}@'%'")
            async with MySQLStorage(dispatcher) as here:
                await here.insert([new])
                with anyio.fail_after(5):
                    assert await listener.wait() == frozenset()
