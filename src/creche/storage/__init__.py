"""The storages that ship with creche, and the only switch on a database's name: `open_storage(url)`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from creche.abc import Storage
from creche.errors import MissingExtra, OptionInvalid, UnknownDSN

__all__ = ["mask", "open_storage"]

_PASSWORD: Final = re.compile(r"(?P<before>://[^/@\s:]*:)(?P<password>\S*)(?=@)")  # an unescaped @ or / is part of it
_ALONE: Final = re.compile(
    r"(?s)\A(?P<before>[\w+]*://[^/@\s:]*:)(?P<password>.*)(?=@)"
)  # so is a blank, in a lone DSN
_NAME: Final = r"(?:ssl)?p(?:ass)?w(?:or)?d"
_IN_QUERY: Final = re.compile(rf"(?i)(?P<before>[?&]{_NAME}=)(?P<password>[^\s&]+)")
_PARAMETER: Final = re.compile(  # libpq's way: until a blank, or in quotes; a backslash takes the next character along
    rf"(?is)(?P<before>(?<![?&])\b{_NAME}\s*=\s*)(?P<password>'(?:[^'\\]|\\.)*(?:'|\Z)|(?:[^\s\\]|\\.)+)"
)


def mask(text: str) -> str:
    """Return a DSN, or a text that holds some, without the passwords."""
    for form in (_ALONE, _PASSWORD, _IN_QUERY, _PARAMETER):
        text = form.sub(r"\g<before>***", text)
    return text


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

    address, *parameters = re.split("[?#]", dsn, maxsplit=1)
    if parameters:
        raise OptionInvalid("dsn", mask(dsn), "SQLite has no parameters; in a file's name, write ? as %3F and # as %23")
    if not address.startswith("sqlite:///"):
        raise OptionInvalid("dsn", mask(dsn), "sqlite:///relative.db has three slashes, sqlite:////absolute.db four")
    try:
        path = os.fsdecode(
            unquote_to_bytes(os.fsencode(address.removeprefix("sqlite:///")))
        )  # a file's name is bytes, and need be no text
    except UnicodeEncodeError:
        raise OptionInvalid("dsn", dsn, "no file has half a character in its name") from None
    if not path or "\0" in path:
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
