"""A child process: this command once more, without a fork, heard over a line of its own. Whether it is started again
is for others to say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio
import click
import msgspec
from anyio.abc import Process, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import frozen
from click.core import ParameterSource

from creche import Health
from creche.cli._slot import HURRY, INTERVAL, LINE, MARGIN, Report

_log = logging.getLogger("creche")

STALE: Final = 5 * INTERVAL  # seconds without a report after which a child is taken for frozen
_LAST_WORDS: Final = 1.0  # seconds: what it forked may hold its end of the line
_LONGEST: Final = 65_536  # bytes of a report


@frozen(kw_only=True)
class End:
    """How a child ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        report: the last thing that it said.
        lived: seconds.
    """

    code: int
    report: Report
    lived: float

    def __str__(self) -> str:
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        return f"was ended by {signal.Signals(-self.code).name}"


class Child:
    """One place for a child, which may be taken again and again.

    Args:
        number: from 1.
        command: what runs in it.
    """

    def __init__(self, number: int, command: Sequence[str]) -> None:
        self.number = number
        self.report = Report()
        self._command = command
        self._process: Process | None = None
        self._line: socket.socket | None = None
        self._heard = 0.0
        self._asked = False

    @property
    def name(self) -> str:
        """As its `Slot` has it."""
        return f"worker-{self.number}"

    @property
    def health(self) -> Health:
        """How it is. One that is being replaced is as live as its supervisor, and not ready."""
        if self._process is None:
            return Health(live=True, ready=False, reason="it is being started")
        silence = time.monotonic() - self._heard
        if silence > STALE:
            return Health(live=False, ready=False, reason=f"it has said nothing for {silence:.0f} s")
        return Health(live=self.report.live, ready=self.report.ready, reason=self.report.reason)

    async def run(self, up: Callable[[Child], None] = lambda _: None) -> End:
        """Start it, listen to it, and return how it ended.

        Args:
            up: called when it has begun to work.
        """
        ours, theirs = socket.socketpair()
        self.report, self._heard = Report(), time.monotonic()
        began = self._heard
        with theirs:
            line = await UNIXSocketStream.from_socket(ours)
            self._line = ours
            environment = {**os.environ, LINE: f"{self.number}:{theirs.fileno()}"}
            self._process = await anyio.open_process(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who decides
            )
        _log.debug("%s: process %d", self.name, self._process.pid)
        if self._asked:
            self.signal(signal.SIGTERM)
        try:
            code = await self._end(line, up)
        finally:
            self._process = self._line = None
        return End(code=code, report=self.report, lived=time.monotonic() - began)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. SIGTERM reaches also one that is just being started; others only one that listens."""
        self._asked = self._asked or number is signal.SIGTERM
        if self._process is not None and (self.report.up or number in {signal.SIGTERM, signal.SIGKILL}):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def hurry(self) -> None:
        """Tell it to stop at once: there is no grace, or none any more."""
        self.signal(signal.SIGTERM)
        if self._line is not None:
            with contextlib.suppress(OSError):  # it has ended, or has read nothing for very long
                self._line.send(HURRY)

    def forgive(self) -> None:
        """Forget that it was asked to end: the next one may stay."""
        self._asked = False

    async def _end(self, line: UNIXSocketStream, up: Callable[[Child], None]) -> int:
        if self._process is None:  # pragma: no cover - it was opened just now
            raise AssertionError
        async with line, anyio.create_task_group() as listening:
            over = anyio.Event()
            listening.start_soon(self._listen, line, up, over)
            listening.start_soon(self._see_off, over)
            await self._process.wait()
            over.set()
            listening.cancel_scope.deadline = anyio.current_time() + _LAST_WORDS
        return await self._process.wait()

    async def _see_off(self, over: anyio.Event) -> None:
        """Kill it if it has ended in good order, and stays: a thread of the application's may keep it for ever."""
        await over.wait()
        await anyio.sleep(MARGIN)
        _log.warning("%s has ended, but its process does not: it is killed", self.name)
        self.signal(signal.SIGKILL)

    async def _listen(self, line: UNIXSocketStream, up: Callable[[Child], None], over: anyio.Event) -> None:
        stream = BufferedByteReceiveStream(line)
        with contextlib.suppress(anyio.IncompleteRead, anyio.DelimiterNotFound, anyio.BrokenResourceError):
            while True:
                said = await stream.receive_until(b"\n", _LONGEST)
                before, self._heard = self.report, time.monotonic()
                with contextlib.suppress(msgspec.DecodeError):
                    self.report = msgspec.json.decode(said, type=Report)
                if self.report.up and not before.up:
                    up(self)
                if self.report.ended:
                    over.set()


def the_same_again(context: click.Context) -> list[str]:
    """Return the words that start this command once more; what was set by the environment is there for a child too."""
    arguments: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options.append(parameter.opts[0])
        else:
            options += [f"{parameter.opts[-1]}={each}" for each in (value if parameter.multiple else [value])]
    return [*_interpreter(), "-m", "creche", context.info_name or "", *options, "--", *arguments]


def _interpreter() -> Iterable[str]:
    return [sys.executable, *(f"-W{option}" for option in sys.warnoptions)]
