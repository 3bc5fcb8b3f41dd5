"""The standard library's sqlite3 made native to anyio: one connection that writes and, from the first read on, one that
reads, each used by one thread at a time. It knows transactions, locks and errors; what the statements mean it never
asks.

Whoever in this process wants to write waits for its turn in one line, without a thread: the storage itself, and the
transactions that handlers hold, on connections of their own (`_sqlite_session.py`).

A whole operation is one hop into a thread. A write is never interrupted: cancelled, in whatever way, it finishes first,
or gives up while it still waits for the file's lock. A read is interrupted, and its thread left to end by itself.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar
from weakref import WeakSet

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from creche.errors import ConfigurationError, StatementRejected, StorageUnavailable, UsageError

T = TypeVar("T")
_Seen: TypeAlias = tuple[int, Any]  # the version of the data, and what `glance` returned, if that had changed
Synchronous = Literal["NORMAL", "FULL", "EXTRA"]

MINIMUM: Final = (3, 37, 0)  # STRICT tables; RETURNING is older
_SLICE: Final = 0.1  # seconds that SQLite itself waits for a lock before we look whether we were cancelled
_JITTER: Final = 0.01
_GLANCE: Final = 0.002
WAL_KEPT: Final = 64 << 20  # bytes to which the log is cut back after a burst


# --- errors -----------------------------------------------------------------------------------------

_UNAVAILABLE: Final = {
    sqlite3.SQLITE_BUSY: "somebody else holds its lock for longer than busy_timeout",
    sqlite3.SQLITE_LOCKED: "somebody else holds its lock for longer than busy_timeout",
    sqlite3.SQLITE_PROTOCOL: "its lock could not be had: too many processes open it at the same moment",
    sqlite3.SQLITE_FULL: "there is no room left to write; reading works, and writing will again when there is room",
    sqlite3.SQLITE_IOERR: "the file system failed to read or write it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it, or rescue what can be read with sqlite3's .recover",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database",
    sqlite3.SQLITE_READONLY: "this process may not write the file or its folder",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened: its folder must exist, and this process must be able to write there",
    sqlite3.SQLITE_PERM: "this process may not open the file",
    sqlite3.SQLITE_NOLFS: "the file is too large for its file system",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
    sqlite3.SQLITE_INTERRUPT: "the read was interrupted",
}
"""What may be different later, whatever we do now. All other codes are about the statement, and final."""


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Let none of the driver's exceptions out. What Python raises about a parameter is the statement's fault."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
        code = _code(error)
        if code in _UNAVAILABLE:
            name = getattr(error, "sqlite_errorname", "")
            raise StorageUnavailable(f"{path}: {_UNAVAILABLE[code]} ({name}: {error})") from error
        raise StatementRejected(f"{path}: {error}") from error


def _code(error: BaseException) -> int:
    """Return the primary result code; what Python's module raises of itself has none."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_locked(error: BaseException) -> bool:
    """Whether somebody else's lock was in the way."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def patiently(work: Callable[[], T], patience: float) -> T:
    """Do, in a worker thread, what may meet somebody else's lock; again and again while `patience` seconds last.

    Slices, not one long wait inside SQLite, so that a cancellation is noticed; jitter, since SQLite's own steps are the
    same for everyone who waits.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if not is_locked(error) or time.monotonic() >= deadline:
                raise
        anyio.from_thread.check_cancelled()
        time.sleep(random.uniform(0, _JITTER))  # noqa: S311 - spreading load, guarding nothing


# --- threads ----------------------------------------------------------------------------------------


async def to_the_end(
    work: Callable[[], T], limiter: anyio.CapacityLimiter, *, interrupt: Callable[[], object] = lambda: None
) -> T:
    """Do `work` in a worker thread, and stay until it is done: what it uses must not be used by anybody else meanwhile.

    A shield of anyio's holds off the cancellation of scopes, not asyncio's own (`asyncio.timeout`, `Task.cancel`),
    which would leave the thread to itself; that one is kept until the thread has ended.

    Args:
        work: what to do; not begun if the cancellation came before.
        limiter: held until the end.
        interrupt: called, on the event loop, when such a cancellation has come.
    """
    lock, begun, abandoned, done = threading.Lock(), False, False, threading.Event()

    def hop() -> T:
        nonlocal begun
        with lock:
            if abandoned:
                raise UsageError("cancelled before it began")
            begun = True
        try:
            return work()
        finally:
            done.set()

    async with limiter:
        try:
            return await anyio.to_thread.run_sync(hop, limiter=anyio.CapacityLimiter(1))
        except anyio.get_cancelled_exc_class():
            with lock:
                abandoned = True
            if begun and not done.is_set():
                interrupt()
            while begun and not done.is_set():
                with suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
                    await anyio.sleep(_GLANCE)
            raise


# --- one connection ---------------------------------------------------------------------------------


