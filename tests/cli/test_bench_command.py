"""`creche bench`: a guest that asks first, touches nobody's jobs, and leaves none of its own, whatever ends it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import pytest

from cli.kit import PATIENCE, Done, Run, in_terminal
from creche import Queue, Status
from creche._ids import new_job_id, new_nonce
from creche._job import Event, Failure, JobFilter, NewJob, Settlement
from creche.abc import Storage
from creche.bench import Answer, ChildFailed, Order, Reading, Work, _heat
from creche.bench import _guest as guests
from creche.bench._guest import PREFIX
from creche.cli._bench._news import own_up
from creche.storage import open_storage
from processes import eventually, gone

T = TypeVar("T")

LONG_AGO = datetime.now(UTC) - timedelta(days=300)
FEW = ["--jobs", "100", "--seconds", "10", "--yes"]
ONCE = [*FEW, "--rounds", "1"]
SLOW = ["bench", "sweep", "-c", "4", "--prefetch", "0", "--processes", "1", "--handler-ms", "60000", "--yes"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CRECHE_APP", "DATABASE_URL", "CRECHE_DSN", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", "postgresql"])
def dsn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with its schema, which the environment names."""
    dsn = str(request.getfixturevalue(f"{request.param}_dsn"))
    anyio.run(Queue(dsn).migrate)
    monkeypatch.setenv("CRECHE_DSN", dsn)
    return dsn


