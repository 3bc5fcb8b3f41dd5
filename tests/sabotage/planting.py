"""A defect as data, and how it is planted in a copy of the sources. It runs no test."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

ROOT: Final = Path(__file__).parents[2]

CONTENTS: Final = ("src", "sql", "tests", "docs", "pyproject.toml")
"""What a copy is made of: the sources, and what it takes to test them."""

BY_ITS_OWN_WORD: Final = frozenset({"AssertionError", "Failed", "TimeoutError"})
"""How a test fails that has seen something wrong. What a planted mistake in the spelling raises is none of these."""


@frozen
class Edit:
    """A text in a file, found exactly once, and what is put in its place."""

    path: str
    old: str
    new: str


@frozen(kw_only=True)
class Defect:
    """A mistake that somebody could make.

    Attributes:
        name: short, and unlike all others.
        breaks: what it would do to users, in a sentence.
        edits: all of them are planted together.
        tests: node ids, of which one has to fail.
        shows: the types of the exceptions that count as having been caught.
    """

    name: str
    breaks: str
    edits: Sequence[Edit]
    tests: Sequence[str]
    shows: Collection[str] = BY_ITS_OWN_WORD


class OutOfDate(Exception):
    """An edit of a defect doesn't find its text exactly once: the sources have moved on, and the defect has to."""

    def __init__(self, defect: Defect, edit: Edit, found: int) -> None:
        super().__init__(f"{defect.name}: this is {found} times in {edit.path}, not once:\n{edit.old}")


def copied(root: Path, home: Path) -> None:
    """Copy what is to be planted in, with what Python has compiled of it."""
    for name in CONTENTS:
        if (source := root / name).is_dir():
            shutil.copytree(source, home / name)
        else:
            shutil.copy(source, home / name)


def planted(defect: Defect, root: Path) -> dict[str, str]:
    """Return the files that a defect changes, by their paths, as they are with it.

    Raises:
        OutOfDate: an edit does not match exactly once.
    """
    texts: dict[str, str] = {}
    for edit in defect.edits:
        text = texts.get(edit.path) or (root / edit.path).read_text(encoding="utf-8")
        if (found := text.count(edit.old)) != 1:
            raise OutOfDate(defect, edit, found)
        texts[edit.path] = text.replace(edit.old, edit.new)
    return texts


def plant(defect: Defect, home: Path) -> None:
    """Plant a defect in a copy.

    Raises:
        OutOfDate: an edit does not match exactly once.
    """
    for path, text in planted(defect, home).items():
        (home / path).write_text(text, encoding="utf-8")
        for compiled in (home / path).parent.glob(f"__pycache__/{Path(path).stem}.*"):  # of what stood there before
            compiled.unlink()
