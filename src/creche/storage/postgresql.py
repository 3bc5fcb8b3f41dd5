"""Jobs in PostgreSQL: turns the contract into statements and rows.

It opens no socket, waits for no clock and keeps nothing between calls; `_postgresql_calls.py` reaches the server, and
the statements, each with its reasons, stand in `sql/postgresql/`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint
from attrs import define
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row

from creche._job import (
    ERRORS_KEPT,
    WAKE_HORIZON,
    DeadLetter,
    Extension,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    QueueStats,
    Reservation,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
    check_integer,
    check_seconds,
)
from creche.abc import Capabilities, Listener
from creche.errors import QueueNotOpen, StorageUnavailable, UsageError
from creche.storage import _postgresql_documents as documents
from creche.storage import mask
from creche.storage._calls import Calls
from creche.storage._pool import TransientConflict
from creche.storage._postgresql_calls import Link, Row, bare, rows, split_options, together
from creche.storage._postgresql_dispatch import Dispatched, dispatch
from creche.storage._postgresql_listener import PostgreSQLListener, channel_name
from creche.storage._postgresql_schema import Schema
from creche.storage._psycopg import PsycopgDriver
from creche.storage._rows import dead_letter, job_record, queue_stats
from creche.storage._sql import load
from creche.storage._wakes import Wakes

_CAPABILITIES: Final = Capabilities(listen=True, shared=True, durable=True)

# Seconds between two notifications of a process.
NOTIFY_PAUSE: Final = 0.005

_NO_ROWS: Final[Sequence[Row]] = ()

T = TypeVar("T")


@define
class _Opened:
    """What exists only between entering and leaving."""

    channel: str
    say: Callable[[Sequence[str]], Awaitable[None]]
    wakes: Wakes


class PostgreSQLStorage:
    """Keeps jobs in tables of a PostgreSQL database, 12 or newer, which `migrate` makes there.

    They stand in the first schema of the connection's `search_path`. Nothing is kept in a session, so a pooler such as
    PgBouncer may stand in between, also one that hands out connections per transaction (it makes listeners deaf).

    Args:
        dsn: a URL, `postgresql://user:password@host/database?sslmode=require`, or libpq's `host=… dbname=…`. A URL
            may also carry the options below. With several hosts, say `target_session_attrs=read-write`.
        pool_size: how many connections are used for calls, at most; each listener has one more.
        call_timeout: seconds after which a call is given up as StorageUnavailable, whatever it was waiting for;
            the end of a transaction may take two more. A lease must be a good deal longer.
        prepare_threshold: prepare a statement when it is sent for this many times; None, never: a pooler may hand
            the next one to a server connection that has not heard of it.
    """

    def __init__(
        self, dsn: str, *, pool_size: int = 5, call_timeout: float = 10.0, prepare_threshold: int | None = None
    ) -> None:
        dsn, options = split_options(dsn)
        threshold = options.get("prepare_threshold", prepare_threshold)
        self._name = mask(dsn)
        self._driver = PsycopgDriver(
            dsn,
            prepare_threshold=None if threshold is None else check_integer("prepare_threshold", threshold, 0, 1_000),
        )
        self._calls = Calls(
            self._driver,
            pool_size=check_integer("pool_size", options.get("pool_size", pool_size), 1, 1_000),
            timeout=check_seconds("call_timeout", options.get("call_timeout", call_timeout), positive=True),
        )
        dialect = load("postgresql")
        self._schema = Schema(dialect, self._driver)
        self._sql = {name: bare(text) for name, text in dialect.statements.items()}
        self._opened: _Opened | None = None

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
        channel = None
        with anyio.move_on_after(self._calls.timeout):
            channel = channel_name(await self._schema.check())
        if channel is None:
            raise StorageUnavailable(f"{self._name}: PostgreSQL gave no answer in {self._calls.timeout:g} s")
        self._calls.open()
        say = partial(self._notify, channel)
        wakes = await Wakes.open(say, pause=NOTIFY_PAUSE, server=self._driver.server, timeout=self._calls.timeout)
        self._opened = _Opened(channel, say, wakes)
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
                await self._calls.aclose()

    async def migrate(self) -> Sequence[str]:
        """See `Storage.migrate`. It waits as long as it takes."""
        return [migration.name for migration in await self._schema.migrate()]

    async def pending_migrations(self) -> Sequence[tuple[str, str]]:
        """See `Storage.pending_migrations`."""
        return [(migration.name, migration.sql) for migration in await self._schema.pending()]

    # --- dispatch -----------------------------------------------------------------------------------

    async def insert(self, jobs: Sequence[NewJob], *, now: datetime | None = None) -> Sequence[Insertion]:
        """See `Storage.insert`."""
        nothing = Dispatched((), frozenset())
        dispatched = await self._run(jobs, partial(dispatch, sql=self._sql, jobs=jobs, now=now), nothing)
        self._wake(dispatched.woken)
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
            "queues": list(dict.fromkeys(queues)),
            "limit": limit,
            "lease": lease,
            "worker": worker,
            "nonce": nonce,
            "types": documents.texts(types),
            "now": now,
        }
        answer = await self._calls.run(partial(rows, statement=self._sql["reserve"], parameters=parameters))
        return Reservation(
            jobs=[documents.reserved_job(row, nonce) for row in answer if row[1] is not None],
            next_due_in=documents.seconds_until(answer[0][0]),
        )

    async def extend(self, leases: Collection[Lease], seconds: float, *, now: datetime | None = None) -> Extension:
        """See `Storage.extend`."""
        given = frozenset(leases)
        parameters = {"leases": documents.leases_document(given), "seconds": seconds, "now": now}
        answer = await self._rows(given, "extend", parameters)
        held = documents.by_lease(answer)
        return Extension(
            held=frozenset(held),
            lost=given - held.keys(),
            cancel_requested=frozenset(lease for lease, (asked,) in held.items() if asked),
        )

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        """See `Storage.settle`."""
        given = frozenset(settlement.lease for settlement in settlements)
        parameters = {
            "settlements": documents.settlements_document(settlements),
            "kept": ERRORS_KEPT,
            "horizon": WAKE_HORIZON,
            "now": now,
        }
        woken: set[str] = set()

        async def work(connection: Link) -> Settled:
            settled = documents.by_lease(await rows(connection, self._sql["settle"], parameters))
            woken.update(queue for (queue,) in settled.values() if queue is not None)
            if lost := given - settled.keys():
                leases = {"leases": documents.leases_document(lost)}
                settled |= documents.by_lease(await rows(connection, self._sql["settled_before"], leases))
            return Settled(accepted=frozenset(settled), lost=given - settled.keys())

        settled = await self._run(settlements, work, Settled(accepted=frozenset(), lost=frozenset()))
        self._wake(woken)
        return settled

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`."""
        parameters = {
            "limit": limit,
            "kept": ERRORS_KEPT,
            "completed": retention.completed,
            "failed": retention.failed,
            "cancelled": retention.cancelled,
            "now": now,
        }
        names = ("recover", "bury", "promote", "prune", "prune_dead_letters", "next_due", "next_expiry")
        statements = [(self._sql[name], parameters) for name in names]
        answer = await self._calls.run(partial(together, statements=statements))
        ((recovered,),), ((buried,),), ((promoted, woken),), ((pruned,),), _, ((due_in,),), ((expiry_in,),) = answer
        self._wake(woken or ())
        return Upkeep(
            recovered=recovered,
            buried=buried,
            promoted=promoted,
            pruned=pruned,
            next_due_in=documents.seconds_until(due_in),
            next_expiry_in=documents.seconds_until(expiry_in),
        )

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""
        parameters = {"ids": list(job_ids), "now": now}
        answer = await self._rows(job_ids, "cancel", parameters)
        return {job_id: Status(status) for job_id, status in answer}

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        parameters = {"ids": list(job_ids), "now": now}

        async def work(connection: Link) -> Sequence[Row]:
            try:
                statements = [(self._sql[name], parameters) for name in ("expire_rivals", "retry")]
                return (await together(connection, statements))[-1]
            except UniqueViolation as error:
                raise TransientConflict("a dispatch took a fingerprint just then") from error

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
        return queue_stats(await self._calls.run(partial(rows, statement=self._sql["stats"], parameters={"now": now})))

    # --- wakes --------------------------------------------------------------------------------------

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
        parameters = {"channel": channel, "queues": words}
        await self._calls.run(partial(rows, statement=self._sql["notify"], parameters=parameters))

    def _wake(self, queues: Collection[str]) -> None:
        if self._opened is not None:
            self._opened.wakes.wake(queues)

    # --- statements ---------------------------------------------------------------------------------

    async def _run(self, batch: Collection[object], work: Callable[[Link], Awaitable[T]], nothing: T) -> T:
        if batch:
            return await self._calls.run(work)
        await checkpoint()
        return nothing

    async def _rows(self, batch: Collection[object], name: str, parameters: dict[str, Any]) -> Sequence[Row]:
        async def work(connection: Link) -> Sequence[Row]:
            return await rows(connection, self._sql[name], parameters)

        return await self._run(batch, work, _NO_ROWS)

    async def _named(self, statement: str, parameters: dict[str, Any]) -> Sequence[Mapping[str, Any]]:
        async def work(connection: Link) -> Sequence[Mapping[str, Any]]:
            async with connection.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(self._sql[statement], parameters)
                return [documents.plain(row) for row in await cursor.fetchall()]

        return await self._calls.run(work)
