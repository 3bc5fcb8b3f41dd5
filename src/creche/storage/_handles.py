"""Handles of the caller's own, in a transaction of theirs: how a statement is run through one. It commits nothing,
tries nothing again, and translates no error: the transaction is the caller's, and so is what its driver raises.

Statements come as whole texts, literals and all: each driver has its own idea of parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from attrs import frozen

from creche.errors import OptionInvalid

_CONNECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "sqlalchemy.engine": ("Connection",),
    "sqlalchemy.ext.asyncio": ("AsyncConnection",),
}
_SESSIONS: Final[Mapping[str, Sequence[str]]] = {
    "sqlalchemy.orm": ("Session", "scoped_session"),
    "sqlalchemy.ext.asyncio": ("AsyncSession", "async_scoped_session"),
}
# A text that says % is otherwise taken for one with parameters by some drivers, and not by others.
_AS_IT_IS: Final = {"no_parameters": True}


@frozen
class Ran:
    """What a statement answered."""

    rows: Sequence[tuple[Any, ...]]
    affected: int


Run: TypeAlias = Callable[[str], Awaitable[Ran]]


def is_one_of(value: object, classes: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a value is an instance of classes, named by module: what nobody has imported is nobody's class."""
    found = [getattr(sys.modules.get(module), name, None) for module, names in classes.items() for name in names]
    return isinstance(value, tuple(cls for cls in found if cls is not None))


def through_sqlalchemy(handle: object, dialects: Collection[str]) -> Run | None:
    """Return how to run statements through a SQLAlchemy session or connection, sync or async; None for anything else.

    A session's pending objects are not flushed for it. Sync ones block the event loop for a statement's time, as they
    do wherever they are used.

    Args:
        handle: the caller's.
        dialects: SQLAlchemy's names of the database that it must be connected to; OptionInvalid if it is not.
    """
    if not is_one_of(handle, _CONNECTIONS) and not is_one_of(handle, _SESSIONS):
        return None

    async def run(text: str) -> Ran:
        connection: Any = handle
        if is_one_of(handle, _SESSIONS):
            connection = await _finished(connection.connection())
        name = connection.dialect.name
        if name not in dialects:
            raise OptionInvalid("connection", handle, f"a connection to {' or '.join(sorted(dialects))}, not to {name}")
        if _autocommits(connection):
            raise OptionInvalid("connection", handle, "one in a transaction: its isolation level is AUTOCOMMIT")
        result = await _finished(connection.exec_driver_sql(text, execution_options=_AS_IT_IS))
        rows = [tuple(row) for row in result.fetchall()] if result.returns_rows else []
        return Ran(rows, result.rowcount)

    return run


def _autocommits(connection: Any) -> bool:
    """Return whether each statement would be committed by itself, as far as the driver beneath has a word for it."""
    driven = getattr(connection, "sync_connection", None) or connection
    return getattr(driven.connection.dbapi_connection, "autocommit", False) is True


async def _finished(answer: Any) -> Any:
    return await answer if isawaitable(answer) else answer
