"""What tests do about a server that this machine doesn't have: they fail in CI, and are skipped, loudly, elsewhere."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeVar

import pytest

from creche.testing.servers import ForeignServer, PrivateServer, ServerNotFound

Server = TypeVar("Server", bound=PrivateServer | ForeignServer)

MISSING: Final[dict[str, str]] = {}
"""What was looked for in vain, and what to do about it: a skip that nobody sees hides a missing server."""


def unless_missing(private: AbstractContextManager[Server], *, required: bool = True) -> Iterator[Server]:
    """Yield the server to the tests of a fixture; one that is not `required` is skipped in CI too."""
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
        MISSING[error.server] = str(error)
        pytest.skip(str(error))
