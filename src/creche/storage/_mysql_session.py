"""A transaction that a handler shares with the end of its attempt, and the connection through which it writes.

It keeps no pool, tries nothing again, and says nothing of what it writes to anybody: wakes are the storage's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Final, Self, TypeAlias, cast

import anyio
from anyio import CancelScope, move_on_after
from asyncmy.constants import CR
from asyncmy.errors import MySQLError, OperationalError

from creche._job import Settlement
from creche.errors import StorageError, StorageUnavailable, UsageError
from creche.storage._asyncmy import Answer, Connection, translated
from creche.storage._mysql_calls import BEGIN, COMMIT, Row, send
from creche.storage._mysql_ends import settled, settling
from creche.storage._mysql_literals import Expression, Render, clock, literal

__all__ = ["Cursor", "MySQLTransaction", "TransactionConnection"]

Parameters: TypeAlias = "Sequence[object] | Mapping[str, object]"

# What a handler may have set, and would change what our statements mean, or have them refused.
OURS: Final = (
    "SET character_set_client = 'utf8mb4', character_set_results = 'utf8mb4', collation_connection = 'utf8mb4_bin', "
    "sql_safe_updates = 0"
)

# Seconds that a rollback may take; then the connection is cut, and the server rolls back by itself.
ROLLBACK: Final = 2.0


class Cursor:
    """What a statement answered. All rows are here already.

    Attributes:
        description: a tuple for each column, that begins with its name; None if the statement returns no rows.
        rowcount: how many rows came, or were found to be written, as they are or not.
        lastrowid: the AUTO_INCREMENT value of the (first) row that was inserted; None if there is none.
    """

    def __init__(self, answer: Answer) -> None:
        self.description: Final = [(name, None, None, None, None, None, None) for name in answer.columns] or None
        self.rowcount: Final = answer.affected
        self.lastrowid: Final = answer.last_id or None
        self._rows = iter(answer.rows)

    async def fetchone(self) -> Row | None:
        """Return the next row; None if there is no more."""
        return next(self._rows, None)

    async def fetchall(self) -> list[Row]:
        """Return the rows that are left."""
        return [*self._rows]

    def __aiter__(self) -> AsyncIterator[Row]:
        return self

    async def __anext__(self) -> Row:
        for row in self._rows:
            return row
        raise StopAsyncIteration


class TransactionConnection:
    """A connection in a transaction, for one task at a time.

    What the server says against a statement is raised as asyncmy's own exception (`asyncmy.errors`), and the
    transaction goes on, unless the server undid all of it, as after a deadlock. COMMIT, ROLLBACK and statements that
    commit implicitly (nearly all DDL) end it, too: then nothing more can be done in it, and UsageError says so.

    The session is in UTC, READ COMMITTED, strict, with NO_BACKSLASH_ESCAPES; what is set in it is gone with its block.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.spoilt: UsageError | StorageError | None = None  # by what, if nothing can be committed any more

    async def execute(self, sql: str, parameters: Parameters | None = None) -> Cursor:
        """Run a statement; of several in one text, the last one's answer is returned.

        Args:
            sql: with `%s` or `%(name)s` in the place of values, and `%%` for a percent sign; without parameters it is
                sent as it is.
            parameters: what a column can be: str, bytes, int, float, Decimal, bool, None, datetime (an aware one is
                turned into UTC), date, time, timedelta; a list or tuple of these is written as `(…, …)`, for IN.

        Raises:
            asyncmy.errors.MySQLError: the server refused the statement, or the connection is lost.
            UsageError: the transaction has been ended, by this statement or before.
            StorageUnavailable: the server has undone the transaction.
        """
        self.check()
        return Cursor(await self._run(sql if parameters is None else with_parameters(sql, parameters)))

    async def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Cursor:
        """Run a statement for each set of parameters; `rowcount` is the sum."""
        self.check()
        answer = Answer([], 0)
        for each in parameters:
            latest = await self._run(with_parameters(sql, each))
            answer = Answer([], answer.affected + latest.affected, last_id=latest.last_id)
        return Cursor(answer)

    async def _run(self, text: str) -> Answer:
        try:
            *_, answer = await self._connection.run(text)
        except MySQLError as error:
            await self._look(error)
            raise
        except (OSError, anyio.ClosedResourceError) as error:
            raise OperationalError(CR.CR_SERVER_LOST, "the connection to the server is lost") from error
        if not self._connection.in_transaction:
            self.spoilt = UsageError(
                "this transaction is not the handler's to end: COMMIT, ROLLBACK and statements that commit implicitly, "
                "as DDL does, can't be sent in it"
            )
            raise self.spoilt
        return answer

    async def _look(self, error: MySQLError) -> None:
        """See whether an error has ended more than its statement: it carries no flags, and the next answer does."""
        with suppress(MySQLError, OSError, anyio.ClosedResourceError):
            await self._connection.run("DO 0")
            if not self._connection.in_transaction:
                self.spoilt = StorageUnavailable(f"MySQL has undone the whole transaction: {error}")

    def check(self) -> None:
        """Raise what has ended the transaction, if something has."""
        if self.spoilt is not None:
            raise self.spoilt


