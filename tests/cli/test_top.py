"""`creche top` in a real terminal, over a real worker: it fits, says what matters, and leaves all as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import anyio
import psycopg
import pytest
from attrs import evolve
from rich.cells import cell_len
from rich.console import Console

from cli.kit import PATIENCE, Run, Terminal, in_terminal
from creche import Queue, Status
from creche._ids import new_job_id
from creche._job import Failure, JobFilter, JobRecord, NewJob, Presence, QueueStats
from creche.cli._screen import Look, Outage, screen
from creche.storage import open_storage
from creche.testing.servers import PostgreSQLServer, private_postgresql
from missing import unless_missing
from processes import eventually

APP = """
    import anyio

    from creche import Discard, Job, Queue

    queue = Queue("sqlite:///jobs.db")

    @queue.task("document.ocr")
    async def ocr(job: Job) -> None:
        await job.progress(0.42, "page 42")
        await anyio.sleep(600)

    @queue.task("mail.send")
    async def send() -> None:
        raise Discard("no \\x1b[31m[red]such customer")
"""

LEAVES_SCREEN = "\x1b[?1049l"
SHOWS_CURSOR = "\x1b[?25h"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty database, which the environment names."""
    for name in ("CRECHE_APP", "DATABASE_URL", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CRECHE_DSN", "sqlite:///jobs.db")
    monkeypatch.chdir(tmp_path)
    anyio.run(open_storage("sqlite:///jobs.db").migrate)
    return tmp_path


@pytest.fixture
def busy(folder: Path) -> Iterator[str]:
    """A worker at work: a job that runs, one that failed, one that nobody takes. Its first one's id."""
    (folder / "app.py").write_text(textwrap.dedent(APP))

    async def dispatch() -> str:
        async with Queue("sqlite:///jobs.db") as queue:
            job_id = (await queue.dispatch("document.ocr")).job_id
            await queue.dispatch("mail.send")
            await queue.dispatch("shop.sync", queue="漢字-and-a-very-long-name-of-a-queue")
            return str(job_id)

    async def under_way() -> bool:
        async with Queue("sqlite:///jobs.db") as queue:
            found = {job.status for job in await queue.jobs()}
            return found == {Status.PROCESSING, Status.FAILED, Status.PENDING}

    job_id = anyio.run(dispatch)
    command = [sys.executable, "-m", "creche", "worker", "app:queue", "-c", "3", "-q", "default", "--grace", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as worker:
        assert eventually(lambda: anyio.run(under_way), PATIENCE)
        yield job_id
        worker.send_signal(signal.SIGTERM)
        _, words = worker.communicate(timeout=PATIENCE)
        assert worker.returncode == 0, words.decode()


def as_it_was(terminal: Terminal) -> bool:
    return (
        terminal.settings() == terminal.before
        and LEAVES_SCREEN in terminal.shown
        and SHOWS_CURSOR in terminal.shown.rpartition("\x1b[?25l")[2]
    )


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 30)])
def test_it_fits_the_window_and_says_what_matters(busy: str, columns: int, lines: int) -> None:
    with in_terminal("top", "--interval", "0.2", columns=columns, lines=lines) as terminal:

        def complete(frame: Sequence[str]) -> bool:
            facts = (busy, "42%", "1/3", "document.ocr", "Discard: no", "no worker", "漢字")
            return all(fact in "\n".join(frame) for fact in facts)

        terminal.until(complete)
        terminal.press("q")
        assert terminal.ended() == 0
        assert as_it_was(terminal)
        drawn = terminal.frames()
    assert len(drawn) > 1
    for frame in drawn[:-1]:
        assert max(map(cell_len, frame)) <= columns, frame
        assert len(frame) <= lines


def test_it_follows_the_window(busy: str) -> None:
    with in_terminal("top", columns=120, lines=40) as terminal:
        terminal.until(lambda frame: "PROCESSING" in "\n".join(frame))
        terminal.resize(80, 20)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        narrow = terminal.until(lambda frame: "PEND " in "\n".join(frame))
        assert busy in "\n".join(narrow)
        assert max(map(cell_len, narrow)) <= 80


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(number: signal.Signals, code: int) -> None:
    with in_terminal("top") as terminal:
        terminal.until(lambda frame: "queues 0" in "\n".join(frame))
        terminal.process.send_signal(number)
        assert terminal.ended() == code
        assert as_it_was(terminal)


