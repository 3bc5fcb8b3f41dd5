"""Processes of one test, forked from a plain one that has imported everything: a new one runs at once, and a test can
afford a dozen of them. It knows nothing of jobs; what the processes do they write into ledgers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from creche.testing._ledger import Entry, Ledger, read_ledgers
from processes import stands_still

# pytest, for it is the program that is forked; drivers, for each process would import them anew.
_PRELOADED: Final = ["pytest", "psycopg_pool", "asyncmy", "trio", "anyio._backends._asyncio", "anyio._backends._trio"]
_PROGRAMS: Final = ["creche.cli", "creche.storage.sqlite", "creche.storage.postgresql", "creche.storage.mysql"]


class Troupe:
    """The processes of a test, and what they did.

    Args:
        dsn: their database; CRECHE_DSN in each of them.
        folder: where their ledgers are, and what they say on stderr.
    """

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self.processes: dict[str, BaseProcess] = {}
        self._ended: dict[str, float] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOADED, *_PROGRAMS])

    def start(self, who: str, run: Callable[..., None], *arguments: Any) -> BaseProcess:
        """Have a process do `run(ledger, *arguments)`; both can be pickled."""
        process = self._context.Process(target=_play, args=(self.dsn, self.folder, who, run, arguments), name=who)
        process.start()
        self.processes[who] = process
        return process

    def send(self, number: signal.Signals, *chosen: str) -> float:
        """Send a signal to these; to all if none is named. Return when, on the ledgers' clock."""
        at = time.monotonic()
        for who in chosen or list(self.processes):
            pid = self.processes[who].pid
            assert pid is not None
            os.kill(pid, number)
        return at

    def freeze(self) -> None:
        """Stop them all, but none in the middle of a write to SQLite: the file would stay locked for everybody."""
        if self.dsn.startswith("sqlite"):
            with locked(self.dsn):
                self._stop()
        else:
            self._stop()

    def _stop(self) -> None:
        self.send(signal.SIGSTOP)
        # A signal is sent before it has come: a process that is just taking the lock would stop when it has it.
        pids = [process.pid for process in self.processes.values() if process.pid is not None]
        self.until(lambda: all(map(stands_still, pids)))

    def alive(self, who: str) -> bool:
        """Whether it has not ended yet."""
        for each, process in self.processes.items():
            if process.exitcode is not None:
                self._ended.setdefault(each, time.monotonic())
        return who not in self._ended

    def end_of(self, who: str, limit: float) -> float:
        """Wait until it has ended; return when, on the ledgers' clock."""
        self.until(lambda: not self.alive(who), limit)
        return self._ended[who]

    def entries(self, what: str, who: str | None = None, **facts: Any) -> list[Entry]:
        """Return what is in the ledgers, in the order of time."""
        found = [each for each in read_ledgers(self.folder) if each["what"] == what and who in {None, each["who"]}]
        return [each for each in found if all(each.get(name) == value for name, value in facts.items())]

    def until(self, condition: Callable[[], object], limit: float = 60) -> None:
        """Wait until something is so; AssertionError after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.02)

    def said(self, who: str) -> str:
        """Return what a process has said on stderr."""
        return _said(self.folder, who).read_text("utf-8")

    def told(self) -> str:
        """Return all that is known, for a failure's message."""
        ledger = [f"{each['at']:.3f} {each}" for each in read_ledgers(self.folder)]
        return "\n".join([*ledger, *(f"--- {who}\n{self.said(who)[-3_000:]}" for who in self.processes)])

    def end(self) -> None:
        """Leave nobody behind."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join()


@contextmanager
def locked(dsn: str) -> Iterator[None]:
    """Have nobody write to SQLite's file."""
    with closing(sqlite3.connect(dsn.removeprefix("sqlite:///"), timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def _said(folder: Path, who: str) -> Path:
    return folder / f"{who}.stderr"


def _play(dsn: str, folder: Path, who: str, run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with _said(folder, who).open("wb", buffering=0) as stderr:
        os.dup2(stderr.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warnings.simplefilter("error")
    os.environ["CRECHE_DSN"] = dsn
    run(Ledger(folder, who), *arguments)