class MySQLTransaction:
    """See `Transaction`. `MySQLStorage.transaction` makes them.

    Attributes:
        connection: what the handler writes through.
        woken: whom to wake when this is committed.
    """

    def __init__(self, connection: Connection, *, render: Render, timeout: float, database: str) -> None:
        self.connection: Final = TransactionConnection(connection)
        self.woken: Final[set[str]] = set()
        self._raw = connection
        self._render = render
        self._timeout = timeout
        self._home = [OURS, f"USE `{database.replace('`', '``')}`"]

    @classmethod
    @asynccontextmanager
    async def begun(
        cls, connection: Connection, *, render: Render, timeout: float, database: str
    ) -> AsyncGenerator[Self]:
        """Begin a transaction, and end it with the block.

        Args:
            connection: in none.
            render: puts literals into statements.
            timeout: seconds for each of our own words: the first, the end of the attempt, the commit.
            database: where the queue's tables stand, wherever the handler went.

        Raises:
            StorageUnavailable: no answer; if it is the commit's, nobody knows its outcome.
        """
        transaction = cls(connection, render=render, timeout=timeout, database=database)
        # A handler's own statements may take as long as its lease lasts.
        limit = "max_statement_time" if connection.server.mariadb else "max_execution_time"
        await transaction._send([f"SET SESSION {limit} = 0", BEGIN])
        try:
            yield transaction
        except Exception:
            await transaction._roll_back()
            raise
        transaction.connection.check()
        await transaction._send([COMMIT])

    async def settle(self, settlement: Settlement, *, now: datetime | None = None) -> bool:
        """See `Transaction.settle`."""
        self.connection.check()
        statements = settling(self._render, [settlement], now=clock(now), most=self._raw.max_allowed_packet)
        try:
            answers = (await self._send([*self._home, *statements]))[len(self._home) :]
        except StorageError as error:
            self.connection.spoilt = error
            raise
        if not answers[0].affected:  # also when it was ended before, which `settled` takes for an answer that was lost
            return False
        _, woken = settled([answer.rows for answer in answers])
        self.woken.update(woken)
        return True

    async def _send(self, statements: Sequence[str]) -> Sequence[Answer]:
        """Run statements of our own, within their time, or cut the connection."""
        with move_on_after(self._timeout), translated():
            return await send(self._raw, statements)
        self._raw.drop()
        raise StorageUnavailable(f"MySQL gave no answer in {self._timeout:g} s: the transaction's outcome is unknown")

    async def _roll_back(self) -> None:
        if self._raw.idle and self._raw.in_transaction:
            with CancelScope(shield=True), move_on_after(ROLLBACK):
                with suppress(MySQLError, OSError, anyio.ClosedResourceError, StorageUnavailable):
                    await self._raw.run("ROLLBACK")
                return
            self._raw.drop()


# --- parameters -------------------------------------------------------------------------------------


def with_parameters(sql: str, parameters: Parameters) -> str:
    """Return a statement with literals in the places of `%s` or `%(name)s`."""
    if isinstance(parameters, Mapping):
        return sql % {name: _parameter(value) for name, value in parameters.items()}
    if isinstance(parameters, str | bytes):
        raise TypeError("parameters are a sequence or a mapping, not a single text")
    return sql % tuple(map(_parameter, parameters))


def _parameter(value: object) -> Expression:
    return Expression(_literal(value))


def _literal(value: object) -> str:
    match value:
        case float() | Decimal() if not isfinite(value):
            raise TypeError(f"{value!r} is no number that MySQL knows")
        case None | bool() | int() | float() | str():
            return literal(str(value) if isinstance(value, Expression) else value)
        case bytes() | bytearray() | memoryview():
            return f"_binary x'{bytes(cast('bytes', value)).hex()}'"
        case Decimal():
            return f"{value:f}"
        case date() | time() | timedelta():
            return literal(_when(value))
        case list() | tuple():
            return f"({', '.join(map(_literal, cast('Iterable[object]', value)))})"
        case _:
            raise TypeError(
                f"{type(value).__name__} is no parameter: turn it into what its column holds, as str or bytes"
            )


def _when(value: date | time | timedelta) -> str:
    match value:
        case datetime():
            moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
            return moment.isoformat(" ")
        case date():
            return value.isoformat()
        case time():
            return value.replace(tzinfo=None).isoformat()
        case timedelta():
            return _duration(value)


def _duration(value: timedelta) -> str:
    total = abs(value) // timedelta(microseconds=1)
    seconds, microseconds = divmod(total, 1_000_000)
    sign = "-" if value < timedelta(0) else ""
    return f"{sign}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{microseconds:06}"
