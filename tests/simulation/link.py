"""What a process has of the database: a storage at the other end of a network.

In calm weather a call is the database's own. Otherwise it travels: a task outside of the process carries the request,
has it take effect, and carries the answer back, whatever has become of the process and of the call meanwhile. So what
was cancelled, or given up, may still take effect, later than what was sent after it.

A commit is decided at once, or not at all: that its row stays locked while nobody knows is the storages' own business.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Self, cast

import trio
from attrs import define, field

from creche._job import Settlement
from creche.abc import Capabilities, Listener, Storage, Transaction
from creche.errors import StorageError, StorageUnavailable
from creche.storage._memory_listener import MemoryListener
from simulation.database import Database
from simulation.lives import Life
from simulation.weather import Lost, Way, Weather

DEADLINE: Final = 20.0  # seconds after which an adapter gives a call up
_OPERATIONS: Final = (
    *("insert", "reserve", "extend", "settle", "maintain", "cancel", "retry", "delete", "find", "watch", "list"),
    *("dead_letters", "stats", "pause", "resume", "set_retention", "announce", "withdraw", "workers"),
)

Send = Callable[..., None]  # starts a task outside of every process, on behalf of one


@define(eq=False)
class _Answer:
    arrived: trio.Event = field(factory=trio.Event)
    value: Any = None
    error: StorageError | None = None

    def give(self, value: Any, error: StorageError | None = None) -> None:
        self.value, self.error = value, error
        self.arrived.set()


class Link:
    """A storage, as `creche.abc` has it, for one life of one process."""

    def __init__(self, database: Database, life: Life, send: Send) -> None:
        self._database = database
        self._life = life
        self._weather: Weather = life.place.weather
        self._send = send
        self._listeners: set[_LinkListener] = set()
        for operation in _OPERATIONS:
            setattr(self, operation, partial(self._call, getattr(database, operation)))

    def __repr__(self) -> str:
        return f"<link of {self._life}>"

    @property
    def storage(self) -> Storage:
        """Itself: type checkers can't see what `__init__` has set."""
        return cast("Storage", self)

    @property
    def capabilities(self) -> Capabilities:
        return self._database.capabilities

    @property
    def conflicts(self) -> int:
        return 0

    def twin(self) -> None:
        """No thread can run in virtual time."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _call(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._life.alive:
            raise StorageUnavailable("this process is dead")
        if self._weather.calm:
            return await operation(*args, **kwargs)
        answer = _Answer()
        self._send(self._life, self._carry, answer, partial(operation, *args, **kwargs))
        with trio.move_on_after(DEADLINE):
            await answer.arrived.wait()
            if answer.error is not None:
                raise answer.error
            return answer.value
        raise StorageUnavailable(f"no answer in {DEADLINE:g} s")

    async def _carry(self, answer: _Answer, statement: Callable[[], Any]) -> None:
        try:
            await self._weather.travel(Way.UP)
            value = await statement()
            await self._weather.travel(Way.DOWN)
        except Lost:
            return
        except StorageError as error:
            answer.give(None, error)
        else:
            answer.give(value)

    # --- transactions -------------------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        await self._call(self._database.begin)
        transaction = _LinkTransaction(self._database, partial(self._call, self._database.begin))
        yield transaction
        await self._commit(transaction.ends)

    async def _commit(self, ends: Collection[Settlement]) -> None:
        if not self._life.alive or (not self._weather.calm and random.random() < 0.2):
            raise StorageUnavailable("planted: the connection broke before the commit")
        self._database.settle_now([*ends])
        if not self._weather.calm:
            answer = _Answer()
            self._send(self._life, self._carry, answer, self._database.begin)
            with trio.move_on_after(DEADLINE):
                await answer.arrived.wait()
            if not answer.arrived.is_set() or answer.error is not None:
                raise StorageUnavailable("planted: the commit was not answered")

    # --- wakes --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        await self._call(self._database.begin)
        listener = _LinkListener(queues, self._weather)
        self._listeners.add(listener)
        self._database.attach(listener)
        try:
            yield listener
        finally:
            self._database.detach(listener)
            self._listeners.discard(listener)

    def reset(self) -> None:
        """Break what listens."""
        for listener in self._listeners:
            listener.end()


class _LinkListener(MemoryListener):
    def __init__(self, queues: Collection[str], weather: Weather) -> None:
        super().__init__(queues)
        self._weather = weather
        self._broken = False

    def ring(self, queues: frozenset[str]) -> None:
        if self._weather.hears:
            super().ring(queues)

    def end(self) -> None:
        self._broken = True
        self._bell.set()

    async def wait(self) -> frozenset[str]:
        if not self._broken:
            woken = await super().wait()
        if self._broken:
            raise StorageUnavailable("planted: the listener's connection was reset")
        return woken


class _LinkTransaction:
    """The end of an attempt, held back until the block is left: nothing comes in between that look and the commit."""

    def __init__(self, database: Database, travel: Callable[[], Any]) -> None:
        self._database = database
        self._travel = travel
        self.ends: list[Settlement] = []

    @property
    def connection(self) -> None:
        return

    async def settle(self, settlement: Settlement, *, now: object = None) -> bool:
        await self._travel()
        self.ends.append(settlement)
        return self._database.holds(settlement.lease)
