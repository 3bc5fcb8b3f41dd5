"""Single flight and callbacks while workers are killed: a storm on each engine, and an auditor who would notice.

`CRECHE_STORM_SECONDS` makes the storms longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from attrs import evolve

from creche import Status, events
from creche.testing._herd import run_program
from creche.testing._ledger import Entry, Ledger, read_ledgers
from faults.storm import CHECKS, Cast, Row, Story, Weather, audit, counts

PROGRAM = Path(__file__).parent / "storm.py"
SECONDS = float(os.environ.get("CRECHE_STORM_SECONDS", "10"))


def test_in_a_storm_each_fingerprint_runs_once_per_window_and_everybody_is_answered_and_called_back(
    shared_dsn: str,
) -> None:
    code, told = run_program(PROGRAM, "--dsn", shared_dsn, "--seconds", str(SECONDS), limit=SECONDS + 300)
    print(told)  # noqa: T201 - the numbers, for whoever asks pytest to show them
    assert code == 0, told


# --- the auditor, on a story that is right, and on the same story with one thing wrong -----------------


WEATHER = Weather(seconds=3, processes=1, fingerprints=2)
T0 = datetime(2030, 1, 1, tzinfo=UTC)


def moment(at: float) -> datetime:
    return T0 + timedelta(seconds=at)


class Teller:
    """Tells a story as the processes of a storm would have."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.rows: list[Row] = []
        self._token = 0

    def note(self, at: float, who: str, what: str, **facts: Any) -> None:
        self.entries.append({"at": at, "who": who, "what": what, **facts})

    def asked(self, at: float, dispatch: str, key: str, job: str, status: str = "pending") -> None:
        wall = moment(at).timestamp()
        self.note(at, "dispatcher-1", "asked", dispatch=dispatch, key=key, wall=wall)
        inserted = not any(entry.get("job") == job for entry in self.entries)
        self.note(at + 0.01, "dispatcher-1", "receipt", dispatch=dispatch, job=job, inserted=inserted, status=status)

    def answered(self, at: float, dispatch: str, value: Entry) -> None:
        self.note(at, "dispatcher-1", "answered", dispatch=dispatch, value=value)

    def run(self, at: float, who: str, job: str, attempt: int = 1, **facts: Any) -> None:
        self._token += 1
        self.note(at, who, "begin", job=job, token=self._token, attempt=attempt, **facts)
        self.note(at + 0.02, who, "end", job=job, token=self._token)

    def acked(self, at: float, who: str, job: str, attempt: int = 1) -> None:
        self.note(at, who, "acked", job=job, attempt=attempt)

    def killed(self, at: float, who: str) -> None:
        self.note(at + 0.01, "herd", "killed", name=who, struck=at)

    def story(self) -> Story:
        return Story(weather=WEATHER, entries=sorted(self.entries, key=lambda entry: entry["at"]), rows=self.rows)


def result(key: str, job: str, attempt: int = 1) -> Entry:
    return {"key": key, "job": job, "attempt": attempt}


def told_story() -> Story:
    """Two keys with two windows each; a run and a callback that are repeated because their workers were killed."""
    teller = Teller()
    for name, key, at in (("a1", "a", 0.0), ("b1", "b", 1.0), ("a2", "a", 5.0), ("b2", "b", 6.0)):
        repeated = name == "b1"
        attempt = 2 if repeated else 1
        value = result(key, name, attempt)
        for number, (delay, status) in enumerate([(0.0, "pending"), (0.05, "pending"), (3.0, "completed")]):
            teller.asked(at + delay, f"{name}/{number}", key, name, status)
            teller.answered(at + delay + (1.0 if delay < 1 else 0.02), f"{name}/{number}", value)
        if repeated:
            teller.run(at + 0.1, "worker-1", name, kind="work", subject=key)
            teller.killed(at + 0.2, "worker-1")
        teller.run(at + 0.6, "worker-2", name, attempt, kind="work", subject=key)
        teller.acked(at + 0.7, "worker-2", name, attempt)
        teller.rows.append(
            Row(
                id=name,
                kind="work",
                subject=key,
                status="completed",
                attempts=attempt,
                created=moment(at),
                completed=moment(at + 0.7),
                expires=moment(at + 3.7),
                fingerprint=f"f{key}",
            )
        )
        for number in range(3):
            tell, twice = f"{name}/{number}!", name == "a2" and number == 0
            facts: Entry = {"kind": "told", "subject": f"{name}/{number}", "result": value}
            if twice:
                teller.run(at + 0.8, "worker-2", tell, **facts)
                teller.killed(at + 0.9, "worker-2")
            teller.run(at + 3.2, "worker-3", tell, 1 + twice, **facts)
            teller.acked(at + 3.3, "worker-3", tell, 1 + twice)
            teller.rows.append(
                Row(
                    id=tell,
                    kind="told",
                    subject=f"{name}/{number}",
                    status="completed",
                    attempts=1 + twice,
                    created=moment(at + 0.7),
                    completed=moment(at + 3.3),
                    origin=name,
                )
            )
    teller.note(20, "herd", "ended", name="dispatcher-1", code=0)
    teller.note(21, "herd", "dismissed")
    teller.note(22, "herd", "ended", name="worker-3", code=0)
    return teller.story()


