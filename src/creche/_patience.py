"""How long to wait for a storage: a deadline on every call; back-off with jitter, one log line per change of state.

It calls no storage itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import anyio

from creche.errors import StorageError, StorageUnavailable

_log = logging.getLogger("creche")


ANSWER: Final = 10.0  # seconds; what a lease hangs on has less


@contextmanager
def answered_within(seconds: float, what: str) -> Generator[None]:
    """Give a storage's call a deadline of our own, for an adapter may forget one: StorageUnavailable if it passes."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise StorageUnavailable(f"no answer to {what} in {seconds:g} s") from error


class Patience:
    """The state of one caller's connection: fine, or trying again.

    Args:
        what: the caller, for the log.
        shortest: seconds before the first new try.
        longest: seconds between tries at most; 60 s of outage should cost no more than 20 of them.
    """

    def __init__(self, what: str, *, shortest: float = 0.1, longest: float = 5.0) -> None:
        self._what = what
        self._shortest = shortest
        self._longest = longest
        self._delay = 0.0

    def success(self) -> None:
        """It worked: the next failure starts from the shortest delay again."""
        if self._delay:
            _log.info("%s: the storage answers again", self._what)
        self._delay = 0.0

    async def after(self, error: StorageError) -> None:
        """It failed: sleep before the next try."""
        if not self._delay:
            _log.warning("%s: %s; trying again", self._what, error)
        self._delay = min(self._longest, max(self._shortest, self._delay * 2))
        await anyio.sleep(self._delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreading load, guarding nothing
