"""What can be a task, what its signature may hold, and how a dispatch's options meet the task's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest

from creche import (
    AsyncTask,
    Job,
    JSONSerializer,
    OptionInvalid,
    Queue,
    Retry,
    Snooze,
    Status,
    TaskInvalid,
    Tasks,
    TasksNotIncluded,
    TypeTaken,
    Worker,
)
from engine_kit import Faulty, until

pytestmark = pytest.mark.anyio


@attrs.define
class Hidden:
    _x: int = 0


@attrs.define
class Node:
    value: int
    children: list[Node] = attrs.field(factory=list)


@attrs.define
class Holder:
    inside: dict[str, list[Hidden]]


class OwnSerializer(JSONSerializer):
    """Not ours: it may do more than JSON."""


# --- what a signature may hold ----------------------------------------------------------------------


def hidden_argument(value: Hidden) -> None: ...
def hidden_deep_inside(value: Holder | None) -> None: ...
def hidden_result() -> list[Hidden]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("function", [hidden_argument, hidden_deep_inside, hidden_result])
async def test_attrs_classes_with_private_fields_are_refused_for_they_would_arrive_empty(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(TaskInvalid, match=r"Hidden'> has private fields \(_x\), which msgspec leaves out"):
        Tasks().task("bad")(function)


async def test_a_type_that_holds_itself_is_fine(queue: Queue) -> None:
    @queue.task("tree")
    async def tree(node: Node) -> int:
        return node.value + sum([await tree(child) for child in node.children])

    async with Worker(queue):
        assert await (await tree.dispatch(Node(1, [Node(2), Node(3, [Node(4)])]))).wait(10) == 10


def wrong_default(number: int, text: str = 5) -> None: ...  # type: ignore[assignment]
def default_that_json_has_not(limit: float = float("inf")) -> None: ...
def default_of_nothing(anything: Any = object()) -> None: ...  # noqa: B008 - it is what must be refused


@pytest.mark.parametrize(
    ("function", "name"),
    [(wrong_default, "text"), (default_that_json_has_not, "limit"), (default_of_nothing, "anything")],
)
async def test_a_default_that_does_not_fit_is_refused_at_once(function: Callable[..., Any], name: str) -> None:
    with pytest.raises(TaskInvalid, match=f"{name}: its default .* doesn't fit its annotation"):
        Tasks().task("bad")(function)


async def test_a_default_of_none_says_that_none_fits(queue: Queue) -> None:
    @queue.task("lenient")
    async def lenient(number: int = None, other: None = None) -> str:  # type: ignore[assignment]  # noqa: RUF013
        return repr((number, other))

    async with Worker(queue):
        assert await (await lenient.dispatch()).wait(10) == "(None, None)"
        assert await (await lenient.dispatch(3)).wait(10) == "(3, None)"


async def test_keys_that_are_numbers_go_through(queue: Queue) -> None:
    @queue.task("keyed")
    async def keyed(pages: dict[int, str]) -> dict[int, str]:
        return {number + 1: text for number, text in pages.items()}

    async with Worker(queue):
        assert await (await keyed.dispatch({1: "a", -2: "b"})).wait(10) == {2: "a", -1: "b"}
        assert await (await queue.dispatch("keyed", {"pages": {"7": "c"}})).wait(10) == {8: "c"}


def second(number: int, job: Job) -> None: ...
def only_by_name(*, job: Job) -> None: ...
def among_others(number: int, jobs: list[Job] | None = None) -> None: ...


@pytest.mark.parametrize("function", [second, only_by_name, among_others])
async def test_a_job_that_is_not_the_first_parameter_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TaskInvalid, match="put it first"):
        Tasks().task("bad")(function)


def no_python(value: int) -> None: ...
def no_such_attribute(value: int) -> None: ...


no_python.__annotations__["value"] = "int ]"
no_such_attribute.__annotations__["value"] = "timedelta.nonsense"


@pytest.mark.parametrize("function", [no_python, no_such_attribute])
async def test_an_annotation_that_raises_is_a_task_that_cannot_be(function: Callable[..., Any]) -> None:
    with pytest.raises(TaskInvalid, match="its signature can't be read"):
        Tasks().task("bad")(function)


async def test_a_result_that_could_never_be_read_is_refused() -> None:
    def bad() -> Node | Holder: ...  # type: ignore[empty-body]

    with pytest.raises(TaskInvalid, match="what it returns can't be read back"):
        Tasks().task("bad")(bad)


async def test_a_handler_that_never_returns_may_say_so(queue: Queue) -> None:
    @queue.task("never")
    async def never() -> NoReturn:
        raise ValueError

    assert "never" in queue.tasks.types


async def test_classes_without_a_form_in_json_are_refused_where_json_is_certain() -> None:
    def take(path: Path) -> None: ...
    def take_by_default(path: Path = Path()) -> None: ...
    def take_anything(value: object) -> None: ...

    for function in (take, take_by_default):
        with pytest.raises(TaskInvalid, match=r"path: .*has no form in JSON"):
            Queue("memory://").task("paths")(function)
        Queue("memory://", serializer=OwnSerializer()).task("paths")(function)
        Tasks().task("paths")(function)
    Queue("memory://").task("anything")(take_anything)


# --- what can be a task -----------------------------------------------------------------------------


async def test_a_task_cannot_be_registered_twice_by_stacking(queue: Queue) -> None:
    @queue.task("first")
    async def first() -> None: ...

    for function in (first, partial(first)):
        with pytest.raises(TaskInvalid, match="is a task already"):
            queue.task("second")(function)
    with pytest.raises(TaskInvalid):
        queue.task("second")(first.options(priority=1))  # type: ignore[call-overload]
    queue.task("second")(first.function)
    assert list(queue.tasks.types) == ["first", "second"]


async def test_a_generator_is_refused() -> None:
    def generate() -> Iterator[int]:
        yield 1

    async def generate_slowly() -> AsyncIterator[int]:
        yield 1

    for function in (generate, generate_slowly, partial(generate)):
        with pytest.raises(TaskInvalid, match="is a generator"):
            Tasks().task("bad")(function)


async def test_whatever_is_async_inside_runs_in_the_event_loop(queue: Queue) -> None:
    class Adder:
        def __init__(self, number: int) -> None:
            self.number = number

        async def __call__(self, number: int) -> int:
            return self.number + number

        @staticmethod
        async def double(number: int) -> int:
            return 2 * number

    async def add(one: int, number: int) -> int:
        return one + number

    functions: dict[str, Any] = {
        "partial": partial(add, 1),
        "object": Adder(1),
        "partial.object": partial(Adder(1)),
        "method": Adder(1).__call__,
        "static": Adder.__dict__["double"],
    }
    tasks = {name: queue.task(name)(function) for name, function in functions.items()}
    async with Worker(queue):
        for task in tasks.values():
            assert isinstance(task, AsyncTask)
            assert task.asynchronous
            assert await (await task.dispatch(number=1)).wait(10) == 2
            assert await task(number=1) == 2


# --- options ----------------------------------------------------------------------------------------


async def test_a_dispatch_can_switch_the_tasks_single_flight_off(queue: Queue) -> None:
    @queue.task("cached", result_ttl=60)
    async def cached() -> None: ...

    first = await cached.dispatch()
    assert (await cached.dispatch()).job_id == first.job_id
    alone = await cached.options(unique=False).dispatch()
    assert alone.job_id != first.job_id
    assert alone.fingerprint is None
    assert (await queue.dispatch("cached", unique=False)).fingerprint is None


@pytest.mark.parametrize("unique", ["no", 0, 1, []])
async def test_unique_is_yes_or_no(queue: Queue, unique: Any) -> None:
    with pytest.raises(OptionInvalid, match="True or False"):
        queue.task("work", unique=unique)


async def test_options_beside_a_call_come_before_its_own(queue: Queue) -> None:
    @queue.task("work", priority=1)
    async def work(number: int) -> None: ...

    call = work.options(queue="slow", delay=60, max_attempts=7).call(1)
    receipt = await queue.dispatch(call, priority=9, available_at=datetime.now(UTC) + timedelta(hours=1), queue="x")
    record = await queue.look_up(receipt.job_id)
    assert record
    assert (record.queue_name, record.priority, record.max_attempts) == ("x", 9, 7)
    assert record.status is Status.SCHEDULED
    assert call.options.priority == 1


async def test_a_call_takes_no_second_payload_and_only_calls_are_sent(queue: Queue) -> None:
    @queue.task("work")
    async def work(number: int) -> None: ...

    with pytest.raises(OptionInvalid, match="has its arguments already"):
        await queue.dispatch(work.call(1), {"number": 2})  # type: ignore[call-overload]
    with pytest.raises(OptionInvalid, match=r"task\.call\("):
        await queue.dispatch(work)  # type: ignore[call-overload]
    not_calls: list[Any] = [[work], [("work", {"number": 1})], work.call(1), work, ["work"], None]
    for calls in not_calls:
        with pytest.raises(OptionInvalid, match=r"task\.call\("):
            await queue.dispatch_many(calls)
    assert await queue.jobs() == []


# --- registries -------------------------------------------------------------------------------------


async def test_what_a_registry_gets_later_is_included_too(queue: Queue) -> None:
    inner, outer = Tasks(), Tasks()
    outer.include(inner)
    queue.include(outer)
    queue.include(outer)

    @inner.task("late")
    async def late(number: int) -> int:
        return number + 1

    async with Worker(queue):
        assert await (await late.dispatch(1)).wait(10) == 2
    assert list(queue.tasks.types) == ["late"]

    @queue.task("taken")
    async def taken() -> None: ...

    with pytest.raises(TypeTaken):
        inner.task("taken")(taken.function)
    assert list(inner.types) == ["late"]


async def test_a_registry_cannot_include_what_includes_it() -> None:
    inner, outer = Tasks(), Tasks()
    outer.include(inner)
    for one, other in ((inner, outer), (inner, inner)):
        with pytest.raises(OptionInvalid, match="includes this registry itself"):
            one.include(other)


async def test_tasks_go_through_the_queue_that_included_them_last(queue: Queue) -> None:
    tasks = Tasks()

    @tasks.task("work")
    async def work() -> None: ...

    with pytest.raises(TasksNotIncluded):
        work.call()
    Queue("memory://").include(tasks)
    queue.include(tasks)
    await work.dispatch()
    assert len(await queue.jobs()) == 1


# --- moments and durations --------------------------------------------------------------------------

TOO_LATE = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
TOO_EARLY = datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))
BEYOND = datetime(9001, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("moment", [TOO_LATE, TOO_EARLY, BEYOND], ids=["late", "early", "beyond"])
async def test_a_moment_that_some_engine_cannot_store_is_refused(queue: Queue, moment: datetime) -> None:
    queue.foreign("work")
    with pytest.raises(OptionInvalid, match="between the years"):
        await queue.dispatch("work", available_at=moment)
    with pytest.raises(OptionInvalid, match="between the years"):
        Snooze(until=moment)


async def test_signals_take_timedeltas_and_keep_moments_in_utc() -> None:
    assert Retry(delay=timedelta(minutes=1)).delay == 60
    assert Snooze(timedelta(minutes=1)).delay == 60
    until = Snooze(until=datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))).until
    assert until == datetime(2030, 1, 1, 10, tzinfo=UTC)
    assert until.tzinfo is UTC
    nonsense: list[Any] = [timedelta(seconds=-1), "1", True, float("inf")]
    for delay in nonsense:
        with pytest.raises(OptionInvalid):
            Retry(delay=delay)
        with pytest.raises(OptionInvalid):
            Snooze(delay)
    with pytest.raises(OptionInvalid):
        Snooze(until="tomorrow")  # type: ignore[arg-type]


async def test_a_back_off_may_answer_with_a_timedelta(queue: Queue, storage: Faulty) -> None:
    class Minutely:
        def delay(self, attempt: int) -> timedelta:
            return timedelta(minutes=attempt)

    @queue.task("bad", backoff=Minutely())
    async def bad() -> None:
        raise ValueError

    async with Worker(queue):
        await bad.dispatch()
        await until(lambda: bool(storage.settled))
    assert storage.settled[0].delay == 60


async def test_a_default_and_the_same_value_given_are_one_piece_of_work(queue: Queue) -> None:
    @queue.task("sum", unique=True)
    async def add(a: float = 1, c: tuple[int, ...] = ()) -> None: ...

    receipts = [await add.dispatch(), await add.dispatch(1), await add.dispatch(a=1.0, c=())]
    assert len({receipt.job_id for receipt in receipts}) == 1
