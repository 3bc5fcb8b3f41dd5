"""What the kernel says of processes: memory, and what they have computed. Elsewhere than on Linux it says nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def resident(pid: int | None = None) -> int:
    """Return the resident bytes of a process, or of this one; 0 if nobody says."""
    with suppress(OSError, ValueError, IndexError):
        pages = (_PROC / str(pid or "self") / "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def name_of(pid: int) -> str:
    """Return what the kernel calls a process; empty if there is none that we may see."""
    with suppress(OSError):
        return (_PROC / str(pid) / "comm").read_text().strip()
    return ""


def parent_of(pid: int) -> int | None:
    """Return the parent of a process; None if nobody says."""
    fields = _fields(pid)
    return int(fields[1]) if fields else None


def computed(pid: int) -> float | None:
    """Return the seconds that a process has computed; None if nobody says."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def computed_with_children(pid: int) -> float | None:
    """Return the seconds that a process and its children have computed, those that have ended too."""
    own = _fields(pid)
    if not own:
        return None
    ticks = sum(map(int, own[11:15]))
    with suppress(OSError):
        for child in (_PROC / str(pid) / "task" / str(pid) / "children").read_text().split():
            ticks += sum(map(int, _fields(int(child))[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """The fields of `stat` from the state on, which proc(5) numbers 3."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []
