"""Wakes, for as long as a storage on a server is open: who listens in this process, and the tasks that all of it takes.

It reaches no database: the notifier tells other processes, and listeners hear of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from creche.errors import StorageUnavailable
from creche.storage._listener import LocalListener, ServerListener
from creche.storage._notifier import Notifier

L = TypeVar("L", bound=ServerListener[Any])


class Wakes:
    """Opened and ended in one task.

    Args:
        tasks: where the notifier and the listeners run.
        notifier: tells other processes.
        server: what the server is called in messages.
        timeout: seconds that a listener has to begin.
    """

    def __init__(self, tasks: TaskGroup, notifier: Notifier, *, server: str, timeout: float) -> None:
        self.tasks: Final = tasks
        self.notifier: Final = notifier
        self.listeners: Final[set[LocalListener]] = set()
        self._server = server
        self._timeout = timeout

    @classmethod
    async def open(
        cls, send: Callable[[Sequence[str]], Awaitable[None]], *, pause: float, server: str, timeout: float
    ) -> Self:
        """Begin to notify; `send` and `pause` are the notifier's."""
        notifier = Notifier(send, pause=pause)
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        tasks.start_soon(notifier.run, name="creche notifier")
        return cls(tasks, notifier, server=server, timeout=timeout)

    async def end(self) -> None:
        """End every task."""
        self.tasks.cancel_scope.cancel()
        # Not told of the block's error: a task group would wrap it, and none of ours caused it.
        await self.tasks.__aexit__(None, None, None)

    def wake(self, queues: Collection[str], *, told: bool = False) -> None:
        """Wake this process's listeners now, and everybody's soon, unless they have been told already."""
        if queues:
            for listener in self.listeners:
                listener.ring(queues)
            if not told:
                self.notifier.wake(queues)

    @contextmanager
    def told(self, listener: LocalListener) -> Generator[None]:
        """Tell a listener of what this process does, for the length of the block."""
        self.listeners.add(listener)
        try:
            yield
        finally:
            self.listeners.discard(listener)

    @asynccontextmanager
    async def heard(self, listener: L) -> AsyncGenerator[L]:
        """Have a listener listen, for the length of the block.

        Raises:
            StorageUnavailable: it could not begin in time, or at all.
            ListenerDeaf: it began, and hears nothing.
        """
        problem: BaseException | None = StorageUnavailable(f"{self._server} gave no answer to a listener")
        try:
            with anyio.move_on_after(self._timeout):
                problem = await self.tasks.start(listener.run, name="creche listener")
            if problem is not None:
                raise problem
            with self.told(listener):
                yield listener
        finally:
            await listener.stop()
