"""What the operations of the SQLite storage are made of: statements by name, run on one connection, in a worker thread.
It opens no transaction and ends none; whoever calls has one. What a dispatch does stands in `_sqlite_dispatch.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar
from uuid import UUID

from creche._job import Lease, Retention, Settlement, Status
from creche.storage import _sqlite_rows as rows
from creche.storage._sqlite_dispatch import Steps, drive, expire_results, follow_up

T = TypeVar("T")
Rows = list[sqlite3.Row]


class Statements:
    """One connection, and the texts of all statements."""

    def __init__(self, connection: sqlite3.Connection, texts: Mapping[str, str]) -> None:
        self._connection = connection
        self._texts = texts

    def run(self, name: str, /, **columns: Any) -> Rows:
        """Run one statement, to the end always: one that still has rows to return would keep its transaction from
        committing.
        """
        return self._connection.execute(self._texts[name], columns).fetchall()

    def count(self, name: str, /, **columns: Any) -> int:
        """Run one statement that returns nothing; return how many rows it wrote."""
        return self._connection.execute(self._texts[name], columns).rowcount

    def do(self, steps: Steps[T]) -> T:
        """Run one statement after the other, as the steps say."""
        return drive(steps, lambda name, columns: self.run(name, **columns))

    # --- leases -------------------------------------------------------------------------------------

    def reserve(self, queues: Sequence[str], limit: int, **claim: Any) -> Rows:
        """Take jobs from one queue after the other until there are enough, in the order in which they should start."""
        taken: Rows = []
        for queue in queues:
            if (room := limit - len(taken)) <= 0:
                break
            found = self.run("reserve", queue_name=queue, limit=room, **claim)
            taken += sorted(found, key=lambda row: (-row["priority"], row["available_at"], row["id"]))
        return taken

    def settle(self, settlements: Sequence[Settlement], now: int) -> tuple[dict[Lease, sqlite3.Row], set[str]]:
        """End attempts; return the rows, by lease, that this changed, and the queues to wake."""
        ended: dict[Lease, sqlite3.Row] = {}
        for chunk in rows.chunks([rows.settlement_columns(settlement, now) for settlement in settlements]):
            found = self.run("settle", settlements=rows.array(chunk), **rows.failing_columns(now))
            ended.update((rows.lease(row), row) for row in found)
        self.write_dead_letters(ended.values(), now)
        woken = {row["queue_name"] for row in ended.values() if rows.wakes(row, now)}
        return ended, woken | self.follow_up(ended.values(), now)

    def delete_unkept(self, leases: Collection[Lease]) -> set[Lease]:
        """End attempts by deleting their jobs; return those that could be ended so."""
        if not leases:
            return set()
        return {
            rows.lease(row) for row in self.run("settle_unkept", leases=rows.array(map(rows.lease_columns, leases)))
        }

    def follow_up(self, changed: Iterable[sqlite3.Row], now: int) -> set[str]:
        """Write the callbacks that the ends of those of these rows call for that are over; return their queues."""
        return self.do(follow_up(rows.ended(row for row in changed if row["is_followed"]), now))

    def settled_before(self, leases: Collection[Lease]) -> set[Lease]:
        """Return those that their own holder settled before."""
        if not leases:
            return set()
        found = self.run("settled_before", leases=rows.array(map(rows.lease_columns, leases)))
        return {rows.lease(row) for row in found}

    def write_dead_letters(self, ended: Iterable[sqlite3.Row], now: int) -> None:
        """Copy those of these rows that have just failed."""
        if ids := [row["id"] for row in ended if row["status"] == Status.FAILED]:
            self.run("write_dead_letters", ids=rows.array(ids), now=now)

    def asked(self) -> frozenset[tuple[str, str, int]]:
        """Return all cancellations that holders are asked for, whoever and wherever they are."""
        return rows.requests(self.run("asked"))

    # --- upkeep -------------------------------------------------------------------------------------

    def next_due(self, queues: Collection[str] | None) -> dict[str, int]:
        """Return when the earliest scheduled job of each queue is due; queues that have none are left out."""
        found = self.run("next_due", queues=rows.choice(queues))
        return {row["queue_name"]: row["due_at"] for row in found if row["due_at"] is not None}

    def promote(self, limit: int, now: int) -> dict[str, int]:
        """Make ready what is due, the queue that has waited longest first; return how many of which queue."""
        promoted: dict[str, int] = {}
        due = self.next_due(None)
        for queue in sorted(due, key=lambda queue: due[queue]):
            room = limit - sum(promoted.values())
            if room <= 0 or due[queue] > now:
                break
            promoted[queue] = self.count("promote", queue_name=queue, limit=room, now=now)
        return promoted

    def prune(self, limit: int, retention: Retention, now: int) -> int:
        """Delete finished jobs and dead letters past their retention; return how many jobs. The queue that is most
        overdue comes first, or one in which much ends would use up the limit for ever.
        """
        kept = {**rows.retention_columns(retention), "now": now}
        pruned = self._prune("prune", self.run("finished", **kept), limit, now)
        self._prune("prune_dead_letters", self.run("buried", **kept), limit, now)
        return pruned

    def _prune(self, name: str, overdue: Rows, limit: int, now: int) -> int:
        pruned = 0
        for row in sorted(overdue, key=itemgetter("overdue"), reverse=True):
            if pruned >= limit:
                break
            pruned += self.count(name, **dict(row), limit=limit - pruned, now=now)
        return pruned

    # --- people -------------------------------------------------------------------------------------

    def retry(self, job_ids: Collection[UUID], now: int) -> set[str]:
        """Make jobs ready again; return the queues of those that are."""
        found = self.run("find", ids=rows.array(job_ids))
        self.do(expire_results([row["fingerprint"] for row in found], now))
        woken: set[str] = set()
        for job_id in dict.fromkeys(job_ids):
            for row in self.run("retry", id=str(job_id), now=now):
                self.run("delete_dead_letters", ids=rows.array([job_id]))
                woken.add(row["queue_name"])
        return woken

    def delete(self, job_ids: Collection[UUID]) -> dict[UUID, Status]:
        """Delete jobs that are over, with their dead letters; return the status that each had."""
        found = self.statuses(job_ids)
        deleted = self.run("delete", ids=rows.array(found))
        self.run("delete_dead_letters", ids=rows.array(row["id"] for row in deleted))
        return found

    def workers(self, now: int) -> tuple[Rows, Rows]:
        """Return the workers that are there, and the jobs that run."""
        return self.run("workers", now=now), self.run("running")

    def resume(self, queues: Collection[str]) -> None:
        """Hand out jobs of these queues again."""
        asked = rows.array(queues)
        self.run("resume", queues=asked)
        self.run("forget_queues", queues=asked)

    def set_retention(self, queue_name: str, retention: Retention | None) -> None:
        """Give a queue a retention of its own, or take it away."""
        if retention is not None:
            self.run("set_retention", queue_name=queue_name, **rows.retention_columns(retention))
            return
        self.run("clear_retention", queue_name=queue_name)
        self.run("forget_queues", queues=rows.array([queue_name]))

    def statuses(self, job_ids: Collection[UUID]) -> dict[UUID, Status]:
        """Return the status of each that exists."""
        return {UUID(row["id"]): Status(row["status"]) for row in self.run("statuses", ids=rows.array(job_ids))}
