"""What docs/guarantees.md says is shown by tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from creche.testing import StorageConformance

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
TABLES = TEXT.partition("## kill -9")[2].partition("## What is not promised")[0]
ROWS = [line.strip("| ").split(" | ") for line in TABLES.splitlines() if line.startswith("| ") and "---" not in line]
CASES = [row for row in ROWS if row[-1] != "shown by"]
NAMED = sorted(set(re.findall(r"`((?:tests/|test_)[^`]*)`", TABLES)))


def test_the_tables_are_read() -> None:
    assert len(CASES) >= 25
    assert len(NAMED) >= 25


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_every_row_names_a_test(case: list[str]) -> None:
    assert case[-1] == "–" or re.search(r"`(tests/|test_)", case[-1])


@pytest.mark.parametrize("name", NAMED)
def test_each_test_that_is_named_is_there(name: str) -> None:
    if not name.startswith("tests/"):
        assert callable(getattr(StorageConformance, name, None))
        return
    path, _, function = name.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {function or 'test_'}", text, re.MULTILINE)
