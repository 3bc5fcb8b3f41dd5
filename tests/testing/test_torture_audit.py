"""The auditor of the torture, on a story that is right, and on the same story with one thing wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from attrs import asdict, evolve

from creche.testing._ledger import Entry
from creche.testing.torture import _figures as figures
from creche.testing.torture._actors import Ask, unanswered
from creche.testing.torture._audit import CHECKS, EXCUSED, audit
from creche.testing.torture._auditor import find
from creche.testing.torture._overruns import BLOCKED, COMMITTING, STOOD, SWALLOWED, overruns
from creche.testing.torture._plan import MIX, Plan
from creche.testing.torture._story import Row, Story

PLAN = Plan(engine="sqlite", seconds=60, lease=2.0, attempts=3)


class Teller:
    """Tells a story as the processes of a run would have."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.rows: list[Row] = []
        self._token = 0

    def note(self, at: float, who: str, what: str, **facts: Any) -> None:
        self.entries.append({"at": at, "who": who, "what": what, **facts})

    def asked(self, at: float, key: str, kind: str, job: str | None = None, **facts: Any) -> None:
        ask = Ask(key=key, kind=kind, number=1, **facts)
        inserted = not any(entry.get("job") == job for entry in self.entries)
        self.note(at, "dispatcher-1", "asked", key=key, ask=asdict(ask))
        if job is not None:
            self.note(at + 0.01, "dispatcher-1", "receipt", key=key, job=job, inserted=inserted)

    def run(self, at: float, who: str, job: str, kind: str, *, attempt: int = 1, lasts: float = 0.02) -> str:
        """Have a handler run for a while, with a lease of which 1.8 s are its own; return that lease."""
        self._token += 1
        lease = f"{self._token}:7"
        facts = {"job": job, "lease": lease}
        self.note(at, who, "begin", **facts, kind=kind, attempt=attempt, until=at + 1.8)
        until = at + 1.8
        while until < at + lasts:
            until += 0.6
            self.note(until - 1.8, who, "renewed", **facts, until=until)
        self.note(at + lasts, who, "end", **facts, how="returned", until=until)
        return lease

    def settled(self, at: float, who: str, job: str, lease: str, how: str, *, attempt: int = 1) -> None:
        self.note(at, who, "ending", job=job, lease=lease, attempt=attempt, how=how)
        self.note(at + 0.01, who, "acked", job=job, lease=lease, attempt=attempt, how=how)

    def killed(self, at: float, who: str) -> None:
        """Kill a process: it says nothing more."""
        self.entries = [each for each in self.entries if each["who"] != who or each["at"] < at]
        self.note(at + 0.01, "herd", "killed", name=who, struck=at)

    def row(self, job: str, kind: str, key: str, status: str, **facts: Any) -> None:
        row = Row(id=job, kind=kind, status=status, attempts=1, limit=3, key=key)
        result = {"key": key, "lease": facts["lease"]} if status == "completed" else None
        self.rows.append(evolve(row, result=result, **facts))


