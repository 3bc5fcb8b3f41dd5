"""Fixtures that every test folder shares: the two event loops, servers for the session, an empty database."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

import profiles  # noqa: F401 - loads the one that the environment names
from creche.testing.servers import (
    ForeignServer,
    MariaDBServer,
    MySQLServer,
    PostgreSQLServer,
    private_mariadb,
    private_mysql,
    private_postgresql,
)
from databases import empty_database, empty_schema, in_schema
from missing import not_tested, unless_missing

collect_ignore = ["ha"]  # whole clusters, for minutes: `nox -s ha`


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer | ForeignServer]:
    """A server for tests that leave it as they found it; those that kill servers start their own."""
    yield from unless_missing(private_postgresql())


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer | ForeignServer]:
    """Like `postgresql_server`."""
    yield from unless_missing(private_mariadb())


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[MySQLServer | ForeignServer]:
    """Like `postgresql_server`, but skipped in CI too: few systems have a package of MySQL itself."""
    yield from unless_missing(private_mysql(), required=False)


@pytest.fixture(scope="session")
def postgresql_database(postgresql_server: PostgreSQLServer | ForeignServer) -> Iterator[str]:
    """The DSN of a database; each test has a schema of its own in it, which costs far less than a database each."""
    name = f"creche_{secrets.token_hex(4)}"
    dsn = postgresql_server.create_database(name)
    # By its socket if it is ours: a password's handshake costs more than most tests do.
    yield postgresql_server.dsn(name, socket=True) if isinstance(postgresql_server, PostgreSQLServer) else dsn
    postgresql_server.drop_database(name)


@pytest.fixture
def postgresql_dsn(postgresql_database: str) -> Iterator[str]:
    """The DSN of an empty schema."""
    with empty_schema(postgresql_database) as schema:
        yield in_schema(postgresql_database, schema)


@pytest.fixture
def mariadb_dsn(mariadb_server: MariaDBServer | ForeignServer) -> Iterator[str]:
    """The DSN of an empty database, by the server's socket if it is ours."""
    with empty_database(mariadb_server) as dsn:
        yield dsn


@pytest.fixture
def mysql_dsn(mysql_server: MySQLServer | ForeignServer) -> Iterator[str]:
    """The DSN of an empty database, by the server's socket if it is ours."""
    with empty_database(mysql_server) as dsn:
        yield dsn


@pytest.fixture
def sqlite_dsn(tmp_path: Path) -> str:
    """The DSN of a file that is not there yet."""
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "mysql"])
def shared_dsn(request: pytest.FixtureRequest) -> str:
    """An empty database that several processes can use, of each engine in turn."""
    return str(request.getfixturevalue(f"{request.param}_dsn"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say last what was not tested, for nobody reads of skips."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    for missing, tests in not_tested(str(place[2]) for place in skipped if isinstance(place, tuple)).items():
        server, _, ways = missing.partition(": ")
        terminalreporter.section(server, red=True, bold=True)
        terminalreporter.write_line(f"{tests} tests were skipped: {ways}", red=True)
