"""Whatever a caller sends or a database returns: refused with a reason and a place, or kept as it is."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creche._payload import (
    MAX_ERROR,
    JSONSerializer,
    Refused,
    canonical,
    check_json,
    clean,
    describe,
    fingerprint,
    to_plain,
)
from fuzz.corpus import kept

SERIALIZER = JSONSerializer()
ANNOTATIONS: list[Any] = [Any, int, str, float, bool, None, bytes, Decimal, datetime, UUID, set[int], list[str]]
ANNOTATIONS += [dict[str, int], dict[int, str], tuple[int, str], str | int | None]


class Colour(Enum):
    RED = "red"
    BYTES = b"b"
    PAIR = (1, 2)


# --- what is sent ------------------------------------------------------------------------------------

ANY_CHARACTER = st.characters(exclude_categories=())  # surrogates, too
TEXTS = st.text(ANY_CHARACTER, max_size=8) | st.lists(st.sampled_from(["\0", "\ud800", "\udfff", "é", '"', "\\"])).map(
    "".join
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 65), 1 << 65)
    | st.floats()
    | TEXTS
    | st.binary(max_size=6)
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.timedeltas()
    | st.dates()
    | st.times()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.just(Decimal("NaN"))
    | st.sampled_from(Colour)
    | st.complex_numbers()
    | st.fractions()
    | st.builds(object)
)
KEYS = (
    TEXTS | st.integers() | st.floats() | st.booleans() | st.none() | st.uuids() | st.dates() | st.sampled_from(Colour)
)


def containers(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.frozensets(LEAVES, max_size=4)
        | st.frozensets(st.frozensets(st.integers() | st.booleans(), max_size=2), max_size=3)
    )


@given(st.recursive(LEAVES, containers, max_leaves=12))
def test_what_is_kept_comes_back_the_same_and_is_json_to_others(value: object) -> None:
    try:
        text = SERIALIZER.encode(value)
    except Refused as refused:
        names_its_place(refused)
        return
    is_kept_by_every_engine(text)
    plain = to_plain(value)
    back = SERIALIZER.decode(text, Any)
    assert canonical(back) == canonical(plain)
    assert fingerprint("type", back) == fingerprint("type", plain)
    assert SERIALIZER.encode(back) == text


def names_its_place(refused: Refused) -> None:
    assert refused.path.startswith("$")
    assert refused.reason


def is_kept_by_every_engine(text: bytes) -> None:
    """The standard library and SQLite take it for JSON, and it is text without what PostgreSQL can't store."""
    check_json(text)
    words = text.decode()
    json.loads(words)
    assert "\0" not in words
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT json_valid(?)", (words,)).fetchone() == (1,)


GOOD_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
GOOD_INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)


@given(st.dictionaries(GOOD_TEXTS, GOOD_INTEGERS | st.lists(GOOD_INTEGERS, max_size=2), max_size=6), st.randoms())
def test_the_order_of_keys_and_of_items_makes_no_difference(value: dict[str, object], random: Any) -> None:
    keys = list(value)
    random.shuffle(keys)
    shuffled = {key: value[key] for key in keys}
    assert SERIALIZER.encode({"a": shuffled, "b": set(keys)}) == SERIALIZER.encode({"b": set(value), "a": value})


# --- what comes back ---------------------------------------------------------------------------------

TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b'"a"',
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"-",
    b"1",
    b"e",
    b".",
]
TOKENS += [
    b"9" * 30,
    b"1e400",
    b" ",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"\\x",
]


def is_json_or_refused(data: bytes) -> None:
    for annotation in ANNOTATIONS:
        try:
            SERIALIZER.decode(data, annotation)
        except Refused as refused:
            names_its_place(refused)
    try:
        check_json(data)
    except Refused as refused:
        names_its_place(refused)
    else:
        is_kept_by_every_engine(data)
        assert SERIALIZER.encode(SERIALIZER.decode(data, Any))


@pytest.mark.parametrize("data", kept("json"))
def test_what_was_met_before(data: bytes) -> None:
    is_json_or_refused(data)


@given(st.binary(max_size=40) | st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join))
def test_anything_is_json_or_refused(data: bytes) -> None:
    is_json_or_refused(data)


@given(st.integers(0, 300), st.sampled_from([b"[", b'{"a":', b'[{"":']))
def test_depth_has_an_end_and_no_crash(levels: int, opening: bytes) -> None:
    closing_text = opening.translate(bytes.maketrans(b"[{", b"]}"), b'"a:')[::-1]
    is_json_or_refused(opening * levels + b"1" + closing_text * levels)


# --- errors ------------------------------------------------------------------------------------------


@given(st.text(ANY_CHARACTER) | TEXTS.map(lambda text: text * 1_500), st.integers(1, MAX_ERROR))
def test_an_errors_text_can_always_be_stored(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert "\0" not in cleaned
    cleaned.encode()
    assert len(cleaned) <= limit + 100
    failure = describe(RuntimeError(text))
    assert "\0" not in failure.message + failure.traceback
    (failure.message + failure.traceback).encode()
