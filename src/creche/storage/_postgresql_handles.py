"""Dispatch through a caller's own handle on PostgreSQL: which ones are taken, and how statements go through them.

It ends no transaction, runs nothing again and translates no error: all of that is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from attrs import frozen
from psycopg import pq
from psycopg.rows import tuple_row

from creche.errors import OptionInvalid
from creche.storage._handles import Ran, Run, is_one_of, through_sqlalchemy
from creche.storage._postgresql_calls import Row

_DIALECTS: Final = frozenset({"postgresql"})
_ASYNCPG: Final[Mapping[str, Sequence[str]]] = {
    "asyncpg.connection": ("Connection",),
    "asyncpg.pool": ("PoolConnectionProxy",),
}
_IN_TRANSACTION: Final = (
    "a connection in a transaction: each statement of this one is committed by itself, and a dispatch may take several"
)
_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")
_TABLE: Final = re.compile(r"\bcreche_(?:jobs|dead_letters|watches|queues|workers)\b")


def through(handle: object) -> Run:
    """Return how to run statements through a handle of the caller's.

    Raises:
        OptionInvalid: it is none that is known, or in no transaction.
    """
    theirs: Any = handle
    alone = False
    run: Run | None
    if isinstance(theirs, psycopg.AsyncConnection | psycopg.Connection):
        alone = theirs.autocommit and theirs.info.transaction_status == pq.TransactionStatus.IDLE
        run = partial(_psycopg if isinstance(theirs, psycopg.AsyncConnection) else _psycopg_sync, handle)
    elif is_one_of(handle, _ASYNCPG):
        alone = not theirs.is_in_transaction()
        run = partial(_asyncpg, handle)
    else:
        run = through_sqlalchemy(handle, _DIALECTS)
    if run is None:
        raise OptionInvalid("connection", handle, "a connection of psycopg, asyncpg or SQLAlchemy, or a session of it")
    if alone:
        raise OptionInvalid("connection", handle, _IN_TRANSACTION)
    return run


# Cursors of our own: the caller's connection may make some that give dicts, or that take other placeholders. Within a
# pipeline of the caller's an answer has to be asked for.


async def _psycopg(connection: Any, text: str) -> Ran:
    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(text.encode())
        if connection.pgconn.pipeline_status:
            async with connection.pipeline() as pipeline:
                await pipeline.sync()
        return Ran(await cursor.fetchall() if cursor.description else [], cursor.rowcount)


async def _psycopg_sync(connection: Any, text: str) -> Ran:
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(text.encode())
        if connection.pgconn.pipeline_status:
            with connection.pipeline() as pipeline:
                pipeline.sync()
        return Ran(cursor.fetchall() if cursor.description else [], cursor.rowcount)


async def _asyncpg(connection: Any, text: str) -> Ran:
    rows = [tuple(record.values()) for record in await connection.fetch(text)]
    return Ran(rows, len(rows))


@frozen
class HandleRunner:
    """Runs statements in the caller's transaction, one after the other.

    Attributes:
        schema: where the queue's tables stand: the caller's search_path may lead elsewhere.
    """

    run: Run
    sql: Mapping[str, bytes]
    schema: str

    async def rows(self, name: str, parameters: dict[str, Any]) -> Sequence[Row]:
        """See `Runner.rows`."""
        return (await self.run(rendered(self.sql[name].decode(), parameters, schema=self.schema))).rows

    async def together(self, names: Sequence[str], parameters: dict[str, Any]) -> Sequence[Sequence[Row]]:
        """See `Runner.together`."""
        return [await self.rows(name, parameters) for name in names]


def rendered(text: str, parameters: Mapping[str, Any], *, schema: str) -> str:
    """Return a statement as a whole text, its tables named in full.

    Strings go into it as hexadecimal digits, so that neither a setting of the session nor a driver that looks for
    placeholders can read them otherwise than they are.
    """
    text = named_in_full(text, schema=schema)
    return _PLACEHOLDER.sub(lambda name: _literal(parameters[name[1]]), text).replace("%%", "%")


def named_in_full(text: str, *, schema: str) -> str:
    """Return a statement, its placeholders as they were, that means the queue's tables whatever the search_path is."""
    home = '"' + schema.replace('"', '""').replace("%", "%%") + '"'
    return _TABLE.sub(lambda table: f"{home}.{table[0]}", text)


def _literal(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case int() | float():
            return repr(value)
        case str():
            return f"convert_from(decode('{value.encode().hex()}', 'hex'), 'UTF8')"
        case datetime():
            return _literal(value.isoformat())
        case _:
            return _literal(_texts(value))


def _texts(values: Sequence[UUID]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def json_texts(names: Sequence[str]) -> str:
    """Return names as a JSON array."""
    return msgspec.json.encode(names).decode()
