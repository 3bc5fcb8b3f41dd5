"""What a server says of its own work: statements, transactions, log, and what its processes compute.

All of it is the whole server's, or the whole database's: nobody else may use it meanwhile. What a server does not say
is None, never nought.
"""

# ruff: noqa: S608 - what is put into statements are names of PostgreSQL's own, quoted by itself

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from anyio import to_thread
from attrs import frozen

from creche.bench._processes import computed, computed_with_children, name_of, parent_of

if TYPE_CHECKING:
    import psycopg

    from creche.storage._asyncmy import Connection


@frozen(kw_only=True)
class Reading:
    """What a server had done at some moment, or between two.

    Attributes:
        cpu: seconds.
        statements: that clients sent, BEGIN and COMMIT too.
        transactions: that were committed.
        log: bytes of WAL, or redo log.
    """

    cpu: float | None = None
    statements: float | None = None
    transactions: float | None = None
    log: float | None = None

    def since(self, before: Reading, *, own: int = 0) -> Reading:
        """Return the difference, less so many statements of one's own."""
        return Reading(
            cpu=_less(self.cpu, before.cpu),
            statements=_less(self.statements, before.statements, own),
            transactions=_less(self.transactions, before.transactions, own),
            log=_less(self.log, before.log),
        )


def _less(after: float | None, before: float | None, own: float = 0.0) -> float | None:
    return None if after is None or before is None else max(0.0, after - before - own)


class Meter(Protocol):
    """Reads a server's counters.

    Attributes:
        own: statements that one reading adds to the next.
        words: how statements are counted, for people.
        version: the server's.
        settings: of the server, as far as they matter here.
    """

    own: int
    words: str
    version: str
    settings: Mapping[str, str]

    async def read(self) -> Reading:
        """Return how things stand."""
        ...

    async def tidy(self) -> None:
        """Bring the server to rest after jobs were written: statistics up to date, nothing left to flush."""
        ...


class NoMeter:
    """For what has no server."""

    own = 0
    words = "counted by the worker's process, through SQLite's trace"

    def __init__(self, version: str) -> None:
        self.version = version
        self.settings: Mapping[str, str] = {}

    async def read(self) -> Reading:
        """Nothing."""
        return Reading()

    async def tidy(self) -> None:
        """Nothing."""


_POSTGRESQL_SETTINGS: Final = (
    "shared_buffers",
    "synchronous_commit",
    "fsync",
    "full_page_writes",
    "max_wal_size",
    "jit",
    "shared_preload_libraries",
)


class PostgreSQLMeter:
    """PostgreSQL's counters: pg_stat_statements where it is loaded, pg_stat_database, the WAL's position, /proc."""

    own = 1

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.version = "PostgreSQL " + str(self._one("SELECT current_setting('server_version')"))
        self.settings: Mapping[str, str] = {
            name: str(self._one("SELECT current_setting(%s)", name)) for name in _POSTGRESQL_SETTINGS
        }
        self._postmaster = self._find_postmaster()
        self._counts = self._find_counter()
        self.words = "pg_stat_statements" if self._counts else "not counted: pg_stat_statements is not loaded"

    def _one(self, question: str, *parameters: object) -> Any:
        row = self._connection.execute(question.encode(), parameters or None).fetchone()
        return None if row is None else row[0]

    def _find_postmaster(self) -> int | None:
        address = self._one("SELECT host(inet_server_addr())")
        if address is not None and not (address == "::1" or address.startswith("127.")):
            return None
        backend = int(self._one("SELECT pg_backend_pid()"))
        return parent_of(backend) if name_of(backend) == "postgres" else None

    def _find_counter(self) -> str | None:
        import psycopg

        schema = self._one(
            "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"
            " WHERE extname = 'pg_stat_statements'"
        )
        with suppress(psycopg.Error):
            if schema is not None:
                self._one(f"SELECT sum(calls) FROM {schema}.pg_stat_statements")
                return (
                    f"(SELECT sum(calls)::float8 FROM {schema}.pg_stat_statements(false)"
                    " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()))"
                )
        return None

    def _read(self) -> Reading:
        ((statements, transactions, log),) = self._connection.execute(
            (
                f"SELECT {self._counts or 'NULL::float8'}, xact_commit::float8,"
                " (pg_current_wal_insert_lsn() - '0/0')::float8"
                " FROM pg_stat_database WHERE datname = current_database()"
            ).encode()
        ).fetchall()
        cpu = None if self._postmaster is None else computed_with_children(self._postmaster)
        return Reading(cpu=cpu, statements=statements, transactions=transactions, log=log)

    def _tidy(self) -> None:
        import psycopg

        self._connection.execute("VACUUM (ANALYZE)")
        with suppress(psycopg.Error):  # who may not: it is done when the server thinks fit
            self._connection.execute("CHECKPOINT")

    async def read(self) -> Reading:
        """See `Meter`."""
        return await to_thread.run_sync(self._read)

    async def tidy(self) -> None:
        """See `Meter`."""
        await to_thread.run_sync(self._tidy)


