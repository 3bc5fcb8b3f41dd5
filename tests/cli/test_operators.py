"""What operators do to many jobs, dead letters, queues and workers, and what they are shown before and after."""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from signal import SIGINT
from typing import Any, TypeVar
from uuid import UUID

import anyio
import click
import psycopg
import pytest
from rich.cells import cell_len
from rich.color import Color

from cli.kit import Done, Run, Terminal, in_terminal
from creche import Status
from creche._ids import new_job_id, new_nonce
from creche._job import Event, Failure, NewJob, Presence, Settlement, WorkerState
from creche.cli import _display
from creche.cli._durations import duration, in_words
from creche.storage.sqlite import SQLiteStorage

T = TypeVar("T")

DSN = "sqlite:///jobs.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty database, which the environment names."""
    for name in ("CRECHE_APP", "DATABASE_URL", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CRECHE_DSN", DSN)
    monkeypatch.chdir(tmp_path)
    anyio.run(SQLiteStorage(tmp_path / "jobs.db").migrate)
    return tmp_path


def with_storage(do: Callable[[SQLiteStorage], Awaitable[T]]) -> T:
    async def run() -> T:
        async with SQLiteStorage("jobs.db") as storage:
            return await do(storage)

    return anyio.run(run)


def id_of_age(seconds: float) -> UUID:
    """An id as it would have been drawn so long ago."""
    milliseconds = time.time_ns() // 1_000_000 - int(seconds * 1000)
    return UUID(int=milliseconds << 80 | (new_job_id().int & ((1 << 80) - 1)))


def jobs(number: int, *, queue: str = "mail", type: str = "mail.send", age: float = 0.0) -> list[UUID]:
    new = [NewJob(id=id_of_age(age), type=type, payload=b"{}", queue_name=queue) for _ in range(number)]
    with_storage(lambda storage: storage.insert(new))
    return [job.id for job in new]


def failed(number: int, **options: Any) -> list[UUID]:
    """Jobs that failed once, were tried again, and died."""
    ids = jobs(number, **options)
    queue = options.get("queue", "mail")

    async def die(storage: SQLiteStorage) -> None:
        for event, message in ((Event.RETRY, "first\x1b[31m"), (Event.FAIL, "second [red]")):
            found = await storage.reserve([queue], number, lease=30, worker="w", nonce=new_nonce())
            error = Failure(type="shop.errors.NoCustomer", message=message, traceback=f"Traceback\n{message}")
            await storage.settle([Settlement(lease=job.lease, event=event, error=error) for job in found.jobs])

    with_storage(die)
    return ids


def completed(number: int, **options: Any) -> list[UUID]:
    ids = jobs(number, **options)

    async def end(storage: SQLiteStorage) -> None:
        found = await storage.reserve([options.get("queue", "mail")], number, lease=30, worker="w", nonce=new_nonce())
        await storage.settle([Settlement(lease=job.lease, event=Event.SUCCEED, result=b"1") for job in found.jobs])

    with_storage(end)
    return ids


def statuses(ids: Collection[UUID]) -> list[Status | None]:
    found = with_storage(lambda storage: storage.find(ids))
    return [found[each].status if each in found else None for each in ids]


def refused(done: Done, *parts: str) -> None:
    assert (done.code, done.out) == (2, ""), done
    assert all(part in done.err for part in parts), done


# --- lengths of time --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800), (" 1.5H ", 5_400)]
)
def test_lengths_of_time_are_read_with_their_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds
    assert duration(in_words(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "2 weeks", "1e9", "nan", "inf", "99999999d", "1h30m"])
def test_what_is_no_length_of_time_is_a_usage_error(run: Run, text: str) -> None:
    with pytest.raises(click.BadParameter):
        duration(text)
    assert run("jobs", "list", f"--older-than={text}").code == 2


# --- many jobs at once ------------------------------------------------------------------------------


def test_a_filter_reaches_beyond_a_page_and_no_further(run: Run) -> None:
    meant, others = jobs(230), jobs(3, queue="ocr")
    done = run("jobs", "cancel", "--queue", "mail", "--yes")
    assert (done.code, done.out) == (0, "230 cancelled\n"), done
    assert done.err == "230 jobs cancelled\n"
    assert statuses(meant) == [Status.CANCELLED] * 230
    assert statuses(others) == [Status.PENDING] * 3


