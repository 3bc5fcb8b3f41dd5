"""What fuzzing has met before: one Python literal a line, in `corpus/NAME.txt`. Every run replays all of it.

Whoever finds something adds it there, with a word on what it was.
"""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "corpus"


def kept(name: str) -> list[Any]:
    """Return the cases of one corpus."""
    lines = (_FOLDER / f"{name}.txt").read_text("utf-8").splitlines()
    return [literal_eval(line) for line in lines if line and not line.startswith("#")]
