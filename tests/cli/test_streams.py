"""Where commands read and write can be closed, full, or nobody's any more: they end with a line, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from cli.kit import PATIENCE
from creche._ids import new_job_id
from creche._job import NewJob
from creche.storage.sqlite import SQLiteStorage

COMMANDS = ("jobs list", "jobs list --json", "queues", "top --once", "doctor", "jobs cancel --all --dry-run", "--help")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a database and three thousand jobs, more than a pipe takes unread."""
    monkeypatch.setenv("CRECHE_DSN", "sqlite:///jobs.db")
    monkeypatch.chdir(tmp_path)

    async def fill() -> None:
        async with SQLiteStorage("jobs.db") as storage:
            await storage.insert([NewJob(id=new_job_id(), type="mail.send", payload=b"{}") for _ in range(3_000)])

    anyio.run(fill)
    return tmp_path


def in_shell(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that calls `$creche`, in a shell that says what its pipes' first commands ended with."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["creche"] = f"{sys.executable} -m creche"
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_finds_no_room_is_one_line_and_code_1(command: str) -> None:
    done = in_shell(f"$creche {command} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: what it prints can't be written: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", ["jobs list", "queues", "top --once", "doctor"])
def test_lines_in_a_pipe_are_not_filled_up_with_blanks(command: str) -> None:
    lines = in_shell(f"$creche {command}").stdout.splitlines()
    assert lines
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize("command", COMMANDS)
def test_without_stdin_stdout_and_stderr_a_command_does_its_work(command: str) -> None:
    done = in_shell(f"$creche {command} <&- >&- 2>&-")
    assert done.returncode == 0


@pytest.mark.parametrize(
    "command", ["jobs list --limit 3000", "jobs list --limit 3000 --json", "jobs cancel --all --dry-run", "top --json"]
)
def test_a_reader_that_has_seen_enough_ends_a_command_in_silence_as_sigpipe_does(command: str) -> None:
    done = in_shell(f"$creche {command} --dsn sqlite:///jobs.db | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 141
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_where_nobody_can_be_asked_because_stdin_is_closed_nothing_is_deleted() -> None:
    done = in_shell("$creche jobs cancel --all <&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--yes" in done.stderr
    assert "3,000 jobs would be" in in_shell("$creche jobs cancel --all --dry-run >/dev/null").stderr