def connect(path: Path, *, create: bool, synchronous: Synchronous, busy_timeout: float) -> sqlite3.Connection:
    """Open a connection in autocommit mode with WAL and the settings that durability rests on.

    Called in a worker thread. The connection may move from thread to thread: who calls must see that it is never used
    by two at once.
    """
    check_version()
    connection = sqlite3.connect(
        path.as_uri() + f"?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=min(_SLICE, busy_timeout),
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )
    try:
        connection.row_factory = sqlite3.Row
        patiently(lambda: _use_wal(connection, path), busy_timeout)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT}")
    except BaseException:
        connection.close()
        raise
    return connection


def check_version() -> None:
    """Raise ConfigurationError if this Python's SQLite is too old."""
    if sqlite3.sqlite_version_info < MINIMUM:
        needed = ".".join(map(str, MINIMUM))
        raise ConfigurationError(
            f"Python's sqlite3 is linked with SQLite {sqlite3.sqlite_version}, {needed} is needed: "
            "use another build of Python"
        )


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    # Changing the mode needs the file for oneself, and does not wait for it as busy_timeout says; asking is free.
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigurationError(
            f"{path}: SQLite can't keep a write-ahead log here (it stays with {mode!r}): "
            "put the file on a local disk; network file systems won't do"
        )


@contextmanager
def transaction(connection: sqlite3.Connection, busy_timeout: float) -> Generator[None]:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK. One that reads first and writes later meets SQLITE_BUSY_SNAPSHOT, at once,
    whatever busy_timeout says.
    """
    if connection.in_transaction:  # a rollback that failed once
        connection.execute("ROLLBACK")
    begin(connection, busy_timeout)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def begin(connection: sqlite3.Connection, busy_timeout: float) -> None:
    """Take the file's write lock, in a worker thread."""
    patiently(lambda: connection.execute("BEGIN IMMEDIATE"), busy_timeout)


def roll_back(connection: sqlite3.Connection) -> None:
    """Undo, if there is anything to undo: on a full disk SQLite may have done it by itself."""
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


# --- the pair of them -------------------------------------------------------------------------------


