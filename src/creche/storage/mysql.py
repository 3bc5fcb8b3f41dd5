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
from creche.abc import Capabilities, Listener
from creche.errors import OptionInvalid, QueueNotOpen, StorageUnavailable, UsageError
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Answer, AsyncmyDriver, Connection
from creche.storage._calls import Calls
from creche.storage._listener import LocalListener
from creche.storage._mysql_address import Destination, parse_dsn
from creche.storage._mysql_calls import Row, bare, together
from creche.storage._mysql_check import Doctor
from creche.storage._mysql_delete import delete
from creche.storage._mysql_dispatch import Dispatched, OurSession, TheirSession, dispatch
from creche.storage._mysql_echo import Echo
from creche.storage._mysql_ends import Ended, end_attempts, follow
from creche.storage._mysql_handles import through
from creche.storage._mysql_listener import MySQLListener, Waker
from creche.storage._mysql_literals import among, clock, render
from creche.storage._mysql_queues import announcing, keeping, pausing, queue_stats, resuming, worker_records
from creche.storage._mysql_reserve import Reserve
from creche.storage._mysql_retry import revive
from creche.storage._mysql_schema import Schema
from creche.storage._mysql_session import MySQLTransaction
from creche.storage._mysql_upkeep import maintain
from creche.storage._pool import Pool
from creche.storage._sql import load
from creche.storage._wakes import Wakes

# Seconds between two rounds of wakes of a process: each asks who listens, and ends the sleep of everyone who does.
WAKE_PAUSE: Final = 0.02

_NOTHING: Final = [Answer([], 0)]

T = TypeVar("T")


@define
class _Opened:
    """What exists only between entering and leaving."""

    waker: Waker
    wakes: Wakes
    echo: Echo
    transactions: Pool[Connection]
    turns: anyio.Semaphore


