"""Upkeep on MySQL: one look that locks nothing, and a transaction where there is something to do. It wakes nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol, TypedDict
from uuid import UUID

from attrs import frozen

from creche._job import ERRORS_KEPT, Retention, Status, Upkeep
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._mysql_calls import BEGIN, COMMIT, Row, undone_on_error
from creche.storage._mysql_literals import Expression

FINISHED: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Render(Protocol):
    """Puts literals into a statement."""

    def __call__(self, statement: str, **parameters: object) -> str:
        """Return the statement of this name."""
        ...


async def maintain(
    connection: Connection, *, render: Render, limit: int, retention: Retention, now: Expression
) -> tuple[Upkeep, set[str]]:
    """Recover, bury, promote, prune; see `Storage.maintain`. Return the queues, too, that have something ready now."""
    kept = {status: rows.microseconds(getattr(retention, status)) for status in FINISHED}
    return await _Round(connection, render, limit, now, kept).run()


@frozen
class _Round:
    connection: Connection
    render: Render
    limit: int
    now: Expression
    kept: Mapping[Status, int]

    async def run(self) -> tuple[Upkeep, set[str]]:
        overdue = self.render("overdue", now=self.now, **{status.value: kept for status, kept in self.kept.items()})
        ((expired, *finished, dead),), due, ((expiry_in,),) = await self._send(overdue, *self._news())
        if not (expired or any(finished) or dead or _waiting(due)):
            return Upkeep(recovered=0, buried=0, promoted=0, pruned=0, **_news(due, expiry_in)), set()
        async with undone_on_error(self.connection):
            await self._send(BEGIN)
            recovered, buried = (await self._recover(), await self._bury()) if expired else (0, 0)
            promoted, woken = await self._promote()
            pruned = await self._prune([status for status, some in zip(FINISHED, finished, strict=True) if some])
            if dead:
                old = self.kept[Status.FAILED]
                await self._write("prune_dead_letters", kept=old, limit=self.limit)
            due, ((expiry_in,),), _ = await self._send(*self._news(), COMMIT)
        done = Upkeep(recovered=recovered, buried=buried, promoted=promoted, pruned=pruned, **_news(due, expiry_in))
        return done, woken

    async def _recover(self) -> int:
        return await self._write("recover", limit=self.limit, kept=ERRORS_KEPT)

    async def _bury(self) -> int:
        (spent,) = await self._send(self.render("spent", now=self.now, limit=self.limit))
        if not spent:
            return 0
        ids = [UUID(bytes=row[0]) for row in spent]
        bury = self.render("bury", now=self.now, ids=ids, kept=ERRORS_KEPT)
        await self._send(bury, self.render("write_dead_letters", buried=rows.is_one_of(ids)))
        return len(ids)

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

    async def _prune(self, statuses: list[Status]) -> int:
        pruned = 0
        for status in statuses:
            pruned += await self._write("prune", status=status, kept=self.kept[status], limit=self.limit - pruned)
        return pruned

    def _news(self) -> tuple[str, str]:
        return self.render("next_due", now=self.now), self.render("next_expiry", now=self.now)

    async def _send(self, *statements: str) -> list[list[Row]]:
        return [answer.rows for answer in await self.connection.run(";\n".join(statements))]

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
