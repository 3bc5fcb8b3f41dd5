"""`creche worker` in one process: its options, its ends and their exit codes, and what it does as process 1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from commands import Jobs, application, children_of, executed, jobs_in, started
from creche import Status, Worker
from creche.cli import _worker as module
from creche.cli._problems import Misuse
from processes import eventually, gone

TERM, INT, USR1, USR2 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2
FIRST = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return application(tmp_path)


@pytest.fixture
def jobs(folder: Path) -> Jobs:
    return jobs_in(folder)


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("512MB", 512_000_000),
        ("512M", 512_000_000),
        ("512m", 512_000_000),
        ("512MiB", 512 << 20),
        ("512Mi", 512 << 20),
        ("1.5G", 1_500_000_000),
        ("2 GiB", 2 << 30),
        ("1TiB", 1 << 40),
        ("2000k", 2_000_000),
        ("2048KiB", 2 << 20),
        ("5000000", 5_000_000),
    ],
)
def test_a_size_is_read_as_it_is_written(text: str, meant: int) -> None:
    assert module.size(text) == meant
    assert module.size(meant) == meant


@pytest.mark.parametrize("text", ["", "many", "-5M", "512", "1k", "5iB", "512X", "5 M B", "1e9", "٣M"])
def test_what_is_no_size_or_too_small_for_a_worker_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="512M"):
        module.size(text)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], None),
        (["mail", "ocr"], ["mail", "ocr"]),
        (["ocr:8", "mail"], {"ocr": 8, "mail": None}),
        (["tenant:7:ocr"], ["tenant:7:ocr"]),
        (["tenant:ocr:3"], {"tenant:ocr": 3}),
        (["mail:", ":3", "a:²"], ["mail:", ":3", "a:²"]),
    ],
)
def test_the_last_colon_of_a_queue_counts_if_digits_follow(words: Sequence[str], meant: object) -> None:
    assert module._queues(words) == meant


def test_weights_are_read_from_the_last_equals_sign() -> None:
    assert module._weights([]) is None
    assert module._weights(["mail=3", "a=b=1"]) == {"mail": 3, "a=b": 1}


@pytest.mark.parametrize("words", [["mail"], ["mail="], ["=3"], ["mail=x"], ["mail=-1"], ["mail=1", "mail=2"]])
def test_what_is_no_weight_is_refused(words: Sequence[str]) -> None:
    with pytest.raises(Misuse, match="--weight"):
        module._weights(words)


def test_a_queue_that_is_given_twice_is_refused() -> None:
    with pytest.raises(Misuse, match="twice"):
        module._queues(["mail:2", "mail"])


def test_every_option_reaches_the_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def take(_: Worker, queue: object, **settings: Any) -> None:
        told.update(settings)
        raise Misuse("seen enough")

    application(folder, "from creche import Queue\nqueue = Queue('memory://')\n")
    monkeypatch.delitem(sys.modules, "app", raising=False)
    monkeypatch.setattr(Worker, "__init__", take)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    words = [
        "app:queue",
        "-c",
        "7",
        "-q",
        "ocr:8",
        "-q",
        "mail",
        "--weight",
        "mail=3",
        "--lease",
        "1m",
        "--grace",
        "20",
    ]
    words += ["--job-timeout", "2h", "--poll-interval", "0.5s", "--max-jobs", "9", "--max-memory", "1GiB", "--burst"]
    words += ["--prefetch", "7"]
    with pytest.raises(Misuse):
        module.worker.main([*words, "--name", "blue"], standalone_mode=False)
    assert told == {
        "concurrency": 7,
        "queues": {"ocr": 8, "mail": None},
        "weights": {"mail": 3},
        "lease": 60.0,
        "grace": 20.0,
        "job_timeout": 7200.0,
        "poll_interval": 0.5,
        "max_jobs": 9,
        "max_memory": 1 << 30,
        "prefetch": 7,
        "burst": True,
        "name": "blue",
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["app:queue", "--max-memory", "512"], "512M"),
        (["app:queue", "--lease", "soon"], "soon"),
        (["app:queue", "-q", "ocr:0"], "ocr"),
        (["app:queue", "-q", "ocr", "--weight", "mail=3"], "mail"),
        (["app:queue", "--max-jobs", "0"], "max_jobs=0"),
        (["app:worker", "--burst"], "burst"),
        (["app:queue", "--processes", "0"], "--processes"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(folder: Path, words: Sequence[str], says: str) -> None:
    done = executed(folder, "worker", *words)
    assert done.returncode == 2, done
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# --- ends -------------------------------------------------------------------------------------------


def test_a_burst_ends_with_0_when_all_is_done_and_with_1_when_something_died(folder: Path, jobs: Jobs) -> None:
    jobs.dispatch("quick", {"number": 1}, count=5)
    done = executed(folder, "worker", "app:queue", "--burst")
    assert (done.returncode, done.stdout) == (0, ""), done
    assert "drained: succeeded 5" in done.stderr
    jobs.dispatch("boom")
    jobs.dispatch("quick")
    done = executed(folder, "worker", "app:queue", "--burst")
    assert done.returncode == 1, done
    assert "succeeded 1, failed for good 1" in done.stderr


def test_a_worker_that_has_reached_its_number_of_jobs_ends_with_0(folder: Path, jobs: Jobs) -> None:
    *_, last = jobs.dispatch("quick", count=3)
    done = executed(folder, "worker", "app:queue", "--max-jobs", "2", "-c", "1")
    assert done.returncode == 0, done
    assert "max_jobs: succeeded 2" in done.stderr
    assert jobs.find(last).status is Status.PENDING


def test_a_grace_that_runs_out_gives_jobs_back_and_is_no_failure(folder: Path, jobs: Jobs) -> None:
    (job,) = jobs.dispatch("slow")
    with started(folder, "worker", "app:queue", "--grace", "0.2s") as worker:
        jobs.becomes(job, "processing")
        worker.send(TERM)
        assert worker.ended() == 0
    assert (jobs.find(job).status, jobs.find(job).attempts) == (Status.PENDING, 0)


def test_usr1_keeps_it_up_without_new_jobs_and_usr2_shows_what_it_does(
    folder: Path, jobs: Jobs, anyio_backend: str
) -> None:
    (running,) = jobs.dispatch("second")
    with started(folder, "worker", "app:queue", "--backend", anyio_backend, "--poll-interval", "0.1s") as worker:
        jobs.becomes(running, "processing")
        worker.send(USR2)
        worker.says("in second")
        worker.send(USR1)
        jobs.becomes(running, "completed")
        (late,) = jobs.dispatch("quick")
        time.sleep(0.5)
        assert jobs.find(late).status is Status.PENDING
        assert worker.process.poll() is None
        worker.send(TERM)
        assert worker.ended() == 0


def test_the_log_can_be_read_by_machines(folder: Path, jobs: Jobs) -> None:
    jobs.dispatch("boom")
    done = executed(folder, "worker", "app:queue", "--burst", "--log-format", "json", "--log-level", "info")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    (failed,) = [line for line in lines if line["level"] == "error"]
    assert "no such customer" in failed["message"]


# --- as process 1 of a container --------------------------------------------------------------------


def first(folder: Path) -> Sequence[str]:
    """Return what makes a command process 1 of a namespace of its own."""
    tried = subprocess.run([*FIRST, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces for processes here: {tried.stderr.strip()}")
    return FIRST


def inside(command_pid: int) -> int:
    """Return the pid, as seen from here, of process 1 inside."""
    assert eventually(lambda: children_of(command_pid))
    return children_of(command_pid)[0]


@pytest.mark.parametrize("number", [TERM, INT])
@pytest.mark.parametrize("processes", [[], ["--processes", "2"]])
def test_process_1_stops_at_a_signal(
    folder: Path, jobs: Jobs, number: signal.Signals, processes: Sequence[str]
) -> None:
    (job,) = jobs.dispatch("slow")
    words = ["worker", "app:queue", "--grace", "0.2s", *processes]
    with started(folder, *words, before=first(folder)) as container:
        jobs.becomes(job, "processing")
        os.kill(inside(container.process.pid), number)
        assert container.ended() == 0
        assert "Traceback" not in container.told
    assert jobs.find(job).status is Status.PENDING


def test_process_1_lets_zombies_of_others_go(folder: Path, jobs: Jobs) -> None:
    application(folder, ORPHANS)
    (job,) = jobs.dispatch("orphan")
    with started(folder, "worker", "app:queue", before=first(folder)) as container:
        jobs.becomes(job, "completed")
        init = inside(container.process.pid)
        assert eventually(lambda: (folder / "orphan").exists() and (folder / "orphan").read_text() == "ended")
        assert eventually(lambda: len(children_of(init)) == 1), "a zombie is a child that nobody waits for"
        os.kill(init, TERM)
        assert container.ended() == 0


def test_process_1_ends_as_its_command_does(folder: Path) -> None:
    with started(folder, "worker", "app:nothing", before=first(folder)) as container:
        assert container.ended() == 2
        assert "has no 'nothing'" in container.told


def test_nothing_in_a_container_outlives_process_1(folder: Path, jobs: Jobs) -> None:
    (job,) = jobs.dispatch("slow")
    with started(folder, "worker", "app:queue", "--processes", "2", before=first(folder)) as container:
        jobs.becomes(job, "processing")
        (supervisor,) = children_of(inside(container.process.pid))
        workers = children_of(supervisor)
        assert len(workers) == 2
        container.process.kill()
        assert eventually(lambda: all(map(gone, [supervisor, *workers])))


ORPHANS = """
    import subprocess

    from creche import Queue

    queue = Queue("sqlite:///jobs.db")

    @queue.task("orphan")
    async def orphan() -> None:
        # its shell ends at once: who is left belongs to process 1
        subprocess.run("(sleep 0.5; printf ended > orphan) &", shell=True, check=True)
"""
