"""Ledgers: what each process of a run wrote down for itself, a line each, on a clock that all of them share; and the
chronicle that they make together.

It knows no process and no job. A line that was written stays, whatever becomes of who wrote it.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

Entry: TypeAlias = dict[str, Any]


class Ledger:
    """What one process did, a line each; a line that was written is there whatever becomes of the process.

    Args:
        folder: where the ledgers of a run are.
        who: the process's name, like no other's.
    """

    def __init__(self, folder: Path, who: str) -> None:
        self.who = who
        self._file = os.open(folder / f"{who}.ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, **facts: Any) -> None:
        """Add a line. `at` is on a clock that all processes of this machine share, and that never jumps."""
        entry = {"at": time.monotonic(), "who": self.who, "what": what, **facts}
        os.write(self._file, json.dumps(entry).encode() + b"\n")


@frozen(kw_only=True)
class Chronicle:
    """All that was written down.

    Attributes:
        entries: of everybody, in the order of time.
    """

    entries: Sequence[Entry]

    def all(self, *what: str) -> list[Entry]:
        """Return the entries of these kinds."""
        return [entry for entry in self.entries if entry["what"] in what]

    def by(self, fact: str, *what: str) -> defaultdict[Any, list[Entry]]:
        """Return entries by the value of one of their facts, each list in the order of time."""
        found = defaultdict[Any, list[Entry]](list)
        for entry in self.all(*what):
            found[entry[fact]].append(entry)
        return found

    @property
    def dismissed(self) -> float:
        """When workers were asked to end; 0 if they never were."""
        return min((entry["at"] for entry in self.all("dismissed")), default=0.0)


def read_ledger(folder: Path, who: str) -> list[Entry]:
    """Return what one process did."""
    return list(_entries(folder / f"{who}.ledger"))


def read_ledgers(folder: Path) -> list[Entry]:
    """Return what everybody did, in the order of time."""
    return sorted((entry for file in folder.glob("*.ledger") for entry in _entries(file)), key=lambda each: each["at"])


def _entries(file: Path) -> Iterator[Entry]:
    *lines, _torn = file.read_bytes().split(b"\n")  # nothing, or what a killed process had no time to end
    return map(json.loads, lines)
