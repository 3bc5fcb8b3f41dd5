"""A listener on PostgreSQL: one connection that hears, and proves now and then that it still does.

It never stands in a transaction.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from anyio import current_time, move_on_after
from anyio.lowlevel import checkpoint
from psycopg import sql

from creche.errors import ListenerDeaf
from creche.storage._calls import CallDriver
from creche.storage._listener import ServerListener
from creche.storage._postgresql_calls import Link
from creche.storage._psycopg import notifications

# Seconds of silence after which it asks itself whether it still hears: TCP may not notice for hours.
SILENCE: Final = 30.0

# Seconds in which its own word must come back.
ECHO: Final = 3.0

# No queue's name begins with a control character.
PROBE: Final = "\x1f"

NAME_LIMIT: Final = 63  # bytes of an identifier; a longer one would be cut, and two channels become one


def channel_name(schema: str) -> str:
    """Return the one channel of the queues whose tables stand in this schema."""
    name = f"creche_{schema}"
    return name if len(name.encode()) <= NAME_LIMIT else f"creche_{hashlib.sha256(schema.encode()).hexdigest()[:40]}"


class PostgreSQLListener(ServerListener[Link]):
    """Listens to the channel of its schema.

    Args:
        queues: whose wakes it hears.
        driver: makes its connection.
        channel: what it listens to.
        say: sends a word to every listener of the channel. On another connection, on purpose: a transaction pooler
            would hand a word to oneself straight back, and then never anything else.
    """

    def __init__(
        self,
        queues: Collection[str],
        driver: CallDriver[Link],
        *,
        channel: str,
        say: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        super().__init__(queues, driver)
        self._channel = channel
        self._say = say

    async def try_out(self) -> None:
        """Begin to listen, and end it; ListenerDeaf if nothing is heard."""
        with self._driver.translated():
            connection = await self._driver.connect()
            try:
                await self._begin(connection)
            finally:
                await self._end(connection)

    async def _begin(self, connection: Link) -> None:
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        await self._prove(connection)

    async def _end(self, connection: Link) -> None:
        await connection.close()

    async def _hear(self, connection: Link) -> None:
        while True:
            with move_on_after(_silence()) as scope:
                while True:
                    self.ring([word for _, word in await notifications(connection)])
                    # Whoever waits for work first: one turn for who listens, and one for who reserves.
                    await checkpoint()
                    await checkpoint()
                    scope.deadline = current_time() + _silence()
            await self._prove(connection)

    async def _prove(self, connection: Link) -> None:
        word = PROBE + secrets.token_hex(8)
        await self._say([word])
        with move_on_after(ECHO):
            while True:
                words = [word for _, word in await notifications(connection)]
                self.ring(words)
                if word in words:
                    return
        raise ListenerDeaf(
            f"LISTEN succeeded, but a notification was not heard within {ECHO:g} s: between here and PostgreSQL "
            "stands a pooler that hands out connections per transaction"
        )


def _silence() -> float:
    # Spread: whoever asks first is heard by all the others, and proves it to them as well.
    return SILENCE * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret
