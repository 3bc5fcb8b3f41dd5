"""Dispatch on MySQL: new jobs written, or the rows found that stand in their place, and callbacks recorded with them.

In a transaction of our own, in as few round trips as possible, or in one of the caller's, statement by statement. It
wakes nobody.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

import msgspec
from asyncmy.errors import IntegrityError, MySQLError
from attrs import define, evolve, field, frozen

from creche._job import WAKE_HORIZON, FollowUp, Insertion, NewJob, Status
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._batches import in_lock_order
from creche.storage._handles import Run
from creche.storage._mysql_calls import BEGIN, COMMIT, DUPLICATE, Row, chunks, send, undone_on_error
from creche.storage._mysql_ends import follow_now
from creche.storage._mysql_literals import Expression, clock, render
from creche.storage._pool import TransientConflict

UNLOCKED: Final = Expression("")
LOCKED: Final = Expression("FOR UPDATE")

# Bytes of a statement that any server takes: how many more a caller's own would take, nobody knows.
MODEST: Final = 1 << 20

# How often an insert in a caller's transaction is tried that lost to a row which then did not answer for it.
ROUNDS: Final = 5

# How jobs are seen by those who look without a lock, outside of the caller's transaction.
Look: TypeAlias = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[Row]]]]


@frozen
class Dispatched:
    """The answers in the order of the jobs, and the queues in which something is ready or soon will be."""

    answers: Sequence[Insertion]
    woken: frozenset[str]


class _Again(TransientConflict):
    """A row that a job lost to did not answer for it: it had changed since it was seen."""


# --- where statements go ----------------------------------------------------------------------------


class Session(Protocol):
    """Where a dispatch is written."""

    @property
    def ours(self) -> bool:
        """Whether the transaction is begun and ended here, in READ COMMITTED, and can be run again."""
        ...

    @property
    def most(self) -> int:
        """Bytes of a statement."""
        ...

    async def look(self, statements: Sequence[str]) -> Sequence[Sequence[Row]]:
        """Run statements that only look, without a lock and outside of the transaction; return their rows."""
        ...

    async def write(self, statements: Sequence[str]) -> Sequence[Sequence[Row]]:
        """Run statements in the transaction; return their rows."""
        ...


@frozen
class OurSession:
    """A pooled connection, in transactions of its own."""

    connection: Connection
    ours: bool = field(default=True, init=False)

    @property
    def most(self) -> int:
        """See `Session.most`."""
        return self.connection.max_allowed_packet

    async def look(self, statements: Sequence[str]) -> Sequence[Sequence[Row]]:
        """See `Session.look`."""
        return [(await self.connection.run(text))[0].rows for text in statements]

    async def write(self, statements: Sequence[str]) -> Sequence[Sequence[Row]]:
        """See `Session.write`."""
        return [answer.rows for answer in await send(self.connection, statements)]


@frozen
class TheirSession:
    """A transaction of the caller's. What only looks goes elsewhere: a first SELECT would fix what theirs sees."""

    run: Run
    look_elsewhere: Look
    ours: bool = field(default=False, init=False)
    most: int = field(default=MODEST, init=False)

    async def look(self, statements: Sequence[str]) -> Sequence[Sequence[Row]]:
        """See `Session.look`."""
        return await self.look_elsewhere(statements)

    async def write(self, statements: Sequence[str]) -> Sequence[Sequence[Row]]:
        """See `Session.write`."""
        return [(await self.run(text)).rows for text in statements]


# --- the dispatch -----------------------------------------------------------------------------------


async def dispatch(
    session: Session, *, sql: Mapping[str, str], jobs: Sequence[NewJob], now: datetime | None
) -> Dispatched:
    """Insert jobs; see `Storage.insert`."""
    write = _Writer(session, sql, clock(now))
    if session.ours and all(map(rows.is_plain, jobs)):
        try:
            return await write.plain(jobs)
        except IntegrityError as error:
            if error.args[0] != DUPLICATE:
                raise
            # One of them was sent before.
    return await _Dispatch(write, in_lock_order(jobs), jobs).run()


