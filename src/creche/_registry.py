"""The registry's clerk: says, again and again, that this worker is there, until it is not. It knows of no job."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
from anyio import CancelScope
from attrs import evolve

from creche._job import Presence, WorkerState
from creche._patience import Patience, answered_within
from creche.abc import Storage
from creche.errors import StorageError

_BEAT: Final = 20.0  # seconds
_TTL: Final = 50.0  # seconds after the last beat that a killed worker is still believed to be there: two missed
_FAREWELL: Final = 2.0


class Registry:
    """Announces a worker, and withdraws it at the end.

    Args:
        storage: where the registry is.
        presence: what there is to say.
        state: what the worker does at this moment.
    """

    def __init__(self, storage: Storage, presence: Presence, *, state: Callable[[], WorkerState]) -> None:
        self._storage = storage
        self._presence = presence
        self._state = state
        self._changed = anyio.Event()
        self._scope = CancelScope(shield=True)
        self.failing = False

    def change(self) -> None:
        """The worker does something else now: say so."""
        self._changed.set()

    def stop(self) -> None:
        """The worker ends."""
        self._scope.cancel()

    async def run(self) -> None:
        """Announce until stopped. Shielded: a worker that stops is there until it has given back what it held."""
        with self._scope:
            await self._announce_regularly()
        with anyio.move_on_after(_FAREWELL, shield=True):
            with suppress(StorageError):  # it is forgotten by itself a little later
                await self._storage.withdraw(self._presence.name)

    async def _announce_regularly(self) -> None:
        patience = Patience("registry")
        while True:
            self._changed = anyio.Event()
            try:
                with answered_within(_BEAT / 2, "an announcement"):
                    await self._storage.announce(self._present(), _TTL)
            except StorageError as error:
                self.failing = True
                await patience.after(error)
                continue
            self.failing = False
            patience.success()
            with anyio.move_on_after(_BEAT * random.uniform(0.8, 1.0)):  # noqa: S311 - spreads beats
                await self._changed.wait()

    def _present(self) -> Presence:
        if self._presence.state is not self._state():
            self._presence = evolve(self._presence, state=self._state())
        return self._presence
