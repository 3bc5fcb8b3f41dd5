"""Ends of attempts on PostgreSQL: written, with the callbacks that they call for. It wakes nobody and commits nothing.

Nearly always one statement: what is kept for no time is deleted, what is alike completed. Another round trip is for
what is neither, one for jobs that have callbacks, and for leases that were lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from attrs import field, frozen

from creche._job import ERRORS_KEPT, WAKE_HORIZON, Lease, Retention, Settlement
from creche.storage._batches import alike, unkept
from creche.storage._postgresql_arrays import leases as lease_arrays
from creche.storage._postgresql_calls import Row, Runner
from creche.storage._postgresql_documents import by_lease, leases_document, settlements_document
from creche.storage._rows import settlement_columns


@frozen
class Ended:
    """Leases whose attempt was ended now or, by themselves, `before`; those of the others whose job is `gone`; and the
    names of who is to be woken.
    """

    written: set[Lease] = field(factory=set[Lease])
    before: set[Lease] = field(factory=set[Lease])
    gone: set[Lease] = field(factory=set[Lease])
    woken: set[str] = field(factory=set[str])


async def end_attempts(
    runner: Runner,
    settlements: Sequence[Settlement],
    ended: Ended,
    *,
    retention: Retention | None = None,
    now: datetime | None,
) -> None:
    """Write settlements; see `Storage.settle`.

    Args:
        runner: where.
        settlements: which.
        ended: what is noted as written here is not asked about again: whoever runs this again, for a rival was in the
            way of the second trip, would find it lost if somebody has touched or pruned it since.
        retention: whether those that succeed are kept.
        now: stands in for the database's clock.
    """
    left: Sequence[Settlement] = [each for each in settlements if each.lease not in ended.written]
    if short := unkept(left, retention):
        await _delete(runner, short, ended)
        left = [settlement for settlement in left if settlement.lease not in ended.written]
    left_over: Sequence[Settlement] = ()
    if same := alike(left):
        left_over = await _complete(runner, same, ended, now=now)
        others = {settlement.lease for settlement in same}
        left = [settlement for settlement in left if settlement.lease not in others]
    parameters: dict[str, Any] = {"kept": ERRORS_KEPT, "horizon": WAKE_HORIZON, "now": now}
    if left:
        parameters["settlements"] = settlements_document(left)
        left = _note(left, await runner.rows("settle", parameters), ended)
    left = [*left, *left_over]
    if not left:
        return
    leases = [settlement.lease for settlement in left]
    parameters |= {
        "settlements": settlements_document(left, followed=True),
        "ids": sorted(lease.job_id for lease in leases),
        "leases": leases_document(leases),
    }
    answer, followed, over = await runner.together(("settle", "follow_up", "settled_before"), parameters)
    left = _note(left, answer, ended)
    ended.before.update(by_lease(over).keys() - ended.written)
    ended.woken.update(name for (name,) in followed)
    if lost := {settlement.lease for settlement in left} - ended.before:
        there = {row[0] for row in await runner.rows("ends", parameters)}
        ended.gone.update(lease for lease in lost if lease.job_id not in there)


async def _delete(runner: Runner, settlements: Collection[Settlement], ended: Ended) -> None:
    leases = [settlement.lease for settlement in settlements]
    left = by_lease(await runner.rows("settle_unkept", lease_arrays(leases)))
    ended.written.update([lease for lease in leases if lease not in left] if left else leases)


async def _complete(
    runner: Runner, settlements: Sequence[Settlement], ended: Ended, *, now: datetime | None
) -> Sequence[Settlement]:
    """End attempts that succeeded with the same result; return those that were left: lost, or with callbacks."""
    result = settlement_columns(settlements[0]).result
    parameters = lease_arrays(settlement.lease for settlement in settlements) | {"result": result, "now": now}
    return _note(settlements, await runner.rows("complete", parameters), ended)


def _note(settlements: Sequence[Settlement], answer: Sequence[Row], ended: Ended) -> Sequence[Settlement]:
    """Note what was ended, and whom that wakes; return what was left."""
    ended.woken.update(row[3] for row in answer if row[3] is not None)
    left = by_lease(row for row in answer if row[0] is not None)
    if not left:
        ended.written.update([settlement.lease for settlement in settlements])
        return ()
    ended.written.update(settlement.lease for settlement in settlements if settlement.lease not in left)
    return [settlement for settlement in settlements if settlement.lease in left]
