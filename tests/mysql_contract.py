"""How the contract's suite gets a storage on a MySQL or MariaDB. Whose, the class that inherits it says."""

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

Server: TypeAlias = "MariaDBServer | MySQLServer | ForeignServer"
Raw: TypeAlias = "Connection[Cursor]"


class MySQLContract(StorageConformance):
    """Held to by a fixture `server`."""

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
            for table in ("jobs", "dead_letters", "listeners", "watches", "queues", "workers"):
                cursor.execute(f"DELETE FROM creche_{table}")
        return MySQLStorage(self.dsn)

    def open_another(self, storage: Storage) -> Storage:
        return MySQLStorage(self.dsn)
