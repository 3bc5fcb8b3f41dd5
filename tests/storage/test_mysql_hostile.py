"""The contract once more, on servers whose defaults nobody would choose, and which a queue may find all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from creche.testing.servers import ForeignServer, MariaDBServer, MySQLServer, private_mariadb, private_mysql
from missing import unless_missing
from mysql_contract import MySQLContract

pytestmark = pytest.mark.anyio

HOSTILE: Final = {
    "default_time_zone": "-11:00",
    "sql_mode": "ANSI_QUOTES,STRICT_ALL_TABLES",
    "autocommit": "0",
    "innodb_lock_wait_timeout": "1",
    "transaction_isolation": "SERIALIZABLE",
    "character_set_server": "latin1",
    "max_allowed_packet": "2M",
    "loose_innodb_snapshot_isolation": "ON",  # MariaDB's alone
    "loose_sql_require_primary_key": "ON",  # MySQL's alone, as is the next one
    "loose_explicit_defaults_for_timestamp": "OFF",
}


class TestHostileMariaDB(MySQLContract):
    @pytest.fixture(scope="class")
    @staticmethod
    def server() -> Iterator[MariaDBServer | ForeignServer]:
        yield from unless_missing(private_mariadb(own=True, settings=HOSTILE))


class TestHostileMySQL(MySQLContract):
    @pytest.fixture
    @staticmethod
    def anyio_backend() -> str:
        """One will do: the other loop meets the same defaults above."""
        return "trio"

    @pytest.fixture(scope="class")
    @staticmethod
    def server() -> Iterator[MySQLServer | ForeignServer]:
        yield from unless_missing(private_mysql(own=True, settings=HOSTILE), required=False)
