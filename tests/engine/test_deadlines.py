"""A handler's right to run ends here before it ends in the database, however slow the answers are. In virtual time."""

from __future__ import annotations

from copy import deepcopy

import anyio
import pytest
from attrs import define, field

from creche import Job, Queue, Status, Worker, events
from creche._job import Lease
from engine_kit import Faulty, virtual_time

pytestmark = pytest.mark.anyio

LEASE = 6.0
MARGIN = LEASE / 10


@pytest.fixture
def anyio_backend() -> object:
    return virtual_time()


@define
class Watch:
    """Compares what is left of a lease here with what is left of it there."""

    storage: Faulty
    seen: list[tuple[float, float]] = field(factory=list[tuple[float, float]])

    def look(self, job: Job) -> None:
        until = self.storage._rows[job.id].record.locked_until
        assert until
        there = (until - self.storage._now()).total_seconds()
        self.seen.append((job.deadline - anyio.current_time(), there))

    @property
    def safe(self) -> bool:
        return all(here <= there - MARGIN + 1e-5 for here, there in self.seen)  # a storage keeps microseconds


async def test_it_counts_from_before_the_reserve_was_sent(queue: Queue, storage: Faulty) -> None:
    watch = Watch(storage)

    @queue.task("work")
    async def work(job: Job) -> None:
        watch.look(job)

    storage.slow = {"reserve"}  # it takes effect, and a second later the answer is here
    receipt = await work.dispatch()
    async with Worker(queue, lease=LEASE):
        await receipt.wait()
    assert len(watch.seen) == 1
    assert watch.safe


async def test_it_counts_from_before_the_renewal_was_sent(queue: Queue, storage: Faulty) -> None:
    watch = Watch(storage)

    @queue.task("work")
    async def work(job: Job) -> None:
        for _ in range(300):
            watch.look(job)
            await anyio.sleep(0.1)

    storage.slow = {"extend"}
    receipt = await work.dispatch()
    async with Worker(queue, lease=LEASE):
        await receipt.wait()
    assert len(watch.seen) == 300
    assert storage.calls["extend"] >= 5
    assert watch.safe


async def test_it_counts_from_before_the_extension_was_sent(queue: Queue, storage: Faulty) -> None:
    watch = Watch(storage)

    @queue.task("work")
    async def work(job: Job) -> None:
        await job.extend(500)
        watch.look(job)

    storage.slow = {"extend"}
    receipt = await work.dispatch()
    async with Worker(queue, lease=LEASE):
        await receipt.wait()
    assert watch.seen[0][1] > 490
    assert watch.safe


async def test_what_takes_its_time_to_clean_up_is_renewed_though_its_worker_was_cancelled(
    queue: Queue, storage: Faulty
) -> None:
    @queue.task("work", max_attempts=1)
    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10 * LEASE)

    receipt = await work.dispatch()
    async with Worker(queue, queues=["another"], lease=LEASE):  # which looks after all jobs, and would take this back
        async with anyio.create_task_group() as host:
            await host.start(Worker(queue, lease=LEASE).run)
            await anyio.sleep(1)
            host.cancel_scope.cancel()
        record = await queue.look_up(receipt.job_id)
    assert record
    assert (record.status, record.attempts, record.last_error) == (Status.PENDING, 0, None)


async def test_of_two_that_a_failover_gave_the_same_token_the_first_is_refused(queue: Queue, storage: Faulty) -> None:
    """A standby that takes over without the last commits knows nothing of a reserve that was answered."""
    leases: list[Lease] = []
    finish = [anyio.Event(), anyio.Event()]

    @queue.task("work")
    async def work(job: Job) -> int:
        number = len(leases)
        leases.append(job.lease)
        await finish[number].wait()
        return number

    receipt = await work.dispatch()
    standby = deepcopy(storage._rows)
    heard: list[object] = []
    async with Worker(queue, concurrency=1, lease=600, hooks=[heard.append]):
        await anyio.sleep(1)
        storage._rows = standby
        async with Worker(queue, concurrency=1, lease=600):
            await anyio.sleep(1)
            finish[0].set()
            await anyio.sleep(1)
            assert any(isinstance(event, events.JobLeaseLost) for event in heard)
            finish[1].set()
            assert await receipt.wait() == 1
    first, second = leases
    assert (first.job_id, first.token) == (second.job_id, second.token)
