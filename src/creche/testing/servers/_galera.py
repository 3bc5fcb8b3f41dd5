"""A Galera cluster of three MariaDB servers, for tests of what its nodes lose when one of them is gone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from creche.testing.servers._mysql import NOT_DURABLE, MariaDBServer, MySQLDatabases, connect_mysql, find_mariadb
from creche.testing.servers._process import ServerNotFound, free_port

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

GALERA: Final = "CRECHE_TEST_GALERA"
LIBRARIES: Final = ("usr/lib*/galera*/libgalera_smm.so", "usr/lib/*/galera*/libgalera_smm.so")

NODES: Final = 3

SETTINGS: Final[Mapping[str, str]] = {
    "binlog_format": "ROW",
    "innodb_autoinc_lock_mode": "2",
    "wsrep_on": "ON",
    "wsrep_cluster_name": "creche",
    "wsrep_sst_method": "rsync",
    "wsrep_slave_threads": "2",
}
# Who says nothing for three seconds is suspected, and shut out after six. What a node missed is kept for it.
PROVIDER: Final[Mapping[str, str]] = {
    "base_host": "127.0.0.1",
    "evs.suspect_timeout": "PT3S",
    "evs.inactive_timeout": "PT6S",
    "evs.keepalive_period": "PT0.5S",
    "gcache.size": "64M",
}


def find_galera() -> Path:
    """The library that makes a MariaDB a node, or the one that the environment variable `CRECHE_TEST_GALERA` names.

    Raises:
        ServerNotFound: there is none, or no rsync, by which nodes copy each other's data.
    """
    found = [Path(named)] if (named := os.environ.get(GALERA)) else []
    found += [library for pattern in LIBRARIES for library in Path("/").glob(pattern)]
    if found and shutil.which("rsync"):
        return found[0].absolute()
    raise ServerNotFound(
        "Galera", f"set {GALERA} to the path of libgalera_smm.so", "install Galera's library (galera-4) and rsync"
    )


@contextmanager
def private_galera(*, durable: bool = False, settings: Mapping[str, str] | None = None) -> Generator[GaleraCluster]:
    """Three nodes of one's own, for the length of the block.

    Args:
        durable: see `private_mariadb`. A single node that is killed gets what it lost from the others.
        settings: more of what stands in my.cnf.

    Raises:
        ServerNotFound: there is no MariaDB, or no Galera, to be had.
        ServerFailed: a node did not start.
    """
    library = find_galera()
    ports = [free_port() for _ in range(NODES)]
    everybody = "gcomm://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    common = {**SETTINGS, **({} if durable else NOT_DURABLE), **(settings or {}), "wsrep_cluster_address": everybody}
    with ExitStack() as stack:
        nodes = list[GaleraNode]()
        for port in ports:
            nodes.append(GaleraNode(common, library, port, nodes[0] if nodes else None))
            stack.enter_context(nodes[-1].running())
        yield GaleraCluster(nodes)


class GaleraNode(MariaDBServer):
    """One of the three.

    Args:
        settings: what is common to all.
        library: Galera's; it may lie where the server's user can't read it.
        port: at which it speaks with the others.
        first: whose data it begins with; None: this one is the first.
    """

    name = "Galera"
    patience = 180.0  # it may have to copy everything first

    def __init__(self, settings: Mapping[str, str], library: Path, port: int, first: GaleraNode | None) -> None:
        provider = {
            **PROVIDER,
            "base_port": str(port),
            "gmcast.listen_addr": f"tcp://127.0.0.1:{port}",
            "ist.recv_addr": f"127.0.0.1:{free_port()}",
        }
        own = {
            "wsrep_node_address": f"127.0.0.1:{port}",
            "wsrep_sst_receive_address": f"127.0.0.1:{free_port()}",
            "wsrep_provider_options": ";".join(f"{name}={value}" for name, value in provider.items()),
        }
        super().__init__(find_mariadb(), {**settings, **own})
        self._settings["wsrep_provider"] = str(self.folder / library.name)
        self._library = library
        self._first = first
        self._begun = False

    def _lay_out(self) -> None:
        self._hand_over(Path(shutil.copy(self._library, self.folder)))
        if self._first is None:
            super()._lay_out()
        else:
            self._be_like(self._first)
            (self.folder / "data").mkdir()
            self._hand_over(self.folder / "data")

    def _command(self) -> Sequence[str | Path]:
        command = list(super()._command())
        if self._first is None and not self._begun:
            return [*command, "--wsrep-new-cluster"]
        # Accounts come with the others' data.
        command = [option for option in command if not str(option).startswith("--init_file=")]
        return [*command, f"--wsrep_start_position={self._position}"] if self._position else command

    def _try_start(self) -> bool:
        self._position = self._recover() if self._begun else ""
        self._begun = super()._try_start() or self._begun
        return self.pid is not None

    def _recover(self) -> str:
        """Return what this node has: who is killed has not written it down, and would need a copy of everything."""
        self._position = ""
        before = self.log.stat().st_size
        self._run([*self._command(), "--wsrep_recover"])
        found = re.findall(r"Recovered position:\s*(\S+)", self.log.read_text(errors="replace")[before:])
        return str(found[-1]) if found else ""

    def _ready(self) -> bool:
        return super()._ready() and self.serves()

    def serves(self) -> bool:
        """Whether it is a member of the cluster, and takes statements."""
        import pymysql

        with suppress(OSError, pymysql.Error):
            return self.ask("SHOW GLOBAL STATUS LIKE 'wsrep_ready'") == [("wsrep_ready", "ON")]
        return False

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query to this node."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(question)
            return list(cursor.fetchall())

    @contextmanager
    def isolated(self) -> Generator[None]:
        """Cut it off from the others, but not from its clients, for the length of the block."""
        isolate = "SET GLOBAL wsrep_provider_options = 'gmcast.isolate={}'"
        self.ask(isolate.format(1))
        try:
            yield
        finally:
            self.ask(isolate.format(0))


class GaleraCluster(MySQLDatabases):
    """Three servers that all take writes."""

    def __init__(self, nodes: Sequence[GaleraNode]) -> None:
        self.nodes: Final = nodes

    def dsn(self, dbname: str = "mysql", *, first: int = 0) -> str:
        """The DSN that names all nodes, beginning with the one of this number."""
        login, _, place = self.nodes[0].dsn(dbname).partition("@")
        turned = [self.nodes[(first + number) % len(self.nodes)] for number in range(len(self.nodes))]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in turned)
        return f"{login}@{hosts}/{place.partition('/')[2]}"

    def _connect(self) -> Connection[Cursor]:
        return connect_mysql(self.nodes[0].dsn(socket=True))
