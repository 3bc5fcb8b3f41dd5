"""The doorbell: says that there may be work. It listens if the storage can, and polls always.

A wake is a hint; the reserve is the truth. Late, lost or false wakes are all harmless.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Collection
from typing import Final

import anyio

from creche._patience import Patience
from creche.abc import Storage
from creche.errors import StorageError, StorageUnavailable

_log = logging.getLogger("creche")

_POLL: Final = 5.0  # seconds
_EAGER: Final = 0.05  # seconds between polls right after there was work, where nothing else would tell
_STEADY: Final = 5.0  # seconds that a listener must have lived for its end to be a new trouble
_HEARING_AGAIN: Final = 60.0  # seconds until a storage that heard nothing is asked to listen once more


class Bell:
    """Rung by whoever has news, and by wakes; `listening` says whether any are heard."""

    def __init__(self) -> None:
        self._rung = anyio.Event()
        self.listening = False

    def ring(self) -> None:
        """There may be something to look at now."""
        self._rung.set()

    def answer(self) -> None:
        """Call before looking: whoever rings from now on is heard by the next wait."""
        self._rung = anyio.Event()

    async def rung_within(self, seconds: float) -> None:
        """Wait for a ring, but no longer than `seconds`."""
        with anyio.move_on_after(seconds):
            await self._rung.wait()


class Doorbell(Bell):
    """Rung by whoever knows of work; waited for by the reserver.

    Args:
        poll_interval: seconds after which one goes and looks, though nobody rang; None: _POLL, or where wakes are heard
            and upkeep looks as well, never.
    """

    def __init__(self, poll_interval: float | None) -> None:
        super().__init__()
        self._poll_interval = _POLL if poll_interval is None else poll_interval
        self._relies = poll_interval is None
        self._looked_after = False
        self._quiet = _EAGER

    def look_after(self, *, ready: bool) -> None:
        """Upkeep has looked whether something is ready, and will again."""
        self._looked_after = True
        if ready:
            self.ring()

    def left_alone(self) -> None:
        """Upkeep could not look: who relied on that looks for himself."""
        if self._looked_after:
            self._looked_after = False
            self.ring()  # for whoever waits without an end

    def found_work(self) -> None:
        """More work tends to follow work: where nobody rings, look again soon."""
        self._quiet = _EAGER

    async def wait(self, at_most: float = math.inf) -> None:
        """Wait for a ring, or until it is time to look anyway."""
        if self.listening:
            patience = math.inf if self._relies and self._looked_after else self._poll_interval
        else:
            patience = min(self._poll_interval, self._quiet)
            self._quiet = min(self._poll_interval, self._quiet * 1.5)
        await self.rung_within(min(at_most, patience) * random.uniform(0.9, 1.1))  # noqa: S311 - spreads polls


class Alarm:
    """Remembers when a job is due, or a lease runs out, so that somebody sees to it at that moment."""

    def __init__(self) -> None:
        self._at = math.inf
        self._moved = anyio.Event()

    def due_in(self, seconds: float | None) -> None:
        """Something is due in this many seconds (None: no news)."""
        if seconds is not None and anyio.current_time() + seconds < self._at:
            self._at = anyio.current_time() + seconds
            self._moved.set()

    def reset(self) -> None:
        """Forget: whoever looks now will learn the next time anew."""
        self._at = math.inf

    async def wait(self, at_most: float) -> None:
        """Wait until something is due, but no longer than `at_most` seconds."""
        until = anyio.current_time() + at_most
        while (left := min(until, self._at) - anyio.current_time()) > 0:
            self._moved = anyio.Event()
            with anyio.move_on_after(left):
                await self._moved.wait()


class Listening:
    """Turns the storage's wakes into rings, and replaces a listener that broke.

    Args:
        storage: where the wakes come from.
        queues: whose.
        doorbell: rung by them.
        name: of the worker, which is woken by that as well; None: nobody calls us by name.
        called: called when the worker is woken by its name.
    """

    def __init__(
        self,
        storage: Storage,
        queues: Collection[str],
        doorbell: Bell,
        *,
        name: str | None = None,
        called: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage = storage
        self._names = [*queues] if name is None else [*queues, name]
        self._doorbell = doorbell
        self._name = name
        self._called = called

    async def run(self) -> None:
        """Listen until cancelled. What hears of this process alone rings sooner, and is polled beside."""
        try:
            await self._listen()
        finally:
            self._doorbell.listening = False

    async def _listen(self) -> None:
        hears = self._storage.capabilities.listen
        patience = Patience("listener")
        while True:
            since = anyio.current_time()
            try:
                async with self._storage.listen(self._names) as listener:
                    self._doorbell.listening = hears
                    self._doorbell.ring()  # wakes may have been missed meanwhile
                    self._called()  # so may a call, if only since the first reserve
                    while True:
                        self._ring(await listener.wait())
                        patience.success()
            except StorageUnavailable as error:
                self._doorbell.listening = False
                if anyio.current_time() - since > _STEADY:  # not one that breaks as soon as it is made
                    patience.success()
                await patience.after(error)
            except StorageError as error:  # it hears nothing, or the database won't have it: polling will do
                self._doorbell.listening = False
                _log.warning("listener: %s; polling instead", error)
                await anyio.sleep(_HEARING_AGAIN)

    def _ring(self, woken: frozenset[str]) -> None:
        by_name = self._name in woken
        if by_name:
            self._called()
        if not by_name or len(woken) > 1:
            self._doorbell.ring()
