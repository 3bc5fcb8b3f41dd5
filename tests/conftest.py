"""Fixtures that every test folder shares: the two event loops, and one PostgreSQL for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from creche.testing.servers import ForeignServer, PostgreSQLServer, ServerNotFound, private_postgresql


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer | ForeignServer]:
    """A server for tests that leave it as they found it; those that kill servers start their own."""
    try:
        with private_postgresql() as server:
            yield server
    except ServerNotFound as error:
        pytest.skip(str(error))