def told_story() -> Story:
    """A brief job; a long one whose first worker is killed; one that fails three times; two askers for one flight, and
    the flight after it; one that is cancelled; one that is rolled back; one that writes a row; one that is given back.
    """
    teller = Teller()
    for who in ("worker-1", "worker-2", "worker-3", "elder-4", "dispatcher-1"):
        teller.note(0, "herd", "born", name=who)
    teller.asked(1, "k/brief", "brief", "brief")
    brief = teller.run(2, "worker-2", "brief", "brief")
    teller.settled(2.02, "worker-2", "brief", brief, "succeeded")
    teller.row("brief", "brief", "k/brief", "completed", lease=brief)

    teller.asked(3, "k/long", "long", "long")
    teller.run(4, "worker-1", "long", "long", lasts=9)
    teller.note(5, "conductor", "broke", number=1, fault="a worker is killed")
    teller.killed(5, "worker-1")
    teller.note(5.02, "conductor", "mended", number=1, fault="a worker is killed")
    long = teller.run(7, "worker-2", "long", "long", attempt=2, lasts=3.2)
    teller.settled(10.2, "worker-2", "long", long, "succeeded", attempt=2)
    teller.row("long", "long", "k/long", "completed", lease=long, attempts=2)

    teller.asked(11, "k/fail", "fail", "fail")
    lease = ""
    for attempt, how in enumerate(["retry", "retry", "failed"], 1):
        lease = teller.run(11 + attempt, "worker-2", "fail", "fail", attempt=attempt)
        teller.settled(11.02 + attempt, "worker-2", "fail", lease, how, attempt=attempt)
    teller.row("fail", "fail", "k/fail", "failed", lease=lease, attempts=3)

    for number, job in enumerate(["flight", "flight", "flight again"]):
        teller.asked(20 + 2 * number, f"k/flight{number}", "flight", job)
    for at, job, key in ((23.0, "flight", "k/flight0"), (25.0, "flight again", "k/flight2")):
        lease = teller.run(at, "elder-4", job, "flight", lasts=0.3)
        teller.settled(at + 0.3, "elder-4", job, lease, "succeeded")
        teller.row(job, "flight", key, "completed", lease=lease, fingerprint="f1")

    teller.asked(30, "k/cancel", "swallow", "cancel", cancel=1.0)
    lease = teller.run(30.5, "elder-4", "cancel", "swallow", lasts=1)
    teller.note(31, "dispatcher-1", "cancelling", job="cancel")
    teller.note(31.01, "dispatcher-1", "cancelled", job="cancel", status="processing")
    teller.settled(31.5, "elder-4", "cancel", lease, "cancelled")
    teller.row("cancel", "swallow", "k/cancel", "cancelled", lease=lease)

    teller.asked(32, "k/back", "brief", borrowed=True, rolled_back=True)
    teller.note(32.1, "dispatcher-1", "rolled back", key="k/back")

    teller.note(33, "dispatcher-1", "unknown", key="k/effect", why="the caller gave up")
    teller.asked(33, "k/effect", "effect", "effect")
    lease = teller.run(34, "worker-2", "effect", "effect")
    teller.settled(34.01, "worker-2", "effect", lease, "succeeded")
    teller.row("effect", "effect", "k/effect", "completed", lease=lease)

    teller.asked(35, "k/given", "brief", "given")
    lease = teller.run(36, "worker-3", "given", "brief", lasts=0.5)
    teller.note(36.2, "herd", "told", name="worker-3")
    teller.settled(36.5, "worker-3", "given", lease, "released")
    teller.note(36.6, "herd", "ended", name="worker-3", code=0)
    lease = teller.run(37, "worker-2", "given", "brief")
    teller.settled(37.02, "worker-2", "given", lease, "succeeded")
    teller.row("given", "brief", "k/given", "completed", lease=lease)

    teller.note(61, "herd", "ended", name="dispatcher-1", code=0)
    teller.note(62, "herd", "dismissed")
    for who in ("worker-2", "elder-4"):
        teller.note(63, "herd", "ended", name=who, code=0)
    return Story(
        plan=PLAN,
        entries=sorted(teller.entries, key=lambda entry: entry["at"]),
        rows=teller.rows,
        dead=["fail"],
        effects=[("effect", "worker-2", 1)],
    )


def test_the_auditor_has_nothing_to_say_about_a_story_that_is_right() -> None:
    assert {name: objections for name, objections in audit(told_story()).items() if objections} == {}


# --- one thing wrong --------------------------------------------------------------------------------

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
        return _told(story, changed)

    return change


def and_entry(at: float, who: str, what: str, **facts: Any) -> Change:
    return lambda story: _told(story, [*story.entries, {"at": at, "who": who, "what": what, **facts}])


def and_run(at: float, who: str, job: str, kind: str, **facts: Any) -> Change:
    def change(story: Story) -> Story:
        teller = Teller()
        teller._token = 100
        teller.run(at, who, job, kind, **facts)
        return _told(story, [*story.entries, *teller.entries])

    return change


