"""How statements are sent to PostgreSQL: one alone, or several in one transaction and one round trip.

It knows no table, and decides nothing about jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

from attrs import frozen
from psycopg import AsyncCursor

from creche.storage._psycopg import Connection

Link: TypeAlias = Connection[tuple[Any, ...]]
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[bytes, dict[str, Any]]

# What a URL's query may set besides libpq's own parameters.
OPTIONS: Final = frozenset({"pool_size", "call_timeout", "prepare_threshold", "skew_allowance"})


async def rows(connection: Link, statement: bytes, parameters: dict[str, Any]) -> list[Row]:
    """Run one statement in a transaction of its own: one round trip. One without RETURNING gives an empty list."""
    return await _answer(await connection.execute(statement, parameters))


async def together(connection: Link, statements: Sequence[Statement]) -> list[list[Row]]:
    """Run several statements in one transaction, and in one round trip: none waits for the answer of the one before."""
    async with connection.pipeline():
        cursors = [await connection.execute(statement, parameters) for statement, parameters in statements]
    return [await _answer(cursor) for cursor in cursors]


async def _answer(cursor: AsyncCursor[Row]) -> list[Row]:
    return await cursor.fetchall() if cursor.description else []


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
