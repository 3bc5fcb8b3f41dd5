"""What docs/architecture.md draws is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from creche._job import ERRORS_KEPT, FINISHED, Status
from creche._lifecycle import TRANSITIONS
from creche._payload import MAX_DEPTH

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_state_diagram_is_the_transition_table() -> None:
    arrows = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", PAGE, re.MULTILINE))
    assert arrows == {(before, after, event) for (before, event), after in TRANSITIONS.items()}


def test_the_state_diagram_begins_and_ends_where_jobs_do() -> None:
    assert set(re.findall(r"\[\*\] --> (\w+): insert", PAGE)) == {Status.PENDING, Status.SCHEDULED}
    assert set(re.findall(r"(\w+) --> \[\*\]", PAGE)) == FINISHED


def test_every_module_has_its_place_on_a_floor() -> None:
    floors = PAGE.partition("## The floors")[2].partition("## How")[0]
    small = {"__init__", "__main__", "_ids", "_nursery", "_patience"}  # helpers of a screen or less
    modules = {path.stem for path in (ROOT / "src" / "creche").glob("*.py")} - small
    assert {module for module in modules if not re.search(rf"(?<!\w){module}(?!\w)", floors)} == set()


def test_the_limits_are_as_written() -> None:
    assert f"JSON array of the last {ERRORS_KEPT}" in PAGE
    assert f"At most {MAX_DEPTH} levels" in PAGE


def test_folders_of_tests_are_as_listed() -> None:
    listed = set(re.findall(r"`tests/([\w.]+)`", PAGE))
    assert {name for name in listed if not (ROOT / "tests" / name).exists()} == set()