class MySQLStorage:
    """Keeps jobs in tables of a MySQL (8.0.4 or newer) or MariaDB (10.6 or newer) database, which `migrate` makes
    there.

    Args:
        dsn: a URL, `mysql://user:password@host/database` or `mariadb://…`; docs/mysql.md tells what its query may say
            of TLS and sockets. It may also carry the options below. Of several hosts, `h1,h2:3307`, the first is used
            that takes writes.
        pool_size: how many connections are used for calls, at most, and how many more for transactions that handlers
            share; each listener has one more.
        call_timeout: seconds after which a call is given up as StorageUnavailable, whatever it was waiting for. A lease
            must be a good deal longer.
        push: whether idle workers sleep in the server until a dispatch wakes them, which takes a connection each; else
            they poll.
        skew_allowance: seconds after which a lease that has run out is taken back: by how much the clocks of those
            servers differ, at most, that give leases. None: two with several hosts, and where a server says that others
            take writes beside it; else none.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 5,
        call_timeout: float = 10.0,
        push: bool = True,
        skew_allowance: float | None = None,
    ) -> None:
        destination, options = parse_dsn(dsn)
        allowance = options.get("skew_allowance", skew_allowance)
        self._set_up(
            destination,
            pool_size=check_integer("pool_size", options.get("pool_size", pool_size), 1, 1_000),
            timeout=check_seconds("call_timeout", options.get("call_timeout", call_timeout), positive=True),
            push=_check_push(options.get("push", push)),
            allowance=None if allowance is None else check_seconds("skew_allowance", allowance),
        )

    def _set_up(
        self,
        destination: Destination,
        *,
        pool_size: int,
        timeout: float,
        push: bool,
        allowance: float | None,
        trusting: bool = False,
    ) -> None:
        self._destination = destination
        self._driver = AsyncmyDriver(destination, lock_timeout=timeout)
        self._pool_size = pool_size
        self._calls: Calls[Connection] = Calls(self._driver, pool_size=pool_size, timeout=timeout)
        self._capabilities = Capabilities(listen=push, shared=True, durable=True)
        dialect = load("mysql")
        self._schema = Schema(dialect, self._driver)
        self._sql = {name: bare(text) for name, text in dialect.statements.items()}
        self._allowance = allowance
        self._trusting = trusting
        self._opened: _Opened | None = None

    def __repr__(self) -> str:
        return f"<MySQLStorage {self._destination.place}>"

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
            if not self._trusting:
                await self._schema.check()
            answered = True
        if not answered:
            raise StorageUnavailable(f"{self!r} gave no answer in {self._calls.timeout:g} s")
        self._calls.open()
        waker = Waker(self._calls, self._sql)
        wakes = await Wakes.open(waker.wake, pause=WAKE_PAUSE, server=self._driver.server, timeout=self._calls.timeout)
        echo = Echo(wakes.wake)
        wakes.tasks.start_soon(echo.run, name="creche echo")
        size = self._pool_size
        transactions = Pool(self._driver, size=size, timeout=self._calls.timeout)
        self._opened = _Opened(waker, wakes, echo, transactions, anyio.Semaphore(size))
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
                try:
                    await opened.transactions.aclose()
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

    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:
        """See `Storage.check`."""
        doctor = Doctor(
            driver=self._driver,
            schema=self._schema,
            timeout=self._calls.timeout,
            push=self._capabilities.listen,
            pool_size=self._pool_size,
            concurrency=concurrency,
        )
        return await doctor.examine()

    def twin(self) -> MySQLStorage:
        """See `Storage.twin`. It has one connection, and trusts that somebody has looked at the schema."""
        twin = MySQLStorage.__new__(MySQLStorage)
        twin._set_up(  # noqa: SLF001 - what the constructor does, without a DSN
            self._destination,
            pool_size=1,
            timeout=self._calls.timeout,
            push=self._capabilities.listen,
            allowance=self._allowance,
            trusting=True,
        )
        return twin

    # --- dispatch -----------------------------------------------------------------------------------

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        """See `Storage.insert`.

        Args:
            jobs: which.
            now: stands in for the database's clock.
            connection: of asyncmy or aiomysql (on asyncio), of PyMySQL (which blocks the event loop meanwhile), or of
                SQLAlchemy with one of these: a Session, an AsyncSession, a Connection or an AsyncConnection.
        """
        if connection is not None:
            return await self._insert_through(connection, jobs, now)

        async def work(connection: Connection) -> Dispatched:
            return await dispatch(OurSession(connection), sql=self._sql, jobs=jobs, now=now)

        dispatched = await self._run(jobs, work, Dispatched((), frozenset()))
        self._wake(dispatched.woken)
        return dispatched.answers

    async def _insert_through(
        self, handle: object, jobs: Sequence[NewJob], now: datetime | None
    ) -> Sequence[Insertion]:
        run = await through(handle)
        await checkpoint()
        if not jobs:
            return ()

        async def look(statements: Sequence[str]) -> Sequence[Sequence[Row]]:
            return await self._calls.run(lambda connection: OurSession(connection).look(statements))

        dispatched = await dispatch(TheirSession(run, look), sql=self._sql, jobs=jobs, now=now)
        if self._opened is not None:
            self._opened.echo.ring(dispatched.woken)
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
        take = Reserve(
            queues=list(dict.fromkeys(queues)),
            limit=limit,
            lease=lease,
            worker=worker,
            nonce=nonce,
            types=types,
            now=clock(now),
            render=self._render,
        )
        return await self._calls.run(take)

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
        if not given:
            await checkpoint()
            return Extension(held=given, lost=given, cancel_requested=given)
        extend = self._render(
            "extend", leases=rows.leases_document(given, progress), seconds=rows.microseconds(seconds), now=clock(now)
        )
        held_now = self._render("held", held=rows.is_lease(given))
        answers = await self._calls.run(lambda connection: connection.run(f"{extend};\n{held_now}"))
        held = {rows.lease(row): bool(row[3]) for row in answers[1].rows}
        return Extension(
            held=frozenset(held),
            lost=given - held.keys(),
            cancel_requested=frozenset(lease for lease, asked in held.items() if asked),
        )

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        """See `Storage.settle`."""
        given = frozenset(settlement.lease for settlement in settlements)
        if not given:
            await checkpoint()
            return Settled(accepted=given, lost=given)
        found = Ended()
        end = partial(
            end_attempts, settlements=settlements, found=found, render=self._render, retention=retention, now=clock(now)
        )
        await self._calls.run(end)
        self._wake(found.woken)
        return Settled(accepted=frozenset(found.written), lost=given - found.written, gone=frozenset(found.gone))

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`. Where there is nothing to do it locks nothing."""
        work = partial(
            maintain,
            render=self._render,
            limit=max(0, limit),
            retention=retention,
            allowance=self._allowance,
            several=len(self._destination.hosts) > 1,
            now=clock(now),
        )
        upkeep, woken = await self._calls.run(work)
        self._wake(woken)
        return upkeep

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""
        if not job_ids:
            await checkpoint()
            return {}
        ids, moment, stand = sorted(set(job_ids)), clock(now), dict[UUID, Status]()
        while ids:
            cancel, look = self._render("cancel", ids=ids, now=moment), self._render("statuses", ids=ids)
            # What follows is written last: it is none of those that were there to be cancelled.
            statements = [cancel, look, *follow(self._render, ids, now=moment)]
            _, found, followed, *_ = await self._calls.run(partial(together, statements=statements))
            holders = rows.holders(found.rows)
            if self._opened is not None:
                self._opened.waker.call(holders)
            self._wake(rows.woken(followed.rows) | holders)
            statuses = rows.statuses(found.rows)
            # One that waits has been dispatched, or made ready again, since we came by; and it may be gone next time.
            ids = sorted(each for each, status in statuses.items() if status in {Status.PENDING, Status.SCHEDULED})
            stand |= {job_id: status for job_id, status in statuses.items() if job_id not in ids}
        return stand

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        retry = partial(revive, render=self._render, job_ids=list(dict.fromkeys(job_ids)), now=clock(now))
        statuses, woken = await self._run(job_ids, retry, (dict[UUID, Status](), set[str]()))
        self._wake(woken)
        return statuses

    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        """See `Storage.delete`."""
        return await self._run(job_ids, partial(delete, render=self._render, job_ids=job_ids), dict[UUID, Status]())

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """See `Storage.find`."""
        find = self._render("find", ids=sorted(job_ids))
        answers = await self._run(job_ids, lambda connection: connection.run(find), _NOTHING)
        records = map(rows.record, answers[0].rows)
        return {record.id: record for record in records}

    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        """See `Storage.watch`. What is noted already is not written again, but for one look in many."""
        ids, gone = sorted(set(job_ids)), sorted(set(over))
        statements: list[str] = []
        if watcher is not None and gone:
            statements.append(self._render("forget_watches", ids=gone, watcher=watcher))
        if watcher is not None and ids:
            fresh = rows.microseconds(WATCH_LIMIT / 4)
            statements.append(self._render("register_watches", ids=ids, watcher=watcher, fresh=fresh))
        if ids:
            statements.append(self._render("watch", ids=ids))
        # Each is a transaction of its own: the look must come after the watch, or an end in between wakes nobody.
        answers = await self._run(statements, lambda connection: connection.run(";\n".join(statements)), _NOTHING)
        return rows.ends(answers[-1].rows) if ids else {}

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
        window = rows.microseconds(RATE_WINDOW)
        counted, said = await self._send(self._render("stats", now=clock(now), window=window), self._render("queues"))
        return queue_stats(counted.rows, said.rows)

    # --- queues, and who serves them ----------------------------------------------------------------

    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        """See `Storage.pause`."""
        await self._send(*([pausing(self._render, queues, now=clock(now))] if queues else ()))

    async def resume(self, queues: Collection[str]) -> None:
        """See `Storage.resume`."""
        await self._send(*(resuming(self._render, queues) if queues else ()))
        self._wake(queues)

    async def set_retention(self, queue_name: str, retention: Retention | None) -> None:
        """See `Storage.set_retention`."""
        await self._send(*keeping(self._render, queue_name, retention))

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        """See `Storage.announce`."""
        await self._send(announcing(self._render, presence, ttl, now=clock(now)))

    async def withdraw(self, name: str) -> None:
        """See `Storage.withdraw`."""
        await self._send(self._render("withdraw", name=name))

    async def workers(self, *, now: datetime | None = None) -> Sequence[WorkerRecord]:
        """See `Storage.workers`."""
        present, running = await self._send(*(self._render(each, now=clock(now)) for each in ("workers", "running")))
        return worker_records(present.rows, running.rows)

    # --- transactions and wakes ---------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[MySQLTransaction]:
        """See `Storage.transaction`. Its connection is a `TransactionConnection`. If all are in use it waits for one as
        long as the caller likes; and it takes none of those that calls are sent through.
        """
        opened = self._opened
        if opened is None:
            raise QueueNotOpen
        async with opened.turns, opened.transactions.acquire() as connection:
            if connection.lent:
                await self._made_ours(connection)
            connection.lent = True
            begun = MySQLTransaction.begun(
                connection, render=self._render, timeout=self._calls.timeout, database=self._destination.database
            )
            async with begun as transaction:
                yield transaction
        self._wake(transaction.woken)

    async def _made_ours(self, connection: Connection) -> None:
        with anyio.move_on_after(self._calls.timeout), self._driver.translated():
            await connection.reset(self._destination.database, lock_timeout=self._calls.timeout)
            return
        connection.drop()
        raise StorageUnavailable(f"{self!r} gave no answer in {self._calls.timeout:g} s")

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

    async def _send(self, *statements: str) -> Sequence[Answer]:
        """Run statements in one transaction; one alone is one."""
        if len(statements) > 1:
            return await self._calls.run(partial(together, statements=statements))
        return await self._run(statements, lambda connection: connection.run(*statements), ())

    async def _page(self, statement: str, **parameters: object) -> Sequence[Row]:
        text = self._render(statement, **parameters)
        return (await self._calls.run(lambda connection: connection.run(text)))[0].rows


def _check_push(value: object) -> bool:
    words = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
    if (push := words.get(str(value).lower())) is None:
        raise OptionInvalid("push", value, "true or false")
    return push
