"""What the doctor finds on a MySQL and a MariaDB: nothing where all is well, and each fault that is really planted."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import SocketStream
from attrs import evolve
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from creche._job import Finding, Severity
from creche.storage import _mysql_check as module
from creche.storage import _mysql_indexes as indexes
from creche.storage import _mysql_schema
from creche.storage._sql import Migration, load
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import PrivateServer, connect_mysql, private_mariadb, private_mysql
from missing import unless_missing
from sockets import closed_port

pytestmark = pytest.mark.anyio

Raw: TypeAlias = "Connection[Cursor]"

PRIVATE = {"mariadb": private_mariadb, "mysql": private_mysql}
CHECKS = (
    "reach", "schema", "indexes", "isolation", "skip locked", "clock", "pool", "listening", "durability", "vacuum",
    "privileges",
)  # fmt: skip
CLERK = "clerk"
RIGHTS = "SELECT, INSERT, UPDATE, DELETE"


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """A server of one's own that keeps what it commits, and writes a binary log: faults are set for all of it."""
    settings = {"log_bin": "log-bin", "server_id": "1", "sync_binlog": "1"}
    private = PRIVATE[request.param](own=True, durable=True, settings=settings)
    for found in unless_missing(private, required=request.param == "mariadb"):
        assert isinstance(found, PrivateServer)
        yield found


@pytest.fixture
def dsn(server: PrivateServer) -> Iterator[str]:
    """The DSN of an empty, migrated database, over TCP."""
    name = f"creche_{secrets.token_hex(6)}"
    dsn = server.create_database(name)
    anyio.run(MySQLStorage(dsn).migrate)
    yield dsn
    server.drop_database(name)


@pytest.fixture
def raw(dsn: str) -> Iterator[Raw]:
    with closing(connect_mysql(dsn)) as connection:
        yield connection


def do(raw: Raw, *statements: str) -> tuple[tuple[Any, ...], ...]:
    with raw.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return tuple(cursor.fetchall())


@contextmanager
def clerk(raw: Raw, dsn: str, rights: str = RIGHTS) -> Generator[str]:
    """The DSN of an account that may do as much as docs/mysql.md asks for, and no more."""
    database = urlsplit(dsn).path[1:]
    do(
        raw,
        f"CREATE USER '{CLERK}'@'%' IDENTIFIED BY 'secret'",
        f"CREATE USER '{CLERK}'@'localhost' IDENTIFIED BY 'secret'",
    )
    do(raw, *(f"GRANT {rights} ON {database}.* TO '{CLERK}'@'{host}'" for host in ("%", "localhost")))
    try:
        yield dsn.replace(urlsplit(dsn).netloc.rpartition("@")[0], f"{CLERK}:secret")
    finally:
        do(raw, f"DROP USER '{CLERK}'@'%', '{CLERK}'@'localhost'")


@contextmanager
def setting(raw: Raw, name: str, value: str) -> Generator[None]:
    """A setting of the whole server, for the length of the block."""
    ((before,),) = do(raw, f"SELECT @@GLOBAL.{name}")
    do(raw, f"SET GLOBAL {name} = {value}")
    try:
        yield
    finally:
        do(raw, f"SET GLOBAL {name} = {before!r}")


async def found(dsn: str, check: str, **options: Any) -> Finding:
    """What the doctor says about one thing. Of everything else here nothing is wrong."""
    findings = await MySQLStorage(dsn, **options.pop("storage", {})).check(**options)
    assert [each.check for each in findings if each.severity is not Severity.OK] in ([check], [])
    (finding,) = [each for each in findings if each.check == check]
    return finding


async def test_a_database_in_which_all_is_well_has_no_finding_above_ok(dsn: str) -> None:
    findings = await MySQLStorage(dsn).check(concurrency=5)
    assert [(each.check, each.severity) for each in findings] == [(check, Severity.OK) for check in CHECKS]
    async with MySQLStorage(dsn) as opened:
        assert [each.check for each in await opened.check()] == [*CHECKS]


async def test_an_account_with_no_more_than_its_rights_finds_nothing_wrong_either(dsn: str, raw: Raw) -> None:
    with clerk(raw, dsn) as theirs:
        findings = await MySQLStorage(theirs).check()
    assert [(each.check, each.severity) for each in findings] == [(check, Severity.OK) for check in CHECKS]
    assert "PROCESS" in next(each.advice for each in findings if each.check == "vacuum")


async def test_the_doctor_changes_nothing(dsn: str, raw: Raw) -> None:
    tables = [name for (name,) in do(raw, "SHOW TABLES")]
    before = do(raw, f"CHECKSUM TABLE {', '.join(tables)}")
    await MySQLStorage(dsn).check()
    assert do(raw, f"CHECKSUM TABLE {', '.join(tables)}") == before


