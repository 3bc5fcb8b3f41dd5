"""A group of three MySQL servers (Group Replication), for tests of what its members lose when one of them is gone."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final
from uuid import uuid4

from creche.testing.servers._mysql import NOT_DURABLE, MySQLDatabases, MySQLServer, connect_mysql, find_mysql
from creche.testing.servers._process import ServerFailed, free_port

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

MEMBERS: Final = 3
PATIENCE: Final = 60.0  # seconds for a member to join

SETTINGS: Final[Mapping[str, str]] = {
    "log_bin": "binary-log",
    "gtid_mode": "ON",
    "enforce_gtid_consistency": "ON",
    "report_host": "127.0.0.1",
    "plugin_load_add": "group_replication.so",
    "loose_group_replication_start_on_boot": "OFF",
    "loose_group_replication_ip_allowlist": "127.0.0.1/32",
    "loose_group_replication_recovery_get_public_key": "ON",
    # Who can't reach most of the others gives up, and tells its clients.
    "loose_group_replication_unreachable_majority_timeout": "5",
    "loose_group_replication_member_expel_timeout": "0",
}


@contextmanager
def private_group(
    *, several_writers: bool, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Generator[MySQLGroup]:
    """Three members of one's own, for the length of the block.

    Args:
        several_writers: whether all of them take writes; else one does, and the others when it is gone.
        durable: see `private_mysql`. A single member that is killed gets what it lost from the others.
        settings: more of what stands in my.cnf.

    Raises:
        ServerNotFound: there is no MySQL to be had.
        ServerFailed: a member did not start, or did not join.
    """
    ports = [free_port() for _ in range(MEMBERS)]
    common = {
        **SETTINGS,
        **({} if durable else NOT_DURABLE),
        "loose_group_replication_group_name": str(uuid4()),
        "loose_group_replication_group_seeds": ",".join(f"127.0.0.1:{port}" for port in ports),
        "loose_group_replication_single_primary_mode": "OFF" if several_writers else "ON",
        "loose_group_replication_enforce_update_everywhere_checks": "ON" if several_writers else "OFF",
        **(settings or {}),
    }
    with ExitStack() as stack:
        members = list[GroupMember]()
        for port in ports:
            member = GroupMember(common, port, members[0] if members else None)
            stack.callback(member.remove)
            member.create()
            members.append(member)
        for member in members:
            member.start()
            member.join(alone=member is members[0])
        yield MySQLGroup(members)


class GroupMember(MySQLServer):
    """One of the three.

    Args:
        settings: what is common to all.
        port: at which it speaks with the others.
        first: a copy of which it begins as, before that one is started; None: this one is the first.
    """

    name = "Group Replication"
    defaults: ClassVar[Mapping[str, str]] = {
        name: value for name, value in MySQLServer.defaults.items() if name != "disable_log_bin"
    }

    def __init__(self, settings: Mapping[str, str], port: int, first: GroupMember | None) -> None:
        own = {"server_id": str(port), "loose_group_replication_local_address": f"127.0.0.1:{port}"}
        super().__init__(find_mysql(), {**settings, **own})
        self._first = first

    def _lay_out(self) -> None:
        if self._first is None:
            super()._lay_out()
            # What somebody writes before it has joined, the others don't know of, and never let it in again: accounts
            # are everybody's own, and nobody else is to write before that. To join makes it take writes.
            accounts = (self.folder / "accounts.sql").read_text()
            self._write("accounts.sql", f"SET sql_log_bin = 0;\n{accounts}\nSET GLOBAL super_read_only = ON;\n")
        else:
            self._be_like(self._first)
            self._write("accounts.sql", (self._first.folder / "accounts.sql").read_text())
            self._run(["cp", "-a", self._first.folder / "data", self.folder])
            (self.folder / "data" / "auto.cnf").unlink(missing_ok=True)  # a name of its own

    def join(self, *, alone: bool = False) -> None:
        """Join the others, or begin without any; return when it takes statements."""
        self.ask(
            f"CHANGE REPLICATION SOURCE TO SOURCE_USER = 'root', SOURCE_PASSWORD = '{self._password}' "
            "FOR CHANNEL 'group_replication_recovery'"
        )
        self.ask(f"SET GLOBAL group_replication_bootstrap_group = {'ON' if alone else 'OFF'}")
        self.ask("START GROUP_REPLICATION")
        self.ask("SET GLOBAL group_replication_bootstrap_group = OFF")
        limit = time.monotonic() + PATIENCE
        while not self.serves():
            if time.monotonic() > limit:
                raise ServerFailed(f"a member is {self.state()} after {PATIENCE:g} s")
            time.sleep(0.1)

    def state(self) -> str:
        """What it is to the group, by its own account: ONLINE, RECOVERING, ERROR …"""
        ((state,),) = self.ask(
            "SELECT member_state FROM performance_schema.replication_group_members WHERE member_id = @@server_uuid"
        ) or (("gone",),)
        return str(state)

    def serves(self) -> bool:
        """Whether it is a member like the others."""
        import pymysql

        with suppress(OSError, pymysql.Error):
            return self.state() == "ONLINE"
        return False

    def rejoin(self) -> None:
        """Leave, if that has not happened, and join again."""
        self.ask("STOP GROUP_REPLICATION")
        self.join()

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query to this member."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(question)
            return list(cursor.fetchall())


class MySQLGroup(MySQLDatabases):
    """Three servers, of which one or all take writes."""

    def __init__(self, nodes: Sequence[GroupMember]) -> None:
        self.nodes: Final = nodes

    def dsn(self, dbname: str = "mysql", *, first: int = 0) -> str:
        """The DSN that names all members, beginning with the one of this number."""
        login, _, place = self.nodes[0].dsn(dbname).partition("@")
        turned = [self.nodes[(first + number) % len(self.nodes)] for number in range(len(self.nodes))]
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in turned)
        return f"{login}@{hosts}/{place.partition('/')[2]}"

    def _connect(self) -> Connection[Cursor]:
        return connect_mysql(self.nodes[0].dsn(socket=True))
