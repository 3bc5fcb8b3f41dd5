"""The notifier: tells the listeners of other processes that there is work, after the commit and on its own connection.

It merges what it has to say per queue, keeps no wake for later if it can't be sent, and is never waited for by a call.
What a call may now and then say itself, with what it writes, is not sent again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final

import anyio
from anyio import current_time, move_on_after

from creche.errors import StorageError

# Seconds that closing waits for the last wakes to be sent.
FLUSH: Final = 2.0

# A call that wakes as it commits may make all others of the server wait that do so too. So it is done in a tenth of the
# time, at most, and the lock is held for a part of that: the longer one takes, for whatever reason, the fewer they are.
SELDOM: Final = 10


class Notifier:
    """Sends wakes, merged.

    Args:
        send: sends one wake to the listeners of these queues.
        pause: seconds between two wakes, at least: a producer of ten thousand jobs a second is heard no sooner for
            them, and each one wakes every listener.
    """

    def __init__(self, send: Callable[[Sequence[str]], Awaitable[None]], *, pause: float) -> None:
        self._send = send
        self._pause = pause
        self._queues: set[str] = set()
        self._sent = -math.inf
        self._aloud_from = -math.inf
        self._bell = anyio.Event()
        self._sending = anyio.Lock()

    def wake(self, queues: Iterable[str]) -> None:
        """Have the listeners of these queues woken soon."""
        self._queues.update(queues)
        if self._queues:
            self._bell.set()

    @contextmanager
    def aloud(self) -> Generator[bool]:
        """Yield whether the block, which writes something and commits it, should send a wake in the same transaction.

        Then it is heard sooner, by as much as it takes to send one after it.
        """
        began = current_time()
        yes = not self._queues and began >= max(self._aloud_from, self._sent + self._pause)
        if yes:
            self._aloud_from = math.inf  # one at a time
        try:
            yield yes
        finally:
            if yes:
                self._sent = current_time()
                self._aloud_from = self._sent + SELDOM * (self._sent - began)

    async def run(self) -> None:
        """Send what there is to send, until cancelled."""
        while True:
            await self._bell.wait()
            await anyio.sleep_until(self._sent + self._pause)
            await self._send_all()
            self._sent = current_time()

    async def flush(self) -> None:
        """Send the last wakes, also those just being sent: a producer that ends now has told of its work."""
        with move_on_after(FLUSH, shield=True):
            await self._send_all()

    async def _send_all(self) -> None:
        async with self._sending:
            queues, self._queues, self._bell = self._queues, set(), anyio.Event()
            if not queues:
                return
            try:
                await self._send(sorted(queues))
            except StorageError:
                pass  # a wake is a hint, and whoever was cut off as well looks for work when it is back
            except BaseException:
                self._queues |= queues  # cancelled by the closing storage, which flushes
                raise
