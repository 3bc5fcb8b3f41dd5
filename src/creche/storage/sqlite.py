"""Jobs in one SQLite file: turns the contract into statements and rows. It opens no connection and starts no thread;
`_sqlite3.py` does.

Nothing to install and nothing to run: several processes may share the file, on one machine and a local disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, get_args
from uuid import UUID

import anyio.lowlevel

from creche._job import (
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
    check_seconds,
)
from creche.abc import Capabilities, Listener
from creche.errors import OptionInvalid
from creche.storage import _sqlite_rows as rows
from creche.storage import _sqlite_schema as schema
from creche.storage._sql import load
from creche.storage._sqlite3 import Database, Synchronous, transaction
from creche.storage._sqlite_listener import Bell

_CAPABILITIES: Final = Capabilities(listen=True, shared=True, durable=True)

T = TypeVar("T")
Rows = list[sqlite3.Row]


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
        self._database = Database(
            Path(path).absolute(),
            synchronous=synchronous,
            busy_timeout=self._busy_timeout,
            foreign_change=self._bell.ring_all,
        )
        self._dialect = load("sqlite")
        self._sql = self._dialect.statements

    def __repr__(self) -> str:
        return f"<SQLiteStorage {self._database.path}>"

    @property
    def capabilities(self) -> Capabilities:
        """Wakes by itself, for commits of other processes within a quarter of a second."""
        return _CAPABILITIES

    # --- lifecycle ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._database.open()
        try:
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

    # --- dispatch -----------------------------------------------------------------------------------

    async def insert(self, jobs: Sequence[NewJob], *, now: datetime | None = None) -> Sequence[Insertion]:
        """See `Storage.insert`."""
        woken: set[str] = set()

        def work(connection: sqlite3.Connection) -> list[Insertion]:
            moment = rows.moment(now)
            columns = [rows.job_columns(job, moment) for job in jobs]
            self._expire_results(connection, [row["fingerprint"] for row in columns], moment)
            new: dict[str, str] = {}
            for chunk in rows.chunks(columns):
                written = self._run(connection, "insert", {"jobs": rows.array(chunk), "now": moment})
                new.update((row["id"], row["status"]) for row in written)
            answers = list[Insertion]()
            for job, row in zip(jobs, columns, strict=True):
                if row["id"] not in new:
                    answers.append(rows.standing(job, self._run(connection, "find_standing", row)[0]))
                    continue
                answers.append(rows.inserted(job, new[row["id"]]))
                if rows.soon(row["available_at"], moment):
                    woken.add(job.queue_name)
            return answers

        answers = await self._write(jobs, work, list[Insertion]())
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

        def work(connection: sqlite3.Connection) -> Reservation:
            claim["now"] = moment = rows.moment(now)
            taken: Rows = []
            for name in names:
                if (room := limit - len(taken)) <= 0:
                    break
                found = self._run(connection, "reserve", {**claim, "queue_name": name, "limit": room})
                taken += sorted(found, key=lambda row: (-row["priority"], row["available_at"], row["id"]))
            due = self._next_due(connection, names)
            return Reservation(jobs=[rows.reserved(row) for row in taken], next_due_in=rows.until(due.values(), moment))

        return await self._database.write(work)

    async def extend(self, leases: Collection[Lease], seconds: float, *, now: datetime | None = None) -> Extension:
        """See `Storage.extend`."""

        def work(connection: sqlite3.Connection) -> Extension:
            columns = {
                "leases": rows.array(map(rows.lease_columns, leases)),
                "locked_until": rows.moment(now) + rows.microseconds(seconds),
            }
            found = {rows.lease(row): row["cancel_requested"] for row in self._run(connection, "extend", columns)}
            return Extension(
                held=frozenset(found),
                lost=frozenset(leases) - found.keys(),
                cancel_requested=frozenset(lease for lease, asked in found.items() if asked),
            )

        nothing = Extension(held=frozenset(), lost=frozenset(), cancel_requested=frozenset())
        return await self._write(leases, work, nothing)

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        """See `Storage.settle`."""
        woken: set[str] = set()

        def work(connection: sqlite3.Connection) -> Settled:
            moment = rows.moment(now)
            columns = {settlement.lease: rows.settlement_columns(settlement, moment) for settlement in settlements}
            ended: dict[str, sqlite3.Row] = {}
            for chunk in rows.chunks([*columns.values()]):
                batch = {**rows.failing_columns(moment), "settlements": rows.array(chunk)}
                ended.update((row["id"], row) for row in self._run(connection, "settle", batch))
            self._write_dead_letters(connection, [*ended.values()], moment)
            for row in ended.values():
                if Status(row["status"]).active and rows.soon(row["available_at"], moment):
                    woken.add(row["queue_name"])
            accepted = {*ended, *self._settled_before(connection, columns, ended)}
            held = frozenset(lease for lease, row in columns.items() if row["id"] in accepted)
            return Settled(accepted=held, lost=columns.keys() - held)

        settled = await self._write(settlements, work, Settled(accepted=frozenset(), lost=frozenset()))
        self._bell.ring(woken)
        return settled

    # --- upkeep -------------------------------------------------------------------------------------

    async def maintain(self, limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:
        """See `Storage.maintain`."""
        woken: set[str] = set()

        def work(connection: sqlite3.Connection) -> Upkeep:
            moment = rows.moment(now)
            columns = {**rows.failing_columns(moment), "limit": max(0, limit)}
            recovered = self._run(connection, "recover", columns)
            woken.update(row["queue_name"] for row in recovered if row["status"] == Status.PENDING)
            buried = self._run(connection, "bury", columns)
            self._write_dead_letters(connection, buried, moment)
            promoted = self._promote(connection, limit, moment)
            woken.update(promoted)
            due = self._next_due(connection, None)
            woken.update(queue for queue, due_at in due.items() if rows.soon(due_at, moment))
            return Upkeep(
                recovered=len(recovered),
                buried=len(buried),
                promoted=sum(promoted.values()),
                pruned=self._prune(connection, limit, retention, moment),
                next_due_in=rows.until(due.values(), moment),
            )

        upkeep = await self._database.write(work)
        self._bell.ring(woken)
        return upkeep

    def _promote(self, connection: sqlite3.Connection, limit: int, moment: int) -> dict[str, int]:
        """Make ready what is due, and return how many of which queue."""
        promoted: dict[str, int] = {}
        due = self._next_due(connection, None)
        for queue in sorted(due, key=lambda queue: due[queue]):
            room = limit - sum(promoted.values())
            if room <= 0 or due[queue] > moment:
                break
            columns = {"queue_name": queue, "now": moment, "limit": room}
            promoted[queue] = connection.execute(self._sql["promote"], columns).rowcount
        return promoted

    def _prune(self, connection: sqlite3.Connection, limit: int, retention: Retention, moment: int) -> int:
        kept = {
            Status.COMPLETED: retention.completed,
            Status.FAILED: retention.failed,
            Status.CANCELLED: retention.cancelled,
        }
        pruned = 0
        for status, seconds in kept.items():
            before = moment - rows.microseconds(seconds)
            columns = {"status": status, "finished_before": before, "now": moment, "limit": max(0, limit - pruned)}
            pruned += connection.execute(self._sql["prune"], columns).rowcount
        before = moment - rows.microseconds(retention.failed)
        self._run(connection, "prune_dead_letters", {"buried_before": before, "limit": max(0, limit)})
        return pruned

    # --- people -------------------------------------------------------------------------------------

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.cancel`."""

        def work(connection: sqlite3.Connection) -> dict[UUID, Status]:
            moment = rows.moment(now)
            self._run(connection, "cancel", {"ids": rows.array(job_ids), "now": moment})
            return self._statuses(connection, job_ids)

        return await self._write(job_ids, work, dict[UUID, Status]())

    async def retry(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        """See `Storage.retry`."""
        woken: set[str] = set()

        def work(connection: sqlite3.Connection) -> dict[UUID, Status]:
            moment = rows.moment(now)
            found = self._run(connection, "find", {"ids": rows.array(job_ids)})
            self._expire_results(connection, [row["fingerprint"] for row in found], moment)
            for job_id in dict.fromkeys(job_ids):
                columns = {"id": str(job_id), "now": moment}
                for row in self._run(connection, "retry", columns):
                    self._run(connection, "delete_dead_letter", columns)
                    woken.add(row["queue_name"])
            return self._statuses(connection, job_ids)

        statuses = await self._write(job_ids, work, dict[UUID, Status]())
        self._bell.ring(woken)
        return statuses

    async def find(self, job_ids: Collection[UUID]) -> Mapping[UUID, JobRecord]:
        """See `Storage.find`."""
        if not job_ids:
            await anyio.lowlevel.checkpoint()
            return {}
        records = await self._database.read(
            lambda connection: [rows.record(row) for row in self._run(connection, "find", {"ids": rows.array(job_ids)})]
        )
        return {record.id: record for record in records}

    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        """See `Storage.list`."""
        columns = {
            "queues": rows.choice(where.queues),
            "types": rows.choice(where.types),
            "statuses": rows.choice(where.statuses),
            "before": None if before is None else str(before),
            "limit": max(0, limit),
        }
        return await self._database.read(
            lambda connection: [rows.record(row) for row in self._run(connection, "list", columns)]
        )

    async def dead_letters(self, limit: int, *, before: UUID | None = None) -> Sequence[DeadLetter]:
        """See `Storage.dead_letters`."""
        columns = {"before": None if before is None else str(before), "limit": max(0, limit)}
        return await self._database.read(
            lambda connection: [rows.dead_letter(row) for row in self._run(connection, "dead_letters", columns)]
        )

    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        """See `Storage.stats`."""
        found, moment = await self._database.read(
            lambda connection: (self._run(connection, "stats", {}), rows.moment(now))
        )
        counts: dict[str, dict[Status, int]] = {}
        ages: dict[str, float] = {}
        for row in found:
            counts.setdefault(row["queue_name"], {})[Status(row["status"])] = row["jobs"]
            if row["oldest"] is not None:
                ages[row["queue_name"]] = max(0, moment - row["oldest"]) / 1_000_000
        return [
            QueueStats(queue_name=queue, counts=counts[queue], oldest_ready=ages.get(queue)) for queue in sorted(counts)
        ]

    @asynccontextmanager
    async def listen(self, queues: Collection[str]) -> AsyncGenerator[Listener]:
        """See `Storage.listen`."""
        async with self._bell.listen(queues) as listener:
            yield listener

    # --- statements ---------------------------------------------------------------------------------

    def _run(self, connection: sqlite3.Connection, name: str, columns: Mapping[str, Any]) -> Rows:
        # To the end always: a statement that still has rows to return would keep its transaction from committing.
        return connection.execute(self._sql[name], columns).fetchall()

    def _expire_results(self, connection: sqlite3.Connection, fingerprints: Iterable[str | None], now: int) -> None:
        if some := [fingerprint for fingerprint in fingerprints if fingerprint is not None]:
            self._run(connection, "expire_results", {"fingerprints": rows.array(some), "now": now})

    def _settled_before(
        self, connection: sqlite3.Connection, columns: Mapping[Lease, dict[str, Any]], ended: Collection[str]
    ) -> Collection[str]:
        """Return the ids of those whose answer was lost: a repeated settle is accepted."""
        missed = [row for row in columns.values() if row["id"] not in ended]
        if not missed:
            return ()
        leases = rows.array({name: row[name] for name in ("id", "token", "nonce")} for row in missed)
        return [row["id"] for row in self._run(connection, "settled_before", {"settlements": leases})]

    def _write_dead_letters(self, connection: sqlite3.Connection, ended: Iterable[sqlite3.Row], now: int) -> None:
        if ids := [row["id"] for row in ended if row["status"] == Status.FAILED]:
            self._run(connection, "write_dead_letters", {"ids": rows.array(ids), "now": now})

    def _next_due(self, connection: sqlite3.Connection, queues: Collection[str] | None) -> dict[str, int]:
        """Return when the earliest scheduled job of each queue is due that has any."""
        found = self._run(connection, "next_due", {"queues": rows.choice(queues)})
        return {row["queue_name"]: row["due_at"] for row in found if row["due_at"] is not None}

    def _statuses(self, connection: sqlite3.Connection, job_ids: Collection[UUID]) -> dict[UUID, Status]:
        found = self._run(connection, "find", {"ids": rows.array(job_ids)})
        return {UUID(row["id"]): Status(row["status"]) for row in found}

    async def _write(self, batch: Collection[object], work: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        if batch:
            return await self._database.write(work)
        await anyio.lowlevel.checkpoint()
        return nothing

    async def _look(self) -> None:
        await self._database.look()
