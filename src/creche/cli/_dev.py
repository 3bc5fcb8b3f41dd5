"""`creche dev`: a worker that begins anew when the application's files change. For one developer, not for production.

This process watches and loads nothing of the application, so that a mistake in it ends the child alone.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import click
from anyio import CancelScope, create_task_group

from creche.cli._children import Child, the_same_again
from creche.cli._durations import duration
from creche.cli._init import behind_an_init
from creche.cli._logging import logging_options, set_up_logging
from creche.cli._problems import ExitCode
from creche.cli._slot import Slot
from creche.cli._targets import project, required_app
from creche.cli._worker import made, require, run

_log = logging.getLogger("creche")

_LOOK: Final = 0.5  # seconds between two looks at the files
_FAREWELL: Final = 5.0  # seconds beyond the grace, to give back what is left; then it is killed
_ELSEWHERE: Final = frozenset({"node_modules", "__pycache__", "site-packages"})
_Seen = Mapping[str, tuple[int, int]]


@click.command(epilog="Exit codes: 0 it was stopped, 1 the configuration, 2 usage.")
@click.argument("target", required=False)
@click.option(
    "--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop."
)
@click.option("-c", "--concurrency", type=int, metavar="N", help="How many jobs at once.  [default: 10]")
@click.option("--grace", type=duration, default="2s", show_default=True, metavar="TIME", help="What running jobs get.")
@logging_options("debug")
@click.pass_context
def dev(
    context: click.Context,
    target: str | None,
    *,
    backend: str,
    concurrency: int | None,
    grace: float,
    log_format: str,
    log_level: str,
) -> None:
    """Run a worker for development.

    It begins anew whenever a Python file of the application changes.

    Brings the database's schema up to date first; a Queue() without a DSN is the file creche.db. After a mistake in
    the application it shows the traceback, and tries again at the next change. Running jobs are given back.

    TARGET is as for creche worker.
    """

    def work() -> int:
        slot = Slot.taken()
        app = required_app(target)
        require(backend)
        if slot is None:
            set_up_logging(log_format, log_level)
            return anyio.run(Reloading(the_same_again(context), project().folder, grace).run)
        found = made(app, {} if concurrency is None else {"concurrency": concurrency})
        set_up_logging(log_format, log_level)
        anyio.run(found.queue.migrate, backend=backend)
        return run(found, backend, slot)

    context.exit(behind_an_init(work))


class Reloading:
    """One child, which is replaced when a file changes.

    Args:
        command: what it runs.
        folder: whose Python files count.
        grace: seconds that running jobs get.
    """

    def __init__(self, command: Sequence[str], folder: Path, grace: float) -> None:
        self._child = Child(1, command)
        self._folder = folder
        self._grace = grace
        self._stopping = anyio.Event()
        self._changed = False

    async def run(self) -> int:
        """Keep it running until told to stop; return the exit code."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async with create_task_group() as tasks:

                async def obey() -> None:
                    async for _ in received:
                        if self._stopping.is_set():
                            self._child.hurry()
                        self._stopping.set()

                tasks.start_soon(obey, name="signals")
                while not self._stopping.is_set():
                    await self._once()
                tasks.cancel_scope.cancel()
        return ExitCode.OK

    async def _once(self) -> None:
        """Run it until it has ended, and until a file has changed or it is told to stop."""
        self._child.forgive()
        seen = await self._look()
        ended = anyio.Event()
        async with create_task_group() as tasks:
            tasks.start_soon(self._watch, seen, ended, tasks.cancel_scope, name="files")
            tasks.start_soon(self._leave, ended, tasks.cancel_scope, name="stop")
            end = await self._child.run()
            ended.set()
            if not end.report.ended and not self._changed and not self._stopping.is_set():
                _log.warning("the worker %s: it is tried again when a file changes", end)

    async def _watch(self, seen: _Seen, ended: anyio.Event, scope: CancelScope) -> None:
        self._changed = False
        while (now := await self._look()) == seen:  # noqa: ASYNC110 - files set no event
            await anyio.sleep(_LOOK)
        self._changed = True
        for name in sorted({name for name, _ in seen.items() ^ now.items()}):
            _log.info("%s has changed", name)
        await self._end(ended)
        scope.cancel()

    async def _leave(self, ended: anyio.Event, scope: CancelScope) -> None:
        await self._stopping.wait()
        await self._end(ended)
        scope.cancel()

    async def _end(self, ended: anyio.Event) -> None:
        """Have it end: with its grace, without, by force."""
        patience = (
            (partial(self._child.signal, signal.SIGTERM), self._grace),
            (self._child.hurry, _FAREWELL),
            (partial(self._child.signal, signal.SIGKILL), _FAREWELL),
        )
        for tell, seconds in patience:
            if ended.is_set():
                return
            tell()
            with anyio.move_on_after(seconds):
                await ended.wait()

    async def _look(self) -> _Seen:
        return await anyio.to_thread.run_sync(looked_at, self._folder)


def looked_at(folder: Path) -> _Seen:
    """Return the Python files below a folder, with the time of their last change and their size."""
    return dict(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _is_ours(os.path.join(parent, name))]  # noqa: PTH118 - fast, as walk
        for name in names:
            if not name.endswith(".py") or name.startswith("."):
                continue
            file = os.path.join(parent, name)  # noqa: PTH118
            try:
                facts = os.stat(file)  # noqa: PTH116
            except OSError:
                continue  # it went away just now
            yield file, (facts.st_mtime_ns, facts.st_size)


def _is_ours(folder: str) -> bool:
    """Whether a folder may hold the application: none that is hidden, a virtual environment, or somebody else's."""
    name = os.path.basename(folder)  # noqa: PTH119
    return not name.startswith(".") and name not in _ELSEWHERE and not os.path.exists(f"{folder}/pyvenv.cfg")  # noqa: PTH110