def test_every_filter_narrows_what_is_meant(run: Run) -> None:
    old, young = jobs(1, age=7_200), jobs(1)
    jobs(1, queue="ocr", age=7_200)
    other = jobs(1, type="mail.sort", age=7_200)
    words = ["--queue", "mail", "--type", "mail.send", "--older-than", "1h"]
    assert [each["id"] for each in run("jobs", "list", *words, "--json").data] == [str(old[0])]
    done = run("jobs", "cancel", *words, "--yes", "--json")
    assert done.data == {"statuses": {"cancelled": 1}, "gone": 0}
    assert statuses([*old, *young, *other]) == [Status.CANCELLED, Status.PENDING, Status.PENDING]


def test_a_rehearsal_says_which_and_changes_nothing(run: Run) -> None:
    ids = jobs(3)
    gone = completed(1, queue="ocr")
    done = run("jobs", "cancel", "--all", "--dry-run")
    assert done.code == 0
    assert sorted(line.split()[0] for line in done.out.splitlines()) == sorted(map(str, ids))
    assert "3 jobs would be cancelled; nothing was changed" in done.err
    named = run("jobs", "cancel", *ids, *gone, "--dry-run", "--json")
    assert [each["id"] for each in named.data] == [str(each) for each in ids]
    assert statuses(ids) == [Status.PENDING] * 3


def test_without_a_terminal_filters_change_nothing_unless_they_may(run: Run) -> None:
    (job_id,) = jobs(1)
    refused(run("jobs", "cancel", "--queue", "mail"), "--yes", "--dry-run")
    assert statuses([job_id]) == [Status.PENDING]
    assert run("jobs", "cancel", job_id).code == 0, "whoever names an id means it"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "or --all"),
        (["--all", "--queue", "mail"], "leave one of them out"),
        (["--all", str(new_job_id())], "not both"),
        (["--type", "x", str(new_job_id())], "not both"),
        (["--status", "completed", "--yes"], "--status"),
    ],
)
def test_a_choice_that_is_none_or_two_is_a_usage_error(run: Run, words: Sequence[str], says: str) -> None:
    refused(run("jobs", "cancel", *words), says)


def test_filters_retry_what_failed_unless_a_state_is_named(run: Run) -> None:
    dead, cancelled = failed(1), jobs(1)
    run("jobs", "cancel", *cancelled)
    assert run("jobs", "retry", "--all", "--yes").out == "1 pending\n"
    assert statuses([*dead, *cancelled]) == [Status.PENDING, Status.CANCELLED]
    assert run("jobs", "retry", "--status", "cancelled", "--yes").out == "1 pending\n"
    assert statuses(cancelled) == [Status.PENDING]


def test_what_is_over_is_deleted_and_nothing_else(run: Run) -> None:
    over, waiting = [*completed(2), *failed(1)], jobs(1)
    kept = run("jobs", "delete", *waiting)
    assert (kept.code, "is pending: left as it is" in kept.err) == (3, True), kept
    assert run("jobs", "delete", "--all", "--yes").out.splitlines() == ["1 failed", "2 completed"]
    assert statuses([*over, *waiting]) == [None, None, None, Status.PENDING]
    assert run("dead", "list").out == ""


def test_dead_commands_leave_jobs_alone_that_are_not_dead_though_they_are_named(run: Run) -> None:
    (over,), (waiting,), (dead,) = completed(1), jobs(1), failed(1, queue="ocr")
    for verb in ("purge", "retry"):
        done = run("dead", verb, over, waiting, "--json")
        assert (done.code, done.data) == (3, {str(over): None, str(waiting): None})
        assert done.err.count("there is no dead letter of job") == 2
    shown = run("dead", "show", over)
    assert (shown.code, f"creche jobs show {over}" in shown.err) == (3, True), shown
    assert statuses([over, waiting]) == [Status.COMPLETED, Status.PENDING]
    assert run("dead", "purge", dead).code == 0
    assert statuses([dead]) == [None]


def test_where_there_is_no_such_file_it_is_said_and_not_that_it_lacks_a_schema(run: Run, tmp_path: Path) -> None:
    done = run("jobs", "list", "--dsn", "sqlite:///elsewhere.db")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"Error: there is no file {tmp_path / 'elsewhere.db'}: ")
    assert all(way in done.err for way in ("--dsn", "creche migrate"))
    assert not (tmp_path / "elsewhere.db").exists()