@frozen
class _Writer:
    """The statements of a dispatch, and where they go."""

    session: Session
    sql: Mapping[str, str]
    now: Expression

    async def plain(self, jobs: Sequence[NewJob]) -> Dispatched:
        """Insert jobs in whose place nothing can stand but themselves."""
        statements = self.inserts(jobs)
        if len(statements) == 1:
            async with self.undone():
                await self.session.write(statements)
        else:
            async with self.undone():
                await self.session.write([BEGIN, *statements, COMMIT])
        answers = [
            Insertion(job_id=job.id, status=Status(rows.plain_status(job)), inserted=True, fingerprint=None)
            for job in jobs
        ]
        return Dispatched(answers, frozenset(job.queue_name for job in jobs if job.delay < WAKE_HORIZON))

    @asynccontextmanager
    async def undone(self) -> AsyncGenerator[None]:
        """Undo what failed, if the transaction is ours."""
        if isinstance(self.session, OurSession):
            async with undone_on_error(self.session.connection, (MySQLError, TransientConflict)):
                yield
        else:
            yield

    def render(self, statement: str, **parameters: object) -> str:
        """Return a statement that means the same in whatever mode the session is."""
        return render(self.sql[statement], parameters, anywhere=not self.session.ours)

    def inserts(self, jobs: Iterable[NewJob]) -> Sequence[str]:
        """Return the statements that insert jobs."""
        anywhere = not self.session.ours
        elements = [rows.job_row(job, self.now, anywhere=anywhere) for job in jobs]
        values = chunks(elements, self.session.most, quoted=False)
        return [self.render("insert", jobs=Expression(",\n".join(chunk))) for chunk in values]

    def find(
        self, jobs: Mapping[int, NewJob], claims: Collection[int] = rows.CLAIMS, *, locked: Expression = UNLOCKED
    ) -> Sequence[str]:
        """Return the statements that find what stands in the place of jobs, each with its place."""
        elements = [rows.asked_element(place, job, claims) for place, job in jobs.items()]
        horizon = rows.microseconds(WAKE_HORIZON)
        return [
            self.render("find_standing", jobs=rows.joined(chunk), now=self.now, horizon=horizon, locked=locked)
            for chunk in chunks(elements, self.session.most // 2)
        ]


@define
class _Standing:
    """What answers for a job."""

    job_id: bytes
    claim: int
    status: Status
    fingerprint: bytes | None
    result: bytes | None
    recorded: frozenset[UUID] = frozenset()  # callbacks that stand in its row, if somebody has just written it


@define
class _Dispatch:
    """One batch. Jobs are known by their places in the order in which they are locked; of an id sent twice, the first.

    Attributes:
        jobs: in the order of the locks.
        asked: in the order of the answers.
    """

    _write: _Writer
    jobs: Sequence[NewJob]
    asked: Sequence[NewJob]
    _places: dict[UUID, int] = field(factory=dict[UUID, int], init=False)
    _answers: dict[int, _Standing] = field(factory=dict[int, _Standing], init=False)
    # Fingerprints that somebody in this batch refreshes: no result answers for them from then on.
    _refused: set[bytes] = field(factory=set[bytes], init=False)
    _stale: set[bytes] = field(factory=set[bytes], init=False)
    _released: set[bytes] = field(factory=set[bytes], init=False)
    _sent_before: set[bytes] = field(factory=set[bytes], init=False)
    # Whether a result may yet have to be let go: who takes a key of this batch is known only when it is written.
    _entangled: bool = field(default=False, init=False)
    _woken: set[str] = field(factory=set[str], init=False)

    def __attrs_post_init__(self) -> None:
        for place, job in enumerate(self.jobs):
            self._places.setdefault(job.id, place)

    async def run(self) -> Dispatched:
        """Insert, or find what stands there; record callbacks.

        It looks first, without a lock. Not that it could decide by that; but an insert that meets a name which is taken
        locks the gap before it, and waits for whoever has the row: other dispatches would have to wait with it.
        """
        unique = {place: self.jobs[place] for place in self._places.values()}
        seen = _flat(await self._write.session.look(self._write.find(unique)))
        self._sent_before = {row[2] for row in seen if row[1] == rows.BY_ID}
        self._take(seen)
        if len(self._answers) == len(self._places) and not any(job.callbacks for job in self.jobs):
            return self._dispatched()
        async with self._write.undone():
            if self._write.session.ours:
                await self._run_ours()
            else:
                await self._run_theirs()
        return self._dispatched()

    async def _run_ours(self) -> None:
        """In as few round trips as possible; if the rows changed since they were seen, all of it again."""
        session = self._write.session
        missing = self._missing()
        find: Sequence[str] = self._write.find(missing) if missing else ()
        statements = [BEGIN, *self._let_go(), *self._inserts(missing), *find]
        if not self._entangled and not any(job.callbacks for job in self.jobs):
            answers = await session.write([*statements, COMMIT])
            self._take(_flat(answers[-1 - len(find) : -1]))
            self._complain()
            return
        answers = await session.write(statements)
        self._take(_flat(answers[len(answers) - len(find) :]))
        while self._stale and (missing := self._missing()):
            find = self._write.find(missing)
            answers = await session.write([*self._let_go(), *self._inserts(missing), *find])
            self._take(_flat(answers[len(answers) - len(find) :]))
        self._complain()
        await session.write([*await self._callbacks(), COMMIT])

    async def _run_theirs(self) -> None:
        """Statement by statement. Nothing can be undone, so what changed since it was seen is tried again by itself.

        Their isolation may be REPEATABLE READ: a plain SELECT doesn't see what the insert lost to, so that is locked.
        But what isn't there is not looked for so, for then it would be the gap, while their transaction lasts.
        """
        session = self._write.session
        for _ in range(ROUNDS):
            if missing := self._missing():
                await session.write([*self._let_go(), *self._inserts(missing)])
                self._take(_flat(await session.write(self._write.find(missing, {rows.BY_ID}))))
                for claims in ({rows.BY_KEY}, {rows.BY_FINGERPRINT}, {rows.BY_ID}):
                    if lost := {place: job for place, job in self._missing().items() if _has(job, claims)}:
                        find = self._write.find(lost, claims, locked=LOCKED)
                        self._take(_flat(await session.write(find)))
            if not self._missing():
                try:
                    follow_ups = await self._callbacks()
                except _Again:
                    continue
                await session.write(follow_ups)
                return
        self._complain()

    def _missing(self) -> dict[int, NewJob]:
        return {place: self.jobs[place] for place in self._places.values() if place not in self._answers}

    def _complain(self) -> None:
        if self._missing():
            raise _Again("the rows that stood in the place of new jobs were gone when they were looked for")

    def _let_go(self) -> Sequence[str]:
        stale, self._stale = sorted(self._stale), set()
        self._released.update(stale)
        return [self._write.render("let_go", ids=stale)] if stale else []

    def _inserts(self, jobs: Mapping[int, NewJob]) -> Sequence[str]:
        if not jobs:
            return ()
        end = self._write.sql["unless_standing"]
        return [f"{insert}\n{end}" for insert in self._write.inserts(jobs.values())]

    # --- what stands there

    def _take(self, standing: Sequence[Row]) -> None:
        """Let the rows that were found answer for jobs, the strongest claim first."""
        found: dict[int, list[Row]] = {}
        for row in standing:
            found.setdefault(row[0], []).append(row)
        unused: set[tuple[str, str | None]] = set()
        for job in self.asked:
            place = self._places[job.id]
            if place in self._answers:
                continue
            for row in sorted(found.get(place, ()), key=lambda row: row[1]):
                # An earlier job of this batch will take the key, and a key is the stronger claim.
                taken = row[1] == rows.BY_FINGERPRINT and (job.queue_name, job.idempotency_key) in unused
                self._entangled |= taken and row[7] is not None
                if not taken and self._answers_for(job, place, row):
                    _, claim, job_id, status, fingerprint, result, soon, _, ids = row
                    # Of a row that was here before nothing is known until it is locked.
                    recorded = frozenset(() if job_id in self._sent_before else map(UUID, _strings(ids)))
                    self._answers[place] = _Standing(job_id, claim, Status(status), fingerprint, result, recorded)
                    # One that was sent before is woken for again: the first answer may have been lost, and its wake.
                    if soon:
                        self._woken.add(job.queue_name)
                    break
            if place not in self._answers:
                if job.idempotency_key is not None:
                    unused.add((job.queue_name, job.idempotency_key))
                if job.refresh and job.fingerprint is not None:
                    self._refused.add(job.fingerprint)

    def _answers_for(self, job: NewJob, place: int, row: Row) -> bool:
        claim, job_id, stale = row[1], row[2], row[7]
        # A later job of this batch may have taken the key that this one left unused: it stood in nobody's place.
        if job_id not in self._sent_before and self._places.get(UUID(bytes=job_id), -1) > place:
            return False
        if claim != rows.BY_FINGERPRINT or stale is None:
            return True
        if stale or job.refresh or job.fingerprint in self._refused:
            self._stale.add(job_id)
            return False
        return True

    # --- callbacks

    async def _callbacks(self) -> list[str]:
        """Lock the rows that answer for jobs with callbacks; return the statements that record these, or write them."""
        wanted: dict[bytes, list[NewJob]] = {}
        for job in self.asked:
            standing = self._answers[self._places[job.id]]
            if not standing.recorded.issuperset(each.id for each in job.callbacks):
                wanted.setdefault(standing.job_id, []).append(job)
        if not wanted:
            return []
        sent = {each.id for brought in wanted.values() for job in brought for each in job.callbacks}
        locked, written = await self._write.session.write(
            [
                self._write.render("standing", now=self._write.now, ids=sorted(wanted)),
                self._write.render("statuses", ids=sorted(sent)),
            ]
        )
        found = {row[0]: row for row in locked}
        known = {UUID(bytes=row[0]) for row in written}
        statements: list[str] = []
        ended: list[UUID] = []
        for job_id, brought in wanted.items():
            row = found.get(job_id)
            for job in brought:
                self._see_again(job, row)
            assert row is not None  # noqa: S101 - _see_again has seen to it
            status, queue_name, ids = Status(row[1]), row[6], row[7]
            new = _unknown(brought, known | set(map(UUID, _strings(ids))))
            if not new:
                continue
            statements.append(self._write.render("attach", id=job_id, callbacks=rows.callbacks_document(new)))
            if not status.active:
                ended.append(UUID(bytes=job_id))
                self._woken |= {each.queue_name for each in new if each.on.calls_for(status)}
            elif status is Status.PENDING:
                self._woken.add(queue_name.decode())
        if ended:
            statements += follow_now(self._write.render, ended, now=self._write.now)
        return statements

    def _see_again(self, job: NewJob, row: Row | None) -> None:
        """Answer by the row as it is below the lock."""
        place = self._places[job.id]
        standing = self._answers[place]
        if row is not None:
            _, status, _, result, flies, stale, _, _ = row
            # A job that came before the one that refreshes was answered by the result that this took from the others.
            flies = flies or row[0] in self._released
            if standing.claim != rows.BY_FINGERPRINT or (flies and not stale and (stale is None or not job.refresh)):
                self._answers[place] = evolve(standing, status=Status(status), result=result)
                return
        del self._answers[place]
        if row is not None and row[5] is not None:
            self._stale.add(row[0])
        raise _Again("a row that stood in the place of a new job was another when it was locked")

    # --- the end

    def _dispatched(self) -> Dispatched:
        return Dispatched([self._insertion(job) for job in self.asked], frozenset(self._woken))

    def _insertion(self, job: NewJob) -> Insertion:
        standing = self._answers[self._places[job.id]]
        return Insertion(
            job_id=UUID(bytes=standing.job_id),
            status=standing.status,
            inserted=standing.claim == rows.BY_ID,
            fingerprint=standing.fingerprint,
            result=standing.result,
        )


def _has(job: NewJob, claims: set[int]) -> bool:
    if rows.BY_KEY in claims:
        return job.idempotency_key is not None
    return rows.BY_FINGERPRINT not in claims or job.fingerprint is not None


def _unknown(jobs: Iterable[NewJob], known: Collection[UUID]) -> list[FollowUp]:
    """Return the callbacks that these jobs bring, each once, but for those that are known."""
    brought = {each.id: each for job in reversed([*jobs]) for each in reversed(job.callbacks)}
    return [each for each in reversed([*brought.values()]) if each.id not in known]


_IDS: Final = msgspec.json.Decoder(list[str])


def _strings(text: Any) -> Sequence[str]:
    """Return an array of strings, which some drivers have decoded already."""
    return () if text is None else _IDS.decode(text) if isinstance(text, str | bytes) else text


def _flat(answers: Iterable[Sequence[Row]]) -> list[Row]:
    return [row for answer in answers for row in answer]
