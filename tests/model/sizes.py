"""How large a world is looked through: always (`QUICK`), and where there is time (`SLOW`)."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from model.audit import Promise
from model.rules import Rules
from model.search import Found, explore
from model.world import Protocol, World, key, start


def look(protocol: Protocol, begin: World) -> Found[Promise]:
    """Go everywhere from there."""
    return explore(begin, protocol.steps, key=key, broken_in=protocol.broken_in)


@frozen
class Size:
    """So many workers, attempts and ticks of lease; and whether a replica may take over."""

    workers: int
    max_attempts: int
    lease: int
    failover: bool = False

    def __str__(self) -> str:
        words = f"workers={self.workers} max_attempts={self.max_attempts} lease={self.lease}"
        return f"{words} failover" if self.failover else words

    def look(self) -> Found[Promise]:
        """Go through all of it."""
        protocol = Protocol(Rules(max_attempts=self.max_attempts, lease=self.lease))
        return look(protocol, start(workers=self.workers, failover=self.failover))


QUICK: Final = (Size(2, 3, 3), Size(2, 1, 2, failover=True))
SLOW: Final = (Size(2, 2, 2, failover=True), Size(3, 2, 2))
