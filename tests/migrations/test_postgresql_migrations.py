"""PostgreSQL's schema: made by `migrate` alone, by one of many, all or nothing, where search_path says."""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
import pytest
from attrs import evolve
from psycopg import sql

from creche._ids import new_job_id
from creche._job import NewJob
from creche.errors import ConfigurationError, SchemaOutdated, StatementRejected
from creche.storage import _postgresql_schema
from creche.storage._sql import Migration, load
from creche.storage.postgresql import PostgreSQLStorage
from databases import in_schema

pytestmark = pytest.mark.anyio

NAMES = [migration.name for migration in load("postgresql").migrations]
TABLES = {f"creche_{name}" for name in ("jobs", "dead_letters", "watches", "queues", "workers")}


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def create_schema(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))


def tables(dsn: str) -> set[str]:
    return {name for (name,) in ask(dsn, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")}


async def test_asking_what_is_pending_changes_nothing(postgresql_dsn: str) -> None:
    pending = await PostgreSQLStorage(postgresql_dsn).pending_migrations()
    assert [name for name, _ in pending] == NAMES
    assert "CREATE TABLE creche_jobs" in pending[0][1]
    assert tables(postgresql_dsn) == set()


async def test_opening_migrates_nothing(postgresql_dsn: str) -> None:
    with pytest.raises(SchemaOutdated) as caught:
        async with PostgreSQLStorage(postgresql_dsn):
            pytest.fail("opened without a schema")
    assert (caught.value.found, caught.value.needed) == (0, int(NAMES[-1][:4]))
    assert tables(postgresql_dsn) == set()


async def test_migrating_twice_does_nothing_the_second_time(postgresql_dsn: str) -> None:
    storage = PostgreSQLStorage(postgresql_dsn)
    assert list(await storage.migrate()) == NAMES
    assert list(await storage.migrate()) == []
    assert list(await storage.pending_migrations()) == []
    assert tables(postgresql_dsn) == {*TABLES, "creche_migrations"}


async def test_what_is_applied_is_written_down(postgresql_dsn: str) -> None:
    await PostgreSQLStorage(postgresql_dsn).migrate()
    rows = ask(postgresql_dsn, "SELECT version, name, applied_at > now() - interval '1 hour' FROM creche_migrations")
    assert rows == [(int(name[:4]), name, True) for name in NAMES]


async def test_a_migration_that_fails_leaves_nothing_behind(postgresql_dsn: str) -> None:
    storage = PostgreSQLStorage(postgresql_dsn)
    broken = Migration(version=9_999, name="9999_broken.sql", sql="CREATE TABLE half ();\nCREATE TABLE half ();\n")
    dialect = storage._schema._dialect
    storage._schema._dialect = evolve(dialect, migrations=[*dialect.migrations, broken])
    with pytest.raises(StatementRejected, match="half"):
        await storage.migrate()
    assert tables(postgresql_dsn) == set()


async def test_an_older_schema_is_refused_until_it_is_migrated(postgresql_dsn: str) -> None:
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    dialect = storage._schema._dialect
    later = Migration(version=9_999, name="9999_later.sql", sql="ALTER TABLE creche_jobs ADD COLUMN later integer;\n")
    storage._schema._dialect = evolve(dialect, migrations=[*dialect.migrations, later])
    with pytest.raises(SchemaOutdated) as caught:
        async with storage:
            pytest.fail("opened with an old schema")
    assert (caught.value.found, caught.value.needed) == (int(NAMES[-1][:4]), 9_999)
    assert list(await storage.migrate()) == ["9999_later.sql"]
    async with storage, PostgreSQLStorage(postgresql_dsn) as older:  # which is still at work during the roll-out
        await older.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])
        assert (await storage.reserve(["default"], 1, lease=1, worker="w", nonce=1)).jobs


async def test_of_many_that_migrate_at_once_one_does(postgresql_dsn: str) -> None:
    applied: list[str] = []

    async def migrate() -> None:
        applied.extend(await PostgreSQLStorage(postgresql_dsn).migrate())

    async with anyio.create_task_group() as openers:
        for _ in range(8):
            openers.start_soon(migrate)
    assert applied == NAMES


async def test_each_schema_has_a_queue_of_its_own(postgresql_database: str, postgresql_dsn: str) -> None:
    ((schema,),) = ask(postgresql_dsn, "SELECT current_schema()")
    create_schema(postgresql_database, f"{schema}_b")
    other = PostgreSQLStorage(in_schema(postgresql_database, f"{schema}_b"))
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    await other.migrate()
    async with storage, other, other.listen(["default"]) as listener:
        await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])
        assert await other.stats() == []
        with anyio.move_on_after(0.2) as silence:
            await listener.wait()
        assert silence.cancelled_caught


async def test_a_later_schema_in_search_path_will_do(postgresql_database: str, postgresql_dsn: str) -> None:
    ((schema,),) = ask(postgresql_dsn, "SELECT current_schema()")
    await PostgreSQLStorage(postgresql_dsn).migrate()
    create_schema(postgresql_database, f"{schema}_first")
    both = PostgreSQLStorage(in_schema(postgresql_database, f"{schema}_first", schema))
    async with both, both.listen(["default"]) as listener, PostgreSQLStorage(postgresql_dsn) as storage:
        await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])
        with anyio.fail_after(5):
            assert await listener.wait() == {"default"}


async def test_a_server_that_is_too_old_is_refused(postgresql_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_postgresql_schema, "OLDEST", 99_00_00)
    storage = PostgreSQLStorage(postgresql_dsn)
    with pytest.raises(ConfigurationError, match=r"PostgreSQL \d+ is too old: creche needs PostgreSQL 99"):
        await storage.migrate()
    with pytest.raises(ConfigurationError, match="too old"):
        async with storage:
            pytest.fail("opened on an old server")
    assert tables(postgresql_dsn) == set()
