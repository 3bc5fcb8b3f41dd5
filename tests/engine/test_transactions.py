"""A handler's own transaction, which ends its attempt: what the engine makes of it, on the memory storage with faults.

What the databases make of it, tests of the storages and of real processes show.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from creche import Job, JobFailed, LeaseLost, Queue, Retention, Retry, Status, Worker, events
from creche._job import Extension
from creche.abc import Transaction
from creche.errors import ResultInvalid, StorageUnavailable, UsageError
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio

VIRTUAL = pytest.mark.parametrize("anyio_backend", [virtual_time()], ids=["virtual"])


async def test_the_job_is_completed_when_the_block_is_left_with_the_result_that_was_given(queue: Queue) -> None:
    seen: list[object] = []

    @queue.task("charge")
    async def charge(job: Job) -> dict[str, int]:
        async with job.transaction() as connection:
            seen.append(connection)
            job.set_result({"invoice": 17})
            seen.append((await queue.receipt(job.id)).status)
        seen.append((await queue.receipt(job.id)).status)
        return {"invoice": 17}

    told: list[type] = []
    async with Worker(queue, hooks=[lambda event: told.append(type(event))]):
        assert await (await charge.dispatch()).wait(10) == {"invoice": 17}
        await until(lambda: len(seen) == 3)
    assert seen == [None, Status.PROCESSING, Status.COMPLETED]
    assert told.count(events.JobSucceeded) == told.count(events.JobAcked) == 1
    assert events.JobLeaseLost not in told


async def test_without_a_result_it_is_none(queue: Queue) -> None:
    @queue.task("charge")
    async def charge(job: Job) -> int | None:
        async with job.transaction():
            pass
        return None

    async with Worker(queue):
        assert await (await charge.dispatch()).wait(10) is None


async def test_an_error_in_the_block_is_a_failed_attempt_and_the_next_one_starts_anew(queue: Queue) -> None:
    @queue.task("charge")
    async def charge(job: Job) -> int:
        async with job.transaction():
            job.set_result(job.attempt)
            if job.attempt == 1:
                raise Retry(delay=0)
        return job.attempt

    async with Worker(queue):
        assert await (await charge.dispatch()).wait(10) == 2


async def test_what_the_handler_does_afterwards_changes_nothing_and_is_told(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    @queue.task("raises")
    async def raises(job: Job) -> None:
        async with job.transaction():
            pass
        raise ValueError("too late")

    @queue.task("returns")
    async def returns(job: Job) -> int:
        async with job.transaction():
            pass
        return 17

    async with Worker(queue):
        first = await raises.dispatch()
        second = await returns.dispatch()
        await first.wait(10)
        with caplog.at_level(logging.ERROR, "creche"):
            await until(lambda: "too late" in caplog.text and "set_result" in caplog.text)
    assert (await queue.receipt(first.job_id)).status is Status.COMPLETED
    assert (await queue.look_up(first.job_id)).attempts == 1  # type: ignore[union-attr]
    assert (await queue.look_up(second.job_id)).result == b"null"  # type: ignore[union-attr]


@VIRTUAL
async def test_the_rest_of_the_handler_may_take_longer_than_the_lease(queue: Queue) -> None:
    over = False

    @queue.task("charge")
    async def charge(job: Job) -> None:
        nonlocal over
        async with job.transaction():
            pass
        await anyio.sleep(100)
        await job.progress(1.0)  # nobody minds
        over = True

    async with Worker(queue, lease=3):
        await (await charge.dispatch()).wait(10)
        await anyio.sleep(101)
    assert over


@VIRTUAL
async def test_a_lost_lease_rolls_everything_back(queue: Queue, storage: Faulty) -> None:
    told: list[object] = []

    @queue.task("charge", max_attempts=2)
    async def charge(job: Job) -> int:
        try:
            async with job.transaction():
                if job.attempt == 1:
                    storage.down.add("extend")
                    with anyio.CancelScope(shield=True):  # it does not notice that its lease runs out
                        await anyio.sleep(60)
                    storage.down.clear()
                job.set_result(job.attempt)
        except LeaseLost as error:
            told.append(error.job_id)
            raise
        return job.attempt

    async with Worker(queue, lease=3):
        receipt = await charge.dispatch()
        assert await receipt.wait(200) == 2
        await anyio.sleep(100)
    assert (await queue.look_up(receipt.job_id)).attempts == 2  # type: ignore[union-attr]
    assert told in ([], [receipt.job_id])  # it may be cancelled before it can be told


@VIRTUAL
async def test_a_lease_that_was_lost_unnoticed_commits_nothing_and_its_handler_is_told(
    queue: Queue, storage: Faulty
) -> None:
    told: list[object] = []

    @queue.task("charge", max_attempts=1)
    async def charge(job: Job) -> None:
        try:
            async with job.transaction():
                storage._rows[job.id].seize()  # as a rival's takeover does, long before the next renewal
        except LeaseLost as error:
            told.append(error.job_id)
            raise

    async with Worker(queue, lease=600):
        receipt = await charge.dispatch()
        await until(lambda: bool(told))
    assert told == [receipt.job_id]
    assert "commit" not in storage.calls


async def test_a_commit_whose_answer_is_lost_is_found_out_and_nothing_runs_twice(queue: Queue, storage: Faulty) -> None:
    runs: list[int] = []

    @queue.task("charge")
    async def charge(job: Job) -> str:
        async with job.transaction():
            runs.append(job.attempt)
            job.set_result("once")
        return "once"

    storage.lose_answer.add("commit")
    async with Worker(queue):
        assert await (await charge.dispatch()).wait(10) == "once"
    assert runs == [1]


async def test_a_commit_whose_answer_is_lost_and_whose_job_is_pruned_since_is_found_out_too(
    queue: Queue, storage: Faulty
) -> None:
    ended: list[int] = []
    extend = storage.extend

    async def extend_after_upkeep(*args: Any, **options: Any) -> Extension:
        await storage.maintain(100, retention=Retention(completed=0))
        return await extend(*args, **options)

    @queue.task("charge")
    async def charge(job: Job) -> None:
        async with job.transaction():
            job.set_result("once")
        ended.append(job.attempt)

    storage.lose_answer.add("commit")
    storage.extend = extend_after_upkeep  # type: ignore[method-assign]
    async with Worker(queue):
        receipt = await charge.dispatch()
        await until(lambda: bool(ended))
    assert ended == [1]
    assert await queue.look_up(receipt.job_id) is None


async def test_a_commit_that_did_not_take_place_is_a_failed_attempt(queue: Queue, storage: Faulty) -> None:
    errors: list[StorageUnavailable] = []

    @queue.task("charge")
    async def charge(job: Job) -> int:
        try:
            async with job.transaction():
                job.set_result(job.attempt)
        except StorageUnavailable as error:
            storage.down.clear()
            errors.append(error)
            raise Retry(delay=0) from error
        return job.attempt

    storage.down.add("commit")
    async with Worker(queue):
        assert await (await charge.dispatch()).wait(10) == 2
    assert len(errors) == 1


async def test_who_waits_for_a_commit_knows_when_the_lease_ends(queue: Queue, storage: Faulty) -> None:
    left: list[float] = []
    plain = storage.transaction

    @asynccontextmanager
    async def committed_late() -> AsyncGenerator[Transaction]:
        async with plain() as transaction:
            yield transaction
            left.append(anyio.current_effective_deadline() - anyio.current_time())

    storage.transaction = committed_late  # type: ignore[method-assign]

    @queue.task("charge")
    async def charge(job: Job) -> None:
        async with job.transaction():
            pass

    async with Worker(queue, lease=9):
        await (await charge.dispatch()).wait(10)
    assert 0 < left[0] < 9


async def test_a_failed_transaction_may_be_tried_again_in_the_same_attempt(queue: Queue, storage: Faulty) -> None:
    @queue.task("charge")
    async def charge(job: Job) -> int:
        storage.down.add("commit")
        with pytest.raises(StorageUnavailable):
            async with job.transaction():
                job.set_result(1)
        storage.down.clear()
        async with job.transaction():
            job.set_result(2)
        return 2

    async with Worker(queue):
        assert await (await charge.dispatch()).wait(10) == 2


async def test_a_job_has_one_transaction_that_ends_it(queue: Queue) -> None:
    @queue.task("charge", max_attempts=1)
    async def charge(job: Job, nested: bool) -> int | None:
        async with job.transaction():
            if nested:
                async with job.transaction():
                    pass
        with pytest.raises(UsageError, match="has its transaction"):
            async with job.transaction():
                pass
        with pytest.raises(UsageError, match="return it"):
            job.set_result(1)
        return None

    async with Worker(queue):
        assert await (await charge.dispatch(nested=False)).wait(10) is None
        with pytest.raises(JobFailed, match="has its transaction"):
            await (await charge.dispatch(nested=True)).wait(10)


async def test_a_result_that_cannot_be_stored_is_refused_where_it_is_given(queue: Queue) -> None:
    @queue.task("charge", max_attempts=1)
    async def charge(job: Job) -> str:
        async with job.transaction():
            with pytest.raises(ResultInvalid):
                job.set_result(float("nan"))
            job.set_result("fine")
        return "fine"

    async with Worker(queue):
        assert await (await charge.dispatch()).wait(10) == "fine"


async def test_callbacks_follow_a_job_that_its_own_transaction_ended(queue: Queue) -> None:
    told: list[str] = []

    @queue.task("charge")
    async def charge(job: Job) -> str:
        async with job.transaction():
            job.set_result("charged")
        return "charged"

    @queue.callback("notify")
    async def notify(result: str) -> None:
        told.append(result)

    async with Worker(queue):
        await charge.options(callbacks=[notify]).dispatch()
        await until(lambda: bool(told))
    assert told == ["charged"]


@VIRTUAL
async def test_to_extend_a_lease_that_its_own_transaction_ends_or_ended_costs_the_handler_nothing(
    queue: Queue, storage: Faulty
) -> None:
    told: list[type] = []
    over = False

    @queue.task("charge", max_attempts=1)
    async def charge(job: Job) -> None:
        nonlocal over

        async def keep() -> None:
            while True:
                await job.extend(20)
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep)
            async with job.transaction():
                pass
            await anyio.sleep(60)
            tasks.cancel_scope.cancel()
        over = True

    storage.slow.add("commit")
    async with Worker(queue, hooks=[lambda event: told.append(type(event))]):
        await (await charge.dispatch()).wait(10)
        await anyio.sleep(70)
    assert over
    assert told.count(events.JobSucceeded) == told.count(events.JobAcked) == 1
    assert events.JobLeaseLost not in told


@VIRTUAL
@pytest.mark.parametrize("moment", ["commit", "afterwards"])
async def test_a_cancellation_that_is_answered_too_late_cuts_nothing_off(
    queue: Queue, storage: Faulty, moment: str
) -> None:
    told: list[type] = []
    over = False

    @queue.task("charge")
    async def charge(job: Job) -> None:
        nonlocal over
        await anyio.sleep(1.9)
        await queue.cancel(job.id)
        await anyio.sleep(0.2)  # meanwhile a renewal was sent, which is answered a second later
        if moment == "commit":
            storage.slow.add("commit")
        async with job.transaction():
            pass
        await anyio.sleep(10)
        over = True

    storage.slow.add("extend")
    async with Worker(queue, lease=6, hooks=[lambda event: told.append(type(event))]):
        await (await charge.dispatch()).wait(10)
        await anyio.sleep(20)
    assert over
    assert told.count(events.JobSucceeded) == 1
    assert events.JobCancelled not in told


@VIRTUAL
async def test_a_worker_is_not_idle_while_what_is_left_of_a_handler_runs(queue: Queue) -> None:
    over = False
    idle: list[bool] = []

    @queue.task("charge")
    async def charge(job: Job) -> None:
        nonlocal over
        async with job.transaction():
            pass
        await anyio.sleep(10)
        over = True

    def hook(event: object) -> None:
        if isinstance(event, events.WorkerIdle):
            idle.append(over)

    await charge.dispatch()
    async with Worker(queue, poll_interval=1, hooks=[hook]):
        await anyio.sleep(20)
    assert idle
    assert all(idle)
