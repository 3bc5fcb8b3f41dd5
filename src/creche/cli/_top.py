"""`creche top`: a live view of queues, workers, and what they run. It changes nothing, and outlives an outage."""

from __future__ import annotations

import logging
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

import anyio
import click

from creche import Status
from creche._bulk import PAGE
from creche._job import JobFilter, JobRecord, QueueStats
from creche._patience import answered_within
from creche.abc import Storage
from creche.cli._display import can_draw, console_of_data, print_json, print_line
from creche.cli._durations import duration
from creche.cli._problems import Misuse
from creche.cli._screen import Look, Outage, look_json, screen
from creche.cli._storages import dsn_option, opened
from creche.errors import StorageError
from creche.storage import mask

if TYPE_CHECKING:
    from rich.console import RenderableType

_ANSWER: Final = 5.0  # seconds
_SLOW: Final = 2.0  # seconds after which a look that goes on is told of
_SHARE: Final = 4  # a look that takes long is made less often: top has a fifth of one connection's time at most
_FAILED: Final = 20  # rows, of the newest PAGE: no index says what failed last
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WAKES: Final = (signal.SIGWINCH, signal.SIGTSTP)


@click.command()
@click.option("--interval", type=duration, default="1s", show_default=True, metavar="TIME", help="Between two looks.")
@click.option("--once", is_flag=True, help="Look once, print it, and end.")
@dsn_option
@click.option("--json", is_flag=True, help="Print each look as a line of JSON.")
@click.pass_context
def top(context: click.Context, interval: float, once: bool, dsn: str, json: bool) -> None:
    """Watch queues, workers, running jobs and what failed last.

    q ends it, or Ctrl-C. It looks less often where a look takes long, for it counts every row. An outage of the
    database is shown, and outlived.
    """
    if once:
        _print_once(anyio.run(_look_once, dsn), dsn, json)
        return
    interval = max(interval, 0.1)
    if json:
        context.exit(anyio.run(_lines, dsn, interval))
    if not can_draw(sys.stdout):
        raise Misuse("top needs a terminal: say --once, or --json")
    with _silent_log(), _Window() as window:
        code = anyio.run(_Top(dsn, interval, window).run)
    context.exit(code)


def _print_once(look: Look, dsn: str, json: bool) -> None:
    if json:
        print_json(look_json(look))
        return
    console = console_of_data()
    console.print(screen(look, None, where=mask(dsn), width=console.width, height=None))


async def _look_once(dsn: str) -> Look:
    async with _looking(dsn) as look:
        return await look()


async def _lines(dsn: str, interval: float) -> int:
    """Print a line of JSON at each look, until a signal ends it."""
    with anyio.open_signal_receiver(*_ENDS) as signals:
        async with anyio.create_task_group() as tasks:

            async def print_lines() -> None:
                async with _looking(dsn) as look:
                    while True:
                        began = time.monotonic()
                        print_line(look_json(await look()))
                        sys.stdout.flush()
                        await anyio.sleep(_pause(interval, began))

            tasks.start_soon(print_lines)
            async for number in signals:
                tasks.cancel_scope.cancel()
                return _code(number)
    return 0


def _pause(interval: float, began: float) -> float:
    """Return how long to wait for the next look, by how long this one took."""
    return max(interval, _SHARE * (time.monotonic() - began))


def _code(number: int) -> int:
    """Return the exit code: Ctrl-C is one of the ways to leave, whatever else ends it is not."""
    return 0 if number == signal.SIGINT else 128 + number


# --- looking ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _looking(dsn: str) -> AsyncGenerator[Callable[[], Awaitable[Look]]]:
    async with opened(dsn) as storage:
        yield _Eye(storage).look


