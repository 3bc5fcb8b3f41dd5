"""Whatever is measured is done, whole and once; how long it took is nobody's business here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from creche import Queue, Status
from creche.bench import (
    ChildFailed,
    Contestant,
    JobsMissing,
    Order,
    dispatched,
    drained,
    idle,
    latency,
    memory,
    meter,
)
from creche.bench import _children as children
from processes import eventually, gone

JOBS = 60
# A worker with a child of its own, whose number it writes into a file; it answers, or not, and does not end.
PARENT = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({file!r}).write_text(str(child.pid))
sys.stdin.readline()
print("ready", flush=True)
sys.stdin.readline()
print({answer!r}, flush=True)
time.sleep({seconds})
"""
ANSWER = '{"count": 1, "began": 1, "ended": 2.5, "closed": 3, "cpu": 0, "rss": 1, "moments": [[1, 2]], "new": null}'

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Of whoever watches; those that are measured have loops of their own."""
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql"])
def dsn(request: pytest.FixtureRequest) -> str:
    """A database that other processes can reach."""
    return str(request.getfixturevalue(f"{request.param}_dsn"))


async def completed(dsn: str) -> int:
    async with Queue(dsn) as queue:
        stats = await queue.stats()
    return sum(each.counts.get(Status.COMPLETED, 0) for each in stats.queues)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_drain_runs_every_job_once_and_settles_all(shared_dsn: str, backend: str) -> None:
    order = Order(role="fill", dsn=shared_dsn, jobs=JOBS, payload=100, backend=backend)
    async with meter(shared_dsn) as watch:
        written = await dispatched(order, watch)
        work = await drained(order.to("drain"), watch)
    assert sum(answer.count for answer in work.answers) == JOBS == written.jobs
    assert await completed(shared_dsn) == JOBS
    assert work.figures()["jobs/s"] == work.rate > 0


async def test_several_workers_share_the_jobs_of_a_drain(dsn: str) -> None:
    order = Order(role="fill", dsn=dsn, jobs=JOBS, concurrency=2)
    async with meter(dsn) as watch:
        await dispatched(order, watch)
        work = await drained(order.to("drain"), watch, processes=2)
    assert len(work.answers) == 2
    assert await completed(dsn) == JOBS


async def test_memory_is_drained_by_the_process_that_filled_it() -> None:
    async with meter("memory://") as watch:
        work = await drained(Order(role="drain", dsn="memory://", jobs=JOBS, here=True), watch)
    assert work.answers[0].count == JOBS


async def test_calls_are_counted_in_a_run_of_their_own_and_then_nothing_is_timed(dsn: str) -> None:
    order = Order(role="fill", dsn=dsn, jobs=JOBS)
    async with meter(dsn) as watch:
        await dispatched(order, watch)
        work = await drained(order.to("drain", count_calls=True, count_statements=True), watch)
    assert work.calls is not None
    assert work.calls > 1
    assert "jobs/s" not in work.figures()
    if dsn.startswith("sqlite"):
        assert work.statements is not None
        assert 0 < work.statements < 10


@pytest.mark.parametrize("callers", [1, 4])
async def test_single_dispatches_are_as_many_as_ordered_beside_those_that_open_connections(
    dsn: str, callers: int
) -> None:
    async with meter(dsn) as watch:
        await dispatched(Order(role="dispatch", dsn=dsn, jobs=JOBS, callers=callers), watch)
    async with Queue(dsn) as queue:
        assert len(await queue.jobs(limit=1_000)) == JOBS + callers


async def test_each_job_of_a_latency_run_is_begun_and_waited_for(dsn: str) -> None:
    await Queue(dsn).migrate()
    found = await latency(Order(role="pace", dsn=dsn, jobs=3, pause=0.01, wait=True))
    assert len(found.begun) == len(found.waited) == 3
    assert all(0 < begun < waited for begun, waited in zip(found.begun, found.waited, strict=True))


async def test_an_idle_worker_is_watched_without_jobs(dsn: str) -> None:
    await Queue(dsn).migrate()
    async with meter(dsn) as watch:
        found = await idle(Order(role="work", dsn=dsn), watch, seconds=0.5)
    assert set(found.figures()) == {"statements/s", "transactions/s", "worker ms/s", "server ms/s"}


async def test_of_an_idle_worker_its_polls_are_counted_and_not_its_end(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path / 'jobs.db'}"
    await Queue(dsn).migrate()
    polling = Order(role="work", dsn=dsn, options={"poll_interval": 0.05})
    async with meter(dsn) as watch:
        found = await idle(polling, watch, seconds=1.0)
    assert found.statements is not None
    assert 10 < found.statements < 200


async def test_memory_is_sampled_in_producer_and_worker(tmp_path: Path) -> None:
    order = Order(role="fill", dsn=f"sqlite:///{tmp_path / 'jobs.db'}", jobs=JOBS, chunk=JOBS // 3)
    producer, worker = await memory(order)
    assert [count for count, _ in producer.samples] == [JOBS // 3, JOBS // 3 * 2, JOBS]
    assert worker.samples[-1][0] == JOBS


async def test_a_run_that_leaves_jobs_out_has_no_figures(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path / 'jobs.db'}"
    async with meter(dsn) as watch:
        await dispatched(Order(role="fill", dsn=dsn, jobs=JOBS), watch)
        with pytest.raises(JobsMissing) as caught:
            await drained(Order(role="drain", dsn=dsn, jobs=JOBS + 1, lull=0.2), watch)
    assert (caught.value.wanted, caught.value.count) == (JOBS + 1, JOBS)


async def test_a_process_that_fails_is_quoted() -> None:
    broken = Contestant(name="broken", command=[sys.executable, "-c", "raise SystemExit('no such thing here')"])
    async with meter("memory://") as watch:
        with pytest.raises(ChildFailed, match="no such thing here"):
            await drained(Order(role="drain", dsn="memory://", jobs=1), watch, broken)


def parent(tmp_path: Path, answer: str, *, seconds: float = 600, patience: float = 30) -> tuple[Contestant, Path]:
    file = tmp_path / "child"
    code = PARENT.format(file=str(file), answer=answer, seconds=seconds)
    return Contestant(name="parent", command=[sys.executable, "-c", code], patience=patience), file


@pytest.mark.parametrize("answer", ["", "who knows", "[1]", '{"count": 1}'])
async def test_an_answer_that_is_none_is_a_failure(tmp_path: Path, answer: str) -> None:
    who, file = parent(tmp_path, answer)
    async with meter("memory://") as watch:
        with pytest.raises(ChildFailed, match="which is no answer"):
            await drained(Order(role="drain", dsn="memory://", jobs=1), watch, who)
    assert eventually(lambda: gone(int(file.read_text())))


@pytest.mark.parametrize("seconds", [0, 600])
async def test_what_answered_is_killed_with_what_it_started_if_it_does_not_end_and_its_answer_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(children, "CLOSING", 0.2)
    who, file = parent(tmp_path, ANSWER, seconds=seconds)
    async with meter("memory://") as watch:
        work = await drained(Order(role="drain", dsn="memory://", jobs=1), watch, who)
    assert (work.jobs, work.seconds, work.answers[0].moments) == (1, 1.5, [(1, 2.0)])
    assert eventually(lambda: gone(int(file.read_text())))


async def test_a_run_has_one_deadline_for_all_of_its_processes_and_nothing_of_them_is_left(tmp_path: Path) -> None:
    silent = "import sys, time; sys.stdin.readline(); print(1, flush=True); time.sleep(600)"
    who = Contestant(name="silent", command=[sys.executable, "-c", silent], patience=0.5)
    async with meter("memory://") as watch:
        with pytest.raises(ChildFailed, match=r"silent said nothing for 0\.5 s"):
            await drained(Order(role="drain", dsn="memory://", jobs=1), watch, who, processes=2)


async def test_what_can_t_be_started_is_a_failure() -> None:
    async with meter("memory://") as watch:
        with pytest.raises(ChildFailed, match="could not be started"):
            await drained(Order(role="drain", dsn="memory://", jobs=1), watch, Contestant(command=["/no/such/program"]))
