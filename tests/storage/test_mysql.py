"""MySQL and MariaDB: the contract on both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TypeAlias

import anyio
import pytest
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from creche.abc import Storage
from creche.storage.mysql import MySQLStorage
from creche.testing import StorageConformance
from creche.testing.servers import ForeignServer, MariaDBServer, MySQLServer, connect_mysql
from databases import empty_database

pytestmark = pytest.mark.anyio

Server: TypeAlias = "MariaDBServer | MySQLServer | ForeignServer"
Raw: TypeAlias = "Connection[Cursor]"


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


class TestMySQLStorage(StorageConformance):
    @pytest.fixture(scope="class")
    @staticmethod
    def reused(server: Server) -> Iterator[tuple[str, Raw]]:
        """A migrated database for all tests: making and dropping one takes longer than most tests do."""
        with empty_database(server) as dsn, closing(connect_mysql(dsn)) as connection:
            anyio.run(MySQLStorage(dsn).migrate)
            yield dsn, connection

    @pytest.fixture
    def unopened(self, reused: tuple[str, Raw]) -> MySQLStorage:
        self.dsn, raw = reused
        with raw.cursor() as cursor:
            for table in ("jobs", "dead_letters", "listeners"):
                cursor.execute(f"DELETE FROM creche_{table}")
        return MySQLStorage(self.dsn)

    def open_another(self, storage: Storage) -> Storage:
        return MySQLStorage(self.dsn)
