"""Ends of attempts on PostgreSQL: written, with the callbacks that they call for. It wakes nobody and commits nothing.

Nearly always one statement; a second round trip is for jobs that have callbacks, and for leases that were lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import frozen

from creche._job import ERRORS_KEPT, WAKE_HORIZON, Lease, Settlement
from creche.storage._postgresql_calls import Row, Runner
from creche.storage._postgresql_documents import by_lease, leases_document, settlements_document


@frozen
class Ended:
    """Leases whose attempt was ended now or, by themselves, `before`; and the names of who is to be woken."""

    written: frozenset[Lease]
    before: frozenset[Lease]
    woken: frozenset[str]


async def end_attempts(runner: Runner, settlements: Sequence[Settlement], *, now: datetime | None) -> Ended:
    """Write settlements; see `Storage.settle`."""
    parameters = {
        "settlements": settlements_document(settlements),
        "kept": ERRORS_KEPT,
        "horizon": WAKE_HORIZON,
        "now": now,
    }
    written, woken = _noted(await runner.rows("settle", parameters))
    left = [settlement for settlement in settlements if settlement.lease not in written]
    if not left:
        return Ended(written, frozenset(), woken)
    leases = [settlement.lease for settlement in left]
    parameters |= {
        "settlements": settlements_document(left, followed=True),
        "ids": sorted(lease.job_id for lease in leases),
        "leases": leases_document(leases),
    }
    ended, followed, over = await runner.together(("settle", "follow_up", "settled_before"), parameters)
    later, more = _noted(ended)
    return Ended(
        written=written | later,
        before=frozenset(by_lease(over)) - written - later,
        woken=woken.union(more, (name for (name,) in followed)),
    )


def _noted(answer: Sequence[Row]) -> tuple[frozenset[Lease], frozenset[str]]:
    """Return a settle's leases, and whom it wakes."""
    leases = frozenset(by_lease(row for row in answer if row[0] is not None))
    return leases, frozenset(row[3] for row in answer if row[3] is not None)