_MYSQL_SETTINGS: Final = (
    "innodb_buffer_pool_size",
    "innodb_flush_log_at_trx_commit",
    "innodb_doublewrite",
    "log_bin",
    "sync_binlog",
)


class MySQLMeter:
    """MySQL's and MariaDB's counters: SHOW GLOBAL STATUS, /proc."""

    own = 1
    words = "the server's counter Questions"

    def __init__(self, connection: Connection, settings: Mapping[str, str], pid: int | None) -> None:
        self._connection = connection
        self._pid = pid
        self.version = connection.server.name
        self.settings = settings

    @classmethod
    async def on(cls, connection: Connection) -> MySQLMeter:
        """Return a meter that asks through this connection."""
        names = ", ".join(f"'{name}'" for name in (*_MYSQL_SETTINGS, "pid_file", "datadir"))
        answer = await connection.run(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
        found = {str(name): str(value) for name, value in answer[0].rows}
        return cls(connection, found, _process_of(Path(found.pop("datadir"), found.pop("pid_file"))))

    async def read(self) -> Reading:
        """See `Meter`."""
        answer = await self._connection.run(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Com_commit', 'Innodb_os_log_written')"
        )
        found = {str(name): float(value) for name, value in answer[0].rows}
        cpu = None if self._pid is None else computed(self._pid)
        return Reading(
            cpu=cpu,
            statements=found.get("Questions"),
            transactions=found.get("Com_commit"),
            log=found.get("Innodb_os_log_written"),
        )

    async def tidy(self) -> None:
        """See `Meter`."""
        await self._connection.run("ANALYZE TABLE creche_jobs")


def _process_of(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        pid = int(file.read_text())
        return pid if name_of(pid) in {"mariadbd", "mysqld"} else None
    return None


@asynccontextmanager
async def meter(dsn: str) -> AsyncGenerator[Meter]:
    """Open what reads the counters of the server that a DSN names, for the length of the block.

    On PostgreSQL statements are counted if the extension pg_stat_statements is made in that database.
    """
    async with AsyncExitStack() as stack:
        if dsn.startswith("postgres"):
            import psycopg

            connection = await to_thread.run_sync(lambda: psycopg.connect(dsn, autocommit=True))
            stack.callback(connection.close)
            counters = await to_thread.run_sync(lambda: PostgreSQLMeter(connection))
            yield counters
        elif dsn.startswith(("mysql", "mariadb")):
            from creche.storage._asyncmy import Connection
            from creche.storage._mysql_address import parse_dsn

            destination, _ = parse_dsn(dsn)
            own = await Connection.connect(destination)
            stack.push_async_callback(own.aclose)
            yield await MySQLMeter.on(own)
        else:
            import sqlite3

            yield NoMeter(f"SQLite {sqlite3.sqlite_version}" if dsn.startswith("sqlite") else "memory")
