"""Jobs in PostgreSQL: turns the contract into statements and rows.

It opens no socket, waits for no clock and keeps nothing between calls but whether there was a backlog, and how long a
reserve takes; `_postgresql_calls.py` reaches the server, and the statements, each with its reasons, stand in
`sql/postgresql/`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint
from attrs import define
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row

from creche._job import (
    RATE_WINDOW,
    WATCH_LIMIT,
    DeadLetter,
    End,
    Extension,
    Finding,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    Presence,
    Progress,
    QueueStats,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
    WorkerRecord,
    check_integer,
    check_seconds,
)
from creche.abc import Capabilities, Listener, Transaction
from creche.errors import OptionInvalid, QueueNotOpen, StorageUnavailable, UsageError
from creche.storage import _postgresql_documents as documents
from creche.storage import mask
from creche.storage._calls import Calls
from creche.storage._hosts import ALLOWANCE
from creche.storage._pool import TransientConflict
from creche.storage._postgresql_calls import Link, OwnRunner, Row, bare, rows, split_options
from creche.storage._postgresql_dispatch import Dispatched, Voice, dispatch, dispatch_within
from creche.storage._postgresql_doctor import Doctor
from creche.storage._postgresql_handles import HandleRunner, json_texts, through
from creche.storage._postgresql_listener import PostgreSQLListener, channel_name
from creche.storage._postgresql_schema import Schema
from creche.storage._postgresql_settle import Ended, end_attempts
from creche.storage._postgresql_transaction import Transactions
from creche.storage._postgresql_upkeep import maintain
from creche.storage._postgresql_views import queue_stats, worker_records
from creche.storage._presences import encode_presence
from creche.storage._psycopg import Prepare, PsycopgDriver
from creche.storage._rows import dead_letter, end, job_record
from creche.storage._sql import load
from creche.storage._wakes import Wakes

_CAPABILITIES: Final = Capabilities(listen=True, shared=True, durable=True)

# Seconds between two notifications of a process.
NOTIFY_PAUSE: Final = 0.005

# Seconds after which a watch is noted again.
WATCH_AGAIN: Final = WATCH_LIMIT / 4

# Seconds, and so many times what is usual, that a reserve by a plan that was kept may take; the weight of the newest.
SLOW: Final = 0.005
_FACTOR: Final = 3.0
_WEIGHT: Final = 0.2

# How often a statement may have to be sent before it is prepared, at most.
_OFTENEST: Final = 1_000

_NO_ROWS: Final[Sequence[Row]] = ()
_REVIVE: Final = ("expire_rivals", "retry", "unbury")
_DELETE: Final = ("delete", "unbury")

T = TypeVar("T")


@define
class _Opened:
    """What exists only between entering and leaving."""

    channel: str
    schema: str
    say: Callable[[Sequence[str]], Awaitable[None]]
    wakes: Wakes


class PostgreSQLStorage:
    """Keeps jobs in tables of a PostgreSQL database, 12 or newer, which `migrate` makes there.

    They stand in the first schema of the connection's `search_path`. Nothing is kept in a session, so a pooler such as
    PgBouncer may stand in between, also one that hands out connections per transaction (it makes listeners deaf).

    Args:
        dsn: a URL, `postgresql://user:password@host/database?sslmode=require`, or libpq's `host=… dbname=…`. A URL
            may also carry the options below. Of several hosts, `h1,h2:5433`, the first is used that takes writes.
        pool_size: how many connections are used for calls, at most, and how many for handlers' transactions; each
            listener has one more.
        call_timeout: seconds after which a call is given up as StorageUnavailable, whatever it was waiting for;
            the end of a transaction may take two more. A lease must be a good deal longer.
        prepare_threshold: prepare a statement that was sent this many times before. "auto": dispatches, and
            reserves of idle workers, where the server itself is on the other end of the connection; a pooler may hand
            the next statement to a server connection that has not heard of it. None, in a DSN "never": none.
        skew_allowance: seconds after which a lease that has run out is taken back: by how much the clocks of those
            servers differ, at most, of which one may take another's place. None: two with several hosts, else none.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 5,
        call_timeout: float = 10.0,
        prepare_threshold: Prepare = "auto",
        skew_allowance: float | None = None,
    ) -> None:
        dsn, options = split_options(dsn)
        self._name = mask(dsn)
        self._driver = PsycopgDriver(dsn)
        self._prepare: Prepare = _check_prepare(options.get("prepare_threshold", prepare_threshold))
        size = check_integer("pool_size", options.get("pool_size", pool_size), 1, 1_000)
        timeout = check_seconds("call_timeout", options.get("call_timeout", call_timeout), positive=True)
        allowance = options.get("skew_allowance", skew_allowance)
        self._allowance = None if allowance is None else check_seconds("skew_allowance", allowance)
        self._calls = Calls(self._driver.preparing(self._prepare), pool_size=size, timeout=timeout)
        self._dialect = load("postgresql")
        self._schema = Schema(self._dialect, self._driver)
        self._known: str | None = None  # the schema's name, to a twin
        self._sql = {name: bare(text) for name, text in self._dialect.statements.items()}
        self._size = size
        self._transactions = Transactions(self._driver, sql=self._sql, size=size, timeout=timeout)
        self._opened: _Opened | None = None
        self._backlog = False
        self._usual = 0.0

    def __repr__(self) -> str:
        return f"<PostgreSQLStorage {self._name}>"

    @property
    def capabilities(self) -> Capabilities:
        """Wakes by NOTIFY; a listener that can't hear through a pooler says so when it is made."""
        return _CAPABILITIES

    @property
    def conflicts(self) -> int:
        """See `Storage.conflicts`."""
        return self._calls.conflicts

    # --- lifecycle ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise UsageError(f"{self!r} is open already: make another one")
        schema = self._known or await self._checked()
        channel = channel_name(schema)
        self._calls.open()
        self._transactions.open(schema)
        say = partial(self._notify, channel)
        wakes = await Wakes.open(say, pause=NOTIFY_PAUSE, server=self._driver.server, timeout=self._calls.timeout)
        self._opened = _Opened(channel, schema, say, wakes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        opened = self._opened
        if opened is None:
            return
        try:
            await opened.wakes.notifier.flush()
        finally:
            self._opened = None
            try:
                await opened.wakes.end()
            finally:
                await self._transactions.aclose()
                await self._calls.aclose()

    async def _checked(self) -> str:
        with anyio.move_on_after(self._calls.timeout):
            return await self._schema.check()
        raise StorageUnavailable(f"{self._name}: PostgreSQL gave no answer in {self._calls.timeout:g} s")

    async def migrate(self) -> Sequence[str]:
        """See `Storage.migrate`. It waits as long as it takes."""
        return [migration.name for migration in await self._schema.migrate()]

    async def pending_migrations(self) -> Sequence[tuple[str, str]]:
        """See `Storage.pending_migrations`."""
        return [(migration.name, migration.sql) for migration in await self._schema.pending()]

    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:
        """See `Storage.check`. It has up to three connections of its own."""
        doctor = Doctor(self._driver, self._dialect, self._sql, name=self._name, size=self._size)
        return await doctor.examine(concurrency=concurrency)

    def twin(self) -> PostgreSQLStorage:
        """See `Storage.twin`. It has one connection, from its first call on. The twin of an open storage opens without
        asking for the schema, which was found already.
        """
        twin = PostgreSQLStorage(
            self._driver.dsn,
            pool_size=1,
            call_timeout=self._calls.timeout,
            prepare_threshold=self._prepare,
            skew_allowance=self._allowance,
        )
        twin._known = self._known if self._opened is None else self._opened.schema
        return twin

    # --- dispatch -----------------------------------------------------------------------------------

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        """See `Storage.insert`.

        As `connection` it takes psycopg's (both kinds), asyncpg's, and SQLAlchemy's connections and sessions (both
        kinds, with any driver), in a transaction. Those that are not async block the event loop for as long as their
        statements take. Its search_path does not matter.
        """
        if connection is not None:
            return await self._insert_through(connection, jobs, now)

        voice = None if self._opened is None else Voice(self._opened.channel, self._opened.wakes.notifier)

        async def work(link: Link) -> Dispatched:
            return await dispatch(OwnRunner(link, self._sql), jobs=jobs, now=now, voice=voice)

        dispatched = await self._run(jobs, work, Dispatched((), frozenset()))
        self._wake(dispatched.woken, told=dispatched.told)
        return dispatched.answers

    async def _insert_through(
        self, handle: object, jobs: Sequence[NewJob], now: datetime | None
    ) -> Sequence[Insertion]:
        opened = self._opened
        if opened is None:
            raise QueueNotOpen
        run = through(handle)
        await checkpoint()
        if not jobs:
            return ()
        runner = HandleRunner(run, self._sql, opened.schema)
        dispatched = await dispatch_within(runner, jobs=jobs, now=now)
        if dispatched.woken:
            await runner.rows(
                "notify_within", {"channel": opened.channel, "queues": json_texts(sorted(dispatched.woken))}
            )
        return dispatched.answers

    # --- leases -------------------------------------------------------------------------------------

    async def reserve(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        lease: float,
        worker: str,
        nonce: int,
        types: Collection[str] | None = None,
        now: datetime | None = None,
    ) -> Reservation:
        """See `Storage.reserve`."""
        parameters = {
            "queues": documents.array(tuple(dict.fromkeys(queues))),
            "limit": limit,
            "lease": lease,
            "worker": worker,
            "nonce": nonce,
            "types": None if types is None else documents.array(tuple(types)),
            "now": now,
        }
        answer = await self._calls.run(partial(self._reserve, parameters))
        jobs = [documents.reserved_job(row, nonce) for row in answer if row[1] is not None]
        self._backlog = len(jobs) >= limit
        return Reservation(jobs=jobs, next_due_in=documents.seconds_until(answer[0][0]))

    async def _reserve(self, parameters: dict[str, Any], link: Link) -> Sequence[Row]:
        """Run the statement: while little is found, by a plan that is kept, for to make one is a third of all it does.

        The plan may be that of a table which held nothing. So with a backlog it is made anew each time; and if it takes
        much longer than it used to, the next one is.
        """
        steady = not self._backlog
        began = monotonic()
        answer = await rows(link, self._sql["reserve"], parameters, steady=steady)
        took = monotonic() - began
        if steady:
            usual = self._usual or took
            self._usual = usual + (took - usual) * _WEIGHT
            if took > SLOW + _FACTOR * usual:
                link.replan()
        return answer

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        """See `Storage.extend`."""
        given = frozenset(leases)
        parameters = {"leases": documents.leases_document(given, progress), "seconds": seconds, "now": now}
        answer = await self._rows(given, "extend", parameters)
        held = documents.by_lease(answer)
        return Extension(
            held=frozenset(held),
            lost=given - held.keys(),
            cancel_requested=frozenset(lease for lease, (asked,) in held.items() if asked),
        )

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        """See `Storage.settle`."""
        ended = Ended()

        async def work(connection: Link) -> None:
            await end_attempts(OwnRunner(connection, self._sql), settlements, ended, retention=retention, now=now)

        await self._run(settlements, work, None)
        self._wake(ended.woken)
        accepted = frozenset(ended.written | ended.before)
        if len(accepted) == len(settlements):
            return Settled(accepted=accepted, lost=frozenset())
        given = frozenset(settlement.lease for settlement in settlements)
        return Settled(accepted=accepted, lost=given - accepted, gone=frozenset(ended.gone))

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`."""
        allowance = self._allowance
        if allowance is None:
            allowance = ALLOWANCE if self._driver.several else 0.0
        work = partial(maintain, sql=self._sql, limit=limit, retention=retention, allowance=allowance, now=now)
        maintained = await self._calls.run(work)
        self._wake(maintained.woken)
        return maintained.upkeep

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""
        parameters = {"ids": list(job_ids), "now": now}

        async def work(connection: Link) -> Sequence[Sequence[Row]]:
            return await OwnRunner(connection, self._sql).together(("cancel", "follow_up"), parameters)

        nothing: Sequence[Sequence[Row]] = (_NO_ROWS, _NO_ROWS)
        answer, followed = await self._run(job_ids, work, nothing)
        self._wake({name for (name,) in followed}.union(holder for _, _, holder in answer if holder is not None))
        return {job_id: Status(status) for job_id, status, _ in answer}

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        parameters = {"ids": list(job_ids), "now": now}

        async def work(connection: Link) -> Sequence[Row]:
            try:
                return (await OwnRunner(connection, self._sql).together(_REVIVE, parameters))[1]
            except UniqueViolation as error:
                raise TransientConflict("a dispatch took a fingerprint just then") from error

        answer = await self._run(job_ids, work, _NO_ROWS)
        self._wake({queue for _, _, queue in answer if queue is not None})
        return {job_id: Status(status) for job_id, status, _ in answer}

    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        """See `Storage.delete`."""
        parameters = {"ids": list(job_ids)}

        async def work(connection: Link) -> Sequence[Row]:
            return (await OwnRunner(connection, self._sql).together(_DELETE, parameters))[0]

        answer = await self._run(job_ids, work, _NO_ROWS)
        self._wake({queue for _, _, queue in answer if queue is not None})
        return {job_id: Status(status) for job_id, status, _ in answer}

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """See `Storage.find`."""
        if not job_ids:
            await checkpoint()
            return {}
        records = [job_record(row) for row in await self._named("find", {"ids": list(job_ids)})]
        return {record.id: record for record in records}

    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        """See `Storage.watch`."""
        parameters = {"ids": sorted(job_ids), "watcher": watcher, "over": sorted(over), "again": WATCH_AGAIN}
        notes = [name for name, ids in {"unwatch": over, "watch": job_ids}.items() if watcher is not None and ids]

        async def work(connection: Link) -> Sequence[Row]:
            runner = OwnRunner(connection, self._sql)
            if notes:  # committed before we look: who ends a job later finds them, and who did so before is seen
                await runner.together(notes, parameters)
            return await runner.rows("ends", parameters) if job_ids else _NO_ROWS

        answer = await self._run([*job_ids, *notes], work, _NO_ROWS)
        return {job_id: end(status, result, errors) for job_id, status, result, errors in answer}

    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        """See `Storage.list`."""
        parameters = {
            "queues": documents.texts(where.queues),
            "types": documents.texts(where.types),
            "statuses": documents.texts(where.statuses),
            "before": before,
            "limit": limit,
        }
        return [job_record(row) for row in await self._named("list", parameters)]

    async def dead_letters(self, limit: int, *, before: UUID | None = None) -> Sequence[DeadLetter]:
        """See `Storage.dead_letters`."""
        return [dead_letter(row) for row in await self._named("dead_letters", {"before": before, "limit": limit})]

    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        """See `Storage.stats`."""
        return queue_stats(await self._ask("stats", {"now": now, "window": RATE_WINDOW}))

    # --- queues, and who serves them ----------------------------------------------------------------

    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        """See `Storage.pause`."""
        await self._rows(queues, "pause", {"queues": sorted(set(queues)), "now": now})

    async def resume(self, queues: Collection[str]) -> None:
        """See `Storage.resume`."""
        await self._set(queues, "resume", {"queues": sorted(set(queues))})
        self._wake(queues)

    async def set_retention(self, queue_name: str, retention: Retention | None) -> None:
        """See `Storage.set_retention`."""
        kept = {status: getattr(retention, status, None) for status in ("completed", "failed", "cancelled")}
        await self._set([queue_name], "set_retention", {"queue": queue_name, "queues": [queue_name], **kept})

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        """See `Storage.announce`."""
        said = {"name": presence.name, "presence": encode_presence(presence), "ttl": ttl, "now": now}
        await self._ask("announce", said)

    async def withdraw(self, name: str) -> None:
        """See `Storage.withdraw`."""
        await self._ask("withdraw", {"name": name})

    async def workers(self, *, now: datetime | None = None) -> Sequence[WorkerRecord]:
        """See `Storage.workers`."""
        return worker_records(await self._ask("workers", {"now": now}))

    # --- transactions and wakes ---------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        """See `Storage.transaction`. Its `connection` is psycopg's `AsyncConnection`, on asyncio and on trio; what is
        set on it or in its session is gone afterwards.
        """
        async with self._transactions.begin(self._wake) as transaction:
            yield transaction

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        """See `Storage.listen`."""
        opened = self._opened
        if opened is None:
            raise QueueNotOpen
        listener = PostgreSQLListener(queues, self._driver, channel=opened.channel, say=opened.say)
        async with opened.wakes.heard(listener):
            yield listener

    async def _notify(self, channel: str, words: Sequence[str]) -> None:
        await self._ask("notify", {"channel": channel, "queues": words})

    def _wake(self, queues: Collection[str], *, told: bool = False) -> None:
        if self._opened is not None:
            self._opened.wakes.wake(queues, told=told)

    # --- statements ---------------------------------------------------------------------------------

    async def _run(self, batch: Collection[object], work: Callable[[Link], Awaitable[T]], nothing: T) -> T:
        if batch:
            return await self._calls.run(work)
        await checkpoint()
        return nothing

    async def _rows(self, batch: Collection[object], name: str, parameters: dict[str, Any]) -> Sequence[Row]:
        return await self._run(batch, partial(rows, statement=self._sql[name], parameters=parameters), _NO_ROWS)

    async def _ask(self, name: str, parameters: dict[str, Any]) -> Sequence[Row]:
        return await self._calls.run(partial(rows, statement=self._sql[name], parameters=parameters))

    async def _set(self, queues: Collection[str], name: str, parameters: dict[str, Any]) -> None:
        async def work(connection: Link) -> None:
            await OwnRunner(connection, self._sql).together((name, "forget_queues"), parameters)

        await self._run(queues, work, None)

    async def _named(self, statement: str, parameters: dict[str, Any]) -> Sequence[Mapping[str, Any]]:
        async def work(connection: Link) -> Sequence[Mapping[str, Any]]:
            async with connection.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(self._sql[statement], parameters, prepare=connection.unsteady)
                return [documents.plain(row) for row in await cursor.fetchall()]

        return await self._calls.run(work)


def _check_prepare(value: object) -> Prepare:
    match value:
        case None | "never":
            return None
        case "auto":
            return "auto"
        case int() if not isinstance(value, bool) and 0 <= value <= _OFTENEST:
            return value
        case _:
            raise OptionInvalid("prepare_threshold", value, f'a whole number up to {_OFTENEST}, "auto", or None')
