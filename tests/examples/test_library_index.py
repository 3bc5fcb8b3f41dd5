"""The example does what its first page says, with real processes, real files and real kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from threading import Timer
from uuid import uuid4

import anyio
import pytest

from creche import Queue, Status

EXAMPLE = Path(__file__).parents[2] / "examples" / "library_index.py"
PATIENCE = 90.0  # seconds for one run on a busy machine; what takes longer is ended, and its test fails


class Run:
    """One run of the example: a process, what it prints, and a watch that ends it."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.text = ""
        self._errors = errors

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def workers(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"worker \d+ is process (\d+)", self.text)]

    def lines(self) -> Iterator[str]:
        assert self.process.stdout
        for line in self.process.stdout:
            self.text += line
            yield line

    def until(self, wanted: str) -> str:
        for line in self.lines():
            if wanted in line:
                return line
        pytest.fail(f"{wanted!r} never came:\n{self.text}\n{self.errors}")

    def end(self) -> int:
        for _ in self.lines():
            pass
        return self.process.wait(PATIENCE)

    def number(self, words: str) -> int:
        found = re.search(rf"([\d,]+) {words}", self.text)
        assert found, f"no {words!r} in:\n{self.text}\n{self.errors}"
        return int(found[1].replace(",", ""))

    def check(self, *, executed: int, cached: int) -> None:
        """It is over, everything agrees, and nothing was settled twice."""
        assert self.end() == 0, self.text + self.errors
        assert "\nagree" in self.text
        assert self.number("jobs settled twice") == 0
        assert (self.number("jobs in this run"), self.number("from cache")) == (executed, cached)


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path, anyio_backend: str) -> Generator[Start]:
    """Starts the example; whatever it left behind is ended after the test."""
    runs: list[Run] = []
    watches: list[Timer] = []

    def start(*arguments: str | Path) -> Run:
        command = [sys.executable, EXAMPLE, "--backend", anyio_backend, *arguments]
        errors = tmp_path / f"errors-{len(runs)}"
        with errors.open("w") as file:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=file, text=True)
        runs.append(Run(process, errors))
        watches.append(Timer(PATIENCE, process.kill))
        watches[-1].start()
        return runs[-1]

    yield start
    for watch in watches:
        watch.cancel()
    for run in runs:
        run.process.kill()
        for _ in run.lines():
            pass
        run.process.wait()
        assert run.process.stdout
        run.process.stdout.close()
        for pid in run.workers:
            kill(pid)


# Parsing hundreds of files is what these tests take their time for: MariaDB gets one loop.
everywhere = pytest.mark.parametrize(
    ("engine", "anyio_backend"), [*product(("sqlite", "postgresql"), ("asyncio", "trio")), ("mariadb", "trio")]
)


