"""Brings one SQLite file's schema to this version. It runs in a worker thread, on a connection that it is given."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence

from creche.errors import ConfigurationError
from creche.storage._sql import Dialect, Migration


def version(connection: sqlite3.Connection) -> int:
    """Return the schema's version, 0 if there is none.

    Raises:
        ConfigurationError: somebody else has a table of that name.
    """
    here = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'creche_migrations'").fetchone()
    if here is None:
        return 0
    found: object = connection.execute("SELECT coalesce(max(version), 0) FROM creche_migrations").fetchone()[0]
    if not isinstance(found, int):  # SQLite's columns take anything
        raise ConfigurationError(f"the table creche_migrations is not creche's: {found!r} is no version of a schema")
    return found


def pending(dialect: Dialect, found: int) -> Sequence[Migration]:
    """Return the migrations that a schema of version `found` lacks."""
    return [migration for migration in dialect.migrations if migration.version > found]


def apply(connection: sqlite3.Connection, dialect: Dialect, *, up_to: int | None = None) -> Sequence[str]:
    """Apply what is pending and return the names. The caller has begun a transaction, so that of several processes that
    open a new file at once, one migrates and the others find it done.

    Args:
        connection: in a transaction.
        dialect: has the migrations.
        up_to: the last version that is wanted; None: all.
    """
    applied = pending(dialect, version(connection))
    if up_to is not None:
        applied = [migration for migration in applied if migration.version <= up_to]
    for migration in applied:
        for statement in _statements(migration.sql):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO creche_migrations (version, name, applied_at) VALUES (?, ?, ?)",
            (migration.version, migration.name, time.time_ns() // 1_000),
        )
    return [migration.name for migration in applied]


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements: `executescript` would commit the transaction first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