def test_who_may_not_do_it_is_told_whom_to_ask(run: Run, postgresql_dsn: str) -> None:
    assert run("migrate", "--dsn", postgresql_dsn).code == 0
    role = f"reader_{secrets.token_hex(4)}"
    with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        (schema,) = connection.execute("SELECT current_schema()").fetchone() or ("",)
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}".encode())
        try:
            done = run("jobs", "list", "--dsn", re.sub("//[^@]*@", f"//{role}@", postgresql_dsn))
        finally:
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())
    assert (done.code, done.out) == (1, "")
    assert "permission denied" in done.err
    assert done.err.endswith(": ask `creche doctor` what is wrong\n")


# --- in a terminal ----------------------------------------------------------------------------------


def test_a_terminal_is_asked_before_many_are_changed() -> None:
    ids = jobs(6)
    with in_terminal("jobs", "cancel", "--queue", "mail") as terminal:
        while "cancel 6 jobs? [y/N]" not in terminal.shown:
            assert terminal.process.poll() is None, terminal.shown
            terminal.read(0.1)
        terminal.press("n\n")
        assert terminal.ended() == 130
        assert terminal.shown.endswith("nothing was changed\r\n")
    assert statuses(ids) == [Status.PENDING] * 6
    with in_terminal("jobs", "cancel", "--queue", "mail") as terminal:
        terminal.press("y\n")
        assert terminal.ended() == 0, terminal.shown
    assert statuses(ids) == [Status.CANCELLED] * 6


def interrupt(terminal: Terminal) -> None:
    terminal.process.send_signal(SIGINT)


def end_input(terminal: Terminal) -> None:
    terminal.press("\x04")


@pytest.mark.parametrize("leave", [interrupt, end_input])
def test_a_question_that_is_left_ends_its_line_and_changes_nothing(leave: Callable[[Terminal], None]) -> None:
    ids = jobs(6)
    with in_terminal("jobs", "cancel", "--queue", "mail") as terminal:
        while "[y/N]" not in terminal.shown:
            assert terminal.process.poll() is None, terminal.shown
            terminal.read(0.1)
        leave(terminal)
        assert terminal.ended() == 130
        assert terminal.shown.endswith("\r\nnothing was changed\r\n")
    assert statuses(ids) == [Status.PENDING] * 6


def test_a_handful_is_not_asked_about() -> None:
    ids = jobs(5)
    with in_terminal("jobs", "cancel", "--queue", "mail") as terminal:
        assert terminal.ended() == 0, terminal.shown
    assert statuses(ids) == [Status.CANCELLED] * 5


def test_every_colour_can_be_read_on_black_and_on_white() -> None:
    styles = {
        *_display.STATUS_STYLES.values(),
        *(_display.GOOD, _display.BAD, _display.CARE, _display.BUSY, _display.LATER, _display.ENDED, _display.FAINT),
    }
    for style in styles:
        light = _luminance(style)
        assert min(1.05 / (light + 0.05), (light + 0.05) / 0.05) >= 3, style  # WCAG 2.2, 1.4.11


def _luminance(style: str) -> float:
    def linear(channel: int) -> float:
        share = channel / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = Color.parse(style).get_truecolor()
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


def test_a_terminal_of_sixteen_colours_has_only_those_that_can_be_read_on_both_grounds() -> None:
    jobs(1)
    failed(1)
    with in_terminal("queues", environment={"TERM": "xterm"}) as terminal:
        assert terminal.ended() == 0, terminal.shown
        assert "no worker" in terminal.shown
    codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", terminal.shown) for code in found.split(";") if code}
    assert "31" in codes, "red"
    assert codes <= {"0", "1", "2", "31", "35"}, "bold, dim, red, magenta"


# --- dead letters -----------------------------------------------------------------------------------


def test_dead_letters_are_listed_with_their_last_errors(run: Run) -> None:
    old, new = failed(1), failed(1, queue="ocr")
    done = run("dead", "list")
    header, *lines = done.out.splitlines()
    assert header.split() == ["ID", "TYPE", "QUEUE", "DIED", "LAST", "ERROR"]
    assert [line.split()[0] for line in lines] == [str(new[0]), str(old[0])]
    assert all("NoCustomer: second [red]" in line for line in lines)
    (letter,) = run("dead", "list", "--queue", "mail", "--json").data
    assert (letter["id"], letter["last_error"]["message"]) == (str(old[0]), "second [red]")
    assert run("dead", "list", "--older-than", "1h").err == "no dead letters\n"
    assert "there are more" in run("dead", "list", "--limit", "1").err


