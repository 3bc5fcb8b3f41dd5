"""How tests get an empty database: the DSNs of schemas and databases, and what is done to them. It starts no server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg import sql

from creche.testing.servers import ForeignServer, MariaDBServer, MySQLServer


def in_schema(dsn: str, *schemas: str) -> str:
    """Return the DSN of a database with these schemas as its search path."""
    return f"{dsn}{'&' if '?' in dsn else '?'}options=-csearch_path%3D{','.join(schemas)}"


@contextmanager
def empty_schema(dsn: str, *, prefix: str = "s") -> Iterator[str]:
    """Make an empty schema and yield its name; it is gone afterwards, for a thousand of them are slow to drop."""
    schema = f"{prefix}{secrets.token_hex(6)}"
    _run(dsn, "CREATE SCHEMA {}", schema)
    yield schema
    _run(dsn, "DROP SCHEMA {} CASCADE", schema)


@contextmanager
def empty_database(server: MariaDBServer | MySQLServer | ForeignServer) -> Iterator[str]:
    """Make an empty database and yield its DSN, by the server's socket if it is ours; it is gone afterwards."""
    name = f"creche_{secrets.token_hex(6)}"
    dsn = server.create_database(name)
    yield dsn if isinstance(server, ForeignServer) else server.dsn(name, socket=True)
    server.drop_database(name)


def _run(dsn: str, statement: LiteralString, schema: str) -> None:
    # A connection of its own: a test may well cut all that are open.
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(schema)))
