"""Reserving on MySQL: one look that locks nothing, and a transaction where there is something to take."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final
from uuid import UUID

from attrs import frozen

from creche._job import Reservation, ReservedJob
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._mysql_calls import BEGIN, COMMIT, Row, send, undone_on_error
from creche.storage._mysql_literals import Expression, Render, among

# How often a reserve looks again that found something ready and then got nothing of it.
ROUNDS: Final = 3

# How many more jobs claim_of_types.sql looks at than it wants, and by how much more when rivals had all of those.
WINDOW: Final = 500
WIDER: Final = 20


@frozen(kw_only=True)
class Reserve:
    """What is to be reserved, and for whom: see `Storage.reserve`. `render` puts literals into statements."""

    queues: Sequence[str]
    limit: int
    lease: float
    worker: str
    nonce: int
    types: Collection[str] | None
    now: Expression
    render: Render

    async def __call__(self, connection: Connection) -> Reservation:
        """Look, and take what is ready."""
        wanted = among("type", self.types)
        look = self.render("ready", queues=rows.document(self.queues), wanted=wanted, now=self.now)
        jobs: Sequence[ReservedJob] = ()
        due: list[int] = []
        for round_number in range(ROUNDS):
            found = (await connection.run(look))[0].rows
            due = [due_in for _, _, due_in in found if due_in is not None]
            ready = [self.queues[int(place) - 1] for place, some, _ in found if some]
            if not ready or self.limit < 1:
                break
            claimed = await self._take(connection, ready, self.limit + WINDOW * WIDER**round_number)
            jobs = [rows.reserved_job(row, self.nonce) for row in claimed]
            # Nothing, though there was something: rivals took it, or held it for the moment of passing over it.
            if jobs:
                break
        return Reservation(jobs=jobs, next_due_in=rows.seconds_until(min(due, default=None)))

    async def _take(self, connection: Connection, queues: Sequence[str], seen: int) -> Sequence[Row]:
        by_ids = connection.server.mariadb and self.types is not None
        which = {"wanted": among("type", self.types), "seen": seen}
        claimed: list[Row] = []
        async with undone_on_error(connection):
            for number, queue in enumerate(queues):
                left = self.limit - len(claimed)
                claim = self.render("claim_of_types" if by_ids else "claim", queue=queue, limit=left, **which)
                claimed += rows.in_turn((await connection.run(claim if number else f"{BEGIN};\n{claim}"))[-1].rows)
                if len(claimed) >= self.limit:
                    break
            await send(connection, [*self._handed_over(claimed), COMMIT])
        return claimed

    def _handed_over(self, claimed: Sequence[Row]) -> Sequence[str]:
        if not claimed:
            return ()
        hand_over = self.render(
            "reserve",
            ids=[UUID(bytes=row[0]) for row in claimed],
            nonce=self.nonce,
            worker=self.worker,
            lease=rows.microseconds(self.lease),
            now=self.now,
        )
        return (hand_over,)
