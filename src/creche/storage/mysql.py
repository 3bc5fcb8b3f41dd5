"""Jobs in MySQL and MariaDB: turns the contract into statements and rows.

It opens no socket, waits for no clock and keeps nothing between calls; `_calls.py` and `_asyncmy.py` reach the server,
and the statements, each with its reasons, stand in `sql/mysql/`: the same for both.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint
from attrs import define

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
    ReservedJob,
    Retention,
    Settled,
    Settlement,
    Status,
    Upkeep,
    check_integer,
    check_seconds,
)
from creche._lifecycle import BURIES
from creche.abc import Capabilities, Listener
from creche.errors import OptionInvalid, QueueNotOpen, StorageUnavailable, UsageError
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Answer, AsyncmyDriver, Connection
from creche.storage._calls import Calls
from creche.storage._listener import LocalListener
from creche.storage._mysql_address import parse_dsn
from creche.storage._mysql_calls import BEGIN, COMMIT, Row, bare, chunks, together, undone_on_error
from creche.storage._mysql_dispatch import Dispatched, dispatch
from creche.storage._mysql_listener import MySQLListener, Waker
from creche.storage._mysql_literals import among, clock, render
from creche.storage._mysql_retry import revive
from creche.storage._mysql_schema import Schema
from creche.storage._mysql_upkeep import maintain
from creche.storage._sql import load
from creche.storage._wakes import Wakes

# Seconds between two rounds of wakes of a process: each asks who listens, and ends the sleep of everyone who does.
WAKE_PAUSE: Final = 0.02

# How often a reserve looks again that found something ready and then got nothing of it.
ROUNDS: Final = 3

# How many more jobs claim_of_types.sql looks at than it wants, and by how much more when rivals had all of those.
WINDOW: Final = 500
WIDER: Final = 20

_NOTHING: Final = [Answer([], 0)]

T = TypeVar("T")


@define
class _Opened:
    """What exists only between entering and leaving."""

    waker: Waker
    wakes: Wakes


class MySQLStorage:
    """Keeps jobs in tables of a MySQL (8.0 or newer) or MariaDB (10.6 or newer) database, which `migrate` makes there.

    Args:
        dsn: a URL, `mysql://user:password@host/database` or `mariadb://…`; docs/mysql.md tells what its query may say
            of TLS and sockets. It may also carry the options below.
        pool_size: how many connections are used for calls, at most; each listener has one more.
        call_timeout: seconds after which a call is given up as StorageUnavailable, whatever it was waiting for. A lease
            must be a good deal longer.
        push: whether idle workers sleep in the server until a dispatch wakes them, which takes a connection each; else
            they poll.
    """

    def __init__(self, dsn: str, *, pool_size: int = 5, call_timeout: float = 10.0, push: bool = True) -> None:
        address, options = parse_dsn(dsn)
        timeout = check_seconds("call_timeout", options.get("call_timeout", call_timeout), positive=True)
        self._address = address
        self._driver = AsyncmyDriver(address, lock_timeout=timeout)
        self._calls: Calls[Connection] = Calls(
            self._driver,
            pool_size=check_integer("pool_size", options.get("pool_size", pool_size), 1, 1_000),
            timeout=timeout,
        )
        self._capabilities = Capabilities(listen=_check_push(options.get("push", push)), shared=True, durable=True)
        dialect = load("mysql")
        self._schema = Schema(dialect, self._driver)
        self._sql = {name: bare(text) for name, text in dialect.statements.items()}
        self._opened: _Opened | None = None

    def __repr__(self) -> str:
        return f"<MySQLStorage {self._address.place}>"

    @property
    def capabilities(self) -> Capabilities:
        """Wakes other processes if `push` is on; a listener that can't be woken says so when it is made."""
        return self._capabilities

    @property
    def conflicts(self) -> int:
        """See `Storage.conflicts`."""
        return self._calls.conflicts

    # --- lifecycle ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise UsageError(f"{self!r} is open already: make another one")
        answered = False
        with anyio.move_on_after(self._calls.timeout):
            await self._schema.check()
            answered = True
        if not answered:
            raise StorageUnavailable(f"{self!r} gave no answer in {self._calls.timeout:g} s")
        self._calls.open()
        waker = Waker(self._calls, self._sql)
        wakes = await Wakes.open(waker.wake, pause=WAKE_PAUSE, server=self._driver.server, timeout=self._calls.timeout)
        self._opened = _Opened(waker, wakes)
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
        """See `Storage.migrate`. It waits for another migration as long as that takes, and for a table that somebody
        has locked as long as for any call; what was cut off is completed by the next one.
        """
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
        names = list(dict.fromkeys(queues))
        wanted = among("type", types)
        moment = clock(now)
        look = self._render("ready", queues=rows.document(names), wanted=wanted, now=moment)
        take = partial(self._render, "reserve", nonce=nonce, worker=worker, lease=rows.microseconds(lease), now=moment)

        async def work(connection: Connection) -> Reservation:
            jobs: Sequence[ReservedJob] = ()
            due: list[int] = []
            for round_number in range(ROUNDS):
                found = (await connection.run(look))[0].rows
                due = [row[2] for row in found if row[2] is not None]
                ready = [name for name, row in zip(names, found, strict=True) if row[1]]
                if not ready or limit < 1:
                    break
                by_ids = connection.server.mariadb and types is not None
                claim = "claim_of_types" if by_ids else "claim"
                seen = limit + WINDOW * WIDER**round_number
                render = partial(self._render, claim, wanted=wanted, seen=seen)
                claimed = await self._claim(connection, render, ready, limit, take)
                jobs = [rows.reserved_job(row, nonce) for row in claimed]
                # Nothing, though there was something: rivals took it, or held it for the moment of passing over it.
                if jobs:
                    break
            return Reservation(jobs=jobs, next_due_in=rows.seconds_until(min(due, default=None)))

        return await self._calls.run(work)

    async def _claim(
        self,
        connection: Connection,
        claim: Callable[..., str],
        queues: Sequence[str],
        limit: int,
        take: Callable[..., str],
    ) -> Sequence[Row]:
        claimed: list[Row] = []
        async with undone_on_error(connection):
            for number, queue in enumerate(queues):
                text = claim(queue=queue, limit=limit - len(claimed))
                claimed += rows.in_turn((await connection.run(text if number else f"{BEGIN};\n{text}"))[-1].rows)
                if len(claimed) >= limit:
                    break
            end = [take(ids=[UUID(bytes=row[0]) for row in claimed]), COMMIT] if claimed else [COMMIT]
            await connection.run(";\n".join(end))
        return claimed

    async def extend(self, leases: Collection[Lease], seconds: float, *, now: datetime | None = None) -> Extension:
        """See `Storage.extend`."""
        given = frozenset(leases)
        if not given:
            await checkpoint()
            return Extension(held=given, lost=given, cancel_requested=given)
        extend = self._render(
            "extend", leases=rows.leases_document(given), seconds=rows.microseconds(seconds), now=clock(now)
        )
        held_now = self._render("held", **rows.lease_parameters(given))
        answers = await self._calls.run(lambda connection: connection.run(f"{extend};\n{held_now}"))
        held = {rows.lease(row): bool(row[3]) for row in answers[1].rows}
        return Extension(
            held=frozenset(held),
            lost=given - held.keys(),
            cancel_requested=frozenset(lease for lease, asked in held.items() if asked),
        )

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        """See `Storage.settle`."""
        given = frozenset(settlement.lease for settlement in settlements)
        if not given:
            await checkpoint()
            return Settled(accepted=given, lost=given)
        moment = clock(now)
        elements = rows.settlement_elements(settlements)
        bury = [settlement.lease for settlement in settlements if settlement.event in BURIES]
        tail = [self._render("write_dead_letters", buried=rows.is_lease(bury))] if bury else []
        tail.append(self._render("settled", horizon=rows.microseconds(WAKE_HORIZON), **rows.lease_parameters(given)))

        async def work(connection: Connection) -> Sequence[Row]:
            settle = [
                self._render("settle", settlements=rows.joined(chunk), kept=ERRORS_KEPT, now=moment)
                for chunk in chunks(elements, connection.max_allowed_packet)
            ]
            return (await together(connection, [*settle, *tail]))[-1].rows

        settled = {rows.lease(row): row[3] for row in await self._calls.run(work)}
        self._wake({queue.decode() for queue in settled.values() if queue is not None})
        return Settled(accepted=frozenset(settled), lost=given - settled.keys())

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`. Where there is nothing to do it locks nothing."""
        upkeep, woken = await self._calls.run(
            partial(maintain, render=self._render, limit=max(0, limit), retention=retention, now=clock(now))
        )
        self._wake(woken)
        return upkeep

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""
        ids = sorted(job_ids)
        statements = [self._render("cancel", ids=ids, now=clock(now)), self._render("statuses", ids=ids)]
        answers = await self._run(job_ids, partial(together, statements=statements), _NOTHING)
        return rows.statuses(answers[-1].rows)

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        retry = partial(revive, render=self._render, job_ids=list(dict.fromkeys(job_ids)), now=clock(now))
        statuses, woken = await self._run(job_ids, retry, (dict[UUID, Status](), set[str]()))
        self._wake(woken)
        return statuses

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """See `Storage.find`."""
        find = self._render("find", ids=sorted(job_ids))
        answers = await self._run(job_ids, lambda connection: connection.run(find), _NOTHING)
        records = map(rows.record, answers[0].rows)
        return {record.id: record for record in records}

    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        """See `Storage.list`."""
        wanted = rows.every(
            among("queue_name", where.queues), among("type", where.types), among("status", where.statuses)
        )
        page = await self._page("list", wanted=wanted, before=rows.page_end(before), limit=max(0, limit))
        return [*map(rows.record, page)]

    async def dead_letters(self, limit: int, *, before: UUID | None = None) -> Sequence[DeadLetter]:
        """See `Storage.dead_letters`."""
        page = await self._page("dead_letters", before=rows.page_end(before), limit=max(0, limit))
        return [*map(rows.dead_letter, page)]

    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        """See `Storage.stats`."""
        return rows.queue_stats(await self._page("stats", now=clock(now)))

    # --- wakes --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        """See `Storage.listen`."""
        opened = self._opened
        if opened is None:
            raise QueueNotOpen
        wakes = opened.wakes
        if not self._capabilities.listen:
            local = LocalListener(queues)
            with wakes.told(local):
                yield local
            return
        pushed = MySQLListener(queues, self._driver, waker=opened.waker, later=wakes.tasks.start_soon)
        async with wakes.heard(pushed):
            yield pushed

    def _wake(self, queues: Collection[str]) -> None:
        if self._opened is not None:
            self._opened.wakes.wake(queues)

    # --- statements ---------------------------------------------------------------------------------

    def _render(self, statement: str, **parameters: object) -> str:
        return render(self._sql[statement], parameters)

    async def _run(self, batch: Collection[object], work: Callable[[Connection], Awaitable[T]], nothing: T) -> T:
        if batch:
            return await self._calls.run(work)
        await checkpoint()
        return nothing

    async def _page(self, statement: str, **parameters: object) -> Sequence[Row]:
        text = self._render(statement, **parameters)
        return (await self._calls.run(lambda connection: connection.run(text)))[0].rows


def _check_push(value: object) -> bool:
    words = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
    if (push := words.get(str(value).lower())) is None:
        raise OptionInvalid("push", value, "true or false")
    return push
