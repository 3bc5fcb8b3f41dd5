"""What a worker promises over hours and outages, in virtual time: nothing here sleeps for real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anyio
import pytest

from creche import (
    Discard,
    ExponentialBackoff,
    Job,
    JobCancelled,
    JobFailed,
    Queue,
    Retry,
    Snooze,
    Status,
    Worker,
    current_job,
    events,
)
from creche._backoff import recovery_delay
from creche._job import Event, Reservation, Retention, Settled, Settlement
from creche.abc import Capabilities
from creche.errors import LeaseLost, StatementRejected, StorageUnavailable
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> object:
    return virtual_time()


async def test_a_job_that_takes_an_hour_runs_once_on_a_lease_of_ten_seconds(queue: Queue, storage: Faulty) -> None:
    runs = 0

    @queue.task("slow")
    async def slow() -> str:
        nonlocal runs
        runs += 1
        await anyio.sleep(3_600)
        return "done"

    async with Worker(queue, lease=10):
        receipt = await slow.dispatch()
        assert await receipt.wait() == "done"
    assert runs == 1
    assert 1_000 <= storage.calls["extend"] <= 1_200  # three per lease


async def test_what_cannot_be_renewed_is_cancelled_before_the_database_can_give_it_away(
    queue: Queue, storage: Faulty
) -> None:
    spans: list[tuple[float, float]] = []

    @queue.task("slow")
    async def slow() -> None:
        start = anyio.current_time()
        try:
            await anyio.sleep(12 if len(spans) else 1_000)
        finally:
            spans.append((start, anyio.current_time()))

    receipt = await slow.dispatch()
    storage.down = {"extend", "settle"}
    async with Worker(queue, lease=10, grace=0):
        await anyio.sleep(9.5)
        storage.down = set()
        await receipt.wait()
    (first_start, first_end), (second_start, _) = spans
    assert first_end <= first_start + 10
    assert first_end < second_start  # never two handlers inside one job
    assert second_start >= first_start + 10 - 1e-5  # a database keeps microseconds


async def test_a_lost_lease_cancels_the_handler_and_writes_nothing(queue: Queue, storage: Faulty) -> None:
    cancelled = anyio.Event()
    seen: list[object] = []

    @queue.task("slow", max_attempts=1)
    async def slow() -> None:
        try:
            await anyio.sleep(1_000)
        finally:
            cancelled.set()

    receipt = await slow.dispatch()
    async with Worker(queue, lease=10, grace=0, hooks=[seen.append]):
        await anyio.sleep(1)
        row = storage._rows[receipt.job_id]
        row.seize()  # as a rival's takeover does
        await cancelled.wait()
        assert anyio.current_time() > 0
        await anyio.sleep(0.1)
        assert storage.settled == []
        assert any(isinstance(event, events.JobLeaseLost) for event in seen)


async def test_a_job_of_a_worker_that_vanished_runs_again_a_little_after_its_lease(queue: Queue) -> None:
    starts: list[float] = []

    @queue.task("work")
    async def work(job: Job) -> int:
        starts.append(anyio.current_time())
        return job.attempt

    receipt = await work.dispatch()
    await queue.storage.reserve(["default"], 1, lease=10, worker="vanished", nonce=1)
    began = anyio.current_time()
    async with Worker(queue, lease=10):
        assert await receipt.wait() == 2
    # Upkeep looks again at the moment when the lease runs out, and when the job is due.
    assert starts[0] - began == pytest.approx(10 + recovery_delay(receipt.job_id, 1) / 1e6, abs=0.05)


async def test_jobs_of_a_worker_that_vanished_start_one_by_one(queue: Queue) -> None:
    starts: list[float] = []

    @queue.task("work")
    async def work() -> None:
        starts.append(anyio.current_time())

    receipts = await queue.dispatch_many(work.call() for _ in range(10))
    await queue.storage.reserve(["default"], 10, lease=10, worker="vanished", nonce=1)
    began = anyio.current_time()
    async with Worker(queue, lease=10):
        for receipt in receipts:
            await receipt.wait()
    delays = sorted(recovery_delay(receipt.job_id, 1) / 1e6 for receipt in receipts)
    assert [start - began for start in starts] == pytest.approx([10 + delay for delay in delays], abs=0.05)


async def test_a_poison_job_ends_as_a_dead_letter_after_its_last_attempt(queue: Queue) -> None:
    @queue.task("poison", max_attempts=2)
    async def poison() -> None:
        raise AssertionError("never reached: the process dies first")

    receipt = await poison.dispatch()
    for _ in range(2):
        taken = await queue.storage.reserve(["default"], 1, lease=1, worker="killed", nonce=1)
        assert len(taken.jobs) == 1
        for _ in range(2):  # the lease runs out; within a second the job is due again
            await anyio.sleep(1.1)
            await queue.storage.maintain(10, retention=Retention())
    with pytest.raises(JobFailed, match="LeaseExpired: the lease of attempt 2 ran out"):
        await receipt.wait()
    (letter,) = await queue.storage.dead_letters(10)
    assert [error.attempt for error in letter.errors] == [1, 2]


async def test_a_delayed_job_starts_at_the_moment_it_is_due(queue: Queue) -> None:
    starts: list[float] = []

    @queue.task("later")
    async def later() -> None:
        starts.append(anyio.current_time())

    began = anyio.current_time()
    async with Worker(queue, poll_interval=60):
        receipt = await later.options(delay=10.5).dispatch()
        far = await later.options(delay=7_200).dispatch()
        await receipt.wait()
        await far.wait()
    assert starts[0] - began == pytest.approx(10.5, abs=0.05)
    assert starts[1] - began == pytest.approx(7_200, abs=0.05)


async def test_failures_come_back_after_an_exponential_back_off(queue: Queue) -> None:
    starts: list[float] = []

    @queue.task("flaky", max_attempts=5, backoff=ExponentialBackoff(base=2, multiplier=3, cap=20, jitter=0))
    async def flaky() -> str:
        starts.append(anyio.current_time())
        if len(starts) < 5:
            raise OSError("not yet")
        return "at last"

    async with Worker(queue):
        assert await (await flaky.dispatch()).wait() == "at last"
    gaps = [round(after - before, 1) for before, after in pairwise(starts)]
    assert gaps == [2.0, 6.0, 18.0, 20.0]


async def test_the_last_failure_is_told_with_type_message_and_traceback(queue: Queue) -> None:
    @queue.task("bad", max_attempts=2)
    async def bad() -> None:
        raise LookupError("no such row")

    async with Worker(queue):
        receipt = await bad.dispatch()
        with pytest.raises(JobFailed) as caught:
            await receipt.wait()
    assert (caught.value.type, caught.value.message) == ("LookupError", "no such row")
    assert 'raise LookupError("no such row")' in caught.value.traceback


async def test_a_handler_steers_with_retry_snooze_and_discard(queue: Queue) -> None:
    log: list[tuple[str, int, float]] = []

    @queue.task("steered", max_attempts=2)
    async def steered(how: str) -> str:
        job = current_job()
        first = not any(entry[0] == how for entry in log)
        log.append((how, job.attempt, anyio.current_time()))
        if how == "retry" and first:
            raise Retry("busy", delay=100)
        if how == "snooze" and first:
            raise Snooze(50)
        if how == "discard":
            raise Discard("of no use")
        return how

    async with Worker(queue):
        for how in ("retry", "snooze"):
            assert await (await steered.dispatch(how)).wait() == how
        with pytest.raises(JobFailed, match="of no use"):
            await (await steered.dispatch("discard")).wait()
    retry, snooze = ([entry for entry in log if entry[0] == how] for how in ("retry", "snooze"))
    assert [attempt for _, attempt, _ in retry] == [1, 2]
    assert retry[1][2] - retry[0][2] == pytest.approx(100, abs=0.05)
    assert [attempt for _, attempt, _ in snooze] == [1, 1]  # the attempt was given back
    assert snooze[1][2] - snooze[0][2] == pytest.approx(50, abs=0.05)


async def test_a_slow_job_never_blocks_free_slots(queue: Queue) -> None:
    @queue.task("work")
    async def work(seconds: float) -> None:
        await anyio.sleep(seconds)

    async with Worker(queue, concurrency=3, grace=0):
        await work.dispatch(1_000)
        receipts = await queue.dispatch_many(work.call(1) for _ in range(20))
        began = anyio.current_time()
        for receipt in receipts:
            await receipt.wait()
        assert anyio.current_time() - began == pytest.approx(10, abs=0.8)  # two slots, twenty seconds of work


async def test_a_backlog_is_drained_without_a_pause_between_batches(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None: ...

    await queue.dispatch_many(work.call() for _ in range(1_000))
    async with Worker(queue, concurrency=10, poll_interval=60):
        began = anyio.current_time()
        await until(lambda: len(storage.settled) == 1_000, step=0.001)
        assert anyio.current_time() - began < 1


async def test_stopping_lets_jobs_finish_for_the_grace_then_gives_them_back_unspent(queue: Queue) -> None:
    @queue.task("work")
    async def work(seconds: float) -> str:
        await anyio.sleep(seconds)
        return "finished"

    quick, slow = await queue.dispatch_many([work.call(3), work.call(1_000)])
    worker = Worker(queue, grace=5)
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await anyio.sleep(1)
        waiting = await work.dispatch(1)
        began = anyio.current_time()
        worker.stop()
    assert anyio.current_time() - began == pytest.approx(5, abs=0.1)
    assert (await quick.refresh()).status is Status.COMPLETED
    record = await queue.look_up(slow.job_id)
    assert record
    assert (record.status, record.attempts) == (Status.PENDING, 0)
    assert (await waiting.refresh()).status in {Status.PENDING, Status.COMPLETED}


async def test_a_second_stop_skips_the_grace(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(1_000)

    receipt = await work.dispatch()
    worker = Worker(queue, grace=500)
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await anyio.sleep(1)
        began = anyio.current_time()
        worker.stop()
        await anyio.sleep(2)
        worker.stop()
    assert anyio.current_time() - began == pytest.approx(2, abs=0.1)
    assert (await receipt.refresh()).status is Status.PENDING


async def test_cancelling_the_host_gives_leases_back_before_the_cancellation_goes_through(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(1_000)

    receipts = await queue.dispatch_many(work.call() for _ in range(20))
    async with anyio.create_task_group() as host:
        await host.start(Worker(queue, concurrency=7).run)
        await anyio.sleep(1)
        began = anyio.current_time()
        host.cancel_scope.cancel()
    assert anyio.current_time() - began < 0.1
    records = await queue.storage.find([receipt.job_id for receipt in receipts])
    assert {(record.status, record.attempts) for record in records.values()} == {(Status.PENDING, 0)}


async def test_a_stop_is_bounded_though_the_storage_is_gone(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None:
        await anyio.sleep(1_000)

    await work.dispatch()
    async with anyio.create_task_group() as host:
        await host.start(Worker(queue).run)
        await anyio.sleep(1)
        storage.hang = {"settle", "extend", "reserve", "maintain"}
        began = anyio.current_time()
        host.cancel_scope.cancel()
    assert anyio.current_time() - began <= 5.1


async def test_a_stop_waits_no_longer_than_a_moment_for_a_reserve_that_hangs(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None: ...

    worker = Worker(queue, lease=600)
    async with anyio.create_task_group() as host:
        await host.start(worker.run)
        await anyio.sleep(1)
        storage.hang = {"reserve"}
        await work.dispatch()
        await anyio.sleep(1)
        began = anyio.current_time()
        worker.stop()
    assert anyio.current_time() - began <= 2.1


async def test_what_a_reserve_in_flight_brings_while_the_worker_stops_is_given_back(
    queue: Queue, storage: Faulty
) -> None:
    @queue.task("work")
    async def work() -> None:
        raise AssertionError("never reached: the worker was told to stop before")

    worker = Worker(queue)
    async with anyio.create_task_group() as host:
        await host.start(worker.run)
        await anyio.sleep(1)
        storage.slow = {"reserve"}
        receipt = await work.dispatch()
        await anyio.sleep(0.5)
        worker.stop()
    record = await queue.look_up(receipt.job_id)
    assert record
    assert (record.status, record.attempts, record.locked_by) == (Status.PENDING, 0, None)
    assert [settlement.event for settlement in storage.settled] == [Event.RELEASE]


async def test_an_end_that_was_written_is_not_called_lost_though_its_answer_came_after_the_lease(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    settle = storage.settle
    answers: list[Settled] = []

    async def frozen(settlements: Sequence[Settlement], **named: Any) -> Settled:
        answers.append(await settle(settlements, **named))
        if len(answers) == 1:
            storage.down = {"extend"}
            with anyio.CancelScope(shield=True):
                await anyio.sleep(15)
            storage.down = set()
            raise StorageUnavailable("the answer was lost while the process was frozen")
        return answers[-1]

    monkeypatch.setattr(storage, "settle", frozen)
    seen: list[object] = []
    receipt = await work.dispatch()
    async with Worker(queue, lease=10, hooks=[seen.append]):
        await anyio.sleep(30)
    assert (await queue.receipt(receipt.job_id)).result == "done"
    assert sum(isinstance(event, events.JobAcked) for event in seen) == 1
    assert not any(isinstance(event, events.JobLeaseLost) for event in seen)
    assert len(answers) == 2


async def test_an_acknowledgement_that_fails_is_retried_while_the_lease_holds(queue: Queue, storage: Faulty) -> None:
    runs = 0

    @queue.task("work")
    async def work() -> str:
        nonlocal runs
        runs += 1
        return "once"

    receipt = await work.dispatch()
    storage.down = {"settle"}
    async with Worker(queue, lease=10):
        await anyio.sleep(60)  # six leases: they are renewed while the end waits to be written
        storage.down = set()
        assert await receipt.wait() == "once"
    assert runs == 1


async def test_a_settle_whose_answer_was_lost_has_no_second_effect(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> str:
        return "once"

    acked: list[object] = []
    storage.lose_answer = {"settle"}
    async with Worker(queue, hooks=[lambda event: acked.append(event) if isinstance(event, events.JobAcked) else None]):
        assert await (await work.dispatch()).wait() == "once"
        await anyio.sleep(1)
    assert [settlement.event for settlement in storage.settled] == [Event.SUCCEED, Event.SUCCEED]
    assert len(acked) == 1


async def test_a_reserve_whose_answer_was_lost_costs_one_lease_and_loses_nothing(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    receipt = await work.dispatch()
    storage.lose_answer = {"reserve"}
    began = anyio.current_time()
    async with Worker(queue, lease=10):
        assert await receipt.wait() == "done"
    assert anyio.current_time() - began < 20


async def test_a_worker_cut_off_for_a_minute_goes_on_by_itself_and_asks_seldom(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    async with Worker(queue):
        storage.down = {"reserve", "maintain", "extend", "settle"}
        storage.calls.clear()
        receipt = await work.dispatch()
        await anyio.sleep(60)
        assert storage.calls["reserve"] <= 25
        assert storage.calls["maintain"] <= 25
        storage.down = set()
        began = anyio.current_time()
        assert await receipt.wait() == "done"
        assert anyio.current_time() - began <= 5.1


async def test_what_ended_while_a_batch_was_written_goes_into_the_next_one(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> None: ...

    receipts = await queue.dispatch_many(work.call() for _ in range(200))
    async with Worker(queue, concurrency=100):
        for receipt in receipts:
            await receipt.wait()
    assert sum(storage.sizes) == 200
    assert len(storage.sizes) <= 20  # not one statement per job


async def test_a_running_job_is_cancelled_by_way_of_the_renewal(queue: Queue) -> None:
    ended: list[float] = []

    @queue.task("slow")
    async def slow() -> None:
        try:
            await anyio.sleep(1_000)
        finally:
            ended.append(anyio.current_time())

    async with Worker(queue, lease=9):
        receipt = await slow.dispatch()
        await anyio.sleep(1)
        began = anyio.current_time()
        assert await queue.cancel(receipt.job_id) is Status.PROCESSING
        with pytest.raises(JobCancelled):
            await receipt.wait()
    assert ended[0] - began <= 3.1
    assert (await receipt.refresh()).status is Status.CANCELLED


async def test_extend_makes_the_lease_longer_and_a_lost_one_raises(queue: Queue, storage: Faulty) -> None:
    answers: list[object] = []

    @queue.task("work", max_attempts=1)
    async def work(job: Job) -> None:
        before = job.deadline
        await job.extend(500)
        answers.append(job.deadline - before)
        storage._rows[job.id].seize()
        try:
            await job.extend(500)
        except LeaseLost as error:
            answers.append(error.job_id)

    async with Worker(queue, lease=10, grace=0):
        receipt = await work.dispatch()
        await anyio.sleep(2)
    assert answers == [pytest.approx(490, abs=1), receipt.job_id]


async def test_a_hundred_waiters_cost_one_query_per_tick(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> str:
        await anyio.sleep(30)
        return "done"

    async with Worker(queue), anyio.create_task_group() as waiters:
        receipt = await work.dispatch()
        for _ in range(100):
            waiters.start_soon(receipt.wait)
    assert storage.calls["watch"] <= 45


async def test_a_handler_that_ignores_cancellation_is_fenced_out(queue: Queue, storage: Faulty) -> None:
    @queue.task("stubborn", max_attempts=2)
    async def stubborn(job: Job) -> int:
        if job.attempt == 1:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(60)
        return job.attempt

    storage.down = {"extend"}
    async with Worker(queue, lease=10, grace=0), Worker(queue, lease=10, grace=0):
        receipt = await stubborn.dispatch()
        assert await receipt.wait() == 2
        await anyio.sleep(100)
        assert await receipt.wait() == 2  # the first holder's result came late, and changed nothing


async def test_the_cap_holds_after_jitter_and_ten_thousand_attempts_overflow_nothing() -> None:
    backoff = ExponentialBackoff(base=1, multiplier=10, cap=30, jitter=1)
    delays = [backoff.delay(attempt) for attempt in (1, 2, 3, 100, 1_000, 10_000) for _ in range(200)]
    assert all(0 <= delay <= 30 and math.isfinite(delay) for delay in delays)


class Contended(Faulty):
    """Its database undid three transactions of the first round of upkeep, and one later on."""

    @property
    def conflicts(self) -> int:
        return {0: 0, 1: 3}.get(self.calls.get("maintain", 0), 4)


async def test_conflicts_that_the_storage_resolved_are_told_as_they_grow() -> None:
    heard: list[int] = []

    def watch(event: events.WorkerEvent) -> None:
        if isinstance(event, events.StorageConflicted):
            heard.append(event.conflicts)

    async def never(job: Job) -> None:
        raise AssertionError(job)

    async with Queue(Contended()) as queue, Worker(queue, handler=never, hooks=[watch]):
        await anyio.sleep(120)
    assert heard == [3, 1]


class HardOfHearing(Faulty):
    """Hears what this process does, and declares that this is all."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(listen=False, shared=True, durable=True)


