"""When a worker has done enough: after so many jobs, or when its process has grown too large. It stops nothing."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")
# Seconds between two looks at the memory: a look costs as much as a short job, and meanwhile a hundred of them may end.
_BETWEEN: Final = 0.005


class StopReason(StrEnum):
    """Why a worker ended."""

    STOPPED = "stopped"  # it was told to, by a signal or by `stop()`
    DRAINED = "drained"  # `burst`: nothing was left to do
    MAX_JOBS = "max_jobs"
    MAX_MEMORY = "max_memory"


class Limits:
    """Counts what was begun, and looks at the memory when something ended.

    Args:
        max_jobs: how many attempts this worker may begin; None: as many as come.
        max_memory: bytes of resident memory of this process; None: as many as there are.
    """

    def __init__(self, *, max_jobs: int | None, max_memory: int | None) -> None:
        self._left = math.inf if max_jobs is None else max_jobs
        self._max_memory = max_memory
        self._looked = -math.inf

    @property
    def left(self) -> float:
        """How many attempts may still begin."""
        return self._left

    def begin(self) -> StopReason | None:
        """An attempt begins; return why it is the last one, if it is."""
        self._left -= 1
        return StopReason.MAX_JOBS if self._left <= 0 else None

    def end(self) -> StopReason | None:
        """An attempt ended; return why no other should begin. So each process gets at least one done."""
        if self._max_memory is None or time.monotonic() - self._looked < _BETWEEN:
            return None
        self._looked = time.monotonic()
        return StopReason.MAX_MEMORY if resident_memory() > self._max_memory else None


def resident_memory() -> int:
    """Return the bytes of memory that this process occupies; where that can't be read, the most that it ever did."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
