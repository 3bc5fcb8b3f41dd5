"""A trial: tests run on a copy of the sources, and what they say of it. It knows no defect by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
from attrs import field, frozen

from sabotage.planting import ROOT, Defect, copied, plant

PATIENCE: Final = 600.0  # seconds for the tests of one defect: those that hang have not caught it
_TAIL: Final = 1_500  # characters


class Report(msgspec.Struct, frozen=True):
    """What `witness.py` writes down of one phase of one test."""

    test: str
    when: str
    outcome: str
    kinds: list[str]
    message: str


@frozen(kw_only=True)
class Trial:
    """What pytest said: its exit code (None: it took too long), each report, and the end of what it printed."""

    code: int | None
    reports: Sequence[Report]
    output: str
    seconds: float = field(default=0.0, eq=False)


def tried(tests: Sequence[str], *, defect: Defect | None = None, root: Path = ROOT, seconds: float = PATIENCE) -> Trial:
    """Run tests on a copy of `root`, with a defect planted if there is one: until the first failure then.

    Raises:
        OutOfDate: the defect can't be planted.
    """
    with TemporaryDirectory(prefix="creche-sabotage-") as folder:
        home, ledger = Path(folder) / "copy", Path(folder) / "ledger"
        home.mkdir()
        copied(root, home)
        if defect is not None:
            plant(defect, home)
        began = time.monotonic()
        options = ["-q", "-p", "no:cacheprovider", "-p", "sabotage.witness", "--ledger", str(ledger), "--tb=short"]
        if defect is not None:
            options.append("--exitfirst")
        code, output = _run([sys.executable, "-m", "pytest", *options, *tests], home, seconds)
        lines = ledger.read_bytes().splitlines() if ledger.exists() else []
        reports = [msgspec.json.decode(line, type=Report) for line in lines]
        return Trial(code=code, reports=reports, output=output[-_TAIL:], seconds=time.monotonic() - began)


def _run(command: Sequence[str], home: Path, seconds: float) -> tuple[int | None, str]:
    """Run a program in a session of its own, all of which is ended when it takes too long."""
    # The copy comes before what is installed.
    path = os.pathsep.join([str(home / "src"), str(ROOT / "tests")])
    process = subprocess.Popen(
        command,
        cwd=home,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, f"not finished after {seconds:g} s"
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


# --- what it says -----------------------------------------------------------------------------------


@frozen
class Caught:
    """A test has seen the defect."""

    test: str


@frozen
class Survived:
    """Its tests pass with the defect in place: one is missing."""


@frozen
class Spoilt:
    """The trial says nothing about the defect: it was badly planted, or its tests could not run."""

    reason: str


def verdict(defect: Defect, trial: Trial) -> Caught | Survived | Spoilt:
    """Judge a defect by its trial. A test that could not be collected, or set up, has caught nothing; nor has one that
    met an error which the defect was not meant to show.
    """
    failed = next((report for report in trial.reports if report.outcome == "failed"), None)
    if trial.code is None or (failed is None and trial.code):
        return Spoilt(trial.output)
    if failed is None:
        ran = any(report.when == "call" and report.outcome == "passed" for report in trial.reports)
        return Survived() if ran else Spoilt(f"none of its tests ran:\n{trial.output}")
    if failed.when != "call":
        return Spoilt(f"{failed.test} failed in its {failed.when}: {failed.message}")
    if not set(failed.kinds) & set(defect.shows):
        return Spoilt(f"{failed.test} met what the defect was not meant to show: {failed.message}")
    return Caught(failed.test)


def unsound(tests: Sequence[str], trial: Trial) -> Sequence[str]:
    """Return what is wrong with tests that ran on sources in which nothing was planted: each has to have passed."""
    if trial.code is None:
        return [trial.output]
    failed = [f"{report.test}: {report.message}" for report in trial.reports if report.outcome == "failed"]
    passed = [report.test for report in trial.reports if report.when == "call" and report.outcome == "passed"]
    idle = [f"{test}: did not run" for test in tests if not any(_is_of(each, test) for each in passed)]
    return failed or idle or ([trial.output] if trial.code else [])


def _is_of(test: str, selected: str) -> bool:
    """Whether a test was selected by this node id: as it is, by its function, its class or its file."""
    return test == selected or test.startswith((f"{selected}[", f"{selected}::"))
