"""Draws what a client draws itself: job ids, lease nonces, names of workers and watchers. It remembers none of them."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID, SafeUUID

_new: Final = object.__new__
_set: Final = object.__setattr__
_UNKNOWN: Final = SafeUUID.unknown

_last = 0


def new_job_id() -> UUID:
    """Return a UUIDv7 (RFC 9562, §5.7), rising within this process.

    The 12 bits after the millisecond hold its fraction (RFC 9562, §6.2, method 3), so ids drawn one after
    another sort in that order and stand side by side in an index.
    """
    global _last  # noqa: PLW0603 - one rising sequence per process is the point
    _last = tick = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
    return _job_id(tick, secrets.randbits(62))


def new_job_ids(count: int) -> Sequence[UUID]:
    """Return as many ids of this kind, at the price of one look at the clock, and one at the source of randomness."""
    global _last  # noqa: PLW0603 - see above
    first = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
    _last = first + count - 1
    drawn = secrets.randbits(64 * count).to_bytes(8 * count)
    return [_job_id(first + place, int.from_bytes(drawn[8 * place : 8 * place + 8]) >> 2) for place in range(count)]


def _job_id(tick: int, drawn: int) -> UUID:
    value = (tick >> 12 & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64
    # As UUID(int=…) makes it, whose checks take twice as long as all the rest here.
    made = _new(UUID)
    _set(made, "int", value | 0b10 << 62 | drawn)
    _set(made, "is_safe", _UNKNOWN)
    return made


def new_nonce() -> int:
    """Return 64 random bits as the signed integer that a bigint column holds."""
    return secrets.randbits(64) - (1 << 63)


def new_worker_name() -> str:
    """Return a name for one start of one worker: host and pid for people, random bits against reuse."""
    return f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"


def new_watcher_name() -> str:
    """Return a name for a process that waits for jobs: one that no queue has."""
    return f"creche:watcher:{secrets.token_hex(8)}"
