"""Every refusal happens before anything is written, names what was wrong and what to do, and has a type."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import anyio
import pytest

from creche import (
    ExponentialBackoff,
    JobNotFound,
    MissingExtra,
    OptionInvalid,
    PayloadInvalid,
    Queue,
    QueueNotOpen,
    ResultInvalid,
    Retry,
    Snooze,
    TaskInvalid,
    Tasks,
    TasksNotIncluded,
    TypeTaken,
    UnknownDSN,
    WaitTimeout,
    Worker,
)
from creche.errors import ConfigurationError
from creche.storage import mask, open_storage
from creche.storage.memory import MemoryStorage

pytestmark = pytest.mark.anyio

CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("payload", "path", "reason"),
    [
        ({"value": float("nan")}, "$.value", "nan has no form in JSON"),
        ({"value": [1, float("-inf")]}, "$.value[1]", "-inf has no form in JSON"),
        ({"value": {"a": {"b": "x\0"}}}, "$.value.a.b", "a NUL character"),
        ({"value": "\ud83d"}, "$.value", "a lone surrogate"),
        ({"value": {"\udc00": 1}}, r"$.value.'\udc00' (the key)", "a lone surrogate"),
        ({"value": 1 << 64}, "$.value", "an integer beyond 64 bits"),
        ({"value": -(1 << 63) - 1}, "$.value", "an integer beyond 64 bits"),
        ({"value": CYCLE}, "$", "contains itself"),
        ({"value": object()}, "$", "object"),
        ({"value": "x" * (1 << 20)}, "$", "bytes, at most 1,048,576"),
        ({}, "$", "missing required field `value`"),
        ({"value": 1, "other": 2}, "$", "unknown field `other`"),
        ([1], "$", "Expected `object`, got `array`"),
        ("text", "$", "Expected `object`, got `str`"),
    ],
)
async def test_a_payload_that_fits_not_or_that_some_engine_could_not_store(
    queue: Queue, payload: object, path: str, reason: str
) -> None:
    @queue.task("any")
    async def take(value: Any) -> None: ...

    with pytest.raises(PayloadInvalid) as caught:
        await queue.dispatch("any", payload)
    assert (caught.value.path, caught.value.type) == (path, "any")
    assert reason in str(caught.value)
    assert path in str(caught.value)
    assert await queue.jobs() == []


async def test_a_deep_payload_names_the_limit(queue: Queue) -> None:
    deep: list[Any] = []
    for _ in range(101):
        deep = [deep]
    queue.foreign("any")
    with pytest.raises(PayloadInvalid, match="more than 100 levels"):
        await queue.dispatch("any", deep)
    assert await queue.jobs() == []


@pytest.mark.parametrize(
    ("arguments", "named", "reason"),
    [
        (("x",), {}, "Expected `int`, got `str`"),
        ((), {}, "missing a required argument: 'number'"),
        ((1, [], 3), {}, "too many positional arguments"),
        ((1,), {"color": "red"}, "got an unexpected keyword argument 'color'"),
        ((1,), {"tags": ["a", 2]}, "Expected `str`, got `int`"),
        ((1,), {"tags": "ab"}, "Expected `array`, got `str`"),
        ((True,), {}, "Expected `int`, got `bool`"),
    ],
)
async def test_arguments_are_checked_against_the_signature(
    queue: Queue, arguments: tuple[Any, ...], named: dict[str, Any], reason: str
) -> None:
    @queue.task("typed")
    async def typed(number: int, tags: list[str] = []) -> None:  # noqa: B006 - a default is never shared
        ...

    with pytest.raises(PayloadInvalid) as caught:
        await typed.dispatch(*arguments, **named)
    assert reason in str(caught.value)
    assert await queue.jobs() == []


@pytest.mark.parametrize(
    "options",
    [
        {"queue": ""},
        {"queue": "x" * 129},
        {"queue": "é" * 65},
        {"queue": "new\nline"},
        {"queue": "nul\0"},
        {"queue": "\ud800"},
        {"queue": 7},
        {"priority": 101},
        {"priority": -101},
        {"priority": 1.5},
        {"priority": True},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": "1"},
        {"delay": timedelta(seconds=-1)},
        {"delay": 1, "available_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"available_at": datetime(2030, 1, 1)},  # noqa: DTZ001 - it is what must be refused
        {"available_at": "tomorrow"},
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 40_000},
        {"idempotency_key": ""},
        {"idempotency_key": "x" * 256},
        {"result_ttl": -1},
        {"result_ttl": 10, "unique": False},
    ],
    ids=repr,
)
async def test_an_option_that_makes_no_sense(queue: Queue, options: dict[str, Any]) -> None:
    @queue.task("work")
    async def work() -> None: ...

    with pytest.raises(OptionInvalid) as caught:
        await work.options(**options).dispatch()
    assert caught.value.option in options
    assert caught.value.rule in str(caught.value)
    with pytest.raises(OptionInvalid):
        await queue.dispatch("work", **options)
    assert await queue.jobs() == []


@pytest.mark.parametrize("type", ["", "x" * 129, "bad\x07", "\ud800", 3])
async def test_a_job_type_that_makes_no_sense(queue: Queue, type: Any) -> None:
    with pytest.raises(OptionInvalid):
        queue.task(type)
    with pytest.raises(OptionInvalid):
        await queue.dispatch(type, {})
    assert await queue.jobs() == []


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"lease": 0},
        {"lease": -1},
        {"grace": -1},
        {"poll_interval": 0},
        {"queues": []},
        {"queues": "default"},
        {"queues": [""]},
    ],
    ids=repr,
)
def test_a_worker_setting_that_makes_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionInvalid):
        Worker(Queue("memory://"), **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialBackoff(base=-1),
        lambda: ExponentialBackoff(multiplier=0.5),
        lambda: ExponentialBackoff(cap=float("inf")),
        lambda: ExponentialBackoff(jitter=2),
        lambda: Retry(delay=-1),
        Snooze,
        lambda: Snooze(1, until=datetime.now(UTC)),
        lambda: Snooze(float("nan")),
        lambda: Snooze(until=datetime(2030, 1, 1)),  # noqa: DTZ001 - it is what must be refused
    ],
)
def test_a_strategy_or_a_signal_that_makes_no_sense(make: Callable[[], object]) -> None:
    with pytest.raises(OptionInvalid):
        make()


def test_a_function_that_cannot_be_a_task() -> None:
    tasks = Tasks()

    def stars(*numbers: int) -> None: ...
    def double_stars(**numbers: int) -> None: ...
    def unknown(value: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    for function in (stars, double_stars, unknown):
        with pytest.raises(TaskInvalid):
            tasks.task("bad")(function)
    with pytest.raises(TaskInvalid):
        tasks.task("bad")(7)  # type: ignore[call-overload]
    assert len(tasks) == 0


def test_a_workers_one_handler_is_async() -> None:
    def handle(job: object) -> None: ...

    with pytest.raises(TaskInvalid, match="async def handle"):
        Worker(Queue("memory://"), handler=handle)  # type: ignore[arg-type]


def test_one_type_has_one_task() -> None:
    tasks, queue = Tasks(), Queue("memory://")

    @tasks.task("twice")
    async def first() -> None: ...

    @queue.task("twice")
    async def second() -> None: ...

    with pytest.raises(TypeTaken, match="twice"):
        tasks.task("twice")(second.function)
    with pytest.raises(TypeTaken):
        queue.include(tasks)


async def test_a_queue_that_is_not_open_says_so() -> None:
    queue = Queue("memory://")

    @queue.task("work")
    async def work() -> None: ...

    for use in (work.dispatch, queue.stats, queue.jobs, lambda: queue.cancel(uuid4()), lambda: queue.receipt(uuid4())):
        with pytest.raises(QueueNotOpen, match="async with queue"):
            await use()
    async with queue:
        with pytest.raises(OptionInvalid, match="open already"):
            await queue.__aenter__()


async def test_tasks_that_belong_to_no_queue_say_so() -> None:
    tasks = Tasks()

    @tasks.task("work")
    async def work() -> None: ...

    with pytest.raises(TasksNotIncluded, match=r"queue\.include\(tasks\)"):
        await work.dispatch()


@pytest.mark.parametrize("name", ["", "\udcff", "a\nb", "x" * 300])
async def test_a_filter_by_a_name_that_nothing_can_have_is_refused(queue: Queue, name: str) -> None:
    with pytest.raises(OptionInvalid, match="queues="):
        await queue.jobs(queues=[name])
    with pytest.raises(OptionInvalid, match="types="):
        await queue.jobs(types=["work", name])


@pytest.mark.parametrize("limit", [-1, 1.5, "10", True, 1 << 40])
async def test_a_page_of_a_size_that_makes_no_sense_is_refused(queue: Queue, limit: object) -> None:
    for page in (queue.jobs, queue.dead_letters):
        with pytest.raises(OptionInvalid, match="limit="):
            await page(limit=limit)  # type: ignore[arg-type]
        assert await page(limit=0) == []


async def test_a_job_that_is_not_there(queue: Queue) -> None:
    job_id = uuid4()
    for use in (queue.receipt, queue.cancel, queue.retry):
        with pytest.raises(JobNotFound, match=str(job_id)):
            await use(job_id)
        with pytest.raises(OptionInvalid, match="a UUID"):
            await use("not an id")


async def test_a_wait_that_times_out_leaves_the_job_alone(queue: Queue) -> None:
    @queue.task("never")
    async def never() -> None: ...

    receipt = await never.dispatch()
    with pytest.raises(WaitTimeout) as caught:
        await receipt.wait(0.01)
    assert isinstance(caught.value, TimeoutError)
    assert (await receipt.refresh()).status == "pending"
    with anyio.move_on_after(0.01) as scope:
        await receipt.wait()
    assert scope.cancelled_caught
    with pytest.raises(OptionInvalid):
        await receipt.wait(-1)


@pytest.mark.parametrize(
    ("dsn", "error"),
    [
        ("mongodb://host/database", UnknownDSN),
        ("jobs.db", UnknownDSN),
        ("", UnknownDSN),
        ("sqlite://jobs.db", OptionInvalid),
        ("sqlite://", OptionInvalid),
        ("sqlite:///", OptionInvalid),
        ("sqlite://[x", OptionInvalid),
        ("sqlite:///jobs.db\0", OptionInvalid),
        ("sqlite:///\ud800", OptionInvalid),
        ("mysql://host/\udcff", ConfigurationError),
    ],
)
def test_a_dsn_that_names_nothing(dsn: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_storage(dsn)


@pytest.mark.parametrize("dsn", ["sqlite:///jobs.db?mode=ro", "sqlite:///job?s.db", "sqlite:///jobs#2.db"])
def test_a_sqlite_dsn_never_means_another_file_than_it_names(dsn: str) -> None:
    with pytest.raises(OptionInvalid, match=r"write \? as %3F and # as %23"):
        open_storage(dsn)


def test_a_sqlite_file_may_have_any_name(tmp_path: Path) -> None:
    for name in (b"a b.db", b"?.db", b"#2.db", b"%41.db", b"[x.db", b"\xff.db", b"line\n.db"):
        storage = open_storage(f"sqlite:///{quote(bytes(tmp_path))}/{quote(name)}")
        assert repr(storage) == f"<SQLiteStorage {tmp_path}/{os.fsdecode(name)}>"


def test_a_dsn_that_is_refused_is_not_quoted_with_its_password() -> None:
    with pytest.raises(OptionInvalid) as caught:
        open_storage("sqlite://user:canary@host/jobs.db")
    assert "canary" not in str(caught.value) + repr(vars(caught.value))


def test_a_missing_driver_names_the_pip_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith(("creche.storage._psycopg", "creche.storage.post"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "creche.storage._postgresql_calls", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'creche\[postgres\]'"):
        open_storage("postgresql://localhost/test")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://user:canary@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:c%40nary@host:1/db", "postgresql://user:***@host:1/db"),
        ("postgresql://host/db?password=canary&x=1", "postgresql://host/db?password=***&x=1"),
        ("host=a password=canary dbname=b", "host=a password=*** dbname=b"),
        ("host=a password = 'can ary' dbname=b", "host=a password = *** dbname=b"),
        ("postgresql://user@host/db?passwd=canary", "postgresql://user@host/db?passwd=***"),
        ("postgresql://user:ca@na/ry@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://user:my canary@host/db", "postgresql://user:***@host/db"),
        ("postgresql://host/db?password=a;canary&x=1", "postgresql://host/db?password=***&x=1"),
        ("host=a password=x;canary&y dbname=b", "host=a password=*** dbname=b"),
        (r"host=a password='it\'s canary' dbname=b", "host=a password=*** dbname=b"),
        (r"host=a password=my\ canary dbname=b", "host=a password=*** dbname=b"),
        ("host=a password='canary", "host=a password=***"),
    ],
)
def test_a_password_is_never_shown(text: str, masked: str) -> None:
    assert mask(text) == masked
    if "://" in text:
        assert "canary" not in repr(Queue(text))


def test_a_dsn_without_a_scheme_is_not_quoted_for_it_may_be_all_password() -> None:
    with pytest.raises(UnknownDSN) as caught:
        open_storage("user:canary@host")
    assert "canary" not in str(caught.value)


async def test_a_cached_result_that_fits_no_longer_is_refused_where_it_is_read(queue: Queue) -> None:
    @queue.task("work", result_ttl=60)
    async def work() -> str:
        return "text"

    async with Worker(queue):
        await (await work.dispatch()).wait(10)
    later = Queue(queue.storage)

    @later.task("work", result_ttl=60)
    async def number() -> int:
        return 1

    receipt = await queue.dispatch(number.call())
    assert receipt.status == "completed"
    with pytest.raises(ResultInvalid, match="Expected `int`, got `str`"):
        _ = receipt.result
    with pytest.raises(ResultInvalid):
        await receipt.wait(1)


def test_the_default_dsn_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///from-database-url.db")
    assert "from-database-url.db" in repr(Queue())
    monkeypatch.setenv("CRECHE_DSN", "memory://")
    assert "MemoryStorage" in repr(Queue())
    monkeypatch.delenv("CRECHE_DSN")
    monkeypatch.delenv("DATABASE_URL")
    assert "creche.db" in repr(Queue())


@pytest.mark.parametrize("name", ["x" * 32, b"short", 17])
async def test_a_fingerprint_that_is_no_32_bytes_is_refused_before_anything_is_written(name: Any) -> None:
    async with Queue(MemoryStorage(), fingerprint=lambda *_: name) as queue:

        @queue.task("work", unique=True)
        async def work() -> None: ...

        with pytest.raises(OptionInvalid, match="32 bytes"):
            await work.dispatch()
        assert not await queue.jobs()
