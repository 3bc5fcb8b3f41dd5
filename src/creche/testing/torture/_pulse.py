"""A thread that notices when its process stands still: frozen, or waiting for a processor. It knows no event loop: that
one is blocked is none of its business.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from creche.testing._ledger import Ledger

BEAT: Final = 0.01  # seconds between two looks at the clock
LATE: Final = 0.02  # seconds: what is less is no standstill
WAITED: Final = 0.004  # seconds that the main thread waited for a processor, between two looks

# Of the main thread: nanoseconds that it ran, that it was ready to run and did not, and how often (Linux,
# Documentation/scheduler/sched-stats.rst).
_SCHEDULE: Final = Path("/proc/self/schedstat")


def feel_the_pulse(ledger: Ledger) -> None:
    """Note from now on, as `stood`, since when this process had stood still whenever it did."""
    threading.Thread(target=_beat, args=(ledger,), name="pulse", daemon=True).start()


def _beat(ledger: Ledger) -> None:
    last, waited = time.monotonic(), _waited()
    while True:
        time.sleep(BEAT)
        now, waited_now = time.monotonic(), _waited()
        late, starved = now - last - BEAT, waited_now - waited
        if late > LATE or starved > WAITED:
            ledger.note("stood", since=now - min(now - last, max(late if late > LATE else 0.0, starved)))
        last, waited = now, waited_now  # what it took to note this belongs to the next beat


def _waited() -> float:
    """Return for how long, in all, the main thread has been ready to run and had no processor; 0 if nobody knows."""
    with suppress(OSError, IndexError, ValueError):
        return int(_SCHEDULE.read_bytes().split()[1]) / 1e9
    return 0.0
