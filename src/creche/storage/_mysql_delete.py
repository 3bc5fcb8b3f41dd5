"""Deleting jobs on MySQL: which of them are over is seen below their rows' locks. It wakes nobody."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from creche._job import Status
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._mysql_calls import BEGIN, COMMIT, send, undone_on_error
from creche.storage._mysql_literals import Render


async def delete(connection: Connection, *, render: Render, job_ids: Collection[UUID]) -> dict[UUID, Status]:
    """Delete those that are over, and what hangs on them; see `Storage.delete`. Jobs are locked first, as always."""
    async with undone_on_error(connection):
        lock = render("deletable", ids=sorted(set(job_ids)))
        stood = rows.statuses((await connection.run(f"{BEGIN};\n{lock}"))[1].rows)
        over = sorted(job_id for job_id, status in stood.items() if not status.active)
        gone = [render(each, ids=over) for each in ("delete", "delete_dead_letters", "delete_watches") if over]
        await send(connection, [*gone, COMMIT])
    return stood
