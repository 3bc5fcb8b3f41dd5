"""Callbacks as an application sees them: asked for at a dispatch, run as jobs of their own."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

from creche import (
    Callback,
    Callbacks,
    Discard,
    Job,
    JobFailed,
    OptionInvalid,
    PayloadInvalid,
    Queue,
    Status,
    TaskInvalid,
    Tasks,
    UnknownType,
    Worker,
)
from creche._job import Event
from engine_kit import Faulty, until

pytestmark = pytest.mark.anyio


async def completed(queue: Queue, type: str) -> list[Any]:
    """Return the payloads of the completed jobs of a type, oldest first."""
    rows = await queue.jobs(types=[type], statuses=[Status.COMPLETED])
    return [queue.serializer.decode(row.payload, Any) for row in reversed(rows)]


async def test_a_callback_gets_the_result_and_knows_whom_it_follows(queue: Queue) -> None:
    told: list[object] = []

    @queue.task("report")
    async def report(year: int) -> dict[str, int]:
        return {"year": year}

    @queue.callback("notify")
    async def notify(job: Job, result: dict[str, int]) -> None:
        assert job.origin is not None
        told.append((job.origin.job_id, job.origin.type, job.origin.status, job.origin.error, result, job.type))

    async with Worker(queue):
        receipt = await report.options(callbacks=[notify]).dispatch(2024)
        assert await receipt.wait(10) == {"year": 2024}
        await until(lambda: bool(told))
    assert told == [(receipt.job_id, "report", Status.COMPLETED, None, {"year": 2024}, "notify")]


async def test_a_callback_that_raises_touches_neither_the_job_nor_another_callback(queue: Queue) -> None:
    told: list[str] = []

    @queue.task("work")
    async def work() -> str:
        return "done"

    @queue.callback("breaks", max_attempts=1)
    async def breaks(result: str) -> None:
        raise ValueError(result)

    @queue.callback("tells")
    async def tells(result: str) -> None:
        told.append(result)

    async with Worker(queue):
        receipt = await work.options(callbacks=[breaks, tells]).dispatch()
        assert await receipt.wait(10) == "done"
        await until(lambda: bool(told))

        async def dead() -> bool:
            return bool(await queue.jobs(types=["breaks"], statuses=[Status.FAILED]))

        while not await dead():  # noqa: ASYNC110 - another job's end, in the storage
            await anyio.sleep(0.01)
    assert told == ["done"]
    assert await receipt.wait(0) == "done"
    letters = await queue.storage.dead_letters(10)
    assert [letter.type for letter in letters] == ["breaks"]


async def test_each_callback_has_the_end_it_asked_for(queue: Queue) -> None:
    told: list[tuple[str, object, str | None]] = []

    @queue.task("work", max_attempts=1)
    async def work(fail: bool) -> str:
        if fail:
            raise ValueError("no paper")
        return "done"

    def teller(name: str) -> Any:
        async def tell(job: Job, result: str | None) -> None:
            assert job.origin is not None
            error = job.origin.error
            told.append((name, result, None if error is None else error.message))

        return tell

    good = queue.callback("good")(teller("good"))
    bad = queue.callback("bad", on="failure")(teller("bad"))
    both = queue.callback("both", on="always")(teller("both"))
    plain = queue.task("plain")(teller("plain"))
    callbacks = [good, bad, both, Callback(plain, on="failure")]
    async with Worker(queue):
        await (await work.options(callbacks=callbacks).dispatch(fail=False)).wait(10)
        await until(lambda: len(told) == 2)
        with pytest.raises(JobFailed):
            await (await work.options(callbacks=callbacks).dispatch(fail=True)).wait(10)
        await until(lambda: len(told) == 5)
    assert sorted(told[:2]) == [("both", "done", None), ("good", "done", None)]
    assert sorted(told[2:]) == [(name, None, "no paper") for name in ("bad", "both", "plain")]


async def test_every_dispatcher_that_joins_has_its_callbacks_run_and_so_has_one_that_is_answered_at_once(
    queue: Queue,
) -> None:
    told: list[int] = []
    runs = 0

    @queue.task("report", result_ttl=3600)
    async def report() -> str:
        nonlocal runs
        runs += 1
        return "the report"

    @queue.callback("notify")
    async def notify(result: str, asker: int) -> None:
        assert result == "the report"
        told.append(asker)

    async def ask(asker: int) -> None:
        callback = Callback(notify, arguments={"asker": asker})
        receipt = await report.options(callbacks=[callback]).dispatch()
        assert await receipt.wait(10) == "the report"

    async with anyio.create_task_group() as askers:
        for asker in range(50):
            askers.start_soon(ask, asker)
        async with Worker(queue):
            await until(lambda: len(told) == 50)
            await ask(50)  # from the cache
            await until(lambda: len(told) == 51)
    assert sorted(told) == list(range(51))
    assert runs == 1


async def test_a_chain_goes_on_with_the_result_of_the_link_before(queue: Queue) -> None:
    told: list[str] = []

    @queue.task("first")
    async def first() -> str:
        return "a"

    @queue.task("second")
    async def second(text: str, more: str = "b") -> str:
        return text + more

    @queue.callback("third")
    async def third(text: str) -> None:
        told.append(text)

    async with Worker(queue):
        await first.options(callbacks=[[second, Callback(second, arguments={"more": "c"}), third]]).dispatch()
        await until(lambda: bool(told))
    assert told == ["abc"]


async def test_a_chain_ends_where_a_link_fails(queue: Queue) -> None:
    @queue.task("first")
    async def first() -> None: ...

    @queue.task("second")
    async def second() -> None:
        raise Discard("not today")

    @queue.task("third")
    async def third() -> None: ...

    @queue.callback("told", on="failure")
    async def told(result: None) -> None: ...

    async with Worker(queue):
        await first.options(callbacks=[[second, third], [second, told]]).dispatch()
        while not await completed(queue, "told"):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert await queue.jobs(types=["third"]) == []


async def test_a_call_a_task_with_options_and_a_name_can_be_callbacks(queue: Queue) -> None:
    @queue.task("work")
    async def work() -> str:
        return "17"

    @queue.task("mail", priority=3)
    async def mail(to: str, text: str = "done") -> None: ...

    queue.foreign("elsewhere")
    callbacks: Callbacks = [mail.call("a@b.c"), mail.options(priority=7), "elsewhere", "mail"]
    async with Worker(queue):
        receipt = await work.options(callbacks=callbacks).dispatch()
        await receipt.wait(10)
    rows = {row.id: row for row in await queue.jobs() if row.id != receipt.job_id}
    found = [(row.type, row.priority, queue.serializer.decode(row.payload, Any)) for row in rows.values()]
    assert [each for each in found if each[0] == "elsewhere"] == [("elsewhere", 0, {"result": "17"})]
    assert ("mail", 3, {"to": "a@b.c", "text": "done"}) in found
    assert ("mail", 7, {"to": "17"}) in found
    assert ("mail", 3, {"to": "17"}) in found
    assert all(row.origin is not None and row.origin.job_id == receipt.job_id for row in rows.values())


async def test_callbacks_of_other_modules_tasks_go_through_the_queue_that_includes_them(queue: Queue) -> None:
    tasks = Tasks()
    told: list[int] = []

    @tasks.callback("notify")
    def notify(result: int) -> None:
        told.append(result)

    @tasks.task("work")
    async def work() -> int:
        return 1

    queue.include(tasks)
    async with Worker(queue):
        await work.options(callbacks=[notify]).dispatch()
        await until(lambda: bool(told))
    assert told == [1]


async def test_a_cancelled_job_calls_back_whoever_always_wants_to_know(queue: Queue) -> None:
    told: list[Status] = []

    @queue.task("work")
    async def work() -> None: ...

    @queue.callback("always", on="always")
    async def always(job: Job, result: None) -> None:
        assert job.origin is not None
        told.append(job.origin.status)

    @queue.callback("failure", on="failure")
    async def failure(result: None) -> None:
        raise AssertionError

    receipt = await work.options(delay=60, callbacks=[always, failure]).dispatch()
    await queue.cancel(receipt.job_id)
    async with Worker(queue):
        await until(lambda: bool(told))
    assert told == [Status.CANCELLED]


async def test_a_job_that_is_no_callback_follows_nobody(queue: Queue) -> None:
    @queue.task("work")
    async def work(job: Job) -> bool:
        return job.origin is None

    async with Worker(queue):
        assert await (await work.dispatch()).wait(10)


# --- refused before anything is written ---------------------------------------------------------------


async def test_what_cannot_be_a_callback_is_refused_before_anything_is_written(queue: Queue, storage: Faulty) -> None:
    @queue.task("work")
    async def work() -> int:
        return 1

    @queue.task("two")
    async def two(first: int, second: int) -> None: ...

    @queue.task("strict")
    async def strict(result: int) -> None: ...

    wrong: list[tuple[Any, type[Exception], str]] = [
        ("notify", OptionInvalid, "a sequence of callbacks"),
        ([17], OptionInvalid, "a sequence of callbacks"),
        ([[]], OptionInvalid, "1 to 8 links"),
        ([[strict] * 9], OptionInvalid, "1 to 8 links"),
        ([strict] * 101, OptionInvalid, "at most 100"),
        (["unheard.of"], UnknownType, "unheard.of"),
        ([two], PayloadInvalid, "second"),
        ([Callback(strict, arguments={"nothing": 1})], PayloadInvalid, "no such parameter"),
        ([Callback(two, arguments={"second": "x"})], PayloadInvalid, "second"),
        ([Callback(strict, on="failure")], PayloadInvalid, "must take None"),
        ([strict.options(delay=5)], OptionInvalid, "runs at once"),
        ([strict.options(idempotency_key="k")], OptionInvalid, "runs at once"),
        ([strict.options(callbacks=[strict])], OptionInvalid, "runs at once"),
        ([Callback(strict.call(1), arguments={"result": 1})], OptionInvalid, "has its arguments already"),
    ]
    for callbacks, error, words in wrong:
        with pytest.raises(error, match=words):
            await work.options(callbacks=callbacks).dispatch()
    with pytest.raises(OptionInvalid, match="one of success"):
        Callback(strict, on="sometimes")  # type: ignore[arg-type]
    assert await queue.jobs() == []


async def test_a_function_that_could_never_be_called_back_is_refused_at_once(queue: Queue) -> None:
    with pytest.raises(TaskInvalid, match="must take None"):

        @queue.callback("strict", on="failure")
        async def strict(result: int) -> None: ...

    with pytest.raises(OptionInvalid, match="one of success"):
        queue.callback("never", on="never")  # type: ignore[arg-type]


# --- refresh, and the limit of results ----------------------------------------------------------------


async def test_refresh_runs_anew_and_is_still_one_run_for_all_who_ask(queue: Queue) -> None:
    runs = 0

    @queue.task("report", result_ttl=3600)
    async def report() -> int:
        nonlocal runs
        runs += 1
        await anyio.sleep(0.05)
        return runs

    async with Worker(queue):
        assert await (await report.dispatch()).wait(10) == 1
        again = await report.dispatch()
        assert (again.status, again.result) == (Status.COMPLETED, 1)
        receipts = [await report.options(refresh=True).dispatch() for _ in range(5)]
        assert [await each.wait(10) for each in receipts] == [2] * 5
        assert [each.inserted for each in receipts] == [True, False, False, False, False]
        assert (await report.dispatch()).result == 2
    with pytest.raises(OptionInvalid, match="result_ttl"):
        await queue.dispatch(report.call(), unique=False, refresh=True)


async def test_a_result_above_the_queues_limit_is_a_failed_attempt_that_says_so(storage: Faulty) -> None:
    queue = Queue(storage, result_limit=100)

    @queue.task("big", max_attempts=1)
    async def big() -> str:
        return "x" * 100

    @queue.task("fits")
    async def fits() -> str:
        return "x" * 98

    async with queue, Worker(queue):
        with pytest.raises(JobFailed, match="102 bytes, at most 100"):
            await (await big.dispatch()).wait(10)
        assert len(await (await fits.dispatch()).wait(10)) == 98
    with pytest.raises(OptionInvalid, match="result_limit"):
        Queue(storage, result_limit=0)


class Wrapping:
    """A serializer that puts everything into a wrapping: there is no place for a result among arguments."""

    def encode(self, value: object) -> bytes:
        return msgspec.json.encode({"v": 1, "data": value})

    def decode(self, data: bytes, type: Any) -> Any:
        return msgspec.convert(msgspec.json.decode(data)["data"], type)


class Pretty:
    """A serializer that spreads out what it writes, and ends it as a text file ends."""

    def encode(self, value: object) -> bytes:
        return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"

    def decode(self, data: bytes, type: Any) -> Any:
        return msgspec.json.decode(data, type=type)


async def test_a_serializer_that_leaves_no_place_for_a_result_is_told_so_before_anything_is_written() -> None:
    storage = Faulty()
    async with Queue(storage, serializer=Wrapping()) as queue:

        @queue.task("work")
        async def work() -> int:
            return 3

        @queue.callback("notify")
        async def notify(result: int, times: int = 1) -> None: ...

        for callback in (notify, Callback(notify, arguments={"times": 2})):
            with pytest.raises(PayloadInvalid, match="no place"):
                await work.options(callbacks=[callback]).dispatch()
        assert not await queue.jobs()
        await work.options(callbacks=[Callback(notify, arguments={"result": 3, "times": 2})]).dispatch()
        async with Worker(queue):
            await until(lambda: len(storage.settled) == 2)
        assert {each.event for each in storage.settled} == {Event.SUCCEED}


async def test_a_serializer_may_write_json_as_it_likes() -> None:
    told: list[tuple[int, int]] = []
    async with Queue(Faulty(), serializer=Pretty()) as queue:

        @queue.task("work")
        async def work() -> int:
            return 3

        @queue.callback("notify")
        async def notify(result: int, times: int = 1) -> None:
            told.append((result, times))

        async with Worker(queue):
            await work.options(callbacks=[notify, Callback(notify, arguments={"times": 2})]).dispatch()
            await until(lambda: len(told) == 2)
    assert sorted(told) == [(3, 1), (3, 2)]


@pytest.mark.parametrize("arguments", ["url", [("url", "x")], {1: 2}, None])
async def test_arguments_that_are_none_are_refused_where_they_are_given(arguments: Any) -> None:
    with pytest.raises(OptionInvalid, match="arguments"):
        Callback("notify", arguments=arguments)
