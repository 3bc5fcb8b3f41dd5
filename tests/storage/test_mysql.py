"""MySQL and MariaDB: the contract on both, and who waits for whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import anyio
import pytest

from creche._ids import new_job_id
from creche._job import NewJob
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
