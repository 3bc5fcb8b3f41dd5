"""The database behind its storage's back: plain connections, blocking, of the driver that each engine has; and the way
there by somebody who stands in between.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from creche.testing.servers import connect_mysql


def connect(dsn: str) -> Any:
    """Open a connection of the user's own: sqlite3's, psycopg's or PyMySQL's, in no transaction yet."""
    if dsn.startswith("sqlite"):
        return sqlite3.connect(dsn.removeprefix("sqlite:///"), timeout=30)
    if dsn.startswith("postgres"):
        import psycopg

        return psycopg.connect(dsn)
    return connect_mysql(dsn, autocommit=False)


def driver_errors() -> tuple[type[Exception], ...]:
    """Return what drivers raise, of those that this process has loaded."""
    names = ("sqlite3", "Error"), ("psycopg", "Error"), ("pymysql", "Error"), ("asyncmy.errors", "MySQLError")
    found = [getattr(sys.modules.get(module), name, None) for module, name in names]
    return tuple(each for each in found if each is not None)


def write(dsn: str, *statements: str) -> None:
    """Run statements in one transaction."""
    with closing(connect(dsn)) as connection, closing(connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
        connection.commit()


def read(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with closing(connect(dsn)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def reroute(dsn: str, port: int) -> tuple[tuple[str, int], str]:
    """Return where a server is, and the DSN by which it is reached through somebody who listens on a port of this
    machine, and can read: only connections over TCP can be led there, and nothing on them is encrypted.
    """
    parts = urlsplit(dsn)
    assert parts.hostname, "a DSN that says a host"
    postgresql = parts.scheme.startswith("postgres")
    plain = "sslmode=disable" if postgresql else "ssl_mode=disabled"
    netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
    query = f"{parts.query}&{plain}" if parts.query else plain
    server = parts.hostname, parts.port or (5432 if postgresql else 3306)
    return server, parts._replace(netloc=netloc, query=query).geturl()
