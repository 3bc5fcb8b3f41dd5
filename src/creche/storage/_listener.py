"""Listeners: they hear this process's wakes directly, and others' on a connection of their own.

They reserve nothing and keep no list of wakes beyond the queues' names. How a server is listened to, an adapter says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Generic, TypeVar

import anyio
from anyio import CancelScope
from anyio.abc import TaskStatus

from creche.errors import StorageError, StorageUnavailable
from creche.storage._calls import CallDriver

C = TypeVar("C")


class LocalListener:
    """Merges wakes until somebody waits for them. It hears what its own process does, and nothing else.

    Args:
        queues: whose wakes it hears.
    """

    def __init__(self, queues: Collection[str]) -> None:
        self._queues = frozenset(queues)
        self._woken: set[str] = set()
        self._any = False
        self._bell = anyio.Event()

    async def wait(self) -> frozenset[str]:
        """See `Listener.wait`. "Any" can't be said together with names: it is said right after them."""
        await self._bell.wait()
        return self._woken_now()

    def _woken_now(self) -> frozenset[str]:
        woken, self._woken = frozenset(self._woken), set()
        if not (woken and self._any):
            self._any, self._bell = False, anyio.Event()
        return woken

    def ring(self, queues: Collection[str]) -> None:
        """Note that these queues may have work."""
        if heard := self._queues.intersection(queues):
            self._woken |= heard
            self._bell.set()

    def ring_any(self) -> None:
        """Note that any queue may have work."""
        self._any = True
        self._bell.set()


class ServerListener(LocalListener, ABC, Generic[C]):
    """Hears what other processes do, too.

    Args:
        queues: whose wakes it hears.
        driver: makes its connection, which stands in no pool.
    """

    def __init__(self, queues: Collection[str], driver: CallDriver[C]) -> None:
        super().__init__(queues)
        self._driver = driver
        self._broken: StorageError | None = None
        self._scope = CancelScope()
        self._ended = anyio.Event()

    async def wait(self) -> frozenset[str]:
        """See `Listener.wait`."""
        await self._bell.wait()
        if self._broken is not None:
            raise StorageUnavailable(f"the listener's connection broke: {self._broken}") from self._broken
        return self._woken_now()

    async def run(self, *, task_status: TaskStatus[StorageError | None]) -> None:
        """Hear until stopped; report as started, with the error if there is one, when it is known to hear."""
        started = False
        with self._scope:
            try:
                with self._driver.translated():
                    connection = await self._driver.connect()
                    try:
                        await self._begin(connection)
                        started = True
                        task_status.started(None)
                        await self._hear(connection)
                    finally:
                        await self._end(connection)
            except StorageError as error:
                self._broken = error
                self._bell.set()
                if not started:
                    task_status.started(error)
            finally:
                self._ended.set()

    async def stop(self) -> None:
        """End `run`, and wait until its connection is closed."""
        self._scope.cancel()
        with CancelScope(shield=True):
            await self._ended.wait()

    @abstractmethod
    async def _begin(self, connection: C) -> None:
        """Begin to listen, and prove that something is heard; ListenerDeaf if not."""

    @abstractmethod
    async def _hear(self, connection: C) -> None:
        """Ring for what is heard, until cancelled."""

    @abstractmethod
    async def _end(self, connection: C) -> None:
        """Close the connection, whatever became of it."""
