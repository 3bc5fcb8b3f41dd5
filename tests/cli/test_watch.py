"""`creche jobs watch`, and callbacks of `creche dispatch`: a real worker in another process, and what is seen here."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from cli.kit import PATIENCE, in_terminal

APP = """
    import anyio

    from creche import Discard, Job, Queue

    queue = Queue("sqlite:///jobs.db")

    @queue.task("read")
    async def read(job: Job, pages: int) -> int:
        for page in range(pages):
            await job.progress(page / pages, f"page {page}\\x1b[31m")
            await anyio.sleep(0.1)
        return pages

    runs = 0

    @queue.task("count")
    async def count() -> int:
        global runs
        runs += 1
        return runs

    @queue.callback("tell")
    async def tell(result: int) -> None:
        with open("told", "a") as told:
            told.write(f"{result}\\n")

    @queue.task("dies")
    async def dies() -> None:
        raise Discard("no paper")

    @queue.task("tells")
    async def tells(job: Job) -> None:
        await job.progress(0.42, "三十三件のうち二十二件を処理しました, " * 9)
        await anyio.sleep(600)

    @queue.task("paints")
    async def paints(job: Job, fail: bool) -> str:
        await job.progress(0.5, "\\x1b[31mred\\njob 1 100%: completed")
        await anyio.sleep(5)
        if fail:
            raise Discard("\\x1b[31mred, or \\x9b31mred")
        return "\\x1b[31mred, or \\x9b31mred \\u202eder"
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    subprocess.run(creche("migrate", "--dsn", "sqlite:///jobs.db"), cwd=tmp_path, check=True, capture_output=True)
    command = creche("worker", "app:queue", "--grace", "0")
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as worker:
        yield tmp_path
        worker.send_signal(signal.SIGTERM)
        _, words = worker.communicate(timeout=PATIENCE)
        assert worker.returncode == 0, words.decode()


def creche(*words: str) -> list[str]:
    return [sys.executable, "-m", "creche", *words]


def dispatch(home: Path, *words: str) -> str:
    command = creche("dispatch", "app:queue", *words)
    return subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout.strip()


def watch(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = creche("jobs", "watch", "--dsn", "sqlite:///jobs.db", *words)
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_line_at_each_change_and_then_the_result(home: Path) -> None:
    seen = watch(home, dispatch(home, "read", "pages=60"))
    assert (seen.returncode, seen.stdout) == (0, "60\n")
    lines = seen.stderr.splitlines()
    assert len(lines) >= 3
    assert "100%: completed" in lines[-1]
    assert any("processing, attempt 1 of 3: page" in line for line in lines)
    assert "\x1b" not in seen.stderr


def test_each_line_is_json_where_that_was_asked_for(home: Path) -> None:
    seen = watch(home, "--json", dispatch(home, "read", "pages=60"))
    records = [json.loads(line) for line in seen.stdout.splitlines()]
    assert records[-1]["status"] == "completed"
    assert records[-1]["result"] == 60
    shares = [record["progress"]["fraction"] for record in records if record["progress"]]
    assert shares == sorted(shares)
    assert len(shares) >= 2


def test_a_terminal_has_a_bar(home: Path) -> None:
    job_id = dispatch(home, "read", "pages=60")
    ours, theirs = pty.openpty()
    command = creche("jobs", "watch", "--dsn", "sqlite:///jobs.db", job_id)
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=theirs) as watching:
        os.close(theirs)
        drawn = b""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # they are gone
                break
            drawn += piece
        output, _ = watching.communicate(timeout=PATIENCE)
    os.close(ours)
    assert output == b"60\n"
    assert "━".encode() in drawn
    assert b"100%" in drawn
    assert re.search(rb"page \d+\\u001b\[31m", drawn)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_however_much_a_job_says_its_share_is_shown_on_one_line(
    home: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    job_id = dispatch(home, "tells")
    with in_terminal("jobs", "watch", "--dsn", "sqlite:///jobs.db", job_id, columns=columns) as terminal:
        deadline = time.monotonic() + PATIENCE
        while "42%" not in terminal.shown:
            assert time.monotonic() < deadline, terminal.shown
            terminal.read(0.1)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == -signal.SIGTERM
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", terminal.shown)]
    line = next(line for line in drawn if "42%" in line)
    assert re.search(r"^processing, a.*… [━╸╺]+ +42% \d:\d\d:\d\d$", line)
    assert max(map(cell_len, drawn)) <= columns
    assert "\x1b[?25l" not in terminal.shown, "the cursor was never taken: it need not be given back"


def test_a_terminal_that_can_only_print_has_lines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    job_id = dispatch(home, "read", "pages=10")
    words = ("jobs", "watch", "--dsn", "sqlite:///jobs.db", job_id)
    with in_terminal(*words, environment={"TERM": "dumb"}) as terminal:
        assert terminal.ended() == 0, terminal.shown
    assert f"job {job_id} 100%: completed" in terminal.shown
    assert "\x1b" not in terminal.shown


def test_a_job_that_dies_or_is_not_there_or_takes_too_long_has_its_own_exit_code(home: Path) -> None:
    dead = watch(home, dispatch(home, "dies"))
    assert dead.returncode == 3
    assert "no paper" in dead.stderr
    missing = watch(home, "01a1ffbb-0608-73fd-b495-106d2fc0fa56")
    assert missing.returncode == 3
    assert "there is no job" in missing.stderr
    late = watch(home, "--timeout", "0.2", dispatch(home, "tells"))
    assert late.returncode == 4
    assert "is still" in late.stderr


def test_what_a_job_says_drives_no_terminal_and_adds_no_line(home: Path) -> None:
    wanted = "\x1b[31mred, or \x9b31mred \u202eder"
    good, bad = watch(home, dispatch(home, "paints", "fail=false")), watch(home, dispatch(home, "paints", "fail=true"))
    assert json.loads(good.stdout) == wanted
    assert json.loads(dispatch(home, "paints", "fail=false", "--wait")) == wanted
    waited = subprocess.run(
        creche("dispatch", "app:queue", "--wait", "paints", "fail=true"),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (good.returncode, bad.returncode, waited.returncode) == (0, 3, 3)
    for said in (good.stdout, good.stderr, bad.stderr, waited.stderr):
        assert "red" in said
        assert not re.search(r"[\x1b\x80-\x9f\u202e]", said)
    assert not [line for line in good.stderr.splitlines() if line.startswith("job 1 ")]


def test_a_dispatch_may_ask_for_a_new_run_and_for_callbacks(home: Path) -> None:
    options = ["--result-ttl", "60", "--callback", "tell", "--wait"]
    runs = [dispatch(home, "count", *options), dispatch(home, "count", *options)]
    runs.append(dispatch(home, "count", *options, "--refresh"))
    assert runs == ["1", "1", "2"]
    until = time.monotonic() + PATIENCE
    while len(told := (home / "told").read_text().split() if (home / "told").exists() else []) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert sorted(told) == ["1", "1", "2"]
