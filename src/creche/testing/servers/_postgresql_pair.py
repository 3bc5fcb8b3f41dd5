"""A PostgreSQL primary and its standby, for tests of what a failover costs: killed, promoted, rejoined on request."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from creche.testing.servers._postgresql import (
    NOT_DURABLE,
    PostgreSQLDatabases,
    PostgreSQLServer,
    find_postgresql,
)
from creche.testing.servers._process import ServerFailed

# What a standby needs of its primary. One that is slow to come finds the WAL that it lacks still there.
REPLICATED: Final[Mapping[str, str]] = {"wal_level": "replica", "hot_standby": "on", "wal_keep_size": "256MB"}
# By name: `*` would also mean the copy that a standby is made from, which is no standby yet.
SYNCHRONOUS: Final[Mapping[str, str]] = {"synchronous_standby_names": "ANY 1 (one, two)"}

PATIENCE: Final = 60.0  # seconds for a standby to follow


@contextmanager
def private_postgresql_pair(
    *, synchronous: bool, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Generator[PostgreSQLPair]:
    """A primary and a standby that follows it, for the length of the block.

    Args:
        synchronous: a commit is acknowledged when the other server has it too, and waits while there is none.
        durable: see `private_postgresql`.
        settings: more of postgresql.conf.

    Raises:
        ServerNotFound: there is no PostgreSQL to be had.
        ServerFailed: one of them did not start.
    """
    lasting = {**({} if durable else NOT_DURABLE), "synchronous_commit": "on"}
    common = {**lasting, **REPLICATED, **(SYNCHRONOUS if synchronous else {}), **(settings or {})}
    primary = Node({**common, "cluster_name": "one"})
    with primary.running():
        standby = Node({**common, "cluster_name": "two"}, primary)
        with standby.running():
            pair = PostgreSQLPair(primary, standby)
            pair.wait_for_standby()
            yield pair


class Node(PostgreSQLServer):
    """One of the two: the first primary, or the standby that follows it from its birth."""

    def __init__(self, settings: Mapping[str, str], primary: Node | None = None) -> None:
        super().__init__(find_postgresql(), settings)
        self.name_in_cluster: Final = settings["cluster_name"]
        self._primary = primary

    def _lay_out(self) -> None:
        if self._primary is None:
            super()._lay_out()
        else:
            self._binaries = self._reachable()
            self._copy(self._primary)

    def follow(self, primary: Node) -> None:
        """Become the standby of another one, whatever this one was before: it starts from a copy of that one's data."""
        self.kill()
        shutil.rmtree(self.folder / "data")
        self._copy(primary)
        self.start()

    def _copy(self, primary: Node) -> None:
        self._password = primary._password
        source = f"host=127.0.0.1 port={primary.port} user=postgres password={primary._password}"
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", source]
        self._run([self._binaries / "pg_basebackup", "--pgdata", self.folder / "data", *options])

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query to this server."""
        import psycopg

        with psycopg.connect(self.dsn(socket=True), autocommit=True) as connection:
            return connection.execute(question.encode()).fetchall()


class PostgreSQLPair(PostgreSQLDatabases):
    """Two servers, one of which is the primary.

    Attributes:
        primary: takes writes.
        standby: follows it, unless it was killed.
    """

    def __init__(self, primary: Node, standby: Node) -> None:
        self.primary = primary
        self.standby = standby
        self._nodes: Final = (primary, standby)

    def dsn(self, dbname: str = "postgres") -> str:
        """The DSN that names both."""
        login, _, place = self.primary.dsn(dbname).partition("@")
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self._nodes)
        return f"{login}@{hosts}/{place.partition('/')[2]}?target_session_attrs=read-write"

    def promote(self) -> None:
        """Have the standby take over; what becomes of the other one is the caller's business."""
        self.primary, self.standby = self.standby, self.primary
        self.primary.ask("SELECT pg_promote(wait_seconds => 60)")

    def rejoin(self) -> None:
        """Have the server that isn't the primary follow the one that is, whatever it is now; return when it does."""
        self.standby.follow(self.primary)
        self.wait_for_standby()

    def wait_for_standby(self) -> None:
        """Return when the standby has said what it has."""
        limit = time.monotonic() + PATIENCE
        while not self.primary.ask("SELECT FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn > '0/0'"):
            if time.monotonic() > limit:
                raise ServerFailed(f"the standby does not follow after {PATIENCE:g} s")
            time.sleep(0.05)

    def hold_back(self, signal_number: signal.Signals) -> None:
        """SIGSTOP what sends to the standby, as if the line were cut: what is committed stays here. SIGCONT ends it."""
        for (sender,) in self.primary.ask("SELECT pid FROM pg_stat_replication"):
            with suppress(ProcessLookupError):
                os.kill(sender, signal_number)
