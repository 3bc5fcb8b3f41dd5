"""The ground of a torture run: the database, the server that is ours to hurt, what stands between. It hurts none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from creche.testing._backdoor import read
from creche.testing.servers import (
    ForeignServer,
    PgBouncer,
    PostgreSQLServer,
    PrivateServer,
    private_mariadb,
    private_mysql,
    private_pgbouncer,
    private_postgresql,
)
from creche.testing.torture._plan import Plan

_SERVERS: Final[Mapping[str, Callable[..., AbstractContextManager[PrivateServer | ForeignServer]]]] = {
    "postgresql": private_postgresql,
    "mariadb": private_mariadb,
    "mysql": private_mysql,
}
_DISK: Final = "256m"

# What says which server it is, and what a commit waits for there.
_FACTS: Final[Mapping[str, str]] = {
    "postgresql": "SELECT 'PostgreSQL ' || current_setting('server_version') || ', fsync ' || current_setting('fsync') "
    "|| ', synchronous_commit ' || current_setting('synchronous_commit') "
    "|| ', full_page_writes ' || current_setting('full_page_writes')",
    "mariadb": "SELECT CONCAT(@@version, ', innodb_flush_log_at_trx_commit ', @@innodb_flush_log_at_trx_commit, "
    "', innodb_flush_method ', @@innodb_flush_method, ', snapshot_isolation ', @@innodb_snapshot_isolation)",
    "mysql": "SELECT CONCAT('MySQL ', @@version, "
    "', innodb_flush_log_at_trx_commit ', @@innodb_flush_log_at_trx_commit, "
    "', innodb_flush_method ', @@innodb_flush_method)",
}


@frozen(kw_only=True)
class Ground:
    """Where a run takes place.

    Attributes:
        dsn: the database itself, with nothing in between: for those who hurt it, and for the auditor.
        entrance: the DSN that actors use, if there were no proxy: a pooler's, perhaps.
        server: that has it; None for SQLite.
        pooler: that stands before it.
        disk: a small disk of our own, on which SQLite's file is.
        facts: what it is, for people.
    """

    dsn: str
    entrance: str
    server: PrivateServer | None = None
    pooler: PgBouncer | None = None
    disk: Path | None = None
    facts: str


@contextmanager
def prepared(plan: Plan, folder: Path) -> Generator[Ground]:
    """Have a ground for a run; gone at the end of the block, whatever that end is.

    Raises:
        ServerNotFound: there is no such server to be had.
    """
    with ExitStack() as stack:
        if plan.engine == "sqlite":
            yield _file(stack.enter_context(_small_disk(folder)), folder)
            return
        server = stack.enter_context(_SERVERS[plan.engine](own=True, durable=plan.durable, settings=_settings(plan)))
        assert isinstance(server, PrivateServer)
        dsn = server.create_database("torture")
        facts = str(read(dsn, _FACTS[plan.engine])[0][0])
        pooler = None
        if plan.pgbouncer:
            assert isinstance(server, PostgreSQLServer)
            pooler = stack.enter_context(private_pgbouncer(server, "transaction"))
            facts += ", behind a PgBouncer in transaction mode"
        yield Ground(
            dsn=dsn, entrance=pooler.dsn("torture") if pooler else dsn, server=server, pooler=pooler, facts=facts
        )


def _settings(plan: Plan) -> Mapping[str, str]:
    # What newer releases have switched on: a statement that meets a change which it can't see yet is refused.
    return {"loose_innodb_snapshot_isolation": "ON"} if plan.engine == "mariadb" else {}


def _file(disk: Path | None, folder: Path) -> Ground:
    import sqlite3

    place = f"on a disk of {_DISK} in memory" if disk else "on the disk that temporary files are on"
    dsn = f"sqlite:///{disk or folder}/torture.db"
    facts = f"SQLite {sqlite3.sqlite_version}, WAL, synchronous FULL, {place}"
    return Ground(dsn=dsn, entrance=dsn, disk=disk, facts=facts)


@contextmanager
def _small_disk(folder: Path) -> Generator[Path | None]:
    """Have a disk that is easily filled; None where nobody may mount one."""
    mount, disk = shutil.which("mount"), folder / "disk"
    disk.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(disk)]
    if mount is None or sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
