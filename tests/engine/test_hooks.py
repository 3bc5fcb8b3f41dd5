"""What hooks hear and what they can't break, on both event loops: every event, and every way to go wrong."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import anyio
import anyio.lowlevel
import attrs
import pytest

from creche import Job, OptionInvalid, Queue, Retention, Snooze, Status, Worker, current_job, events
from creche._events import Announcer, check_hooks
from creche._supervisor import FAREWELL
from creche.events import EVENTS, Hook, Hooks, JobEvent, WorkerEvent
from engine_kit import Faulty, until, virtual_time

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
ENDS = {"job.succeeded", "job.failed", "job.released", "job.cancelled"}
OUTCOMES = {
    "good": Status.COMPLETED,
    "bad": Status.FAILED,
    "snoozing": Status.SCHEDULED,
    "unwanted": Status.CANCELLED,
    "stolen": Status.FAILED,  # taken back by somebody else, after the only attempt
    "last": Status.COMPLETED,
}


class Unusual(BaseException):
    """What test frameworks and interpreters raise past `except Exception`."""


class Everything:
    """Keeps all it hears."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []

    def __call__(self, event: WorkerEvent) -> None:
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def of(self, job_id: UUID) -> list[str]:
        return [event.name for event in self.events if isinstance(event, JobEvent) and event.job_id == job_id]


async def everything_happens(queue: Queue, *hooks: Hook) -> Everything:
    """Run a worker in which all events come, and see that every job ends as it must; return what was told of it."""
    begun = defaultdict[str, anyio.Event](anyio.Event)
    heard = Everything()

    @queue.task("good")
    async def good() -> str:
        await current_job().progress(0.5, "half")
        await until(lambda: {"job.renewed", "job.progressed"} <= set(heard.names))
        return "done"

    @queue.task("bad", max_attempts=1)
    async def bad() -> None:
        raise ValueError("no good")

    @queue.task("snoozing")
    async def snoozing() -> None:
        raise Snooze(3_600)

    @queue.task("unwanted")
    async def unwanted(job: Job) -> None:
        begun[job.type].set()
        await anyio.sleep_forever()

    @queue.task("stolen", max_attempts=1)
    async def stolen(job: Job) -> None:
        begun[job.type].set()
        await anyio.sleep_forever()

    @queue.task("last")
    async def last() -> None: ...

    ids: dict[str, UUID] = {}
    with anyio.fail_after(40):
        async with Worker(queue, lease=1, poll_interval=0.1, hooks=[*hooks, heard]):
            for task in (good, bad, snoozing, unwanted):
                receipt = await task.dispatch()
                ids[task.type] = receipt.job_id
            await begun["unwanted"].wait()
            await queue.cancel(ids["unwanted"])
            await until(lambda: heard.names.count("job.acked") == 4, limit=20)
            ids["stolen"] = (await stolen.dispatch()).job_id
            await begun["stolen"].wait()
            later = datetime.now(UTC) + timedelta(minutes=1)
            await queue.storage.maintain(100, retention=Retention(), now=later)
            await until(lambda: "job.lease_lost" in heard.names)
            ids["last"] = (await last.dispatch()).job_id
            await until(lambda: "job.acked" in heard.of(ids["last"]) and "worker.idle" in heard.names)
        records = {name: await queue.look_up(job_id) for name, job_id in ids.items()}
    assert {name: record and record.status for name, record in records.items()} == OUTCOMES
    assert set(heard.names) == set(EVENTS) - {"storage.conflicted"}
    check_order(heard, ids)
    return heard


def check_order(heard: Everything, ids: dict[str, UUID]) -> None:
    """See that events come in the order that docs/events.md promises."""
    assert (heard.names[0], heard.names[-1]) == ("worker.started", "worker.stopped")
    told = {name: [each for each in heard.of(job_id) if each != "job.renewed"] for name, job_id in ids.items()}
    assert told["good"] == ["job.reserved", "job.started", "job.progressed", "job.succeeded", "job.acked"]
    assert told["bad"] == ["job.reserved", "job.started", "job.failed", "job.acked", "job.dead_lettered"]
    assert told["snoozing"] == ["job.reserved", "job.started", "job.released", "job.acked"]
    assert told["unwanted"] == ["job.reserved", "job.started", "job.cancelled", "job.acked"]
    assert told["stolen"] == ["job.reserved", "job.started", "job.lease_lost"]
    for job_id in ids.values():
        assert heard.of(job_id)[0] == "job.reserved"


# --- whatever a hook does ---------------------------------------------------------------------------


def raises(_: WorkerEvent) -> NoReturn:
    raise RuntimeError("a hook's own problem")


def raises_past_exception(_: WorkerEvent) -> NoReturn:
    raise Unusual("a hook's own problem")


def exits(_: WorkerEvent) -> NoReturn:
    raise SystemExit(1)


def stops_generating(_: WorkerEvent) -> NoReturn:
    raise GeneratorExit


async def raises_later(_: WorkerEvent) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    raise RuntimeError("a hook's own problem")


