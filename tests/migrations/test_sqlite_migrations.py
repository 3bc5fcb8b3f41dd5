"""SQLite's schema: made when it is opened, by one of many, all or nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from creche._ids import new_job_id
from creche._job import NewJob
from creche.errors import ConfigurationError, StatementRejected
from creche.storage import _sqlite_schema as schema
from creche.storage._sql import Migration, load
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

NAMES = [migration.name for migration in load("sqlite").migrations]
OPENER = """
import sys, anyio
from creche.storage.sqlite import SQLiteStorage

async def main():
    sys.stdin.readline()
    async with SQLiteStorage(sys.argv[1]) as storage:
        print(len(await storage.stats()))

anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


async def test_asking_what_is_pending_makes_no_file(path: Path) -> None:
    assert [name for name, _ in await SQLiteStorage(path).pending_migrations()] == NAMES
    assert not await anyio.Path(path).exists()


async def test_migrating_twice_does_nothing_the_second_time(path: Path) -> None:
    storage = SQLiteStorage(path)
    assert list(await storage.migrate()) == NAMES
    assert list(await storage.migrate()) == []
    assert list(await storage.pending_migrations()) == []
    assert tables(path) == {
        "creche_jobs",
        "creche_dead_letters",
        "creche_queues",
        "creche_workers",
        "creche_migrations",
    }


async def test_opening_migrates(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        assert list(await storage.pending_migrations()) == []
        assert list(await storage.migrate()) == []


async def test_what_is_applied_is_written_down(path: Path) -> None:
    await SQLiteStorage(path).migrate()
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT version, name, applied_at > 1700000000000000 FROM creche_migrations"
        ).fetchall()
    assert rows == [(int(name[:4]), name, 1) for name in NAMES]


async def test_a_migration_that_fails_leaves_nothing_behind(path: Path) -> None:
    storage = SQLiteStorage(path)
    broken = Migration(version=9_999, name="9999_broken.sql", sql="CREATE TABLE half (a);\nCREATE TABLE half (a);\n")
    storage._dialect = evolve(storage._dialect, migrations=[*storage._dialect.migrations, broken])
    with pytest.raises(StatementRejected, match="half"):
        await storage.migrate()
    assert tables(path) == set()
    with pytest.raises(StatementRejected, match="half"):
        async with storage:
            pytest.fail("opened with half a schema")
    assert tables(path) == set()


async def test_a_schema_that_is_newer_is_left_alone(path: Path) -> None:
    await SQLiteStorage(path).migrate()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO creche_migrations VALUES (9999, '9999_from_the_future.sql', 0)")
    assert list(await SQLiteStorage(path).pending_migrations()) == []
    async with SQLiteStorage(path) as storage:
        assert list(await storage.migrate()) == []
        await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])


@pytest.mark.parametrize("version", ["'x'", "0.5", "x'00'"])
async def test_a_table_of_that_name_that_is_somebody_elses_is_left_alone(path: Path, version: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE creche_migrations AS SELECT {version} AS version")
    storage = SQLiteStorage(path)
    for look in (storage.pending_migrations, storage.migrate):
        with pytest.raises(ConfigurationError, match="creche_migrations is not creche's"):
            await look()
    assert tables(path) == {"creche_migrations"}


async def test_of_many_storages_that_open_a_new_file_at_once_one_migrates(path: Path) -> None:
    applied: list[str] = []

    async def migrate() -> None:
        applied.extend(await SQLiteStorage(path).migrate())

    async with anyio.create_task_group() as openers:
        for _ in range(8):
            openers.start_soon(migrate)
    assert applied == NAMES


def test_processes_that_open_a_new_file_at_once_all_succeed(path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", OPENER, str(path)]
    openers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for opener in openers:  # all have imported what they need when they are let go
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    answers = [opener.communicate(timeout=60) for opener in openers]
    assert answers == [("0\n", "")] * 4


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("CREATE TABLE a (b);\n\n-- why; not\nCREATE TABLE c (d TEXT DEFAULT ';');\n", 2),
        ("CREATE TRIGGER t AFTER INSERT ON a BEGIN\n  DELETE FROM a;\n  DELETE FROM c;\nEND;\nSELECT 1", 2),
    ],
)
def test_a_script_is_cut_where_its_statements_end(script: str, statements: int) -> None:
    assert len(list(schema._statements(script))) == statements
