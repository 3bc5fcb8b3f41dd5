"""How statements are sent to MySQL: several in one round trip, in one transaction that is undone if one of them fails.

It knows no table, and decides nothing about jobs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from asyncmy.errors import MySQLError

from creche.storage._asyncmy import Answer, Connection

Row: TypeAlias = tuple[Any, ...]

BEGIN: Final = "START TRANSACTION"
COMMIT: Final = "COMMIT"

DUPLICATE: Final = 1062  # ER_DUP_ENTRY

# Bytes left over for what the protocol and the separators add.
MARGIN: Final = 1024


@asynccontextmanager
async def undone_on_error(
    connection: Connection, kinds: tuple[type[Exception], ...] = (MySQLError,)
) -> AsyncGenerator[None]:
    """Roll back what the server refused, so that the connection can be lent again. A cancelled one is dropped anyway.

    Always all of it: after 1205 the server itself may have undone no more than a statement.
    """
    try:
        yield
    except kinds:
        if connection.in_transaction and not connection.closed:
            await connection.run("ROLLBACK")
        raise


async def together(connection: Connection, statements: Sequence[str]) -> list[Answer]:
    """Run statements in one transaction; see `send`."""
    async with undone_on_error(connection):
        return (await send(connection, [BEGIN, *statements, COMMIT]))[1:-1]


async def send(connection: Connection, statements: Sequence[str]) -> list[Answer]:
    """Run statements that are in a transaction, or are one, in as few round trips as the server bears."""
    answers: list[Answer] = []
    for trip in trips(statements, connection.max_allowed_packet, apart=connection.membership.apart):
        answers += await connection.run(";\n".join(trip))
    return answers


async def without_limit(connection: Connection) -> None:
    """Let the statements of this session take as long as they take: those that sleep, or wait for their turn."""
    limit = "max_statement_time" if connection.server.mariadb else "max_execution_time"
    await connection.run(f"SET SESSION {limit} = 0")


def trips(statements: Sequence[str], most: int, *, apart: bool = False) -> Iterator[list[str]]:
    """Cut a list of statements into what the server takes at once: `most` bytes, and if `apart`, one statement after
    that which begins the transaction.
    """
    trip: list[str] = []
    size = 0
    for statement in statements:
        length = _size(statement)
        if trip and (size + length > most - MARGIN or (apart and trip != [BEGIN])):
            yield trip
            trip, size = [], 0
        trip.append(statement)
        size += length
    yield trip


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def chunks(elements: Sequence[str], most: int, *, quoted: bool = True) -> Iterator[list[str]]:
    """Cut the elements of a statement so that each part, with commas between, stays well below the server's limit.

    Args:
        elements: of a document, see `_mysql_rows.document`, or of SQL.
        most: bytes that the server takes at once.
        quoted: they will stand in a string, which doubles their quotes.
    """
    chunk: list[str] = []
    size = 0
    for element in elements:
        length = _size(element) + (element.count("'") if quoted else 0) + 2
        if chunk and size + length > most * 3 // 4:
            yield chunk
            chunk, size = [], 0
        chunk.append(element)
        size += length
    if chunk:
        yield chunk


def bare(text: str) -> str:
    """Return a statement without its comments, which are for people, not for the wire."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--")).strip()
