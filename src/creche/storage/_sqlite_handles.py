"""Connections of the caller's own to the same SQLite file: finds out whether one will do, and how statements are run
through it. It begins no transaction and ends none, tries nothing again and translates no error.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, TypeAlias

from creche.errors import OptionInvalid
from creche.storage._handles import Ran, Run, is_one_of, through_sqlalchemy
from creche.storage._sqlite_session import Connection

_AIOSQLITE: Final[Mapping[str, Sequence[str]]] = {"aiosqlite": ("Connection",)}
_RULE: Final = (
    "the connection of a handler's transaction, a sqlite3.Connection, an aiosqlite.Connection, "
    "or a Session, AsyncSession, Connection or AsyncConnection of SQLAlchemy"
)
# Comments go, since some drivers look for a statement's first word, and only there; what is quoted stays.
_TOKEN: Final = re.compile(r"--[^\n]*|'(?:[^']|'')*'|:([a-z_]+)")

RunNamed: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[Sequence[Sequence[Any]]]]


async def through(handle: object, path: Path, texts: Mapping[str, str]) -> RunNamed:
    """Return how to run statements by name through a handle that is connected to the file `path`.

    Raises:
        OptionInvalid: it is no handle, or on another file, or would commit each statement by itself.
    """
    run = _within(handle) or _natively(handle) or through_sqlalchemy(handle, {"sqlite"})
    if run is None:
        raise OptionInvalid("connection", handle, _RULE)
    found = (await run("PRAGMA database_list")).rows
    if not _is_file(path, [_plain(row[2]) for row in found if _plain(row[1]) == "main"]):
        raise OptionInvalid("connection", handle, f"a connection to {path}")
    # It finds nothing, but it is a write: the lock is taken before anything is read, and a driver that begins
    # transactions by itself has begun one now.
    await run(with_values(texts["expire_results"], {"fingerprints": "[]", "now": 0}))
    if not isinstance(handle, Connection) and not (await _driver_connection(handle)).in_transaction:
        raise OptionInvalid(
            "connection", handle, "a connection in a transaction: this one would commit each statement by itself"
        )

    async def run_named(name: str, columns: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        ran = await run(with_values(texts[name], columns))
        return [tuple(map(_plain, row)) for row in ran.rows]

    return run_named


def with_values(text: str, columns: Mapping[str, Any]) -> str:
    """Return a statement with its values in it, and without its comments."""

    def replace(found: re.Match[str]) -> str:
        if found[1]:
            return literal(columns[found[1]])
        return "" if found[0].startswith("--") else found[0]

    return _TOKEN.sub(replace, text).strip()


def literal(value: str | int | None) -> str:
    """Return a value as SQL. SQLite knows no escapes: a quote is doubled, and everything else is what it is."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(int(value))


# --- drivers ----------------------------------------------------------------------------------------


def _within(handle: object) -> Run | None:
    """Return how to run statements in a handler's transaction; None if it is none."""
    if not isinstance(handle, Connection):
        return None

    async def run(text: str) -> Ran:
        cursor = await handle.execute(text)
        return Ran(await cursor.fetchall(), cursor.rowcount)

    return run


def _natively(handle: Any) -> Run | None:
    """Return how to run statements on a connection of a driver; None if it is none.

    One of sqlite3 is used here and now: it belongs to its thread.
    """
    if not isinstance(handle, sqlite3.Connection) and not is_one_of(handle, _AIOSQLITE):
        return None

    async def run(text: str) -> Ran:
        cursor = await _finished(handle.cursor())
        try:
            cursor.row_factory = None
            await _finished(cursor.execute(text))
            return Ran(await _finished(cursor.fetchall()), cursor.rowcount)
        finally:
            await _finished(cursor.close())

    return run


async def _driver_connection(handle: Any) -> Any:
    """Return the connection of the driver beneath a handle of SQLAlchemy, or the handle."""
    if isinstance(handle, sqlite3.Connection) or is_one_of(handle, _AIOSQLITE):
        return handle
    connection = handle
    if not hasattr(handle, "exec_driver_sql"):  # a session
        connection = await _finished(handle.connection())
    if hasattr(connection, "get_raw_connection"):  # an async one
        return (await connection.get_raw_connection()).driver_connection
    return connection.connection.driver_connection


def _is_file(path: Path, names: Sequence[str]) -> bool:
    try:
        return any(name and path.samefile(name) for name in names)
    except OSError:
        return False


def _plain(value: Any) -> Any:
    """Undo a text_factory that makes bytes: no statement of a dispatch returns any."""
    return bytes(value).decode() if isinstance(value, bytes | bytearray) else value


async def _finished(answer: Any) -> Any:
    return await answer if isawaitable(answer) else answer
