"""A listener of the memory storage: it is told in the same process, and knows no job."""

from __future__ import annotations

from collections.abc import Collection

import anyio


class MemoryListener:
    """Merges wakes until somebody waits for them."""

    def __init__(self, queues: Collection[str]) -> None:
        self._queues = frozenset(queues)
        self._woken: set[str] = set()
        self._bell = anyio.Event()

    def ring(self, queues: frozenset[str]) -> None:
        """Note that these queues may have work; of those that are not listened to, nothing is heard."""
        if heard := queues & self._queues:
            self._woken |= heard
            self._bell.set()

    async def wait(self) -> frozenset[str]:
        """See `Listener.wait`."""
        await self._bell.wait()
        woken, self._woken = frozenset(self._woken), set()
        self._bell = anyio.Event()
        return woken
