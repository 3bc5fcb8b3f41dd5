"""A wake is a hint: what it costs to lose one, and what a listener's end and its return change. In virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import datetime

import anyio
import pytest
from attrs import evolve

from creche import Queue, Retention, Status, Worker
from creche._job import Upkeep
from creche.abc import Listener
from creche.errors import StorageUnavailable
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return virtual_time()


class Deafened(Faulty):
    """Nobody is told of anything while it is silent; while it is deaf, listeners break, and there are no others."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = False
        self.deaf = False

    def deafen(self) -> None:
        self.deaf = True
        for listener in self._listeners:
            listener._bell.set()

    def _wake(self, queues: Iterable[str]) -> None:
        if not self.silent:
            super()._wake(queues)

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        async with super().listen(queues) as listener:
            self._check()
            yield Fragile(self, listener)

    def _check(self) -> None:
        if self.deaf:
            raise StorageUnavailable("planted: nothing is heard")


class Fragile:
    def __init__(self, storage: Deafened, listener: Listener) -> None:
        self._storage = storage
        self._listener = listener

    async def wait(self) -> frozenset[str]:
        woken = await self._listener.wait()
        self._storage._check()
        return woken


@pytest.fixture
def storage() -> Deafened:
    return Deafened()


@pytest.fixture
def starts(queue: Queue) -> list[float]:
    """When the jobs of type "work" started."""
    starts: list[float] = []

    @queue.task("work")
    async def work() -> None:
        starts.append(anyio.current_time())

    return starts


async def test_a_wake_that_is_lost_costs_no_more_than_a_poll(
    queue: Queue, storage: Deafened, starts: list[float]
) -> None:
    async with Worker(queue, poll_interval=20):
        await anyio.sleep(100)
        storage.silent = True
        began = anyio.current_time()
        await queue.dispatch("work")
        await anyio.sleep(22)
    assert len(starts) == 1
    assert starts[0] - began <= 22


async def test_a_listener_that_is_back_makes_the_worker_look_at_once(
    queue: Queue, storage: Deafened, starts: list[float]
) -> None:
    async with Worker(queue, poll_interval=3_600):
        await anyio.sleep(1)
        storage.deafen()
        await anyio.sleep(1)
        await queue.dispatch("work")  # nobody hears of it
        began = anyio.current_time()
        storage.deaf = False
        await anyio.sleep(5)  # in which a listener is tried again
    assert len(starts) == 1
    assert starts[0] - began < 5


async def test_whoever_has_lost_its_listener_looks_again_soon_after_work(
    queue: Queue, storage: Deafened, starts: list[float]
) -> None:
    async with Worker(queue, poll_interval=60):
        await anyio.sleep(1)
        storage.deafen()
        await queue.dispatch("work")
        await until(lambda: len(starts) == 1, limit=66.1)  # by the look that was under way
        await queue.dispatch("work")
        await until(lambda: len(starts) == 2, limit=1)


class LookedAfter(Deafened):
    """Its upkeep looks at what is ready, as that of PostgreSQL does."""

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        upkeep = await super().maintain(limit, retention=retention, now=now)
        pending = [row.record.queue_name for row in self._rows.values() if row.record.status is Status.PENDING]
        return evolve(upkeep, ready=frozenset(pending))


async def test_who_relies_on_upkeep_looks_for_itself_while_that_fails() -> None:
    async with Queue(storage := LookedAfter()) as queue:
        started = anyio.Event()

        @queue.task("work")
        async def work() -> None:
            started.set()

        async with Worker(queue):
            await anyio.sleep(100)
            reserves = storage.calls["reserve"]
            await anyio.sleep(100)
            assert storage.calls["reserve"] == reserves  # nobody rang
            storage.down.add("maintain")
            await anyio.sleep(20)  # in which a round has failed
            storage.silent = True
            await queue.dispatch("work")
            with anyio.fail_after(6):
                await started.wait()
