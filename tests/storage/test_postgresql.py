"""The PostgreSQL storage keeps the contract, on a server of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from creche.storage.postgresql import PostgreSQLStorage
from creche.testing import StorageConformance
from creche.testing.servers import ForeignServer, PostgreSQLServer


@pytest.fixture(scope="module")
def database(postgresql_server: PostgreSQLServer | ForeignServer) -> Iterator[str]:
    """A database; each test has a schema of its own in it, which costs far less than a database each."""
    name = f"creche_{secrets.token_hex(4)}"
    yield postgresql_server.create_database(name)
    postgresql_server.drop_database(name)


@pytest.fixture
def dsn(database: str) -> Iterator[str]:
    """An empty schema."""
    schema = f"s{secrets.token_hex(6)}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        yield f"{database}?options=-csearch_path%3D{schema}"
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


class TestPostgreSQLStorage(StorageConformance):
    @pytest.fixture
    def unopened(self, dsn: str) -> PostgreSQLStorage:
        return PostgreSQLStorage(dsn)
