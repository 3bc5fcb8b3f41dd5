"""Fixtures that every test folder shares: the two event loops, one PostgreSQL for the session, an empty database."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from creche.testing.servers import ForeignServer, PostgreSQLServer, ServerNotFound, private_postgresql
from databases import empty_schema, in_schema

MISSING: list[str] = []


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer | ForeignServer]:
    """A server for tests that leave it as they found it; those that kill servers start their own.

    Without one the tests that need it fail in CI, and are skipped, loudly, elsewhere.
    """
    try:
        with private_postgresql() as server:
            yield server
    except ServerNotFound as error:
        if os.environ.get("CI"):
            raise
        MISSING.append(f"PostgreSQL: {error}")
        pytest.skip(str(error))


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
def sqlite_dsn(tmp_path: Path) -> str:
    """The DSN of a file that is not there yet."""
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_dsn(request: pytest.FixtureRequest) -> str:
    """An empty database that several processes can use, of each engine in turn."""
    return str(request.getfixturevalue(f"{request.param}_dsn"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip that nobody sees hides a missing server."""
    skipped = len(terminalreporter.stats.get("skipped", []))
    for missing in MISSING:
        terminalreporter.section("NOT TESTED", red=True, bold=True)
        terminalreporter.write_line(f"{skipped} tests were skipped. {missing}", red=True)
