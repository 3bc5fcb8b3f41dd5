"""A PgBouncer of one's own, in front of a private PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from creche.testing.servers._postgresql import PostgreSQLServer
from creche.testing.servers._process import PrivateServer, ServerNotFound

VARIABLE: Final = "CRECHE_TEST_PGBOUNCER"


class PgBouncer(PrivateServer):
    """Hands out the connections of a private PostgreSQL: per session or per transaction. It asks for no password."""

    name = "PgBouncer"
    users = PostgreSQLServer.users
    last_word = PostgreSQLServer.last_word

    def __init__(self, binary: Path, behind: PostgreSQLServer, mode: str) -> None:
        super().__init__()
        self._binary = binary
        self._behind = behind
        self._mode = mode

    def dsn(self, dbname: str = "postgres") -> str:
        """The DSN of one of the server's databases, by way of here."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(dbname)}"

    def create_database(self, name: str) -> str:
        """Create an empty database behind it and return its DSN."""
        self._behind.create_database(name)
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, and every session in it."""
        self._behind.drop_database(name)

    def _lay_out(self) -> None:
        """Nothing but a file of settings, which names the port: see `_command`."""

    def _command(self) -> Sequence[str | Path]:
        settings = [
            "[databases]",
            f"* = host={self._behind.folder} port={self._behind.port} user=postgres",
            "[pgbouncer]",
            f"pool_mode = {self._mode}",
            "auth_type = any",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
        ]
        return [self._binary, self._write("pgbouncer.ini", "\n".join(settings) + "\n")]

    def _ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


def find_pgbouncer() -> Path:
    """PgBouncer's executable.

    Raises:
        ServerNotFound: it is not there.
    """
    path = os.pathsep.join([*os.get_exec_path(), "/usr/sbin"])
    if found := os.environ.get(VARIABLE) or shutil.which("pgbouncer", path=path):
        return Path(found)
    raise ServerNotFound(PgBouncer.name, f"set {VARIABLE} to its path, which .ci/pgbouncer prints", "install it")


@contextmanager
def private_pgbouncer(server: PostgreSQLServer, mode: str) -> Generator[PgBouncer]:
    """A PgBouncer in this `pool_mode` for the length of the block.

    Raises:
        ServerNotFound: there is none to be had.
        ServerFailed: it did not start.
    """
    pooler = PgBouncer(find_pgbouncer(), server, mode)
    with pooler.running():
        yield pooler
