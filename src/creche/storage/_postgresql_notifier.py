"""The notifier: tells the listeners of other processes that there is work, after the commit and on its own connection.

It merges what it has to say per queue, keeps no wake for later if it can't be sent, and is never waited for by a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import anyio
from anyio import move_on_after

from creche.errors import StorageError
from creche.storage._calls import Calls
from creche.storage._postgresql_calls import Link, rows

# Seconds between two notifications of a process, at least: a producer of ten thousand jobs a second is heard no
# sooner for it, and each notification wakes every listener.
PAUSE: Final = 0.005

# Seconds that closing waits for the last wakes to be sent.
FLUSH: Final = 2.0


class Notifier:
    """Sends wakes, merged.

    Args:
        calls: how it reaches the database.
        statement: `notify.sql`.
        channel: what the listeners listen to.
    """

    def __init__(self, calls: Calls[Link], statement: bytes, channel: str) -> None:
        self._calls = calls
        self._statement = statement
        self._channel = channel
        self._queues: set[str] = set()
        self._bell = anyio.Event()
        self._sending = anyio.Lock()

    def wake(self, queues: Iterable[str]) -> None:
        """Have the listeners of these queues woken soon."""
        self._queues.update(queues)
        if self._queues:
            self._bell.set()

    async def run(self) -> None:
        """Send what there is to send, until cancelled."""
        while True:
            await self._bell.wait()
            await self._send()
            await anyio.sleep(PAUSE)

    async def flush(self) -> None:
        """Send the last wakes, also those just being sent: a producer that ends now has told of its work."""
        with move_on_after(FLUSH, shield=True):
            await self._send()

    async def say(self, word: str) -> None:
        """Send one word to every listener of this channel, and wait until it is sent."""
        await self._calls.run(
            partial(rows, statement=self._statement, parameters={"channel": self._channel, "queues": [word]})
        )

    async def _send(self) -> None:
        async with self._sending:
            queues, self._queues, self._bell = self._queues, set(), anyio.Event()
            if not queues:
                return
            parameters = {"channel": self._channel, "queues": sorted(queues)}
            try:
                await self._calls.run(partial(rows, statement=self._statement, parameters=parameters))
            except StorageError:
                pass  # a wake is a hint, and whoever was cut off as well looks for work when it is back
            except BaseException:
                self._queues |= queues  # cancelled by the closing storage, which flushes
                raise
