"""The end of a worker's host at each step that it takes. In virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import anyio
import anyio.lowlevel
import pytest

from creche import Queue, Status, Worker
from creche._job import JobFilter
from engine_kit import Faulty, virtual_time

STEPS = 200


class InSteps(Faulty):
    """A storage that needs a few steps for what it does, so that an end may come before, in the middle, and after."""

    async def __aenter__(self) -> Self:
        await steps(5)
        return await super().__aenter__()

    async def _before(self, operation: str) -> None:
        await steps(3)
        await super()._before(operation)

    async def _after(self, operation: str) -> None:
        await steps(3)
        await super()._after(operation)


async def steps(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def life(storage: Faulty, end_after: int) -> Sequence[tuple[Status, int]]:
    """Run a worker that has six jobs, cancel its host after so many steps, and return what became of them."""
    queue = Queue(storage)

    @queue.task("work", max_attempts=1)
    async def work(length: int) -> None:
        await steps(length)

    async with queue:
        await queue.dispatch_many([work.call(7 * number) for number in range(6)])
    async with anyio.create_task_group() as host:
        host.start_soon(Worker(queue, concurrency=2, lease=600).run)
        await steps(end_after)
        host.cancel_scope.cancel()
    assert not queue.is_open
    return [(job.status, job.attempts) for job in await storage.list(JobFilter(), 10)]


@pytest.mark.parametrize("first", range(0, STEPS, 20))
def test_a_host_that_is_cancelled_at_any_step_leaves_no_job_behind_and_spends_no_attempt(first: int) -> None:
    completed = set[int]()
    for end_after in range(first, first + 20):
        storage = InSteps()
        backend, options = virtual_time()
        jobs = anyio.run(life, storage, end_after, backend=backend, backend_options=options)
        assert set(jobs) <= {(Status.PENDING, 0), (Status.COMPLETED, 1)}
        assert storage._workers == {}
        completed.add(jobs.count((Status.COMPLETED, 1)))
    if first == 0:
        assert 0 in completed
    if first == STEPS - 20:
        assert 6 in completed
