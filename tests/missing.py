"""What tests do about a server that this machine doesn't have: they fail in CI, and are skipped, loudly, elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import pytest

from creche.testing.servers import ServerNotFound

Server = TypeVar("Server")

MISSING: Final[dict[str, str]] = {}
"""What was looked for in vain, and what to do about it: a skip that nobody sees hides a missing server."""


def unless_missing(private: AbstractContextManager[Server], *, required: bool = True) -> Iterator[Server]:
    """Yield the server, or servers, to the tests of a fixture; one that is not `required` is skipped in CI too."""
    try:
        with private as server:
            yield server
    except ServerNotFound as error:
        if required and os.environ.get("CI"):
            raise
        MISSING[error.server] = str(error)
        pytest.skip(str(error))
