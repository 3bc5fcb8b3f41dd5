"""What `nox -s ha` may be told, and what it says at its end: the tables of every outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest

from creche.testing.servers import find_galera, find_mariadb, find_mysql, find_postgresql
from missing import unless_missing

OPTIONS: Final = ("jobs", "rate", "every", "strikes", "faults")

TABLES: Final = pytest.StashKey[dict[str, str]]()

# What a cluster is made of, and whether it may be missing in CI.
MADE_OF: Final[dict[str, tuple[Sequence[Callable[[], Any]], bool]]] = {
    "postgresql": ((find_postgresql,), True),
    "galera": ((find_mariadb, find_galera), True),
    "group": ((find_mysql,), False),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("outages", "outages (see ha.audit.Plan)")
    for name in OPTIONS:
        options.addoption(f"--{name}", help=f"instead of what a test says of its {name}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLES] = {}


@pytest.fixture
def overridden(request: pytest.FixtureRequest) -> dict[str, str]:
    """The options that were given."""
    given = {name: request.config.getoption(f"--{name}") for name in OPTIONS}
    return {name: str(option) for name, option in given.items() if option is not None}


@pytest.fixture
def tables(request: pytest.FixtureRequest) -> dict[str, str]:
    """Where tables are put, by their titles."""
    return request.config.stash[TABLES]


def must_be_there(engine: str) -> None:
    """Skip the test, loudly, where there is no such server."""
    finders, required = MADE_OF[engine]

    @contextmanager
    def found() -> Iterator[None]:
        for find in finders:
            find()
        yield

    for _ in unless_missing(found(), required=required):
        return


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what happened: it is what these tests are run for."""
    for title, table in config.stash[TABLES].items():
        terminalreporter.section(title)
        terminalreporter.write_line(table)
