"""Dispatch on PostgreSQL: new jobs written, or the rows found that stand in their place.

Nearly always one statement; the rounds are for whoever lost to a row that was gone a moment later. It wakes nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from attrs import frozen

from creche._job import WAKE_HORIZON, Insertion, NewJob, Status
from creche.storage._batches import in_lock_order
from creche.storage._pool import TransientConflict
from creche.storage._postgresql_calls import Link, Row, rows, together
from creche.storage._postgresql_documents import jobs_document

# How often it goes round again because the row it lost to was gone when it looked.
ROUNDS: Final = 10


@frozen
class Dispatched:
    """The answers in the order of the jobs, and the queues in which something is ready or soon will be."""

    answers: Sequence[Insertion]
    woken: frozenset[str]


async def dispatch(
    connection: Link, *, sql: Mapping[str, bytes], jobs: Sequence[NewJob], now: datetime | None
) -> Dispatched:
    """Insert jobs; see `Storage.insert`."""
    answers: dict[UUID, Insertion] = {}
    woken: set[str] = set()
    left = in_lock_order(jobs)
    for round_number in range(ROUNDS):
        parameters = {"jobs": jobs_document(left), "now": now, "horizon": WAKE_HORIZON}
        insert = (sql["insert"], parameters)
        if round_number == 0 and not _entangled(left):
            written = await rows(connection, *insert)
        else:
            # The rows they lost to are gone, or are results that have grown stale.
            written = (await together(connection, [(sql["expire_results"], parameters), insert]))[-1]
        lost = _note_written(left, written, answers, woken)
        if lost:
            parameters = {"jobs": jobs_document(lost), "now": now}
            _note_standing(left, await rows(connection, sql["find_standing"], parameters), answers)
        # One that was sent before is woken for again: the first answer may have been lost, and the wake with it.
        woken.update(job.queue_name for job in lost if job.id in answers and answers[job.id].inserted)
        left = [job for job in lost if job.id not in answers]
        if not left:
            return Dispatched([answers[job.id] for job in jobs], frozenset(woken))
    raise TransientConflict("the rows that stood in the place of new jobs were gone each time they were looked for")


def _entangled(jobs: Sequence[NewJob]) -> bool:
    """Return whether a stale result could change who of the batch is the first with a key."""
    if len(jobs) < 2:
        return False
    return any(job.fingerprint for job in jobs) and any(job.idempotency_key is not None for job in jobs)


def _note_written(
    jobs: Sequence[NewJob], written: Sequence[Row], answers: dict[UUID, Insertion], woken: set[str]
) -> Sequence[NewJob]:
    """Note the answers of jobs that were inserted; return the others."""
    new: dict[UUID, tuple[str, bool]] = {job_id: (status, soon) for job_id, status, soon in written}
    for job in jobs:
        if job.id in new:
            status, soon = new[job.id]
            answers[job.id] = Insertion(
                job_id=job.id, status=Status(status), inserted=True, fingerprint=job.fingerprint
            )
            if soon:
                woken.add(job.queue_name)
    return [job for job in jobs if job.id not in new]


def _note_standing(jobs: Sequence[NewJob], standing: Sequence[Row], answers: dict[UUID, Insertion]) -> None:
    """Note the answers of jobs that were not inserted, from the rows in their place, the strongest claim first."""
    place = {job.id: number for number, job in enumerate(jobs)}
    written = frozenset(answers)
    for asked, job_id, status, fingerprint, result in standing:
        came_later = job_id in written and place.get(job_id, -1) > place[asked]
        if asked in answers or came_later:  # a later job of the batch has the key that this one left unused
            continue
        inserted = asked == job_id  # the job itself, sent before
        answers[asked] = Insertion(
            job_id=job_id, status=Status(status), inserted=inserted, fingerprint=fingerprint, result=result
        )
