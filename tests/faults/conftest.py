"""Servers of our own, which the tests of faults may freeze, kill and start again. What they keep survives a kill."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from creche.testing.servers import (
    MariaDBServer,
    MySQLServer,
    PostgreSQLServer,
    PrivateServer,
    private_mariadb,
    private_mysql,
    private_postgresql,
)
from missing import unless_missing

OwnServer: TypeAlias = PostgreSQLServer | MariaDBServer | MySQLServer


@pytest.fixture(scope="session")
def own_postgresql() -> Iterator[PostgreSQLServer]:
    for server in unless_missing(private_postgresql(own=True, durable=True)):
        assert isinstance(server, PostgreSQLServer)
        yield server


@pytest.fixture(scope="session")
def own_mariadb() -> Iterator[MariaDBServer]:
    """With what newer releases have switched on: a statement that meets a change which it can't see yet is refused."""
    settings = {"loose_innodb_snapshot_isolation": "ON"}
    for server in unless_missing(private_mariadb(own=True, durable=True, settings=settings)):
        assert isinstance(server, MariaDBServer)
        yield server


@pytest.fixture(scope="session")
def own_mysql() -> Iterator[MySQLServer]:
    for server in unless_missing(private_mysql(own=True, durable=True), required=False):
        assert isinstance(server, MySQLServer)
        yield server


@pytest.fixture
def own_dsn(own_server: OwnServer) -> Iterator[str]:
    """The DSN of an empty database of `own_server`, which a test file chooses; over TCP."""
    assert isinstance(own_server, PrivateServer)
    own_server.start()  # a test that failed may have left it stopped
    name = f"creche_{secrets.token_hex(6)}"
    yield own_server.create_database(name)
    own_server.start()
    own_server.drop_database(name)
