"""The pace: how many jobs are likely to end while a reserve is on its way. It measures; it reserves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_WEIGHT: Final = 0.3  # of the newest measurement
_MARGIN: Final = 2.0  # so much more than is expected: what is short grows by it, until no slot waits
_BYTES: Final = 16 << 20  # of payloads that are reserved ahead, about: a thousand of the largest would be a gigabyte


class Pace:
    """Measured rate, times measured latency.

    The rate is that of the time in which there was something to run: a worker that spends its time waiting for reserves
    would else take its own slowness for that of its jobs. Whoever runs for minutes makes the product so small that
    nothing is reserved ahead.

    Args:
        cap: jobs that wait for a slot, at most; 0: none are reserved ahead.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._rate = 0.0  # jobs per second
        self.latency = 0.0  # seconds
        self._size = 0.0  # bytes of a payload
        self._ended = 0
        self._busy = 0.0

    @property
    def ahead(self) -> int:
        """How many jobs should wait for a slot after a reserve, so that none is empty before the next one answers."""
        ahead = min(self._cap, int(self._rate * self.latency * _MARGIN))
        return min(ahead, int(_BYTES / self._size)) if self._size else ahead

    def answered(self, seconds: float, payloads: Sequence[int]) -> None:
        """A reserve took so long, and brought payloads of so many bytes."""
        self.latency += (seconds - self.latency) * (_WEIGHT if self.latency else 1.0)
        if payloads:
            self._size = sum(payloads) / len(payloads)

    def measure(self, ended: int, busy: float) -> None:
        """So many attempts have ended since the start, in so many seconds in which there was something to run."""
        jobs, seconds = ended - self._ended, busy - self._busy
        if seconds <= 0.0 or not jobs:
            return
        self._ended, self._busy = ended, busy
        self._rate += (jobs / seconds - self._rate) * (_WEIGHT if self._rate else 1.0)

    def slow_down(self, ended: int, busy: float) -> None:
        """Jobs that were reserved ahead had to wait for too long: reserve none until it is known how long they take,
        whatever those took that have ended so far.
        """
        self._ended, self._busy = ended, busy
        self._rate = 0.0
