"""A transaction on an SQLite file that user code writes in: one connection, begun with its first statement, used by one
thread at a time. It knows no job and no statement of creche's, and translates no error of the user's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, Final, Self, TypeAlias, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from creche.errors import UsageError
from creche.storage._sqlite3 import Database, Open, begin, roll_back, to_the_end, translated

T = TypeVar("T")
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any]

_STEPS: Final = 100_000  # of SQLite's machine, some milliseconds, after which a statement looks whether it is cancelled


class Connection:
    """A connection in a transaction: what is written through it is committed with the end of the attempt, or never.

    What its statements raise are the exceptions of `sqlite3`. A statement that is cancelled is interrupted. It may be
    used by several tasks: one statement runs at a time. COMMIT and ROLLBACK are not for it; savepoints are.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def execute(self, sql: str, parameters: Parameters = ()) -> Cursor:
        """Run one statement, and fetch all its rows.

        Args:
            sql: with `?` or `:name` for each parameter.
            parameters: their values.

        Raises:
            StorageUnavailable: the transaction could not be begun.
            UsageError: the transaction is over.
        """

        def work(connection: sqlite3.Connection) -> Cursor:
            with closing(connection.cursor()) as cursor:
                cursor.row_factory = None
                return Cursor(cursor.execute(sql, parameters))

        return await self._session.run(work)

    async def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Cursor:
        """Run one statement for each of a sequence of parameters; it may not return rows.

        Raises:
            StorageUnavailable: the transaction could not be begun.
            UsageError: the transaction is over.
        """

        def work(connection: sqlite3.Connection) -> Cursor:
            with closing(connection.cursor()) as cursor:
                return Cursor(cursor.executemany(sql, parameters))

        return await self._session.run(work)


class Cursor:
    """What a statement answered: plain tuples, fetched already. Each is given out once.

    Attributes:
        rowcount: how many rows were written; -1 after a statement that reads.
        lastrowid: of the last row that was inserted, on this connection.
        description: a tuple for each column, with its name at the front; None if the statement returns no rows.
    """

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.description: tuple[tuple[str, None, None, None, None, None, None], ...] | None = cursor.description
        self._rows: list[tuple[Any, ...]] = cursor.fetchall()
        self._next = 0
        self.rowcount: int = cursor.rowcount  # known when all rows have been fetched
        self.lastrowid: int | None = cursor.lastrowid

    async def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, or None."""
        await anyio.lowlevel.checkpoint()
        if self._next == len(self._rows):
            return None
        self._next += 1
        return self._rows[self._next - 1]

    async def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows that are left."""
        await anyio.lowlevel.checkpoint()
        left, self._next = self._rows[self._next :], len(self._rows)
        return left

    async def __aiter__(self) -> AsyncIterator[tuple[Any, ...]]:
        """Go through the rows that are left."""
        while (row := await self.fetchone()) is not None:
            yield row


class Session:
    """The transaction itself: begun by the first thing that is done in it, and over when its block is left."""

    def __init__(self, database: Database) -> None:
        self.connection = Connection(self)
        self._database = database
        self._one_at_a_time = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._opened: Open | None = None  # whose turn to write is ours
        self._raw: sqlite3.Connection | None = None
        self._over: Exception | None = None

    @classmethod
    @asynccontextmanager
    async def of(cls, database: Database) -> AsyncGenerator[Self]:
        """Have a transaction that is rolled back when the block is left, unless it was committed."""
        database.opened()
        session = cls(database)
        await anyio.lowlevel.checkpoint()
        try:
            yield session
        finally:
            with anyio.CancelScope(shield=True):
                await session.end()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` within the transaction, in a worker thread; what it raises is raised.

        Raises:
            StorageUnavailable: the transaction could not be begun.
            UsageError: it is over.
        """
        async with self._one_at_a_time:
            if self._over is not None:
                raise self._over
            if self._raw is None:
                await self._begin()
            raw = self._raw
            assert raw is not None  # noqa: S101 - begun just now
            return await to_the_end(partial(self._work, raw, work), self._thread, interrupt=raw.interrupt)

    async def commit(self) -> None:
        """Commit, if anything was begun.

        Raises:
            StorageUnavailable: it was not answered.
            UsageError: the transaction was over before.
        """

        def work(connection: sqlite3.Connection) -> None:
            with translated(self._database.path):
                connection.execute("COMMIT")

        async with self._one_at_a_time:
            if self._over is not None:
                raise self._over
            if self._raw is not None:
                await to_the_end(partial(work, self._raw), self._thread)

    async def end(self) -> None:
        """Roll back what was not committed, and let others write, whatever cancels this."""
        cancelled = None
        while True:
            try:
                await self._one_at_a_time.acquire()
                break
            except anyio.get_cancelled_exc_class() as error:  # asyncio's own, which no shield holds off: see to_the_end
                cancelled = error
        try:
            await self._end()
        finally:
            self._one_at_a_time.release()
        if cancelled is not None:
            raise cancelled

    async def _end(self) -> None:
        self._over = UsageError("the transaction is over: its block was left")
        raw, self._raw = self._raw, None
        opened, self._opened = self._opened, None
        if raw is None or opened is None or opened.inherited:
            return
        try:
            await to_the_end(partial(_close, raw), self._thread)
        finally:
            opened.held.discard(raw)
            opened.turn.release_on_behalf_of(self)

    async def _begin(self) -> None:
        opened = self._database.opened()

        def hop() -> None:
            self._database.check(opened)
            with translated(self._database.path):
                raw = self._database.connect(create=False)
                try:
                    begin(raw, self._database.busy_timeout)
                    raw.set_progress_handler(anyio.from_thread.check_cancelled, _STEPS)
                except BaseException:
                    raw.close()
                    raise
            opened.held.add(raw)
            self._raw = raw

        await self._database.take_turn(opened, self)
        try:
            await to_the_end(hop, self._thread)
        finally:
            if self._raw is None:
                opened.turn.release_on_behalf_of(self)
            else:
                self._opened = opened

    def _work(self, raw: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            result = work(raw)
        except Exception as error:
            if not raw.in_transaction:
                self._over = UsageError(f"the transaction is over: SQLite rolled it back ({error})")
                self._over.__cause__ = error
            if sqlite3.SQLITE_INTERRUPT in {
                getattr(each, "sqlite_errorcode", None) for each in (error, error.__cause__)
            }:
                anyio.from_thread.check_cancelled()
            raise
        if not raw.in_transaction:
            self._over = UsageError("the transaction is over: it was committed or rolled back by a statement in it")
            raise self._over
        return result


def _close(connection: sqlite3.Connection) -> None:
    connection.set_progress_handler(None, 0)
    roll_back(connection)
    with suppress(sqlite3.Error):
        connection.close()
