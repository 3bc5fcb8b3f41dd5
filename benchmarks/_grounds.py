"""Where benchmarks run: databases that are made for each run and dropped after it, on servers given or private.

Private servers are set for a fair race: durable, with memory enough, and with their own counters on.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import click

from creche.testing.servers import ForeignServer, PrivateServer, ServerNotFound, private_mariadb, private_postgresql
from creche.testing.servers._mysql import ForeignMySQL
from creche.testing.servers._postgresql import ForeignPostgreSQL

POSTGRESQL: Final[Mapping[str, str]] = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "synchronous_commit": "on",
    "shared_preload_libraries": "pg_stat_statements",
}
MARIADB: Final[Mapping[str, str]] = {
    "innodb_buffer_pool_size": "512M",
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_log_file_size": "512M",
}
ENGINES: Final = ("postgresql", "mariadb", "sqlite", "memory")


class Ground(Protocol):
    """A server, or what takes its place.

    Attributes:
        name: of the engine, for tables.
    """

    name: str

    @contextmanager
    def database(self) -> Generator[str]:
        """Give out the DSN of a database of one's own, empty; gone at the end of the block."""
        ...


class ServerGround:
    """Databases on a server."""

    def __init__(self, name: str, server: PrivateServer | ForeignServer) -> None:
        self.name = name
        self._server = server

    @contextmanager
    def database(self) -> Generator[str]:
        """See `Ground`."""
        name = f"creche_bench_{secrets.token_hex(4)}"
        dsn = self._server.create_database(name)
        try:
            if self.name == "postgresql":
                count_statements(dsn)
            yield dsn
        finally:
            self._server.drop_database(name)


def count_statements(dsn: str) -> None:
    """Make the counter of statements, on a PostgreSQL that has it."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection, suppress(psycopg.Error):
        connection.execute("CREATE EXTENSION pg_stat_statements")
        connection.execute("SELECT count(*) FROM pg_stat_statements")


class FileGround:
    """SQLite: files in a temporary folder, or in the one of the file that a DSN names."""

    name = "sqlite"

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @contextmanager
    def database(self) -> Generator[str]:
        """See `Ground`."""
        folder = Path(tempfile.mkdtemp(prefix="creche-bench-", dir=self._folder))
        try:
            yield f"sqlite:///{folder / 'jobs.db'}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class MemoryGround:
    """Memory: jobs are dispatched by the process that runs them."""

    name = "memory"

    @contextmanager
    def database(self) -> Generator[str]:
        """See `Ground`."""
        yield "memory://"


@contextmanager
def grounds(dsns: Sequence[str], engines: Sequence[str]) -> Generator[list[Ground]]:
    """Give out the servers that DSNs name; without any, private ones of these engines, those that are to be had."""
    with ExitStack() as stack:
        found = [_given(dsn) for dsn in dsns]
        for engine in () if found else engines:
            try:
                found.append(_private(engine, stack))
            except ServerNotFound as error:
                print(f"left out: {error}")
        yield found


def _given(dsn: str) -> Ground:
    match urlsplit(dsn).scheme.partition("+")[0]:
        case "postgres" | "postgresql":
            return ServerGround("postgresql", ForeignPostgreSQL(dsn))
        case "mysql" | "mariadb":
            return ServerGround(urlsplit(dsn).scheme, ForeignMySQL(dsn))
        case "sqlite":
            return FileGround(Path(dsn.removeprefix("sqlite:///")).absolute().parent)
        case "memory":
            return MemoryGround()
        case other:
            raise click.UsageError(f"{other!r} in the DSN is no engine that is known here")


def _private(engine: str, stack: ExitStack) -> Ground:
    match engine:
        case "postgresql":
            server = stack.enter_context(private_postgresql(durable=True, settings=POSTGRESQL))
            return ServerGround(engine, server)
        case "mariadb":
            return ServerGround(engine, stack.enter_context(private_mariadb(durable=True, settings=MARIADB)))
        case "sqlite":
            return FileGround()
        case "memory":
            return MemoryGround()
        case other:
            raise click.UsageError(f"{other!r} is none of {', '.join(ENGINES)}")
