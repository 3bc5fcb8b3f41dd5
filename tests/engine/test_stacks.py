"""What the stacks of tasks and threads show, on both event loops."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Self

import anyio
import anyio.to_thread
import pytest

from creche import Job, Queue, Worker
from creche._stacks import describe_tasks, describe_thread, handler_of

pytestmark = pytest.mark.anyio


async def wait_deep_down(event: anyio.Event) -> None:
    secret = "a customer's password"
    await event.wait()  # here it waits
    assert secret


async def wait(event: anyio.Event) -> None:
    await wait_deep_down(event)  # by way of this


class ByHand:
    def __init__(self, event: anyio.Event) -> None:
        self._event = event

    def __await__(self) -> Generator[Any, Any, None]:
        yield from wait_deep_down(self._event).__await__()


async def await_by_hand(event: anyio.Event) -> None:
    await ByHand(event)


async def numbers(event: anyio.Event) -> AsyncGenerator[int]:
    await wait_deep_down(event)
    yield 1


async def iterate(event: anyio.Event) -> None:
    async with aclosing(numbers(event)) as each:
        async for _ in each:
            pass


async def iterate_with_a_default(event: anyio.Event) -> None:
    async with aclosing(numbers(event)) as each:
        await anext(each, None)


@asynccontextmanager
async def block(event: anyio.Event) -> AsyncIterator[None]:
    await wait_deep_down(event)
    yield


async def enter(event: anyio.Event) -> None:
    async with block(event):
        pass


@pytest.mark.parametrize(
    "function", [wait, await_by_hand, iterate, iterate_with_a_default, enter], ids=lambda function: function.__name__
)
async def test_a_task_shows_all_that_it_awaits_down_to_the_innermost(
    function: Callable[[anyio.Event], Coroutine[Any, Any, None]],
) -> None:
    event = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(function, event, name="patient")
        await anyio.wait_all_tasks_blocked()
        text = describe_tasks()
        event.set()
    mine = text.partition("patient\n")[2]
    outer, inner = mine.index(f"in {function.__name__}\n"), mine.index("in wait_deep_down\n")
    assert outer < inner < mine.index("await event.wait()  # here it waits")
    assert re.search(r'File ".*test_stacks\.py", line \d+, in wait_deep_down', mine)
    assert "password" not in text


async def test_tasks_stand_below_those_that_started_them() -> None:
    event = anyio.Event()

    async def parent() -> None:
        async with anyio.create_task_group() as children:
            children.start_soon(wait, event, name="younger")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parent, name="elder")
        await anyio.wait_all_tasks_blocked()
        lines = describe_tasks().splitlines()
        event.set()
    (elder,) = [line for line in lines if line.endswith("elder")]
    (younger,) = [line for line in lines if line.endswith("younger")]
    assert lines.index(elder) < lines.index(younger)
    assert len(younger) - len(younger.lstrip()) > len(elder) - len(elder.lstrip())


async def test_the_task_that_asks_is_shown_where_it_asks() -> None:
    texts: list[str] = []

    async def ask_deep_down() -> None:
        texts.append(describe_tasks())  # it asks here

    async def ask() -> None:
        await ask_deep_down()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, name="curious")
    mine = texts[0].partition("curious, running now\n")[2]
    assert mine.index(".ask\n") < mine.index("texts.append(describe_tasks())  # it asks here")
    assert "in describe_tasks" not in texts[0]


async def test_a_task_that_is_cancelled_and_has_not_heard_of_it_is_marked() -> None:
    event = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, event, name="patient")
        await anyio.wait_all_tasks_blocked()
        before = describe_tasks()
        tasks.cancel_scope.cancel()
        after = describe_tasks()
    assert ("patient\n" in before, "patient, cancelled\n" in after) == (True, True)


def test_without_an_event_loop_it_says_so() -> None:
    assert describe_tasks().startswith("no tasks can be seen from here: ")


async def test_tasks_of_any_make_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        @property
        def cr_await(self) -> object:
            raise RuntimeError("not yours to see")

    odd = anyio.TaskInfo(1, 1, "its own parent", Odd())  # type: ignore[arg-type]
    lost = anyio.TaskInfo(2, 77, None, Odd())  # type: ignore[arg-type]
    monkeypatch.setattr(anyio, "get_running_tasks", lambda: [lost, odd])
    text = describe_tasks()
    assert text.startswith("2 tasks:\nNone\n  can't be looked into: RuntimeError: not yours to see\n")


async def test_a_workers_tasks_are_found_by_their_names(queue: Queue) -> None:
    begun, event = anyio.Event(), anyio.Event()

    @queue.task("patient")
    async def patient() -> None:
        begun.set()
        await wait(event)

    async with Worker(queue):
        receipt = await patient.dispatch()
        await begun.wait()
        text = describe_tasks()
        event.set()
        await receipt.wait(10)
    assert {"renewer", "settler", "reserver", f"job {receipt.job_id}"} <= {line.strip() for line in text.splitlines()}


# --- threads ----------------------------------------------------------------------------------------


def nap(event: threading.Event) -> None:
    event.wait(10)  # it naps here


class Look:
    """Looks at the thread of the event loop from another one, while a handler naps in it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.stack = ""
        self.found: tuple[Job, str] | None = None
        self._thread = threading.Thread(target=self._look, args=(threading.get_ident(),))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self._thread.join()

    def _look(self, ident: int) -> None:
        deadline = time.monotonic() + 10
        while "it naps here" not in self.stack and time.monotonic() < deadline:
            time.sleep(0.01)
            self.stack, self.found = describe_thread(ident), handler_of(ident)
        self.done.set()


