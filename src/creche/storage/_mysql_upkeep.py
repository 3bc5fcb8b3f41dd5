"""Upkeep on MySQL: one look that locks nothing, and a transaction where there is something to do. It wakes nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Final, TypedDict
from uuid import UUID

from attrs import frozen

from creche._job import ERRORS_KEPT, WATCH_LIMIT, Retention, Status, Upkeep
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._hosts import ALLOWANCE
from creche.storage._mysql_calls import BEGIN, COMMIT, Row, send, undone_on_error
from creche.storage._mysql_ends import follow
from creche.storage._mysql_literals import Expression, Render
from creche.storage._mysql_queues import kept

WATCHED: Final = rows.microseconds(WATCH_LIMIT)


async def maintain(
    connection: Connection,
    *,
    render: Render,
    limit: int,
    retention: Retention,
    allowance: float | None,
    several: bool,
    now: Expression,
) -> tuple[Upkeep, set[str]]:
    """Recover, bury, promote, prune; see `Storage.maintain`. Return, too, whom to wake: the queues that have something
    ready now, and who watches what has ended.

    A lease is taken back `allowance` seconds after it has run out. None: what is usual where several servers give
    leases, for the DSN names `several`, or this one says so; none elsewhere.
    """
    if allowance is None:
        allowance = ALLOWANCE if several or connection.membership.several_writers else 0.0
    run_out = Expression(f"{now} - INTERVAL {rows.microseconds(allowance)} MICROSECOND") if allowance else now
    return await _Round(connection, render, limit, now, run_out, kept(retention)).run()


@frozen
class _Round:
    connection: Connection
    render: Render
    limit: int
    now: Expression
    run_out: Expression
    kept: Mapping[str, int]

    async def run(self) -> tuple[Upkeep, set[str]]:
        ((expired, watched, gone),), finished, buried, due, ((expiry_in,),) = await self._send(
            self.render("overdue", now=self.now, run_out=self.run_out, watched=WATCHED),
            *self._overdue(),
            *self._news(),
        )
        stale = await self._stale(finished)
        if not (expired or watched or gone or stale or buried or _waiting(due)):
            return Upkeep(recovered=0, buried=0, promoted=0, pruned=0, **_news(due, expiry_in)), set()
        async with undone_on_error(self.connection):
            await self._send(BEGIN)
            recovered, spent, ended, woken = await self._take_back() if expired else (0, 0, 0, set[str]())
            if ended:  # some of it may be kept for no time
                finished, buried = await self._send(*self._overdue())
                stale = await self._stale(finished)
            promoted, ready = await self._promote()
            pruned = await self._prune("prune", stale)
            await self._prune("prune_dead_letters", [{"queue": queue, "kept": kept} for queue, kept, _ in buried])
            if watched:
                await self._write("prune_watches", kept=WATCHED, limit=self.limit)
            if gone:
                await self._write("prune_workers", limit=self.limit)
            due, ((expiry_in,),), _ = await self._send(*self._news(), COMMIT)
        done = Upkeep(recovered=recovered, buried=spent, promoted=promoted, pruned=pruned, **_news(due, expiry_in))
        return done, woken | ready

    async def _stale(self, finished: list[Row]) -> list[dict[str, object]]:
        """Return what `prune.sql` has to look for, the most overdue first; no fresh results."""
        which = [{"queue": queue, "status": status.decode(), "kept": kept} for queue, status, kept, _ in finished]
        if not which:
            return []
        answers = await self._send(*(self.render("stale", now=self.now, **each) for each in which))
        since = [(overdue, each) for each, ((overdue,),) in zip(which, answers, strict=True) if overdue is not None]
        return [each for _, each in sorted(since, key=itemgetter(0), reverse=True)]

    async def _take_back(self) -> tuple[int, int, int, set[str]]:
        """Recover and bury; return how many of each, how many of both have ended, and whom to wake for that."""
        which = {"run_out": self.run_out, "limit": self.limit}
        expired, spent = await self._send(self.render("expired", **which), self.render("spent", **which))
        recovered, buried = ([UUID(bytes=row[0]) for row in found] for found in (expired, spent))
        statements: list[str] = []
        if recovered:
            statements.append(self.render("recover", now=self.now, ids=recovered, kept=ERRORS_KEPT))
        if buried:
            statements.append(self.render("bury", now=self.now, ids=buried, kept=ERRORS_KEPT))
            statements.append(self.render("write_dead_letters", buried=rows.is_one_of(buried)))
        ended = buried + [UUID(bytes=job_id) for job_id, asked in expired if asked]
        if not ended:
            if statements:
                await self._send(*statements)
            return len(recovered), len(buried), 0, set()
        answers = await self._send(*statements, *follow(self.render, ended, now=self.now))
        return len(recovered), len(buried), len(ended), rows.woken(answers[len(statements)])

    async def _promote(self) -> tuple[int, set[str]]:
        """Promote in the queue that has waited longest first."""
        (due,) = await self._send(self.render("next_due", now=self.now))
        promoted, woken = 0, set[str]()
        for queue in _waiting(due):
            ready = await self._write("promote", queue=queue, limit=self.limit - promoted)
            promoted += ready
            if ready:
                woken.add(queue)
        return promoted, woken

    async def _prune(self, statement: str, which: Sequence[Mapping[str, object]]) -> int:
        """Prune queue by queue, the one that is most overdue first."""
        pruned = 0
        for each in which:
            if pruned < self.limit:
                pruned += await self._write(statement, limit=self.limit - pruned, **each)
        return pruned

    def _overdue(self) -> tuple[str, str]:
        """Return how to ask of which queues finished jobs, and dead letters, have been kept for too long."""
        return (
            self.render("finished", now=self.now, **self.kept),
            self.render("buried", now=self.now, failed=self.kept[Status.FAILED]),
        )

    def _news(self) -> tuple[str, str]:
        return self.render("next_due", now=self.now), self.render("next_expiry", run_out=self.run_out)

    async def _send(self, *statements: str) -> list[list[Row]]:
        return [answer.rows for answer in await send(self.connection, statements)]

    async def _write(self, statement: str, **parameters: object) -> int:
        """Run one statement; return how many rows it wrote."""
        return (await self.connection.run(self.render(statement, now=self.now, **parameters)))[0].affected


def _waiting(due: list[Row]) -> list[str]:
    """Return the queues in which something is due, the one that has waited longest first."""
    return [queue.decode() for queue, due_in in sorted(due, key=lambda row: (row[1], row[0])) if due_in <= 0]


class _News(TypedDict):
    next_due_in: float | None
    next_expiry_in: float | None


def _news(due: list[Row], expiry_in: int | None) -> _News:
    return {
        "next_due_in": rows.seconds_until(min((due_in for _, due_in in due), default=None)),
        "next_expiry_in": rows.seconds_until(expiry_in),
    }
