"""What a MySQL or MariaDB says of itself when asked whether it takes writes, and whether others do so beside it.

A member of a cluster that has lost the others takes connections still, and answers whatever needs no table. One that
has not heard yet what another has acknowledged answers as if that had never happened: to a worker, its lease is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

from attrs import frozen

LOOK: Final = """
    SHOW GLOBAL VARIABLES WHERE variable_name IN (
        'read_only', 'super_read_only', 'innodb_read_only',
        'wsrep_on', 'wsrep_provider', 'group_replication_single_primary_mode'
    )
"""

# Whatever it answers. A member that can't serve refuses it, as it refuses every statement that names a table.
PROBE: Final = "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = DATABASE()"

# What makes a session wait, before each transaction, until its server has what the others had acknowledged: on Galera
# bits for reads, updates and inserts; on Group Replication a word, and with one primary only its successor has to wait.
GALERA: Final = "SET SESSION wsrep_sync_wait = 7"
GROUP: Final = "SET SESSION group_replication_consistency = 'BEFORE'"
GROUP_OF_ONE_PRIMARY: Final = "SET SESSION group_replication_consistency = 'BEFORE_ON_PRIMARY_FAILOVER'"


@frozen(kw_only=True)
class Membership:
    """How a server stands among others.

    Attributes:
        causal: what a session there has to be told first; empty if the server is a member of nothing.
        apart: whether each statement of a transaction has to be sent alone. Galera undoes a transaction for a rival's
            at any time. Between two statements of one packet MariaDB loses that error, and says OK to the COMMIT.
        several_writers: whether others take writes at the same time, each by a clock of its own.
        read_only: the setting that keeps it from taking writes; empty if none does.
    """

    causal: str = ""
    apart: bool = False
    several_writers: bool = False
    read_only: str = ""

    @classmethod
    def told(cls, said: Mapping[str, str]) -> Self:
        """Read the answer to `LOOK`."""
        refusing = ("super_read_only", "read_only", "innodb_read_only")
        read_only = next((name for name in refusing if said.get(name, "OFF") not in {"OFF", "0"}), "")
        if said.get("wsrep_on") == "ON" and said.get("wsrep_provider", "none") != "none":
            return cls(causal=GALERA, apart=True, several_writers=True, read_only=read_only)
        match said.get("group_replication_single_primary_mode"):
            case "OFF":
                return cls(causal=GROUP, several_writers=True, read_only=read_only)
            case "ON":
                return cls(causal=GROUP_OF_ONE_PRIMARY, read_only=read_only)
            case _:
                return cls(read_only=read_only)
