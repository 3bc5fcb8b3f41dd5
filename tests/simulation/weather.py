"""What the network between one process and the database does at this moment, from the faults that are active."""

from __future__ import annotations

import random
from enum import StrEnum

import trio

from creche.errors import StorageUnavailable
from simulation.plan import Fault, Kind


class Lost(Exception):
    """A message fell into a hole: whoever waits for it will hear nothing."""


class Way(StrEnum):
    """A direction."""

    UP = "request"
    DOWN = "answer"


class Weather:
    """Faults come and go; `calm` says that none is active that concerns calls."""

    def __init__(self) -> None:
        self._active: list[Fault] = []
        self._changed = trio.Event()
        self._refresh()

    def begin(self, fault: Fault) -> None:
        """A fault begins to be felt here."""
        self._active.append(fault)
        self._refresh()

    def end(self, fault: Fault) -> None:
        """It is over."""
        self._active.remove(fault)
        self._refresh()

    def _refresh(self) -> None:
        of = {fault.kind: fault for fault in self._active}
        self.calm = not of.keys() - {Kind.DEAF}
        self.hears = not of.keys() & {Kind.DEAF, Kind.CUT, Kind.NO_ANSWERS, Kind.DOWN, Kind.STALL}
        self._holes = {
            Way.UP: bool(of.keys() & {Kind.CUT, Kind.NO_REQUESTS}),
            Way.DOWN: bool(of.keys() & {Kind.CUT, Kind.NO_ANSWERS}),
        }
        self._refused = Kind.DOWN in of
        self._stalled = Kind.STALL in of
        self._latency = of[Kind.SLOW].strength if Kind.SLOW in of else 0.01
        self._loss = of[Kind.LOSSY].strength if Kind.LOSSY in of else 0.0
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def travel(self, way: Way) -> None:
        """Carry a message one way.

        Raises:
            Lost: it never arrives.
            StorageUnavailable: the connection was reset, or there is none.
        """
        if way is Way.UP and self._refused:
            raise StorageUnavailable("planted: the database is down")
        await trio.sleep(random.expovariate(1 / self._latency))
        if self._holes[way]:
            raise Lost
        if random.random() < self._loss:
            raise StorageUnavailable(f"planted: the connection was reset, and the {way} lost")
        while way is Way.UP and self._stalled:
            await self._changed.wait()
