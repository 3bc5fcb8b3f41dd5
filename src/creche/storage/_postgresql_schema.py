"""The schema on PostgreSQL: where it stands, which version it has, and how it is brought up to date.

Its work needs no pool and no open storage: it connects by itself and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from attrs import frozen

from creche.errors import ConfigurationError, SchemaOutdated
from creche.storage._postgresql_calls import Link, rows
from creche.storage._psycopg import PsycopgDriver, translated
from creche.storage._sql import Dialect, Migration

OLDEST: Final = 12_00_00  # as the server counts, 150004 is 15.4: older ones lack what the statements need


def too_old(version: int) -> str | None:
    """Say what a server is too old for, if it is."""
    return f"creche needs PostgreSQL {OLDEST // 10_000} or newer" if version < OLDEST else None


@frozen
class Found:
    """What there is: `version` 0 is nothing; `schema` is where the tables are."""

    version: int
    schema: str


NOTHING: Final = Found(0, "")


class Schema:
    """The tables that the statements need.

    Args:
        dialect: PostgreSQL's migrations, and the statements that look after them.
        driver: how to connect.
    """

    def __init__(self, dialect: Dialect, driver: PsycopgDriver) -> None:
        self._dialect = dialect
        self._driver = driver
        self._sql = {name: text.encode() for name, text in dialect.statements.items()}

    async def check(self) -> str:
        """Return the schema in which the tables stand, if they are new enough.

        Raises:
            SchemaOutdated: they are older than this version of creche, or not there.
            ConfigurationError: the server is too old.
            StorageUnavailable: the database can't be reached.
        """
        found = await self.find()
        if found.version < self._dialect.version:
            raise SchemaOutdated(found=found.version, needed=self._dialect.version)
        return found.schema

    async def find(self) -> Found:
        """Return what there is."""
        async with self._connection() as connection:
            return await self._find(connection)

    async def pending(self) -> Sequence[Migration]:
        """Return what `migrate` would apply."""
        return self._after(await self.find())

    async def migrate(self) -> Sequence[Migration]:
        """Apply what is missing, all of it or nothing, in one transaction; wait for whoever is doing the same."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute(self._sql["lock_migrations"])
            missing = self._after(await self._find(connection))
            for migration in missing:
                await connection.execute(migration.sql.encode())
                applied = {"version": migration.version, "name": migration.name}
                await connection.execute(self._sql["record_migration"], applied)
        return missing

    def _after(self, found: Found) -> Sequence[Migration]:
        return [migration for migration in self._dialect.migrations if migration.version > found.version]

    async def _find(self, connection: Link) -> Found:
        where = await rows(connection, self._sql["find_schema"], {})
        if not where:
            return NOTHING
        ((version,),) = await rows(connection, self._sql["find_version"], {})
        return Found(version or 0, where[0][0])

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Link]:
        with translated():
            connection = await self._driver.connect()
            try:
                version = connection.info.server_version
                if needed := too_old(version):
                    raise ConfigurationError(f"PostgreSQL {version // 10_000} is too old: {needed}")
                yield connection
            finally:
                await connection.close()
