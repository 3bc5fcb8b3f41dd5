"""How statements are sent to PostgreSQL: one alone, or several in one transaction and one round trip.

It knows no table, and decides nothing about jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, Protocol, TypeAlias

from attrs import frozen
from psycopg import AsyncCursor

from creche.storage._psycopg import Connection

Link: TypeAlias = Connection[tuple[Any, ...]]
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[bytes, dict[str, Any]]

# What a URL's query may set besides libpq's own parameters.
OPTIONS: Final = frozenset({"pool_size", "call_timeout", "prepare_threshold", "skew_allowance"})


async def rows(connection: Link, statement: bytes, parameters: dict[str, Any], *, steady: bool = False) -> list[Row]:
    """Run one statement in a transaction of its own: one round trip. One without RETURNING gives an empty list.

    A steady one has a plan that will do whatever the tables hold by then, so that it may be kept.
    """
    prepare = None if steady else connection.unsteady
    return await _answer(await connection.execute(statement, parameters, prepare=prepare))


async def together(connection: Link, statements: Sequence[Statement]) -> list[list[Row]]:
    """Run several statements in one transaction, and in one round trip: none waits for the answer of the one before."""
    async with connection.pipeline():
        cursors = [
            await connection.execute(statement, parameters, prepare=connection.unsteady)
            for statement, parameters in statements
        ]
    return [await _answer(cursor) for cursor in cursors]


async def written(connection: Link, statement: bytes, parameters: Iterable[dict[str, Any]]) -> int:
    """Run one statement with each of the parameters in turn, all in one transaction; return how many rows were written.
    It is a steady one: it looks for nothing.

    The next parameters are made while the server works on those before.
    """
    first = next(each := iter(parameters))
    second = next(each, None)
    if second is None:
        return (await connection.execute(statement, first)).rowcount
    async with connection.pipeline():
        cursors = [await connection.execute(statement, some) for some in chain((first, second), each)]
    return sum(cursor.rowcount for cursor in cursors)


async def _answer(cursor: AsyncCursor[Row]) -> list[Row]:
    answer = cursor.pgresult  # `cursor.description` would be made anew, column by column
    return await cursor.fetchall() if answer is not None and answer.nfields else []


class Runner(Protocol):
    """Runs statements by their names, in one transaction or in none: whoever made it knows."""

    async def rows(self, name: str, parameters: dict[str, Any]) -> Sequence[Row]:
        """Run one statement."""
        ...

    async def together(self, names: Sequence[str], parameters: dict[str, Any]) -> Sequence[Sequence[Row]]:
        """Run several statements in one transaction; each takes of the parameters what it names."""
        ...


@frozen
class OwnRunner:
    """Runs statements on a connection of the pool: each call is a transaction, unless one has begun."""

    connection: Link
    sql: Mapping[str, bytes]

    async def rows(self, name: str, parameters: dict[str, Any]) -> Sequence[Row]:
        """See `Runner.rows`: one round trip."""
        return await rows(self.connection, self.sql[name], parameters)

    async def together(self, names: Sequence[str], parameters: dict[str, Any]) -> Sequence[Sequence[Row]]:
        """See `Runner.together`: one round trip."""
        return await together(self.connection, [(self.sql[name], parameters) for name in names])

    @property
    def speaks_utf8(self) -> bool:
        """Whether text goes over this connection as we encode it, so that we may do that ourselves."""
        return self.connection.pgconn.parameter_status(b"client_encoding") == b"UTF8"

    async def written(self, name: str, parameters: Iterable[dict[str, Any]]) -> int:
        """Run one statement with each of the parameters, in a transaction; return how many rows were written."""
        return await written(self.connection, self.sql[name], parameters)


def bare(text: str) -> bytes:
    """Return a statement without its comments, which are for people, not for the wire."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--")).encode()


def split_options(dsn: str) -> tuple[str, dict[str, int | float | str]]:
    """Return a DSN without the options that are the storage's own, and those: libpq would refuse them.

    What is no number stays text, for whoever checks it.
    """
    address, _, query = dsn.partition("?")
    if "://" not in address or not query:
        return dsn, {}
    pairs = [pair.partition("=") for pair in query.split("&")]
    ours = {name: _number(value) for name, _, value in pairs if name in OPTIONS}
    rest = "&".join(f"{name}={value}" for name, _, value in pairs if name not in OPTIONS)
    return f"{address}?{rest}" if rest else address, ours


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
