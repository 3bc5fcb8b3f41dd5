"""The auditor, on a story that is right, and on the same story with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import evolve

from creche.testing._ledger import Entry
from ha.audit import Plan, Row, Story, audit, counts

PLAN = Plan(jobs=2, strikes=1)


def entry(at: float, who: str, what: str, **facts: object) -> Entry:
    return {"at": at, "who": who, "what": what, **facts}


def right() -> Story:
    """Two jobs. The first ran twice: its first run lost its lease when a server was killed."""
    entries = [
        entry(1.0, "dispatcher-1", "receipt", number=0, job="a"),
        entry(1.1, "dispatcher-1", "receipt", number=1, job="b"),
        entry(1.2, "worker-1", "begin", job="b", run="b1", number=1),
        entry(1.3, "worker-1", "left", run="b1"),
        entry(1.4, "worker-1", "acked", job="b", run="b1"),
        entry(1.5, "worker-1", "begin", job="a", run="a1", number=0),
        entry(2.0, "fate", "struck", kind="kill", fault=0),
        entry(2.1, "fate", "turn"),
        entry(3.0, "worker-1", "left", run="a1"),
        entry(3.1, "worker-1", "lease lost", job="a"),
        entry(4.0, "worker-2", "begin", job="a", run="a2", number=0),
        entry(4.1, "worker-2", "left", run="a2"),
        entry(4.2, "worker-2", "acked", job="a", run="a2"),
        entry(5.0, "herd", "ended", name="dispatcher-1", code=0),
        entry(6.0, "herd", "dismissed"),
        entry(7.0, "herd", "ended", name="worker-1", code=0),
        entry(7.0, "herd", "ended", name="worker-2", code=-15),
    ]
    rows = [
        Row(id="a", number=0, status="completed", result="a2"),
        Row(id="b", number=1, status="completed", result="b1"),
    ]
    return Story(plan=PLAN, entries=entries, rows=rows, copies={"another": rows})


def test_a_story_that_is_right_is_not_objected_to() -> None:
    assert audit(right()) == {}
    numbers = counts(right())
    assert numbers["dispatches that were acknowledged"] == 2
    assert numbers["runs"] == 3
    assert numbers["ms from a fault to the next completion, longest"] == 2_200


def without(*wanted: str) -> Callable[[Story], Story]:
    """Take the rows of these jobs away, everywhere."""

    def change(story: Story) -> Story:
        rows = [row for row in story.rows if row.id not in wanted]
        return evolve(story, rows=rows, copies={"another": rows})

    return change


def with_row(job: str, **changes: Any) -> Callable[[Story], Story]:
    def change(story: Story) -> Story:
        rows = [evolve(row, **changes) if row.id == job else row for row in story.rows]
        return evolve(story, rows=rows, copies={"another": rows})

    return change


def with_entries(*more: Entry) -> Callable[[Story], Story]:
    return lambda story: evolve(story, entries=sorted([*story.entries, *more], key=lambda each: each["at"]))


def without_entries(what: str) -> Callable[[Story], Story]:
    return lambda story: evolve(story, entries=[each for each in story.entries if each["what"] != what])


LOST = ["nothing lost"]


@pytest.mark.parametrize(
    ("change", "objected"),
    [
        (without("a"), LOST),
        (with_row("b", result="b0"), LOST),
        (with_row("b", status="processing", result=None), ["nothing lost", "every job is over, once"]),
        (with_row("b", status="failed", result=None), ["nothing lost", "every job is over, once"]),
        (with_row("b", number=0), ["every job is over, once"]),
        (with_entries(entry(4.5, "worker-1", "acked", job="b", run="b2")), ["nothing lost", "nothing settled twice"]),
        (with_entries(entry(4.5, "worker-1", "acked", job="b", run="b1")), ["nothing settled twice"]),
        (
            with_entries(
                entry(2.9, "worker-3", "begin", job="a", run="a9", number=0), entry(2.95, "worker-3", "left", run="a9")
            ),
            ["one holder at a time"],
        ),
        (lambda story: evolve(story, copies={"another": story.rows[:1]}), ["all servers agree"]),
        (with_entries(entry(5.5, "herd", "ended", name="worker-3", code=1)), ["nobody crashed"]),
        (without_entries("struck"), ["there were faults"]),
        (with_entries(entry(9.0, "fate", "struck", kind="kill", fault=1)), ["there were faults"]),
        (lambda story: evolve(story, plan=evolve(PLAN, jobs=3)), ["every job is over, once"]),
    ],
)
def test_one_thing_that_is_wrong_is_objected_to(change: Callable[[Story], Story], objected: Sequence[str]) -> None:
    assert [*audit(change(right()))] == objected


def test_what_a_failover_loses_is_counted_and_what_is_lost_without_one_is_objected_to() -> None:
    story = evolve(right(), lossy=True)
    early, late = without("b")(story), without("a")(story)
    assert audit(early) == {}  # it was acknowledged before the failover
    assert (counts(early)["lost: dispatches"], counts(early)["lost: completions"]) == (1, 1)
    assert [*audit(late)] == LOST  # so was the dispatch, but its completion came after it


def test_in_each_history_a_job_is_settled_once_and_no_lease_is_accepted_twice_in_any() -> None:
    again = [
        entry(4.4, "worker-2", "begin", job="b", run="b2", number=1),
        entry(4.5, "worker-2", "left", run="b2"),
        entry(4.6, "worker-2", "acked", job="b", run="b2"),
    ]
    story = with_row("b", result="b2")(with_entries(*again)(evolve(right(), lossy=True)))
    assert audit(story) == {}
    assert counts(story)["settled twice"] == 1
    more = [{**each, "at": each["at"] + 0.3, **({"run": "b3"} if "run" in each else {})} for each in again]
    assert [*audit(with_row("b", result="b3")(with_entries(*more)(story)))] == ["nothing lost", "nothing settled twice"]
    same = with_entries(entry(4.9, "worker-2", "acked", job="b", run="b1"))(right())
    assert [*audit(evolve(same, lossy=True))] == ["nothing settled twice"]
