"""Rivals are measured by a command that none of them can hold up: who fails is told of, and the others go on."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.__main__ import main
from benchmarks.rivals import _command as command
from benchmarks.rivals._command import Race, Visit
from benchmarks.rivals._contestants import ENTRIES, Entry
from benchmarks.rivals._environment import SCRIPTS
from click.testing import CliRunner

from creche.bench import ChildFailed, Contestant, JobsMissing, Order, drained, meter, read
from creche.bench import _measure as measure

protocol = importlib.import_module("benchmarks.rivals._protocol")

DRAIN = Race(kind="drain")
GREEDY = """
import os
from _protocol import serve, until_over

async def drain(order, tally):
    await tally.gone()
    try:
        os.close(os.open(os.environ["TAKEN"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        for _ in range(order.jobs):
            tally.note()
    await until_over(tally)
    tally.answer("")

serve(globals())
"""
DEAF = """
import sys, time
sys.stdin.readline()
print("{}", flush=True)
print("listening to nobody", file=sys.stderr, flush=True)
time.sleep(600)
"""


def rival(name: str, folder: Path, script: str) -> Contestant:
    file = folder / f"{name}.py"
    file.write_text(script)
    environment = {"PYTHONPATH": str(SCRIPTS), "TAKEN": str(folder / "taken")}
    return Contestant(name=name, command=[sys.executable, str(file)], environment=environment)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_rival_whose_neighbour_took_all_the_jobs_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LULL", 0.1)
    async with meter("memory://") as watch:
        order = Order(role="drain", dsn="memory://", jobs=7)
        work = await drained(order, watch, rival("greedy", tmp_path, GREEDY), processes=2)
    assert sorted(answer.count for answer in work.answers) == [0, 7]


@pytest.mark.parametrize(
    ("noted", "limit", "waited", "over"),
    [
        (0, None, 4.0, False),
        (0, None, 6.0, True),  # five lulls without a job
        (0, 2.0, 4.0, False),  # that job may come yet
        (3, None, 0.5, False),
        (3, None, 1.5, True),  # a lull
        (9, None, 0.0, True),  # all of them
        (3, 2.0, 0.5, False),
        (3, 0.25, 0.5, True),  # no time left
    ],
)
def test_a_rival_s_drain_is_over_as_one_of_ours_is(
    noted: int, limit: float | None, waited: float, over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = 1_000.0
    monkeypatch.setattr(protocol, "time", SimpleNamespace(monotonic=lambda: moment))
    tally = protocol.Tally(SimpleNamespace(jobs=9, lull=1.0, limit=limit, payload=0))
    tally.began = tally.ended = moment
    for _ in range(noted):
        tally.note()
    moment += waited
    assert tally.over is over


def visit(name: str, *outcomes: Exception | float, race: Race = DRAIN) -> Visit:
    """One whose runs end like this, one after the other."""
    left = iter(outcomes)

    async def run(_calls: bool) -> Mapping[str, float | None]:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return {"jobs/s": outcome}

    return Visit(name=name, race=race, run=run)


def test_a_run_that_fails_ends_no_other_and_is_told_of() -> None:
    visits = [
        visit("well", 1.0, 2.0, 3.0),
        visit("once", 1.0, ChildFailed("once", "said nothing for 5 s", "the last\nof its words\n"), 4.0),
        visit("never", *(JobsMissing("never", 9, count) for count in range(3))),
        visit("broken", 1.0, ValueError("no such thing"), OSError()),
    ]
    rows, lost = command._run_all(visits, 2)
    assert [(row.labels["contestant"], row.figures.get("jobs/s", [])) for row in rows] == [
        ("well", [2.0, 3.0]),
        ("once", [4.0]),
        ("never", []),
        ("broken", []),
    ]
    assert [row.failures for row in rows] == [
        (),
        ["round 1: once said nothing for 5 s: of its words"],
        ["the first round: never ran 0 jobs of 9", "round 1: never ran 1 jobs of 9", "round 2: never ran 2 jobs of 9"],
        ["round 1: ValueError: no such thing", "round 2: OSError"],
    ]
    assert [each.name for each in lost] == ["never", "broken"]


def test_who_failed_before_its_speed_was_known_is_tried_again_and_measured_after_that() -> None:
    (row,), lost = command._run_all([visit("late", OSError(), 1.0, 2.0, 3.0)], 2)
    assert row.figures["jobs/s"] == [2.0, 3.0]
    assert not lost


@pytest.fixture
def race_on_sqlite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a race between creche and one other; return the exit code, what was said, and the rows of the JSON."""

    def run(other: Contestant, *words: str) -> tuple[int, str, list[Any]]:
        ours = next(entry for entry in ENTRIES if entry.name == "creche, SQLite")
        entries = [ours, Entry(name="other, SQLite", start=lambda: other, engine="sqlite", python=False)]
        monkeypatch.setattr(command, "ENTRIES", entries)
        monkeypatch.setattr(command, "RACES", [Race(kind="drain", concurrency=1)])
        file = tmp_path / "figures.json"
        common = ["rivals", "--engine", "sqlite", "--rounds", "1", "--seconds", "0.1"]
        done = CliRunner().invoke(main, [*common, "--json", str(file), *words])
        return done.exit_code, done.output, [row for report in read(file) for row in report.rows]

    return run


def test_a_rival_that_says_nothing_is_a_failed_run_in_table_and_json_and_the_exit_code(
    race_on_sqlite: Any, tmp_path: Path
) -> None:
    began = time.monotonic()
    code, told, rows = race_on_sqlite(rival("deaf", tmp_path, DEAF), "--patience", "5")
    assert time.monotonic() - began < 60
    assert code == 1
    ours, other = rows
    assert ours.median("jobs/s") > 0
    assert not ours.failures
    assert other.median("jobs/s") is None
    why = "deaf said nothing for 5.1 s: listening to nobody"
    assert other.failures == [f"the first round: {why}", f"round 1: {why}"]
    assert "2 runs failed: the first round: deaf said nothing" in told
    assert "no run succeeded: other, SQLite, drain c=1" in told


def test_what_is_not_there_fails_too_and_what_is_not_to_be_had_does_not(race_on_sqlite: Any) -> None:
    code, _, (_, other) = race_on_sqlite(Contestant(name="missing", command=["/no/such/program"]))
    assert code == 1
    assert other.failures[0].startswith("the first round: missing could not be started:")
