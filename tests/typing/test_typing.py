"""What type checkers see of creche: everything in `right.py`, and a fault in each marked line of `wrong.py`.

Both run in strict mode on the creche that is installed here, as a user's own would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if "CI" not in os.environ:  # where they must be there
    pytest.importorskip("mypy")
    pytest.importorskip("pyright")

HERE = Path(__file__).parent
RIGHT, WRONG = HERE / "right.py", HERE / "wrong.py"

Faults = dict[str, dict[int, str]]
"""By file name and line, the first thing that a checker says about it."""


def run(*command: str | Path, folder: Path) -> str:
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode in {0, 1}, f"{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def mypy(folder: Path) -> Faults:
    """Run it in a folder with no settings, so that creche comes from where it is installed."""
    python = ["--python-executable", sys.executable]
    options = ["--strict", "--warn-unreachable", "--output=json", "--config-file=", f"--cache-dir={folder / 'cache'}"]
    faults: Faults = {RIGHT.name: {}, WRONG.name: {}}
    for line in run(sys.executable, "-m", "mypy", *python, *options, RIGHT, WRONG, folder=folder).splitlines():
        found = json.loads(line)
        if found["severity"] == "error":
            faults[Path(found["file"]).name].setdefault(found["line"], found["message"])
    return faults


def pyright(folder: Path) -> Faults:
    """Run it on copies: beside a checkout's `src` it would not look at what is installed."""
    for source in (RIGHT, WRONG):
        shutil.copy(source, folder)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    faults: Faults = {RIGHT.name: {}, WRONG.name: {}}
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    report = json.loads(run(*command, folder=folder))
    assert report["summary"]["filesAnalyzed"] == 2
    for found in report["generalDiagnostics"]:
        if found["severity"] == "error":
            faults[Path(found["file"]).name].setdefault(found["range"]["start"]["line"] + 1, found["message"])
    return faults


@pytest.fixture(scope="module", params=[mypy, pyright], ids=["mypy", "pyright"])
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    check: Callable[[Path], Faults] = request.param
    return check(tmp_path_factory.mktemp("typing"))


def marked() -> set[int]:
    return {number for number, line in enumerate(WRONG.read_text().splitlines(), 1) if line.endswith("  # wrong")}


def test_right_uses_are_right(faults: Faults) -> None:
    assert faults[RIGHT.name] == {}


def test_each_wrong_use_is_seen(faults: Faults) -> None:
    lines = WRONG.read_text().splitlines()
    assert [lines[number - 1].strip() for number in sorted(marked() - faults[WRONG.name].keys())] == []


def test_nothing_else_is_found_fault_with(faults: Faults) -> None:
    assert {number: said for number, said in faults[WRONG.name].items() if number not in marked()} == {}


def test_there_is_something_to_see() -> None:
    assert len(marked()) > 50
