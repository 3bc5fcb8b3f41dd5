"""Fingerprints are what docs/fingerprints.md says, on every engine and every Python: the vectors never change.

A vector that fails here is a bug in creche. Add vectors; never mend one: rows in databases hold fingerprints, and
programs in other languages compute them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, Final, TypedDict, cast
from uuid import UUID

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from creche import Call, Queue
from creche._payload import Refused, canonical, fingerprint, to_plain

HERE: Final = Path(__file__).parent
VECTORS: Final[dict[str, dict[str, str]]] = {
    vector.pop("name"): vector for vector in json.loads((HERE / "fingerprints.json").read_text("utf-8"))
}
PAGE: Final = HERE.parents[1] / "docs" / "fingerprints.md"


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Level(IntEnum):
    LOW = 9
    HIGH = 10


class Format(StrEnum):
    XLSX = "xlsx"
    CSV = "csv"


@dataclass(frozen=True)
class Line:
    product: str
    count: int = 1


@frozen
class Order:
    number: int
    lines: tuple[Line, ...]


class Filters(TypedDict, total=False):
    year: int
    colours: set[Colour]


ID: Final = UUID("0192d3c4-5b6a-7f80-9a1b-2c3d4e5f6071")
EAST: Final = timezone(timedelta(hours=5, minutes=30))

queue: Final = Queue("memory://")


@queue.task("ping", unique=True)
async def ping() -> None: ...


@queue.task("value", unique=True)
async def value(x: Any) -> None: ...


@queue.task("größe.測る", unique=True)
async def size(x: Any) -> None: ...


@queue.task("report.generate", unique=True)
async def report(
    year: int, format: Format = Format.XLSX, columns: tuple[str, ...] = (), limit: int | None = None
) -> None: ...


@queue.task("ratio", unique=True)
async def ratio(x: float) -> None: ...


@queue.task("moment", unique=True)
async def moment(at: datetime) -> None: ...


@queue.task("colours", unique=True)
async def colours(chosen: set[Colour]) -> None: ...


@queue.task("groups", unique=True)
async def groups(of: set[frozenset[str]]) -> None: ...


@queue.task("table", unique=True)
async def table(rows: dict[int, str]) -> None: ...


@queue.task("order.place", unique=True)
async def place(order: Order) -> None: ...


@queue.task("search", unique=True)
async def search(filters: Filters) -> None: ...


# Each vector by the calls that mean it: all of one line are one.
CALLS: Final[dict[str, list[Callable[[], Call[Any]]]]] = {
    "no-arguments": [ping.call],
    "integer": [lambda: value.call(1), lambda: value.call(x=1)],
    "float": [lambda: value.call(1.0)],
    "true": [lambda: value.call(x=True)],
    "text-1": [lambda: value.call("1")],
    "null": [lambda: value.call(None)],
    "empty-list": [lambda: value.call([]), lambda: value.call(()), lambda: value.call(set())],
    "empty-object": [lambda: value.call({})],
    "empty-text": [lambda: value.call("")],
    "nested-order": [
        lambda: value.call({"b": [{"z": 1, "y": {"d": [2, 1], "c": None}}], "a": True}),
        lambda: value.call({"a": True, "b": [{"y": {"c": None, "d": [2, 1]}, "z": 1}]}),
    ],
    "keys-by-code-point": [
        lambda: value.call(
            {"\U0001f600": 1, "\uff5e": 2, "é": 3, "e\u0301": 4, "z": 5, "Z": 6, "10": 7, "9": 8, "": 9}
        ),
        lambda: value.call(
            {"": 9, "9": 8, "10": 7, "Z": 6, "z": 5, "e\u0301": 4, "é": 3, "\uff5e": 2, "\U0001f600": 1}
        ),
    ],
    "composed": [lambda: value.call("caf\u00e9")],
    "decomposed": [lambda: value.call("cafe\u0301")],
    "astral": [lambda: value.call("\U0001d11e\U0001f469\u200d\U0001f680")],
    "type-in-unicode": [lambda: size.call(1)],
    "escapes": [lambda: value.call('"\\\b\f\n\r\t\x01\x1b\x1f')],
    "not-escaped": [lambda: value.call("/<>&'\x7f\x85\u2028\ufeff")],
    "zero": [lambda: value.call(0.0)],
    "minus-zero": [lambda: value.call(-0.0)],
    "tenths": [lambda: value.call([0.1, 0.2, 0.1 + 0.2, -2.5, 100.0, 123456.789])],
    "large-floats": [lambda: value.call([1e15, 9999999999999998.0, 1e16, 1.5e16, 1e22, 1.7976931348623157e308])],
    "small-floats": [lambda: value.call([0.001, 1e-5, 1.234e-5, 1e-6, 1.234e-6, 5e-324])],
    "integers": [lambda: value.call([0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1])],
    "integer-for-a-float": [lambda: ratio.call(1), lambda: ratio.call(1.0)],
    "defaults": [
        lambda: report.call(2024),
        lambda: report.call(year=2024),
        lambda: report.call(2024, Format.XLSX),
        lambda: report.call(2024, columns=(), limit=None),
        lambda: report.options(priority=7, max_attempts=9, result_ttl=60).call(2024),
    ],
    "enum-argument": [lambda: report.call(2024, Format.CSV, ("b", "a"), 10)],
    "enums": [lambda: value.call([Colour.RED, Level.HIGH, Format.CSV])],
    "date": [lambda: value.call(date(2024, 2, 29))],
    "datetime-without-offset": [lambda: moment.call(datetime(2024, 2, 29, 3, 4, 5))],  # noqa: DTZ001
    "datetime-utc": [lambda: moment.call(datetime(2024, 2, 29, 3, 4, 5, tzinfo=UTC))],
    "datetime-microseconds": [lambda: moment.call(datetime(2024, 2, 29, 3, 4, 5, 120_000, tzinfo=UTC))],
    "datetime-offset": [lambda: moment.call(datetime(2024, 2, 29, 3, 4, 5, 1, tzinfo=EAST))],
    "time": [lambda: value.call([time(3, 4), time(3, 4, 5, 6_000), time(3, 4, tzinfo=UTC)])],
    "timedelta": [
        lambda: value.call(
            [
                timedelta(0),
                timedelta(days=2),
                timedelta(hours=25, milliseconds=500),
                timedelta(seconds=90),
                timedelta(microseconds=-1),
                timedelta(days=-3, seconds=1),
            ]
        )
    ],
    "uuid": [lambda: value.call(ID)],
    "decimal": [lambda: value.call([Decimal("1.10"), Decimal("1.1"), Decimal("1E+5"), Decimal("-0")])],
    "bytes": [lambda: value.call([b"", b"\x00", b"\xfb\xff\xfe\x00"])],
    "set-of-numbers": [lambda: value.call({100, 20, 3}), lambda: value.call({3, 20, 100})],
    "set-of-text": [lambda: value.call({"b", "a!", "a", "B", "\uff5e", "\U0001f600"})],
    "set-of-enums": [
        lambda: colours.call({Colour.RED, Colour.GREEN}),
        lambda: colours.call({Colour.GREEN, Colour.RED}),
    ],
    "set-of-sets": [
        lambda: groups.call({frozenset({"b", "a"}), frozenset({"c"}), frozenset[str]()}),
        lambda: groups.call({frozenset[str](), frozenset({"c"}), frozenset({"a", "b"})}),
    ],
    "set-of-several-kinds": [lambda: value.call({None, "a", 10, 9, 2.5, ("b", 1)})],
    "keys-that-are-numbers": [
        lambda: table.call({9: "nine", 10: "ten"}),
        lambda: table.call({10: "ten", 9: "nine"}),
    ],
    "classes": [
        lambda: place.call(Order(7, (Line("tea"), Line("pot", 2)))),
        lambda: place.call(order=Order(lines=(Line("tea", count=1), Line(count=2, product="pot")), number=7)),
    ],
    "typed-dict": [lambda: search.call({"year": 2024, "colours": {Colour.RED, Colour.GREEN}})],
}


def described(name: str) -> tuple[str, str, str]:
    vector = VECTORS[name]
    return vector["type"], vector["canonical"], vector["sha256"]


def test_every_vector_has_its_calls() -> None:
    assert list(VECTORS) == list(CALLS)


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_sha256_over_the_type_a_nul_and_the_canonical_text(name: str) -> None:
    kind, text, digest = described(name)
    assert hashlib.sha256(kind.encode() + b"\0" + text.encode()).hexdigest() == digest
    assert fingerprint(kind, json.loads(text)).hex() == digest
    assert canonical(json.loads(text)) == text.encode()


@pytest.mark.parametrize("name", VECTORS)
def test_a_tasks_calls_have_the_vectors_fingerprint(name: str) -> None:
    kind, text, digest = described(name)
    for make in CALLS[name]:
        call = make()
        assert (call.type, canonical(call.arguments).decode()) == (kind, text)
        assert fingerprint(call.type, call.arguments).hex() == digest
        assert fingerprint(call.type, json.loads(call.payload)).hex() == digest  # what is stored says the same


def test_no_two_vectors_share_a_fingerprint() -> None:
    assert len({vector["sha256"] for vector in VECTORS.values()}) == len(VECTORS)


def test_the_page_and_the_file_have_the_same_vectors() -> None:
    page = re.sub(r"⟨U\+([0-9A-F]+)⟩", lambda seen: chr(int(seen[1], 16)), PAGE.read_text("utf-8"))
    rows = re.findall(r"^\| ([a-z0-9-]+) \| `(.*?)` \| `(.*)` \| `([0-9a-f]{64})` \|$", page, re.MULTILINE)
    assert rows == [(name, *described(name)) for name in VECTORS]


def test_hash_randomisation_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from creche._payload import fingerprint, to_plain;"
        "print(fingerprint('t', to_plain({frozenset({c}) for c in 'abcdefghi'} | set('abcdefghi'))).hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_two_keys_that_are_one_in_json_are_refused() -> None:
    with pytest.raises(Refused, match="two keys that are one text"):
        to_plain({"rows": {1: "a", "1": "b"}})


def test_a_set_inside_a_class_is_in_order_and_the_callers_object_is_left_alone() -> None:
    @frozen
    class Group:
        of: object

    group = Group({frozenset({"b"}), frozenset({"a"})})
    assert to_plain(group) == {"of": [["a"], ["b"]]}
    assert isinstance(group.of, set)


# --- the page's definition, once more, without msgspec ------------------------------------------------

ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def written(value: object) -> Iterator[str]:
    match value:
        case None | bool():
            yield {None: "null", True: "true", False: "false"}[value]
        case int():
            yield str(value)
        case float():
            yield written_float(value)
        case str():
            yield '"' + "".join(ESCAPES.get(c) or (c if c >= " " else f"\\u{ord(c):04x}") for c in value) + '"'
        case dict():
            pairs = sorted(cast("dict[str, object]", value).items(), key=lambda pair: [ord(c) for c in pair[0]])
            yield "{" + ",".join("".join(written(key)) + ":" + "".join(written(item)) for key, item in pairs) + "}"
        case _:
            yield "[" + ",".join("".join(written(item)) for item in cast("list[object]", value)) + "]"


def written_float(value: float) -> str:
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    minus = "-" if sign else ""
    if value == 0:
        return f"{minus}0.0"
    point = len(text) + exponent  # the value is 0.<text> × 10^point
    if -4 <= point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    if 0 < point <= 16:
        text = text.ljust(point, "0")
        return f"{minus}{text[:point]}.{text[point:] or '0'}"
    rest = f".{text[1:]}" if len(text) > 1 else ""
    return f"{minus}{text[0]}{rest}e{point - 1}"


TEXT: Final = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
NUMBERS: Final = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS: Final = st.none() | st.booleans() | NUMBERS | TEXT
PLAIN: Final = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))


@given(PLAIN)
def test_the_definition_is_all_there_is_to_know(value: object) -> None:
    assert canonical(to_plain(value)).decode() == "".join(written(value))


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e-3, 1e-3) | st.floats(1e14, 1e17))
def test_floats_are_written_as_the_page_says(value: float) -> None:
    text = canonical(value).decode()
    assert text == written_float(value)
    assert math.copysign(1, float(text)) == math.copysign(1, value)
    assert float(text) == value


@given(st.permutations(["", "a", "Z", "é", "\uff5e", "\U0001f600", "10", "9"]))
def test_the_order_of_keys_and_of_sets_does_not_matter(keys: list[str]) -> None:
    expected = to_plain({"keys": dict.fromkeys(sorted(keys), 0), "set": sorted(keys)})
    assert canonical(to_plain({"set": set(keys), "keys": dict.fromkeys(keys, 0)})) == canonical(expected)


# --- what is stored -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
async def test_the_stored_fingerprint_is_the_vectors(engine: str, tmp_path: Path) -> None:
    home = Queue("memory://" if engine == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}")
    home.include(queue.tasks)
    await home.migrate()
    async with home:
        for name, calls in CALLS.items():
            first, *others = [await home.dispatch(make()) for make in calls]
            digest = bytes.fromhex(VECTORS[name]["sha256"])
            record = await home.look_up(first.job_id)
            assert record is not None
            assert record.fingerprint == first.fingerprint == digest, name
            assert all(other.job_id == first.job_id for other in others), name
            assert not any(other.inserted for other in others), name