# --- who is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["port", "password", "database"])
async def test_what_can_not_be_reached_is_the_only_finding(dsn: str, wrong: str) -> None:
    parts = urlsplit(dsn)
    elsewhere = {
        "port": dsn.replace(f":{parts.port}/", f":{closed_port()}/"),
        "password": dsn.replace(str(parts.password), "guess"),
        "database": dsn + "x",
    }
    (finding,) = await MySQLStorage(elsewhere[wrong]).check()
    assert (finding.check, finding.severity) == ("reach", Severity.PROBLEM)
    assert str(parts.password) not in repr(finding)


async def test_who_accepts_and_says_nothing_is_given_up(deaf: str) -> None:
    with anyio.fail_after(5):
        (finding,) = await MySQLStorage(f"mysql://u:p@{deaf}/d", call_timeout=0.3).check()
    assert (finding.check, finding.severity) == ("reach", Severity.PROBLEM)


async def test_a_server_that_is_too_old_is_a_problem(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for oldest in ("OLDEST_MARIADB", "OLDEST_MYSQL"):
        monkeypatch.setattr(_mysql_schema, oldest, (99, 1, 0))
    (finding,) = await MySQLStorage(dsn).check()
    assert (finding.check, finding.severity) == ("reach", Severity.PROBLEM)
    assert "too old" in finding.message


# --- what is ours -----------------------------------------------------------------------------------


async def test_a_schema_that_is_missing_is_a_problem_and_the_rest_is_looked_at(server: PrivateServer) -> None:
    name = f"creche_{secrets.token_hex(6)}"
    dsn = server.create_database(name)
    try:
        findings = {each.check: each for each in await MySQLStorage(dsn).check()}
    finally:
        server.drop_database(name)
    assert findings["schema"].severity is Severity.PROBLEM
    assert "0001_initial.sql" in findings["schema"].message
    assert findings.keys() == {*CHECKS} - {"indexes", "skip locked", "privileges"}


async def test_a_schema_that_is_older_is_a_problem_and_a_newer_one_a_warning(dsn: str, raw: Raw) -> None:
    storage = MySQLStorage(dsn)
    dialect = storage._schema._dialect
    later = Migration(version=9_999, name="9999_later.sql", sql="SELECT 1;\n")
    storage._schema._dialect = evolve(dialect, migrations=[*dialect.migrations, later])
    findings = {each.check: each for each in await storage.check()}
    assert (findings["schema"].severity, findings["schema"].message) == (
        Severity.PROBLEM, "migrations are missing: 9999_later.sql"
    )  # fmt: skip
    do(raw, "INSERT INTO creche_migrations VALUES (9999, '9999_later.sql', NOW())")
    finding = await found(dsn, "schema")
    assert finding.severity is Severity.WARNING
    assert "9999" in finding.message


async def test_a_table_without_transactions_is_a_problem(dsn: str, raw: Raw) -> None:
    do(raw, "ALTER TABLE creche_watches ENGINE = MyISAM")
    finding = await found(dsn, "schema")
    assert finding.severity is Severity.PROBLEM
    assert "creche_watches (MyISAM)" in finding.message


async def test_the_indexes_that_are_expected_are_those_that_the_migrations_make(dsn: str, raw: Raw) -> None:
    there = do(
        raw,
        "SELECT table_name, index_name, column_name, non_unique, 1 FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() ORDER BY table_name, index_name, seq_in_index",
    )
    assert indexes.expected(load("mysql").migrations) == indexes.found(there)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("DROP INDEX creche_jobs_ready", "creche_jobs_ready on creche_jobs is missing"),
        (
            "DROP INDEX creche_jobs_flight, ADD INDEX creche_jobs_flight (flight)",
            "creche_jobs_flight on creche_jobs is not unique on (flight)",
        ),
        (
            "DROP INDEX creche_jobs_due, ADD INDEX creche_jobs_due (available_at, due_queue)",
            "creche_jobs_due on creche_jobs is not on (due_queue, available_at)",
        ),
        ("ALTER INDEX creche_jobs_held {unused}", "creche_jobs_held on creche_jobs is kept from use"),
    ],
    ids=["dropped", "not unique", "of other columns", "out of use"],
)
async def test_an_index_that_is_not_as_it_should_be_is_named(dsn: str, raw: Raw, fault: str, said: str) -> None:
    unused = "IGNORED" if "MariaDB" in do(raw, "SELECT VERSION()")[0][0] else "INVISIBLE"
    do(raw, f"ALTER TABLE creche_jobs {fault.format(unused=unused)}")
    finding = await found(dsn, "indexes")
    assert finding.severity is Severity.PROBLEM
    assert finding.message.startswith(said)


async def test_each_privilege_that_is_lacking_is_named(dsn: str, raw: Raw) -> None:
    with clerk(raw, dsn, "SELECT, INSERT, UPDATE") as theirs:
        finding = await found(theirs, "privileges")
    assert finding.severity is Severity.PROBLEM
    assert "DELETE on creche_jobs" in finding.message
    assert "UPDATE on" not in finding.message


