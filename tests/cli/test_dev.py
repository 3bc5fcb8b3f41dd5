"""`creche dev`: a worker that begins anew when the application changes, and bears its mistakes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from commands import Jobs, application, executed, jobs_in, started
from creche import Status
from creche.cli._dev import looked_at
from processes import eventually, gone

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL

VERSION = """
    import anyio
    from creche import Queue

    queue = Queue("sqlite:///jobs.db")

    @queue.task("version")
    async def version() -> int:
        return {version}

    @queue.task("slow")
    async def slow() -> None:
        await anyio.sleep(600)
"""


def write(folder: Path, version: int) -> None:
    application(folder, VERSION.format(version=version))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, 1)
    return tmp_path


@pytest.fixture
def jobs(folder: Path) -> Jobs:
    return jobs_in(folder)


def answer(jobs: Jobs) -> bytes | None:
    (job,) = jobs.dispatch("version")
    jobs.becomes(job, "completed")
    return jobs.find(job).result


# --- what is looked at ------------------------------------------------------------------------------


def test_only_files_of_the_application_are_looked_at(tmp_path: Path) -> None:
    files = ["app.py", "package/tasks.py", "README.md", "data.pyc", ".hidden.py", ".git/hook.py", "node_modules/x.py"]
    files += ["env/pyvenv.cfg", "env/lib/site.py", "package/__pycache__/tasks.py"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dangling.py").symlink_to("nowhere")
    assert set(looked_at(tmp_path)) == {f"{tmp_path}/app.py", f"{tmp_path}/package/tasks.py"}


def replace(file: Path, text: str) -> None:
    """Change a file, but not its time."""
    facts = file.stat()
    file.write_text(text)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_change_of_time_size_or_presence_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    seen = [looked_at(tmp_path)]
    changes: list[Callable[[], object]] = [
        file.touch,
        lambda: os.utime(file, ns=(1, 1)),
        lambda: replace(file, "x"),
        file.unlink,
    ]
    for change in changes:
        change()
        seen.append(looked_at(tmp_path))
    assert all(before != after for before, after in pairwise(seen))
    assert seen[0] == seen[-1]


# --- with real processes ----------------------------------------------------------------------------


def test_a_change_is_run_at_once_and_a_running_job_is_given_back(folder: Path, jobs: Jobs, anyio_backend: str) -> None:
    with started(folder, "dev", "app:queue", "--grace", "0.1s", "--backend", anyio_backend) as dev:
        dev.says(" serves ")
        assert answer(jobs) == b"1"
        (running,) = jobs.dispatch("slow")
        jobs.becomes(running, "processing")
        write(folder, 22)
        dev.says("app.py has changed")
        dev.says(" serves ", 2)
        assert answer(jobs) == b"22"
        assert jobs.find(running).attempts == 1, "the attempt that was broken off does not count"
        dev.send(INT)
        assert dev.ended() == 0
    assert jobs.find(running).status is Status.PENDING


def test_it_bears_a_syntax_error_until_the_next_change(folder: Path, jobs: Jobs) -> None:
    with started(folder, "dev", "app:queue") as dev:
        dev.says(" serves ")
        (folder / "app.py").write_text("def broken(:\n")
        dev.says("SyntaxError")
        assert "def broken(:" in dev.told
        dev.says("it is tried again when a file changes")
        assert dev.process.poll() is None
        write(folder, 333)
        dev.says(" serves ", 2)
        assert answer(jobs) == b"333"
        dev.send(TERM)
        assert dev.ended() == 0


def test_it_may_begin_with_a_mistake(folder: Path, jobs: Jobs) -> None:
    (folder / "app.py").write_text("import nowhere_at_all\n")
    with started(folder, "dev", "app:queue") as dev:
        dev.says("it is tried again when a file changes")
        write(folder, 1)
        dev.says(" serves ")
        dev.send(TERM)
        assert dev.ended() == 0


def test_it_brings_the_schema_up_to_date_and_logs_for_people_who_look_for_mistakes(folder: Path) -> None:
    with started(folder, "dev", CRECHE_APP="app:queue") as dev:
        dev.says(" serves ")
        dev.says("DEBUG")
        assert executed(folder, "migrate", "--check", "--dsn", "sqlite:///jobs.db").returncode == 0
        dev.send(TERM)
        assert dev.ended() == 0


def test_a_signal_while_nothing_runs_ends_it(folder: Path) -> None:
    (folder / "app.py").write_text("import nowhere_at_all\n")
    with started(folder, "dev", "app:queue") as dev:
        dev.says("it is tried again when a file changes")
        dev.send(INT)
        assert dev.ended() == 0


def test_a_worker_with_settings_of_its_own_is_run_as_it_is(folder: Path, jobs: Jobs) -> None:
    text = VERSION.format(version=1) + "\n    from creche import Worker\n    worker = Worker(queue, grace=600)\n"
    application(folder, text)
    with started(folder, "dev", "app:worker", "--grace", "0.1s") as dev:
        (running,) = jobs.dispatch("slow")
        jobs.becomes(running, "processing")
        dev.send(TERM)
        assert dev.ended() == 0
    assert jobs.find(running).status is Status.PENDING


def test_a_child_does_not_outlive_it(folder: Path) -> None:
    with started(folder, "dev", "app:queue") as dev:
        dev.says(" serves ")
        (child,) = dev.children()
        dev.send(KILL)
        assert eventually(lambda: gone(child), 20)


def test_a_target_that_nobody_names_is_a_usage_error(folder: Path) -> None:
    assert executed(folder, "dev").returncode == 2
