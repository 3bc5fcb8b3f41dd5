"""Walks over the jobs that a filter names, page by page, for whoever does something to all of them. It changes none."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final
from uuid import UUID

from creche._job import JobFilter, JobRecord
from creche.abc import Storage

PAGE: Final = 100  # rows, each with its payload


async def matching(
    storage: Storage, where: JobFilter, *, before: UUID | None = None, page: int = PAGE
) -> AsyncGenerator[Sequence[JobRecord]]:
    """Yield the jobs that `where` names, newest first; those that are dispatched meanwhile are not among them.

    Each page begins behind the last, so whatever the caller does to one (that makes it match no more) skips nothing.

    Args:
        storage: where they are.
        where: which.
        before: only jobs older than this one; see `dispatched_before`.
        page: how many at a time.
    """
    while jobs := await storage.list(where, page, before=before):
        yield jobs
        if len(jobs) < page:
            return
        before = jobs[-1].id


def dispatched_before(seconds: float) -> UUID | None:
    """Return the least id that a job dispatched so many seconds ago could have: what is older, is less. Ids are drawn
    by the clients' clocks, and are as right as those: so for zero it is None, for whatever is there is old enough.
    """
    if not seconds:
        return None
    milliseconds = max(0, time.time_ns() // 1_000_000 - int(seconds * 1000))
    return UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62)
