"""Hears of new work in one SQLite file, of jobs that are over, and of cancellations that are asked for: from this
process by being told, from others by looking. It reads no job.

SQLite notifies nobody. What other processes commit shows in `PRAGMA data_version`, which a waiting listener asks for
again and again, more and more seldom while nothing happens; a listener that nobody waits on costs nothing. So watches
need no table: they only spare this process the looking.

A commit of another process may have made work in any queue. Who is asked to end a job is read in the same look: that
holder is woken by its name, once for each request, and nobody else by theirs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias
from uuid import UUID

import anyio
import anyio.lowlevel

from creche._job import WATCH_LIMIT

_FASTEST: Final = 0.005
_SLOWEST: Final = 0.25


Requests: TypeAlias = frozenset[tuple[str, str, int]]
"""Cancellations that are asked for: the holder, the job's id, the token."""


class Bell:
    """Rings the listeners of one storage.

    Args:
        look: finds out whether another process has committed, and if so calls `ring_all`.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._listeners: set[SQLiteListener] = set()
        self._told: Requests = frozenset()

    def ring(self, queues: Collection[str]) -> None:
        """Tell whoever listens to one of these queues. After the commit, on the event loop."""
        for listener in self._listeners:
            listener.hear(queues)

    def ask(self, job_ids: Collection[UUID], requests: Requests) -> None:
        """Tell the holders of these jobs that somebody of this process wants them to end. After the commit.

        Args:
            job_ids: which; they may be told again.
            requests: all that stand now; what has ended since is remembered no longer.
        """
        ids = {str(job_id) for job_id in job_ids}
        asked = frozenset(request for request in requests if request[1] in ids)
        self._told = (self._told & requests) | asked
        self._call(asked)

    def ring_all(self, requests: Requests) -> None:
        """Tell all that something changed; which queue it was is not known.

        Args:
            requests: all that stand now. A holder goes on until its handler has cleaned up, and is told of each once.
        """
        new, self._told = requests - self._told, requests
        self._call(new)
        for listener in self._listeners:
            listener.hear_any()

    def _call(self, requests: Requests) -> None:
        for listener in self._listeners:
            listener.hear_calls({holder for holder, _, _ in requests})

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


class Watches:
    """Who wants to know, in this process, that a job is over."""

    def __init__(self) -> None:
        self._watchers: dict[UUID, dict[str, float]] = {}  # since when, by the name

    def add(self, job_ids: Iterable[UUID], watcher: str) -> None:
        """Begin to watch, or go on."""
        now = time.monotonic()
        for job_id in job_ids:
            self._watchers.setdefault(job_id, {})[watcher] = now

    def drop(self, job_ids: Iterable[UUID], watcher: str) -> None:
        """Watch no longer."""
        for job_id in job_ids:
            watchers = self._watchers.get(job_id, {})
            watchers.pop(watcher, None)
            if not watchers:
                self._watchers.pop(job_id, None)

    def watched(self, job_id: UUID) -> bool:
        """Whether anybody watches this job."""
        return job_id in self._watchers

    def end(self, job_ids: Iterable[UUID]) -> set[str]:
        """Forget jobs that are over; return who watched them."""
        return {watcher for job_id in job_ids for watcher in self._watchers.pop(job_id, ())}

    def forget(self) -> None:
        """Let go of what nobody asked for again for an hour."""
        before = time.monotonic() - WATCH_LIMIT
        for job_id, watchers in [*self._watchers.items()]:
            for watcher in [watcher for watcher, since in watchers.items() if since < before]:
                self.drop([job_id], watcher)


class SQLiteListener:
    """Merges wakes until somebody waits for them."""

    def __init__(self, queues: Collection[str], look: Callable[[], Awaitable[None]]) -> None:
        self._queues = frozenset(queues)
        self._look = look
        self._woken: set[str] = set()
        self._called: set[str] = set()
        self._any = False
        self._rung = anyio.Event()

    def hear(self, queues: Collection[str]) -> None:
        """Note that these queues may have work."""
        if heard := self._queues.intersection(queues):
            self._woken |= heard
            self._rung.set()

    def hear_calls(self, names: Collection[str]) -> None:
        """Note that holders of these names are asked for something."""
        if heard := self._queues.intersection(names):
            self._called |= heard
            self._rung.set()

    def hear_any(self) -> None:
        """Note that any queue may have work."""
        self._any = True
        self._rung.set()

    async def wait(self) -> frozenset[str]:
        """See `Listener.wait`. "Any" can't be said together with names: it is said right after them."""
        await anyio.lowlevel.checkpoint()
        pause = _FASTEST
        while not self._rung.is_set():
            with anyio.move_on_after(pause):
                await self._rung.wait()
                break
            await self._look()
            pause = min(2 * pause, _SLOWEST)
        called, self._called = frozenset(self._called), set()
        if called and self._any:
            return called  # still rung
        woken = frozenset[str]() if self._any else called.union(self._woken)
        self._woken.clear()
        self._any = False
        self._rung = anyio.Event()
        return woken