class _Eye:
    """Looks at a storage, again and again."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._counted: Sequence[tuple[str, int, int]] | None = None
        self._failed: Sequence[JobRecord] = ()

    async def look(self) -> Look:
        """Return how things stand."""
        with answered_within(_ANSWER, "a look"):
            queues = await self._storage.stats()
            workers = await self._storage.workers()
            failed = await self._failed_last(queues)
            return Look(at=datetime.now(UTC), queues=queues, workers=workers, failed=failed)

    async def _failed_last(self, queues: Sequence[QueueStats]) -> Sequence[JobRecord]:
        """Return what failed last. Rows come with their payloads: they are read when their number has changed, only."""
        counted = [(each.queue_name, each.counts.get(Status.FAILED, 0), each.finished) for each in queues]
        if counted != self._counted:
            rows = await self._storage.list(JobFilter(statuses=frozenset({Status.FAILED})), PAGE)
            ended = sorted(rows, key=lambda job: job.completed_at or job.updated_at, reverse=True)
            self._failed = ended[:_FAILED]
            self._counted = counted
        return self._failed


# --- the live view ----------------------------------------------------------------------------------


class _Top:
    """Looks and draws until somebody ends it.

    Args:
        dsn: where to look.
        interval: seconds between looks.
        window: where to draw.
    """

    def __init__(self, dsn: str, interval: float, window: _Window) -> None:
        self._dsn = dsn
        self._interval = interval
        self._window = window
        self._look: Look | None = None
        self._outage: Outage | None = None
        self._asked: datetime | None = None  # since when a look goes on
        self._code = 0

    async def run(self) -> int:
        """Run until q or a signal; return the exit code."""
        with anyio.open_signal_receiver(*_ENDS, *_WAKES) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._look_again_and_again)
                tasks.start_soon(self._draw_now_and_then)
                tasks.start_soon(self._read_keys, tasks.cancel_scope)
                async for number in signals:
                    if number in _ENDS:
                        self._code = _code(number)
                        tasks.cancel_scope.cancel()
                    elif number == signal.SIGTSTP:
                        self._window.suspend()
                    self._draw()
        return self._code

    async def _look_again_and_again(self) -> None:
        while True:
            try:
                self._asked = datetime.now(UTC)
                async with _looking(self._dsn) as look:
                    while True:
                        began, self._asked = time.monotonic(), datetime.now(UTC)
                        self._look = await look()
                        self._outage = self._asked = None
                        self._draw()
                        await anyio.sleep(_pause(self._interval, began))
            except StorageError as error:
                since = self._outage.since if self._outage is not None else self._asked or datetime.now(UTC)
                self._outage, self._asked = Outage(since=since, why=mask(str(error))), None
                self._draw()
            await anyio.sleep(max(1.0, self._interval))

    async def _draw_now_and_then(self) -> None:
        """Draw though nothing was seen: the time of an outage goes on."""
        while True:
            self._draw()
            await anyio.sleep(1)

    async def _read_keys(self, scope: anyio.CancelScope) -> None:
        if not sys.stdin.isatty():
            return
        while True:
            await anyio.wait_readable(sys.stdin)
            keys = os.read(sys.stdin.fileno(), 64)
            if b"q" in keys.lower() or not keys:
                scope.cancel()
                return

    def _slow(self) -> Outage | None:
        """Return since when there is no answer, if it is long enough for people to know: what they see is not new."""
        if self._asked is None or (datetime.now(UTC) - self._asked).total_seconds() < _SLOW:
            return None
        return Outage(since=self._asked, why="still waiting for it")

    def _draw(self) -> None:
        width, height = self._window.size
        where, keys = mask(self._dsn), sys.stdin.isatty()
        self._window.draw(
            screen(self._look, self._outage or self._slow(), where=where, width=width, height=height, keys=keys)
        )


# --- the terminal -----------------------------------------------------------------------------------


class _Window:
    """The whole terminal, from enter to exit: then it is as it was. Keys come as they are pressed, and aren't shown."""

    def __init__(self) -> None:
        from rich.live import Live

        console = console_of_data()
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None

    @property
    def size(self) -> tuple[int, int]:
        """Its columns and lines at this moment."""
        return self._live.console.size

    def draw(self, drawn: RenderableType) -> None:
        """Draw over what was there."""
        self._live.update(drawn, refresh=True)

    def suspend(self) -> None:
        """Give the terminal back, sleep until the shell wakes this process, and take it again."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _take(self) -> None:
        if self._before is not None:
            tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        self._live.start()

    def _give_back(self) -> None:
        self._live.stop()
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)


@contextmanager
def _silent_log() -> Generator[None]:
    """Let nothing that is logged be printed over what is drawn: an outage is shown there."""
    root = logging.getLogger()
    silence = logging.NullHandler()
    root.addHandler(silence)
    try:
        yield
    finally:
        root.removeHandler(silence)