# --- what it promises -------------------------------------------------------------------------------


async def test_a_server_that_takes_no_writes_is_a_problem(dsn: str, raw: Raw) -> None:
    with clerk(raw, dsn) as theirs, setting(raw, "read_only", "ON"):
        finding = await found(theirs, "isolation")
    assert finding.severity is Severity.PROBLEM
    assert "read-only" in finding.message


async def test_other_defaults_than_ours_do_not_reach_our_statements(dsn: str, raw: Raw) -> None:
    family = "tx_" if "MariaDB" in do(raw, "SELECT VERSION()")[0][0] else "transaction_"
    with setting(raw, f"{family}isolation", "'SERIALIZABLE'"), setting(raw, f"{family}read_only", "ON"):
        finding = await found(dsn, "isolation")
    assert finding.severity is Severity.OK
    assert "READ COMMITTED" in finding.message
    assert "SERIALIZABLE" in finding.message


async def test_a_log_of_statements_is_a_problem(dsn: str, raw: Raw) -> None:
    with setting(raw, "binlog_format", "'STATEMENT'"):
        finding = await found(dsn, "isolation")
    assert finding.severity is Severity.PROBLEM
    assert "ROW or MIXED" in finding.message


async def test_clocks_that_are_apart_are_a_warning_that_tells_both(dsn: str, raw: Raw) -> None:
    # What runs when somebody connects who is no administrator: so these sessions' clock stands still, in 2020.
    with clerk(raw, dsn) as theirs, setting(raw, "init_connect", "'SET timestamp = 1577836800'"):
        finding = await found(theirs, "clock")
    assert finding.severity is Severity.WARNING
    assert "2020-01-01 00:00:00" in finding.message


async def test_fewer_connections_than_handlers_are_a_warning(dsn: str) -> None:
    assert (await found(dsn, "pool", concurrency=6)).severity is Severity.WARNING
    assert (await found(dsn, "pool", concurrency=6, storage={"pool_size": 6})).severity is Severity.OK


async def test_fewer_connections_than_the_server_allows_are_a_warning(dsn: str) -> None:
    assert (await found(dsn, "pool", storage={"pool_size": 100})).severity is Severity.WARNING


@asynccontextmanager
async def in_between(dsn: str, ignored: bytes) -> AsyncGenerator[str]:
    """Something that passes on what is said, but for one statement, as a pooler does; yields the DSN of it."""
    parts = urlsplit(dsn)

    async def serve(client: SocketStream) -> None:
        server = await anyio.connect_tcp("127.0.0.1", parts.port or 0)
        async with client, server, anyio.create_task_group() as both:
            both.start_soon(pump, client, server, both.cancel_scope)
            both.start_soon(pump, server, client, both.cancel_scope)

    async def pump(source: SocketStream, sink: SocketStream, scope: anyio.CancelScope) -> None:
        try:
            async for data in source:
                await sink.send(data.replace(ignored, b"DO".ljust(len(ignored))))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        scope.cancel()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(partial(listener.serve, serve))
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"{dsn.replace(f':{parts.port}/', f':{port}/')}?ssl_mode=disabled"
        group.cancel_scope.cancel()


async def test_a_pooler_that_swallows_wakes_is_a_problem(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAKE", 0.3)
    async with in_between(dsn, b"KILL QUERY") as through:
        finding = await found(through, "listening")
    assert finding.severity is Severity.PROBLEM
    assert "pooler" in finding.message


async def test_what_passes_everything_on_is_no_problem(dsn: str) -> None:
    async with in_between(dsn, b"nothing of the kind") as through:
        assert (await found(through, "listening")).severity is Severity.OK


async def test_without_push_nobody_has_to_be_woken(dsn: str) -> None:
    finding = await found(dsn, "listening", storage={"push": False})
    assert (finding.severity, finding.message) == (Severity.OK, "push is off: workers poll")


@pytest.mark.parametrize(
    ("name", "value"),
    [("innodb_flush_log_at_trx_commit", "0"), ("innodb_flush_log_at_trx_commit", "2"), ("sync_binlog", "0")],
)
async def test_commits_that_a_crash_may_cost_are_a_warning(dsn: str, raw: Raw, name: str, value: str) -> None:
    with setting(raw, name, value):
        finding = await found(dsn, "durability")
    assert finding.severity is Severity.WARNING
    assert f"{name} = {value}" in finding.message


async def test_a_transaction_that_is_open_for_long_is_a_warning_that_says_whose(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONG", 0)
    with closing(connect_mysql(dsn, autocommit=False)) as holder:
        do(holder, "SELECT * FROM creche_jobs FOR UPDATE")
        await anyio.sleep(0.15)  # InnoDB tells what it last looked up, for a tenth of a second
        finding = await found(dsn, "vacuum")
        assert finding.severity is Severity.WARNING
        ((number,),) = do(holder, "SELECT CONNECTION_ID()")
        assert f"connection {number}, of root" in finding.message
