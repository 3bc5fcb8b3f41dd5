"""`PYTHONPATH=tests python -m model [--deep]`: what was gone through, and how each defect leads to what it breaks."""

from __future__ import annotations

import sys
import time

from model.defects import DEFECTS
from model.sizes import QUICK, SLOW, look
from model.world import Protocol, start

say = sys.stdout.write
for size in QUICK + SLOW * ("--deep" in sys.argv[1:]):
    began = time.process_time()
    say(f"{size}: {size.look()} ({time.process_time() - began:.0f} s)\n")
for defect in DEFECTS:
    with defect.planted() as rules:
        found = look(Protocol(rules, defect.watched), start(failover=defect.failover))
    say(f"\n{defect.name}\n{found}\n")
