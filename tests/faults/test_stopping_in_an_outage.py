"""Workers that are told to end while their database answers nothing: servers are frozen, SQLite's file is locked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import anyio
import pytest

from creche import Queue, Status
from creche._job import JobRecord, Retention
from creche.testing.servers import PrivateServer
from faults.forked import Troupe, locked
from faults.lifecycle_program import Part, command, enough, guest
from processes import eventually, gone

IN_TIME: Final = 15.0  # seconds: a grace of half a second, and a last word each of settler, registry and connections

LEASE: Final = 60.0  # seconds: nobody ends because of it

PARTS: Final = {"idle": command, "coroutine": command, "thread": command, "process": guest}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "mysql"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own_server(request: pytest.FixtureRequest, engine: str) -> PrivateServer | None:
    return None if engine == "sqlite" else request.getfixturevalue(f"own_{engine}")


@pytest.fixture
def troupe(request: pytest.FixtureRequest, engine: str, tmp_path: Path) -> Iterator[Troupe]:
    dsn = str(request.getfixturevalue("sqlite_dsn" if engine == "sqlite" else "own_dsn"))
    anyio.run(Queue(dsn).migrate)
    troupe = Troupe(dsn, tmp_path)
    yield troupe
    troupe.end()


def dispatch(troupe: Troupe, *moments: str) -> None:
    async def send() -> None:
        async with Queue(troupe.dsn) as queue:
            for moment in moments:
                await queue.dispatch(moment, {"folder": str(troupe.folder), "moment": moment}, queue=moment)

    anyio.run(send)


def jobs(troupe: Troupe) -> dict[str, JobRecord]:
    async def look() -> dict[str, JobRecord]:
        async with Queue(troupe.dsn) as queue:
            return {job.queue_name: job for job in await queue.jobs()}

    return anyio.run(look)


def expire(troupe: Troupe) -> None:
    """Take back what the leases hold, as if they had run out."""

    async def take() -> None:
        async with Queue(troupe.dsn) as queue:
            later = datetime.now(UTC) + timedelta(seconds=2 * LEASE)
            await queue.storage.maintain(100, retention=Retention(), now=later)
            await queue.storage.retry([job.id for job in await queue.jobs()])

    anyio.run(take)


def test_a_worker_ends_in_bounded_time_though_its_database_answers_nothing_and_its_jobs_run_elsewhere_afterwards(
    troupe: Troupe, own_server: PrivateServer | None, anyio_backend: str
) -> None:
    begun = [moment for moment in PARTS if moment != "idle"]
    dispatch(troupe, *begun)
    for moment, run in PARTS.items():
        part = Part(queues=[moment], at=moment, loop=anyio_backend, lease=LEASE, grace=0.5)
        troupe.start(moment, run, troupe.folder, part)
    troupe.until(lambda: len(troupe.entries("begun")) == len(begun) and troupe.entries("idle", "idle"))
    silence: AbstractContextManager[None] = locked(troupe.dsn) if own_server is None else own_server.frozen()
    with silence:
        at = troupe.send(signal.SIGTERM, "idle", "coroutine", "thread")
        troupe.send(signal.SIGHUP, "process")
        assert max([troupe.end_of(moment, 2 * IN_TIME) for moment in PARTS]) - at < IN_TIME, troupe.told()
        codes = [troupe.processes[moment].exitcode for moment in PARTS]
        assert codes == [0] * len(PARTS), troupe.told()
        (process,) = troupe.entries("begun", moment="process")
        assert eventually(lambda: gone(process["pid"])), troupe.told()
    assert troupe.entries("through", "process", scope=True)
    enough(troupe.folder)
    expire(troupe)
    troupe.start("heir", command, troupe.folder, Part(queues=begun, at=None, loop=anyio_backend, lease=3.0))
    troupe.until(lambda: {job.status for job in jobs(troupe).values()} == {Status.COMPLETED})
    # A release that was sent, and read when the server thawed, has given its attempt back.
    assert {job.attempts for job in jobs(troupe).values()} <= {1, 2}, troupe.told()
    assert [len(troupe.entries("begun", moment=moment)) for moment in begun] == [2] * len(begun), troupe.told()
