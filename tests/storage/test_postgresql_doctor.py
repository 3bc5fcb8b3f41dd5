"""What the doctor finds on PostgreSQL: nothing where all is well, and each fault that is planted in a real server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

import anyio
import psycopg
import pytest
from psycopg import sql

from creche._ids import new_job_id
from creche._job import Event, Finding, NewJob, Settlement, Severity
from creche.storage import _postgresql_doctor as doctor
from creche.storage import _postgresql_findings as findings
from creche.storage import _postgresql_schema
from creche.storage._sql import load
from creche.storage.postgresql import PostgreSQLStorage
from creche.testing.servers import PgBouncer, PostgreSQLServer, private_pgbouncer, private_postgresql
from missing import unless_missing
from sockets import closed_port

pytestmark = pytest.mark.anyio

OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM
LOOKS: Final = [
    *("reach", "schema", "indexes", "privileges", "isolation", "skip locked"),
    *("clock", "pool", "listening", "durability", "vacuum"),
]
DIALECT: Final = load("postgresql")
Raw = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer]:
    """One that keeps what it has promised, as a server should."""
    settings = {"max_connections": "60", "max_prepared_transactions": "5"}
    for server in unless_missing(private_postgresql(own=True, durable=True, settings=settings)):
        assert isinstance(server, PostgreSQLServer)
        yield server


@pytest.fixture
def empty(server: PostgreSQLServer) -> Iterator[str]:
    """An empty database's name."""
    name = f"creche_{secrets.token_hex(4)}"
    server.create_database(name)
    yield name
    server.drop_database(name)


@pytest.fixture
async def database(server: PostgreSQLServer, empty: str) -> str:
    """The DSN of a migrated database."""
    dsn = server.dsn(empty, socket=True)
    await PostgreSQLStorage(dsn).migrate()
    return dsn


@pytest.fixture
def raw(server: PostgreSQLServer, empty: str) -> Iterator[Raw]:
    """A plain connection to the same database."""
    with psycopg.connect(server.dsn(empty, socket=True), autocommit=True) as connection:
        yield connection


async def check(dsn: str, *, concurrency: int | None = None) -> dict[str, Finding]:
    """What is found, by what was looked at."""
    with anyio.fail_after(15):
        found = await PostgreSQLStorage(dsn).check(concurrency=concurrency)
    assert len({each.check for each in found}) == len(found)
    assert all((each.severity is OK) == (not each.advice) for each in found)
    return {each.check: each for each in found}


def ill(found: Mapping[str, Finding]) -> dict[str, Severity]:
    """What is not well."""
    return {check: each.severity for check, each in found.items() if each.severity is not OK}


# --- whether it is there ----------------------------------------------------------------------------


async def test_a_healthy_database_has_nothing(database: str) -> None:
    found = await check(database, concurrency=5)
    assert ill(found) == {}
    assert list(found) == LOOKS
    assert "PostgreSQL 1" in found["reach"].message


async def test_a_server_that_is_not_there_is_all_there_is_to_say() -> None:
    found = await check(f"postgresql://me:geheim@127.0.0.1:{closed_port()}/db")
    assert ill(found) == {"reach": PROBLEM}
    assert len(found) == 1
    assert "geheim" not in found["reach"].message


async def test_a_server_that_never_says_a_word_is_given_up(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REACH", 0.2)
    found = await check(f"postgresql://me:geheim@{deaf}/db")
    assert ill(found) == {"reach": PROBLEM}
    assert "geheim" not in found["reach"].message


async def test_a_dsn_that_can_t_be_read_is_a_finding() -> None:
    found = await check("postgresql://me:geheim%@localhost/db")
    assert ill(found) == {"reach": PROBLEM}
    assert "geheim" not in found["reach"].message


async def test_a_server_that_is_too_old_is_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_postgresql_schema, "OLDEST", 99_00_00)
    found = await check(database)
    assert ill(found) == {"reach": PROBLEM}
    assert "99" in found["reach"].advice


# --- the schema -------------------------------------------------------------------------------------


