"""Wakes for what is committed by somebody else: rung a few times, because MySQL has nothing that is sent at a commit.

It keeps a handful of moments per queue, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import anyio
from anyio import current_time, move_on_after

# Seconds after a dispatch in a caller's transaction: most are committed soon. What is committed later, polling finds.
DELAYS: Final = (0.05, 0.2, 0.5, 1.0, 3.0)


class Echo:
    """Rings again.

    Args:
        wake: wakes the listeners of these queues.
    """

    def __init__(self, wake: Callable[[Collection[str]], None]) -> None:
        self._wake = wake
        self._due: dict[str, list[float]] = {}
        self._bell = anyio.Event()

    def ring(self, queues: Collection[str]) -> None:
        """Ring for these queues, now and then from now on."""
        now = current_time()
        for queue in queues:
            # The first that is due already stays: whoever dispatches all the time would put it off for ever.
            self._due[queue] = [*self._due.get(queue, ())[:1], *(now + delay for delay in DELAYS)]
        if queues:
            self._bell.set()

    async def run(self) -> None:
        """Ring when it is time, until cancelled."""
        while True:
            if not self._due:
                await self._bell.wait()
            self._bell = anyio.Event()
            now = current_time()
            first = min((due[0] for due in self._due.values()), default=now)
            if first > now:
                with move_on_after(first - now):
                    await self._bell.wait()
                continue
            self._ring(now)

    def _ring(self, now: float) -> None:
        ripe = [queue for queue, due in self._due.items() if due[0] <= now]
        for queue in ripe:
            if later := [moment for moment in self._due[queue] if moment > now]:
                self._due[queue] = later
            else:
                del self._due[queue]
        self._wake(ripe)
