"""Dispatch on MySQL: new jobs written, or the rows found that stand in their place, in one round trip.

It wakes nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from asyncmy.errors import IntegrityError
from attrs import frozen

from creche._job import WAKE_HORIZON, Insertion, NewJob, Status
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._batches import in_lock_order
from creche.storage._mysql_calls import DUPLICATE, Row, chunks, together, undone_on_error
from creche.storage._mysql_literals import Expression, clock, render
from creche.storage._pool import TransientConflict


@frozen
class Dispatched:
    """The answers in the order of the jobs, and the queues in which something is ready or soon will be."""

    answers: Sequence[Insertion]
    woken: frozenset[str]


async def dispatch(
    connection: Connection, *, sql: Mapping[str, str], jobs: Sequence[NewJob], now: datetime | None
) -> Dispatched:
    """Insert jobs; see `Storage.insert`."""
    dispatch = _Dispatch(connection, sql, clock(now))
    if all(map(rows.is_plain, jobs)):
        try:
            return await dispatch.plain(jobs)
        except IntegrityError as error:
            if error.args[0] != DUPLICATE:
                raise
            # One of them was sent before.
    return await dispatch.careful(in_lock_order(jobs), asked=jobs)


@frozen
class _Dispatch:
    connection: Connection
    sql: Mapping[str, str]
    now: Expression

    async def plain(self, jobs: Sequence[NewJob]) -> Dispatched:
        """Insert jobs in whose place nothing can stand but themselves."""
        statements = self._inserts(jobs)
        if len(statements) == 1:
            async with undone_on_error(self.connection):
                await self.connection.run(statements[0])
        else:
            await together(self.connection, statements)
        answers = [
            Insertion(job_id=job.id, status=Status(rows.plain_status(job)), inserted=True, fingerprint=None)
            for job in jobs
        ]
        return Dispatched(answers, frozenset(job.queue_name for job in jobs if job.delay <= WAKE_HORIZON))

    async def careful(self, jobs: Sequence[NewJob], *, asked: Sequence[NewJob]) -> Dispatched:
        """Insert jobs but for those in whose place a row stands, and find that; `asked` is the order of the answers.

        It looks first, without a lock. Not that it could decide by that; but an insert that meets a name which is taken
        locks the gap before it, and waits for whoever has the row: other dispatches would have to wait with it.
        """
        find = self._find(jobs)
        seen = [row for text in find for row in (await self.connection.run(text))[0].rows]
        if len({row[0] for row in seen}) == len(jobs):
            return self._answer(jobs, asked, seen, {row[2] for row in seen})
        before = [render(self.sql["statuses"], {"ids": [job.id for job in jobs]})]
        expire = list(self._expire({job.fingerprint for job in jobs if job.fingerprint is not None}))
        inserts = [f"{statement}\n{self.sql['unless_standing']}" for statement in self._inserts(jobs)]
        answers = await together(self.connection, [*before, *expire, *inserts, *find])
        sent_before = {row[0] for row in answers[0].rows}
        standing = [row for answer in answers[-len(find) :] for row in answer.rows]
        return self._answer(jobs, asked, standing, sent_before)

    def _inserts(self, jobs: Sequence[NewJob]) -> Sequence[str]:
        values = chunks([rows.job_row(job, self.now) for job in jobs], self.connection.max_allowed_packet)
        return [render(self.sql["insert"], {"jobs": Expression(",\n".join(chunk))}) for chunk in values]

    def _expire(self, fingerprints: Iterable[bytes]) -> Iterable[str]:
        if fingerprints := sorted(fingerprints):
            yield render(self.sql["expire_results"], {"fingerprints": fingerprints, "now": self.now})

    def _find(self, jobs: Sequence[NewJob]) -> Sequence[str]:
        elements = [rows.asked_element(place, job) for place, job in enumerate(jobs)]
        return [
            render(
                self.sql["find_standing"],
                {"jobs": rows.joined(chunk), "now": self.now, "horizon": rows.microseconds(WAKE_HORIZON)},
            )
            for chunk in chunks(elements, self.connection.max_allowed_packet // 2)
        ]

    @staticmethod
    def _answer(
        jobs: Sequence[NewJob], asked: Sequence[NewJob], standing: Sequence[Row], sent_before: set[bytes]
    ) -> Dispatched:
        places: dict[bytes, int] = {}
        for number, job in enumerate(jobs):
            places.setdefault(job.id.bytes, number)
        answers: dict[UUID, Insertion] = {}
        woken: set[str] = set()
        for row in standing:
            place: int = row[0]
            claim, job_id, status, fingerprint, result, soon = row[1:]
            job = jobs[place]
            # A later job of this batch may have taken the key that this one left unused: it stood in nobody's place.
            came_later = job_id not in sent_before and places.get(job_id, -1) > place
            if job.id in answers or came_later:
                continue
            answers[job.id] = Insertion(
                job_id=UUID(bytes=job_id),
                status=Status(status),
                inserted=claim == 1,
                fingerprint=fingerprint,
                result=None if result is None else result.encode(),
            )
            # One that was sent before is woken for again: the first answer may have been lost, and the wake with it.
            if soon:
                woken.add(job.queue_name)
        if len(answers) < len(places):
            raise TransientConflict("the rows that stood in the place of new jobs were gone when they were looked for")
        return Dispatched([answers[job.id] for job in asked], frozenset(woken))
