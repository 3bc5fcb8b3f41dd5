"""Two clocks, neither of which is real: the event loop's, which jumps to whatever is waited for, and each process's
wall clock, which may be wrong.
"""

from __future__ import annotations

import math
from typing import Final

import trio

from simulation.lives import caller

START: Final = 1_800_000_000  # seconds since 1970: when a simulation begins, by a wall clock that is right


class JumpingClock(trio.abc.Clock):
    """Virtual time: where nobody can run, it is at once the moment that somebody waits for.

    trio's MockClock gives the same times; it takes the event loop around twice for each, to give input and output a
    chance, of which there is none here.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._stuck = False

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """The loop asks this when nobody can run."""
        if deadline < math.inf:
            self._now = max(self._now, deadline)
            return 0.0
        if self._stuck:
            raise AssertionError("everybody waits for somebody else, and nobody for a moment in time")
        self._stuck = True  # once is no trouble: at its end the loop sends itself a message
        return 1.0


class WallClock:
    """Stands in for the module `time` where creche reads the wall clock: each process has one of its own."""

    @staticmethod
    def time_ns() -> int:
        life = caller()
        offset = life.place.wall_clock if life else 0.0
        return int((START + trio.current_time() + offset) * 1e9)