def with_row(name: str, **new: Any) -> Change:
    def change(story: Story) -> Story:
        rows = [evolve(row, **new) if row.id == name else row for row in story.rows]
        assert rows != story.rows
        return evolve(story, rows=rows)

    return change


def without_row(name: str) -> Change:
    return lambda story: evolve(story, rows=[row for row in story.rows if row.id != name])


def and_row(like: str, **new: Any) -> Change:
    def change(story: Story) -> Story:
        (row,) = (row for row in story.rows if row.id == like)
        return evolve(story, rows=[*story.rows, evolve(row, **new)])

    return change


def both(*changes: Change) -> Change:
    def change(story: Story) -> Story:
        for each in changes:
            story = each(story)
        return story

    return change


def _told(story: Story, entries: list[Entry]) -> Story:
    return evolve(story, entries=sorted(entries, key=lambda each: float(each["at"])))


def _is(entry: Entry, what: str, facts: Entry) -> bool:
    return entry["what"] == what and all(entry.get(name) == value for name, value in facts.items())


ROLLED_BACK = with_entry(
    "asked",
    {"key": "k/brief"},
    ask=asdict(Ask(key="k/brief", kind="brief", number=1, borrowed=True, rolled_back=True)),
)

WRONG: dict[str, tuple[str, Change]] = {
    "a dispatch that was answered, and is gone": ("lost", without_row("brief")),
    "one that joined a job which is gone": ("lost", without_row("flight")),
    "one that was gone when it was to be cancelled": (
        "lost",
        and_entry(31, "dispatcher-1", "vanished", job="cancel"),
    ),
    "a dispatch without an answer": ("never answered", without("receipt", key="k/brief")),
    "a job that nobody asked for": ("jobs that nobody asked for", and_row("brief", id="another", key="k/another")),
    "a job of another kind": ("jobs that nobody asked for", with_row("brief", kind="long")),
    "a job that was rolled back": ("jobs that nobody asked for", ROLLED_BACK),
    "two jobs of one dispatch": ("jobs that nobody asked for", and_row("brief", id="twin")),
    "a cancellation that nobody asked for": ("jobs that nobody asked for", without("cancelling", job="cancel")),
    "a job that still waits": ("not ended in time", with_row("given", status="pending")),
    "a job that still runs": ("not ended in time", with_row("given", status="processing")),
    "an accepted end whose job runs again": (
        "ends that were accepted, and undone",
        with_row("brief", status="pending"),
    ),
    "an accepted end under another lease": ("ends that were accepted, and undone", with_row("brief", lease="9:9")),
    "an accepted end whose job is gone": ("ends that were accepted, and undone", without_row("brief")),
    "two accepted ends": (
        "settled twice",
        both(
            and_run(2.5, "worker-3", "brief", "brief", attempt=2),
            and_entry(2.6, "worker-3", "ending", job="brief", lease="101:7", attempt=2, how="succeeded"),
            and_entry(2.7, "worker-3", "acked", job="brief", lease="101:7", attempt=2, how="succeeded"),
        ),
    ),
    "a run after the end was accepted": ("settled twice", and_run(2.5, "worker-3", "brief", "brief", attempt=2)),
    "one end that was acknowledged twice": (
        "settled twice",
        and_entry(2.5, "worker-2", "acked", job="brief", lease="1:7", attempt=1, how="succeeded"),
    ),
    "a completion that nobody ran": ("completed without a run", with_row("brief", lease="9:9")),
    "a completion by a run that was cancelled": (
        "completed without a run",
        with_entry("end", {"job": "brief"}, how="cancelled"),
    ),
    "a completion with another run's result": (
        "completed without a run",
        with_row("long", result={"key": "k/long", "lease": "2:7"}),
    ),
    "an effect that is missing": (
        "effects that are not there exactly once",
        lambda story: evolve(story, effects=[]),
    ),
    "an effect that is there twice": (
        "effects that are not there exactly once",
        lambda story: evolve(story, effects=[("effect", "worker-2", 1)] * 2),
    ),
    "an effect of another attempt": (
        "effects that are not there exactly once",
        lambda story: evolve(story, effects=[("effect", "worker-2", 2)]),
    ),
    "an effect of a job that failed": (
        "effects that are not there exactly once",
        with_row("effect", status="failed"),
    ),
    "an effect of a job that is gone": ("effects that are not there exactly once", without_row("effect")),
    "a job that was buried with attempts left": ("buried too early", with_row("fail", attempts=2)),
    "a job that failed and is no dead letter": ("buried too early", lambda story: evolve(story, dead=[])),
    "a dead letter of a job that did not fail": (
        "buried too early",
        lambda story: evolve(story, dead=["fail", "brief"]),
    ),
    "a second lease while the first one's killed holder had time left": (
        "two valid leases at once",
        with_entry("begin", {"job": "long", "attempt": 2}, at=5.7),
    ),
    "a second lease after a renewal": (
        "two valid leases at once",
        and_entry(4.9, "worker-1", "renewed", job="long", lease="2:7", until=7.5),
    ),
    "a second lease before the first was given back": (
        "two valid leases at once",
        with_entry("begin", {"job": "given", "lease": "12:7"}, at=36.4),
    ),
    "a handler that lives on without a reason": (
        "handlers alive past their lease",
        with_entry("end", {"job": "brief"}, at=4.1, until=3.8),
    ),
    "a handler that lives on, in a process that stood still for a moment": (
        "handlers alive past their lease",
        both(
            with_entry("end", {"job": "brief"}, at=4.2, until=3.8),
            and_entry(3.9, "worker-2", "stood", since=3.85),
        ),
    ),
    "a handler that waits for the answer to its commit for longer than it may": (
        "handlers alive past their lease",
        both(
            with_entry("end", {"job": "brief"}, at=6.5, until=3.8),
            and_entry(3.0, "worker-2", "commits", job="brief", lease="1:7"),
        ),
    ),
    "a handler that swallows its cancellation for longer than it said": (
        "handlers alive past their lease",
        both(
            with_entry("end", {"job": "cancel"}, at=35.0),
            and_entry(32.3, "elder-4", "swallows", job="cancel", lease="9:7"),
        ),
    ),
    "a killed process whose handler had outlived its lease": (
        "handlers alive past their lease",
        with_entry("killed", {"name": "worker-1"}, at=6.8, struck=6.8),
    ),
    "an attempt too many in the row": ("attempts over the limit", with_row("fail", attempts=4)),
    "an attempt too many in a worker": (
        "attempts over the limit",
        with_entry("begin", {"job": "fail", "attempt": 3}, attempt=4),
    ),
    "an attempt that was leased twice": (
        "attempts over the limit",
        with_entry("begin", {"job": "fail", "attempt": 3}, attempt=2),
    ),
    "two of a fingerprint that the auditor saw": (
        "two active per fingerprint",
        and_entry(23.1, "watcher-9", "rivals", fingerprint="f1", count=2),
    ),
    "two of a fingerprint that ran together": (
        "two active per fingerprint",
        with_entry("begin", {"job": "flight again"}, at=23.1),
    ),
    "a worker that ended by itself": (
        "processes that ended badly",
        with_entry("ended", {"name": "worker-3"}, at=36.1, code=1),
    ),
    "a worker that nobody told to end": ("processes that ended badly", without("told", name="worker-3")),
    "a worker that never ended": ("processes that ended badly", without("ended", name="elder-4")),
    "a dispatcher that crashed": ("processes that ended badly", with_entry("ended", {"name": "dispatcher-1"}, code=1)),
    "a process that a job ended in another way": (
        "processes that ended badly",
        both(
            and_entry(36, "worker-3", "exits", job="given"),
            with_entry("ended", {"name": "worker-3"}, code=1),
        ),
    ),
    "no faults": ("reasons to doubt this run", without("mended", number=1)),
    "no unknown outcomes": ("reasons to doubt this run", without("unknown", key="k/effect")),
    "nothing done": (
        "reasons to doubt this run",
        lambda story: evolve(story, rows=[evolve(row, status="cancelled") for row in story.rows]),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_auditor_objects_to(wrong: str) -> None:
    check, change = WRONG[wrong]
    assert audit(change(told_story()))[check]


def test_each_check_of_the_auditor_can_fail() -> None:
    assert {check for check, _ in WRONG.values()} == set(CHECKS)


def test_the_page_says_what_each_column_counts_and_what_each_job_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    torture = page.partition("## Torture")[2].partition("\n## ")[0]
    columns = torture.partition("| column | counts |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([a-z ,]+) \|", columns, re.MULTILINE) == list(CHECKS)
    jobs = torture.partition("| of 1,000 | what they do |")[2].partition("\n\n")[0]
    assert sorted(map(int, re.findall(r"^\| (\d+) \|", jobs, re.MULTILINE))) == sorted(MIX.values())
    assert sum(MIX.values()) == 1_000


# --- what is no objection ---------------------------------------------------------------------------


def objections(check: str, *changes: Change) -> list[str]:
    return audit(both(*changes)(told_story()))[check]


LATE = with_entry("end", {"job": "brief"}, at=6.0, until=3.8)


def test_a_handler_whose_process_stood_still_is_not_to_blame() -> None:
    stood = and_entry(5.95, "worker-2", "stood", since=3.7)
    assert not objections("handlers alive past their lease", LATE, stood)
    (overrun,) = overruns(both(LATE, stood)(told_story()))
    assert overrun.why == STOOD
    assert overrun.outlived
    assert overrun.past == pytest.approx(2.2)
    assert overrun.awake == pytest.approx(0.05)


def test_nor_is_one_whose_process_was_killed_as_soon_as_it_was_thawed() -> None:
    frozen = both(
        and_entry(3.7, "herd", "frozen", name="worker-2"),
        and_entry(5.95, "herd", "thawed", name="worker-2"),
    )
    assert not objections("handlers alive past their lease", LATE, frozen)


def test_nor_is_one_whose_event_loop_another_one_blocked() -> None:
    blocked = both(and_entry(2.5, "worker-2", "blocks", until=5.7), and_entry(5.9, "worker-2", "unblocked"))
    assert not objections("handlers alive past their lease", LATE, blocked)
    (overrun,) = overruns(both(LATE, blocked)(told_story()))
    assert overrun.why == BLOCKED
    assert overrun.awake == pytest.approx(0.1)


def test_nor_is_one_that_waits_for_its_commit_for_no_longer_than_it_may() -> None:
    commits = and_entry(3.0, "worker-2", "commits", job="brief", lease="1:7")
    assert not objections("handlers alive past their lease", LATE, commits)
    assert [overrun.why for overrun in overruns(both(LATE, commits)(told_story()))] == [COMMITTING]


def test_nor_is_one_that_swallows_its_cancellation_for_as_long_as_it_says() -> None:
    swallows = and_entry(3.8, "worker-2", "swallows", job="brief", lease="1:7")
    assert not objections("handlers alive past their lease", LATE, swallows)
    assert [overrun.why for overrun in overruns(both(LATE, swallows)(told_story()))] == [SWALLOWED]


def test_one_that_ends_within_the_margin_has_not_outlived_its_lease() -> None:
    story = with_entry("end", {"job": "brief"}, at=3.9, until=3.8)(told_story())
    (overrun,) = overruns(story)
    assert not overrun.outlived
    assert figures.lateness(story)["no reason"].count == 1


def test_a_process_that_was_killed_while_it_was_frozen_did_nothing_since() -> None:
    frozen = both(
        and_entry(5.0, "herd", "frozen", name="worker-1"),
        with_entry("killed", {"name": "worker-1"}, at=9.0, struck=9.0),
    )
    assert not objections("handlers alive past their lease", frozen)


def test_a_job_that_ends_its_process_is_expected_to() -> None:
    exits = both(
        and_entry(36.1, "worker-3", "exits", job="given"),
        with_entry("ended", {"name": "worker-3"}, code=17),
        without("told", name="worker-3"),
    )
    assert not objections("processes that ended badly", exits)


def test_a_worker_that_finds_no_database_may_end() -> None:
    unopened = both(and_entry(36.1, "worker-3", "unopened", error=""), without("told", name="worker-3"))
    assert not objections("processes that ended badly", unopened)


def test_what_may_be_lost_without_a_disk_is_counted_and_no_reason_to_fail() -> None:
    lost = without_row("brief")(told_story())
    assert not find(lost).clean
    excused = find(evolve(lost, plan=evolve(PLAN, durable=False)))
    assert excused.clean
    assert {column.name for column in excused.columns if column.count} <= EXCUSED
    late = with_entry("end", {"job": "brief"}, at=4.1, until=3.8)(told_story())
    assert not find(evolve(late, plan=evolve(PLAN, durable=False))).clean


# --- figures ----------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_story() -> None:
    story = told_story()
    numbers = figures.counts(story)
    assert numbers["dispatches"] == 10
    assert numbers["joined a job that was on its way"] == 1
    assert (numbers["jobs"], numbers["completed"], numbers["dead"], numbers["cancelled"]) == (8, 6, 1, 1)
    assert numbers["attempts"] == 12
    assert numbers["workers that died"] == 1
    assert figures.attempts_per_completed_job(story) == pytest.approx(7 / 6)
    assert figures.unknown_outcomes(story) == {"dispatch: the caller gave up": 1}
    assert (again := figures.second_runs(story))
    assert again.longest == pytest.approx(2.0)
    assert (answers := figures.answers(story))
    assert answers.count == 9
    assert answers.longest == pytest.approx(0.01)


def test_recovery_is_counted_from_the_end_of_a_fault_to_the_next_end_that_is_accepted() -> None:
    story = told_story()
    (recovery,) = figures.recoveries(story).items()
    assert recovery[0] == "a worker is killed"
    assert recovery[1].longest == pytest.approx(10.21 - 5.02)
    second = both(
        and_entry(6, "conductor", "broke", number=2, fault="the wire is slow"),
        and_entry(8, "conductor", "mended", number=2, fault="the wire is slow"),
    )
    found = {name: each.count for name, each in figures.recoveries(second(story)).items()}
    assert found == {figures.PAIRED: 1, "the wire is slow": 1}


def test_an_unknown_outcome_is_counted_once_per_dispatch_and_reason() -> None:
    again = and_entry(33.5, "dispatcher-1", "unknown", key="k/effect", why="the caller gave up")
    cut = and_entry(33.6, "proxy-9", "cut", sent=True, about="dispatch")
    never = and_entry(33.7, "proxy-9", "cut", sent=False, about="dispatch")
    dying = and_entry(4.9, "worker-1", "ending", job="long", lease="2:7", attempt=1, how="succeeded")
    assert figures.unknown_outcomes(both(again, cut, never, dying)(told_story())) == {
        "answer cut off: dispatch": 1,
        "dispatch: the caller gave up": 1,
        "end of an attempt: its worker died": 1,
    }


def test_growth_is_told_of_workers_that_lived_long() -> None:
    sizes = [
        {"at": float(at), "who": "elder-4", "what": "size", "tasks": 9, "files": 20 + at // 50, "memory": at}
        for at in range(0, 100, 2)
    ]
    story = told_story()
    (growth,) = figures.growth(_told(story, [*story.entries, *sizes]))
    assert growth.who == "elder-4"
    assert [*growth.tasks, *growth.files] == [9, 9, 20, 21]
    assert growth.memory[1] > growth.memory[0]


def test_whoever_takes_a_killed_dispatchers_seat_asks_again_what_nobody_answered() -> None:
    story = told_story()
    entries = [entry for entry in story.entries if entry["who"] == "dispatcher-1"]
    assert unanswered(entries) == []
    left = [entry for entry in entries if not _is(entry, "receipt", {"key": "k/long"})]
    assert [entry["key"] for entry in unanswered(left)] == ["k/long"]
    assert unanswered([entry for entry in entries if entry["what"] != "rolled back"]) == []
    (again,) = ({**entry, "what": "took over"} for entry in left if _is(entry, "asked", {"key": "k/long"}))
    assert [entry["key"] for entry in unanswered([again])] == ["k/long"]  # whoever took it over was killed, too
