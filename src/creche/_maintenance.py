"""The maintainer: recovers, promotes, prunes. It needs no leader: everyone may do it, and rivals skip each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Final

from creche._job import Retention
from creche._patience import Patience, answered_within
from creche._wake import Alarm, Doorbell
from creche.abc import Storage
from creche.errors import StorageError

_LIMIT: Final = 1_000
_ROUND: Final = 30.0  # seconds
_BREATH: Final = 0.01  # seconds: what is due and was not promoted is in a rival's hands at this moment


_LOOK: Final = 10.0  # seconds between rounds that stand for a worker's polls


class Maintainer:
    """Looks after jobs that nobody holds.

    Args:
        storage: where they are.
        queues: which ones this worker serves.
        retention: how long finished jobs are kept.
        interval: seconds between rounds, unless something is due before; less than a lease, so that each lease is
            seen before it runs out.
        doorbell: rung when something became ready.
        alarm: told, and asked, when the next scheduled job is due or the next lease runs out.
        looked: called after each round.
    """

    def __init__(
        self,
        storage: Storage,
        queues: Collection[str],
        retention: Retention,
        *,
        interval: float,
        doorbell: Doorbell,
        alarm: Alarm,
        looked: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._queues = frozenset(queues)
        self._retention = retention
        self._interval = interval
        self._doorbell = doorbell
        self._alarm = alarm
        self._looked = looked

    async def run(self) -> None:
        """Maintain until cancelled. Each round may be cut off at any point; the next one, anywhere, goes on."""
        patience = Patience("maintenance")
        while True:
            self._alarm.reset()
            try:
                with answered_within(_ROUND, "a round of upkeep"):
                    upkeep = await self._storage.maintain(_LIMIT, retention=self._retention)
            except StorageError as error:
                self._doorbell.left_alone()
                await patience.after(error)
                continue
            patience.success()
            self._looked()
            if upkeep.promoted:
                self._doorbell.ring()
            if upkeep.ready is not None:
                self._doorbell.look_after(ready=not self._queues.isdisjoint(upkeep.ready))
            for news in (upkeep.next_due_in, upkeep.next_expiry_in):
                if news is not None:
                    self._alarm.due_in(max(_BREATH, news))
            if max(upkeep.recovered, upkeep.buried, upkeep.promoted, upkeep.pruned) < _LIMIT:
                interval = self._interval if upkeep.ready is None else min(self._interval, _LOOK)
                await self._alarm.wait(interval * random.uniform(0.8, 1.2))  # noqa: S311 - spreads rounds
