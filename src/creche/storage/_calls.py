"""How a piece of work reaches a server: on a pooled connection, under one deadline, again where that is called for.

It knows no table, no statement and no driver, and decides nothing about jobs.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Final, Generic, Protocol, TypeVar

import anyio
from anyio import current_time, get_cancelled_exc_class, move_on_after

from creche.errors import QueueNotOpen, StorageUnavailable
from creche.storage._pool import STRUGGLING, Driver, Pool, TransientConflict

C = TypeVar("C")
T = TypeVar("T")

# How often a transaction is run that the server undoes in favour of another, and how often a call is sent whose
# connection breaks. Every call of creche can be sent again, so a restarted server costs its callers no error.
CONFLICTS: Final = 12
BREAKS: Final = 6

# Seconds, doubling with each conflict up to the longest and spread, so that two rivals don't meet again.
FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.5


class CallDriver(Driver[C], Protocol[C]):
    """What a driver has to be able to do besides what the pool asks of it."""

    @property
    def server(self) -> str:
        """What the server is called in messages."""
        ...

    def translated(self) -> AbstractContextManager[None]:
        """Turn what the driver raises in this block into creche's errors, TransientConflict among them."""
        ...

    def drop(self, connection: C) -> None:
        """Cut a connection at once: its server has failed, and where there are others, they are tried first."""
        ...


class Calls(Generic[C]):
    """Runs pieces of work, each on a connection of its own.

    Args:
        driver: how to connect.
        pool_size: how many connections at most.
        timeout: seconds for a call as a whole: waiting for a connection, connecting, every repetition. The end of a
            transaction of several statements may take two seconds more.
    """

    def __init__(self, driver: CallDriver[C], *, pool_size: int, timeout: float) -> None:
        self.timeout: Final = timeout
        self.conflicts = 0
        self._driver = driver
        self._size = pool_size
        self._pool: Pool[C] | None = None

    def open(self) -> None:
        """Allow calls. Nothing is connected to yet."""
        self._pool = Pool(self._driver, size=self._size, timeout=self.timeout)

    async def aclose(self) -> None:
        """Close what is idle now and what is in use when it comes back; refuse further calls."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def run(self, work: Callable[[C], Awaitable[T]]) -> T:
        """Run `work` on a connection that is in no transaction, and return what it returned.

        It may be run several times, so it must be harmless to repeat, also after it took effect. `conflicts` counts
        how often the server undid a transaction in favour of another.

        Raises:
            StorageUnavailable: no connection, or no answer in time; the outcome is unknown.
            StatementRejected: the server refused for good.
        """
        pool = self._pool
        if pool is None:
            raise QueueNotOpen
        with move_on_after(self.timeout) as scope:
            return await self._persist(pool, work, scope.deadline)
        raise StorageUnavailable(f"{self._driver.server} gave no answer in {self.timeout:g} s: the outcome is unknown")

    async def _persist(self, pool: Pool[C], work: Callable[[C], Awaitable[T]], deadline: float) -> T:
        conflicts = breaks = 0
        left = self.timeout
        while True:
            # A little less than is left: the pool's own error says why there is no connection. Who has queued for one
            # for longer than half of it has too little left to use it: it would be cut in the middle of an answer, and
            # the connection with it, and where many queue that is how all of them end.
            async with pool.acquire(left * 0.9, queueing=left / 2) as connection:
                began = current_time()
                try:
                    with self._driver.translated():
                        return await work(connection)
                except TransientConflict:
                    conflicts += 1
                    self.conflicts += 1
                    if conflicts >= CONFLICTS:
                        raise
                    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**conflicts)
                    pause = longest * random.uniform(0.2, 1.0)  # noqa: S311 - spreads rivals
                except StorageUnavailable:
                    # A dead socket, or a live one to a server that became a standby, or lost its cluster: neither this
                    # one nor those that lie beside it are to be lent again.
                    self._driver.drop(connection)
                    pool.distrust()
                    breaks += 1
                    if breaks >= BREAKS:
                        raise
                    pause = FIRST_PAUSE * 2**breaks if breaks > 1 else 0.0  # the pool spaces its connects, too
                except get_cancelled_exc_class():
                    # Nobody had an answer for so long: a frozen server says nothing else.
                    if current_time() - began > STRUGGLING:
                        self._driver.drop(connection)
                        pool.distrust()
                    raise
            await anyio.sleep(pause)
            left = max(0.0, deadline - current_time())
