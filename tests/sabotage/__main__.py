"""Plants known defects, one at a time, and shows that a test fails for each: `nox -s sabotage`, or with names of some.

A test suite that passes says little until it is known what it would not let pass.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Final

from sabotage.catalogue import DEFECTS
from sabotage.planting import Defect, OutOfDate
from sabotage.trial import Caught, Spoilt, Survived, Trial, tried, unsound, verdict

CONTROL: Final = 1_800.0  # seconds for the tests of all defects together


def main(patterns: Sequence[str]) -> int:
    """Try the defects whose names match one of the patterns, all without one; return the exit code."""
    defects = [each for each in DEFECTS if not patterns or any(fnmatchcase(each.name, one) for one in patterns)]
    if not defects:
        names = "\n".join(f"  {defect.name}: {defect.breaks}" for defect in DEFECTS)
        return _fail(f"no defect is called {' or '.join(patterns)}; there are:\n{names}")
    began = time.monotonic()
    if not _tests_are_sound(defects):
        return 1
    _say("| defect | caught by | s |\n| --- | --- | ---: |")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        caught = sum(_is_caught(*each) for each in zip(defects, pool.map(_try, defects), strict=True))
    _say(f"\n{caught} of {len(defects)} planted defects caught, in {time.monotonic() - began:.0f} s")
    return 0 if caught == len(defects) else 1


def _tests_are_sound(defects: Sequence[Defect]) -> bool:
    """The control: with nothing planted, the same tests pass."""
    tests = list(dict.fromkeys(test for defect in defects for test in defect.tests))
    trial = tried(tests, seconds=CONTROL)
    if problems := unsound(tests, trial):
        _fail("with nothing planted, these tests do not pass, so they can't show anything:\n" + "\n".join(problems))
        return False
    passed = sum(report.when == "call" and report.outcome == "passed" for report in trial.reports)
    _say(f"control: with nothing planted, {passed} tests pass in {trial.seconds:.0f} s\n")
    return True


def _try(defect: Defect) -> Trial | OutOfDate:
    try:
        return tried(defect.tests, defect=defect)
    except OutOfDate as error:
        return error


def _is_caught(defect: Defect, trial: Trial | OutOfDate) -> bool:
    if isinstance(trial, OutOfDate):
        _fail(f"| {defect.name} | **OUT OF DATE** | |\n{trial}")
        return False
    match verdict(defect, trial):
        case Caught(test):
            _say(f"| {defect.name} | `{test}` | {trial.seconds:.1f} |")
            return True
        case Survived():
            _fail(f"| {defect.name} | **SURVIVED**: {defect.breaks} | {trial.seconds:.1f} |")
        case Spoilt(reason):
            _fail(f"| {defect.name} | **SPOILT** | {trial.seconds:.1f} |\n{reason}")
    return False


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - its report


def _fail(text: str) -> int:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - its report
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
