"""The order in which a batch takes its locks, the same in every process, so that two batches can't wait for each other.

It knows no engine and no statement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from creche._job import Event, NewJob, Retention, Settlement

SHORT: Final = 100  # bytes of a result that it is worth while to look for in others


def in_lock_order(jobs: Sequence[NewJob]) -> Sequence[NewJob]:
    """Return jobs in the order in which their unique names are to be written.

    Two batches that name the same fingerprints in different orders would wait for each other. The order given decides
    who wins within a batch, so it is left alone where sorting could change that: a batch with both kinds of names
    (or ids sent twice) may deadlock with another one, which the server notices, and one of the two is run again.
    """
    if len(jobs) < 2:
        return jobs
    if all(job.idempotency_key is None for job in jobs):
        return sorted(jobs, key=lambda job: job.fingerprint or b"")
    if all(job.fingerprint is None for job in jobs):
        return sorted(jobs, key=lambda job: (job.queue_name, job.idempotency_key or ""))
    return jobs


# The keys by which leases, and settlements, are sorted: rows are locked by their ids.
lease_order: Final = attrgetter("job_id.int", "token")
_settlement_order: Final = attrgetter("lease.job_id.int", "lease.token")


def in_lease_order(settlements: Iterable[Settlement]) -> Sequence[Settlement]:
    """Return settlements in the order in which their rows are to be locked."""
    return sorted(settlements, key=_settlement_order)


def unkept(settlements: Iterable[Settlement], retention: Retention | None) -> Sequence[Settlement]:
    """Return the settlements whose jobs may be deleted at once: they succeed, and that is kept for no time."""
    if retention is None or retention.completed > 0:
        return ()
    return [settlement for settlement in settlements if settlement.event is Event.SUCCEED]


def alike(settlements: Sequence[Settlement]) -> Sequence[Settlement]:
    """Return the settlements that differ in nothing but their leases, if those are most of them: they succeed, with the
    same short result. Handlers that return nothing do, and there are few others by the hundred.
    """
    results = Counter(
        settlement.result
        for settlement in settlements
        if settlement.event is Event.SUCCEED and (settlement.result is None or len(settlement.result) <= SHORT)
    )
    for result, count in results.most_common(1):
        if 2 * count > len(settlements):
            return [each for each in settlements if each.event is Event.SUCCEED and each.result == result]
    return ()
