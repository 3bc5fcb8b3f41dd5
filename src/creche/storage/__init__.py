"""The storages that ship with creche, and the only switch on a database's name: `open_storage(url)`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from creche.abc import Storage
from creche.errors import MissingExtra, OptionInvalid, UnknownDSN

__all__ = ["mask", "open_storage"]

_PASSWORD: Final = re.compile(r"(?P<before>://[^/@\s:]*:)(?P<password>\S*)(?=@)")  # an unescaped @ or / is part of it
_PARAMETER: Final = re.compile(r"(?i)(?P<before>\b(?:ssl)?p(?:ass)?w(?:or)?d\s*=\s*)(?P<password>'[^']*'|[^\s&;]+)")


def mask(text: str) -> str:
    """Return a DSN, or a text that holds some, without the passwords."""
    return _PARAMETER.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>***", text))


def open_storage(dsn: str) -> Storage:
    """Return the storage that a DSN names; nothing is connected to before it is entered.

    Args:
        dsn: `sqlite:///reports.db` (three slashes: relative, four: absolute), `postgresql://user@host/database`,
            `mysql://user@host/database` or `mariadb://…`, or `memory://`.

    Raises:
        UnknownDSN: creche has no storage for this scheme.
        MissingExtra: its driver is not installed; names the `pip install`.
    """
    scheme = dsn.partition("://")[0] if "://" in dsn else ""  # what has none may be all password
    engine = scheme.partition("+")[0].lower()  # SQLAlchemy's URLs say postgresql+psycopg://
    opener = _OPENERS.get(engine)
    if opener is None:
        raise UnknownDSN(scheme, [f"{name}://" for name in _OPENERS])
    return opener(engine + dsn[len(scheme) :])


def _memory(_: str) -> Storage:
    from creche.storage.memory import MemoryStorage

    return MemoryStorage()


def _sqlite(dsn: str) -> Storage:
    from creche.storage.sqlite import SQLiteStorage

    parts = urlsplit(dsn)
    if parts.netloc:
        raise OptionInvalid("dsn", dsn, "sqlite:///relative.db has three slashes, sqlite:////absolute.db four")
    path = unquote(parts.path)[1:]
    if not path:
        raise OptionInvalid("dsn", dsn, "name a file: sqlite:///jobs.db; for jobs in memory use memory://")
    return SQLiteStorage(path)


def _mysql(dsn: str) -> Storage:
    try:
        from creche.storage.mysql import MySQLStorage
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "asyncmy":
            raise
        raise MissingExtra("mysql", "asyncmy") from error
    return MySQLStorage(dsn)


def _postgresql(dsn: str) -> Storage:
    try:
        from creche.storage.postgresql import PostgreSQLStorage
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "psycopg":
            raise
        raise MissingExtra("postgres", "psycopg") from error
    return PostgreSQLStorage(dsn)


_OPENERS: Final[dict[str, Callable[[str], Storage]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "postgres": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
    "memory": _memory,
}