def test_the_auditor_has_nothing_to_say_about_a_story_that_is_right() -> None:
    story = told_story()
    assert audit(story) == {}
    numbers = counts(story)
    assert numbers["windows of fingerprints"] == 4
    assert numbers["runs of them"] == 5
    assert numbers["again: their worker was killed"] == 1
    assert numbers["callbacks again: killed"] == 1
    assert numbers["again: nobody knows why"] == numbers["callbacks again: nobody knows"] == 0


Change: TypeAlias = Callable[[Story], Story]


def without(what: str, **facts: Any) -> Change:
    def change(story: Story) -> Story:
        left = [each for each in story.entries if not _is(each, what, facts)]
        assert len(left) == len(story.entries) - 1
        return evolve(story, entries=left)

    return change


def with_entry(what: str, facts: Entry, **new: Any) -> Change:
    def change(story: Story) -> Story:
        assert sum(_is(each, what, facts) for each in story.entries) == 1
        changed = [{**each, **new} if _is(each, what, facts) else each for each in story.entries]
        return evolve(story, entries=sorted(changed, key=lambda each: float(each["at"])))

    return change


def and_entry(at: float, who: str, what: str, **facts: Any) -> Change:
    def change(story: Story) -> Story:
        entries = [*story.entries, {"at": at, "who": who, "what": what, **facts}]
        return evolve(story, entries=sorted(entries, key=lambda each: float(each["at"])))

    return change


def with_row(id: str, **new: Any) -> Change:
    def change(story: Story) -> Story:
        rows = [evolve(row, **new) if row.id == id else row for row in story.rows]
        assert rows != story.rows
        return evolve(story, rows=rows)

    return change


def without_row(id: str) -> Change:
    return lambda story: evolve(story, rows=[row for row in story.rows if row.id != id])


def and_row(like: str, **new: Any) -> Change:
    def change(story: Story) -> Story:
        (row,) = (row for row in story.rows if row.id == like)
        return evolve(story, rows=[*story.rows, evolve(row, **new)])

    return change


def without_kills(story: Story) -> Story:
    return evolve(story, entries=[each for each in story.entries if each["what"] != "killed"])


def _is(entry: Entry, what: str, facts: Entry) -> bool:
    return entry["what"] == what and all(entry.get(name) == value for name, value in facts.items())


