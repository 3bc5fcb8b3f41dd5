"""Which of several servers to go to: in the order given, last to those that have just failed, to each for its share of
the time. It reaches none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from math import inf
from time import monotonic
from typing import Final, TypeVar

from anyio import current_effective_deadline, current_time

__all__ = ["ALLOWANCE", "AVOIDED", "Reputation", "shares"]

# Seconds during which a server that failed is tried after the others. One that is frozen, or cut off from its cluster,
# takes connections still: without this each new one would wait there for its share of the time.
AVOIDED: Final = 30.0

# Seconds by which the clocks of several servers are taken to differ, unless somebody knows better.
ALLOWANCE: Final = 2.0

H = TypeVar("H")


class Reputation:
    """Which servers have failed lately."""

    def __init__(self) -> None:
        self._failed: dict[Hashable, float] = {}

    def failed(self, place: Hashable) -> None:
        """It did not answer, or won't do: for a while, the others come first."""
        self._failed[place] = monotonic()

    def answered(self, place: Hashable) -> None:
        """It does what it should."""
        self._failed.pop(place, None)

    def in_turn(self, hosts: Iterable[H], place: Callable[[H], Hashable]) -> list[H]:
        """Return the hosts in the order in which to try them."""
        now = monotonic()
        return sorted(hosts, key=lambda host: now - self._failed.get(place(host), -inf) < AVOIDED)


def shares(hosts: Sequence[H], *, longest: float = inf, together: float = inf) -> Iterator[tuple[H, float]]:
    """Yield each host with the seconds that it may take: of what is left to the caller, an equal share for each that is
    still to come.

    Args:
        hosts: in the order in which they are tried.
        longest: seconds for each, at most.
        together: seconds for all of them, at most.
    """
    end = current_time() + together
    for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):
        yield host, min(longest, max(0.0, min(end, current_effective_deadline()) - current_time()) / left)
