"""Jobs in one SQLite file: turns the contract into statements and rows. It opens no connection and starts no thread;
`_sqlite3.py` does.

Nothing to install and nothing to run: several processes may share the file, on one machine and a local disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar, get_args
from uuid import UUID

import anyio.lowlevel

from creche._job import (
    RATE_WINDOW,
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
    check_seconds,
)
from creche.abc import Capabilities, Listener, Storage, Transaction
from creche.errors import OptionInvalid
from creche.storage import _sqlite_rows as rows
from creche.storage import _sqlite_schema as schema
from creche.storage import _sqlite_views as views
from creche.storage._batches import unkept
from creche.storage._presences import encode_presence
from creche.storage._sql import load
from creche.storage._sqlite3 import Database, Synchronous, transaction
from creche.storage._sqlite_check import Doctor
from creche.storage._sqlite_dispatch import drive_through, insert
from creche.storage._sqlite_handles import through
from creche.storage._sqlite_listener import Bell, Requests, Watches
from creche.storage._sqlite_session import Session
from creche.storage._sqlite_statements import Statements
from creche.storage._sqlite_transaction import SQLiteTransaction

_CAPABILITIES: Final = Capabilities(listen=True, shared=True, durable=True)

_GONE: Final = object()

T = TypeVar("T")


class SQLiteStorage:
    """Keeps jobs in one SQLite file, which it makes and migrates when it is opened.

    Args:
        path: where the file is, or shall be. Beside it SQLite keeps two more, `-wal` and `-shm`: they belong together.
        synchronous: what a commit waits for. "FULL": the disk, so what was answered survives a power cut.
            "NORMAL": nothing; a power cut may take the last commits along (a crash of the process does not, and
            the file stays sound), and writing is several times faster.
        busy_timeout: seconds to wait for a lock that another process holds before it is StorageUnavailable.
    """

    def __init__(self, path: str | Path, *, synchronous: Synchronous = "FULL", busy_timeout: float = 10.0) -> None:
        if str(path) in {"", "."} or str(path).startswith((":memory:", "file:")):
            raise OptionInvalid(
                "path",
                str(path),
                "the path of a file: for jobs that live in memory, creche.storage.memory.MemoryStorage",
            )
        if synchronous not in get_args(Synchronous):
            raise OptionInvalid("synchronous", synchronous, f"one of {', '.join(get_args(Synchronous))}")
        self._busy_timeout = check_seconds("busy_timeout", busy_timeout)
        self._bell = Bell(self._look)
        self._watches = Watches()
        self._database = Database(
            Path(path).absolute(),
            synchronous=synchronous,
            busy_timeout=self._busy_timeout,
            glance=lambda connection: Statements(connection, self._dialect.statements).asked(),
            foreign_change=self._bell.ring_all,
        )
        self._dialect = load("sqlite")
        self._synchronous: Synchronous = synchronous

    def __repr__(self) -> str:
        return f"<SQLiteStorage {self._database.path}>"

    @property
    def capabilities(self) -> Capabilities:
        """All three."""
        return _CAPABILITIES

    @property
    def conflicts(self) -> int:
        """None: a file has one writer at a time."""
        return 0

    # --- lifecycle ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        found = await self._database.open(schema.version)
        try:
            if schema.pending(self._dialect, found):  # or opening would queue for the write lock, for nothing
                await self._database.write(lambda connection: schema.apply(connection, self._dialect))
        except BaseException:
            await self._database.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._database.close()

    async def migrate(self) -> Sequence[str]:
        """See `Storage.migrate`."""

        def work(connection: sqlite3.Connection) -> Sequence[str]:
            with transaction(connection, self._busy_timeout):
                return schema.apply(connection, self._dialect)

        return await self._database.once(work, create=True)

    async def pending_migrations(self) -> Sequence[tuple[str, str]]:
        """See `Storage.pending_migrations`. A file that is not there is not made."""
        path = anyio.Path(self._database.path)
        found = await self._database.once(schema.version, create=False) if await path.exists() else 0
        return [(migration.name, migration.sql) for migration in schema.pending(self._dialect, found)]

    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:  # noqa: ARG002 - nothing hangs on it
        """See `Storage.check`. A file that is not there is not made."""
        return await Doctor(self._database.path, self._dialect, self._synchronous).examine()

    def twin(self) -> Storage:
        """See `Storage.twin`. It has one connection, until it is asked for something that only reads. While a handler's
        transaction holds the file's lock it waits, as everybody does.
        """
        return SQLiteStorage(self._database.path, synchronous=self._synchronous, busy_timeout=self._busy_timeout)

    # --- dispatch -----------------------------------------------------------------------------------

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        """See `Storage.insert`.

        Args:
            jobs: which.
            now: stands in for the database's clock.
            connection: that of a handler's `transaction`; a `sqlite3.Connection`, in its own thread; an
                `aiosqlite.Connection`; a session or a connection of SQLAlchemy, sync or async, on either of the two. It
                must be on this storage's file, and in a transaction, or one of those that begin one with their first
                write. It holds the file's only write lock from then on until it is committed or rolled back:
                everybody's writes wait for it. What is sync blocks the event loop, also while it waits for the lock.
        """
        if not jobs:
            return await _nothing(())
        if connection is not None:
            run = await through(connection, self._database.path, self._dialect.statements)
            answers, _ = await drive_through(insert(jobs, rows.moment(now)), run)
            return answers  # its commit will be noticed, here too, as anybody else's
        answers, woken = await self._write(lambda do: do.do(insert(jobs, rows.moment(now))))
        self._bell.ring(woken)
        return answers

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
        claim = {"lease": rows.microseconds(lease), "worker": worker, "nonce": nonce, "types": rows.choice(types)}

        def work(do: Statements) -> Reservation:
            moment = rows.moment(now)
            taken = do.reserve(names, limit, now=moment, **claim)
            return Reservation(
                jobs=[rows.reserved(row) for row in taken],
                next_due_in=rows.until(do.next_due(names).values(), moment),
            )

        return await self._write(work)

    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        """See `Storage.extend`."""
        asked = frozenset(leases)
        if not asked:
            return await _nothing(Extension(held=asked, lost=asked, cancel_requested=asked))
        renewals = rows.array(rows.renewal_columns(lease, (progress or {}).get(lease)) for lease in asked)

        def work(do: Statements) -> Extension:
            found = do.run("extend", leases=renewals, locked_until=rows.moment(now) + rows.microseconds(seconds))
            held = frozenset(map(rows.lease, found))
            cancel_requested = frozenset(rows.lease(row) for row in found if row["cancel_requested"])
            return Extension(held=held, lost=asked - held, cancel_requested=cancel_requested)

        return await self._write(work)

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        """See `Storage.settle`."""
        asked = frozenset(settlement.lease for settlement in settlements)
        if not asked:
            return await _nothing(Settled(accepted=asked, lost=asked))
        short = unkept(settlements, retention)
        unwatched = [each.lease for each in short if not self._watches.watched(each.lease.job_id)]

        def work(do: Statements) -> tuple[Settled, set[UUID], set[str]]:
            deleted = do.delete_unkept(unwatched)
            left = [each for each in settlements if each.lease not in deleted]
            changed, woken = do.settle(left, rows.moment(now))
            accepted = deleted | changed.keys() | do.settled_before(asked - changed.keys() - deleted)
            lost = asked - accepted
            there = do.statuses({lease.job_id for lease in lost}) if lost else {}
            gone = frozenset(lease for lease in lost if lease.job_id not in there)
            settled = Settled(accepted=frozenset(accepted), lost=lost, gone=gone)
            return settled, rows.ended(changed.values()), woken

        settled, ended, woken = await self._write(work)
        self._tell(ended, woken)
        return settled

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`."""
        limit = max(0, limit)  # to SQLite a negative one is none

        def work(do: Statements) -> tuple[Upkeep, set[UUID], set[str]]:
            moment = rows.moment(now)
            columns = {**rows.failing_columns(moment), "limit": limit}
            recovered = do.run("recover", **columns)
            buried = do.run("bury", **columns)
            do.write_dead_letters(buried, moment)
            woken = do.follow_up([*recovered, *buried], moment)
            promoted = do.promote(limit, moment)
            do.run("prune_workers", now=moment)
            due = do.next_due(None)
            upkeep = Upkeep(
                recovered=len(recovered),
                buried=len(buried),
                promoted=sum(promoted.values()),
                pruned=do.prune(limit, retention, moment),
                next_due_in=rows.until(due.values(), moment),
                next_expiry_in=rows.until((row["expires_at"] for row in do.run("next_expiry")), moment),
            )
            return upkeep, rows.ended([*recovered, *buried]), woken.union(promoted)

        upkeep, ended, woken = await self._write(work)
        self._tell(ended, woken)
        self._watches.forget()
        return upkeep

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""
        if not job_ids:
            return await _nothing(dict[UUID, Status]())

        def work(do: Statements) -> tuple[Mapping[UUID, Status], Requests, set[UUID], set[str]]:
            moment = rows.moment(now)
            changed = do.run("cancel", ids=rows.array(job_ids), now=moment)
            statuses = do.statuses(job_ids)
            return statuses, do.asked(), rows.ended(changed), do.follow_up(changed, moment)

        statuses, requests, ended, woken = await self._write(work)
        self._tell(ended, woken)
        self._bell.ask(job_ids, requests)
        return statuses

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        if not job_ids:
            return await _nothing(dict[UUID, Status]())
        woken, statuses = await self._write(lambda do: (do.retry(job_ids, rows.moment(now)), do.statuses(job_ids)))
        self._bell.ring(woken)
        return statuses

    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        """See `Storage.delete`."""
        if not job_ids:
            return await _nothing(dict[UUID, Status]())
        return await self._write(lambda do: do.delete(job_ids))

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """See `Storage.find`."""
        if not job_ids:
            return await _nothing(dict[UUID, JobRecord]())
        records = await self._read(lambda do: [*map(rows.record, do.run("find", ids=rows.array(job_ids)))])
        return {record.id: record for record in records}

    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        """See `Storage.watch`. What other processes end wakes all listeners, whether they watch or not."""
        asked = frozenset(job_ids)
        if watcher is not None:
            self._watches.drop(over, watcher)
            self._watches.add(asked, watcher)  # before the read: what ends after it is heard of
        if not asked:
            return await _nothing(dict[UUID, End | None]())
        found = await self._read(lambda do: do.run("watch", ids=rows.array(asked)))
        ends = {UUID(row["id"]): rows.end(row) for row in found}
        if watcher is not None:
            self._watches.drop([job_id for job_id in asked if ends.get(job_id, _GONE) is not None], watcher)
        return ends

    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        """See `Storage.list`."""
        columns = {
            "queues": rows.choice(where.queues),
            "types": rows.choice(where.types),
            "statuses": rows.choice(where.statuses),
            "before": None if before is None else str(before),
            "limit": max(0, limit),
        }
        return await self._read(lambda do: [*map(rows.record, do.run("list", **columns))])

    async def dead_letters(self, limit: int, *, before: UUID | None = None) -> Sequence[DeadLetter]:
        """See `Storage.dead_letters`."""
        columns = {"before": None if before is None else str(before), "limit": max(0, limit)}
        return await self._read(lambda do: [*map(rows.dead_letter, do.run("dead_letters", **columns))])

    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        """See `Storage.stats`."""

        def work(do: Statements) -> Sequence[QueueStats]:
            moment = rows.moment(now)
            return views.stats(do.run("stats", finished_after=moment - rows.microseconds(RATE_WINDOW)), moment)

        return await self._read(work)

    # --- queues, and who serves them ----------------------------------------------------------------

    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        """See `Storage.pause`."""
        if not queues:
            await _nothing(None)
            return
        await self._write(lambda do: do.run("pause", queues=rows.array(queues), now=rows.moment(now)))

    async def resume(self, queues: Collection[str]) -> None:
        """See `Storage.resume`."""
        if not queues:
            await _nothing(None)
            return
        await self._write(lambda do: do.resume(queues))
        self._bell.ring(queues)

    async def set_retention(self, queue_name: str, retention: Retention | None) -> None:
        """See `Storage.set_retention`."""
        await self._write(lambda do: do.set_retention(queue_name, retention))

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        """See `Storage.announce`."""
        said = {"name": presence.name, "presence": encode_presence(presence), "ttl": rows.microseconds(ttl)}
        await self._write(lambda do: do.run("announce", **said, now=rows.moment(now)))

    async def withdraw(self, name: str) -> None:
        """See `Storage.withdraw`."""
        await self._write(lambda do: do.run("withdraw", name=name))

    async def workers(self, *, now: datetime | None = None) -> Sequence[WorkerRecord]:
        """See `Storage.workers`."""

        def work(do: Statements) -> Sequence[WorkerRecord]:
            moment = rows.moment(now)
            return views.workers(*do.workers(moment), moment)

        return await self._read(work)

    # --- transactions and wakes ---------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        """See `Storage.transaction`. Its `connection` is a `creche.storage._sqlite_session.Connection`.

        It begins with its first statement, and takes the file's only write lock then: until the block is left, every
        other write of this process and of others waits, renewals of leases too, for `busy_timeout` seconds at most. So
        do what takes long before the first statement, and keep what comes after it well within a lease. What writes to
        the storage within the block by other ways than this connection waits for itself, and fails.
        """
        async with Session.of(self._database) as session:
            shared = SQLiteTransaction(session, self._database, self._dialect.statements)
            yield shared
            await session.commit()
            self._tell(shared.ended, shared.woken)

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        """See `Storage.listen`. Commits of other processes are heard a quarter of a second later at most; they
        may be about any queue, and wake no holder by its name but the one who is asked to end a job.
        """
        async with self._bell.listen(queues) as listener:
            yield listener

    def _tell(self, ended: Collection[UUID], woken: Collection[str]) -> None:
        """Wake, after the commit, who listens to these queues or watches one of these jobs."""
        self._bell.ring(self._watches.end(ended).union(woken))

    async def _look(self) -> None:
        await self._database.look()

    # --- threads ------------------------------------------------------------------------------------

    async def _write(self, work: Callable[[Statements], T]) -> T:
        return await self._database.write(lambda connection: work(Statements(connection, self._dialect.statements)))

    async def _read(self, work: Callable[[Statements], T]) -> T:
        return await self._database.read(lambda connection: work(Statements(connection, self._dialect.statements)))


async def _nothing(answer: T) -> T:
    """Answer an empty batch: a checkpoint, and no hop."""
    await anyio.lowlevel.checkpoint()
    return answer
