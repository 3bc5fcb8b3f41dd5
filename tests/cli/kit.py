"""What tests of the command line share: a call in this process, and a terminal for a call in another one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen

PATIENCE = 90.0  # seconds: a shared machine may be slow; nothing here waits for so long by itself

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")
_HOME = "\x1b[H"  # rich begins each frame in the corner


@frozen
class Done:
    """How a command ended, and what it had printed."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


class Terminal:
    """A terminal of some size with a command in it."""

    def __init__(self, ours: int, theirs: int, process: subprocess.Popen[bytes]) -> None:
        self._ours = ours
        self._theirs = theirs  # kept open: its settings can be looked at when the command has ended
        self.process = process
        self.before = termios.tcgetattr(theirs)
        self.shown = ""

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, condition: Callable[[Sequence[str]], bool]) -> Sequence[str]:
        """Read until the last whole frame is as it should be, and return its lines."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for frame in self.frames()[-2:]:
                if condition(frame):
                    return frame
            assert time.monotonic() < deadline, self.shown[-4000:]
            self.read(0.1)

    def read(self, seconds: float) -> None:
        """Read what comes within so many seconds."""
        os.set_blocking(self._ours, False)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self.shown += os.read(self._ours, 65_536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)

    def ended(self) -> int:
        """Return the exit code, once there is one."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown[-4000:]
            self.read(0.05)
        self.read(0.2)
        return self.process.returncode

    def frames(self) -> Sequence[Sequence[str]]:
        """Return what was drawn so far, frame by frame, as lines without colours."""
        pieces = self.shown.split(_HOME)[1:]
        return [[_ESCAPE.sub("", line).rstrip("\r") for line in piece.split("\n")] for piece in pieces]


@contextmanager
def in_terminal(
    *words: str, columns: int = 80, lines: int = 24, environment: dict[str, str] | None = None
) -> Generator[Terminal]:
    """Run `creche` in a terminal of its own for the length of the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    settings = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    settings |= {"TERM": "xterm-256color", **(environment or {})}
    command = [sys.executable, "-m", "creche", *words]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=settings, start_new_session=True
    ) as process:
        try:
            yield Terminal(ours, theirs, process)
        finally:
            if process.poll() is None:
                process.kill()
    os.close(ours)
    os.close(theirs)
