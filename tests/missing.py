"""What tests do about a server that this machine doesn't have: they fail in CI, and are skipped, loudly, elsewhere.

A skip that nobody sees hides a missing server, so the last lines say what was not tested. They are made from the
reasons of the skips alone, for these reach the reporting process also when the tests are spread over several.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeVar

import pytest

from creche.testing.servers import ServerNotFound

Server = TypeVar("Server")

NOT_TESTED: Final = "NOT TESTED on "


def unless_missing(private: AbstractContextManager[Server], *, required: bool = True) -> Iterator[Server]:
    """Yield the server, or servers, to the tests of a fixture; one that is not `required` is skipped in CI too."""
    with found_or_skipped(required=required), private as server:
        yield server


@contextmanager
def found_or_skipped(*, required: bool = True) -> Generator[None]:
    """Skip a test that finds out in this block that it lacks a server; in CI it fails, if that is `required`."""
    try:
        yield
    except ServerNotFound as error:
        if required and os.environ.get("CI"):
            raise
        pytest.skip(f"{NOT_TESTED}{error.server}: {error}")


def not_tested(skips: Iterable[str]) -> Mapping[str, int]:
    """Return what was not tested, and what to do about it, with the number of tests; from the reasons of skips."""
    return Counter(reason[found:] for reason in skips if (found := reason.find(NOT_TESTED)) >= 0)
