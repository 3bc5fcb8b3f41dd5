"""MySQL and MariaDB: the contract on both."""

from __future__ import annotations

import pytest

from mysql_contract import MySQLContract, Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


class TestMySQLStorage(MySQLContract):
    pass
