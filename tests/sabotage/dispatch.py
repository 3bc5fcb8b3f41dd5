"""Defects in what a dispatch promises: one job of a kind, what it is told, and what follows it."""

from __future__ import annotations

from typing import Final

from sabotage.contract import in_each, kept
from sabotage.planting import Defect, Edit

MEMORY: Final = "src/creche/storage/memory.py"
ON_POSTGRESQL: Final = "src/creche/storage/_postgresql_dispatch.py"
MYSQL_SCHEMA: Final = "sql/mysql/0001_initial.sql"

SINGLE_FLIGHT: Final = [
    *in_each(
        "look-then-insert",
        "of many who dispatch the same work at once, each looks, finds nothing, and inserts",
        "test_of_many_callers_with_one_fingerprint_exactly_one_inserts",
        {
            "memory": [
                Edit(
                    MEMORY,
                    "        await anyio.lowlevel.checkpoint()\n        moment = self._moment(now)\n        answers:",
                    "        moment = self._moment(now)\n"
                    "        seen = [self._standing(job, moment) for job in jobs]\n"
                    "        await anyio.lowlevel.checkpoint()\n        answers:",
                ),
                Edit(
                    MEMORY,
                    "        for job in jobs:\n            row = self._standing(job, moment)\n            if row is None:",
                    "        for job, row in zip(jobs, seen, strict=True):\n            if row is None:",
                ),
            ],
            "postgresql": [
                Edit("sql/postgresql/0001_initial.sql", "CREATE UNIQUE INDEX creche_jobs_flight", "CREATE INDEX creche_jobs_flight"),
                Edit(
                    ON_POSTGRESQL,
                    '        written = await runner.rows("insert", parameters)\n',
                    '        seen = {_uuid(row[0]) for row in await runner.rows("find_standing", parameters)}\n'
                    "        free = jobs_document([job for job in jobs if job.id not in seen])\n"
                    '        written = await runner.rows("insert", {**parameters, "jobs": free})\n',
                ),
            ],
            "mysql": Edit(MYSQL_SCHEMA, "    UNIQUE KEY creche_jobs_flight", "    KEY creche_jobs_flight"),
        },
    ),
]

DISPATCH: Final = [*SINGLE_FLIGHT]
