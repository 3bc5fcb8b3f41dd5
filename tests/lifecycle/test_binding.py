"""Arguments of a call become a payload as Python itself would bind them, whichever way is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from creche._payload import to_plain
from creche._signature import Signature
from creche.errors import PayloadInvalid


def plain(a: int, b: str = "b") -> None: ...


def positional(a: int, /, b: int = 2) -> None: ...


def named(a: int, *, b: int, c: int = 3) -> None: ...


def mixed(a: int, /, b: int, *, c: int = 3, d: list[int] | None = None) -> None: ...


def nothing() -> None: ...


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {}),
    ((1, "x"), {}),
    ((1, 2, 3), {}),
    ((1, 2, 3, 4), {}),
    ((), {"a": 1}),
    ((), {"b": 2}),
    ((1,), {"a": 1}),
    ((1,), {"b": 2}),
    ((1,), {"b": "x"}),
    ((1,), {"b": 2, "c": 4}),
    ((1, 2), {"b": 2}),
    ((1, 2), {"c": 4}),
    ((1, 2), {"d": [1, 2]}),
    ((1,), {"unknown": 1}),
    (("not a number",), {}),
    (("ü\0",), {"b": "\0"}),
]


def told(bind: Callable[[], Any]) -> object:
    try:
        return msgspec.to_builtins(bind())
    except PayloadInvalid as error:
        return str(error)


@pytest.mark.parametrize("function", [plain, positional, named, mixed, nothing], ids=lambda function: function.__name__)
@pytest.mark.parametrize(("arguments", "by_name"), CALLS)
def test_a_call_is_bound_as_python_binds_it(
    function: Callable[..., None], arguments: tuple[Any, ...], by_name: Mapping[str, Any]
) -> None:
    signature = Signature(function, "work")
    as_python = told(lambda: signature.bind_as_python(arguments, by_name))
    assert told(lambda: signature.bind(arguments, by_name)) == as_python


@pytest.mark.parametrize("function", [plain, positional, named, mixed, nothing], ids=lambda function: function.__name__)
@pytest.mark.parametrize(("arguments", "by_name"), CALLS)
def test_checked_arguments_are_plain_as_they_would_be_by_the_long_way(
    function: Callable[..., None], arguments: tuple[Any, ...], by_name: Mapping[str, Any]
) -> None:
    signature = Signature(function, "work")
    try:
        checked = signature.bind(arguments, by_name)
    except PayloadInvalid:
        return
    assert msgspec.json.encode(signature.plain(checked)) == msgspec.json.encode(to_plain(checked))
