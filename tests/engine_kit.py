"""What the engine's tests share: a memory storage with planted faults, and virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
from trio.testing import MockClock

from creche._job import (
    End,
    Extension,
    Lease,
    Presence,
    Progress,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
)
from creche.abc import Transaction
from creche.errors import StorageUnavailable
from creche.storage.memory import MemoryStorage


def virtual_time() -> tuple[str, dict[str, Any]]:
    """Return the anyio backend in which time passes only while everybody sleeps."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Faulty(MemoryStorage):
    """A memory storage that can be cut off, or cut off for one operation, before or after its effect.

    `calls` counts the operations that reached it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down: set[str] = set()
        self.lose_answer: set[str] = set()
        self.hang: set[str] = set()
        self.slow: set[str] = set()
        self.calls: dict[str, int] = {}
        self.settled: list[Settlement] = []
        self.sizes: list[int] = []

    async def _before(self, operation: str) -> None:
        self.calls[operation] = self.calls.get(operation, 0) + 1
        if operation in self.hang:
            await anyio.sleep_forever()
        if operation in self.down:
            raise StorageUnavailable(f"planted: {operation} is cut off")

    async def _after(self, operation: str) -> None:
        if operation in self.slow:
            await anyio.sleep(1)
        if operation in self.lose_answer:
            self.lose_answer.discard(operation)
            raise StorageUnavailable(f"planted: the answer to {operation} was lost")

    async def reserve(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        lease: float,
        worker: str,
        nonce: int,
        types: Collection[str] | None = None,
        now: datetime | None = None,
    ) -> Reservation:
        await self._before("reserve")
        answer = await super().reserve(queues, limit, lease=lease, worker=worker, nonce=nonce, types=types, now=now)
        await self._after("reserve")
        return answer

    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        await self._before("watch")
        answer = await super().watch(job_ids, watcher=watcher, over=over)
        await self._after("watch")
        return answer

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        await self._before("begin")
        async with super().transaction() as transaction:
            yield transaction
            await self._before("commit")
        await self._after("commit")

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        await self._before("extend")
        answer = await super().extend(leases, seconds, progress=progress, now=now)
        await self._after("extend")
        return answer

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        await self._before("settle")
        self.settled += settlements
        self.sizes.append(len(settlements))
        answer = await super().settle(settlements, retention=retention, now=now)
        await self._after("settle")
        return answer

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        await self._before("maintain")
        answer = await super().maintain(limit, retention=retention, now=now)
        await self._after("maintain")
        return answer

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        await self._before("cancel")
        answer = await super().cancel(job_ids, now=now)
        await self._after("cancel")
        return answer

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        await self._before("announce")
        await super().announce(presence, ttl, now=now)
        await self._after("announce")

    async def withdraw(self, name: str) -> None:
        await self._before("withdraw")
        await super().withdraw(name)
        await self._after("withdraw")


async def until(condition: Callable[[], bool], *, step: float = 0.01, limit: float = 10) -> None:
    """Wait until something outside the event loop's own signals has come true."""
    with anyio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await anyio.sleep(step)
