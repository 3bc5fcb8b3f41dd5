"""The command line: what people type, what they read, and the code that scripts get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from cli.kit import PATIENCE, Done, Run
from creche import Queue, Status
from creche._job import JobRecord

APP = """
    import asyncio
    import time

    import anyio

    from creche import Queue, Worker

    queue = Queue("sqlite:///jobs.db")
    worker = Worker(queue, concurrency=2)
    private = Queue("memory://")
    nothing = {}

    def make() -> Worker:
        return worker

    def broken() -> Worker:
        raise RuntimeError("can't read postgresql://bob:secret@db/reports")

    async def later() -> Queue:
        return queue

    @queue.task("report.generate", result_ttl=3600)
    async def generate(year: int, format: str = "csv", tags: list[str] | None = None) -> dict[str, object]:
        return {"year": year, "format": format, "tags": tags}

    @queue.task("slow")
    async def slow() -> None:
        await anyio.sleep(600)

    @queue.task("stuck")
    def stuck() -> None:
        time.sleep(600)

    @queue.task("lingering")
    async def lingering() -> None:
        if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
            await asyncio.to_thread(time.sleep, 600)
        await anyio.sleep(600)

    @queue.task("boom", max_attempts=1)
    async def boom() -> None:
        raise ValueError("no \\x1b[31m[red]such customer")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an application in it, and nothing of ours in the environment."""
    for name in ("CRECHE_APP", "CRECHE_DSN", "DATABASE_URL", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cliapp.py").write_text(textwrap.dedent(APP))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("cliapp", "clibad"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


# --- ways to call it --------------------------------------------------------------------------------


def command(*words: str) -> Sequence[str]:
    return [sys.executable, "-W", "error", "-m", "creche", *words]


def execute(*words: str) -> Done:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=PATIENCE, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out, err)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def dispatched(type: str, payload: object = None) -> str:
    async def dispatch() -> str:
        async with Queue("sqlite:///jobs.db") as queue:
            return str((await queue.dispatch(type, payload)).job_id)

    return anyio.run(dispatch)


def look_up(job_id: str) -> JobRecord:
    async def find() -> JobRecord:
        async with Queue("sqlite:///jobs.db") as queue:
            return next(job for job in await queue.jobs() if str(job.id) == job_id)

    return anyio.run(find)


def runs(job_id: str) -> Callable[[], bool]:
    return lambda: look_up(job_id).status is Status.PROCESSING


def one_line(done: Done, code: int, *parts: str) -> None:
    assert done.code == code, done
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


# --- worker, in processes ---------------------------------------------------------------------------


def test_a_dispatched_job_runs_and_its_result_is_printed_as_json(anyio_backend: str) -> None:
    with started("worker", "cliapp:queue", "--backend", anyio_backend, "-c", "2", "--poll-interval", "0.1") as worker:
        waited = execute("dispatch", "cliapp:queue", "report.generate", "year=2024", "format=7", "--wait")
        assert (waited.code, waited.data) == (0, {"year": 2024, "format": "7", "tags": None}), waited
        failed = execute("dispatch", "cliapp:queue", "boom", "--wait", "--json")
        assert (failed.code, failed.data["status"], failed.data["error"]["type"]) == (3, "failed", "ValueError"), failed
        assert "Traceback" not in failed.err
        worker.send_signal(signal.SIGTERM)
        stopped = ended(worker)
    assert (stopped.code, stopped.out) == (0, ""), stopped
    assert stopped.err.count("Traceback") == 1, stopped  # the handler's own, for the operator


@pytest.mark.parametrize("type", ["slow", "stuck", "lingering"])
def test_a_signal_ends_a_worker_within_its_grace_and_its_job_is_given_back(anyio_backend: str, type: str) -> None:
    job_id = dispatched(type)
    with started("worker", "cliapp:queue", "--backend", anyio_backend, "--grace", "0.2") as worker:
        until(runs(job_id))
        assert look_up(job_id).attempts == 1
        sent = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        stopped = ended(worker)
        took = time.monotonic() - sent
    assert stopped.code == 0, stopped
    assert took < 10, "a clean stop takes the grace and a little more"
    job = look_up(job_id)
    assert (job.status, job.attempts) == (Status.PENDING, 0)


def test_a_second_signal_skips_the_grace(anyio_backend: str) -> None:
    job_id = dispatched("slow")
    with started("worker", "cliapp:make", "--backend", anyio_backend) as worker:
        until(runs(job_id))
        worker.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.3)  # it is graceful
        worker.send_signal(signal.SIGINT)
        assert ended(worker).code == 0
    assert look_up(job_id).status is Status.PENDING


def test_whoever_stops_waiting_leaves_the_job_alone() -> None:
    with started("dispatch", "cliapp:queue", "slow", "--wait") as waiting:
        assert waiting.stderr is not None
        job_id = waiting.stderr.readline().split()[1].rstrip(":")
        waiting.send_signal(signal.SIGINT)
        assert ended(waiting).code == 130
    assert look_up(job_id).status is Status.PENDING


# --- targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("cliapp", "module:name"),
        ("cliapp.py:queue", "write the module, cliapp:queue"),
        ("nowhere:queue", "no module 'nowhere'"),
        ("cliapp:quueue", "it has queue (a Queue), worker (a Worker)"),
        ("cliapp:nothing", "of type dict"),
        ("cliapp:later", "an async function"),
        ("cliapp:slow", "is a task: name its queue"),
    ],
)
def test_a_target_that_is_none_is_a_usage_error(run: Run, target: str, says: str) -> None:
    one_line(run("worker", target), 2, says)


def test_the_application_may_stand_in_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRECHE_APP", "cliapp:nothing")
    one_line(run("worker"), 2, "cliapp:nothing")
    one_line(run("dispatch", "boom"), 2, "cliapp:nothing")
    assert run("dispatch", "cliapp:queue", "boom").code == 0


def test_a_bug_in_the_application_is_shown_with_its_own_traceback(run: Run) -> None:
    done = run("worker", "cliapp:broken")
    assert done.code == 1
    assert "in broken" in done.err
    assert "creche/cli" not in done.err
    assert "secret" not in done.err


def test_a_module_that_imports_what_is_not_there_is_a_bug_of_the_application(run: Run, folder: Path) -> None:
    (folder / "clibad.py").write_text("import nowhere_at_all\n")
    done = run("worker", "clibad:queue")
    assert done.code == 1
    assert "No module named 'nowhere_at_all'" in done.err


def test_settings_of_a_worker_are_not_set_twice(run: Run) -> None:
    one_line(run("worker", "cliapp:worker", "--lease", "5", "-c", "3"), 2, "concurrency", "lease")


def test_a_setting_that_makes_no_sense_is_a_usage_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(run("worker", "cliapp:queue", "-c", "0"), 2, "concurrency=0")
    monkeypatch.setenv("CRECHE_WORKER_LEASE", "-1")
    done = run("worker", "cliapp:queue")
    assert (done.code, "'-1' is no duration" in done.err) == (2, True), done


@pytest.mark.parametrize(
    "words",
    [
        ["queues", "list", "postgresql://bob:secret@db/x"],
        ["postgresql://bob:secret@db/x"],
        ["jobs", "list", "--limit", "postgresql://bob:secret@db/x"],
    ],
)
def test_a_dsn_in_the_wrong_place_is_quoted_without_its_password(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.code == 2
    assert "postgresql://bob:***@db/x" in done.err
    assert "secret" not in done.err


def test_a_word_that_is_no_text_is_refused(run: Run, folder: Path) -> None:
    (folder / "jobs.db").unlink(missing_ok=True)
    done = run("migrate", "--dsn", "sqlite:///jobs.db")
    assert done.code == 0
    done = run("jobs", "list", "--type", os.fsdecode(b"\xff"), "--dsn", "sqlite:///jobs.db")
    assert done.code == 2
    assert "no lone surrogates" in done.err


# --- configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://bob:secret@127.0.0.1:1/db",
        "mysql://bob:secret@127.0.0.1:1/db",
        "mariadb://bob:secret@127.0.0.1:1/db?unix_socket=/nowhere",
        "oracle://bob:secret@db/x",
        "bob:secret@db",
    ],
)
def test_a_database_out_of_reach_is_one_line_without_the_password(run: Run, folder: Path, dsn: str) -> None:
    driver = {"postgresql": "psycopg", "mysql": "asyncmy", "mariadb": "asyncmy"}.get(dsn.partition(":")[0])
    if driver is not None:
        pytest.importorskip(driver)
    (folder / "clibad.py").write_text("from creche import Queue\ndef make(): return Queue()\n")
    for words in (["jobs", "list"], ["migrate"]):
        done = run(*words, "--dsn", dsn)
        one_line(done, 1)
        assert "secret" not in done.err
    if "://" in dsn:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CRECHE_DSN", dsn)
            done = run("worker", "clibad:make")
        one_line(done, 1)
        assert "secret" not in done.err


def test_a_missing_event_loop_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("creche.cli._worker.find_spec", lambda name: None)
    one_line(run("worker", "cliapp:queue", "--backend", "trio"), 1, "pip install 'creche[trio]'")


def test_the_dsn_is_the_options_or_the_environments_or_a_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(run("jobs", "list"), 1, "/creche.db: ")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///second.db")
    one_line(run("jobs", "list"), 1, "second.db")
    monkeypatch.setenv("CRECHE_DSN", "sqlite:///first.db")
    one_line(run("jobs", "list"), 1, "first.db")
    one_line(run("jobs", "list", "--dsn", "sqlite:///zeroth.db"), 1, "zeroth.db")


def test_the_version_is_no_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRECHE_VERSION", "3.1")  # such names abound where things are deployed
    done = run("--version")
    assert (done.code, done.out.split()[0]) == (0, "creche")
    assert run("migrate").code == 0


def test_python_m_creche_is_the_same_thing() -> None:
    assert execute("--version").out.startswith("creche ")


# --- migrate ----------------------------------------------------------------------------------------


def test_migrate_checks_shows_and_applies(run: Run, folder: Path) -> None:
    checked = run("migrate", "--check")
    assert (checked.code, checked.out.splitlines()[0]) == (1, "0001_initial.sql")
    shown = run("migrate", "--sql")
    assert shown.code == 0
    assert "CREATE TABLE" in shown.out
    assert not (folder / "creche.db").exists(), "looking makes nothing"
    applied = run("migrate")
    assert (applied.code, applied.out) == (0, checked.out)
    again = run("migrate")
    assert (again.code, again.out) == (0, "")
    assert run("migrate", "--check").code == 0


# --- dispatch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "stdin", "payload"),
    [
        (['{"year": 2024}'], "", {"year": 2024, "format": "csv", "tags": None}),
        (["-"], '{"year": 2024, "tags": ["a"]}', {"year": 2024, "format": "csv", "tags": ["a"]}),
        (["year=2024", 'tags=["a=b"]'], "", {"year": 2024, "format": "csv", "tags": ["a=b"]}),
        (["year=1", "format=2024"], "", {"year": 1, "format": "2024", "tags": None}),
        (["year=1", "format=a=b"], "", {"year": 1, "format": "a=b", "tags": None}),
        (["year=1", "format="], "", {"year": 1, "format": "", "tags": None}),
    ],
)
def test_arguments_come_as_json_or_by_name(run: Run, words: list[str], stdin: str, payload: object) -> None:
    done = run("dispatch", "cliapp:queue", "report.generate", *words, stdin=stdin)
    assert done.code == 0, done
    assert json.loads(look_up(done.out.strip()).payload) == payload


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report.generat"], "did you mean 'report.generate'?"),
        (["ocr"], "say with --queue where its handler is served"),
        (["report.generate", "year=x"], "`$.year`"),
        (["report.generate", "yaer=1"], "yaer"),
        (["report.generate", "year=1", "year=2"], "given twice"),
        (["report.generate", "2024"], "neither NAME=VALUE nor a JSON object"),
        (["report.generate", '{"year": '], "not JSON"),
        (["report.generate", "-"], "not JSON"),
        (["report.generate", "year=1", "--priority", "1000"], "priority=1000"),
    ],
)
def test_what_can_not_be_dispatched_is_one_line_and_writes_nothing(run: Run, words: list[str], says: str) -> None:
    one_line(run("dispatch", "cliapp:queue", *words), 2, says)
    assert run("migrate", "--dsn", "sqlite:///jobs.db").code == 0
    assert run("jobs", "list", "--dsn", "sqlite:///jobs.db").out == ""


def test_words_that_are_missing_are_named(run: Run) -> None:
    assert "TARGET" in run("dispatch").err.splitlines()[-1]
    assert "TYPE" in run("dispatch", "cliapp:queue").err.splitlines()[-1]
    done = run("dispatch", "cliapp:queue", "slow", "--timeout", "1")
    assert (done.code, "--wait" in done.err.splitlines()[-1]) == (2, True)


def test_every_option_reaches_the_job(run: Run) -> None:
    options = ["--queue", "ocr", "--priority", "7", "--delay", "1m", "--max-attempts", "9", "--idempotency-key", "k"]
    done = run("dispatch", "cliapp:queue", "document.ocr", "pages=3", *options, "--unique", "--result-ttl", "5")
    job = look_up(done.out.strip())
    assert (job.queue_name, job.priority, job.max_attempts, job.idempotency_key) == ("ocr", 7, 9, "k")
    assert (job.status, job.payload) == (Status.SCHEDULED, b'{"pages":3}')
    assert job.fingerprint is not None


def test_the_same_work_asked_for_twice_is_one_job(run: Run) -> None:
    first = run("dispatch", "cliapp:queue", "slow", "--unique", "--json")
    second = run("dispatch", "cliapp:queue", "slow", "--unique", "--json")
    assert (first.data["inserted"], second.data["inserted"]) == (True, False)
    assert first.data["job_id"] == second.data["job_id"]
    assert "on its way already" in second.err


def test_a_wait_that_takes_too_long_has_a_code_of_its_own(run: Run) -> None:
    done = run("dispatch", "cliapp:queue", "slow", "--wait", "--timeout", "0", "--json")
    assert (done.code, done.data["status"]) == (4, "pending")
    assert "still pending" in done.err


def test_nothing_is_dispatched_into_a_memory_that_ends_with_the_command(run: Run) -> None:
    one_line(run("dispatch", "cliapp:private", "anything"), 1, "lives inside one process")


# --- jobs -------------------------------------------------------------------------------------------


@pytest.fixture
def dsn() -> Sequence[str]:
    return ["--dsn", "sqlite:///jobs.db"]


def test_jobs_are_listed_newest_first_without_their_payloads(run: Run, dsn: Sequence[str]) -> None:
    old, new = dispatched("report.generate", {"year": 4711}), dispatched("slow")
    done = run("jobs", "list", *dsn)
    assert done.code == 0
    header, *lines = done.out.splitlines()
    assert header.split() == ["ID", "TYPE", "STATUS", "TRIES", "AGE"]
    assert [line.split()[:4] for line in lines] == [
        [new, "slow", "pending", "0/3"],
        [old, "report.generate", "pending", "0/3"],
    ]
    assert [job["id"] for job in run("jobs", "list", "--json", *dsn).data] == [new, old]
    assert "4711" not in done.out + run("jobs", "list", "--json", *dsn).out


def test_a_list_can_be_narrowed(run: Run, dsn: Sequence[str]) -> None:
    report, slow = dispatched("report.generate", {"year": 1}), dispatched("slow")
    run("jobs", "cancel", slow, *dsn)

    def ids(*words: str) -> list[str]:
        return [job["id"] for job in run("jobs", "list", "--json", *words, *dsn).data]

    assert ids("--type", "slow") == [slow]
    assert ids("--type", "slow", "--type", "report.generate") == [slow, report]
    assert ids("--status", "pending") == [report]
    assert ids("--queue", "elsewhere") == []
    limited = run("jobs", "list", "--json", "--limit", "1", *dsn)
    assert [job["id"] for job in limited.data] == [slow]
    assert "there are more" in limited.err


def test_a_table_fits_eighty_columns(run: Run, dsn: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    job_id = dispatched("a.very.long.name.of.a.job.type.which.goes.on.and.on")
    run("dispatch", "cliapp:queue", "slow", "--queue", "another-queue-with-a-name")
    lines = run("jobs", "list", *dsn).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["ID", "TYPE", "QUEUE", "STATUS", "TRIES", "AGE"]
    assert lines[2].startswith(job_id)
    assert "…" in lines[2]


def test_show_shows_payload_result_times_and_the_last_error(run: Run, dsn: Sequence[str]) -> None:
    waited = dispatched("report.generate", {"year": 4711})
    failing = dispatched("boom")
    with started("worker", "cliapp:queue"):
        until(lambda: not look_up(waited).status.active)
        until(lambda: bool(look_up(failing).last_error))
    done = run("jobs", "show", waited, *dsn)
    assert done.code == 0
    assert all(part in done.out for part in (waited, "completed", "payload", "result", "ended", "4711"))
    data = run("jobs", "show", waited, "--json", *dsn).data
    assert data["payload"] == {"year": 4711}
    assert data["result"] == {"year": 4711, "format": "csv", "tags": None}
    failed = run("jobs", "show", failing, *dsn)
    assert "ValueError: no \\u001b[31m[red]such customer" in failed.out
    assert "\x1b" not in failed.out, "what a job stored does not drive the terminal"
    assert run("jobs", "show", failing, "--json", *dsn).data["last_error"]["type"] == "ValueError"


def test_jobs_are_cancelled_and_made_ready_again(run: Run, dsn: Sequence[str]) -> None:
    one, two = dispatched("slow"), dispatched("slow")
    done = run("jobs", "cancel", one, two, *dsn)
    assert (done.code, done.out) == (0, f"{one} cancelled\n{two} cancelled\n")
    again = run("jobs", "retry", two, "--json", *dsn)
    assert (again.code, again.data) == (0, {two: "pending"})


def test_what_is_not_there_or_can_not_be_changed_has_a_code_of_its_own(run: Run, dsn: Sequence[str]) -> None:
    stranger = "01a1ffbb-348e-7107-8468-2e4829dc1423"
    job_id = dispatched("report.generate", {"year": 1})
    with started("worker", "cliapp:queue"):
        until(lambda: look_up(job_id).status is Status.COMPLETED)
    one_line(run("jobs", "show", stranger, *dsn), 3, stranger)
    one_line(run("jobs", "cancel", job_id, *dsn), 3, "is completed: left as it is")
    done = run("jobs", "retry", stranger, job_id, "--json", *dsn)
    assert (done.code, done.data) == (3, {stranger: None, job_id: "completed"})
    assert run("jobs", "retry", "no-uuid", *dsn).code == 2


def test_a_look_makes_no_database(run: Run, folder: Path) -> None:
    one_line(run("jobs", "list", "--dsn", "sqlite:///mistyped.db"), 1, "creche migrate")
    assert not (folder / "mistyped.db").exists()
    one_line(run("jobs", "list", "--dsn", "memory://"), 2, "inside one process")
