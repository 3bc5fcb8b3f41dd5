"""Private database servers for test suites: found, started, killed on request, and gone when the tests are.

Nothing here is used by creche at run time, and no server that it didn't start is ever stopped.
"""

from __future__ import annotations

from creche.testing.servers._galera import GaleraCluster, GaleraNode, find_galera, private_galera
from creche.testing.servers._group import GroupMember, MySQLGroup, private_group
from creche.testing.servers._mysql import (
    MariaDBServer,
    MySQLServer,
    connect_mysql,
    find_mariadb,
    find_mysql,
    private_mariadb,
    private_mysql,
)
from creche.testing.servers._pgbouncer import PgBouncer, find_pgbouncer, private_pgbouncer
from creche.testing.servers._postgresql import PostgreSQLServer, find_postgresql, private_postgresql
from creche.testing.servers._postgresql_pair import PostgreSQLPair, private_postgresql_pair
from creche.testing.servers._process import ForeignServer, PrivateServer, ServerFailed, ServerNotFound

__all__ = [
    "ForeignServer",
    "GaleraCluster",
    "GaleraNode",
    "GroupMember",
    "MariaDBServer",
    "MySQLGroup",
    "MySQLServer",
    "PgBouncer",
    "PostgreSQLPair",
    "PostgreSQLServer",
    "PrivateServer",
    "ServerFailed",
    "ServerNotFound",
    "connect_mysql",
    "find_galera",
    "find_mariadb",
    "find_mysql",
    "find_pgbouncer",
    "find_postgresql",
    "private_galera",
    "private_group",
    "private_mariadb",
    "private_mysql",
    "private_pgbouncer",
    "private_postgresql",
    "private_postgresql_pair",
]
