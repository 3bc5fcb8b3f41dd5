"""A bounded pool of database connections on anyio: who may use which connection, and when a new one is dialled.

It speaks to no database and starts no task: a driver object knows the connections, and whoever asks does the work.
"""

from __future__ import annotations

import math
import os
import random
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final, Generic, Protocol, TypeVar

import anyio
from anyio import CancelScope, current_effective_deadline, current_time
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import define, field, frozen

from creche.errors import StorageUnavailable

__all__ = ["Driver", "Pool", "PoolStats", "TransientConflict"]

# Seconds. From 0.25 s doubling to 5 s, each less up to a fifth: fewer than twenty connects in a minute's outage.
FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 5.0
# Seconds. A connect, or a call, that its caller gave up after this long says as much about the server as a refusal.
STRUGGLING: Final = 1.0
# Seconds for a driver to say good-bye.
CLOSING: Final = 2.0

C = TypeVar("C")


class TransientConflict(StorageUnavailable):
    """The database undid a transaction in favour of another: run the whole transaction again."""


class Driver(Protocol[C]):
    """What the pool needs to know about one kind of connection."""

    async def connect(self) -> C:
        """Open a connection, or leave nothing behind. StorageUnavailable means that another try makes sense."""
        ...

    def usable(self, connection: C) -> bool:
        """Whether an idle connection may be handed out; without a round trip; never raises."""
        ...

    def clean(self, connection: C) -> bool:
        """Whether a used connection may be kept: open, and in no transaction; without a round trip; never raises."""
        ...

    async def close(self, connection: C) -> None:
        """Close a connection in any state."""
        ...


@define
class PoolStats:
    """Counters since the pool was made: connections opened, connects that failed, connections not kept."""

    connects: int = 0
    connect_errors: int = 0
    discarded: int = 0


@frozen(eq=False)
class _Held(Generic[C]):
    """A connection with its owner process and its dates, on the event loop's clock."""

    connection: C = field(repr=False)
    pid: int
    expires: float