class Database:
    """One file, open for as long as a storage is.

    Args:
        path: absolute.
        synchronous: what a commit waits for.
        busy_timeout: seconds to wait for another process's lock.
        glance: called in the thread that notices a commit of anybody else, to read what has to be known of it.
        foreign_change: called on the event loop afterwards, with what `glance` returned.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Synchronous,
        busy_timeout: float,
        glance: Callable[[sqlite3.Connection], Any] = lambda _: None,
        foreign_change: Callable[[Any], object] = lambda _: None,
    ) -> None:
        self.path: Final = path
        self._synchronous: Final[Synchronous] = synchronous
        self.busy_timeout: Final = busy_timeout
        self._glance: Final = glance
        self._foreign_change: Final = foreign_change
        self._open: Open | None = None

    def connect(self, *, create: bool) -> sqlite3.Connection:
        """Open one more connection with the same settings, in a worker thread; whoever asks closes it."""
        return connect(self.path, create=create, synchronous=self._synchronous, busy_timeout=self.busy_timeout)

    async def once(self, work: Callable[[sqlite3.Connection], T], *, create: bool) -> T:
        """Do one thing on a connection of its own, also while the database is not open."""

        def hop() -> T:
            with translated(self.path), closing(self.connect(create=create)) as connection:
                return work(connection)

        return await to_the_end(hop, anyio.CapacityLimiter(1))

    async def open(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Open the connection that writes, and do one thing on it, outside a transaction: return what that returns."""
        if self._open is not None:
            raise UsageError("the storage is open already: one `async with storage:` at a time")

        connections: list[sqlite3.Connection] = []

        def hop() -> tuple[T, int]:
            with translated(self.path):
                connections.append(self.connect(create=True))
                return work(connections[0]), _data_version(connections[0])

        try:
            result, version = await to_the_end(hop, anyio.CapacityLimiter(1))
        except BaseException:
            for connection in connections:
                connection.close()
            raise
        self._open = Open(*connections, version=version)
        return result

    async def close(self) -> None:
        """Close what is open, after whatever uses it now. In a forked child: let go of it untouched."""
        opened, self._open = self._open, None
        if opened is None or opened.inherited:
            return
        with anyio.CancelScope(shield=True):
            await to_the_end(opened.close, opened.writing)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in one transaction and return what it returns, once that is on disk.

        Raises:
            StorageUnavailable: the lock, the disk or the file can't be had now. Nothing took effect, unless it was the
                COMMIT that failed.
            StatementRejected: the statement or its values can't be right.
        """
        opened = self.opened()

        def hop() -> tuple[T, _Seen]:
            self.check(opened)
            with translated(self.path), transaction(opened.writer, self.busy_timeout):
                return work(opened.writer), self._see(opened)

        borrower = object()
        await self.take_turn(opened, borrower)
        try:
            result, seen = await to_the_end(hop, opened.writing)
        finally:
            opened.turn.release_on_behalf_of(borrower)
        self._note(opened, seen)
        return result

    async def take_turn(self, opened: Open, borrower: object) -> None:
        """Wait for the right to write, first come, first served; it is given back to `opened.turn`.

        Raises:
            StorageUnavailable: a handler's transaction has it for longer than busy_timeout, as another process's might.
        """
        with suppress(anyio.WouldBlock):
            opened.turn.acquire_on_behalf_of_nowait(borrower)
            return
        while True:
            with anyio.move_on_after(self.busy_timeout) as patience:
                await opened.turn.acquire_on_behalf_of(borrower)
            if not patience.cancelled_caught:
                return
            if opened.held:
                raise StorageUnavailable(
                    f"{self.path}: a handler's transaction in this process holds its lock for longer than busy_timeout"
                )
            await anyio.lowlevel.checkpoint()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, which reads, beside whatever is being written. Cancelled, the statement is interrupted."""
        opened = self.opened()
        abandoned = threading.Event()

        def hop() -> T:
            with opened.reading_thread, translated(self.path):
                self.check(opened)
                reader = opened.reader = opened.reader or self._connect_to_read()
                while True:
                    try:
                        return patiently(lambda: work(reader), self.busy_timeout)
                    except sqlite3.OperationalError as error:
                        # Interrupted: for this read's sake, or by the last one's cancellation, which came late.
                        if _code(error) != sqlite3.SQLITE_INTERRUPT or abandoned.is_set():
                            raise

        try:
            return await anyio.to_thread.run_sync(hop, limiter=opened.reading, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            abandoned.set()
            if opened.reader is not None:
                opened.reader.interrupt()
            raise

    def _connect_to_read(self) -> sqlite3.Connection:
        reader = self.connect(create=False)
        reader.execute("PRAGMA query_only = ON")
        return reader

    async def look(self) -> None:
        """Find out whether anybody else has committed. It takes microseconds and no lock, writes nothing, and never
        queues behind a write: every write looks by itself.
        """
        opened = self.opened()
        if opened.writing.borrowed_tokens:
            await anyio.lowlevel.checkpoint()
            return

        def hop() -> _Seen:
            self.check(opened)
            with translated(self.path):
                return patiently(lambda: self._see(opened), self.busy_timeout)

        self._note(opened, await to_the_end(hop, opened.writing))

    def _see(self, opened: Open) -> _Seen:
        version = _data_version(
            opened.writer
        )  # first: what is committed after it is seen by the next look, if not by this
        return version, None if version == opened.version else self._glance(opened.writer)

    def _note(self, opened: Open, seen: _Seen) -> None:
        version, glanced = seen
        if version != opened.version:
            opened.version = version
            self._foreign_change(glanced)

    def check(self, opened: Open) -> None:
        """Raise UsageError if the database was closed since."""
        # Again, in the thread: it may have been closed while this call waited for its turn.
        if self._open is not opened:
            raise UsageError("the storage was closed before this call had its turn")

    def opened(self) -> Open:
        """Return what there is while it is open; UsageError if it is not."""
        if self._open is None:
            raise UsageError("the storage is not open: use `async with storage:` around this call")
        if self._open.inherited:
            raise UsageError(
                "this storage was opened before a fork: SQLite's locks don't cross it, and using its connections here "
                "could damage the file. Open another storage in the child"
            )
        return self._open


class Open:
    """What there is while a database is open."""

    def __init__(self, writer: sqlite3.Connection, *, version: int) -> None:
        self.writer = writer
        self.reader: sqlite3.Connection | None = None
        self.turn = anyio.CapacityLimiter(1)  # who of this process may want the file's write lock now
        self.held: set[sqlite3.Connection] = set()  # with which it is held for a handler
        self.writing = anyio.CapacityLimiter(1)
        self.reading = anyio.CapacityLimiter(1)
        self.reading_thread = threading.Lock()  # an abandoned read may go on a little after its limiter was given back
        self.version = version  # of the data, as the writer saw it last
        self._pid = os.getpid()
        _OPEN.add(self)

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child of the one that opened it."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Close the reader first: the writer's close may then move the log into the file and remove it."""
        _OPEN.discard(self)
        with self.reading_thread:
            if self.reader is not None:
                self.reader.close()
        with suppress(sqlite3.Error):
            self.writer.close()


def _data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection commits, never by this one's own commits.

    See https://www.sqlite.org/pragma.html#pragma_data_version.
    """
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


# A forked child must not even close what it inherited, and the garbage collector would.
_OPEN: Final[WeakSet[Open]] = WeakSet()
_INHERITED: Final[list[Any]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_OPEN))
