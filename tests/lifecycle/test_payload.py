"""What no engine can keep is refused and named; the canonical form and the fingerprint never change."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from creche._payload import (
    MAX_DEPTH,
    MAX_ERROR,
    JSONSerializer,
    Refused,
    canonical,
    check_json,
    clean,
    describe,
    fingerprint,
    is_simple,
    to_plain,
)

SURROGATE = "\ud800"


class Colour(Enum):
    RED = "red"


@define
class Order:
    id: UUID
    at: datetime
    colour: Colour
    tags: set[str]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (float("nan"), "$", "nan has no form in JSON"),
        ({"rows": [1, {"price": float("inf")}]}, "$.rows[1].price", "inf has no form in JSON"),
        ({"rows": ({}, {}, {"a": -float("inf")})}, "$.rows[2].a", "-inf has no form in JSON"),
        ("a\0b", "$", "a NUL character"),
        ({"a": {"b\0": 1}}, "$.a.'b\\x00' (the key)", "a NUL character"),
        (SURROGATE, "$", "a lone surrogate"),
        ({"a": [0, {SURROGATE: 1}]}, "$.a[1].'\\ud800' (the key)", "a lone surrogate"),
        (1 << 64, "$", "an integer beyond 64 bits"),
        ({"a": [-(1 << 63) - 1]}, "$.a[0]", "an integer beyond 64 bits"),
        (nested(MAX_DEPTH + 1), "$" + "[0]" * MAX_DEPTH, "more than 100 levels"),
    ],
)
def test_a_value_that_some_engine_cannot_keep_is_refused_with_its_path(value: object, path: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        to_plain(value)
    assert caught.value.path == path


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[object] = []
    ring.append(ring)
    with pytest.raises(Refused):
        to_plain(ring)


@pytest.mark.parametrize("value", [object(), {"a": object()}, {"a": lambda: 1}, 1j])
def test_a_value_without_a_form_in_json_is_refused(value: object) -> None:
    with pytest.raises(Refused):
        to_plain(value)


@pytest.mark.parametrize("value", [(1 << 64) - 1, -(1 << 63), 1e308, 5e-324, -0.0, "", "\x01\x7f", nested(MAX_DEPTH)])
def test_a_value_on_the_right_side_of_a_limit_goes_through(value: object) -> None:
    text = JSONSerializer().encode(value)
    check_json(text)
    assert repr(JSONSerializer().decode(text, Any)) == repr(value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"", "$"),
        (b"{", "$"),
        (b"nan", "$"),
        (b"[1,]", "$"),
        (b"\xff", "$"),
        (b'"\\ud800"', "$"),
        (b'{"a":[1,"\\u0000"]}', "$.a[1]"),
        (b'{"a":{"b":36893488147419103232}}', "$.a.b"),
        (b"[" * 101 + b"]" * 101, "$" + "[0]" * 100),
    ],
)
def test_a_foreign_serializers_text_is_refused_likewise(text: bytes, path: str) -> None:
    with pytest.raises(Refused) as caught:
        check_json(text)
    assert caught.value.path == path


def test_a_text_that_does_not_fit_its_annotation_is_refused_with_its_path() -> None:
    with pytest.raises(Refused, match=r"Expected `int`, got `str`") as caught:
        JSONSerializer().decode(b'{"a":[1,"x"]}', dict[str, list[int]])
    assert caught.value.path == "$[...][1]"


def test_rich_values_go_through_and_come_back_by_their_annotation() -> None:
    order = Order(id=UUID(int=7), at=datetime(2030, 1, 1, tzinfo=UTC), colour=Colour.RED, tags={"b", "a"})
    text = JSONSerializer().encode(order)
    assert json.loads(text)["tags"] == ["a", "b"]
    assert JSONSerializer().decode(text, Order) == order


# --- the canonical form and the fingerprint ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text", "expected"),
    [
        ({}, b"{}", "15a8bd0dea8b1eb1264f81e2ff62ef060de8a0e2049fbe81dfd1dbb95ef3141b"),
        ([], b"[]", "1374839ff20f5735c6e23a073765a5faced8ba79dab1efec4617d6e771c4d84f"),
        ({"a": 1}, b'{"a":1}', "6ef72aa5492bcff4ad0f67b19a662d02c4f7afa4bb9dc40531e3a8aa0e0a1841"),
        ({"a": 1.0}, b'{"a":1.0}', "dddf51e4c306bfd337f8164d21a46055a2c5245a07b9b2c302192039b6331a31"),
        ({"a": True}, b'{"a":true}', "80c789d54cfde1d1953c3838154ced271e2e1d4c335c13db0ebf6eec8b6c1074"),
        (
            {"b": 2, "a": {"d": 4, "c": 3}},
            b'{"a":{"c":3,"d":4},"b":2}',
            "193451c7d8d3b35c7d76be59e48cd4ecd21db3bafcfc87e025a08840b24eb795",
        ),
        (
            {"name": "é😀"},
            '{"name":"é😀"}'.encode(),
            "d9c185bf325726b979182c3658f1a8deb28acac66b724b1ccd95002e0423acc7",
        ),
        (
            [1, "x", None, -0.0, 1e308],
            b'[1,"x",null,-0.0,1e308]',
            "e596aa4b863445975a12a34eb3a3a3b89b552112b05f9b3a791a136dcc2acb5a",
        ),
    ],
)
def test_canonical_forms_and_fingerprints_are_what_they_were_when_rows_were_written(
    arguments: object, text: bytes, expected: str
) -> None:
    assert canonical(arguments) == text
    assert fingerprint("report.generate", arguments).hex() == expected


def test_a_fingerprint_is_of_the_type_too() -> None:
    assert fingerprint("a", []) != fingerprint("b", [])
    assert fingerprint("ab", []).hex() == "c62e78b538e0abbcc049db95174993e69634aa4f7927e793150e7a9ffe8d25a1"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(item) for key, item in reversed(value.items())}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


@given(PLAIN)
def test_the_order_of_keys_does_not_matter_at_any_level(value: object) -> None:
    assert canonical(_reversed(value)) == canonical(value)


@given(PLAIN, PLAIN)
def test_canonical_forms_are_equal_exactly_where_the_json_is(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (canonical(one) == canonical(other)) == same
    assert (fingerprint("t", one) == fingerprint("t", other)) == same


# --- errors as text ---------------------------------------------------------------------------------


def _storable(text: str) -> bool:
    return "\0" not in text and text.encode().decode() == text


def test_an_exception_is_described_by_its_name_its_message_and_its_traceback() -> None:
    try:
        int("x")
    except ValueError as error:
        failure = describe(error)
    assert failure.type == "ValueError"
    assert failure.message == "invalid literal for int() with base 10: 'x'"
    assert failure.traceback.startswith("Traceback (most recent call last):\n")
    assert failure.traceback.endswith("ValueError: invalid literal for int() with base 10: 'x'\n")


def test_an_exception_of_a_module_is_named_with_it() -> None:
    assert describe(json.JSONDecodeError("m", "d", 0)).type == "json.decoder.JSONDecodeError"


def test_a_traceback_shows_causes_and_groups_and_no_local_variables() -> None:
    def work() -> None:
        password = "hunter2" + "-secret"
        try:
            password.index("inner")
        except ValueError as error:
            raise ExceptionGroup("both", [ValueError("first"), TypeError("second")]) from error
        finally:
            del password

    try:
        work()
    except ExceptionGroup as error:
        text = describe(error).traceback
    assert all(part in text for part in ("substring not found", "ValueError: first", "TypeError: second"))
    assert "hunter2-secret" not in text


@pytest.mark.parametrize("inner", [RuntimeError("no"), RecursionError(), MemoryError()])
def test_an_exception_that_cannot_be_printed_is_described_all_the_same(inner: Exception) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise inner

    failure = describe(Unprintable())
    assert failure.type.endswith("Unprintable")
    assert type(inner).__name__ in failure.message
    assert _storable(failure.traceback)


@pytest.mark.parametrize(
    "message", ["a\0b", SURROGATE, f"\0{SURROGATE}é😀\0", "x" * 10_000_000, "\0" * 20_000, "😀" * 9_000]
)
def test_any_message_becomes_text_that_every_engine_stores(message: str) -> None:
    failure = describe(ValueError(message))
    for text in (failure.message, failure.traceback):
        assert _storable(text)
        assert len(text) <= MAX_ERROR + 100


def test_of_a_long_text_the_head_and_the_tail_are_kept() -> None:
    assert clean("ab", 1) == "\n… 2 characters left out …\n"
    text = clean("head" + "x" * 100_000 + "tail")
    assert text.startswith("head")
    assert text.endswith("tail")
    assert f"{100_008 - MAX_ERROR} characters left out" in text


@given(st.text(st.characters()))  # surrogates too
def test_cleaning_a_clean_text_changes_nothing(text: str) -> None:
    once = clean(text)
    assert _storable(once)
    assert clean(once) == once


# --- the short way ----------------------------------------------------------------------------------

_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\0", SURROGATE, "ü", ""])
)


@given(st.dictionaries(st.text() | st.sampled_from(["", "a", "\0", SURROGATE]), _LEAVES, max_size=4))
def test_a_simple_dict_is_plain_as_it_would_be_by_the_long_way(values: dict[str, Any]) -> None:
    if not is_simple(values):
        return
    (long_way,) = to_plain([values])  # a list never is
    assert to_plain(values) == long_way
    assert json.dumps(to_plain(values)) == json.dumps(long_way)  # the order of keys too, and 1 is neither 1.0 nor true


@pytest.mark.parametrize(
    "value",
    ["a\0b", SURROGATE, float("nan"), float("inf"), float("-inf"), 1 << 64, -(1 << 63) - 1, Colour.RED, [1], {1: 2}],
    ids=repr,
)
def test_what_may_be_refused_is_not_simple(value: object) -> None:
    assert not is_simple({"value": value})
    assert not is_simple({"good": 1, "value": value})


@pytest.mark.parametrize("key", ["a\0b", SURROGATE, 1, None], ids=repr)
def test_a_key_that_may_be_refused_is_not_simple(key: object) -> None:
    assert not is_simple({key: 1})


def test_what_looks_like_text_or_a_number_is_not_simple() -> None:
    class Text(str):
        __slots__ = ()

    assert not is_simple({"value": Text("a")})
    assert not is_simple({Text("a"): 1})
    assert not is_simple({"value": Colour.RED})
