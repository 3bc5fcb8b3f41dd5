"""The shells' questions, answered as click does it: in a process of its own, for each shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from creche import Status

PATIENCE = 30.0  # seconds
COMMANDS = {"worker", "dispatch", "jobs", "migrate", "dev", "health", "completion"}


@pytest.fixture
def creche(tmp_path: Path) -> Path:
    """A folder with the command `creche` in it, as an installation has it."""
    command = tmp_path / "creche"
    command.write_text(f"#!{sys.executable}\nfrom creche.cli import main\nmain()\n")
    command.chmod(0o755)
    return tmp_path


def completed(folder: Path, shell: str, *words: str) -> str:
    """Ask as the shell's script does, about the last of the words."""
    place = words[-1] if shell == "fish" else str(len(words))
    asked = {
        "_CRECHE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["creche", *words]),
        "COMP_CWORD": place,
    }
    answer = subprocess.run(
        [folder / "creche"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return answer.stdout


def values(shell: str, answer: str) -> set[str]:
    lines = answer.splitlines()
    if shell == "zsh":
        return set(lines[1::3])
    return {re.split(r"[,\t]", line)[1] for line in lines}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], COMMANDS),
        (["work"], {"worker"}),
        (["worker", "--max-"], {"--max-jobs", "--max-memory"}),
        (["worker", "--backend", ""], {"asyncio", "trio"}),
        (["jobs", "list", "--status", ""], {str(status) for status in Status}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_commands_options_and_values_are_completed(
    creche: Path, shell: str, words: Sequence[str], expected: set[str]
) -> None:
    assert expected <= values(shell, completed(creche, shell, *words))


def script(shell: str) -> str:
    command = [sys.executable, "-W", "error", "-m", "creche", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def interpreted(shell: str, program: str, folder: Path) -> list[str]:
    executable = shutil.which(shell)
    assert executable is not None
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    answer = subprocess.run(
        [executable, *options, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert answer.returncode == 0, answer
    return answer.stdout.split()


def test_bash_completes_with_the_script(creche: Path) -> None:
    program = f"""{script("bash")}
        COMP_WORDS=(creche jobs list --status p) COMP_CWORD=4
        _creche_completion creche
        echo "${{COMPREPLY[@]}}"; complete -p creche
    """
    assert interpreted("bash", program, creche)[:2] == ["pending", "processing"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_that_asks_this_command(creche: Path, shell: str) -> None:
    text = script(shell)
    assert f"_CRECHE_COMPLETE={shell}_complete" in text
    assert "_creche_completion" in text
    if shutil.which(shell):  # its own parser agrees; where there is none, the words above must do
        interpreted(shell, f"{'autoload -U compinit; compinit' if shell == 'zsh' else ''}\n{text}", creche)
