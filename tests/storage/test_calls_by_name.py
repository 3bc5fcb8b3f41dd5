"""A worker is called by its name when one of its jobs is cancelled, and by nothing else: it renews all its leases."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import anyio
import pytest

from creche import Job, Queue, Status, Worker
from creche._job import Extension, Lease
from creche.abc import Listener
from creche.storage import open_storage
from engine_kit import until

pytestmark = pytest.mark.anyio

DISPATCHED: Final = 60
LEASE: Final = 600.0  # seconds: the first renewal by the clock comes long after a test is over


class Scene:
    """A worker whose jobs last until they are cancelled, on a storage that counts its renewals; and another process's
    queue.
    """

    def __init__(self, dsn: str) -> None:
        storage = open_storage(dsn)
        self.queue, self.elsewhere = Queue(storage), Queue(dsn)
        self.renewals = 0
        self.begun: set[UUID] = set()
        self.ended: dict[UUID, float] = {}
        self._extend = storage.extend
        storage.extend = self._counted  # type: ignore[method-assign]
        self.listening = anyio.Event()
        self._listen = storage.listen
        storage.listen = self._heard  # type: ignore[method-assign]
        self.queue.task("last", queue="q")(self._last)

    async def _counted(self, leases: Collection[Lease], seconds: float, **options: Any) -> Extension:
        self.renewals += 1
        return await self._extend(leases, seconds, **options)

    @asynccontextmanager
    async def _heard(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        async with self._listen(queues) as listener:
            self.listening.set()
            yield listener

    async def _last(self, job: Job) -> None:
        self.begun.add(job.id)
        try:
            await anyio.sleep_forever()
        finally:
            self.ended[job.id] = time.monotonic()

    @asynccontextmanager
    async def busy(self, jobs: int) -> AsyncGenerator[None]:
        """Have as many jobs run as the worker takes, for the length of the block."""
        await self.queue.migrate()
        worker = Worker(self.queue, queues=["q"], concurrency=jobs, lease=LEASE, grace=0.0)
        async with self.queue, self.elsewhere, anyio.create_task_group() as group:
            group.start_soon(worker.run)
            await self.listening.wait()  # a worker asks once when it begins to listen, and holds nothing yet
            await self.dispatch(jobs)
            await until(lambda: len(self.begun) == jobs, limit=30)
            yield
            group.cancel_scope.cancel()

    async def dispatch(self, jobs: int) -> None:
        for _ in range(jobs):
            await self.elsewhere.dispatch("last", queue="q")


async def test_a_busy_worker_renews_by_the_clock_however_many_dispatches_wake_it(shared_dsn: str) -> None:
    scene = Scene(shared_dsn)
    async with scene.busy(3):
        for _ in range(DISPATCHED):
            await scene.dispatch(1)
            await anyio.sleep(0.01)
        await anyio.sleep(0.5)  # what a listener tells of later
        assert scene.renewals == 0


async def test_amid_dispatches_a_cancellation_elsewhere_is_told_at_once_and_renewed_for_once(shared_dsn: str) -> None:
    scene = Scene(shared_dsn)
    async with scene.busy(8), anyio.create_task_group() as group:
        group.start_soon(_dispatch_on, scene)
        delays: list[float] = []
        for job_id in [*scene.begun]:
            await anyio.sleep(0.05)
            asked = time.monotonic()
            assert await scene.elsewhere.cancel(job_id) is Status.PROCESSING
            await until(lambda: job_id in scene.ended, limit=5)  # noqa: B023 - asked before the next round
            delays.append(scene.ended[job_id] - asked)
        group.cancel_scope.cancel()
        assert sorted(delays)[len(delays) // 2] < 0.25
        assert scene.renewals == len(delays)


async def _dispatch_on(scene: Scene) -> None:
    while True:
        await scene.dispatch(1)
        await anyio.sleep(0.01)
