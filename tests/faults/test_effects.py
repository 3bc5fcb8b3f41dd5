"""Effects that take place exactly once, and dispatches in the caller's own transaction: real processes, each engine.

`CRECHE_EFFECTS_JOBS` says how many jobs there are.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from attrs import evolve

from creche import NotCommitted, Queue, Receipt, Status
from creche.testing._backdoor import connect, read, write
from creche.testing._herd import run_program
from creche.testing._ledger import Entry
from creche.testing.servers import MariaDBServer, MySQLServer, PostgreSQLServer
from faults.effects import Done, Effect, Plan, Story, audit

EFFECTS = Path(__file__).parent / "effects.py"
PROGRAM = Path(__file__).parent / "program.py"
JOBS = int(os.environ.get("CRECHE_EFFECTS_JOBS", "400"))


def do(*arguments: object) -> None:
    code, told = run_program(EFFECTS, "--jobs", str(JOBS), *map(str, arguments), limit=300)
    print(told)  # noqa: T201 - the numbers, for whoever asks pytest to show them
    assert code == 0, told


def test_each_job_writes_its_row_once_while_its_workers_are_killed_every_300_ms(shared_dsn: str) -> None:
    do("--dsn", shared_dsn, "--calm", 0.3)


@pytest.fixture(params=["postgresql", "mariadb", "mysql"])
def tcp_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database, over TCP."""
    server: PostgreSQLServer | MariaDBServer | MySQLServer = request.getfixturevalue(f"{request.param}_server")
    name = f"creche_{secrets.token_hex(6)}"
    yield server.create_database(name)
    server.drop_database(name)


def test_each_job_writes_its_row_once_while_commits_and_answers_to_commits_are_lost(tcp_dsn: str) -> None:
    do("--dsn", tcp_dsn, "--calm", 0, "--cuts", 0.05)


# --- the auditor, on a story that is right, and on the same story with one thing wrong -----------------


def told_story() -> Story:
    """Two jobs, of which the second was written twice: its first worker was killed before it could commit."""

    def entry(at: float, who: str, what: str, **facts: object) -> Entry:
        return {"at": at, "who": who, "what": what, **facts}

    one, two, again = (
        {"job": job, "token": token, "attempt": attempt}
        for job, token, attempt in (("one", 1, 1), ("two", 2, 1), ("two", 3, 2))
    )
    return Story(
        plan=Plan(jobs=2),
        entries=[
            entry(1, "worker-1", "begin", **one),
            entry(2, "worker-1", "written", **one),
            entry(3, "worker-1", "end", **one),
            entry(4, "worker-1", "begin", **two),
            entry(5, "worker-1", "written", **two),
            entry(6, "herd", "killed", name="worker-1", struck=5.9),
            entry(7, "worker-2", "begin", **again),
            entry(8, "worker-2", "written", **again),
            entry(9, "worker-2", "end", **again),
            entry(10, "herd", "dismissed"),
            entry(11, "herd", "ended", name="worker-2", code=0),
        ],
        effects=[Effect(job="one", worker="worker-1", attempt=1), Effect(job="two", worker="worker-2", attempt=2)],
        jobs=[
            Done(id="one", number=0, status="completed", attempts=1, result="0"),
            Done(id="two", number=1, status="completed", attempts=2, result="1"),
        ],
    )


def test_the_auditor_has_nothing_to_say_about_a_story_that_is_right() -> None:
    assert list(audit(told_story())) == []


