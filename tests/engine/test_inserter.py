"""Dispatches of many callers at once: one statement for all, and for each of them an answer or an error of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import CancelScope, create_task_group

from creche import Queue, Receipt, Status
from creche._inserter import MOST_BYTES, MOST_JOBS
from creche._job import Insertion, JobFilter, NewJob
from creche.errors import QueueNotOpen, StatementRejected, StorageUnavailable
from creche.storage.memory import MemoryStorage
from engine_kit import until, virtual_time

pytestmark = pytest.mark.anyio

asked_by = ContextVar("asked_by", default="nobody")


class Door(MemoryStorage):
    """A storage whose inserts wait, while it is shut, before they take effect or after; and that may refuse.

    Attributes:
        came: the inserts that reached it, each as the payloads of its jobs.
        contexts: on whose behalf, by `asked_by`.
        refuses: whether a payload is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.came: list[list[bytes]] = []
        self.contexts: list[str] = []
        self.refuses: Callable[[bytes], bool] = lambda _: False
        self.unavailable = False
        self.shut: anyio.Event | None = None
        self.answers_wait = False

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        payloads = [job.payload for job in jobs]
        self.came.append(payloads)
        self.contexts.append(asked_by.get())
        if connection is not None:
            return [Insertion(job_id=job.id, status=Status.PENDING, inserted=True) for job in jobs]
        door = self.shut
        if door is not None and not self.answers_wait:
            await door.wait()
        if self.unavailable:
            raise StorageUnavailable("planted") from OSError("the cable")
        if any(map(self.refuses, payloads)):
            raise StatementRejected("planted: refused")
        answers = await super().insert(jobs, now=now)
        if door is not None and self.answers_wait:
            await door.wait()
        return answers

    async def written(self) -> set[bytes]:
        return {record.payload for record in await self.list(JobFilter(), 10_000)}


@pytest.fixture
async def storage() -> Door:
    return Door()


@pytest.fixture
async def queue(storage: Door) -> AsyncIterator[Queue]:
    async with Queue(storage) as queue:
        yield queue


def number(place: int) -> bytes:
    return b'{"number":%d}' % place


