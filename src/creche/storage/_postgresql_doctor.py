"""Looks at one PostgreSQL database with a doctor's eyes. It runs no job and changes nothing; what it can't look at is a
finding too.

Each look is bounded, by the server as well, and one that goes wrong spoils no other. What was seen is judged in
`_postgresql_findings.py`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias

from anyio import move_on_after

from creche._job import Finding, Severity
from creche.errors import ConfigurationError, ListenerDeaf, StorageError, StorageUnavailable
from creche.storage import _postgresql_findings as findings
from creche.storage._pool import Pool
from creche.storage._postgresql_calls import Link, Row, rows
from creche.storage._postgresql_listener import ECHO, PostgreSQLListener, channel_name
from creche.storage._postgresql_schema import NOTHING, Schema
from creche.storage._psycopg import PsycopgDriver, translated
from creche.storage._sql import Dialect

# Seconds.
REACH: Final = 5.0
LOOK: Final = 3.0

_BOUND: Final = b"SELECT set_config('statement_timeout', %(milliseconds)s, true)"

Look: TypeAlias = Callable[[], Awaitable[Finding]]


class Doctor:
    """Examines one database, once.

    Args:
        driver: how to connect.
        dialect: what the schema should be.
        sql: the statements.
        name: what the database is called, without a password.
        size: how many connections the storage has for calls, and how many for handlers' transactions.
    """

    def __init__(
        self, driver: PsycopgDriver, dialect: Dialect, sql: Mapping[str, bytes], *, name: str, size: int
    ) -> None:
        self._driver = driver
        self._dialect = dialect
        self._sql = sql
        self._name = name
        self._size = size
        self._found = NOTHING
        self._pool: Pool[Link] = Pool(driver, size=2, timeout=LOOK)

    async def examine(self, *, concurrency: int | None) -> Sequence[Finding]:
        """Return what there is to say; of a database that can't be reached, or is too old, that alone."""
        try:
            reached = await self._reach()
        except (StorageError, ConfigurationError) as error:
            advice = "is the server up, is the DSN right, and may this user connect from here?"
            return [findings.problem("reach", str(error), advice)]
        if reached.severity is Severity.PROBLEM:  # too old for what is looked at next
            return [reached]
        try:
            return [reached, await self._guarded("schema", self._schema), *await self._looks(concurrency)]
        finally:
            await self._pool.aclose()

    async def _looks(self, concurrency: int | None) -> Sequence[Finding]:
        looks: dict[str, Look] = {
            "indexes": self._indexes,
            "privileges": self._privileges,
            "isolation": self._isolation,
            "skip locked": self._skip_locked,
            "clock": self._clock,
            "pool": partial(self._connections, concurrency),
            "listening": self._listening,
            "durability": self._durability,
            "vacuum": self._vacuum,
        }
        if not self._found.version:  # nothing of it is there
            looks = {check: look for check, look in looks.items() if check not in _OF_THE_SCHEMA}
        return [await self._guarded(check, look) for check, look in looks.items()]

    async def _guarded(self, check: str, look: Look) -> Finding:
        reason = "no answer in time"
        try:
            with translated(), move_on_after(LOOK + (ECHO if check == "listening" else 0)):
                return await look()
        except StorageError as error:
            reason = str(error)
        return findings.warning(check, f"it can't be looked at: {reason}", "look for what is in the way, and try again")

    # --- looks --------------------------------------------------------------------------------------

    async def _reach(self) -> Finding:
        with translated(), move_on_after(REACH):
            connection = await self._driver.connect()
            try:
                ((product,),) = await rows(connection, self._sql["check_server"], {})
                return findings.reach(self._name, product, connection.info.server_version)
            finally:
                await connection.close()
        raise StorageUnavailable(f"{self._name}: PostgreSQL gave no answer in {REACH:g} s")

    async def _schema(self) -> Finding:
        self._found = await Schema(self._dialect, self._driver).find()
        return findings.schema(self._found, self._dialect, await self._tables())

    async def _indexes(self) -> Finding:
        return findings.indexes_of(self._dialect, await self._ask("check_indexes"))

    async def _privileges(self) -> Finding:
        return findings.privileges(await self._tables())

    async def _isolation(self) -> Finding:
        ((level, read_only, standby),) = await self._ask("check_session")
        return findings.isolation(level, read_only=read_only, standby=standby)

    async def _skip_locked(self) -> Finding:
        check = "skip locked"
        async with self._session() as one, self._session() as other:
            locked = await rows(one, self._sql["check_skip_locked"], {"id": None})
            if not locked:
                return findings.ok(check, "it is accepted; there was no finished job to try it on")
            again = await rows(other, self._sql["check_skip_locked"], {"id": locked[0][0]})
        if again:
            advice = "let nothing stand between here and PostgreSQL that changes statements"
            return findings.problem(check, "two sessions locked the same job", advice)
        return findings.ok(check, "a job that another session had locked was passed over")

    async def _clock(self) -> Finding:
        async with self._session() as link:
            before = time.time()
            ((theirs,),) = await rows(link, self._sql["check_clock"], {})
            return findings.clock(theirs, before, time.time())

    async def _connections(self, concurrency: int | None) -> Finding:
        ((most, used),) = await self._ask("check_connections")
        return findings.pool(self._size, concurrency, most, used)

    async def _listening(self) -> Finding:
        channel = channel_name(self._found.schema)

        async def say(words: Sequence[str]) -> None:
            async with self._pool.acquire() as link:
                await rows(link, self._sql["notify"], {"channel": channel, "queues": list(words)})

        try:
            await PostgreSQLListener((), self._driver, channel=channel, say=say).try_out()
        except ListenerDeaf as error:
            advice = (
                "let creche reach PostgreSQL itself, or through a pooler such as PgBouncer in session mode, not in "
                "transaction mode; workers that hear nothing poll"
            )
            return findings.problem("listening", str(error), advice)
        return findings.ok("listening", "a listener hears what is said on another connection")

    async def _durability(self) -> Finding:
        ((fsync, full_page_writes, synchronous_commit),) = await self._ask("check_durability")
        return findings.durability(fsync, full_page_writes, synchronous_commit)

    async def _vacuum(self) -> Finding:
        return findings.vacuum(await self._ask("check_horizon"), await self._ask("check_dead_rows"))

    # --- asking -------------------------------------------------------------------------------------

    async def _tables(self) -> Sequence[Row]:
        return await self._ask("check_tables", {"tables": findings.tables(self._dialect)})

    async def _ask(self, name: str, parameters: dict[str, Any] | None = None) -> Sequence[Row]:
        async with self._session() as link:
            return await rows(link, self._sql[name], parameters or {})

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Link]:
        """A transaction that the server bounds, too: what we give up would run on there."""
        async with self._pool.acquire() as link, link.transaction(force_rollback=True):
            await rows(link, _BOUND, {"milliseconds": str(int(LOOK * 900))})
            yield link


_OF_THE_SCHEMA: Final = frozenset({"indexes", "privileges", "skip locked"})
