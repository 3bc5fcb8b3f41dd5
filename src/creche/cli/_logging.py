"""What goes to stderr while a worker runs: lines for people, or one JSON object per line. It decides on no level.

Neither shows a password of a DSN, and neither raises: what can't be written as it is, is written as its `repr`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, cast

import click
import msgspec

from creche.cli._display import plain_json, plain_text
from creche.storage import mask

F = TypeVar("F", bound=Callable[..., Any])

_TEXT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_TEXT_OF_MANY: Final = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"
_LEVELS: Final = ("debug", "info", "warning", "error")
_OURS: Final = frozenset({"time", "level", "logger", "process", "message", "exception", "stack"})
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
_ALONE: Final = "MainProcess"


def logging_options(level: str = "info") -> Callable[[F], F]:
    """Give a command the options --log-format and --log-level, for `set_up_logging`."""

    def give(function: F) -> F:
        function = click.option(
            "--log-level",
            type=click.Choice(_LEVELS, case_sensitive=False),
            default=level,
            show_default=True,
            metavar="LEVEL",
            help="debug, info, warning or error: what goes to stderr, unless the application has set up logging.",
        )(function)
        return click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Lines for people, or one JSON object per line.",
        )(function)

    return give


def set_up_logging(log_format: str, log_level: str, *, processes: bool = False) -> None:
    """Log to stderr, unless the application has set up logging: then all of this is its business.

    Args:
        log_format: text or json.
        log_level: in lower case.
        processes: there are several, so that each line says which one it is from.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(
        JSONFormatter() if log_format == "json" else TextFormatter(_TEXT_OF_MANY if processes else _TEXT)
    )
    root.addHandler(handler)
    root.setLevel(log_level.upper())


class TextFormatter(logging.Formatter):
    """Lines for people: no password, and nothing that a terminal obeys."""

    def __init__(self, layout: str = _TEXT) -> None:
        super().__init__(layout)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, or lines, if it has a traceback."""
        record = _readable(record)
        return plain_text(mask(super().format(record)))


class JSONFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, exception, and whatever `extra` brought along."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, without a line break."""
        record = _readable(record)
        line: dict[str, object] = {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.processName != _ALONE:
            line["process"] = record.processName
        if record.exc_info or record.exc_text:
            line["exception"] = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        extras = {name: value for name, value in vars(record).items() if name not in _USUAL}
        line |= {f"extra_{name}" if name in _OURS else name: value for name, value in extras.items()}
        return plain_json(b",".join(_members(line)).join((b"{", b"}")).decode())


def _readable(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record whose message can be had: whoever logs with the wrong number of arguments is still heard."""
    try:
        record.getMessage()
    except Exception:  # noqa: BLE001 - arguments are of any type, and so is what their `str` raises
        record = logging.makeLogRecord(vars(record))
        record.msg, record.args = f"{record.msg!s} {_described(record.args)}", None
    return record


def _members(line: Mapping[str, object]) -> list[bytes]:
    return [_json(str(name)) + b":" + _json(value) for name, value in line.items()]


def _json(value: object) -> bytes:
    """Return JSON text of anything: passwords go before it is encoded, for in the line they could take others along."""
    try:
        return msgspec.json.encode(_masked(value), enc_hook=_text)
    except Exception:  # noqa: BLE001 - a key that is no text, a circle, a surrogate: log what can be said
        text = value if isinstance(value, str) else _described(value)
        return msgspec.json.encode(mask(text.encode(errors="backslashreplace").decode()))


def _masked(value: object) -> object:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        members = cast("Mapping[Any, object]", value)
        return {mask(key) if isinstance(key, str) else key: _masked(member) for key, member in members.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(member) for member in cast("list[object]", value)]
    return value


def _text(value: object) -> str:
    return mask(str(value))


def _described(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a repr of the users' may raise anything
        return f"<{type(value).__name__} without a repr>"