def test_it_gives_the_terminal_back_while_it_is_suspended() -> None:
    with in_terminal("top") as terminal:
        terminal.until(lambda frame: "queues 0" in "\n".join(frame))
        terminal.process.send_signal(signal.SIGTSTP)
        stat = Path(f"/proc/{terminal.process.pid}/stat")
        assert eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", PATIENCE)
        terminal.read(0.2)
        assert as_it_was(terminal)
        terminal.shown = ""
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until(lambda frame: "queues 0" in "\n".join(frame))
        assert terminal.settings() != terminal.before
        terminal.press("Q")
        assert terminal.ended() == 0
        assert as_it_was(terminal)


def test_an_outage_is_shown_and_outlived() -> None:
    for server in unless_missing(private_postgresql(own=True, durable=True)):
        assert isinstance(server, PostgreSQLServer)
        dsn = server.create_database("top")
        anyio.run(open_storage(dsn).migrate)
        anyio.run(_seed, dsn)
        with in_terminal("top", "--interval", "0.2", environment={"CRECHE_DSN": dsn}) as terminal:
            terminal.until(lambda frame: "mail" in "\n".join(frame))
            server.kill()
            dark = terminal.until(lambda frame: "UTC" in frame[0] and "no answer for" in "\n".join(frame))
            assert "mail" in "\n".join(dark), "what was seen last stays"
            assert max(map(cell_len, dark)) <= 80
            server.start()
            terminal.until(lambda frame: "mail" in "\n".join(frame) and "no answer" not in "\n".join(frame))
            terminal.press("q")
            assert terminal.ended() == 0
        assert ":" + dsn.split(":")[2].split("@")[0] not in terminal.shown, "no password on the screen"


def test_a_look_that_waits_is_told_of_before_it_is_given_up(postgresql_dsn: str) -> None:
    anyio.run(open_storage(postgresql_dsn).migrate)
    with in_terminal("top", "--interval", "0.2", environment={"CRECHE_DSN": postgresql_dsn}) as terminal:
        terminal.until(lambda frame: "UTC" in frame[0])
        with psycopg.connect(postgresql_dsn) as locking:
            locking.execute("LOCK TABLE creche_jobs")
            terminal.until(lambda frame: ": still waiting for it" in "\n".join(frame))
        terminal.until(lambda frame: "UTC" in frame[0] and "no answer" not in "\n".join(frame))


async def _seed(dsn: str) -> None:
    async with open_storage(dsn) as storage:
        await storage.insert([NewJob(id=new_job_id(), type="mail.send", payload=b"{}", queue_name="mail")])


def test_what_keeps_it_from_ever_looking_ends_it_with_one_line() -> None:
    with in_terminal("top", environment={"CRECHE_DSN": "sqlite:///mistyped.db"}) as terminal:
        assert terminal.ended() == 1
        assert as_it_was(terminal)
        after = terminal.shown.rpartition(LEAVES_SCREEN)[2]
    assert "creche migrate" in after
    assert "Traceback" not in terminal.shown


def test_one_look_is_printed_uncut_in_a_pipe(busy: str, run: Run) -> None:
    done = run("top", "--once")
    assert done.code == 0
    assert "漢字-and-a-very-long-name-of-a-queue" in done.out
    assert busy in done.out
    data = run("top", "--once", "--json").data
    assert data["workers"][0]["jobs"][0]["progress"] == {"fraction": 0.42, "message": "page 42"}
    assert data["failed"][0]["error"]["message"] == "no \x1b[31m[red]such customer"


def test_without_a_terminal_it_wants_once_or_json(run: Run) -> None:
    done = run("top")
    assert (done.code, "--once" in done.err) == (2, True)


