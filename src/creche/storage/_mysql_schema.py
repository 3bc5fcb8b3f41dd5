"""The schema on MySQL: whether the server will do, which version the tables have, and how they are brought up to date.

Its work needs no pool and no open storage: it connects by itself and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from creche.errors import ConfigurationError, SchemaOutdated
from creche.storage._asyncmy import AsyncmyDriver, Connection, Server, translated
from creche.storage._mysql_calls import bare, without_limit
from creche.storage._mysql_literals import render
from creche.storage._sql import Dialect, Migration

# SKIP LOCKED, without which workers would queue behind each other, and JSON_TABLE.
OLDEST_MYSQL: Final = (8, 0, 4)
OLDEST_MARIADB: Final = (10, 6, 0)

# Seconds between two looks whether another migration has ended.
LOCK_ROUND: Final = 5


class Schema:
    """The tables that the statements need.

    Args:
        dialect: MySQL's migrations, and the statements that look after them.
        driver: how to connect.
    """

    def __init__(self, dialect: Dialect, driver: AsyncmyDriver) -> None:
        self._dialect = dialect
        self._driver = driver
        self._sql = {name: bare(text) for name, text in dialect.statements.items()}

    async def check(self) -> None:
        """See that the server and its tables will do.

        Raises:
            ConfigurationError: the server is too old, or can't log what we write.
            SchemaOutdated: the tables are older than this version of creche, or not there.
            StorageUnavailable: the database can't be reached.
        """
        async with self._connection() as connection:
            found = await self.find(connection)
        if found < self._dialect.version:
            raise SchemaOutdated(found=found, needed=self._dialect.version)

    async def pending(self) -> Sequence[Migration]:
        """Return what `migrate` would apply."""
        async with self._connection() as connection:
            return self.after(await self.find(connection))

    async def migrate(self) -> Sequence[Migration]:
        """Apply what is missing, one after the other; wait for whoever is doing the same."""
        async with self._connection() as connection:
            await without_limit(connection)
            lock = render(self._sql["lock_migrations"], {"seconds": LOCK_ROUND})
            while (await connection.run(lock))[0].rows != [(1,)]:
                pass
            missing = self.after(await self.find(connection))
            for migration in missing:
                applied = {"version": migration.version, "name": migration.name}
                await connection.run(bare(migration.sql).removesuffix(";"))
                await connection.run(render(self._sql["record_migration"], applied))
        return missing

    @property
    def migrations(self) -> Sequence[Migration]:
        """All that there are."""
        return self._dialect.migrations

    def after(self, found: int) -> Sequence[Migration]:
        """Return the migrations that come after a version."""
        return [migration for migration in self._dialect.migrations if migration.version > found]

    async def find(self, connection: Connection) -> int:
        """Return the version that the tables have; 0 if there are none."""
        if (await connection.run(self._sql["find_schema"]))[0].rows == [(0,)]:
            return 0
        ((version,),) = (await connection.run(self._sql["find_version"]))[0].rows
        return int(version or 0)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        with translated():
            connection = await self._driver.connect()
            try:
                for problem in (too_old(connection.server), await unfit_log(connection)):
                    if problem:
                        raise ConfigurationError(problem)
                yield connection
            finally:
                await connection.aclose()


def too_old(server: Server) -> str | None:
    """Say of a server that it is too old, if it is."""
    if server.version >= (OLDEST_MARIADB if server.mariadb else OLDEST_MYSQL):
        return None
    return (
        f"{server.name} is too old: creche needs MySQL {'.'.join(map(str, OLDEST_MYSQL))} or newer, or "
        f"MariaDB {'.'.join(map(str, OLDEST_MARIADB[:2]))}, for SKIP LOCKED"
    )


async def unfit_log(connection: Connection) -> str | None:
    """Say of a server that it can't log what we write, if it can't."""
    # SHOW: a server that has no such setting any more, as MySQL has announced, has no row of it, and no error.
    shown = await connection.run("SHOW VARIABLES WHERE variable_name IN ('log_bin', 'binlog_format')")
    if dict(shown[0].rows) != {"log_bin": "ON", "binlog_format": "STATEMENT"}:
        return None
    return (
        f"{connection.server.name} logs statements, and can't log those of READ COMMITTED, in which creche works: set "
        "binlog_format to ROW or MIXED"
    )