@pytest.fixture
def dsn(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    if engine == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.db'}"
        return
    server = request.getfixturevalue(f"{engine}_server")
    name = f"library_{uuid4().hex[:12]}"
    yield server.create_database(name)
    server.drop_database(name)


# --- what is looked at from outside -----------------------------------------------------------------


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def states(pid: int) -> set[str]:
    """The states of a process's threads, as /proc tells them; none if it is gone."""
    found: set[str] = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            found.add(thread.read_text().rpartition(")")[2].split()[0])
    return found


def alive(pid: int) -> bool:
    return not states(pid) <= {"Z", "X"}


def wait_for_the_end(pids: Collection[int], seconds: float) -> bool:
    return wait_until(lambda: not any(map(alive, pids)), seconds)


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not (answer := true()) and time.monotonic() < limit:
        time.sleep(0.02)
    return answer


def jobs(dsn: str, statuses: Collection[Status]) -> list[str | None]:
    """Who holds the jobs in these states, one entry a job."""

    async def look() -> list[str | None]:
        async with Queue(dsn) as queue:
            return [each.locked_by for each in await queue.jobs(statuses=statuses, limit=10_000)]

    return anyio.run(look)


def pid_of(run: Run, number: int) -> int:
    return int(re.findall(rf"worker {number} is process (\d+)", run.text)[-1])


@contextmanager
def frozen(pid: int) -> Generator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wait_until(lambda: states(pid) == {"T"}, 10), "a thread inside a system call finishes that first"
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill_holder(dsn: str, run: Run) -> int:
    """SIGKILL one of the workers at a moment when it holds jobs; return how many.

    All are frozen while it is looked who does: of one alone that is held up, the others would take everything.
    """
    workers = {f"worker-{number}": pid_of(run, number) for number in range(1, len(run.workers) + 1)}
    for _ in range(200):
        with ExitStack() as all_frozen:
            for pid in workers.values():
                all_frozen.enter_context(frozen(pid))
            holders = [holder.partition(":")[0] for holder in jobs(dsn, [Status.PROCESSING]) if holder]
            if holders:
                kill(workers[holders[0]])
                return holders.count(holders[0])
        time.sleep(0.001)
    pytest.fail("no worker ever held a job")


# --- the whole way ----------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("workers", ["1", "3"])
def test_every_file_is_indexed_and_the_second_run_executes_nothing(start: Start, dsn: str, workers: str) -> None:
    first = start("--dsn", dsn, "--workers", workers, "--limit", "150")
    first.check(executed=150, cached=0)
    assert first.number("attempts") == 150
    assert len(first.workers) == int(workers)
    assert first.errors == ""

    second = start("--dsn", dsn, "--workers", workers, "--limit", "150")
    second.check(executed=0, cached=150)
    assert second.workers == []

    more = start("--dsn", dsn, "--workers", workers, "--limit", "160")
    more.check(executed=10, cached=150)


@everywhere
def test_a_killed_worker_is_replaced_and_its_jobs_run_again(start: Start, dsn: str) -> None:
    run = start("--dsn", dsn, "--workers", "3", "--limit", "400")
    run.until("50 %")
    held = kill_holder(dsn, run)
    run.check(executed=400, cached=0)
    assert run.number("workers were lost and replaced") == 1
    assert run.number("attempts") == 400 + held
    assert len(run.workers) == 4


@everywhere
def test_everything_killed_at_half_is_finished_by_the_next_run(start: Start, dsn: str) -> None:
    killed = start("--dsn", dsn, "--workers", "3", "--limit", "400")
    killed.until("50 %")
    for pid in [killed.process.pid, *killed.workers]:
        kill(pid)
    killed.end()
    assert wait_for_the_end(killed.workers, 15), "a commit may be at the disk, and count, until its process is gone"
    done = len(jobs(dsn, [Status.COMPLETED]))
    assert 200 <= done < 400

    run = start("--dsn", dsn, "--workers", "3", "--limit", "400")
    run.check(executed=400 - done, cached=done)
    assert run.number("of them were left over") == 400 - done


def test_workers_do_not_outlive_a_killed_parent(start: Start, tmp_path: Path) -> None:
    run = start("--workers", "2", "--limit", "400", "--no-check")
    run.until("50 %")
    kill(run.process.pid)
    run.end()
    assert wait_for_the_end(run.workers, 15)
    held = jobs(f"sqlite:///{tmp_path / 'creche.db'}", [Status.PROCESSING])
    assert held == [], "they finished what they were at, and gave back the rest"
    assert run.errors == ""


def test_control_c_stops_the_workers_and_keeps_what_is_done(start: Start, tmp_path: Path) -> None:
    run = start("--workers", "2", "--limit", "400")
    run.until("50 %")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text + run.errors
    assert "run it again" in run.text
    assert not any(map(alive, run.workers))
    dsn = f"sqlite:///{tmp_path / 'creche.db'}"
    assert jobs(dsn, [Status.PROCESSING]) == []

    done = len(jobs(dsn, [Status.COMPLETED]))
    start("--workers", "2", "--limit", "400").check(executed=400 - done, cached=done)


def test_workers_that_die_at_once_end_the_run_with_a_word(start: Start) -> None:
    run = start("--workers", "1", "--limit", "50")
    for _ in range(3):
        kill(int(run.until("is process").split()[-1]))
    assert run.end() == 1
    assert "3 workers in a row" in run.text


# --- what a job is ----------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    (root / "site-packages").mkdir(parents=True)
    (root / "site-packages" / "installed.py").write_text("not = ours\n")
    (root / "good.py").write_text(
        '"""Documented."""\n\n\ndef one(): "Too."\n\n\nasync def two(): ...\n\n\nclass C: ...\n'
    )
    (root / "bom.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    (root / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    (root / "bad.py").write_text("def f(:\n")
    (root / "coding.py").write_text("# coding: uft-8\n")
    (root / "nul.py").write_bytes(b"x = '\0'\n")
    (root / "empty.py").write_text("")
    return root


def test_a_file_that_does_not_parse_is_a_result_not_a_failure(start: Start, library: Path) -> None:
    run = start("--root", library, "--workers", "0", "--dsn", "memory://")
    run.check(executed=7, cached=0)
    assert run.number("attempts") == 7, "nothing was tried twice"
    assert "Files that don't parse, and why (3)" in run.text
    assert re.search(r"  bad\.py\n +line 1: invalid syntax", run.text)
    assert re.search(r"  coding\.py\n +unknown encoding: uft-8", run.text)
    assert re.search(r"  nul\.py\n +.*null bytes", run.text)
    assert re.search(r"functions +2 +2\n", run.text)
    assert re.search(r"classes +1 +1\n", run.text)
    assert re.search(r"documented +2 +2\n", run.text)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_only_a_file_that_has_changed_is_indexed_again(start: Start, library: Path, workers: str) -> None:
    start("--root", library, "--workers", workers).check(executed=7, cached=0)
    os.utime(library / "good.py", ns=(0, 0))
    start("--root", library, "--workers", workers).check(executed=1, cached=6)
    (library / "bad.py").write_text("def f():\n    ...\n")
    run = start("--root", library, "--workers", workers)
    run.check(executed=1, cached=6)
    assert "Files that don't parse, and why (2)" in run.text


def test_a_database_in_memory_has_no_room_for_other_processes(start: Start) -> None:
    run = start("--dsn", "memory://", "--workers", "1")
    assert run.end() == 2
    assert "--workers 0" in run.errors


def test_nothing_is_wider_than_eighty_columns(start: Start, library: Path) -> None:
    run = start("--root", library, "--workers", "0")
    run.check(executed=7, cached=0)
    # The folder and the database are whole wherever they are: people copy them.
    wide = [line for line in run.text.splitlines()[2:] if len(line) > 80]
    assert wide == []
