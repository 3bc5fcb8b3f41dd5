"""Processes that are measured: started with an order, told to go, heard. They measure nothing themselves.

Whatever they are waited for has a deadline, after which they are killed with all that they started. What a process
prints to stderr is kept, and shown if it fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import IO, Final, cast

import anyio
import msgspec
from anyio import CancelScope
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream

from creche.bench._orders import Answer, Order
from creche.errors import CrecheError

OURS: Final = (sys.executable, "-m", "creche.bench._child")
LONGEST: Final = 64 << 20  # bytes of an answer
TAIL: Final = 2_000  # characters of what a failed process said
START: Final = 120.0  # seconds until a process is ready, with its schema made
CLOSING: Final = 10.0  # seconds in which a process that has answered has ended
FAREWELL: Final = 10.0  # seconds in which one of ours, whose answer nobody wants any more, gives back its jobs


class ChildFailed(CrecheError):
    """A measured process did not start, or ended, or fell silent, without an answer that can be understood.

    Attributes:
        name: what was measured.
        tail: the last that it wrote to stderr.
    """

    def __init__(self, name: str, why: str, tail: str) -> None:
        self.name = name
        self.tail = tail
        super().__init__(f"{name} {why}:\n{tail}")


class Child:
    """One process, ready when it is given out."""

    def __init__(self, name: str, process: Process, errors: IO[bytes]) -> None:
        self.name: Final = name
        self._process = process
        self._errors = errors
        self._words = cast("ByteSendStream", process.stdin)
        self._lines = BufferedByteReceiveStream(cast("ByteReceiveStream", process.stdout))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def tell(self, line: bytes) -> None:
        """Send it a line."""
        try:
            await self._words.send(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise await self._failure("went away") from None

    async def hear(self, timeout: float) -> bytes:
        """Return its next line.

        Raises:
            ChildFailed: it ended, or said nothing for so many seconds.
        """
        try:
            with anyio.fail_after(timeout):
                return await self._lines.receive_until(b"\n", LONGEST)
        except (anyio.EndOfStream, anyio.IncompleteRead):
            raise await self._failure("ended without an answer") from None
        except TimeoutError:
            raise await self._failure(f"said nothing for {timeout:.3g} s") from None

    async def go(self) -> None:
        """Tell it to begin; a worker that works for ever, to end."""
        await self.tell(b"go\n")

    async def answer(self, timeout: float) -> Answer:
        """Return what it has to say, once it has ended. If it does not end, it is killed: what it said stands.

        Raises:
            ChildFailed: it failed, or took longer than so many seconds.
        """
        line = await self.hear(timeout)
        try:
            answer = Answer.decode(line)
        except msgspec.DecodeError as error:  # which has ValidationError among its kinds
            raise await self._failure(f"answered {line[:TAIL]!r}, which is no answer: {error}") from error
        with anyio.move_on_after(CLOSING):
            await self._process.wait()
        if self._process.returncode is None:
            self.kill()
        return answer

    def kill(self) -> None:
        """Kill it with its group of processes: what it started may have outlived it."""
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in it; macOS says the latter
            os.killpg(self.pid, signal.SIGKILL)

    async def leave(self, seconds: float) -> None:
        """Let it know that its answer is not wanted any more, and give it some seconds to end."""
        await self._words.aclose()
        with anyio.move_on_after(seconds):
            await self._process.wait()

    async def _failure(self, why: str) -> ChildFailed:
        with anyio.move_on_after(1):
            await self._process.wait()
        self._errors.seek(0)
        return ChildFailed(self.name, why, self._errors.read().decode(errors="replace")[-TAIL:])


@asynccontextmanager
async def child(
    order: Order,
    command: Sequence[str] = OURS,
    *,
    name: str = "creche",
    environment: Mapping[str, str] | None = None,
) -> AsyncGenerator[Child]:
    """Start a process with an order, and give it out when it is ready. It is gone at the end of the block, and so is
    what it started.

    If the block ends early, one of ours is given some seconds to give back the jobs that it holds. It is no part of
    the terminal's group of processes: Ctrl-C there is for who watches it.

    Args:
        order: what it is to do.
        command: what to start; creche's own if none is given.
        name: what to call it in errors.
        environment: more variables.

    Raises:
        ChildFailed: it could not be started, or did not get ready.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = await anyio.open_process(
                [*command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise ChildFailed(name, "could not be started", str(error)) from error
        one = Child(name, process, errors)
        try:
            await one.tell(order.encode())
            await one.hear(START)
            yield one
        finally:
            with CancelScope(shield=True):
                if process.returncode is None and command == OURS:
                    await one.leave(FAREWELL)
                one.kill()
                await process.aclose()