async def test_without_a_schema_the_rest_is_looked_at(server: PostgreSQLServer, empty: str) -> None:
    found = await check(server.dsn(empty, socket=True))
    assert ill(found) == {"schema": PROBLEM}
    assert "creche migrate" in found["schema"].advice
    assert list(found) == [look for look in LOOKS if look not in {"indexes", "privileges", "skip locked"}]


async def test_a_newer_schema_is_a_warning(database: str, raw: Raw) -> None:
    raw.execute("INSERT INTO creche_migrations (version, name) VALUES (9999, 'from the future')")
    found = await check(database)
    assert ill(found) == {"schema": WARNING}
    assert "9999" in found["schema"].message


async def test_a_table_that_is_gone_is_named(database: str, raw: Raw) -> None:
    raw.execute("ALTER TABLE creche_watches RENAME TO watched")
    found = await check(database)
    assert found["schema"].severity is PROBLEM
    assert "creche_watches" in found["schema"].message


async def test_the_indexes_that_it_knows_are_those_that_there_are(database: str, raw: Raw) -> None:
    there = raw.execute("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()").fetchall()
    made = findings.indexes(DIALECT)
    assert {name for name, _ in there} == made.keys()
    assert {name for name, text in made.items() if not text} == {name for name in made if name.endswith("_pkey")}


@pytest.mark.parametrize("index", [name for name, text in findings.indexes(DIALECT).items() if text])
async def test_an_index_that_was_dropped_is_named_and_can_be_made_again(database: str, raw: Raw, index: str) -> None:
    raw.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
    found = await check(database)
    assert ill(found) == {"indexes": PROBLEM}
    assert found["indexes"].message == f"{index} is missing"
    raw.execute(found["indexes"].advice.partition(": ")[2].encode())
    assert ill(await check(database)) == {}


async def test_an_index_that_is_not_valid_is_named(database: str, raw: Raw) -> None:
    raw.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'creche_jobs_due'::regclass")
    found = await check(database)
    assert ill(found) == {"indexes": PROBLEM}
    assert found["indexes"].message == "creche_jobs_due is not valid"
    raw.execute(found["indexes"].advice.partition(": ")[2].encode())
    assert ill(await check(database)) == {}


async def test_missing_privileges_are_named(server: PostgreSQLServer, empty: str, database: str, raw: Raw) -> None:
    role = sql.Identifier(empty)
    raw.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    theirs = server.dsn(empty, socket=True).replace("postgres@", f"{empty}@")
    try:
        raw.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}").format(role))
        raw.execute(sql.SQL("REVOKE INSERT, UPDATE, DELETE ON creche_migrations FROM {}").format(role))
        assert ill(await check(theirs)) == {}
        raw.execute(sql.SQL("REVOKE INSERT, UPDATE ON creche_queues FROM {}").format(role))
        found = await check(theirs)
        assert ill(found) == {"privileges": PROBLEM}
        assert found["privileges"].message == "missing: INSERT and UPDATE on creche_queues"
        raw.execute(sql.SQL("REVOKE SELECT ON creche_migrations FROM {}").format(role))
        found = await check(theirs)  # it can't know the version
        assert ill(found) == {"schema": WARNING}
        assert "permission denied" in found["schema"].message
    finally:
        raw.execute(sql.SQL("DROP OWNED BY {}").format(role))
        raw.execute(sql.SQL("DROP ROLE {}").format(role))


# --- sessions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
@pytest.mark.parametrize("whose", ["DATABASE", "ROLE"])
async def test_another_isolation_level_is_a_problem(
    database: str, raw: Raw, empty: str, whose: LiteralString, level: LiteralString
) -> None:
    name = sql.Identifier(empty if whose == "DATABASE" else "postgres")
    raw.execute(sql.SQL(f"ALTER {whose} {{}} SET default_transaction_isolation = '{level}'").format(name))
    try:
        found = await check(database)
    finally:
        raw.execute(sql.SQL(f"ALTER {whose} {{}} RESET default_transaction_isolation").format(name))
    assert ill(found) == {"isolation": PROBLEM}
    assert level in found["isolation"].message


