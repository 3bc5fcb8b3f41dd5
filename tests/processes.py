"""How tests look at processes that are not their own children."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def gone(pid: int) -> bool:
    """Whether a process has ended. A zombie has: whoever adopted it has yet to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(answer: Callable[[], object], limit: float = 10) -> bool:
    """Whether something becomes true within so many seconds."""
    until = time.monotonic() + limit
    while not (found := bool(answer())) and time.monotonic() < until:
        time.sleep(0.05)
    return found
