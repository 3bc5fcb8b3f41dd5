"""Retrying jobs on MySQL: who may have its fingerprint back is decided here, below the rows' locks. It wakes nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from asyncmy.errors import IntegrityError

from creche._job import Status
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._mysql_calls import BEGIN, COMMIT, DUPLICATE, Row, send, undone_on_error
from creche.storage._mysql_literals import Expression, Render
from creche.storage._pool import TransientConflict

RETRIABLE = frozenset({Status.FAILED, Status.CANCELLED, Status.SCHEDULED})


async def revive(
    connection: Connection, *, render: Render, job_ids: Sequence[UUID], now: Expression
) -> tuple[dict[UUID, Status], set[str]]:
    """Make jobs ready now; see `Storage.retry`. Return the queues, too, in which something became ready."""
    ids = {"ids": job_ids}
    async with undone_on_error(connection):
        asked = (await connection.run(f"{BEGIN};\n{render('retriable', **ids)}"))[1].rows
        fingerprints = sorted({row[2] for row in asked if row[2] is not None})
        holders: list[Row] = []
        if fingerprints:
            expire = render("expire_results", fingerprints=fingerprints, now=now)
            holders = (await send(connection, [expire, render("rivals", fingerprints=fingerprints)]))[1].rows
        willing = _willing(job_ids, asked, {flight: holder for holder, flight in holders})
        statements = [render("statuses", **ids), COMMIT]
        if willing:
            chosen = {"ids": willing}
            statements[:0] = [render("retry", now=now, **chosen), render("delete_dead_letters", **chosen)]
        try:
            answers = await send(connection, statements)
        except IntegrityError as error:
            if error.args[0] != DUPLICATE:
                raise
            raise TransientConflict("a dispatch took a fingerprint just then") from error
    revived = {chosen.bytes for chosen in willing}
    return rows.statuses(answers[-2].rows), {row[3].decode() for row in asked if row[0] in revived}


def _willing(job_ids: Iterable[UUID], asked: Sequence[Row], holders: dict[bytes, bytes]) -> list[UUID]:
    """Return the jobs that go on, in the order given: of two with one fingerprint the first, unless it is held."""
    found = {row[0]: row for row in asked}
    willing: list[UUID] = []
    for job_id in job_ids:
        _, status, fingerprint, _ = found.get(job_id.bytes, (None, None, None, None))
        if status not in RETRIABLE:
            continue
        if fingerprint is not None and holders.setdefault(fingerprint, job_id.bytes) != job_id.bytes:
            continue
        willing.append(job_id)
    return willing
