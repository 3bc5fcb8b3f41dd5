"""How a piece of work reaches PostgreSQL: on a pooled connection, under one deadline, again where that is called for.

It knows no table and no statement, and decides nothing about jobs.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

import anyio
from anyio import current_time, move_on_after

from creche.errors import QueueNotOpen, StorageUnavailable
from creche.storage._pool import Pool, TransientConflict
from creche.storage._psycopg import Connection, PsycopgDriver, translated

Link: TypeAlias = Connection[tuple[Any, ...]]
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[bytes, dict[str, Any]]
T = TypeVar("T")

# What a URL's query may set besides libpq's own parameters.
OPTIONS: Final = frozenset({"pool_size", "call_timeout", "prepare_threshold"})

# How often a transaction is run that the server undoes in favour of another, and how often a call is sent whose
# connection breaks. Every call of creche can be sent again, so a restarted server costs its callers no error.
CONFLICTS: Final = 6
BREAKS: Final = 3

# Seconds, doubling with each conflict and spread, so that two rivals don't meet again.
FIRST_PAUSE: Final = 0.01


class Calls:
    """Runs pieces of work, each on a connection of its own.

    Args:
        dsn: where the database is.
        pool_size: how many connections at most.
        timeout: seconds for a call as a whole: waiting for a connection, connecting, every repetition. The end of a
            transaction of several statements may take two seconds more.
        prepare_threshold: how often a statement is sent before it is prepared; None never prepares.
    """

    def __init__(self, dsn: str, *, pool_size: int, timeout: float, prepare_threshold: int | None) -> None:
        self.driver: Final = PsycopgDriver(dsn)
        self.timeout: Final = timeout
        self._size = pool_size
        self._prepare_threshold = prepare_threshold
        self._pool: Pool[Link] | None = None

    def open(self) -> None:
        """Allow calls. Nothing is connected to yet."""
        self._pool = Pool(self.driver, size=self._size, timeout=self.timeout)

    async def aclose(self) -> None:
        """Close what is idle now and what is in use when it comes back; refuse further calls."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def run(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Run `work` on a connection that is in no transaction, and return what it returned.

        It may be run several times, so it must be harmless to repeat, also after it took effect.

        Raises:
            StorageUnavailable: no connection, or no answer in time; the outcome is unknown.
            StatementRejected: the server refused for good.
        """
        pool = self._pool
        if pool is None:
            raise QueueNotOpen
        with move_on_after(self.timeout):
            return await self._persist(pool, work)
        raise StorageUnavailable(f"PostgreSQL gave no answer in {self.timeout:g} s: the outcome is unknown")

    async def _persist(self, pool: Pool[Link], work: Callable[[Link], Awaitable[T]]) -> T:
        conflicts = breaks = 0
        deadline = current_time() + self.timeout
        while True:
            # A little less than is left: the pool's own error says why there is no connection.
            async with pool.acquire(max(0.0, (deadline - current_time()) * 0.9)) as connection:
                connection.prepare_threshold = self._prepare_threshold
                try:
                    with translated():
                        return await work(connection)
                except TransientConflict:
                    conflicts += 1
                    if conflicts >= CONFLICTS:
                        raise
                    pause = FIRST_PAUSE * 2**conflicts * random.uniform(0.5, 1.0)  # noqa: S311 - spreads rivals
                except StorageUnavailable:
                    # A dead socket, or a live one to a server that became a standby: it is not to be lent again.
                    connection.cancel()
                    breaks += 1
                    if breaks >= BREAKS:
                        raise
                    pause = 0.0  # the pool spaces its connects
            await anyio.sleep(pause)


async def rows(connection: Link, statement: bytes, parameters: dict[str, Any]) -> list[Row]:
    """Run one statement in a transaction of its own: one round trip."""
    return await (await connection.execute(statement, parameters)).fetchall()


async def together(connection: Link, statements: Sequence[Statement]) -> list[list[Row]]:
    """Run several statements in one transaction, and in one round trip: none waits for the answer of the one before.

    One that answers with no rows, an UPDATE without RETURNING, gives an empty list.
    """
    async with connection.pipeline():
        cursors = [await connection.execute(statement, parameters) for statement, parameters in statements]
    return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]


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