async def raises_past_exception_later(_: WorkerEvent) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    raise Unusual("a hook's own problem")


async def exits_later(_: WorkerEvent) -> NoReturn:
    await anyio.lowlevel.checkpoint()
    raise SystemExit(1)


async def raises_in_a_child(event: WorkerEvent) -> None:
    async with anyio.create_task_group() as children:
        children.start_soon(raises_later, event)


async def hangs(_: WorkerEvent) -> None:
    await anyio.sleep_forever()


async def hangs_in_a_child(_: WorkerEvent) -> None:
    async with anyio.create_task_group() as children:
        children.start_soon(anyio.sleep_forever)


def gives_nonsense_to_await(_: WorkerEvent) -> Awaitable[None]:
    class Nonsense:
        def __await__(self) -> NoReturn:
            raise RuntimeError("a hook's own problem")

    return Nonsense()


async def cancels_itself(_: WorkerEvent) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep_forever()


RAISING = [
    raises,
    raises_past_exception,
    exits,
    stops_generating,
    raises_later,
    raises_past_exception_later,
    exits_later,
    raises_in_a_child,
    gives_nonsense_to_await,
]
HANGING = [hangs, hangs_in_a_child]


def failures(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.ERROR and "hook " in record.message]


@pytest.mark.parametrize("hook", RAISING, ids=lambda hook: hook.__name__)
async def test_a_hook_that_raises_changes_nothing_and_is_logged_with_each_event(
    queue: Queue, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    heard = await everything_happens(queue, hook)
    logged = failures(caplog)
    name = hook.__name__  # type: ignore[union-attr]
    assert {record.message for record in logged} == {f"hook {name} failed on {event}" for event in set(heard.names)}
    assert all(record.exc_info for record in logged)
    for event in heard.events:
        if isinstance(event, events.JobSucceeded):
            assert any(vars(record).items() >= about(event).items() for record in logged)


def about(event: JobEvent) -> dict[str, object]:
    return {
        "job_id": str(event.job_id),
        "job_type": event.type,
        "queue_name": event.queue_name,
        "attempt": event.attempt,
        "worker": event.worker,
    }


@pytest.mark.parametrize("hook", HANGING, ids=lambda hook: hook.__name__)
async def test_a_hook_that_hangs_is_cancelled_and_changes_nothing(
    queue: Queue, hook: Hook, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("creche._events.HOOK_TIMEOUT", 0.2)
    heard = await everything_happens(queue, hook)
    name = hook.__name__  # type: ignore[union-attr]
    told = {f"hook {name} took too long over {event}" for event in set(heard.names)}
    assert {record.message for record in failures(caplog)} == told


async def test_a_hook_that_cancels_itself_changes_nothing(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    await everything_happens(queue, cancels_itself)
    assert failures(caplog) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_whose_task_is_cancelled_changes_nothing(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    async def is_cancelled(_: WorkerEvent) -> None:
        task = asyncio.current_task()
        assert task
        task.cancel()
        await anyio.sleep_forever()

    def raises_a_cancellation(_: WorkerEvent) -> NoReturn:
        raise asyncio.CancelledError

    heard = await everything_happens(queue, is_cancelled, raises_a_cancellation)
    assert len(failures(caplog)) == 2 * len(heard.events)


async def test_all_of_this_at_once_changes_nothing_on_a_database_either(
    sqlite_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("creche._events.HOOK_TIMEOUT", 0.5)
    async with Queue(sqlite_dsn) as queue:
        await everything_happens(queue, *RAISING, *HANGING, cancels_itself)


def test_a_keyboard_interrupt_is_not_the_hooks_to_keep() -> None:
    def interrupt(_: WorkerEvent) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Announcer([interrupt]).tell(events.WorkerIdle(worker="w"))


# --- at the end of the worker -----------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", [virtual_time()], ids=["virtual time"])
async def test_hooks_that_hang_hold_up_the_end_for_no_longer_than_their_bound(queue: Queue, storage: Faulty) -> None:
    ended: list[float] = []

    class Last(Hooks):
        async def worker_stopped(self, event: events.WorkerStopped) -> None:
            await anyio.sleep(0.5)  # one that has something to say after all that
            ended.append(anyio.current_time())

    @queue.task("work")
    async def work() -> None: ...

    async with Worker(queue, hooks=[hangs, Last()]) as worker:
        storage.hang.add("settle")
        await work.dispatch()
        await anyio.sleep(1)
        worker.stop()
        stopped = anyio.current_time()
    assert stopped + FAREWELL <= ended[0] <= anyio.current_time() <= stopped + FAREWELL + 1.5


# --- objects with methods ---------------------------------------------------------------------------


async def test_an_object_hears_what_it_has_methods_for() -> None:
    told: list[object] = []

    class Mixed(Hooks):
        def job_succeeded(self, event: events.JobSucceeded) -> None:
            told.append(event)

        async def job_acked(self, event: events.JobAcked) -> None:
            await anyio.lowlevel.checkpoint()
            told.append(event)

        def _helper(self) -> None: ...

    class Duck:
        count = 0

        def worker_started(self, event: events.WorkerStarted) -> None:
            told.append(event)

        def reset(self) -> None: ...

    duck: Any = Duck()
    async with Queue("memory://") as queue:

        @queue.task("work")
        async def work() -> None: ...

        async with Worker(queue, hooks=[Mixed(), duck]):
            await (await work.dispatch()).wait(10)
    assert [type(event) for event in told] == [events.WorkerStarted, events.JobSucceeded, events.JobAcked]


def object_with(method: str) -> object:
    return type("Listening", (), {method: lambda self, event: None})()


class Bystander:
    """Has no method for any event."""


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        (object_with("job_suceeded"), "did you mean 'job_succeeded'"),
        (object_with("on_job_failed"), "did you mean 'job_failed'"),
        (object_with("job_finished"), "they are worker_started, "),
        (object_with("worker_begun"), "no event is named like its method 'worker_begun'"),
        (Bystander(), "a callable that takes an event, or an object with methods such as"),
        (None, "a callable that takes an event"),
        (Hooks, "a class: give an object of it"),
        (Bystander, "a class: give a function or an object"),
        (lambda: None, "must take one argument"),
        (lambda event, more: None, "must take one argument"),
        (type("Odd", (), {"job_failed": lambda self: None})(), "must take one argument"),
    ],
)
async def test_what_can_not_be_a_hook_is_refused_when_the_worker_is_made(hook: Any, why: str) -> None:
    with pytest.raises(OptionInvalid, match=re.escape(why)):
        Worker(Queue("memory://"), hooks=[hook])


@pytest.mark.parametrize("hooks", [print, 5, None])
def test_hooks_are_a_sequence(hooks: Any) -> None:
    with pytest.raises(OptionInvalid, match="a sequence of hooks"):
        check_hooks(hooks)


def test_what_can_be_called_with_an_event_is_a_hook() -> None:
    def with_a_default(event: WorkerEvent, more: int = 1) -> None: ...

    good: Sequence[Callable[[Any], object]] = [print, list[object]().append, Everything(), with_a_default]
    assert check_hooks(good) == tuple(good)


# --- the log ----------------------------------------------------------------------------------------


async def test_lines_about_a_job_or_a_worker_say_which_in_fields(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="creche")
    heard = await everything_happens(queue)
    failed = next(event for event in heard.events if isinstance(event, events.JobFailed))
    lost = next(event for event in heard.events if isinstance(event, events.JobLeaseLost))
    for event in (failed, lost):
        (record,) = [record for record in caplog.records if record.message.startswith(f"job {event.job_id}")]
        assert about(event).items() <= vars(record).items()
    of_the_worker = [record for record in caplog.records if record.message.startswith("worker ")]
    assert len(of_the_worker) >= 2
    assert {vars(record).get("worker") for record in of_the_worker} == {heard.events[0].worker}


async def test_a_thread_that_goes_on_is_logged_with_its_job(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    begun, release = threading.Event(), threading.Event()

    @queue.task("stuck")
    def stuck() -> None:
        begun.set()
        release.wait(20)

    async with Worker(queue, lease=0.6, grace=0):
        receipt = await stuck.dispatch()
        await until(begun.is_set)
        await queue.cancel(receipt.job_id)
        await until(lambda: "goes on in its thread" in caplog.text)
        release.set()
    (record,) = [record for record in caplog.records if "goes on in its thread" in record.message]
    assert vars(record)["job_id"] == str(receipt.job_id)


# --- the page ---------------------------------------------------------------------------------------


def test_the_page_lists_every_event_with_its_fields() -> None:
    common = {field.name for field in attrs.fields(JobEvent)}
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(\w+)` \| ([^|]*)\|", PAGE, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", own))) for name, kind, own in rows}
    assert listed == {
        name: (kind.__name__, {field.name for field in attrs.fields(kind)} - common) for name, kind in EVENTS.items()
    }


def test_every_event_is_public_and_has_a_name_and_a_method() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, WorkerEvent)}
    assert kinds - {WorkerEvent, JobEvent} == set(EVENTS.values())
    assert {name for name in vars(Hooks) if not name.startswith("_")} == {name.replace(".", "_") for name in EVENTS}
    assert {kind.name: kind for kind in EVENTS.values()} == EVENTS


async def test_the_pages_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        exec(text, names)  # as its reader would
    said: list[str] = []

    def acked() -> bool:
        said.append(capsys.readouterr().out)
        return "job.acked" in "".join(said)

    queue: Queue = names["queue"]
    async with queue:

        @queue.task("bad", max_attempts=1)
        async def bad() -> NoReturn:
            raise ValueError("no good")

        async with names["worker"]:
            await bad.dispatch()
            await until(acked)
    text = "".join(said) + capsys.readouterr().out
    assert "for good: bad no good" in text
    assert "s of work, 1 failures" in text
