"""Upkeep on PostgreSQL: what is taken back, promoted and pruned, in one transaction. It wakes nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import anyio
from attrs import frozen

from creche._job import ERRORS_KEPT, WATCH_LIMIT, Retention, Upkeep
from creche.errors import StorageUnavailable
from creche.storage._postgresql_calls import Link, OwnRunner, Row
from creche.storage._postgresql_documents import seconds_until

_NAMES: Final = (
    "promote",
    "next_due",
    "next_expiry",
    "prune",
    "prune_dead_letters",
    "prune_watches",
    "prune_workers",
)
_NO_ROWS: Final[Sequence[Row]] = ()


@frozen
class Maintained:
    """What was done, and the names of who is to be woken."""

    upkeep: Upkeep
    woken: frozenset[str]


async def maintain(
    connection: Link,
    sql: Mapping[str, bytes],
    *,
    limit: int,
    retention: Retention,
    allowance: float,
    now: datetime | None,
) -> Maintained:
    """Do the upkeep; see `Storage.maintain`. A lease is taken back `allowance` seconds after it has run out."""
    parameters = {
        "limit": limit,
        "kept": ERRORS_KEPT,
        "completed": retention.completed,
        "failed": retention.failed,
        "cancelled": retention.cancelled,
        "unwatched": WATCH_LIMIT,
        "allowance": allowance,
        "now": now,
    }
    runner = OwnRunner(connection, sql)
    ((needed, due_in, expiry_in, ready),) = await runner.rows("glance", parameters)
    if not needed:
        idle = Upkeep(
            recovered=0,
            buried=0,
            promoted=0,
            pruned=0,
            next_due_in=seconds_until(due_in),
            next_expiry_in=seconds_until(expiry_in),
            ready=frozenset(ready),
        )
        return Maintained(idle, frozenset())
    # It waits for no lock, so it is soon over. Given up halfway, it would hold its rows for a moment longer, and
    # whoever does the upkeep next would pass them over.
    with anyio.CancelScope(shield=True, deadline=anyio.current_effective_deadline()):
        async with connection.transaction():
            ends = await runner.together(("recover", "bury"), parameters)
            over = [job_id for ((_, ids),) in ends for job_id in ids or ()]
            followed = await runner.rows("follow_up", {"ids": over, "now": now}) if over else _NO_ROWS
            answer = await runner.together(_NAMES, parameters)
        return _maintained([*ends, *answer], followed, frozenset(ready))
    raise StorageUnavailable("PostgreSQL did not end the upkeep in time: its outcome is unknown")


def _maintained(answer: Sequence[Sequence[Row]], followed: Sequence[Row], ready: frozenset[str]) -> Maintained:
    ((recovered, _),), ((buried, _),), ((promoted, woken),), ((due_in,),), ((expiry_in,),), ((pruned,),), *_ = answer
    upkeep = Upkeep(
        recovered=recovered,
        buried=buried,
        promoted=promoted,
        pruned=pruned,
        next_due_in=seconds_until(due_in),
        next_expiry_in=seconds_until(expiry_in),
        ready=ready,
    )
    return Maintained(upkeep, frozenset(name for (name,) in followed).union(woken or ()))