def test_a_dead_letter_is_shown_with_all_its_errors(run: Run) -> None:
    older, (job_id,) = failed(1), failed(1)
    done = run("dead", "show", job_id)
    assert done.out.index("first\\u001b[31m") < done.out.index("second [red]")
    assert "\x1b" not in done.out
    assert [each["attempt"] for each in run("dead", "show", job_id, "--json").data["errors"]] == [1, 2]
    run("dead", "purge", job_id)
    assert (run("dead", "show", job_id).code, run("dead", "show", *older).code) == (3, 0)


def test_the_dead_are_retried_or_purged(run: Run) -> None:
    mail, ocr = failed(2), failed(1, queue="ocr")
    assert "2 dead letters would be made ready" in run("dead", "retry", "--queue", "mail", "--dry-run").err
    refused(run("dead", "retry", "--queue", "mail"), "--yes")
    assert run("dead", "retry", "--queue", "mail", "--yes").out == "2 pending\n"
    assert statuses(mail) == [Status.PENDING] * 2
    assert run("dead", "purge", "--all", "--yes").out == "1 failed\n"
    assert (statuses(ocr), run("dead", "list").out) == ([None], "")


# --- queues and workers -----------------------------------------------------------------------------


def announced(*queues: str, name: str = "web:1", concurrency: int = 4, host: str = "web") -> None:
    who = Presence(
        name=name,
        host=host,
        pid=4711,
        backend="trio",
        version="0.1.0",
        queues=queues,
        concurrency=concurrency,
        state=WorkerState.RUNNING,
    )
    with_storage(lambda storage: storage.announce(who, 60))


def test_queues_are_listed_with_what_is_in_them_and_who_serves_them(run: Run) -> None:
    jobs(2)
    failed(1, queue="ocr")
    announced("mail")
    found = {each["queue"]: each for each in run("queues", "--json").data}
    assert (found["mail"]["counts"]["pending"], found["mail"]["workers"]) == (2, 1)
    assert (found["ocr"]["counts"]["failed"], found["ocr"]["finished_per_minute"]) == (1, 1)
    assert run("queues").out == run("queues", "list").out
    assert "PROCESSING" in run("queues").out, "nothing is cut in a pipe"


def test_a_queue_is_paused_and_resumed_for_everybody(run: Run) -> None:
    jobs(1)

    async def reserve(storage: SQLiteStorage) -> int:
        return len((await storage.reserve(["mail"], 1, lease=30, worker="w", nonce=new_nonce())).jobs)

    assert run("queues", "pause", "mail").out == "mail paused\n"
    assert with_storage(reserve) == 0
    assert "paused" in run("queues").out
    assert run("queues", "resume", "mail", "--json").data == {"mail": "resumed"}
    assert with_storage(reserve) == 1


def test_a_name_that_nobody_uses_is_asked_about(run: Run) -> None:
    jobs(1)
    assert run("queues", "pause", "mail").err == ""
    done = run("queues", "pause", "mial")
    assert (done.code, "is that its name?" in done.err) == (0, True)
    refused(run("queues", "pause", ""), "NAME")


def test_a_queue_keeps_what_is_over_as_long_as_it_is_told(run: Run) -> None:
    jobs(1)
    assert "7d, failed 14d, cancelled 1d" in run("queues", "keep", "mail", "--completed", "7d").out
    changed = run("queues", "keep", "mail", "--failed", "30d", "--json")
    assert changed.data["retention"] == {"completed": 604_800, "failed": 2_592_000, "cancelled": 86_400}
    assert "7d/30d/1d" in run("queues").out
    assert run("queues", "keep", "mail", "--default").code == 0
    assert run("queues", "--json").data[0]["retention"] is None
    refused(run("queues", "keep", "mail"), "--default")
    refused(run("queues", "keep", "mail", "--default", "--failed", "1d"), "--default")


