"""A herd of processes for storms: forked, so that a new one runs at once; killed at random; and the ledger that each
writes for itself. It knows nothing of jobs.

Who forks must be a plain process: no thread, no event loop, no connection. So the programs that use this keep all of
these in their herd.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import define, field

Entry: TypeAlias = dict[str, Any]

LOOPS: Final = ("asyncio", "trio")


def take_turns(loop: str) -> Iterator[str]:
    """Yield which event loop the next process has: one of them, or both by turns."""
    return cycle(LOOPS if loop == "both" else [loop])


class Ledger:
    """What one process did, a line each; a line that was written is there whatever becomes of the process.

    Args:
        folder: where the ledgers of a storm are.
        who: the process's name, like no other's.
    """

    def __init__(self, folder: Path, who: str) -> None:
        self.who = who
        self._file = os.open(folder / f"{who}.ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, **facts: Any) -> None:
        """Add a line. `at` is on a clock that all processes of this machine share, and that never jumps."""
        entry = {"at": time.monotonic(), "who": self.who, "what": what, **facts}
        os.write(self._file, json.dumps(entry).encode() + b"\n")


def read_ledgers(folder: Path) -> list[Entry]:
    """Return what everybody did, in the order of time."""
    return sorted((entry for file in folder.glob("*.ledger") for entry in _entries(file)), key=lambda each: each["at"])


def ended_well(entry: Entry, dismissed: float) -> bool:
    """Whether a process that nobody killed ended as it should: workers only when they were dismissed."""
    if not entry["name"].startswith("worker-"):
        return bool(entry["code"] == 0)
    # One that was asked to end before it listened for signals is ended by the signal itself.
    return entry["at"] >= dismissed and entry["code"] in {0, -signal.SIGTERM}


def _entries(file: Path) -> Iterator[Entry]:
    *lines, _torn = file.read_bytes().split(b"\n")  # nothing, or what a killed process had no time to end
    return map(json.loads, lines)


@define
class Herd:
    """Processes of one storm. Their deaths are entries of the ledger "herd".

    Args:
        folder: where the ledgers are.
    """

    folder: Path
    _ledger: Ledger = field(init=False)
    _alive: dict[str, int] = field(factory=dict, init=False)
    _born: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._ledger = Ledger(self.folder, "herd")

    def __len__(self) -> int:
        return len(self._alive)

    def start(self, role: str, run: Callable[[Ledger], None]) -> str:
        """Fork a process that does `run` and ends; return its name."""
        self._born += 1
        who = f"{role}-{self._born}"
        sys.stdout.flush()  # or the child would say it, too
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(Ledger(self.folder, who))
                status = 0
            except BaseException:  # noqa: BLE001 - nothing may get back to the parent's code
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        self._alive[who] = pid
        return who

    def kill_one(self, role: str) -> str | None:
        """Kill one of these at random, wherever it is; return its name once it is gone."""
        chosen = [who for who in self._alive if who.startswith(f"{role}-")]
        if not chosen:
            return None
        who = random.choice(chosen)
        struck = time.monotonic()
        os.kill(self._alive[who], signal.SIGKILL)
        _, status = os.waitpid(self._alive.pop(who), 0)
        if os.WIFSIGNALED(status):
            self._ledger.note("killed", name=who, struck=struck)
        else:
            self._ended(who, status)
        return who

    def ask_to_end(self, role: str) -> None:
        """Send these SIGTERM."""
        self._ledger.note("dismissed")
        for who, pid in self._alive.items():
            if who.startswith(f"{role}-"):
                os.kill(pid, signal.SIGTERM)

    def bury(self) -> list[str]:
        """Return, once, the names of those that have ended by themselves."""
        ended = list[str]()
        for who, pid in list(self._alive.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._alive[who]
                self._ended(who, status)
                ended.append(who)
        return ended

    def finish(self, patience: float, role: str = "") -> bool:
        """Wait until all of these have ended by themselves; return whether they have."""
        until = time.monotonic() + patience
        while any(who.startswith(role) for who in self._alive):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
            self.bury()
        return True

    def end(self) -> None:
        """Leave nobody behind."""
        for pid in self._alive.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._alive.values():
            os.waitpid(pid, 0)
        self._alive.clear()

    def alone(self, role: str, run: Callable[[Ledger], None]) -> None:
        """Do `run` in a process of its own, and wait for it.

        Raises:
            RuntimeError: it did not succeed.
        """
        who = self.start(role, run)
        _, status = os.waitpid(self._alive.pop(who), 0)
        if status != 0:
            raise RuntimeError(f"{who} did not succeed: {os.waitstatus_to_exitcode(status)}")

    def _ended(self, who: str, status: int) -> None:
        self._ledger.note("ended", name=who, code=os.waitstatus_to_exitcode(status))


def run_program(program: Path, *arguments: str, limit: float) -> tuple[int, str]:
    """Run a program that has a herd; return its exit code, and what it and its herd said. It leaves nobody behind.

    Args:
        program: a Python file.
        arguments: of its command line.
        limit: seconds after which all of them are killed.
    """
    command: list[str | Path] = [sys.executable, "-W", "error", program, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as running:
        try:
            told, _ = running.communicate(timeout=limit)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
    return running.returncode, told
