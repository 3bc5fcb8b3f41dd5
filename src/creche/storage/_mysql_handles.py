"""Handles of the caller's own on MySQL: which there are, and whether they are in a transaction.

It runs no statement of its own, and ends no transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from inspect import isawaitable
from typing import Any, Final

from asyncmy.cursors import Cursor as AsyncmyCursor

from creche.errors import OptionInvalid
from creche.storage._handles import Ran, Run, is_one_of, through_sqlalchemy
from creche.storage._mysql_session import TransactionConnection

_DIALECTS: Final = frozenset({"mysql", "mariadb"})

# Whose cursors are awaited, and whose are not. The plain cursor is asked for: the connection's own may be another.
_ASYNCMY: Final[Mapping[str, Sequence[str]]] = {"asyncmy.connection": ("Connection",)}
_AIOMYSQL: Final[Mapping[str, Sequence[str]]] = {"aiomysql.connection": ("Connection",)}
_SYNC: Final[Mapping[str, Sequence[str]]] = {"pymysql.connections": ("Connection",)}

_SESSIONS: Final[Mapping[str, Sequence[str]]] = {
    "sqlalchemy.orm": ("Session", "scoped_session"),
    "sqlalchemy.ext.asyncio": ("AsyncSession", "async_scoped_session"),
}

_AUTOCOMMIT: Final = 2  # SERVER_STATUS_AUTOCOMMIT
_IN_TRANSACTION: Final = 1  # SERVER_STATUS_IN_TRANS

_RULE: Final = (
    "a connection of asyncmy, aiomysql or PyMySQL, or a session or connection of SQLAlchemy, on the same database"
)
_AUTOCOMMITS: Final = (
    "a connection in a transaction: this one is in autocommit mode, and would commit each statement by itself. Begin "
    "one first, or leave `connection` out"
)


async def through(handle: object) -> Run:
    """Return how statements are run through a handle.

    Raises:
        OptionInvalid: it is no handle of MySQL's or MariaDB's, or would commit each statement by itself.
    """
    if isinstance(handle, TransactionConnection):
        return _in_ours(handle)
    run = _natively(handle) or through_sqlalchemy(handle, _DIALECTS)
    if run is None:
        raise OptionInvalid("connection", handle, _RULE)
    # What the flags say may be older than the transaction, so a doubt is put to the server: OK packets carry them.
    if await _autocommits(handle):
        await run("DO 0")
        if await _autocommits(handle):
            raise OptionInvalid("connection", handle, _AUTOCOMMITS)
    return run


def _in_ours(connection: TransactionConnection) -> Run:
    """The transaction that a handler shares with its attempt's end is a handle, too."""

    async def run(text: str) -> Ran:
        cursor = await connection.execute(text)
        return Ran(await cursor.fetchall(), cursor.rowcount)

    return run


def _natively(handle: Any) -> Run | None:
    if is_one_of(handle, _SYNC):

        async def run_inline(text: str) -> Ran:
            with handle.cursor(sys.modules["pymysql.cursors"].Cursor) as cursor:
                affected = cursor.execute(text)
                return Ran([*cursor.fetchall()] if cursor.description else [], affected)

        return run_inline
    if is_one_of(handle, _ASYNCMY):
        plain: Any = AsyncmyCursor
    elif is_one_of(handle, _AIOMYSQL):
        plain = sys.modules["aiomysql.cursors"].Cursor
    else:
        return None

    async def run(text: str) -> Ran:
        async with handle.cursor(plain) as cursor:
            affected = await cursor.execute(text)
            return Ran([*await _finished(cursor.fetchall())] if cursor.description else [], affected)

    return run


async def _autocommits(handle: Any) -> bool:
    """Return whether the connection, by the flags that it had last, commits each statement by itself."""
    status = getattr(await _driver_connection(handle), "server_status", None)
    return isinstance(status, int) and bool(status & _AUTOCOMMIT) and not status & _IN_TRANSACTION


async def _driver_connection(handle: Any) -> Any:
    """Return the driver's connection beneath a handle; None if nobody can tell."""
    if _natively(handle) is not None:
        return handle
    if is_one_of(handle, _SESSIONS):
        handle = await _finished(handle.connection())
    if hasattr(handle, "get_raw_connection"):
        raw = await handle.get_raw_connection()
    else:
        raw = handle.connection
    return getattr(raw, "driver_connection", None)


async def _finished(answer: Any) -> Any:
    return await answer if isawaitable(answer) else answer