async def test_a_database_that_reads_only_is_a_problem(database: str, raw: Raw, empty: str) -> None:
    raw.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(empty)))
    found = await check(database)
    assert found["isolation"].severity is PROBLEM
    assert "read only" in found["isolation"].message
    assert found["skip locked"].severity is WARNING  # it can't be tried


def test_a_standby_is_a_problem() -> None:
    finding = findings.isolation("read committed", read_only=True, standby=True)
    assert (finding.severity, "standby" in finding.message) == (PROBLEM, True)


async def test_skip_locked_is_tried_on_a_finished_job(database: str, raw: Raw) -> None:
    assert "no finished job" in (await check(database))["skip locked"].message
    async with PostgreSQLStorage(database) as storage:
        await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])
        (job,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1)).jobs
        await storage.settle([Settlement(lease=job.lease, event=Event.SUCCEED, result=b"1")])
    assert "passed over" in (await check(database))["skip locked"].message
    with raw.transaction():  # somebody else has it: that is no fault
        raw.execute("SELECT FROM creche_jobs FOR UPDATE")
        assert ill(await check(database)) == {}


async def test_a_table_that_is_locked_spoils_no_other_look(
    database: str, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOOK", 0.5)
    with raw.transaction():
        raw.execute("LOCK TABLE creche_jobs")
        found = await check(database)
    assert ill(found) == {"skip locked": WARNING}
    assert "can't be looked at" in found["skip locked"].message
    assert list(found) == LOOKS


@pytest.mark.parametrize(("skew", "word"), [(30.0, "behind"), (-30.0, "ahead")])
async def test_a_clock_that_differs_is_a_warning(
    database: str, monkeypatch: pytest.MonkeyPatch, skew: float, word: str
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew)
    found = await check(database)
    assert ill(found) == {"clock": WARNING}
    assert word in found["clock"].message


def test_half_a_slow_round_trip_is_no_skew() -> None:
    theirs = datetime.fromtimestamp(1_000, UTC)
    assert findings.clock(theirs, 996.0, 1_000.5).severity is OK
    assert findings.clock(theirs, 998.0, 998.5).severity is WARNING
    assert findings.clock(theirs, 1_001.5, 1_001.5).severity is WARNING


# --- connections ------------------------------------------------------------------------------------


async def test_more_handlers_than_connections_are_a_warning(database: str) -> None:
    assert ill(await check(f"{database}&pool_size=7", concurrency=7)) == {}
    found = await check(f"{database}&pool_size=7", concurrency=8)
    assert ill(found) == {"pool": WARNING}
    assert "pool_size=8" in found["pool"].advice


async def test_more_connections_than_the_server_has_left_are_a_warning(database: str) -> None:
    found = await check(f"{database}&pool_size=30")
    assert ill(found) == {"pool": WARNING}
    assert "max_connections" in found["pool"].advice


@pytest.fixture
def pooler(server: PostgreSQLServer, request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    """A PgBouncer in the mode that the test names."""
    yield from unless_missing(private_pgbouncer(server, request.param), required=False)


@pytest.mark.parametrize(
    ("pooler", "expected"), [("session", {}), ("transaction", {"listening": PROBLEM})], indirect=["pooler"]
)
async def test_behind_pgbouncer_listeners_are_deaf_in_transaction_mode(
    database: str, empty: str, pooler: PgBouncer, expected: dict[str, Severity]
) -> None:
    found = await check(pooler.dsn(empty))
    assert ill(found) == expected
    assert list(found) == LOOKS
    assert ("transaction" in found["listening"].advice) == bool(expected)


async def test_it_listens_where_the_listeners_do_and_wakes_none_of_them(database: str) -> None:
    async with PostgreSQLStorage(database) as storage, storage.listen(["q"]) as listener:
        assert ill({each.check: each for each in await storage.check()}) == {}
        with anyio.move_on_after(0.2) as silence:
            await listener.wait()
        assert silence.cancelled_caught


async def test_it_leaves_no_connection_behind(database: str, raw: Raw, empty: str) -> None:
    await check(database)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    with anyio.fail_after(5):
        while raw.execute(query, [empty]).fetchone() != (0,):  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.02)


# --- durability and vacuum --------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_server_that_a_power_cut_ruins_is_a_problem(database: str, raw: Raw, setting: str) -> None:
    name = sql.Identifier(setting)
    raw.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(name))
    try:
        await reloaded(raw, setting, "off")
        found = await check(database)
    finally:
        raw.execute(sql.SQL("ALTER SYSTEM RESET {}").format(name))
        await reloaded(raw, setting, "on")
    assert ill(found) == {"durability": PROBLEM}
    assert f"{setting} off" in found["durability"].message


