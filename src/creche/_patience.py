"""How long to wait for a storage: a deadline on every call; back-off with jitter, one log line per change of state.

It calls no storage itself.
"""

from __future__ import annotations

import logging
import random
from types import TracebackType
from typing import Final

import anyio
from anyio import CancelScope

from creche.errors import StorageError, StorageUnavailable

_log = logging.getLogger("creche")

ANSWER: Final = 10.0  # seconds; what a lease hangs on has less


class answered_within:  # noqa: N801 - read as what it does: `with answered_within(5, "a settle"):`
    """Give a storage's call a deadline of our own, for an adapter may forget one: StorageUnavailable if it passes.

    A class, and one cancel scope: it stands around every call, and a generator on top of `fail_after`, which is one
    too, cost half as much again as the scope.
    """

    __slots__ = ("_scope", "_seconds", "_what")

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds = seconds
        self._what = what

    def __enter__(self) -> None:
        self._scope = CancelScope(deadline=anyio.current_time() + self._seconds)
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught or isinstance(error, TimeoutError):  # an adapter's own is as good as ours
            raise StorageUnavailable(f"no answer to {self._what} in {self._seconds:g} s") from error


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
