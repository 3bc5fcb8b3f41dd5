"""SQLite under asyncio's own cancellation, which no shield of anyio's holds off: a thread that writes is waited for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import anyio
import pytest

from creche import Job, Queue, Worker
from creche.storage import _sqlite3, _sqlite_session
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[Queue]:
    async with Queue(SQLiteStorage(tmp_path / "jobs.db", busy_timeout=2)) as queue:
        queue.foreign("never")
        yield queue


def slow(monkeypatch: pytest.MonkeyPatch, module: Any, seconds: float) -> None:
    """Have whatever begins a transaction take its time, as on a slow disk."""
    begin = _sqlite3.begin

    def begin_slowly(connection: Connection, patience: float) -> None:
        begin(connection, patience)
        time.sleep(seconds)

    monkeypatch.setattr(module, "begin", begin_slowly)


async def test_a_write_that_is_cancelled_keeps_its_turn_until_its_thread_has_ended(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, _sqlite3, 0.05)
    ends = Counter[str]()
    sent = set[object]()

    async def dispatch(patience: float) -> None:
        for _ in range(20):
            try:
                async with asyncio.timeout(patience):
                    sent.add((await queue.dispatch("never")).job_id)
                    ends["sent"] += 1
            except TimeoutError:
                ends["cancelled"] += 1

    async with asyncio.TaskGroup() as tasks:
        for patience in (0.03, 10, 10):
            tasks.create_task(dispatch(patience))
    assert ends["sent"] >= 40
    assert ends["cancelled"] >= 1
    assert sent <= {row.id for row in await queue.jobs(limit=1000)}


@pytest.mark.parametrize("patience", [0.01, 0.1, 0.25])
async def test_a_handlers_transaction_that_is_cancelled_while_it_begins_lets_go_of_the_file(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    slow(monkeypatch, _sqlite_session, 0.2)
    ended = anyio.Event()

    @queue.task("work", max_attempts=1)
    async def work(job: Job) -> None:
        try:
            async with asyncio.timeout(patience), job.transaction() as connection:
                await connection.execute("CREATE TABLE IF NOT EXISTS mine (id)")
                await asyncio.sleep(10)
        finally:
            ended.set()

    async with Worker(queue):
        await work.dispatch()
        await ended.wait()
        assert (await queue.dispatch("never")).inserted
        async with queue.storage.transaction() as transaction:
            await transaction.connection.execute("CREATE TABLE mine (id)")  # it is not there: it was rolled back


async def test_a_transaction_is_over_however_often_it_is_cancelled(queue: Queue) -> None:
    begun = asyncio.Event()

    async def hold() -> None:
        async with queue.storage.transaction() as transaction:
            await transaction.connection.execute("CREATE TABLE mine (id)")
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(hold())
    await begun.wait()
    for _ in range(200):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await queue.dispatch("never")).inserted


async def test_a_long_statement_is_interrupted(queue: Queue) -> None:
    count = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), queue.storage.transaction() as transaction:
            await transaction.connection.execute(count)
    assert time.monotonic() - began < 30
    assert (await queue.dispatch("never")).inserted


async def test_a_storage_that_is_cancelled_while_it_opens_can_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, _sqlite3, 0.2)
    storage = SQLiteStorage(tmp_path / "jobs.db")
    for patience in (0.0, 0.005, 0.05, 0.1):
        try:
            async with asyncio.timeout(patience), storage:
                pass
        except TimeoutError:
            pass
    async with storage:
        assert await storage.stats() == []
