"""A listener on PostgreSQL: one connection that hears, and proves now and then that it still does.

It reserves nothing, keeps no list of wakes beyond the queues' names, and never stands in a transaction.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Collection
from typing import Final

import anyio
from anyio import CancelScope, move_on_after
from anyio.abc import TaskStatus
from psycopg import sql

from creche.errors import ListenerDeaf, StorageError, StorageUnavailable
from creche.storage._postgresql_calls import Link
from creche.storage._postgresql_notifier import Notifier
from creche.storage._psycopg import PsycopgDriver, notifications, translated

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


class PostgreSQLListener:
    """Hears wakes from this process directly, and from others on a connection of its own.

    Args:
        queues: whose wakes it hears.
        channel: what it listens to.
        notifier: sends the word that must come back. On another connection, on purpose: a transaction pooler would
            hand a word to oneself straight back, and then never anything else.
    """

    def __init__(self, queues: Collection[str], channel: str, notifier: Notifier) -> None:
        self._queues = frozenset(queues)
        self._channel = channel
        self._notifier = notifier
        self._woken: set[str] = set()
        self._bell = anyio.Event()
        self._broken: StorageError | None = None
        self._scope = CancelScope()
        self._ended = anyio.Event()

    async def wait(self) -> frozenset[str]:
        """See `Listener.wait`."""
        await self._bell.wait()
        if self._broken is not None:
            raise StorageUnavailable(f"the listener's connection broke: {self._broken}") from self._broken
        woken, self._woken = frozenset(self._woken), set()
        self._bell = anyio.Event()
        return woken

    def ring(self, queues: Collection[str]) -> None:
        """Note that these queues may have work."""
        if heard := self._queues.intersection(queues):
            self._woken |= heard
            self._bell.set()

    async def run(self, driver: PsycopgDriver, *, task_status: TaskStatus[StorageError | None]) -> None:
        """Hear until stopped; report as started, with the error if there is one, when it is known to hear."""
        started = False
        with self._scope:
            try:
                with translated():
                    connection = await driver.connect()
                    try:
                        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                        await self._prove(connection)
                        started = True
                        task_status.started(None)
                        await self._hear(connection)
                    finally:
                        await connection.close()
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

    async def _hear(self, connection: Link) -> None:
        while True:
            heard: list[tuple[str, str]] | None = None
            # Spread: whoever asks first is heard by all the others, and proves it to them as well.
            with move_on_after(SILENCE * random.uniform(0.8, 1.2)):  # noqa: S311 - not a secret
                heard = await notifications(connection)
            if heard is None:
                await self._prove(connection)
            else:
                self.ring([word for _, word in heard])

    async def _prove(self, connection: Link) -> None:
        word = PROBE + secrets.token_hex(8)
        await self._notifier.say(word)
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
