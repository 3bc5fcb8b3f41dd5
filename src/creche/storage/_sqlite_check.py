"""Looks at one SQLite file with a doctor's eyes. It makes no file, changes nothing and runs no job; what it can't look
at is a finding too.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import anyio

from creche._job import Finding, Severity
from creche.errors import ConfigurationError, StorageError
from creche.storage import _sqlite_schema as schema
from creche.storage._sql import Dialect
from creche.storage._sqlite3 import (
    WAL_KEPT,
    Synchronous,
    begin,
    check_version,
    is_locked,
    roll_back,
    to_the_end,
    translated,
)

_PATIENCE: Final = 1.0  # seconds for which nobody should hold the write lock
_SKEW: Final = 1.0
_ROOM: Final = 64 << 20  # bytes: less than a log may take
_UNITS: Final = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
_THEN: Final = "put that right, and look again"
_MOUNTS: Final = Path("/proc/self/mountinfo")  # Linux's; elsewhere nobody is asked
_REMOTE: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)


class Doctor:
    """Examines one file.

    Args:
        path: absolute.
        dialect: what its schema should be.
        synchronous: what a commit of this storage waits for.
    """

    def __init__(self, path: Path, dialect: Dialect, synchronous: Synchronous) -> None:
        self._path = path
        self._dialect = dialect
        self._synchronous = synchronous

    async def examine(self) -> list[Finding]:
        """Return what there is to say; of a file that can't be read, that alone."""
        return await to_the_end(self._examine, anyio.CapacityLimiter(1))

    def _examine(self) -> list[Finding]:
        if not self._path.exists():
            advice = "opening the storage makes it, so does `creche migrate`; should it be there, is this the path?"
            return [_problem("reach", f"there is no file {self._path}", advice)]
        try:
            check_version()
            with translated(self._path), closing(self._connect()) as connection:
                found = schema.version(connection)
                return [self._reach(), *self._all(connection, found)]
        except (StorageError, ConfigurationError) as error:
            return [_problem("reach", str(error), _THEN)]

    def _connect(self) -> sqlite3.Connection:
        # As it is: `connect` would make the file use a write-ahead log.
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw", uri=True, timeout=_PATIENCE, isolation_level=None
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _reach(self) -> Finding:
        return _ok("reach", f"{self._path}: SQLite {sqlite3.sqlite_version}, {_size(self._path.stat().st_size)}")

    def _all(self, connection: sqlite3.Connection, found: int) -> list[Finding]:
        looks: dict[str, Callable[[], Finding]] = {
            "schema": lambda: self._schema(connection, found),
            "indexes": lambda: self._indexes(connection, found),
            "isolation": lambda: self._isolation(connection, found),
            "clock": lambda: _clock(connection),
            "durability": lambda: self._durability(connection),
            "vacuum": lambda: self._vacuum(connection),
            "disk": self._disk,
        }
        if not found:  # nothing of it is there
            del looks["indexes"], looks["clock"]
        return [self._guarded(check, look) for check, look in looks.items()]

    def _guarded(self, check: str, look: Callable[[], Finding]) -> Finding:
        try:
            with translated(self._path):
                return look()
        except StorageError as error:
            return _problem(check, f"it can't be looked at: {error}", _THEN)

    # --- the schema ---------------------------------------------------------------------------------

    def _schema(self, connection: sqlite3.Connection, found: int) -> Finding:
        if missing := schema.pending(self._dialect, found):
            names = ", ".join(migration.name for migration in missing)
            return _problem(
                "schema", f"migrations are missing: {names}", "run `creche migrate`, or open the storage once"
            )
        if gone := sorted(self._expected(found, _COLUMNS).keys() - _named(connection, _COLUMNS).keys()):
            advice = "restore them, or begin with another file: the statements can't work without them"
            return _problem("schema", f"columns are missing: {', '.join(gone)}", advice)
        if found > self._dialect.version:
            message = f"version {found} is newer than this creche, which knows {self._dialect.version}"
            return _warning("schema", message, "use the same version of creche everywhere")
        return _ok("schema", f"version {found}")

    def _indexes(self, connection: sqlite3.Connection, found: int) -> Finding:
        expected, there = self._expected(found, _INDEXES), _named(connection, _INDEXES)
        missing = [name for name in expected if name not in there]
        other = [name for name in expected if name in there and _squeezed(there[name]) != _squeezed(expected[name])]
        if not missing and not other:
            return _ok("indexes", f"all {len(expected)} are there")
        faults = [f"{name} is missing" for name in missing] + [f"{name} is another than it should be" for name in other]
        advice = "make them again: " + " ".join(
            [f"DROP INDEX {name};" for name in other] + [f"{_squeezed(expected[name])};" for name in (*missing, *other)]
        )
        return _problem("indexes", ", ".join(faults), advice)

    def _expected(self, found: int, query: str) -> Mapping[str, str]:
        """Return what `query` finds where the migrations up to version `found` have just been applied."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            schema.apply(connection, self._dialect, up_to=found)
            return _named(connection, query)

    # --- the file -----------------------------------------------------------------------------------

    def _isolation(self, connection: sqlite3.Connection, found: int) -> Finding:
        begun = time.monotonic()
        try:
            begin(connection, _PATIENCE)
            if found:  # what may not be written may be begun on all the same
                connection.execute("DELETE FROM creche_migrations WHERE false")
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                return _problem("isolation", f"nothing can be written: {error}", "let this process write the file")
            message = f"somebody holds the write lock for longer than {_PATIENCE:g} s: nobody else can write meanwhile"
            return _warning(
                "isolation", message, "look for a long transaction: an open shell, a handler that takes its time"
            )
        finally:
            roll_back(connection)
        waited = (time.monotonic() - begun) * 1_000
        return _ok("isolation", f"one writer at a time; the write lock was had after {waited:.0f} ms")

    def _durability(self, connection: sqlite3.Connection) -> Finding:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        kept = f"journal mode {mode}, synchronous {self._synchronous}"
        if mode != "wal":
            advice = "opening the storage switches to wal; if it is not wal afterwards, somebody switches it back"
            return _warning("durability", f"{kept}: while somebody writes nobody can read", advice)
        if self._synchronous == "NORMAL":
            advice = 'synchronous="FULL" waits for the disk'
            return _warning("durability", f"{kept}: a power cut may take the last commits along", advice)
        return _ok("durability", kept)

    def _vacuum(self, connection: sqlite3.Connection) -> Finding:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        log = self._path.with_name(self._path.name + "-wal")
        logged = log.stat().st_size if log.exists() else 0
        message = f"{_size(free * size)} of {_size(pages * size)} are free; the write-ahead log has {_size(logged)}"
        if logged > WAL_KEPT:
            advice = "it can't be cut back while somebody reads: look for a read transaction that was left open"
            return _warning("vacuum", message, advice)
        return _ok("vacuum", message)

    def _disk(self) -> Finding:
        kind = file_system(_MOUNTS, self._path)
        left = shutil.disk_usage(self._path.parent).free
        if kind in _REMOTE:
            advice = "put it on a local disk: locks and the write-ahead log don't work across a network"
            return _warning("disk", f"the file is on {kind}, a network file system", advice)
        if left < _ROOM:
            return _warning(
                "disk", f"{_size(left)} are left on {kind or 'its disk'}", "make room, or writing will fail"
            )
        return _ok("disk", f"{_size(left)} are left on {kind or 'its disk'}")


def file_system(mounts: Path, path: Path) -> str:
    """Return the kind of file system that `path` is on, as Linux tells; an empty text where nobody tells."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        mounted, _, described = line.partition(" - ")
        place = mounted.split(" ")[4].encode().decode("unicode_escape")  # a space is \040
        if len(place) >= best and path.resolve().is_relative_to(place):  # of two at the same place the later covers
            best, kind = len(place), described.split(" ")[0]
    return kind


