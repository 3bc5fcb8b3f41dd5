"""Whatever state a file is in: it is brought up to date, or left as it was with a word about it. Never half of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from creche._ids import new_job_id
from creche._job import NewJob
from creche.errors import CrecheError
from creche.storage import _sqlite_schema as schema
from creche.storage._sql import Migration, load
from creche.storage.sqlite import SQLiteStorage
from fuzz.corpus import kept

FEWER = settings(max_examples=settings().max_examples // 4)  # each makes a file


def contents(path: Path) -> object:
    """All that is in a file, as SQLite sees it; the bytes, if it is no database."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path)) as connection:
            return list(connection.iterdump())
    except sqlite3.Error:
        return path.read_bytes()


async def is_brought_up_to_date_or_left_alone(path: Path) -> bool:
    before = contents(path)
    try:
        pending = [name for name, _ in await SQLiteStorage(path).pending_migrations()]
        assert contents(path) == before
        assert list(await SQLiteStorage(path).migrate()) == pending
    except CrecheError:
        assert contents(path) == before
        return False
    after = contents(path)
    assert list(await SQLiteStorage(path).migrate()) == []
    assert contents(path) == after
    return True


# --- files that something has happened to ------------------------------------------------------------


@FEWER
@given(st.lists(st.sampled_from(kept("migrations")), max_size=3))
def test_a_schema_that_was_changed_by_hand(statements: list[str]) -> None:
    with TemporaryDirectory() as folder:
        changed_by_hand(Path(folder) / "jobs.db", statements)


@pytest.mark.parametrize("statement", kept("migrations"))
def test_each_change_by_itself(tmp_path: Path, statement: str) -> None:
    changed_by_hand(tmp_path / "jobs.db", [statement])


def changed_by_hand(path: Path, statements: list[str]) -> None:
    async def check() -> None:
        await SQLiteStorage(path).migrate()
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in statements:
                try:
                    connection.execute(statement)
                except sqlite3.Error:
                    continue  # the one before has taken what it is about
        await is_brought_up_to_date_or_left_alone(path)

    anyio.run(check)


@FEWER
@given(cut=st.floats(0, 1), place=st.floats(0, 1), noise=st.binary(max_size=16))
def test_a_file_that_was_damaged(cut: float, place: float, noise: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        anyio.run(SQLiteStorage(path).migrate)
        kept_bytes = path.read_bytes()[: round(cut * path.stat().st_size)]
        start = round(place * len(kept_bytes))
        path.write_bytes(kept_bytes[:start] + noise + kept_bytes[start + len(noise) :])
        anyio.run(is_brought_up_to_date_or_left_alone, path)


@FEWER
@given(st.binary(max_size=200))
def test_a_file_that_never_was_a_database(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        path.write_bytes(content)
        if anyio.run(is_brought_up_to_date_or_left_alone, path):
            anyio.run(takes_a_job, path)


async def takes_a_job(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")])


# --- chains of migrations ----------------------------------------------------------------------------


@FEWER
@given(
    scripts=st.lists(
        st.lists(st.sampled_from(["table", "row", "index"]), min_size=1, max_size=3), min_size=1, max_size=4
    ),
    breaks_at=st.none() | st.integers(0, 3),
    from_version=st.integers(0, 4),
)
def test_a_chain_is_applied_whole_and_in_order_or_not_at_all(
    scripts: list[list[str]], breaks_at: int | None, from_version: int
) -> None:
    initial = list(load("sqlite").migrations)
    chain = initial + [
        Migration(version=number, name=f"{number:04}_more.sql", sql=script(number, parts, broken=number == breaks_at))
        for number, parts in enumerate(scripts, initial[-1].version + 1)
    ]

    def at(version: int) -> SQLiteStorage:
        storage = SQLiteStorage(path)
        known = [each for each in chain if each.version <= max(version, initial[-1].version)]
        storage._dialect = evolve(storage._dialect, migrations=known)
        return storage

    async def check() -> None:
        breaks = breaks_at is not None and breaks_at in [each.version for each in chain[len(initial) :]]
        started = not (breaks and breaks_at is not None and breaks_at <= from_version)
        if started:
            await at(from_version).migrate()
        before = contents(path)
        missing = [name for name, _ in await at(99).pending_migrations()]
        if not breaks:
            assert list(await at(99).migrate()) == missing
            assert applied(path) == [each.name for each in chain]
            return
        with pytest.raises(CrecheError):
            await at(99).migrate()
        assert contents(path) in (before, ["BEGIN TRANSACTION;", "COMMIT;"])

    with TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        anyio.run(check)


def script(number: int, parts: list[str], *, broken: bool) -> str:
    statements = [f"CREATE TABLE extra_{number} (a TEXT DEFAULT ';', b);  -- one; of them\n"]
    forms: dict[str, Callable[[int], str]] = {
        "table": lambda place: f"CREATE TABLE extra_{number}_{place} (a);\n",
        "row": lambda place: f"INSERT INTO extra_{number} (b) VALUES ('{place};');\n",
        "index": lambda place: f"CREATE INDEX extra_{number}_{place}_b ON extra_{number} (b);\n",
    }
    statements += [forms[part](place) for place, part in enumerate(parts)]
    return "".join([*statements, "INSERT INTO nowhere VALUES (1);\n"] if broken else statements)


def applied(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM creche_migrations ORDER BY version")]


STATEMENTS = st.sampled_from(
    [
        "CREATE TABLE a (b);",
        "INSERT INTO a VALUES ('x;\n y');",
        "CREATE TABLE \"semi;colon\" (b DEFAULT ';');",
        "-- a comment; with a semicolon\nDELETE FROM a;",
        "/* another;\n one */ DELETE FROM a;",
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n  DELETE FROM a;\n  DELETE FROM c;\nEND;",
    ]
)


@given(st.lists(STATEMENTS), st.sampled_from(["\n", "\n\n", "\n  \n"]))
def test_a_script_is_cut_where_its_statements_end_and_nowhere_else(statements: list[str], between: str) -> None:
    text = between.join(statements)
    assert [each.strip() for each in schema._statements(text)] == statements
    assert "".join(schema._statements(text)) == text
