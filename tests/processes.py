"""How tests look at processes that are not their own children."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_OVER: Final = ("Z", "X")


def gone(pid: int) -> bool:
    """Whether a process has ended. A zombie has: whoever adopted it has yet to notice."""
    return _state(Path(f"/proc/{pid}")) in _OVER


def stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped, or have ended."""
    return all(_state(thread) in {"T", *_OVER} for thread in Path(f"/proc/{pid}/task").iterdir())


def _state(entry: Path) -> str:
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def eventually(answer: Callable[[], object], limit: float = 10) -> bool:
    """Whether something becomes true within so many seconds."""
    until = time.monotonic() + limit
    while not (found := bool(answer())) and time.monotonic() < until:
        time.sleep(0.05)
    return found
