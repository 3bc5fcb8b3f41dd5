"""A handler's transaction on PostgreSQL: its own writes and the end of its attempt, committed together or not at all.

Its connections are none of those that calls use: a handler that takes its time never keeps a renewal waiting.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Final

import anyio
from anyio import CancelScope, current_time, move_on_after
from attrs import frozen
from psycopg import pq

from creche._job import Settlement
from creche.errors import QueueNotOpen, StatementRejected, StorageUnavailable, UsageError
from creche.storage._pool import Pool
from creche.storage._postgresql_calls import Link, OwnRunner
from creche.storage._postgresql_handles import named_in_full
from creche.storage._postgresql_settle import Ended, end_attempts
from creche.storage._psycopg import FAREWELL, PsycopgDriver, translated

_ABORTED: Final = (
    "a statement of this transaction failed, so PostgreSQL would commit nothing of it: let the error end the attempt, "
    "or put what may fail in `async with connection.transaction():`, which undoes just that"
)
_ENDED: Final = (
    "the handler ended the transaction that the end of its attempt was to be written in: leave COMMIT and ROLLBACK to "
    "creche, and put what may be undone in `async with connection.transaction():`"
)
_BUSY: Final = "the connection of the handler's transaction is in use still: end what was begun on it"


@frozen
class _Lending:
    """What exists only while the storage is open."""

    pool: Pool[Link]
    turns: anyio.Semaphore
    sql: Mapping[str, bytes]


class Transactions:
    """Lends connections that are in a transaction.

    Args:
        driver: how to connect.
        sql: the statements.
        size: how many at once; whoever comes next waits for as long as it likes.
        timeout: seconds for each step of ours: to connect, to begin, to settle, to commit.
    """

    def __init__(self, driver: PsycopgDriver, *, sql: Mapping[str, bytes], size: int, timeout: float) -> None:
        self._driver = driver
        self._sql = sql
        self._size = size
        self._timeout = timeout
        self._lending: _Lending | None = None

    def open(self, schema: str) -> None:
        """Allow transactions, in which the queue's tables stand in this schema: a handler's search_path may lead
        elsewhere. Nothing is connected to yet.
        """
        pool = Pool(self._driver, size=self._size, timeout=self._timeout)
        sql = {name: named_in_full(text.decode(), schema=schema).encode() for name, text in self._sql.items()}
        self._lending = _Lending(pool, anyio.Semaphore(self._size), sql)

    async def aclose(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        lending, self._lending = self._lending, None
        if lending is not None:
            await lending.pool.aclose()

    @asynccontextmanager
    async def begin(self, wake: Callable[[Collection[str]], None]) -> AsyncGenerator[PostgreSQLTransaction]:
        """Lend one; see `Storage.transaction`. After the commit, `wake` is told whom."""
        lending = self._lending
        if lending is None:
            raise QueueNotOpen
        async with lending.turns, lending.pool.acquire() as connection:
            connection.forget()
            block = connection.transaction()
            with self._bounded(connection):
                await block.__aenter__()
            transaction = PostgreSQLTransaction(connection, lending.sql, self._bounded)
            try:
                yield transaction
                transaction.check()
            except Exception as error:
                with suppress(StorageUnavailable, StatementRejected), self._bounded(connection):
                    await block.__aexit__(type(error), error, error.__traceback__)
                await self._tidy(connection)
                raise
            except BaseException as error:
                # Cancelled: cut off, the server undoes what it was not told to commit. Nothing is sent or waited for.
                connection.cancel()
                await block.__aexit__(type(error), error, error.__traceback__)
                raise
            with self._bounded(connection):
                await block.__aexit__(None, None, None)
            wake(transaction.woken)
            await self._tidy(connection)

    @contextmanager
    def _bounded(self, connection: Link) -> Generator[None]:
        with translated(), move_on_after(self._timeout):
            yield
            return
        connection.cancel()
        raise StorageUnavailable(
            f"PostgreSQL gave no answer in {self._timeout:g} s: the transaction's outcome is unknown"
        )

    async def _tidy(self, connection: Link) -> None:
        """Leave nothing of a handler's in the session; one that can't be tidied is not lent again."""
        with CancelScope(shield=True, deadline=current_time() + FAREWELL), suppress(Exception):
            if self._driver.clean(connection):
                connection.forget()
                await connection.execute(b"DISCARD ALL")
                return
        connection.cancel()


class PostgreSQLTransaction:
    """One transaction, and the names that its commit wakes. See `creche.abc.Transaction`."""

    def __init__(
        self,
        connection: Link,
        sql: Mapping[str, bytes],
        bounded: Callable[[Link], AbstractContextManager[None]],
    ) -> None:
        self.woken: Final[set[str]] = set()
        self._connection = connection
        self._runner = OwnRunner(connection, sql)
        self._bounded = bounded

    @property
    def connection(self) -> Link:
        """A psycopg connection, as it comes: rows are tuples, JSON is read into Python's values."""
        return self._connection

    def check(self) -> None:
        """Raise, if what was written can't be committed."""
        match self._connection.pgconn.transaction_status:
            case pq.TransactionStatus.INTRANS:
                return
            case pq.TransactionStatus.INERROR:
                raise StatementRejected(_ABORTED)
            case pq.TransactionStatus.IDLE:
                raise UsageError(_ENDED)
            case pq.TransactionStatus.ACTIVE:
                raise UsageError(_BUSY)
            case _:
                raise StorageUnavailable("the connection of the handler's transaction was lost")

    async def settle(self, settlement: Settlement, *, now: datetime | None = None) -> bool:
        """See `Transaction.settle`."""
        self.check()
        self._connection.forget()  # the handler may have asked for rows of another shape
        with self._bounded(self._connection):
            await end_attempts(self._runner, [settlement], ended := Ended(), now=now)
        self.woken.update(ended.woken)
        return settlement.lease in ended.written
