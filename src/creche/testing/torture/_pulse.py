"""A thread that notices when its process stands still: frozen, or without a processor. It knows no event loop, so that
a loop that is blocked is none of its business.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from creche.testing._ledger import Ledger

BEAT: Final = 0.01  # seconds between two looks at the clock
LATE: Final = 0.02  # seconds: what is less is no standstill


def feel_the_pulse(ledger: Ledger) -> None:
    """Note from now on, as `stood`, since when this process had stood still whenever it did."""
    threading.Thread(target=_beat, args=(ledger,), name="pulse", daemon=True).start()


def _beat(ledger: Ledger) -> None:
    last = time.monotonic()
    while True:
        time.sleep(BEAT)
        now = time.monotonic()
        if now - last > BEAT + LATE:
            ledger.note("stood", since=last + BEAT)
        last = time.monotonic()
