"""The lease protocol, in every order in which it can go: proofs for a bounded world, not samples of a large one.

`rules` is what the database and the engine do, read from creche's own table; `world` is all that can happen to them;
`audit` is what was promised; `search` goes everywhere. `python -m model` prints what is asserted here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import pytest
from hypothesis import settings

from creche._job import Event, Status
from creche._lifecycle import SETTLING, TRANSITIONS
from creche.testing import StorageConformance
from model.audit import Promise
from model.defects import DEFECTS, Defect, FencedByCounter
from model.rules import PEOPLE, UPKEEP, Row, Rules
from model.search import Found, explore
from model.sizes import QUICK, SLOW, Size, look
from model.world import Protocol, World, key, start

DEEP = settings.get_current_profile_name() == "deep"


# --- the protocol as it is ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", QUICK + SLOW * DEEP, ids=str)
def test_no_order_of_events_breaks_a_promise(size: Size) -> None:
    found = size.look()
    assert found.broken is None, found
    assert found.states > 10_000


class Recorder(Rules):
    """Remembers which rows of the table were used, and where they led."""

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[tuple[Status, Event], set[Status]] = {}

    def write(self, row: Row, event: Event, *, due: bool, nonce: int = 0) -> Row:
        after = super().write(row, event, due=due, nonce=nonce)
        self.used.setdefault((row.status, event), set()).add(after.status)
        return after


def test_every_transition_of_the_table_is_taken_and_no_other() -> None:
    recorder = Recorder()
    assert look(Protocol(recorder), start()).broken is None
    assert recorder.used.keys() == TRANSITIONS.keys()
    for cell, following in TRANSITIONS.items():
        assert following in recorder.used[cell]
        assert recorder.used[cell] <= {following, Status.PENDING, Status.CANCELLED}


def test_every_event_has_somebody_who_says_it() -> None:
    assert {*SETTLING, *UPKEEP, *PEOPLE, Event.RESERVE} == set(Event)


def rules_of_their_own() -> Iterable[str]:
    for method in vars(Rules).values():
        yield from re.findall(r"\btest_\w+", inspect.getdoc(method) or "")


@pytest.mark.parametrize("name", sorted(set(rules_of_their_own())))
def test_what_the_model_says_of_sql_every_storage_is_held_to(name: str) -> None:
    assert callable(getattr(StorageConformance, name, None))


# --- with a defect in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_defect_is_found_and_by_the_shortest_way(defect: Defect) -> None:
    with defect.planted() as rules:
        protocol = Protocol(rules, defect.watched)
        begin = start(failover=defect.failover)
        found = look(protocol, begin)
        assert (found.broken, len(found.trace)) == (defect.breaks, defect.steps), found
        assert broken_on_the_way(protocol, begin, found.trace) == [None] * defect.steps + [defect.breaks]
        assert not any(breaks_within(protocol, begin, min(defect.steps - 1, 4)))


def broken_on_the_way(protocol: Protocol, world: World, trace: Iterable[str]) -> list[Promise | None]:
    """Follow a trace by its words; return what is broken at its beginning, and after each step."""
    broken = [protocol.broken_in(world)]
    for words in trace:
        (step,) = (each for each in protocol.steps(world) if each.words == words)
        world = step.world
        broken.append(step.broken or protocol.broken_in(world))
    return broken


def breaks_within(protocol: Protocol, world: World, steps: int) -> Iterable[bool]:
    """Go all ways of so many steps, without holding any two worlds for the same."""
    if steps < 0:
        return
    yield protocol.broken_in(world) is not None
    for step in protocol.steps(world) if steps else ():
        yield step.broken is not None
        yield from breaks_within(protocol, step.world, steps - 1)


def test_every_promise_is_broken_by_some_defect() -> None:
    assert {defect.breaks for defect in DEFECTS} == set(Promise)


def test_a_counter_alone_is_a_fence_until_commits_can_be_lost() -> None:
    assert look(Protocol(FencedByCounter()), start()).broken is None


# --- the search itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("failover", [False, True])
def test_worlds_that_count_as_one_have_the_same_future(failover: bool) -> None:
    protocol = Protocol(Rules(max_attempts=1, lease=1))
    first: dict[object, World] = {}
    compared = 0

    def future(world: World) -> set[tuple[object, Promise | None]]:
        return {(key(step.world), step.broken or protocol.broken_in(step.world)) for step in protocol.steps(world)}

    here = [start(failover=failover)]
    while here and compared < 5_000:
        following: list[World] = []
        for world in here:
            for step in protocol.steps(world):
                twin = first.setdefault(key(step.world), step.world)
                if twin is step.world:
                    following.append(twin)
                elif twin != step.world:
                    compared += 1
                    assert future(twin) == future(step.world)
        here = following
    assert compared > 1_000


def test_the_search_finds_the_shortest_way_and_counts_what_it_saw() -> None:
    def steps(number: int) -> Iterable[tuple[str, int, str | None]]:
        yield "add one", number + 1, None
        yield "double", number * 2, "too large" if number * 2 > 20 else None

    def found(wanted: int) -> Found[str]:
        return explore(1, steps, key=lambda n: n, broken_in=lambda n: "there" if n == wanted else None)

    assert (found(1).broken, found(1).trace) == ("there", [])
    assert found(10).trace in (["add one", "double", "add one", "double"], ["double", "double", "add one", "double"])
    assert len(found(9).trace) == 4
    assert found(0).broken == "too large"
    assert found(0).trace[-1] == "double"
    assert "there" in str(found(10))


def test_the_search_ends_when_everything_was_seen() -> None:
    found: Found[str] = explore(
        0,
        lambda n: [(f"to {(n + k) % 7}", (n + k) % 7, None) for k in (1, 3)],
        key=lambda n: n,
        broken_in=lambda _: None,
    )
    assert (found.broken, found.states, found.steps, found.depth) == (None, 7, 14, 3)
    assert "all 7 states" in str(found)
