"""Ends of attempts on PostgreSQL: written, with the callbacks that they call for. It wakes nobody and commits nothing.

Nearly always one statement; a second round trip is for jobs that have callbacks, and for leases that were lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import field, frozen

from creche._job import ERRORS_KEPT, WAKE_HORIZON, Lease, Settlement
from creche.storage._postgresql_calls import Row, Runner
from creche.storage._postgresql_documents import by_lease, leases_document, settlements_document


@frozen
class Ended:
    """Leases whose attempt was ended now or, by themselves, `before`; and the names of who is to be woken."""

    written: set[Lease] = field(factory=set[Lease])
    before: set[Lease] = field(factory=set[Lease])
    woken: set[str] = field(factory=set[str])


async def end_attempts(
    runner: Runner, settlements: Sequence[Settlement], ended: Ended, *, now: datetime | None
) -> None:
    """Write settlements; see `Storage.settle`.

    Args:
        runner: where.
        settlements: which.
        ended: what is noted as written here is not asked about again: whoever runs this again, for a rival was in the
            way of the second trip, would find it lost if somebody has touched or pruned it since.
        now: stands in for the database's clock.
    """
    left = [settlement for settlement in settlements if settlement.lease not in ended.written]
    parameters = {
        "settlements": settlements_document(left),
        "kept": ERRORS_KEPT,
        "horizon": WAKE_HORIZON,
        "now": now,
    }
    _note(await runner.rows("settle", parameters), ended)
    left = [settlement for settlement in left if settlement.lease not in ended.written]
    if not left:
        return
    leases = [settlement.lease for settlement in left]
    parameters |= {
        "settlements": settlements_document(left, followed=True),
        "ids": sorted(lease.job_id for lease in leases),
        "leases": leases_document(leases),
    }
    answer, followed, over = await runner.together(("settle", "follow_up", "settled_before"), parameters)
    _note(answer, ended)
    ended.before.update(by_lease(over).keys() - ended.written)
    ended.woken.update(name for (name,) in followed)


def _note(answer: Sequence[Row], ended: Ended) -> None:
    """Note a settle's leases, and whom it wakes."""
    ended.written.update(by_lease(row for row in answer if row[0] is not None))
    ended.woken.update(row[3] for row in answer if row[3] is not None)
