"""Clusters, and what befalls them: each knows its faults by name, has them happen, and is whole again afterwards."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Final, Protocol, TypeAlias

from attrs import define, field

from creche.testing.servers import (
    GaleraCluster,
    MySQLGroup,
    PostgreSQLPair,
    private_galera,
    private_group,
    private_postgresql_pair,
)

DATABASE: Final = "outage"

# A call is given up soon, for a frozen server says nothing.
PATIENCE: Final = "call_timeout=4"

Fault: TypeAlias = Callable[[], str]
"""Does it, heals it, and returns what was done to whom."""


class Cluster(Protocol):
    """Servers of which one or more may be gone."""

    lossy: bool
    """Whether a failover may lose what was acknowledged."""

    turn: Callable[[], None]
    """Called when a failover begins another history: just before, for what was acknowledged may be lost."""

    @property
    def faults(self) -> Mapping[str, Fault]:
        """What can be done to it, by name."""
        ...

    def dsn(self, number: int) -> str:
        """The DSN of the program of this number: it names all nodes."""
        ...

    def nodes(self) -> Sequence[str]:
        """The DSNs of nodes which each have to know everything."""
        ...


@define
class PostgreSQLCluster:
    """A primary and a standby.

    Args:
        pair: the servers.
        lossy: whether it replicates asynchronously.
        turn: see `Cluster`.
    """

    pair: PostgreSQLPair
    lossy: bool
    turn: Callable[[], None] = field(default=lambda: None)

    @property
    def faults(self) -> Mapping[str, Fault]:
        return {"kill": self._kill, "freeze": self._freeze, "lag": self._lag}

    def dsn(self, number: int) -> str:
        return f"{self.pair.dsn(DATABASE)}&{PATIENCE}"

    def nodes(self) -> Sequence[str]:
        return ()

    def _kill(self) -> str:
        """Kill the primary; promote the standby; the old one comes back as the new standby."""
        self.pair.primary.kill()
        return self._fail_over("killed")

    def _lag(self) -> str:
        """The same, and the line to the standby was cut for a second before."""
        self.pair.hold_back(signal.SIGSTOP)
        time.sleep(1)
        self.pair.primary.kill()
        return self._fail_over("cut off from its standby, and killed")

    def _freeze(self) -> str:
        """Freeze the primary; promote the standby. Where no commit counts without the standby, the old primary may wake
        beside its successor. Where one does, somebody has to see to it that it never wakes: it is killed as it stands.
        """
        frozen = self.pair.primary
        with frozen.frozen():
            time.sleep(1)
            if self.lossy:
                frozen.kill()
                return self._fail_over("frozen, and killed")
            self.turn()
            self.pair.promote()
            time.sleep(2)
        time.sleep(2)
        self.pair.rejoin()
        return f"{frozen.name_in_cluster} frozen, and awake beside its successor"

    def _fail_over(self, what: str) -> str:
        old = self.pair.primary
        time.sleep(0.5)
        self.turn()
        self.pair.promote()
        time.sleep(random.uniform(0, 2))
        self.pair.rejoin()
        return f"{old.name_in_cluster} {what}"


@contextmanager
def postgresql(*, synchronous: bool) -> Iterator[PostgreSQLCluster]:
    with private_postgresql_pair(synchronous=synchronous, durable=True) as pair:
        pair.create_database(DATABASE)
        yield PostgreSQLCluster(pair, lossy=not synchronous)


@define
class Galera:
    """Three nodes, all of which take writes. Each fault hits the next one."""

    servers: GaleraCluster
    lossy: bool = field(default=False, init=False)
    turn: Callable[[], None] = field(default=lambda: None, init=False)
    _victims: Iterator[int] = field(factory=lambda: cycle(range(3)), init=False)

    @property
    def faults(self) -> Mapping[str, Fault]:
        return {"kill": self._kill, "freeze": self._freeze, "isolate": self._isolate}

    def dsn(self, number: int) -> str:
        return f"{self.servers.dsn(DATABASE, first=number % 3)}?{PATIENCE}"

    def nodes(self) -> Sequence[str]:
        return [node.dsn(DATABASE) for node in self.servers.nodes]

    def _kill(self) -> str:
        """Kill a node, and start it when the others have missed it."""
        victim = next(self._victims)
        node = self.servers.nodes[victim]
        node.kill()
        time.sleep(random.uniform(0, 5))
        node.start()
        return f"node {victim} killed"

    def _freeze(self) -> str:
        """Freeze a node for long enough that the others go on without it."""
        victim = next(self._victims)
        with self.servers.nodes[victim].frozen():
            time.sleep(10)
        self._wait_for(victim)
        return f"node {victim} frozen"

    def _isolate(self) -> str:
        """Cut a node off from the others; its clients still reach it."""
        victim = next(self._victims)
        with self.servers.nodes[victim].isolated():
            time.sleep(10)
        self._wait_for(victim)
        return f"node {victim} isolated"

    def _wait_for(self, victim: int) -> None:
        _until(self.servers.nodes[victim].serves, f"node {victim} does not come back")


@contextmanager
def galera() -> Iterator[Galera]:
    with private_galera(durable=True) as servers:
        servers.create_database(DATABASE)
        yield Galera(servers)


@define
class Group:
    """Three members, of which one or all take writes. Each fault hits the next one."""

    servers: MySQLGroup
    lossy: bool = field(default=False, init=False)
    turn: Callable[[], None] = field(default=lambda: None, init=False)
    _victims: Iterator[int] = field(factory=lambda: cycle(range(3)), init=False)

    @property
    def faults(self) -> Mapping[str, Fault]:
        return {"kill": self._kill, "freeze": self._freeze, "leave": self._leave}

    def dsn(self, number: int) -> str:
        return f"{self.servers.dsn(DATABASE, first=number % 3)}?{PATIENCE}"

    def nodes(self) -> Sequence[str]:
        return [member.dsn(DATABASE) for member in self.servers.nodes]

    def _kill(self) -> str:
        """Kill a member, and start it when the others have missed it."""
        victim = next(self._victims)
        member = self.servers.nodes[victim]
        member.kill()
        time.sleep(random.uniform(5, 10))
        member.start()
        member.join()
        return f"member {victim} killed"

    def _freeze(self) -> str:
        """Freeze a member for long enough that the others go on without it; it finds out, and comes back by itself."""
        victim = next(self._victims)
        with self.servers.nodes[victim].frozen():
            time.sleep(15)
        _until(self.servers.nodes[victim].serves, f"member {victim} does not come back")
        return f"member {victim} frozen"

    def _leave(self) -> str:
        """Have a member leave: it takes no writes any more, and goes on serving reads."""
        victim = next(self._victims)
        self.servers.nodes[victim].ask("STOP GROUP_REPLICATION")
        time.sleep(5)
        self.servers.nodes[victim].join()
        return f"member {victim} left"


@contextmanager
def group(*, several_writers: bool) -> Iterator[Group]:
    with private_group(several_writers=several_writers, durable=True) as servers:
        servers.create_database(DATABASE)
        yield Group(servers)


def _until(condition: Callable[[], bool], complaint: str) -> None:
    limit = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < limit, complaint
        time.sleep(0.1)