class Pool(Generic[C]):
    """At most `size` connections, lent to one task each.

    Args:
        driver: opens, judges and closes connections.
        size: how many may exist at once.
        timeout: seconds that a checkout may take as a whole, waiting and connecting.
        max_lifetime: seconds after which a connection is replaced, less up to a tenth so that not all go at once.
        max_idle: seconds unused after which a connection is closed; noticed when another one is used.

    A pool belongs to the process that made it. In a forked child it starts empty and never touches what it inherited:
    a farewell on the parent's socket would end the parent's session.
    """

    def __init__(
        self,
        driver: Driver[C],
        *,
        size: int = 5,
        timeout: float = 30.0,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
    ) -> None:
        self._driver = driver
        self._size = size
        self._timeout = timeout
        self._max_lifetime = max_lifetime
        self._max_idle = max_idle
        self._closed = False
        self._inherited: list[_Held[C]] = []
        self.stats: Final = PoolStats()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._slots = anyio.Semaphore(self._size, max_value=self._size)
        self._dialling = anyio.Lock()
        # The most recently used is taken first, so that what a lull leaves over grows old and is closed.
        self._idle: deque[tuple[_Held[C], float]] = deque()
        self._trusted_since = -math.inf
        self._delay = 0.0
        self._not_before = 0.0
        self._takes = 0.0
        self._last_error: StorageUnavailable | None = None

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None, *, queueing: float = math.inf) -> AsyncGenerator[C]:
        """Lend a connection for the length of the block; a warm one is lent at once.

        The connection is in no transaction. It is kept if the block leaves it so, and ends normally or with an
        Exception; it is closed after anything else, a cancellation above all.

        Args:
            timeout: seconds for the whole checkout, instead of the pool's own. It alone bounds how long an absent
                server is waited for, from the first connection on: there is no quicker way to fail.
            queueing: seconds of these, at most, in which others have to give a connection back; where there is nobody
                to connect to, they are waited for as long as the server is.

        Raises:
            StorageUnavailable: no connection in time; chained from what the last connect said. Or the pool is closed.

        A cancellation while waiting leaves nothing behind.
        """
        if os.getpid() != self._pid:
            # Kept referenced: a collected connection might say good-bye on the parent's socket.
            self._inherited += (held for held, _ in self._idle)
            self._start()
        slots = self._slots
        held = await self._checkout(self._timeout if timeout is None else timeout, queueing)
        keep = False
        try:
            yield held.connection
            keep = True
        except Exception:
            keep = True
            raise
        finally:
            if held.pid == os.getpid():
                try:
                    await self._put_back(held, keep=keep)
                finally:
                    slots.release()
            else:
                self._inherited.append(held)

    async def _checkout(self, timeout: float, queueing: float) -> _Held[C]:
        if self._idle and self._slots.value:
            # Nearly always one is there: no deadline has to be set for what waits for nothing.
            self._slots.acquire_nowait()
            try:
                await checkpoint_if_cancelled()
                if held := await self._warm():
                    return held
            except BaseException:
                self._slots.release()
                raise
            self._slots.release()
        began = current_time()
        if self._last_error is not None:  # the server is absent: so is the reason to hurry
            queueing = timeout
        queue = CancelScope(deadline=began + queueing)
        with CancelScope(deadline=began + timeout):
            patience = current_effective_deadline() - began
            with queue:
                await self._slots.acquire()
            if not queue.cancelled_caught:
                try:
                    if held := await self._find(patience / 2):
                        return held
                except BaseException:
                    self._slots.release()
                    raise
                self._slots.release()
                await anyio.sleep_forever()  # until there is no time left at all: there is no quicker way to fail
        waited = min(timeout, queueing) if queue.cancelled_caught else timeout
        reason = self._last_error or f"all {self._size} connections are in use"
        raise StorageUnavailable(f"no connection in {waited:.3g} s: {reason}") from self._last_error

    async def _find(self, longest: float) -> _Held[C] | None:
        """A connection; None if no time is left to open one, which is thought to take `longest` seconds at most.

        Whoever has waited longest comes first, and has the least time left. If they began to connect and gave up
        half-way, so would the next, and the next: nobody would ever be served, and the server would see nothing but
        connects that are broken off. So a caller with too little time lets the next one try, who has more.
        """
        if held := await self._warm():
            return held
        async with self._dialling:  # one at a time: a server that comes back is not met by a crowd
            while True:
                # Others may have put one back meanwhile.
                if held := await self._warm():
                    return held
                if (pause := self._not_before - current_time()) > 0:
                    await anyio.sleep(pause)
                elif current_time() + min(self._takes, longest) > current_effective_deadline():
                    return None
                elif held := await self._dial():
                    return held

    async def _warm(self) -> _Held[C] | None:
        """The idle connection used last, if any is good; awaits only to close others."""
        if self._closed:
            raise StorageUnavailable("the pool is closed")
        while self._idle:
            held, since = self._idle.pop()
            now = current_time()
            fresh = now < held.expires and now - since < self._max_idle and since > self._trusted_since
            if fresh and self._driver.usable(held.connection):
                return held
            await self._discard(held)
        return None

    def distrust(self) -> None:
        """Lend none of those again that are idle now: one like them has shown that their server fails."""
        self._trusted_since = current_time()

    async def _dial(self) -> _Held[C] | None:
        started = current_time()
        try:
            connection = await self._driver.connect()
        except StorageUnavailable as error:
            self._failed(error)
            return None
        except BaseException:
            took = current_time() - started
            self._takes = max(self._takes, 2 * took)  # at least that long
            if took > STRUGGLING:
                self._failed(StorageUnavailable("the database did not answer the connect in time"))
            raise
        self._takes = current_time() - started
        self._delay = 0.0
        self._last_error = None
        self.stats.connects += 1
        lifetime = self._max_lifetime * random.uniform(0.9, 1.0)  # noqa: S311 - not a secret
        return _Held(connection, self._pid, current_time() + lifetime)

    def _failed(self, error: StorageUnavailable) -> None:
        self.stats.connect_errors += 1
        self._last_error = error
        self._delay = min(LONGEST_DELAY, self._delay * 2 or FIRST_DELAY)
        self._not_before = current_time() + self._delay * random.uniform(0.8, 1.0)  # noqa: S311 - not a secret

    async def _put_back(self, held: _Held[C], *, keep: bool) -> None:
        if not (keep and not self._closed and self._driver.clean(held.connection)):
            await self._discard(held)
            return
        now = current_time()
        self._idle.append((held, now))
        while self._idle and now - self._idle[0][1] > self._max_idle:
            await self._discard(self._idle.popleft()[0])

    async def _discard(self, held: _Held[C]) -> None:
        self.stats.discarded += 1
        with CancelScope(shield=True, deadline=current_time() + CLOSING), suppress(Exception):
            await self._driver.close(held.connection)

    async def aclose(self) -> None:
        """Close the idle connections now and the lent ones when they come back; further checkouts are refused."""
        self._closed = True
        while self._idle and self._pid == os.getpid():
            await self._discard(self._idle.pop()[0])