class Callers:
    """Callers that dispatch at once: number 0 first, alone, then the others while its statement is on its way."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        queue.foreign("work", "after")
        self.receipts: dict[int, Receipt[object]] = {}
        self.errors: dict[int, BaseException] = {}
        self.scopes: dict[int, CancelScope] = {}

    async def call(self, place: int, **options: Any) -> None:
        with CancelScope() as scope:
            self.scopes[place] = scope
            try:
                self.receipts[place] = await self.queue.dispatch("work", {"number": place}, **options)
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.errors[place] = error

    async def cancel(self, place: int) -> None:
        self.scopes[place].cancel()
        await settled()


async def settled() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def callers(queue: Queue) -> Callers:
    return Callers(queue)


# --- together ---------------------------------------------------------------------------------------


async def test_a_lone_dispatch_is_one_insert_in_the_callers_own_task(queue: Queue, storage: Door) -> None:
    asked_by.set("me")
    for place in range(3):
        await queue.dispatch("work", {"number": place})
    assert storage.came == [[number(0)], [number(1)], [number(2)]]
    assert storage.contexts == ["me"] * 3


async def test_what_comes_while_an_insert_is_on_its_way_goes_into_the_next_one(callers: Callers, storage: Door) -> None:
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        for place in range(5):
            group.start_soon(callers.call, place)
        await settled()
        assert len(storage.came) == 1
        storage.shut.set()
    assert sorted(map(len, storage.came)) == [1, 4]
    assert len(await storage.written()) == 5


@pytest.mark.parametrize("callers_at_once", [16, 100])
async def test_callers_that_ask_again_and_again_take_about_one_insert_for_each_time_that_all_of_them_ask(
    queue: Queue, storage: Door, callers_at_once: int
) -> None:
    async def ask(caller: int) -> None:
        for time in range(10):
            receipt = await queue.dispatch("work", {"number": caller * 10 + time})
            assert receipt.inserted

    async with create_task_group() as group:
        for caller in range(callers_at_once):
            group.start_soon(ask, caller)
    assert len(storage.came) <= 12  # the first is alone, and who missed a turn comes with the next
    assert len(await storage.written()) == callers_at_once * 10


async def test_a_hundred_dispatches_at_once_are_two_inserts(callers: Callers, storage: Door) -> None:
    async with create_task_group() as group:
        for place in range(100):
            group.start_soon(callers.call, place)
    assert sorted(map(len, storage.came)) == [1, 99]


async def test_each_caller_gets_the_receipt_of_its_own_job(callers: Callers, storage: Door) -> None:
    async with create_task_group() as group:
        for place in range(20):
            group.start_soon(callers.call, place)
    records = await storage.find([receipt.job_id for receipt in callers.receipts.values()])
    for place, receipt in callers.receipts.items():
        assert records[receipt.job_id].payload == number(place)
        assert receipt.inserted
    assert len(records) == 20


async def test_what_several_ask_for_is_written_in_no_callers_context(callers: Callers, storage: Door) -> None:
    asked_by.set("somebody")
    async with create_task_group() as group:
        for place in range(3):
            group.start_soon(callers.call, place)
    assert storage.contexts == ["somebody", "nobody"]


async def test_an_insert_has_so_many_jobs_at_most(callers: Callers, storage: Door) -> None:
    async with create_task_group() as group:
        for place in range(1 + 2 * MOST_JOBS + 1):
            group.start_soon(callers.call, place)
    assert sorted(map(len, storage.came)) == [1, 1, MOST_JOBS, MOST_JOBS]


async def test_an_insert_has_so_many_bytes_at_most(queue: Queue, storage: Door) -> None:
    async with create_task_group() as group:
        for _ in range(4):
            group.start_soon(queue.dispatch, "work", {"text": "x" * (MOST_BYTES * 2 // 5)})
    assert sorted(map(len, storage.came)) == [1, 1, 2]


# --- apart ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"idempotency_key": "mine"}, {"unique": True}, {"result_ttl": 60}, {"callbacks": ["after"]}],
    ids=lambda options: next(iter(options)),
)
async def test_what_may_have_to_wait_for_somebody_is_written_by_itself_and_waits_for_no_turn(
    callers: Callers, storage: Door, options: dict[str, Any]
) -> None:
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        group.start_soon(callers.call, 1)
        group.start_soon(partial(callers.call, 2, **options))
        await settled()
        assert storage.came == [[number(0)], [number(2)]]  # at once, beside the other
        storage.shut.set()
    assert storage.came[2:] == [[number(1)]]


async def test_equal_dispatches_at_once_share_one_run_as_ever(queue: Queue, storage: Door) -> None:
    receipts: list[Receipt[object]] = []

    async def ask() -> None:
        receipts.append(await queue.dispatch("work", {"number": 1}, unique=True))

    async with create_task_group() as group:
        for _ in range(10):
            group.start_soon(ask)
    assert sum(receipt.inserted for receipt in receipts) == 1
    assert len({receipt.job_id for receipt in receipts}) == 1


async def test_callers_at_once_with_one_key_get_one_job_as_ever(queue: Queue, storage: Door) -> None:
    receipts: list[Receipt[object]] = []

    async def ask(place: int) -> None:
        receipts.append(await queue.dispatch("work", {"number": place}, idempotency_key="mine"))

    async with create_task_group() as group:
        for place in range(10):
            group.start_soon(ask, place)
    assert sum(receipt.inserted for receipt in receipts) == 1
    assert len({receipt.job_id for receipt in receipts}) == 1


async def test_a_dispatch_in_a_transaction_of_the_callers_is_never_put_together(
    callers: Callers, storage: Door
) -> None:
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        for place in range(3):
            group.start_soon(callers.call, place)
        await settled()
        await callers.call(3, connection=object())  # answered while the others wait
        assert storage.came[1:] == [[number(3)]]
        storage.shut.set()


async def test_dispatch_many_is_never_put_together(callers: Callers, storage: Door) -> None:
    @callers.queue.task("many")
    async def many(number: int) -> None: ...

    storage.shut = anyio.Event()
    async with create_task_group() as group:
        for place in range(3):
            group.start_soon(callers.call, place)
        await settled()
        group.start_soon(callers.queue.dispatch_many, [many.call(place) for place in range(10, 14)])
        await settled()
        assert storage.came[1:] == [[number(place) for place in range(10, 14)]]  # at once, beside the other
        storage.shut.set()


async def test_a_dispatch_from_another_thread_asks_the_storage_itself(callers: Callers, storage: Door) -> None:
    asked_by.set("here")

    async def elsewhere() -> None:
        asked_by.set("there")
        await callers.call(1)

    storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        door, storage.shut = storage.shut, None
        await anyio.to_thread.run_sync(anyio.run, elsewhere)
        assert storage.contexts == ["here", "there"]  # though the first is on its way still
        door.set()


async def test_a_forked_child_waits_for_nothing_that_its_parent_has_on_its_way(
    callers: Callers, storage: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        storage.shut = None
        with monkeypatch.context() as child:
            child.setattr("os.getpid", lambda: -1)
            await callers.call(1)
        assert callers.receipts.keys() == {1}
        door.set()


# --- errors -----------------------------------------------------------------------------------------


async def test_only_the_caller_whose_job_is_refused_gets_the_error(callers: Callers, storage: Door) -> None:
    storage.refuses = lambda payload: payload in {number(7), number(12)}
    async with create_task_group() as group:
        for place in range(20):
            group.start_soon(callers.call, place)
    assert {place: type(error) for place, error in callers.errors.items()} == {
        7: StatementRejected,
        12: StatementRejected,
    }
    assert callers.errors[7] is not callers.errors[12]
    assert await storage.written() == {number(place) for place in range(20)} - {number(7), number(12)}
    records = await storage.find([receipt.job_id for receipt in callers.receipts.values()])
    assert all(records[receipt.job_id].payload == number(place) for place, receipt in callers.receipts.items())


async def test_a_refusal_is_found_in_a_few_inserts(callers: Callers, storage: Door) -> None:
    storage.refuses = lambda payload: payload == number(100)
    async with create_task_group() as group:
        for place in range(MOST_JOBS):
            group.start_soon(callers.call, place)
    assert len(storage.came) <= 25  # by halves


async def test_an_outcome_that_nobody_knows_is_everybodys_and_for_each_an_error_of_its_own(
    callers: Callers, storage: Door
) -> None:
    storage.unavailable = True
    async with create_task_group() as group:
        for place in range(4):
            group.start_soon(callers.call, place)
    assert {type(error) for error in callers.errors.values()} == {StorageUnavailable}
    assert len({id(error) for error in callers.errors.values()}) == 4
    assert all(isinstance(error.__cause__, OSError) for error in callers.errors.values())
    storage.unavailable = False
    await callers.call(9)
    assert callers.receipts[9].inserted


# --- cancellation -----------------------------------------------------------------------------------


async def test_who_is_cancelled_before_its_job_was_sent_leaves_at_once_and_it_is_not_sent(
    callers: Callers, storage: Door
) -> None:
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        for place in (1, 2, 3):
            group.start_soon(callers.call, place)
        await settled()
        await callers.cancel(2)
        assert callers.scopes[2].cancelled_caught
        storage.shut.set()
    assert [sorted(payloads) for payloads in storage.came] == [[number(0)], [number(1), number(3)]]
    assert callers.receipts.keys() == {0, 1, 3}


async def test_if_all_are_cancelled_before_they_were_sent_nothing_is(callers: Callers, storage: Door) -> None:
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        group.start_soon(callers.call, 1)
        await settled()
        await callers.cancel(1)
        storage.shut.set()
    assert storage.came == [[number(0)]]
    await callers.call(2)
    assert storage.came[1:] == [[number(2)]]


@pytest.mark.parametrize("answers_wait", [False, True], ids=["before its effect", "after its effect"])
async def test_who_is_cancelled_while_its_job_is_on_its_way_leaves_at_once_and_the_others_get_their_answers(
    callers: Callers, storage: Door, answers_wait: bool
) -> None:
    first = storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        for place in (1, 2, 3):
            group.start_soon(callers.call, place)
        await settled()
        storage.shut, storage.answers_wait = anyio.Event(), answers_wait
        first.set()
        await settled()
        assert len(storage.came) == 2
        await callers.cancel(2)
        assert callers.scopes[2].cancelled_caught
        storage.shut.set()
    assert callers.receipts.keys() == {0, 1, 3}
    assert not callers.errors
    assert len(storage.came) == 2
    assert await storage.written() == {number(place) for place in range(4)}


async def test_who_was_first_and_is_cancelled_takes_only_its_own_job_along(callers: Callers, storage: Door) -> None:
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        for place in (1, 2, 3):
            group.start_soon(callers.call, place)
        await settled()
        storage.shut = None
        await callers.cancel(0)
    assert callers.scopes[0].cancelled_caught
    assert callers.receipts.keys() == {1, 2, 3}
    assert await storage.written() == {number(1), number(2), number(3)}


async def test_who_is_cancelled_is_not_sent_again_when_a_refusal_is_taken_apart(
    callers: Callers, storage: Door
) -> None:
    storage.refuses = lambda payload: payload == number(1)
    storage.shut = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        for place in (1, 2, 3):
            group.start_soon(callers.call, place)
        await settled()
        first, storage.shut = storage.shut, anyio.Event()
        first.set()
        await settled()
        assert len(storage.came) == 2
        await callers.cancel(3)
        storage.shut.set()
    assert await storage.written() == {number(0), number(2)}
    assert callers.errors.keys() == {1}


# --- whoever hangs, and the end ---------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", [virtual_time()], ids=["virtual time"])
async def test_an_insert_that_is_not_answered_holds_nobody_up(callers: Callers, storage: Door) -> None:
    storage.shut = anyio.Event()
    began = anyio.current_time()
    async with create_task_group() as group:
        group.start_soon(callers.call, 0)
        await settled()
        stuck, storage.shut = storage.shut, None
        for place in (1, 2):
            group.start_soon(callers.call, place)
        await until(lambda: len(callers.receipts) == 2)
        assert anyio.current_time() - began < 0.1
        await callers.call(3)
        assert not callers.scopes[0].cancel_called
        stuck.set()
    assert callers.receipts.keys() == {0, 1, 2, 3}


async def test_closing_waits_for_what_is_on_its_way(storage: Door) -> None:
    queue = Queue(storage)
    callers = Callers(queue)
    async with create_task_group() as group:
        async with queue:
            storage.shut = anyio.Event()
            for place in range(3):
                group.start_soon(callers.call, place)
            await settled()
            group.start_soon(_open, storage.shut)
        assert await storage.written() >= {number(1)}
    assert callers.receipts.keys() == {0, 1, 2}


async def _open(door: anyio.Event) -> None:
    await settled()
    door.set()


@pytest.mark.parametrize("anyio_backend", [virtual_time()], ids=["virtual time"])
async def test_closing_does_not_wait_for_ever_and_who_was_sent_hears_that_nobody_knows(storage: Door) -> None:
    queue = Queue(storage)
    callers = Callers(queue)
    stuck = storage.shut = anyio.Event()
    async with create_task_group() as group:
        async with queue:
            group.start_soon(callers.call, 0)
            await settled()
            group.start_soon(callers.call, 1)
            await anyio.sleep(1)  # it is sent meanwhile, for the first holds nobody up
            began = anyio.current_time()
        assert anyio.current_time() - began < 5
        await settled()
        assert isinstance(callers.errors[1], StorageUnavailable)
        stuck.set()
    assert callers.receipts.keys() == {0}


async def test_a_closing_that_is_cancelled_answers_all_who_wait(storage: Door) -> None:
    queue = Queue(storage)
    callers = Callers(queue)
    stuck = storage.shut = anyio.Event()
    async with create_task_group() as group:
        with CancelScope() as scope:
            async with queue:
                group.start_soon(callers.call, 0)
                await settled()
                group.start_soon(callers.call, 1)
                await settled()
                scope.cancel()
                await anyio.sleep_forever()
        await settled()
        assert isinstance(callers.errors[1], QueueNotOpen)  # it was not sent: nothing was written
        stuck.set()
    assert await storage.written() == {number(0)}
