"""Progress: what a handler says is written by the way, and seen by whoever looks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import anyio
import pytest

from creche import Job, LeaseLost, OptionInvalid, Progress, Queue, Retention, Worker, current_job, events
from creche._job import Extension, Lease
from creche.errors import StatementRejected
from engine_kit import Faulty, virtual_time

pytestmark = pytest.mark.anyio

VIRTUAL = pytest.mark.parametrize("anyio_backend", [virtual_time()], ids=["virtual"])


@VIRTUAL
async def test_progress_is_seen_a_moment_later_and_written_once_a_second_at_most(queue: Queue, storage: Faulty) -> None:
    @queue.task("read")
    async def read(job: Job) -> None:
        for page in range(1000):
            await job.progress(page / 1000, f"page {page} of 1000")
            await anyio.sleep(0.01)

    told: list[events.JobProgressed] = []

    def hook(event: Any) -> None:
        if isinstance(event, events.JobProgressed):
            told.append(event)

    async with Worker(queue, lease=60, hooks=[hook]):
        receipt = await read.dispatch()
        assert receipt.progress is None
        await anyio.sleep(5.005)
        seen = (await receipt.refresh()).progress
        assert seen is not None
        assert 0.39 < seen.fraction <= 0.5
        assert seen.message == f"page {round(seen.fraction * 1000)} of 1000"
        assert (await queue.receipt(receipt.job_id)).progress == seen
        await receipt.wait(20)
    assert 9 <= len(told) <= 12
    assert storage.calls["extend"] <= 12
    assert [each.fraction for each in told] == sorted(each.fraction for each in told)
    assert (told[-1].job_id, told[-1].message) == (receipt.job_id, f"page {round(told[-1].fraction * 1000)} of 1000")


@VIRTUAL
async def test_progress_of_many_jobs_is_one_statement(queue: Queue, storage: Faulty) -> None:
    @queue.task("read")
    async def read(job: Job) -> None:
        await job.progress(0.5)
        await anyio.sleep(3)

    async with Worker(queue, lease=60, concurrency=50):
        receipts = [await read.dispatch() for _ in range(50)]
        for receipt in receipts:
            await receipt.wait(10)
    assert storage.calls["extend"] <= 3


@VIRTUAL
async def test_progress_that_could_not_be_written_is_written_when_the_storage_is_back(
    queue: Queue, storage: Faulty
) -> None:
    @queue.task("read")
    async def read(job: Job) -> None:
        storage.down.add("extend")
        await job.progress(0.25, "first")
        await anyio.sleep(5)
        storage.down.clear()
        await anyio.sleep(5)

    async with Worker(queue, lease=60):
        receipt = await read.dispatch()
        await anyio.sleep(8)
        assert (await receipt.refresh()).progress == Progress(fraction=0.25, message="first")
        await receipt.wait(10)


@VIRTUAL
async def test_the_next_attempt_begins_without_progress(queue: Queue) -> None:
    @queue.task("read")
    async def read(job: Job) -> None:
        if job.attempt == 1:
            await job.progress(0.9)
            await anyio.sleep(2)
            raise ValueError
        await anyio.sleep(10)

    async with Worker(queue):
        receipt = await read.dispatch()
        await anyio.sleep(1)
        assert (await receipt.refresh()).progress == Progress(fraction=0.9)
        await anyio.sleep(6)
        assert (await receipt.refresh()).progress is None


@VIRTUAL
async def test_a_lost_lease_is_told_to_whoever_says_how_far_it_has_come(queue: Queue, storage: Faulty) -> None:
    told: list[bool] = []

    @queue.task("read", max_attempts=1)
    async def read(job: Job) -> None:
        storage.down.add("extend")
        with anyio.CancelScope(shield=True):
            await anyio.sleep(30)
            storage.down.clear()
            await storage.maintain(10, retention=Retention())
            await anyio.sleep(30)
            try:
                await job.progress(0.5)
                await anyio.sleep(3)
                await job.progress(0.6)
            except LeaseLost:
                told.append(True)

    async with Worker(queue, lease=3):
        receipt = await read.dispatch()
        await anyio.sleep(100)
    row = await queue.look_up(receipt.job_id)
    assert row is not None
    assert row.progress is None
    assert told in ([], [True])


async def test_progress_that_makes_no_sense_is_refused(queue: Queue) -> None:
    refused: list[str] = []

    @queue.task("read")
    async def read(job: Job) -> None:
        for fraction, message in [(1.5, ""), (-0.1, ""), (float("nan"), ""), ("half", ""), (True, ""), (0.5, 7)]:
            try:
                await job.progress(fraction, message)  # type: ignore[arg-type]
            except OptionInvalid as error:
                refused.append(str(error))
        await job.progress(0.5, "long \0 \ud800" + "x" * 1000)
        await anyio.sleep(0.2)

    async with Worker(queue):
        receipt = await read.dispatch()
        await receipt.wait(10)
    assert len(refused) == 6
    row = await queue.look_up(receipt.job_id)
    assert row is not None
    assert row.progress is not None
    assert len(row.progress.message) == 500


class Refusing(Faulty):
    """A storage that refuses progress for good."""

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        if progress:
            raise StatementRejected("planted: no column of this name")
        return await super().extend(leases, seconds, now=now)


@VIRTUAL
async def test_progress_that_the_database_refuses_costs_nobody_a_lease() -> None:
    runs: list[str] = []
    async with Queue(Refusing()) as queue:

        @queue.task("read")
        async def read() -> None:
            runs.append("read")
            for page in range(6000):
                await current_job().progress(page / 6000)
                await anyio.sleep(0.01)

        @queue.task("neighbour")
        async def neighbour() -> None:
            runs.append("neighbour")
            await anyio.sleep(60)

        async with Worker(queue, lease=6):
            receipts = [await read.dispatch(), await neighbour.dispatch()]
            for receipt in receipts:
                await receipt.wait(100)
    assert sorted(runs) == ["neighbour", "read"]


@VIRTUAL
async def test_what_was_said_before_is_not_written_over_what_was_said_later() -> None:
    class Slow(Faulty):
        held_up = False

        async def extend(
            self,
            leases: Collection[Lease],
            seconds: float,
            *,
            progress: Mapping[Lease, Progress] | None = None,
            now: datetime | None = None,
        ) -> Extension:
            if progress and not self.held_up:
                self.held_up = True
                await anyio.sleep(1.9)  # on its way for long
            return await super().extend(leases, seconds, progress=progress, now=now)

    async with Queue(Slow()) as queue:

        @queue.task("read")
        async def read(job: Job) -> None:
            await anyio.sleep(1)
            await job.progress(0.2, "old")
            await anyio.sleep(0.5)
            await job.progress(0.9, "new")  # which the next renewal takes along, half a second later
            await anyio.sleep(20)

        async with Worker(queue, lease=6):
            receipt = await read.dispatch()
            await anyio.sleep(9)
            assert (await receipt.refresh()).progress == Progress(fraction=0.9, message="new")
