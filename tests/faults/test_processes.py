"""What happens to jobs when whole processes are killed, stopped, asked to end, or race each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from creche import Queue, Status

PROGRAM = Path(__file__).parent / "program.py"
LEASE = 3.0  # seconds, of which a third is left for an answer: a busy machine may be slow


class Stage:
    """Processes that share a database and a journal."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.journal = folder / "journal"
        self.journal.touch()
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        with (self._folder / f"stderr-{len(self._processes)}").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", PROGRAM, *map(str, arguments)],
                env={**os.environ, "CRECHE_DSN": self.dsn, "JOURNAL": str(self.journal)},
                stderr=stderr,
            )
        self._processes.append(process)
        return process

    def lines(self, *words: str, pid: int | None = None) -> list[list[str]]:
        """Return the journal's lines that begin with these words."""
        entries = [line.split(" ") for line in self.journal.read_text("utf-8").splitlines()]
        chosen = [entry for entry in entries if pid is None or entry[0] == str(pid)]
        return [entry[1:] for entry in chosen if entry[1 : 1 + len(words)] == list(words)]

    def until(self, condition: Callable[[], object], limit: float = 60) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.02)

    def told(self) -> str:
        """Return all that is known, for a failure's message."""
        errors = [file.read_text("utf-8")[-2_000:] for file in sorted(self._folder.glob("stderr-*"))]
        return "\n".join([self.journal.read_text("utf-8"), *errors])

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def stage(shared_dsn: str, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(shared_dsn, tmp_path)
    anyio.run(Queue(shared_dsn).migrate)
    yield stage
    stage.end()


def dispatch(dsn: str, type: str, payload: object, count: int = 1, max_attempts: int = 5) -> list[str]:
    async def send() -> list[str]:
        async with Queue(dsn) as queue:
            return [str((await queue.dispatch(type, payload, max_attempts=max_attempts)).job_id) for _ in range(count)]

    return anyio.run(send)


def statuses(dsn: str, *job_ids: str) -> list[tuple[Status, int]]:
    async def look() -> list[tuple[Status, int]]:
        async with Queue(dsn) as queue:
            receipts = [await queue.receipt(job_id) for job_id in job_ids]
            records = await queue.storage.find([receipt.job_id for receipt in receipts])
            return [(records[each.job_id].status, records[each.job_id].attempts) for each in receipts]

    return anyio.run(look)


def result(dsn: str, job_id: str) -> object:
    async def look() -> object:
        async with Queue(dsn) as queue:
            return await (await queue.receipt(job_id)).wait(30)

    return anyio.run(look)


def test_a_hundred_askers_in_four_processes_get_one_run_and_one_result(stage: Stage) -> None:
    worker = stage.start("work", "--backend", "trio")
    stage.until(lambda: stage.lines("ready", pid=worker.pid))
    askers = [
        stage.start("ask", "--count", 25, "--backend", backend) for backend in ("asyncio", "trio", "asyncio", "trio")
    ]
    assert [asker.wait(60) for asker in askers] == [0, 0, 0, 0], stage.told()
    receipts = stage.lines("receipt")
    assert len(receipts) == 100
    assert len({job_id for _, job_id, _ in receipts}) == 1
    assert sorted(inserted for _, _, inserted in receipts) == ["False"] * 99 + ["True"]
    assert len(stage.lines("ran", "key")) == 1
    answers = stage.lines("answer")
    assert len(answers) == 100
    assert len({answer for _, answer in answers}) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_worker_frozen_for_twice_its_lease_is_cancelled_and_its_settle_refused(stage: Stage, backend: str) -> None:
    (job_id,) = dispatch(stage.dsn, "hold", {"seconds": 2 * LEASE, "first": 300})
    frozen = stage.start("work", "--lease", LEASE, "--backend", backend)
    stage.until(lambda: stage.lines("started", "1", pid=frozen.pid))
    frozen.send_signal(signal.SIGSTOP)
    other = stage.start("work", "--lease", LEASE, "--backend", backend)
    stage.until(lambda: stage.lines("started", "2", pid=other.pid))
    time.sleep(LEASE)  # the whole stop lasts twice the lease, or more
    frozen.send_signal(signal.SIGCONT)
    stage.until(lambda: stage.lines("lease_lost", "1", pid=frozen.pid))
    assert stage.lines("cancelled", "1", pid=frozen.pid)
    stage.until(lambda: stage.lines("acked", "2", pid=other.pid))
    assert result(stage.dsn, job_id) == "in time, from attempt 2"
    assert statuses(stage.dsn, job_id) == [(Status.COMPLETED, 2)]
    assert stage.lines("acked") == [["acked", "2"]]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_killed_workers_job_runs_again_when_its_lease_is_over(stage: Stage, backend: str) -> None:
    (job_id,) = dispatch(stage.dsn, "hold", {"seconds": 1})
    killed = stage.start("work", "--lease", LEASE, "--backend", backend)
    stage.until(lambda: stage.lines("started", "1", pid=killed.pid))
    killed.kill()
    stage.start("work", "--lease", LEASE, "--backend", backend)
    assert result(stage.dsn, job_id) == "in time, from attempt 2"
    assert stage.lines("acked") == [["acked", "2"]]


def test_a_job_that_kills_its_worker_does_not_take_its_neighbours_along(stage: Stage) -> None:
    innocents = dispatch(stage.dsn, "innocent", {}, count=4, max_attempts=3)
    (poison,) = dispatch(stage.dsn, "poison", {}, max_attempts=3)
    innocents += dispatch(stage.dsn, "innocent", {}, count=5, max_attempts=3)
    workers: list[subprocess.Popen[bytes]] = []

    def all_ended() -> bool:
        if not workers or workers[-1].poll() is not None:  # a supervisor starts the next one
            workers.append(stage.start("work", "--lease", LEASE))
        time.sleep(0.2)
        return not any(status.active for status, _ in statuses(stage.dsn, poison, *innocents))

    stage.until(all_ended, 90)
    assert len(stage.lines("innocent", "1", pid=workers[0].pid)) == 9  # they were at its side
    assert stage.lines("poison") == [["poison", "1"], ["poison", "2"], ["poison", "3"]]
    assert statuses(stage.dsn, poison) == [(Status.FAILED, 3)]
    ends = statuses(stage.dsn, *innocents)
    assert sum(status is Status.COMPLETED for status, _ in ends) >= 6, stage.told()
    assert {status for status, _ in ends} <= {Status.COMPLETED, Status.FAILED}
    assert max(attempts for _, attempts in ends) <= 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_worker_in_bounded_time_and_it_gives_back_what_it_holds(
    stage: Stage, backend: str, number: signal.Signals
) -> None:
    job_ids = dispatch(stage.dsn, "patient", {}, count=3)
    worker = stage.start("work", "--grace", 0.5, "--backend", backend)
    stage.until(lambda: len(stage.lines("started", pid=worker.pid)) == 3)
    began = time.monotonic()
    worker.send_signal(number)
    assert worker.wait(10) == 0, stage.told()
    assert 0.4 <= time.monotonic() - began < 5
    assert stage.lines("ended", pid=worker.pid)
    assert statuses(stage.dsn, *job_ids) == [(Status.PENDING, 0)] * 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_second_signal_skips_the_grace(stage: Stage, backend: str) -> None:
    job_ids = dispatch(stage.dsn, "patient", {})
    worker = stage.start("work", "--grace", 200, "--backend", backend)
    stage.until(lambda: stage.lines("started", pid=worker.pid))
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0, stage.told()
    assert statuses(stage.dsn, *job_ids) == [(Status.PENDING, 0)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_signal_that_comes_to_the_process_and_to_its_group_is_one(stage: Stage, backend: str) -> None:
    (job_id,) = dispatch(stage.dsn, "hold", {"seconds": 2})
    worker = stage.start("work", "--grace", 200, "--backend", backend)
    stage.until(lambda: stage.lines("started", pid=worker.pid))
    for _ in range(2):
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    assert worker.wait(20) == 0, stage.told()
    assert statuses(stage.dsn, job_id) == [(Status.COMPLETED, 1)]
