"""Values as literals of MySQL's SQL, and statements with literals in their places. It sends nothing.

Statements go to the server as text, several in one round trip, which prepared ones can't. The connection makes sure
that its session has NO_BACKSLASH_ESCAPES, so that in a string nothing but the quote itself is special. In a session
that isn't ours nothing is sure, neither its mode nor its character set: what goes there has its texts in hexadecimal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol, cast
from uuid import UUID

NEVER: Final = "FALSE"
ALWAYS: Final = "TRUE"


class Expression(str):
    """SQL that stands in a statement as it is."""

    __slots__ = ()


def literal(value: object, *, anywhere: bool = False) -> str:
    """Return a value as MySQL reads it; of a collection its members, with commas between them.

    Args:
        value: what a column or a parameter can be.
        anywhere: it means the same in whatever mode a session is.
    """
    match value:
        case Expression():
            return value
        case str():
            return _in_hexadecimal(value) if anywhere else _text(value)
        case None:
            return "NULL"
        case bool():
            return ALWAYS if value else NEVER
        case int() | float():
            return _number(value)
        case bytes():
            return f"x'{value.hex()}'"
        case UUID():
            return f"x'{value.hex}'"
        case datetime():
            return f"TIMESTAMP'{moment_text(value)}'"
        case Iterable():
            return ", ".join(literal(member, anywhere=anywhere) for member in cast("Iterable[object]", value))
        case _:
            raise TypeError(f"{type(value).__name__} is no literal")


def _text(value: str) -> str:
    if "\\'" in value or value.endswith("\\"):
        # In any other mode, which something in between may have set behind our back, a quote here would end the string.
        return _in_hexadecimal(value)
    return "'" + str.replace(value, "'", "''") + "'"


def _in_hexadecimal(value: str) -> str:
    return f"_utf8mb4 x'{value.encode('utf-8', 'surrogatepass').hex()}'"


def _number(value: float) -> str:
    """Return what is an int or a float, whatever its class calls it: an IntEnum's members have names."""
    return int.__repr__(value) if isinstance(value, int) else float.__repr__(value)


def moment_text(moment: datetime) -> str:
    """Return a moment in UTC, to the microsecond."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(' ', 'microseconds')}"


def clock(now: datetime | None) -> Expression:
    """Return the database's clock, or what takes its place in a test."""
    return Expression("UTC_TIMESTAMP(6)" if now is None else literal(now))


def among(column: str, values: Collection[str] | None) -> Expression:
    """Return the condition that a column has one of these values; None for "whatever it is"."""
    if values is None:
        return Expression(ALWAYS)
    return Expression(f"{column} IN ({literal(sorted(values))})" if values else NEVER)


class _Literals(Mapping[str, str]):
    """The parameters of a statement, each made a literal where it stands."""

    def __init__(self, parameters: Mapping[str, Any], *, anywhere: bool) -> None:
        self._parameters = parameters
        self._anywhere = anywhere

    def __getitem__(self, name: str) -> str:
        return literal(self._parameters[name], anywhere=self._anywhere)

    def __iter__(self) -> Any:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def render(statement: str, parameters: Mapping[str, Any], *, anywhere: bool = False) -> str:
    """Return a statement with literals in the places of `%(name)s`; `%%` becomes `%`."""
    return statement % _Literals(parameters, anywhere=anywhere)


class Render(Protocol):
    """Puts literals into a statement that stands in a file."""

    def __call__(self, statement: str, **parameters: object) -> str:
        """Return the statement of this name."""
        ...
