"""Hears of new work in one SQLite file: from this process by being told, from others by looking. It reads no job.

SQLite notifies nobody. What other processes commit shows in `PRAGMA data_version`, which a waiting listener asks for
again and again, more and more seldom while nothing happens; a listener that nobody waits on costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.lowlevel

_FASTEST: Final = 0.005
_SLOWEST: Final = 0.25


class Bell:
    """Rings the listeners of one storage.

    Args:
        look: finds out whether another process has committed, and if so calls `ring_all`.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._listeners: set[SQLiteListener] = set()

    def ring(self, queues: Collection[str]) -> None:
        """Tell whoever listens to one of these queues. After the commit, on the event loop."""
        for listener in self._listeners:
            listener.hear(queues)

    def ring_all(self) -> None:
        """Tell all that something changed; which queue it was is not known."""
        for listener in self._listeners:
            listener.hear_any()

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[SQLiteListener]:
        """Listen until the block is left."""
        await self._look()  # what was committed before is nobody's wake
        listener = SQLiteListener(queues, self._look)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class SQLiteListener:
    """Merges wakes until somebody waits for them."""

    def __init__(self, queues: Collection[str], look: Callable[[], Awaitable[None]]) -> None:
        self._queues = frozenset(queues)
        self._look = look
        self._woken: set[str] = set()
        self._any = False
        self._rung = anyio.Event()

    def hear(self, queues: Collection[str]) -> None:
        """Note that these queues may have work."""
        if heard := self._queues.intersection(queues):
            self._woken |= heard
            self._rung.set()

    def hear_any(self) -> None:
        """Note that any queue may have work."""
        self._any = True
        self._rung.set()

    async def wait(self) -> frozenset[str]:
        """See `Listener.wait`."""
        await anyio.lowlevel.checkpoint()
        pause = _FASTEST
        while not self._rung.is_set():
            with anyio.move_on_after(pause):
                await self._rung.wait()
                break
            await self._look()
            pause = min(2 * pause, _SLOWEST)
        woken = frozenset[str]() if self._any else frozenset(self._woken)
        self._woken.clear()
        self._any = False
        self._rung = anyio.Event()
        return woken