def _clock(connection: sqlite3.Connection) -> Finding:
    """SQLite has no clock but its host's, which all processes share: it is wrong if somebody was seen in the future."""
    (seen,) = connection.execute("SELECT max(seen_at) FROM creche_workers").fetchone()
    ahead = (seen or 0) / 1_000_000 - (now := time.time())
    if ahead > _SKEW:
        message = (
            f"a worker was last seen {ahead:.0f} s in the future, at {_time(now + ahead)}; it is {_time(now)} here"
        )
        return _warning("clock", message, "the clock was set back: what is due by the old one waits for so long")
    return _ok("clock", f"this machine's: {_time(now)}")


# --- words ------------------------------------------------------------------------------------------

_COLUMNS: Final = """
    SELECT thing.name || '.' || col.name AS name, '' AS sql
    FROM sqlite_master AS thing JOIN pragma_table_info(thing.name) AS col
    WHERE thing.type = 'table' AND thing.name LIKE 'creche\\_%' ESCAPE '\\'
"""
_INDEXES: Final = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY rowid"


def _named(connection: sqlite3.Connection, query: str) -> Mapping[str, str]:
    return {row["name"]: row["sql"] for row in connection.execute(query).fetchall()}


def _squeezed(sql: str) -> str:
    return " ".join(sql.split())


def _size(size: int) -> str:
    for unit, factor in _UNITS.items():
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def _ok(check: str, message: str) -> Finding:
    return Finding(check=check, severity=Severity.OK, message=message)


def _warning(check: str, message: str, advice: str) -> Finding:
    return Finding(check=check, severity=Severity.WARNING, message=message, advice=advice)


def _problem(check: str, message: str, advice: str) -> Finding:
    return Finding(check=check, severity=Severity.PROBLEM, message=message, advice=advice)
