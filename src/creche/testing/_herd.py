"""A herd of processes: forked, so that a new one runs at once; killed, frozen, asked to end. It knows nothing of jobs.

Who forks must be a plain process: no thread, no event loop, no connection. So the programs that use this keep all of
these in their herd.
"""

from __future__ import annotations

import ctypes
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
from typing import Final

from attrs import define, field

from creche.testing._ledger import Entry, Ledger

LOOPS: Final = ("asyncio", "trio")
_PR_SET_PDEATHSIG: Final = 1


def take_turns(loop: str) -> Iterator[str]:
    """Yield which event loop the next process has: one of them, or both by turns."""
    return cycle(LOOPS if loop == "both" else [loop])


def ended_well(entry: Entry, dismissed: float) -> bool:
    """Whether a process that nobody killed ended as it should: workers only when they were dismissed."""
    if not entry["name"].startswith("worker-"):
        return bool(entry["code"] == 0)
    # One that was asked to end before it listened for signals is ended by the signal itself.
    return entry["at"] >= dismissed and entry["code"] in {0, -signal.SIGTERM}


@define
class Herd:
    """Processes of one storm. Their deaths are entries of the ledger "herd".

    Args:
        folder: where the ledgers are.

    Attributes:
        codes: how each ended that is gone: what it returned, or minus the signal that ended it.
    """

    folder: Path
    codes: dict[str, int] = field(factory=dict[str, int], init=False)
    _ledger: Ledger = field(init=False)
    _alive: dict[str, int] = field(factory=dict[str, int], init=False)
    _frozen: set[str] = field(factory=set[str], init=False)
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
                _die_with_the_parent()
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                run(Ledger(self.folder, who))
                status = 0
            except BaseException:  # noqa: BLE001 - nothing may get back to the parent's code
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        self._alive[who] = pid
        self._ledger.note("born", name=who)
        return who

    def names(self, role: str) -> list[str]:
        """Return who of these is there, frozen ones too."""
        return [who for who in self._alive if who.startswith(f"{role}-")]

    def pid(self, who: str) -> int | None:
        """Return the process that goes by this name; None if it is gone."""
        return self._alive.get(who)

    def choose(self, role: str) -> str | None:
        """Return one of these at random, of those that are not frozen."""
        awake = [who for who in self.names(role) if who not in self._frozen]
        return random.choice(awake) if awake else None

    def kill_one(self, role: str) -> str | None:
        """Kill one of these at random, wherever it is; return its name once it is gone."""
        who = self.choose(role)
        if who is not None:
            self.kill(who)
        return who

    def kill(self, who: str) -> None:
        """Kill a process, wherever it is, and wait until it is gone."""
        struck = time.monotonic()
        os.kill(self._alive[who], signal.SIGKILL)
        _, status = os.waitpid(self._alive.pop(who), 0)
        self._frozen.discard(who)
        if os.WIFSIGNALED(status):
            self.codes[who] = os.waitstatus_to_exitcode(status)
            self._ledger.note("killed", name=who, struck=struck)
        else:
            self._ended(who, status)

    def freeze(self, who: str) -> None:
        """Stop a process as it stands, until `thaw`."""
        self._frozen.add(who)
        self._ledger.note("frozen", name=who)
        os.kill(self._alive[who], signal.SIGSTOP)

    def thaw(self, who: str) -> None:
        """Let a frozen process go on, if it is still there."""
        self._frozen.discard(who)
        if who in self._alive:
            self._ledger.note("thawed", name=who)
            os.kill(self._alive[who], signal.SIGCONT)

    def tell(self, who: str) -> None:
        """Send a process SIGTERM."""
        self._ledger.note("told", name=who)
        os.kill(self._alive[who], signal.SIGTERM)

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
                self._frozen.discard(who)
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
        self._ended(who, status)
        if status != 0:
            raise RuntimeError(f"{who} did not succeed: {self.codes[who]}")

    def _ended(self, who: str, status: int) -> None:
        code = self.codes[who] = os.waitstatus_to_exitcode(status)
        self._ledger.note("ended", name=who, code=code)


def _die_with_the_parent() -> None:
    """Have the kernel kill this process when who forked it is gone, killed too: where it can be asked for that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


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
