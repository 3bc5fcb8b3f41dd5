"""MySQL and MariaDB: the contract on both, and who waits for whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from uuid import UUID

import anyio
import pytest

from creche._ids import new_job_id
from creche._job import NewJob, Status
from creche.storage._asyncmy import Connection
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import connect_mysql
from databases import empty_database
from mysql_contract import MySQLContract, Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


class TestMySQLStorage(MySQLContract):
    pass


# --- whoever waits ----------------------------------------------------------------------------------


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """The DSN of an empty, migrated database."""
    with empty_database(server) as dsn:
        anyio.run(MySQLStorage(dsn).migrate)
        yield dsn


def job(**options: Any) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", **options)


@contextmanager
def locked(dsn: str, limit: int) -> Iterator[None]:
    """Hold the rows of the oldest jobs, as a process does that is frozen in the middle of a transaction."""
    with closing(connect_mysql(dsn, autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute(f"SELECT 1 FROM creche_jobs FORCE INDEX (PRIMARY) ORDER BY id LIMIT {limit} FOR UPDATE")
        yield
        connection.rollback()


async def test_a_duplicate_waits_for_nobody_and_makes_nobody_wait(dsn: str) -> None:
    standing = job(idempotency_key="k", fingerprint=b"f" * 32)
    async with MySQLStorage(dsn, call_timeout=5) as storage:
        await storage.insert([standing])
        with locked(dsn, 1), anyio.fail_after(3):
            async with anyio.create_task_group() as group:
                for options in ({"idempotency_key": "k"}, {"fingerprint": b"f" * 32}, {}, {}):
                    group.start_soon(storage.insert, [job(**options)])
            (answer,) = await storage.insert([job(idempotency_key="k")])
    assert (answer.job_id, answer.inserted) == (standing.id, False)


async def test_a_worker_of_some_types_finds_its_jobs_behind_those_that_rivals_hold(dsn: str) -> None:
    async with MySQLStorage(dsn) as storage:
        await storage.insert([job() for _ in range(800)])
        with locked(dsn, 700):
            reservation = await storage.reserve(["default"], 10, lease=30, worker="w", nonce=1, types={"work"})
    assert len(reservation.jobs) == 10


async def test_who_comes_to_wait_while_it_is_being_cancelled_is_cancelled_too(dsn: str) -> None:
    late, standing = job(), job()  # in the order in which rows are locked
    asked = [late.id, standing.id]
    async with MySQLStorage(dsn) as storage:
        await storage.insert([standing])
        answers: list[Mapping[UUID, Status]] = []

        async def cancel() -> None:
            answers.append(await storage.cancel(asked))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                with locked(dsn, 1):  # it has passed by `late`, and waits for the other
                    group.start_soon(cancel)
                    await until_somebody_waits(dsn)
                    await storage.insert([late])
        assert answers == [dict.fromkeys(asked, Status.CANCELLED)]
        assert {record.status for record in (await storage.find(asked)).values()} == {Status.CANCELLED}


async def test_who_came_to_wait_and_is_gone_at_the_second_look_is_left_out(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = job()
    async with MySQLStorage(dsn) as storage:
        run, calls = storage._calls.run, list[object]()

        async def between(work: Callable[[Connection], Awaitable[Any]]) -> Any:
            answers = await run(work)
            calls.append(work)
            if len(calls) > 1:
                return answers
            await storage.insert([late])  # as if it had come between the two statements
            stands = await run(lambda connection: connection.run("SELECT id, status, locked_by FROM creche_jobs"))
            with closing(connect_mysql(dsn)) as raw, raw.cursor() as cursor:
                cursor.execute("DELETE FROM creche_jobs")
            return [answers[0], *stands, *answers[2:]]

        monkeypatch.setattr(storage._calls, "run", between)
        with anyio.fail_after(5):
            assert await storage.cancel([late.id]) == {}
    assert len(calls) >= 2


async def until_somebody_waits(dsn: str) -> None:
    """Wait until a transaction waits for a lock; nobody else uses the server.

    Asked more often than ten times a second, it says what it said last.
    """
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        waiting = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        while not cursor.execute(waiting):  # noqa: ASYNC110 - a server rings no bell
            await anyio.sleep(0.15)


# --- how much at once -------------------------------------------------------------------------------


async def test_more_is_deleted_at_once_than_the_server_takes_in_one_packet(dsn: str) -> None:
    ids = [new_job_id() for _ in range(10_000)]  # three statements of 370 kB
    async with MySQLStorage(dsn) as storage:
        for start in range(0, len(ids), 2_000):
            some = ids[start : start + 2_000]
            await storage.insert([NewJob(id=job_id, type="work", payload=b"{}", queue_name="q") for job_id in some])
            await storage.cancel(some)
    with packets_of(dsn, 1 << 20):
        async with MySQLStorage(dsn) as storage:
            assert len(await storage.delete(ids)) == len(ids)
            assert await storage.stats() == []


@contextmanager
def packets_of(dsn: str, size: int) -> Generator[None]:
    """Have the server take no more than that from those who connect during the block."""
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@GLOBAL.max_allowed_packet")
        row = cursor.fetchone()
        assert row is not None
        cursor.execute(f"SET GLOBAL max_allowed_packet = {size}")
        try:
            yield
        finally:
            cursor.execute(f"SET GLOBAL max_allowed_packet = {row[0]}")