async def reloaded(raw: Raw, setting: str, value: str) -> None:
    raw.execute("SELECT pg_reload_conf()")
    with anyio.fail_after(5):
        while raw.execute("SELECT current_setting(%s)", [setting]).fetchone() != (value,):  # noqa: ASYNC110 - no event
            await anyio.sleep(0.02)


async def test_commits_that_wait_for_no_disk_are_a_warning(database: str, raw: Raw, empty: str) -> None:
    raw.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(empty)))
    found = await check(database)
    assert ill(found) == {"durability": WARNING}
    assert "synchronous_commit off" in found["durability"].message


async def test_an_old_transaction_is_named(database: str, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.execute("SET application_name = 'forgotten shell'")
    with raw.transaction():
        raw.execute("CREATE TABLE held ()")
        found = await check(database)
        assert ill(found) == {}
        assert "forgotten shell" in found["vacuum"].message
        monkeypatch.setattr(findings, "OLD", 0.0)
        found = await check(database)
        assert ill(found) == {"vacuum": WARNING}
        assert "forgotten shell" in found["vacuum"].message
        assert "idle in transaction" in found["vacuum"].message


async def test_a_prepared_transaction_is_named(database: str, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "OLD", 0.0)
    raw.execute("BEGIN")
    raw.execute("CREATE TABLE held ()")
    raw.execute("PREPARE TRANSACTION 'left over'")
    try:
        found = await check(database)
    finally:
        raw.execute("ROLLBACK PREPARED 'left over'")
    assert ill(found) == {"vacuum": WARNING}
    assert "prepared transaction 'left over'" in found["vacuum"].message


async def test_a_table_that_vacuum_does_not_clear_is_a_warning(database: str, raw: Raw) -> None:
    raw.execute("ALTER TABLE creche_jobs SET (autovacuum_enabled = false)")
    raw.execute(
        "INSERT INTO creche_jobs"
        " (id, queue_name, type, payload, status, priority, max_attempts, available_at, created_at, updated_at)"
        " SELECT gen_random_uuid(), 'q', 't', '{}', 'pending', 0, 3, now(), now(), now()"
        " FROM generate_series(1, 14000)"
    )
    raw.execute("UPDATE creche_jobs SET priority = 1")
    dead = "SELECT n_dead_tup >= 14000 FROM pg_stat_user_tables WHERE relname = 'creche_jobs'"
    raw.close()  # a session's counts arrive when it ends
    with psycopg.connect(database, autocommit=True) as other, anyio.fail_after(5):
        while other.execute(dead).fetchone() != (True,):  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.02)
    found = await check(database)
    assert ill(found) == {"vacuum": WARNING}
    assert "14000 dead" in found["vacuum"].message


# --- the twin ---------------------------------------------------------------------------------------


async def test_the_twin_of_an_open_storage_opens_without_a_connection_and_then_has_one(
    database: str, raw: Raw, empty: str
) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    async with PostgreSQLStorage(f"{database}&pool_size=1") as storage:
        assert await storage.stats() == []
        assert raw.execute(query, [empty]).fetchone() == (1,)
        async with storage.twin() as twin:
            assert raw.execute(query, [empty]).fetchone() == (1,)
            async with anyio.create_task_group() as calls:
                for _ in range(5):
                    calls.start_soon(twin.stats)
            assert raw.execute(query, [empty]).fetchone() == (2,)