WRONG: dict[str, tuple[str, Change]] = {
    "a job made while the former's result was fresh": ("windows", with_row("a2", created=moment(3.6))),
    "a job made while the former was on its way": ("windows", with_row("a1", status=Status.PENDING, completed=None)),
    "two keys with one fingerprint": ("fingerprints", with_row("b1", fingerprint="fa")),
    "two fingerprints of one key": ("fingerprints", with_row("a2", fingerprint="other")),
    "a run too soon, by the ledgers alone": ("pace", with_entry("begin", {"job": "b2"}, at=3.5)),
    "a window whose end nobody wrote down": ("pace", without("end", job="a1")),
    "a whole run that left no line": ("runs", without("begin", job="a1")),
    "an end that left no line": ("runs", without("end", job="b2")),
    "a second run whose worker was well": ("runs", without("killed", name="worker-1")),
    "a callback's second run whose worker was well": ("runs", without("killed", name="worker-2")),
    "a second run before the first one's worker died": ("runs", with_entry("killed", {"name": "worker-1"}, struck=2.0)),
    "a second run under the same lease": ("runs", with_entry("begin", {"job": "b1", "attempt": 2}, token=4)),
    "a run after its end was acknowledged": ("runs", and_entry(1.3, "worker-1", "acked", job="b1", attempt=1)),
    "two acknowledgements": ("runs", and_entry(9.9, "worker-2", "acked", job="a1", attempt=1)),
    "an attempt more than runs": ("runs", with_row("a1", attempts=2)),
    "a job that ran and is gone": ("runs", without_row("a1")),
    "an answer that never came": ("answers", without("answered", dispatch="a1/1")),
    "two answers": ("answers", and_entry(2.0, "dispatcher-1", "answered", dispatch="a1/1", value=result("a", "a1"))),
    "another attempt's answer": ("answers", with_entry("answered", {"dispatch": "b1/0"}, value=result("b", "b1", 1))),
    "another key's answer": ("answers", with_entry("asked", {"dispatch": "b1/0"}, key="a")),
    "an answer that had expired": (
        "answers",
        with_entry("asked", {"dispatch": "a1/2"}, wall=moment(4.5).timestamp()),
    ),
    "a job that two dispatches made": ("receipts", with_entry("receipt", {"dispatch": "a1/1"}, inserted=True)),
    "a job that nobody made": ("receipts", with_entry("receipt", {"dispatch": "a1/0"}, inserted=False)),
    "a callback that has no row": ("callbacks", without_row("a1/1!")),
    "a callback that was written twice": ("callbacks", and_row("a1/1!", id="another")),
    "a callback of another job": ("callbacks", with_row("a1/1!", origin="b1")),
    "a callback that never ran": ("callbacks", without("begin", subject="a1/1")),
    "a callback with another result": ("callbacks", with_entry("begin", {"subject": "a1/1"}, result=result("b", "b1"))),
    "a callback of nobody": ("callbacks", and_row("a1/1!", subject="nobody", id="another")),
    "a job that is left over": ("rest", with_row("b2", status=Status.PROCESSING)),
    "a job that failed": ("rest", with_row("b2", status=Status.FAILED)),
    "a dead letter": ("rest", lambda story: evolve(story, dead_letters=1)),
    "a worker that ended by itself": (
        "processes",
        and_entry(9.0, "herd", "ended", name="worker-2", code=0),
    ),
    "a worker that ended badly": ("processes", with_entry("ended", {"name": "worker-3"}, code=1)),
    "dispatchers that never ended": ("processes", without("ended", name="dispatcher-1")),
    "no kills": ("weather", without_kills),
    "many dispatches that raised": (
        "weather",
        and_entry(9.0, "dispatcher-1", "raised", dispatch="x", error="StorageUnavailable()"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_auditor_objects_to(wrong: str) -> None:
    check, change = WRONG[wrong]
    assert check in audit(change(told_story()))


def test_each_check_of_the_auditor_can_fail() -> None:
    assert {check for check, _ in WRONG.values()} == set(CHECKS)


def test_what_was_given_back_is_acknowledged_by_whoever_ends_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "worker-1")
    cast = Cast("memory://", WEATHER, ledger)
    whose: Any = {"worker": "worker-1", "job_id": uuid4(), "type": "work", "queue_name": "default", "attempt": 1}
    for kind in (events.JobReleased, events.JobAcked):
        cast.note_event(kind(**whose))
    assert [entry["what"] for entry in read_ledgers(tmp_path)] == ["let go"]
    cast.note_event(events.JobAcked(**whose))  # it got the job again, as the same attempt
    assert [entry["what"] for entry in read_ledgers(tmp_path)] == ["let go", "acked"]


def test_a_line_that_was_torn_by_a_kill_is_no_line(tmp_path: Path) -> None:
    Ledger(tmp_path, "worker-1").note("begin", job="a1")
    with (tmp_path / "worker-1.ledger").open("ab") as file:
        file.write(b'{"at": 17, "wh')
    assert [entry["what"] for entry in read_ledgers(tmp_path)] == ["begin"]