def test_in_a_terminal_that_can_only_print_it_wants_them_too() -> None:
    with in_terminal("top", environment={"TERM": "dumb"}) as terminal:
        assert terminal.ended() == 2, terminal.shown
    assert "--once" in terminal.shown


def outage_in(width: int, height: int) -> list[str]:
    """What top shows where it has not had an answer yet."""
    why = "can't reach it: 接続に失敗しました: connection to server at 127.0.0.1, port 5432 failed: Connection refused"
    return drawn(None, Outage(since=datetime.now(UTC), why=why), width, height)


def drawn(look: Look | None, outage: Outage | None, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=StringIO())
    with console.capture() as captured:
        console.print(screen(look, outage, where="postgresql://db/jobs", width=width, height=height))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_reason_of_an_outage_is_shown_to_its_end_where_there_is_room() -> None:
    for width, height, lines in ((50, 24, 3), (80, 24, 2), (120, 40, 2)):
        shown = outage_in(width, height)
        assert len(shown) == 1 + lines, shown
        assert " ".join(shown).endswith("failed: Connection refused")
        assert max(map(cell_len, shown)) <= width
    small = outage_in(40, 10)
    assert len(small) == 2
    assert small[1].startswith("no answer for")
    assert small[1].endswith("…")
    assert cell_len(small[1]) <= 40


@pytest.mark.parametrize("width", [50, 60, 69, 70, 80])
def test_a_narrow_window_has_names_and_whole_numbers(width: int) -> None:
    now = datetime.now(UTC)
    counts = {Status.PENDING: 54_321, Status.COMPLETED: 98_765, Status.FAILED: 99_321}
    queue = QueueStats(queue_name="documents", counts=counts, oldest_ready=59.0, finished=99, paused_at=now)
    look = Look(at=now, queues=[queue], workers=(), failed=())
    (line,) = [line for line in drawn(look, None, width, 24) if "54321" in line]
    assert line.startswith("documen")
    assert "99321" in line
    assert line.endswith(("paused 0s", "paused 1s"))
    assert cell_len(line) <= width


def test_a_long_type_takes_no_room_from_what_went_wrong() -> None:
    what = "no such customer: they have moved away"

    async def inserted() -> JobRecord:
        async with open_storage("sqlite:///jobs.db") as storage:
            new = NewJob(id=new_job_id(), type="a.long.name." * 9, payload=b"{}", queue_name="mail")
            await storage.insert([new])
            (job,) = await storage.list(JobFilter(), 1)
            return job

    job = anyio.run(inserted)
    error = Failure(type="shop.Unknown", message=what, traceback="")
    failed = evolve(job, status=Status.FAILED, completed_at=job.created_at, last_error=error)
    look = Look(at=datetime.now(UTC), queues=(), workers=(), failed=[failed])
    for width, least in ((80, 12), (120, 38)):
        (line,) = [line for line in drawn(look, None, width, 24) if str(job.id) in line]
        assert what[:least] in line, line
        assert cell_len(line) <= width


def test_looks_are_lines_of_json_until_a_signal() -> None:
    command = [sys.executable, "-m", "creche", "top", "--json", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=PATIENCE)
    assert (process.returncode, words) == (0, "")
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]


def test_what_there_is_most_of_is_cut_first() -> None:
    async def fill() -> None:
        async with open_storage("sqlite:///jobs.db") as storage:
            for number in range(60):
                new = NewJob(id=new_job_id(), type="t", payload=b"{}", queue_name=f"queue-{number:02}")
                await storage.insert([new])
            await storage.pause(["queue-59"])
            who = Presence(name="w", host="h", pid=1, backend="trio", version="1", queues=("queue-00",), concurrency=1)
            await storage.announce(who, 600)

    anyio.run(fill)
    with in_terminal("top", lines=16) as terminal:
        frame = terminal.until(lambda frame: "queues 60" in "\n".join(frame))
        text = "\n".join(frame)
        assert "queue-59" in text, "a paused one stays"
        assert "workers 1: 0 of 1 slots used" in text
        assert "more)" in text
        assert len(frame) <= 16