async def test_the_handler_that_blocks_the_loop_is_named_with_its_line(queue: Queue) -> None:
    look = Look()

    @queue.task("blocking")
    async def blocking(number: int) -> int:
        nap(look.done)
        return number

    async with Worker(queue):
        with look:
            receipt = await blocking.dispatch(7)
            assert await receipt.wait(20) == 7
    assert look.found is not None
    job, place = look.found
    assert (job.id, job.type, job.attempt) == (receipt.job_id, "blocking", 1)
    assert re.fullmatch(r".*test_stacks\.py:\d+ in nap", place)
    first = look.stack.splitlines()[0]
    assert "in test_the_handler_that_blocks_the_loop_is_named_with_its_line.<locals>.blocking" in first
    assert "in Event.wait\n" in look.stack.partition("it naps here")[2]  # down into the library


async def test_a_plain_handler_that_blocks_the_loop_is_named_too(queue: Queue) -> None:
    look = Look()

    async def handle(job: Job) -> None:
        nap(look.done)

    async with Worker(queue, handler=handle):
        with look:
            receipt = await queue.dispatch("anything", {})
            await receipt.wait(20)
    assert look.found is not None
    assert (look.found[0].id, look.found[1].rpartition(" ")[2]) == (receipt.job_id, "nap")


async def test_what_is_no_handler_blocks_the_loop_without_a_name() -> None:
    look = Look()

    async def careless() -> None:
        nap(look.done)

    with look:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(careless)
    assert look.found is None
    assert look.stack.splitlines()[0].endswith(".<locals>.careless")


async def test_a_handler_in_a_thread_is_not_taken_for_one_that_blocks_the_loop(queue: Queue) -> None:
    done, seen = threading.Event(), list[object]()
    loop = threading.get_ident()

    @queue.task("threaded")
    def threaded() -> str:
        seen.append(handler_of(loop))
        done.set()
        return describe_thread(threading.get_ident())

    async with Worker(queue):
        stack = await (await threaded.dispatch()).wait(20)
    assert seen == [None]
    assert stack.splitlines()[0].endswith(".<locals>.threaded")


def test_a_thread_that_is_gone_is_told_from_others() -> None:
    thread = threading.Thread(target=partial(int, 1))
    thread.start()
    thread.join()
    assert thread.ident is not None
    assert describe_thread(thread.ident) == f"thread {thread.ident} is gone\n"
    assert handler_of(thread.ident) is None


async def test_a_loop_that_waits_is_shown_too() -> None:
    loop = threading.get_ident()
    text = await anyio.to_thread.run_sync(describe_thread, loop)
    assert text.count("File ") >= 1
