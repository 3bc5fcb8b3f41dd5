"""Dispatch on PostgreSQL: new jobs written, or the rows found that stand in their place, and callbacks recorded there.

Nearly always one statement; the rounds are for whoever lost to a row that was gone a moment later. It wakes nobody, but
for what comes after a silence: that is woken for by the statement that writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from attrs import field, frozen
from msgspec.structs import replace
from psycopg.errors import ProgramLimitExceeded

from creche._job import WAKE_HORIZON, FollowUp, Insertion, NewJob, Status
from creche.storage._batches import in_lock_order
from creche.storage._notifier import Notifier
from creche.storage._pool import TransientConflict
from creche.storage._postgresql_arrays import are_plain, arrays, chunks, columns, ids_of, queues_of
from creche.storage._postgresql_calls import OwnRunner, Row, Runner
from creche.storage._postgresql_documents import jobs_document, joins_document

# How often it goes round again because the row it lost to was gone when it looked.
ROUNDS: Final = 10


@frozen
class Dispatched:
    """The answers in the order of the jobs, the queues in which something is ready or soon will be, and whether their
    listeners have been told.
    """

    answers: Sequence[Insertion]
    woken: frozenset[str]
    told: bool = False


@frozen
class Voice:
    """How listeners are told as something is committed: on which channel, and whose turn it is."""

    channel: str
    notifier: Notifier


@frozen
class _Noted:
    """What is known so far."""

    answers: dict[UUID, Insertion] = field(factory=dict[UUID, Insertion])
    woken: set[str] = field(factory=set[str])

    def dispatched(self, jobs: Sequence[NewJob]) -> Dispatched:
        return Dispatched([self.answers[job.id] for job in jobs], frozenset(self.woken))


async def dispatch(
    runner: OwnRunner, *, jobs: Sequence[NewJob], now: datetime | None, voice: Voice | None = None
) -> Dispatched:
    """Insert jobs on a connection of the pool; see `Storage.insert`."""
    if are_plain(jobs) and runner.speaks_utf8:
        answers: list[Insertion] = []
        written, told = await _insert_plain(runner, jobs, now, voice, answers)
        if written == len(jobs):
            return Dispatched(answers, queues_of(jobs), told)
    # If plain ones were sent before, all of them are there now, and it is left to find out how they stand.
    if len(jobs) > 1 and (any(job.callbacks for job in jobs) or len(_steps(jobs)) > 1):
        async with runner.connection.transaction():
            return await dispatch_within(runner, jobs=jobs, now=now)
    noted = _Noted()
    left = await _round(runner, in_lock_order(jobs), noted, now, first=True, attach=False)
    if any(job.callbacks for job in left):  # a single one, and it was not written
        async with runner.connection.transaction():
            return await dispatch_within(runner, jobs=jobs, now=now)
    await _rounds(runner, left, noted, now, first=False)
    return noted.dispatched(jobs)


async def _insert_plain(
    runner: OwnRunner, jobs: Sequence[NewJob], now: datetime | None, voice: Voice | None, answers: list[Insertion]
) -> tuple[int, bool]:
    """Write jobs in whose place nothing can stand but themselves; return how many were not there yet, and whether their
    listeners were told. `answers` gets what is to be said if all were written.
    """

    def parameters() -> Iterator[dict[str, Any]]:
        for chunk in chunks(jobs):
            yield {**arrays(chunk), "now": now}
        answers.extend(map(_pending, ids_of(jobs)))  # while the server works on the last ones

    if len(jobs) > 1:
        return await runner.written("insert_plain", parameters()), False
    answers.append(_pending(jobs[0].id))
    values = {**columns(jobs[0]), "now": now}
    if voice is not None:
        # Too many words that nobody has heard yet are no reason to refuse a job.
        with voice.notifier.aloud() as aloud, suppress(ProgramLimitExceeded):
            if aloud:
                return await runner.written("insert_aloud", [{**values, "channel": voice.channel}]), True
    return await runner.written("insert_one", [values]), False


def _pending(job_id: UUID) -> Insertion:
    return Insertion(job_id=job_id, status=Status.PENDING, inserted=True)


async def dispatch_within(runner: Runner, *, jobs: Sequence[NewJob], now: datetime | None) -> Dispatched:
    """Insert jobs in a transaction that has begun, and that somebody else ends; see `Storage.insert`."""
    noted = _Noted()
    for step in _steps(jobs):
        await _rounds(runner, in_lock_order(step), noted, now, first=True)
    return noted.dispatched(jobs)


def _steps(jobs: Sequence[NewJob]) -> Sequence[Sequence[NewJob]]:
    """Return the parts of a batch that can be written at once: a job that says refresh comes after those before it that
    a cached result may answer, or that answer for it by their key, so that it leaves the result as it is.
    """
    steps: list[list[NewJob]] = [[]]
    asked: set[object] = set()
    for job in jobs:
        key = None if job.idempotency_key is None else (job.queue_name, job.idempotency_key)
        if job.refresh and not asked.isdisjoint({job.fingerprint, key}):
            steps.append([])
            asked.clear()
        asked |= {key, None if job.refresh else job.fingerprint} - {None}
        steps[-1].append(job)
    return steps


async def _rounds(runner: Runner, left: Sequence[NewJob], noted: _Noted, now: datetime | None, *, first: bool) -> None:
    for number in range(ROUNDS):
        if not left:
            return
        left = await _round(runner, left, noted, now, first=first and number == 0, attach=True)
    if left:
        raise TransientConflict("the rows that stood in the place of new jobs were gone each time they were looked for")


async def _round(
    runner: Runner, jobs: Sequence[NewJob], noted: _Noted, now: datetime | None, *, first: bool, attach: bool
) -> Sequence[NewJob]:
    """Write jobs, or find what stands in their place; return those that neither could be done for.

    Without `attach`, those that have callbacks and were not written are returned too.
    """
    parameters: dict[str, Any] = {"jobs": jobs_document(jobs), "now": now, "horizon": WAKE_HORIZON}
    if first and not _entangled(jobs) and not any(job.refresh for job in jobs):
        written = await runner.rows("insert", parameters)
    else:
        # The rows they lost to are gone, or are results that have grown stale.
        written = (await runner.together(("expire_results", "insert"), parameters))[-1]
    lost = _note_written(jobs, written, noted)
    if not lost or (not attach and any(job.callbacks for job in lost)):
        return lost
    parameters = {"jobs": jobs_document(lost), "now": now}
    _note_standing(jobs, await runner.rows("find_standing", parameters), noted.answers)
    await _attach(runner, [job for job in lost if job.id in noted.answers and job.callbacks], noted, now)
    # One that was sent before is woken for again: the first answer may have been lost, and the wake with it.
    again = (job for job in lost if job.id in noted.answers and noted.answers[job.id].inserted)
    noted.woken.update(job.queue_name for job in again)
    return [job for job in lost if job.id not in noted.answers]


async def _attach(runner: Runner, jobs: Sequence[NewJob], noted: _Noted, now: datetime | None) -> None:
    """Record the callbacks of jobs that were not written with those that answer; take back the answers of rows that are
    gone.
    """
    if not jobs:
        return
    joins: dict[UUID, dict[UUID, FollowUp]] = {}
    for job in jobs:
        joins.setdefault(noted.answers[job.id].job_id, {}).update({each.id: each for each in job.callbacks})
    parameters = {
        "ids": sorted(joins),
        "joins": joins_document({job_id: callbacks.values() for job_id, callbacks in joins.items()}),
        "now": now,
    }
    held, attached, followed = await runner.together(("lock_standing", "attach", "follow_up"), parameters)
    standing = {_uuid(job_id): (Status(status), _json(result)) for job_id, status, result in held}
    for job in jobs:
        answer = noted.answers.pop(job.id)
        if answer.job_id in standing:
            status, result = standing[answer.job_id]
            noted.answers[job.id] = replace(answer, status=status, result=result)
    # While we held the row, a reserve may have passed it over.
    noted.woken.update(queue for status, queue in attached if status == Status.PENDING)
    noted.woken.update(name for (name,) in followed)


def _entangled(jobs: Sequence[NewJob]) -> bool:
    """Return whether a stale result could change who of the batch is the first with a key."""
    if len(jobs) < 2:
        return False
    return any(job.fingerprint for job in jobs) and any(job.idempotency_key is not None for job in jobs)


def _note_written(jobs: Sequence[NewJob], written: Iterable[Row], noted: _Noted) -> Sequence[NewJob]:
    """Note the answers of jobs that were inserted; return the others."""
    new: dict[UUID, tuple[str, bool]] = {_uuid(job_id): (status, soon) for job_id, status, soon in written}
    for job in jobs:
        if job.id in new:
            status, soon = new[job.id]
            noted.answers[job.id] = Insertion(
                job_id=job.id, status=Status(status), inserted=True, fingerprint=job.fingerprint
            )
            if soon:
                noted.woken.add(job.queue_name)
    return [job for job in jobs if job.id not in new]


def _note_standing(jobs: Sequence[NewJob], standing: Iterable[Row], answers: dict[UUID, Insertion]) -> None:
    """Note the answers of jobs that were not inserted, from the rows in their place, the strongest claim first."""
    place = {job.id: number for number, job in enumerate(jobs)}
    written = frozenset(answers)
    for asked_id, standing_id, status, fingerprint, result in standing:
        asked, job_id = _uuid(asked_id), _uuid(standing_id)
        came_later = job_id in written and place.get(job_id, -1) > place[asked]
        if asked in answers or came_later:  # a later job of the batch has the key that this one left unused
            continue
        inserted = asked == job_id  # the job itself, sent before
        answers[asked] = Insertion(
            job_id=job_id,
            status=Status(status),
            inserted=inserted,
            fingerprint=None if fingerprint is None else bytes(fingerprint),
            result=_json(result),
        )


def _uuid(value: Any) -> UUID:
    """Return an id: not every driver of a caller's handle knows the type."""
    return value if type(value) is UUID else UUID(str(value))


def _json(value: str | None) -> bytes | None:
    return None if value is None else value.encode()