@pytest.fixture
def file(sqlite_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same on SQLite, for what has nothing to do with an engine."""
    anyio.run(Queue(sqlite_dsn).migrate)
    monkeypatch.setenv("CRECHE_DSN", sqlite_dsn)
    return sqlite_dsn


def with_storage(dsn: str, do: Callable[[Storage], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_storage(dsn) as storage:
            return await do(storage)

    return anyio.run(run)


def others(dsn: str) -> list[UUID]:
    """Jobs that any upkeep would change: past their retention, due, or under a lease that has run out."""
    names = ["completed", "failed", "held", "scheduled", "pending"]
    jobs = [
        NewJob(
            id=new_job_id(),
            type="mail.send",
            payload=b"{}",
            queue_name=f"of {name}",
            delay=3_600 if name == "scheduled" else 0,
        )
        for name in names
    ]

    async def write(storage: Storage) -> None:
        await storage.insert(jobs, now=LONG_AGO)
        error = Failure(type="ValueError", message="no such customer", traceback="")
        for name, event in (("completed", Event.SUCCEED), ("failed", Event.FAIL), ("held", None)):
            (job,) = (
                await storage.reserve([f"of {name}"], 1, lease=1, worker="w", nonce=new_nonce(), now=LONG_AGO)
            ).jobs
            if event is not None:
                ended = Settlement(lease=job.lease, event=event, error=error if event is Event.FAIL else None)
                await storage.settle([ended], now=LONG_AGO)

    with_storage(dsn, write)
    return [job.id for job in jobs]


def everything(dsn: str) -> Any:
    async def look(storage: Storage) -> Any:
        return await storage.list(JobFilter(), 10_000), await storage.dead_letters(1_000), await storage.workers()

    return with_storage(dsn, look)


def ours(dsn: str, status: Status) -> int:
    async def look(storage: Storage) -> int:
        found = await storage.list(JobFilter(statuses=frozenset({status})), 1_000)
        return sum(job.queue_name.startswith(PREFIX) for job in found)

    return with_storage(dsn, look)


@contextmanager
def running(*words: str) -> Generator[subprocess.Popen[str]]:
    """Run `creche` in a process of its own."""
    command = [sys.executable, "-m", "creche", *words]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_of(pid: int) -> Sequence[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for thread in threads for word in (thread / "children").read_text().split()]


# --- what it leaves, and what it does not touch -------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["throughput", *ONCE, "-c", "1", "-c", "4"],
        ["latency", "--jobs", "2", "--yes"],
        ["sweep", *ONCE, "-c", "2", "--prefetch", "0", "--prefetch", "10", "--processes", "2"],
    ],
    ids=lambda words: words[0],
)
def test_nothing_is_touched_and_nothing_is_left(run: Run, dsn: str, words: Sequence[str]) -> None:
    assert len(others(dsn)) == 5
    before = everything(dsn)
    done = run("bench", *words)
    assert done.code == 0, done
    assert everything(dsn) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing_either(dsn: str, number: signal.Signals) -> None:
    others(dsn)
    before = everything(dsn)
    with running(*SLOW) as process:
        assert eventually(lambda: ours(dsn, Status.PROCESSING) == 4, PATIENCE)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (128 + number, ""), err
    assert "deleting what was made" in err
    assert everything(dsn) == before


def test_a_second_signal_leaves_them_says_so_and_is_the_code_too(file: str) -> None:
    with running(*SLOW) as process:
        assert process.stderr is not None
        assert eventually(lambda: ours(file, Status.PROCESSING) == 4, PATIENCE)
        held = sqlite3.connect(file.removeprefix("sqlite:///"))
        held.execute("BEGIN IMMEDIATE")  # nothing can be given back, or deleted
        process.send_signal(signal.SIGINT)
        assert any("deleting what was made" in line for line in process.stderr)
        time.sleep(0.3)  # whoever says it twice within less means it once
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(PATIENCE) == 130, said
        held.close()
    assert f"jobs are left in the queue {PREFIX}" in said
    assert f"--yes --dsn {file}`" in said
    assert "Traceback" not in said


def test_when_it_is_killed_its_workers_give_back_what_they_hold_and_end(dsn: str) -> None:
    with running(*SLOW) as process:
        assert eventually(lambda: ours(dsn, Status.PROCESSING) == 4, PATIENCE)
        children = children_of(process.pid)
        process.kill()
        assert children
        assert eventually(lambda: all(map(gone, children)), PATIENCE)
    assert ours(dsn, Status.PROCESSING) == 0
    assert ours(dsn, Status.PENDING) > 4


# --- what it says before, and what it refuses ---------------------------------------------------------------


def refused(done: Done, code: int, *parts: str) -> None:
    assert (done.code, done.out) == (code, ""), done
    assert all(part in done.err for part in parts), done


@pytest.mark.parametrize("command", ["throughput", "latency", "sweep"])
def test_it_says_what_it_will_do_and_does_nothing_unless_it_may(run: Run, file: str, command: str) -> None:
    refused(run("bench", command, "--jobs", "700"), 2, "of at most 700 jobs", "No other queue is touched", "--yes")
    assert everything(file) == ([], [], [])


def test_a_question_that_is_answered_with_no_writes_nothing(file: str) -> None:
    with in_terminal("bench", "latency") as terminal:
        terminal.press("n\n")
        assert terminal.ended() == 130
        assert "nothing was written" in terminal.shown
    assert everything(file) == ([], [], [])


def test_a_terminal_is_asked_and_then_told_how_far_it_is(file: str) -> None:
    words = ["-c", "1", "--prefetch", "0", "--processes", "1", "--jobs", "100", "--rounds", "1"]
    with in_terminal("bench", "sweep", *words) as terminal:
        terminal.press("y\n")
        assert terminal.ended() == 0, terminal.shown
    assert "1 of 1, round 1 of 1" in terminal.shown
    assert "Worker(queue, concurrency=1, prefetch=0)" in terminal.shown


@pytest.mark.parametrize("command", ["throughput", "latency", "sweep"])
def test_memory_is_refused_for_it_is_no_database_that_others_have(run: Run, command: str) -> None:
    refused(run("bench", command, "--yes", "--dsn", "memory://"), 2, "lives inside one process")


def test_a_database_without_its_schema_is_not_given_one(run: Run, postgresql_dsn: str, sqlite_dsn: str) -> None:
    refused(run("bench", "throughput", "--yes", "--dsn", postgresql_dsn), 1, "creche migrate")
    refused(run("bench", "throughput", "--yes", "--dsn", sqlite_dsn), 1, "creche migrate")
    assert not Path(sqlite_dsn.removeprefix("sqlite:///")).exists()


def test_a_plot_needs_its_extra_before_anything_is_measured(
    run: Run, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run("bench", "sweep", "--yes", "--plot", "sweep.png"), 1, "pip install 'creche[bench]'")


@pytest.mark.parametrize(
    ("name", "says"), [("sweep.pdf", "FILE.png"), ("no/such/folder.png", "nothing can be written")]
)
def test_a_plot_that_can_not_be_written_is_refused_before(run: Run, file: str, name: str, says: str) -> None:
    refused(run("bench", "sweep", "--yes", "--plot", name), 2, says)


def test_a_matplotlib_that_is_broken_is_told_in_one_line_before(
    run: Run, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run("bench", "sweep", "--yes", "--plot", "sweep.png")
    refused(done, 1, "Error: matplotlib can't draw: ModuleNotFoundError")
    assert done.err.count("\n") == 1
    assert everything(file) == ([], [], [])


def test_a_file_that_can_not_be_opened_is_no_place_for_a_plot(run: Run, file: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.png").symlink_to("no/such/folder.png")
    refused(run("bench", "sweep", "--yes", "--plot", "sweep.png"), 2, "nothing can be written")


def test_a_look_whether_a_plot_can_be_written_changes_nothing(run: Run, file: str, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    for name in ("old.png", "new.png"):
        refused(run("bench", "sweep", "--plot", name), 2, "--yes")
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert not (tmp_path / "new.png").exists()


@pytest.mark.parametrize(
    ("words", "enough"),
    [(["throughput", "-c", "50"], 150), (["sweep", "-c", "5000", "--processes", "2", "--handler-ms", "20"], 30_000)],
)
def test_slots_that_would_run_a_job_or_two_are_too_many(run: Run, file: str, words: list[str], enough: int) -> None:
    refused(run("bench", *words, "--yes", "--jobs", str(enough - 1)), 2, f"say --jobs {enough}")
    assert everything(file) == ([], [], [])


@pytest.mark.parametrize(
    "words",
    [["--jobs", "99"], ["--seconds", "0"], ["--rounds", "0"], ["-c", "0"], ["--processes", "0"], ["--prefetch", "-1"]],
)
def test_bounds_that_are_none_are_usage_errors(run: Run, file: str, words: Sequence[str]) -> None:
    refused(run("bench", "throughput", "--yes", *words), 2, words[0])


# --- what it prints -----------------------------------------------------------------------------------------


def test_throughput_says_jobs_per_second_in_and_out(run: Run, file: str) -> None:
    done = run("bench", "throughput", *FEW, "--rounds", "2", "-c", "3", "--backend", "trio", "--json")
    measured, runs = done.data["measured"], done.data["runs"]
    assert {"date", "machine", "versions"} == measured.keys()
    kinds = [{key: each.get(key) for key in ("kind", "callers", "concurrency")} for each in runs]
    assert kinds == [
        {"kind": "dispatch", "callers": 1, "concurrency": None},
        {"kind": "dispatch", "callers": 16, "concurrency": None},
        {"kind": "bulk", "callers": None, "concurrency": None},
        {"kind": "drain", "callers": None, "concurrency": 3},
    ]
    assert (runs[3]["processes"], runs[3]["prefetch"]) == (1, 2_000)
    for each in runs:
        assert len(each["rounds"]) == 2
        assert each["jobs_per_second"] > 0
        assert each["cpu_per_job"] > 0
        assert all(turn["jobs"] >= 100 and turn["seconds"] > 0 for turn in each["rounds"])


def test_throughput_is_a_table_for_people(run: Run, file: str) -> None:
    lines = run("bench", "throughput", *ONCE, "-c", "3").out.splitlines()
    assert lines[0].split() == ["WHAT", "JOBS/S", "LEAST", "MOST", "CPU", "µS/JOB"]
    assert [line[:22].rstrip() for line in lines[1:]] == [
        "dispatch, one at a tim",
        "dispatch, 16 at once",
        "dispatch, in bulk",
        "run, concurrency 3",
    ]


def test_latency_has_quantiles_of_both(run: Run, file: str) -> None:
    found = run("bench", "latency", "--jobs", "2", "--yes", "--json").data
    assert found["jobs"] == 2
    for name in ("handler", "wait"):
        assert list(found[name]) == ["p50", "p95", "p99", "max"]
        assert 0 < found[name]["p50"] <= found[name]["max"]
    assert found["handler"]["max"] < found["wait"]["max"]


def test_a_sweep_advises_one_of_what_it_tried_and_draws_it(run: Run, file: str, tmp_path: Path) -> None:
    words = ["sweep", *ONCE, "-c", "1", "-c", "4", "--prefetch", "0", "--processes", "1", "--handler-ms", "1"]
    found = run("bench", *words, "--plot", "sweep.PNG", "--json").data
    assert found.keys() == {"measured", "cells", "advice"}
    assert [(each["concurrency"], each["prefetch"], each["processes"]) for each in found["cells"]] == [
        (1, 0, 1),
        (4, 0, 1),
    ]
    assert all(each["handler_ms"] == 1 and len(each["rounds"]) == 1 for each in found["cells"])
    (advice,) = found["advice"]
    assert advice.keys() == {"handler_ms", "best", "chosen", "tolerance", "code", "command"}
    assert advice["chosen"] in found["cells"]
    chosen = advice["chosen"]["concurrency"]
    assert advice["code"] == f"Worker(queue, concurrency={chosen}, prefetch=0)"
    assert advice["command"] == f"creche worker app:queue --concurrency {chosen} --prefetch 0"
    assert (tmp_path / "sweep.PNG").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_sweep_is_a_heat_map_with_code_to_paste_for_people(run: Run, file: str) -> None:
    words = ["-c", "1", "-c", "4", "--prefetch", "10", "--processes", "2", "--backend", "trio"]
    done = run("bench", "sweep", *ONCE, *words)
    assert "2 processes\n" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert "\x1b" not in done.out
    assert "Worker(queue, concurrency=" in done.out
    assert "prefetch=10)  # in each of 2 processes\n" in done.out
    assert "--prefetch 10 --processes 2 --backend trio\n" in done.out


def test_a_plot_that_fails_in_the_end_costs_nothing_but_the_plot(
    run: Run, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise _heat.PlotFailed(ValueError("too large"))

    monkeypatch.setattr(_heat, "plot", fail)
    words = ["sweep", *ONCE, "-c", "1", "--prefetch", "0", "--processes", "1", "--plot", "sweep.png", "--json"]
    done = run("bench", *words)
    assert done.code == 1
    assert done.data["advice"]
    assert done.err.endswith("Error: matplotlib can't draw: ValueError: too large\n")


TRACEBACK = """\
  + Exception Group Traceback (most recent call last):
  |   File "child.py", line 1, in main
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    | creche.errors.StorageUnavailable: postgresql://app:secret@db/jobs said nothing
    +------------------------------------
"""


@pytest.mark.parametrize(
    ("tail", "last"),
    [
        (TRACEBACK, "creche.errors.StorageUnavailable: postgresql://app:***@db/jobs said nothing"),
        ("Traceback:\nZeroDivisionError: division by zero\n", "ZeroDivisionError: division by zero"),
        ("", "ended without an answer, nor a word"),
    ],
)
def test_a_process_that_fails_is_quoted_line_by_line_and_its_last_word_ends_the_command(
    run: Run, file: str, monkeypatch: pytest.MonkeyPatch, tail: str, last: str
) -> None:
    async def fail(*_: object) -> Work:
        raise ChildFailed("creche", "ended without an answer", tail)

    monkeypatch.setattr(guests, "dispatched", fail)
    monkeypatch.setattr(guests, "LATE", 0.0)
    done = run("bench", "throughput", *ONCE, "-c", "1")
    assert done.code == 1
    *said, end = done.err.splitlines()
    assert end.startswith("Error: creche ended without an answer")
    assert end.endswith(last)
    assert "secret" not in done.err
    assert [line[2:] for line in said[len(said) - len(tail.splitlines()) :]] == tail.replace(
        "secret", "***"
    ).splitlines()
    assert everything(file) == ([], [], [])


def test_runs_that_are_out_of_jobs_early_are_told_and_others_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    def work(jobs: int, seconds: float) -> Work:
        answer = Answer(count=jobs, began=0.0, ended=seconds, closed=seconds, cpu=0.0, rss=0)
        return Work(jobs=jobs, seconds=seconds, answers=[answer], server=Reading())

    order = Order(role="drain", dsn="memory://", jobs=5_000, limit=2.0)
    long = [work(5_000, 1.1), work(300, 0.2)]
    own_up(long, order)
    assert not capsys.readouterr().err
    own_up([*long, work(5_000, 0.301)], order)
    assert capsys.readouterr().err == (
        "out of jobs early in 1 of 3 runs, once after 0.3 of 2 s, little to judge by: say --jobs 34000\n"
    )