def test_workers_are_listed_with_what_they_run(run: Run) -> None:
    assert run("workers").err == "no workers\n"
    (job_id,) = jobs(1)
    announced("mail", "ocr")
    with_storage(lambda storage: storage.reserve(["mail"], 1, lease=30, worker="web:1", nonce=new_nonce()))
    done = run("workers").out
    assert all(part in done for part in ("web:1", "4711", "trio", "1/4", "mail, ocr", str(job_id), "mail.send"))
    (worker,) = run("workers", "--json").data
    assert (worker["name"], worker["jobs"][0]["id"]) == ("web:1", str(job_id))
    assert 0 < worker["jobs"][0]["lease_left"] <= 30


@pytest.mark.parametrize("columns", [80, 120])
def test_no_table_is_wider_than_the_window(run: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "a-very-long-name-of-a-queue-" * 4
    failed(1, queue=long, type="type." * 20)
    (job_id,) = jobs(1, queue="漢字" * 15)
    announced("漢字" * 15, long, name="w" * 100, host="host." * 12)
    with_storage(lambda storage: storage.reserve(["漢字" * 15], 1, lease=30, worker="w" * 100, nonce=new_nonce()))
    run("queues", "keep", long, "--completed", "36500d", "--failed", "36500d", "--cancelled", "36499d")
    run("queues", "pause", long)
    for words in (["queues"], ["workers"], ["dead", "list"], ["jobs", "list"], ["top", "--once"]):
        lines = run(*words).out.splitlines()
        table = [line for line in lines if " keeps " not in line]
        assert max(map(cell_len, table)) <= columns, words
    assert str(job_id) in run("workers").out
    assert "paused" in run("queues").out


# --- upkeep -----------------------------------------------------------------------------------------


def test_what_is_not_named_is_not_pruned(run: Run) -> None:
    done, dead, kept = completed(1), failed(1), completed(1, queue="ocr")
    assert run("prune").out == "0 jobs pruned\n"
    assert run("prune", "--completed", "0s", "--json").data == {"pruned": 2, "recovered": 0, "buried": 0, "promoted": 0}
    assert statuses([*done, *dead, *kept]) == [None, Status.FAILED, None]


def test_a_queue_of_its_own_mind_is_pruned_by_that(run: Run) -> None:
    kept, gone = completed(1), completed(1, queue="ocr")
    run("queues", "keep", "mail", "--completed", "1d")
    run("queues", "keep", "ocr", "--completed", "0")
    assert run("prune", "--completed", "0").out == "1 job pruned\n"
    assert statuses([*kept, *gone]) == [Status.COMPLETED, None]


# --- the doctor -------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_wrong_with_a_new_database(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.code == 0, done
    assert "schema" in {each["check"] for each in done.data}
    assert {each["severity"] for each in done.data} == {"ok"}
    assert "ok" in run("doctor").out


def test_a_database_out_of_reach_is_one_finding_without_its_password(run: Run) -> None:
    done = run("doctor", "--json", "--dsn", "postgresql://bob:secret@127.0.0.1:1/db")
    assert done.code == 1
    (finding,) = done.data
    assert finding["severity"] == "problem"
    assert "secret" not in done.out + done.err
    assert run("doctor", "--dsn", "postgresql://bob:secret@127.0.0.1:1/db").code == 1


def test_a_warning_is_a_problem_to_the_strict(run: Run, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "jobs.db")) as file:
        file.execute("PRAGMA journal_mode=delete")
    done = run("doctor")
    assert (done.code, "0 problems, 1 warning" in done.err) == (0, True), done
    assert "→ " in done.out
    assert run("doctor", "--strict").code == 1


def test_the_doctor_takes_the_database_of_an_application(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "doctored.py").write_text(
        "from creche import Queue, Worker\nworker = Worker(Queue('sqlite:///elsewhere.db'), concurrency=7)\n"
    )
    monkeypatch.syspath_prepend(folder)
    assert "elsewhere.db" in run("doctor", "doctored:worker").out
    assert "jobs.db" in run("doctor", "doctored:worker", "--dsn", DSN).out
    monkeypatch.setenv("CRECHE_APP", "doctored:worker")
    assert "elsewhere.db" in run("doctor").out
    assert "jobs.db" in run("doctor", "--dsn", DSN).out


def test_the_doctor_holds_the_concurrency_of_a_worker_against_the_connections(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, mariadb_dsn: str
) -> None:
    text = f"from creche import Queue, Worker\nworker = Worker(Queue({mariadb_dsn!r}), concurrency=777)\n"
    (folder / "crowded.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    assert "777" in run("doctor", "crowded:worker").out
    assert "777" not in run("doctor", "crowded:worker", "--concurrency", "3").out