async def test_what_hears_of_its_own_process_alone_is_woken_by_it_and_polled_for_the_rest() -> None:
    starts: list[float] = []
    async with Queue(storage := HardOfHearing()) as queue:

        @queue.task("work")
        async def work() -> None:
            starts.append(anyio.current_time())

        async with Worker(queue, poll_interval=20):
            await anyio.sleep(300)
            began = anyio.current_time()
            await (await work.dispatch()).wait()
            assert starts[0] == began
            await anyio.sleep(300)
            polled = storage.calls["reserve"]
            await anyio.sleep(3_600)
            assert 3_600 / 22 - 1 <= storage.calls["reserve"] - polled <= 3_600 / 18 + 1


async def test_a_worker_whose_first_reserve_is_refused_for_good_ends_and_says_so(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task("work")
    async def work() -> None: ...

    async def refuse(*_: object, **__: object) -> Reservation:
        raise StatementRejected("permission denied for table creche_jobs")

    monkeypatch.setattr(storage, "reserve", refuse)
    with pytest.raises(StatementRejected, match="permission denied"):
        await Worker(queue, burst=True).run()
    assert await queue.workers() == []


async def test_a_worker_that_is_refused_later_goes_on_when_it_may_again(
    queue: Queue, storage: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task("work")
    async def work() -> str:
        return "done"

    async def refuse(*_: object, **__: object) -> Reservation:
        raise StatementRejected("permission denied for table creche_jobs")

    worker = Worker(queue)
    async with worker:
        await (await work.dispatch()).wait()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "reserve", refuse)
            receipt = await work.dispatch()
            await anyio.sleep(60)
            assert not worker.health.ready
        assert await receipt.wait() == "done"
