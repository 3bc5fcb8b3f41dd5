"""A child's end of the line to its supervisor: says how it goes, and ends the process when nobody listens any more.

What the supervisor says on it is that there is no grace any more. So signals need not be counted: whoever stops a
service may send one to each of its processes, and the supervisor sends its own besides.

The line is a socket that the child inherits. It closes with the supervisor, however that ended: so no child outlives
it, and no process is taken for another because of a number that was given twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Self

import msgspec
from attrs import evolve, frozen

from creche import Health

LINE: Final = "CRECHE_SLOT"  # the environment variable that tells a child what it is: number:descriptor
INTERVAL: Final = 1.0  # seconds between reports
HURRY: Final = b"!"  # what the supervisor says
MARGIN: Final = 15.0  # seconds beyond the grace that a process may take: it writes its last ends, and closes


@frozen(kw_only=True)
class Report:
    """What a child says of itself.

    Attributes:
        up: it has begun to work; before, it may still find its configuration wrong.
        grace: seconds that its jobs get when it is told to stop.
        ended: why it ended, in the worker's own words; empty while it has not.
    """

    live: bool = True
    ready: bool = False
    reason: str = "it is starting"
    up: bool = False
    grace: float = 30.0
    ended: str = ""

    def __str__(self) -> str:
        return self.reason


class Slot:
    """This process's place under a supervisor.

    Args:
        number: from 1.
        line: to the supervisor.
    """

    def __init__(self, number: int, line: socket.socket) -> None:
        self.number = number
        self.hurried = False  # no grace any more
        self._line = line
        self._report = Report()
        self._health: Callable[[], Health] | None = None
        self._speaking = threading.Lock()

    @classmethod
    def taken(cls) -> Self | None:
        """Take the place that the supervisor gave this process; None if there is no supervisor.

        From now on the log has its name. What the process starts inherits neither the place nor the line.
        """
        given = os.environ.pop(LINE, None)
        if given is None:
            return None
        number, descriptor = map(int, given.split(":"))
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - it has no name there
        line = socket.socket(fileno=descriptor)
        line.settimeout(INTERVAL)
        slot = cls(number, line)
        multiprocessing.current_process().name = slot.name
        threading.Thread(target=slot._keep_in_touch, name="creche slot", daemon=True).start()
        return slot

    @property
    def name(self) -> str:
        """What the log calls this process."""
        return f"worker-{self.number}"

    def up(self, health: Callable[[], Health], grace: float) -> None:
        """It works from now on."""
        self._health = health
        self._report = evolve(self._report, up=True, grace=grace)
        self._speak()

    def over(self, why: str) -> None:
        """It has ended in good order."""
        self._health = None
        self._report = evolve(self._report, ready=False, reason="it has ended", ended=why)
        self._speak()

    def _keep_in_touch(self) -> None:
        while True:
            self._speak()
            try:
                said = self._line.recv(1)
                if not said:
                    break
                self.hurried = True
                os.kill(os.getpid(), signal.SIGTERM)  # the event loop hears no other thread
            except TimeoutError:
                continue
            except OSError:
                break
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._report.grace + MARGIN)
        os.kill(os.getpid(), signal.SIGKILL)

    def _speak(self) -> None:
        with self._speaking, contextlib.suppress(OSError):  # who does not listen is noticed elsewhere
            self._line.sendall(msgspec.json.encode(self._current()) + b"\n")

    def _current(self) -> Report:
        if self._health is None:
            return self._report
        health = self._health()
        return evolve(self._report, live=health.live, ready=health.ready, reason=health.reason)
