"""The order in which a batch takes its locks, the same in every process, so that two batches can't wait for each other.

It knows no engine and no statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from creche._job import Lease, NewJob, Settlement


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


def lease_order(lease: Lease) -> tuple[int, int]:
    """Return the key by which leases are sorted: rows are locked by their ids."""
    return lease.job_id.int, lease.token


def in_lease_order(settlements: Iterable[Settlement]) -> Sequence[Settlement]:
    """Return settlements in the order in which their rows are to be locked."""
    return sorted(settlements, key=lambda settlement: lease_order(settlement.lease))
