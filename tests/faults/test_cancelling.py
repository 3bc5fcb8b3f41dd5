"""To cancel a job that another process runs: its worker is woken, and asks; where no wake comes, it asks in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import pytest

from creche import Queue, Status
from creche._job import JobRecord
from faults.forked import Troupe
from faults.lifecycle_program import Part, command, enough
from processes import eventually, gone

WEEK: Final = 7 * 86_400.0  # seconds: a lease of which no renewal comes within a test
BRIEF: Final = 2.0

HANDLERS: Final = ("coroutine", "thread", "process")


@pytest.fixture
def troupe(shared_dsn: str, tmp_path: Path) -> Iterator[Troupe]:
    troupe = Troupe(shared_dsn, tmp_path)
    anyio.run(Queue(shared_dsn).migrate)
    yield troupe
    troupe.end()


def start(troupe: Troupe, loop: str, *moments: str, lease: float, at: str | None = None) -> None:
    """Have a worker begin a job of each kind."""

    async def send() -> None:
        async with Queue(troupe.dsn) as queue:
            for moment in moments:
                await queue.dispatch(moment, {"folder": str(troupe.folder), "moment": moment}, queue=moment)

    anyio.run(send)
    part = Part(queues=moments, at=at, loop=loop, lease=lease)
    troupe.start("worker", command, troupe.folder, part)
    troupe.until(lambda: len(troupe.entries("begun")) == len(moments))


def jobs(troupe: Troupe) -> dict[str, JobRecord]:
    async def look() -> dict[str, JobRecord]:
        async with Queue(troupe.dsn) as queue:
            return {job.queue_name: job for job in await queue.jobs()}

    return anyio.run(look)


def cancel(troupe: Troupe) -> list[Status]:
    """Cancel all jobs; return what was answered."""

    async def ask() -> list[Status]:
        async with Queue(troupe.dsn) as queue:
            return [await queue.cancel(job.id) for job in await queue.jobs()]

    return anyio.run(ask)


def all_cancelled(troupe: Troupe) -> bool:
    return {job.status for job in jobs(troupe).values()} == {Status.CANCELLED}


def test_a_job_that_is_cancelled_elsewhere_ends_at_once_though_its_lease_lasts_a_week(
    troupe: Troupe, anyio_backend: str
) -> None:
    start(troupe, anyio_backend, *HANDLERS, lease=WEEK)
    assert cancel(troupe) == [Status.PROCESSING] * len(HANDLERS)
    troupe.until(lambda: all_cancelled(troupe))
    assert troupe.entries("cancelled", moment="coroutine")
    (process,) = troupe.entries("begun", moment="process")
    assert eventually(lambda: gone(process["pid"])), troupe.told()
    assert [job.attempts for job in jobs(troupe).values()] == [1] * len(HANDLERS)
    assert len(troupe.entries("begun")) == len(HANDLERS)
    troupe.send(signal.SIGTERM)
    troupe.end_of("worker", 30)
    assert troupe.processes["worker"].exitcode == 0, troupe.told()


def test_where_no_wake_is_heard_a_worker_learns_of_a_cancellation_with_its_next_renewal(
    troupe: Troupe, anyio_backend: str
) -> None:
    start(troupe, anyio_backend, "coroutine", lease=BRIEF, at="deaf")
    cancel(troupe)
    troupe.until(lambda: all_cancelled(troupe))
    assert troupe.entries("cancelled", moment="coroutine")
    assert "polling instead" in troupe.said("worker")


def test_a_cancellation_that_comes_while_the_worker_is_frozen_is_heard_when_it_thaws(
    troupe: Troupe, anyio_backend: str
) -> None:
    start(troupe, anyio_backend, "coroutine", lease=WEEK)
    troupe.freeze()
    assert cancel(troupe) == [Status.PROCESSING]
    time.sleep(0.3)
    assert jobs(troupe)["coroutine"].status is Status.PROCESSING
    troupe.send(signal.SIGCONT)
    troupe.until(lambda: all_cancelled(troupe))


def test_a_handler_that_ends_before_it_hears_of_its_cancellation_is_completed(
    troupe: Troupe, anyio_backend: str
) -> None:
    start(troupe, anyio_backend, "coroutine", lease=WEEK, at="deaf")
    assert cancel(troupe) == [Status.PROCESSING]
    enough(troupe.folder)
    troupe.until(lambda: jobs(troupe)["coroutine"].status is Status.COMPLETED)
    assert not troupe.entries("cancelled")
