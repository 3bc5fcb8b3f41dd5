"""What a job costs, in counts that are the same on any machine: statements, bytes of write-ahead log, Python calls.

How long it takes is the benchmarks' business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from creche import Queue, Retention, Worker
from creche.storage._asyncmy import Connection as MySQLConnection
from creche.storage._psycopg import Connection

pytestmark = pytest.mark.anyio

JOBS = 10_000


class Count:
    """How often something happened."""

    def __init__(self) -> None:
        self.number = 0

    def __int__(self) -> int:
        return self.number


@contextmanager
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """Count the statements that psycopg is given, and the round trips that MySQL is asked for, in the block."""
    count = Count()
    execute, run = Connection.execute, MySQLConnection.run

    async def counted_execute(self: Any, *arguments: Any, **named: Any) -> Any:
        count.number += 1
        return await execute(self, *arguments, **named)

    async def counted_run(self: Any, *arguments: Any, **named: Any) -> Any:
        count.number += 1
        return await run(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "execute", counted_execute)
        patch.setattr(MySQLConnection, "run", counted_run)
        yield count


@contextmanager
def python_calls() -> Iterator[Count]:
    """Count the calls of Python functions in the block, a resumed coroutine being one more."""
    count = Count()

    def note(_: object, event: str, __: object) -> None:
        if event == "call":
            count.number += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(before)


async def backlog(queue: Queue) -> None:
    """Dispatch jobs that do nothing."""

    @queue.task("noop")
    async def noop(number: int) -> None:
        pass

    await queue.dispatch_many(noop.call(number) for number in range(JOBS))


async def drain(queue: Queue, *, concurrency: int = 100, retention: Retention | None = None) -> None:
    """Run them all."""
    worker = Worker(queue, concurrency=concurrency, burst=True, retention=retention or Retention(completed=0))
    assert (await worker.run(signals=False)).succeeded == JOBS


def wal(dsn: str) -> int:
    """Return how many bytes of write-ahead log there are."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert row
        return int(row[0])


@pytest.mark.parametrize("concurrency", [1, 10, 100])
@pytest.mark.parametrize("completed", [0, 60])
async def test_a_job_costs_postgresql_three_statements_in_a_hundred(
    postgresql_dsn: str, monkeypatch: pytest.MonkeyPatch, concurrency: int, completed: float
) -> None:
    queue = Queue(postgresql_dsn)
    await queue.migrate()
    async with queue:
        await backlog(queue)
        with statements(monkeypatch) as count:
            await drain(queue, concurrency=concurrency, retention=Retention(completed=completed))
    assert 0 < int(count) <= 0.03 * JOBS


@pytest.mark.parametrize("engine", ["mariadb_dsn", "mysql_dsn"])
async def test_a_job_costs_mysql_a_tenth_of_a_round_trip(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    queue = Queue(request.getfixturevalue(engine))
    await queue.migrate()
    async with queue:
        await backlog(queue)
        with statements(monkeypatch) as count:
            await drain(queue)
    assert 0 < int(count) <= 0.1 * JOBS


async def test_a_job_that_is_not_kept_costs_seven_hundred_bytes_of_log(postgresql_dsn: str) -> None:
    queue = Queue(postgresql_dsn)
    await queue.migrate()
    async with queue:
        await backlog(queue)
        before = wal(postgresql_dsn)
        await drain(queue)
    assert 300 * JOBS < wal(postgresql_dsn) - before <= 700 * JOBS


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_job_costs_no_more_python_calls_than_it_did(postgresql_dsn: str) -> None:
    queue = Queue(postgresql_dsn)
    await queue.migrate()
    async with queue:
        await backlog(queue)
        with python_calls() as count:
            await drain(queue)
    assert 20 * JOBS < int(count) <= 112 * JOBS