WRONG: dict[str, tuple[str, Callable[[Story], Story]]] = {
    "a row that was written twice": (
        "3 rows for 2 jobs",
        lambda story: evolve(story, effects=[*story.effects, story.effects[0]]),
    ),
    "a row that was lost": ("one has 0 rows", lambda story: evolve(story, effects=story.effects[1:])),
    "a row instead of another": (
        "two has 0 rows",
        lambda story: evolve(story, effects=[story.effects[0], story.effects[0]]),
    ),
    "a row of a run that was undone": (
        "two has a row of attempt 1",
        lambda story: evolve(story, effects=[story.effects[0], Effect(job="two", worker="worker-1", attempt=1)]),
    ),
    "a row of a worker that had no such run": (
        "never began",
        lambda story: evolve(story, effects=[story.effects[0], Effect(job="two", worker="worker-1", attempt=2)]),
    ),
    "a job that is not completed": (
        "is processing",
        lambda story: evolve(story, jobs=[story.jobs[0], evolve(story.jobs[1], status=Status.PROCESSING)]),
    ),
    "a job with another result": (
        "with the result 7",
        lambda story: evolve(story, jobs=[story.jobs[0], evolve(story.jobs[1], result="7")]),
    ),
    "a job that was lost": ("1 jobs for 2 dispatches", lambda story: evolve(story, jobs=story.jobs[:1])),
    "two commits of one job": (
        "two was committed 2 times",
        lambda story: evolve(story, entries=[*story.entries, {**story.entries[8], "at": 9.5}]),
    ),
    "a worker that ended by itself": (
        "worker-3 ended with 0",
        lambda story: evolve(
            story, entries=[{"at": 1, "who": "herd", "what": "ended", "name": "worker-3", "code": 0}, *story.entries]
        ),
    ),
    "no kill within a transaction": (
        "nothing to see",
        lambda story: evolve(story, entries=[each for each in story.entries if each["what"] != "killed"]),
    ),
    "no cuts": ("no commit was cut", lambda story: evolve(story, plan=evolve(story.plan, cuts=0.1))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_auditor_objects_to(wrong: str) -> None:
    objection, change = WRONG[wrong]
    assert objection in "\n".join(audit(change(told_story())))


# --- dispatches in the caller's own transaction -----------------------------------------------------


@contextmanager
def worker(dsn: str, journal: Path, backend: str) -> Iterator[None]:
    """A worker, in a process of its own."""
    journal.touch()
    command: list[str | Path] = [sys.executable, "-W", "error", PROGRAM, "work", "--backend", backend]
    environment = {**os.environ, "CRECHE_DSN": dsn, "JOURNAL": str(journal)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield
        finally:
            process.terminate()


def briefs(journal: Path) -> list[int]:
    """Return the numbers of the jobs that have run."""
    lines = [line.split()[1:] for line in journal.read_text("utf-8").splitlines()]
    return [int(words[1]) for words in lines if words[0] == "brief"]


@pytest.mark.anyio
async def test_a_dispatch_in_the_callers_transaction_runs_if_that_is_committed_and_never_was_if_not(
    shared_dsn: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    queue, journal = Queue(shared_dsn), tmp_path / "journal"
    await queue.migrate()
    write(shared_dsn, "CREATE TABLE orders (number INT NOT NULL)")
    with closing(connect(shared_dsn)) as connection, worker(shared_dsn, journal, anyio_backend_name):
        async with queue:

            async def order(number: int) -> Receipt[int]:
                connection.cursor().execute(f"INSERT INTO orders VALUES ({number})")
                receipt = await queue.dispatch("brief", {"number": number}, connection=connection)
                assert receipt.inserted
                with pytest.raises(NotCommitted):
                    await receipt.wait(5)
                return receipt

            undone = await order(1)
            connection.rollback()
            done = await order(2)
            connection.commit()
            assert await done.wait(30) == 2
            with pytest.raises(NotCommitted):
                await undone.wait(5)
            # What comes after it has run, so it would have run, too.
            assert await (await queue.dispatch("brief", {"number": 3})).wait(30) == 3
            assert await queue.look_up(undone.job_id) is None
    assert briefs(journal) == [2, 3]
    assert read(shared_dsn, "SELECT number FROM orders") == [(2,)]


@pytest.mark.anyio
async def test_callbacks_of_a_dispatch_in_the_callers_transaction_are_recorded_with_it_or_not_at_all(
    shared_dsn: str, tmp_path: Path, anyio_backend_name: str
) -> None:
    queue, journal = Queue(shared_dsn), tmp_path / "journal"

    @queue.task("single", result_ttl=300)
    async def single(key: str) -> str:
        return key

    @queue.task("brief")
    async def brief(number: int) -> int:
        return number

    await queue.migrate()
    async with queue:
        first = await single.dispatch("key")
        with closing(connect(shared_dsn)) as connection:
            undone = await single.options(callbacks=[brief.call(1)], connection=connection).dispatch("key")
            connection.rollback()
            done = await single.options(callbacks=[brief.call(2)], connection=connection).dispatch("key")
            connection.commit()
        assert first.job_id == undone.job_id == done.job_id
        with worker(shared_dsn, journal, anyio_backend_name):
            assert await done.wait(30) == await first.wait(30)
            (row,) = await queue.jobs(types=["brief"])
            assert row.origin is not None
            assert row.origin.job_id == first.job_id
            assert await (await queue.receipt(row.id)).wait(30) == 2
    assert [line.split()[1:] for line in journal.read_text("utf-8").splitlines() if " brief " in line] == [
        ["brief", "2"]
    ]
