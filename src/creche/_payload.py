"""Values to JSON text and back: the serializer, the canonical form, the fingerprint, and what no engine can keep.

Payloads, results and error texts pass through here before anything is written. It stores nothing.
"""

from __future__ import annotations

import copy
import hashlib
import math
import traceback
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from operator import is_
from types import NoneType, TracebackType
from typing import Any, Final
from uuid import UUID

import msgspec

from creche._job import Failure

MAX_DEPTH: Final = 100  # MariaDB's and SQLite's parsers stop somewhere above; people long before
MAX_PAYLOAD: Final = 1 << 20
MAX_RESULT: Final = 1 << 20
MAX_ERROR: Final = 8 << 10
_MACHINERY: Final = frozenset({"creche", "anyio", "trio", "outcome", "asyncio"})
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_ORDERED: Final = frozenset({str, int, float, bool, bytes, datetime, date, time, timedelta, UUID})
_LEAVES: Final = _ORDERED | {NoneType}


class Refused(Exception):
    """A value can't be kept by every engine. `path` says where it is, `$` is the whole."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.reason = reason
        self._path = path
        super().__init__(reason)

    @property
    def path(self) -> str:
        """Where it is, in JSONPath style."""
        return self._path if self._path.startswith("$") else f"${self._path}"

    def inside(self, step: str) -> Refused:
        """Return the same refusal as seen from one level further out."""
        return Refused(self.reason, step + self._path)


class JSONSerializer:
    """JSON by msgspec: dataclasses, attrs and msgspec classes, datetime, UUID, Decimal, Enum, sets and bytes
    go through; what comes back is shaped by the annotation it is decoded for.
    """

    def encode(self, value: object) -> bytes:
        """Return JSON text in UTF-8, or raise Refused."""
        return msgspec.json.encode(to_plain(value))

    def decode(self, data: bytes, type: Any) -> Any:
        """Return the value of some JSON text as `type`, or raise Refused."""
        try:
            return msgspec.json.decode(data, type=type)
        except msgspec.ValidationError as error:
            raise refusal(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(f"not JSON: {error}") from None


def to_plain(value: Any) -> Any:
    """Return `value` as dicts, lists, strings, numbers, booleans and None that every engine keeps unchanged.

    Equal values become equal: dicts have their keys in order, and so have sets their items.

    Raises:
        Refused: it holds NaN, an infinity, a NUL, a lone surrogate, an integer beyond 64 bits, or more levels
            than MAX_DEPTH; or it is of a type that JSON has no form for.
    """
    if value.__class__ is dict and is_simple(value):
        return dict(sorted(value.items()))
    try:
        plain = msgspec.to_builtins(_settled(value), str_keys=True, order="deterministic")
    except RecursionError:
        raise Refused("it contains itself, or has far too many levels") from None
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        raise Refused(str(error)) from None
    _check(plain, 0)
    return plain


def is_simple(values: dict[Any, Any]) -> bool:
    """Return whether a dict is plain as it is, but for its order: numbers and ASCII text by ASCII names, and nothing of
    it refused. Most payloads are, and it takes no call per value to see it.
    """
    for key, value in values.items():
        if key.__class__ is not str or not key.isascii() or "\0" in key:
            return False
        kind = value.__class__
        if kind is str:
            if not value.isascii() or "\0" in value:
                return False
        elif kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                return False
        elif kind is float:
            if value - value != 0.0:  # NaN, or an infinity
                return False
        elif value is not None and kind is not bool:
            return False
    return True


def _settled(value: Any) -> Any:
    """Return `value`, with lists for those sets whose items have no order of their own.

    msgspec sorts a set's items by `<`, which enums and objects lack, and which is no order between sets: theirs would
    change with every process.
    """
    kind: Any = value.__class__
    if kind in _LEAVES:
        return value
    if issubclass(kind, set | frozenset):
        kinds = {each.__class__ for each in value}
        if len(kinds) < 2 and kinds <= _ORDERED:
            return value
        return sorted(map(to_plain, value), key=canonical)
    if issubclass(kind, dict):
        if len({key.__class__ for key in value}) > 1 and len(_keys(value)) < len(value):
            raise Refused("two keys that are one text in JSON, such as 1 and '1'")
        parts = _settled_parts(value.values())
        return value if all(map(is_, parts, value.values())) else dict(zip(value, parts, strict=True))
    if issubclass(kind, list | tuple):
        parts = _settled_parts(value)
        return value if all(map(is_, parts, value)) else parts
    return _settled_object(value, kind)


def _settled_parts(values: Iterable[Any]) -> list[Any]:
    return [each if each.__class__ in _LEAVES else _settled(each) for each in values]


def _settled_object(value: Any, kind: Any) -> Any:
    if hasattr(kind, "__struct_fields__"):
        names, put = kind.__struct_fields__, msgspec.structs.force_setattr
    elif hasattr(kind, "__attrs_attrs__"):
        names, put = [each.name for each in kind.__attrs_attrs__], object.__setattr__
    else:
        names, put = list(getattr(kind, "__dataclass_fields__", ())), object.__setattr__
    held = [getattr(value, name, None) for name in names]
    parts = _settled_parts(held)
    if all(map(is_, parts, held)):
        return value
    value = copy.copy(value)
    for name, before, part in zip(names, held, parts, strict=True):
        if part is not before:
            put(value, name, part)
    return value


def _keys(value: dict[Any, Any]) -> dict[str, None]:
    keys: dict[str, None] = msgspec.to_builtins(dict.fromkeys(value), str_keys=True)
    return keys


def canonical(plain: object) -> bytes:
    """Return the one JSON text of a plain value: keys sorted at every level, no blanks."""
    return msgspec.json.encode(plain, order="deterministic")


def fingerprint(type: str, arguments: object) -> bytes:
    """Return SHA-256 over a job type and its plain arguments, 32 bytes.

    1, 1.0 and true differ, as they do in JSON; so do [] and {}. The order of keys does not matter.
    """
    return hashlib.sha256(type.encode() + b"\0" + canonical(arguments)).digest()


def check_json(data: bytes) -> None:
    """Raise Refused unless `data` is JSON text that every engine keeps (for serializers that are not ours)."""
    try:
        plain = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"not JSON: {error}") from None
    _check(plain, 0)


def refusal(error: msgspec.ValidationError) -> Refused:
    """Return what a validation error says, with its path apart."""
    reason, _, path = str(error).partition(" - at `")
    return Refused(reason, path.rstrip("`"))


def _check(value: Any, depth: int) -> None:
    check = _CHECKS.get(value.__class__)
    if check is not None:
        check(value, depth)
    elif value is not None and value is not True and value is not False:
        raise Refused(f"no JSON form for {type(value).__name__}")


def _check_str(value: str, _: int) -> None:
    if "\0" in value:
        raise Refused("a NUL character: PostgreSQL can't store it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused("a lone surrogate: half of a character is no text") from None


def _check_int(value: int, _: int) -> None:
    if not _INT_MIN <= value <= _INT_MAX:
        raise Refused("an integer beyond 64 bits: send it as a string")


def _check_float(value: float, _: int) -> None:
    if not math.isfinite(value):
        raise Refused(f"{value!r} has no form in JSON: send None or a string")


def _check_list(value: list[Any], depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Refused(f"more than {MAX_DEPTH} levels")
    for index, item in enumerate(value):
        try:
            _check(item, depth + 1)
        except Refused as refused:
            raise refused.inside(f"[{index}]") from None


def _check_dict(value: dict[str, Any], depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Refused(f"more than {MAX_DEPTH} levels")
    for key, item in value.items():
        try:
            _check_str(key, depth)
        except Refused as refused:
            raise refused.inside(f".{key!a} (the key)") from None
        try:
            _check(item, depth + 1)
        except Refused as refused:
            raise refused.inside(f".{key}") from None


_CHECKS: Final[dict[type, Callable[[Any, int], None]]] = {
    str: _check_str,
    int: _check_int,
    float: _check_float,
    list: _check_list,
    tuple: _check_list,
    dict: _check_dict,
}


# --- errors as text ---------------------------------------------------------------------------------


def describe(error: BaseException) -> Failure:
    """Return an exception as a row can keep it. It never raises, whatever the exception does when asked."""
    try:
        message = str(error)
    except Exception as inner:  # noqa: BLE001 - an exception's own __str__ may do anything
        message = f"<unprintable: __str__ raised {type(inner).__name__}>"
    try:
        text = "".join(traceback.format_exception(error.__class__, error, _from_the_handler(error.__traceback__)))
    except Exception as inner:  # noqa: BLE001
        text = f"<no traceback: formatting it raised {type(inner).__name__}>"
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return Failure(type=clean(name, 200), message=clean(message), traceback=clean(text))


def _from_the_handler(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames that led to the handler: they say nothing about its error.

    One that has no other frames is kept whole. Local variables are never shown: they hold secrets.
    """
    own = trace
    while own is not None and own.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _MACHINERY:
        own = own.tb_next
    return own or trace


def clean(text: str, limit: int = MAX_ERROR) -> str:
    """Return text that every engine stores: NUL and surrogates replaced, head and tail kept if it is long.

    Args:
        text: anything.
        limit: the most characters that are kept.
    """
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[len(text) - half :]}"
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
