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
                    "        for job in jobs:\n            row = self._standing(job, moment)\n",
                    "        for job, row in zip(jobs, seen, strict=True):\n",
                ),
            ],
            "postgresql": [
                Edit(
                    "sql/postgresql/0001_initial.sql",
                    "CREATE UNIQUE INDEX creche_jobs_flight",
                    "CREATE INDEX creche_jobs_flight",
                ),
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

NAMES: Final = [
    Defect(
        name=f"keys-that-{what}",
        breaks=f"of two keys that a collation {what}s together, the second is taken for the first",
        edits=[
            Edit(
                MYSQL_SCHEMA,
                "    idempotency_key   VARBINARY(255),",
                f"    idempotency_key   VARCHAR(255) COLLATE {collation},",
            ),
            Edit(
                "sql/mysql/find_standing.sql",
                "CAST(idempotency_key AS BINARY) AS idempotency_key",
                f"idempotency_key COLLATE {collation} AS idempotency_key",
            ),
        ],
        tests=[kept("mysql", "test_keys_and_queues_that_a_collation_would_confuse_are_different")],
    )
    for what, collation in {"pad": "utf8mb4_bin", "fold": "utf8mb4_general_ci"}.items()
]

PAYLOADS: Final = [
    Defect(
        name="payload-as-jsonb",
        breaks="a handler gets other bytes than were dispatched: keys in another order, numbers rounded",
        edits=[
            Edit(
                "sql/postgresql/0001_initial.sql",
                "    payload           json             NOT NULL,",
                "    payload           jsonb            NOT NULL,",
            )
        ],
        tests=[kept("postgresql", "test_a_handler_gets_exactly_the_bytes_that_were_sent")],
    ),
    Defect(
        name="nul-goes-through",
        breaks="a payload that PostgreSQL can't store is refused there, and not where it was made",
        edits=[Edit("src/creche/_payload.py", '    if "\\0" in value:', '    if "\\0" in value and not value:')],
        tests=["tests/lifecycle/test_payload.py::test_a_value_that_some_engine_cannot_keep_is_refused_with_its_path"],
    ),
]

RESULTS: Final = [
    Defect(
        name="fresh-result-is-pruned",
        breaks="work whose result was to answer for a day is done again after an hour",
        edits=[
            Edit(
                "sql/sqlite/prune.sql",
                "        AND (result_expires_at IS NULL OR result_expires_at <= :now)\n",
                "",
            ),
            Edit(
                "sql/sqlite/finished.sql",
                "            AND (job.result_expires_at IS NULL OR job.result_expires_at <= :now)\n",
                "",
            ),
        ],
        tests=[kept("sqlite", "test_a_fresh_result_keeps_its_row")],
    ),
    Defect(
        name="refresh-by-a-job-that-joins",
        breaks="a dispatch that the job before it answers throws a cached result away, and its work is done again",
        edits=[Edit(ON_POSTGRESQL, "asked |= {key, None if job.refresh", "asked |= {None if job.refresh")],
        tests=[kept("postgresql", "test_in_one_batch_a_key_answers_a_refresh_too")],
    ),
    Defect(
        name="stale-result-answers",
        breaks="a dispatch is answered by a result that is past its time",
        edits=[Edit(MEMORY, "expiry is None or (expiry > moment and not refresh)", "expiry is None or not refresh")],
        tests=[kept("memory", "test_a_fresh_result_answers_until_its_time_is_over")],
    ),
]

CALLBACKS: Final = [
    Defect(
        name="callback-runs-again",
        breaks="a job that is retried by hand calls back a second time",
        edits=[Edit("src/creche/storage/_sqlite_dispatch.py", '    yield "forget_callbacks", asked\n', "")],
        tests=[kept("sqlite", "test_a_job_that_fails_again_after_a_retry_runs_no_callback_again")],
    ),
    Defect(
        name="callback-is-missed",
        breaks="a callback that is recorded while its job is being settled never runs",
        edits=[
            Edit(
                "sql/postgresql/settle.sql",
                "            OR j.callbacks IS NULL  -- also after waiting for whoever was recording some\n"
                "               AND NOT EXISTS (",
                "            OR NOT EXISTS (",
            ),
            Edit("sql/postgresql/complete.sql", "       AND j.callbacks IS NULL\n", ""),
        ],
        tests=[
            "tests/storage/test_postgresql_callbacks.py::test_a_settle_waits_for_the_callback_that_is_being_recorded_and_writes_it"
        ],
    ),
    Defect(
        name="callback-of-a-twin",
        breaks="of two who send one job at the same moment, the second takes its callback for recorded",
        edits=[
            Edit(
                "src/creche/storage/_mysql_dispatch.py",
                "else map(UUID, _strings(ids)))\n",
                "else (each.id for each in job.callbacks))\n",
            )
        ],
        tests=[kept("mysql", "test_of_many_that_send_the_same_job_at_once_every_callback_runs_once")],
    ),
    Defect(
        name="cancelled-too-early",
        breaks="what is dispatched, or made ready again, while it is being cancelled is left waiting",
        edits=[Edit("src/creche/storage/mysql.py", "while ids:", "for ids in [ids]:")],
        tests=["tests/storage/test_mysql.py::test_who_comes_to_wait_while_it_is_being_cancelled_is_cancelled_too"],
    ),
    Defect(
        name="kept-until-next-time",
        breaks="upkeep looks for what to prune before it has ended what it has to end",
        edits=[
            Edit(
                "src/creche/storage/_mysql_upkeep.py",
                "            if ended:  # some",
                "            if not ended:  # some",
            )
        ],
        tests=[kept("mysql", "test_what_ends_by_it_and_is_kept_for_no_time_goes_in_the_same_call")],
    ),
    Defect(
        name="dead-and-alive",
        breaks="a job that is retried while its failure is being committed stays among the dead letters",
        edits=[Edit("src/creche/storage/postgresql.py", '("expire_rivals", "retry", "unbury")', '("unbury", "retry")')],
        tests=["tests/storage/test_postgresql.py::test_what_waits_for_a_failure_to_be_committed_leaves_no_dead_letter"],
    ),
    Defect(
        name="commit-without-a-fence",
        breaks="a handler that was overtaken commits its own writes all the same: twice in all",
        edits=[
            Edit(
                "src/creche/_attempt.py",
                "        if not accepted:\n",
                "        if not accepted and self._transacting is None:\n",
            )
        ],
        tests=[
            "tests/engine/test_transactions.py::test_a_lease_that_was_lost_unnoticed_commits_nothing_and_its_handler_is_told"
        ],
    ),
]

DISPATCH: Final = [*SINGLE_FLIGHT, *NAMES, *PAYLOADS, *RESULTS, *CALLBACKS]
