"""Defects in who may hold a job, for how long, and how often: in what storages write."""

from __future__ import annotations

from typing import Final

from sabotage.contract import in_each, kept
from sabotage.planting import Defect, Edit

MEMORY: Final = "src/creche/storage/memory.py"
ROWS: Final = "src/creche/storage/_memory_rows.py"
BATCHES: Final = "src/creche/storage/_batches.py"
MYSQL_ROWS: Final = "src/creche/storage/_mysql_rows.py"
MYSQL_ENDS: Final = "src/creche/storage/_mysql_ends.py"

BLOCKED: Final = (
    "tests/faults/test_blocked_loop.py::test_while_a_loop_is_blocked_for_three_leases_nothing_that_it_holds_runs_twice"
    "_and_the_log_says_who_blocks"
)
ONLY_THEN: Final = "test_only_a_job_that_is_followed_takes_a_second_transaction_to_end"
VIRTUAL: Final = "tests/engine/test_worker_in_virtual_time.py::"

HOLDS: Final = "self.token == lease.token and self.nonce == lease.nonce"

FENCES: Final = [
    *in_each(
        "settle-without-token",
        "whoever was overtaken writes the end of a job that somebody else runs",
        "test_to_settle_token_and_nonce_must_both_be_right",
        {
            "memory": Edit(ROWS, HOLDS, "self.nonce == lease.nonce"),
            "sqlite": Edit("sql/sqlite/settle.sql", "    AND job.token = settlement.token\n", ""),
            "postgresql": Edit("sql/postgresql/settle.sql", "       AND j.token = s.token\n", ""),
            "mysql": Edit("sql/mysql/settle.sql", " WHERE j.token = s.token\n   AND", " WHERE"),
        },
    ),
    *in_each(
        "settle-without-random-bits",
        "after a failover that lost the reserve, two holders have the same token, and both write",
        "test_to_settle_token_and_nonce_must_both_be_right",
        {
            "memory": Edit(ROWS, HOLDS, "self.token == lease.token"),
            "sqlite": Edit("sql/sqlite/settle.sql", "    AND job.nonce = settlement.nonce\n", ""),
            "postgresql": Edit("sql/postgresql/settle.sql", "       AND j.nonce = s.nonce\n", ""),
            "mysql": Edit("sql/mysql/settle.sql", "   AND j.nonce = s.nonce\n", ""),
        },
    ),
    *in_each(
        "extend-without-token",
        "whoever was overtaken goes on, and takes the lease of the new holder for its own",
        "test_to_extend_token_and_nonce_must_both_be_right",
        {
            "sqlite": Edit("sql/sqlite/extend.sql", "    AND job.token = lease.token\n", ""),
            "postgresql": Edit("sql/postgresql/extend.sql", "   AND j.token = held.token\n", ""),
            "mysql": Edit("sql/mysql/extend.sql", " WHERE j.token = l.token\n   AND", " WHERE"),
        },
    ),
    *in_each(
        "recover-keeps-the-token",
        "a holder whose lease ran out, and was taken back, writes an end all the same",
        "test_a_recovered_lease_writes_nothing",
        {
            "memory": Edit(MEMORY, "            row.seize()\n            due = moment", "            due = moment"),
            "sqlite": Edit("sql/sqlite/recover.sql", "    token = token + 1,\n    nonce = 0,\n", ""),
            "postgresql": Edit(
                "sql/postgresql/recover.sql", "           token = token + 1,\n           nonce = 0,\n", ""
            ),
            "mysql": Edit("sql/mysql/recover.sql", "       token = token + 1,\n       nonce = 0,\n", ""),
        },
    ),
    Defect(
        name="cancel-keeps-the-token",
        breaks="a job that was given back and then cancelled is completed by its late holder's second settle",
        edits=[Edit("sql/postgresql/cancel.sql", "           token = j.token + 1,\n           nonce = 0,\n", "")],
        tests=[kept("postgresql", "test_a_given_back_lease_is_lost_once_the_job_is_cancelled")],
    ),
    *in_each(
        "repeated-settle-is-lost",
        "an end whose answer was lost on the wire is taken for a lost lease",
        "test_settled_twice_is_accepted_twice_and_written_once",
        {
            "sqlite": Edit("sql/sqlite/settled_before.sql", "job.status <> 'processing'", "false"),
            "postgresql": Edit("sql/postgresql/settled_before.sql", "j.status <> 'processing'", "false"),
            "mysql": Edit("sql/mysql/settled.sql", "(status <> 'processing' OR", "(updated_at = '1970-01-01' OR"),
        },
    ),
    *in_each(
        "extend-brings-the-deadline-nearer",
        "a handler that has made sure of an hour loses it to the next renewal",
        "test_it_never_brings_a_deadline_nearer",
        {
            "sqlite": Edit("sql/sqlite/extend.sql", "max(job.locked_until, :locked_until)", ":locked_until"),
            "mysql": Edit(
                "sql/mysql/extend.sql",
                "GREATEST(j.locked_until, %(now)s + INTERVAL %(seconds)s MICROSECOND)",
                "%(now)s + INTERVAL %(seconds)s MICROSECOND",
            ),
        },
    ),
]

ATTEMPTS: Final = [
    *in_each(
        "recover-ignores-attempts",
        "a job that kills its worker does so for ever",
        "test_a_lease_that_ran_out_on_the_last_attempt_buries_its_job",
        {
            "memory": Edit(MEMORY, "record.attempts >= record.max_attempts and not record.cancel_requested", "False"),
            "sqlite": Edit("sql/sqlite/recover.sql", "        AND (cancel_requested OR attempts < max_attempts)\n", ""),
            "postgresql": Edit(
                "sql/postgresql/recover.sql", "       AND (attempts < max_attempts OR cancel_requested)\n", ""
            ),
            "mysql": Edit("sql/mysql/expired.sql", "   AND (attempts < max_attempts OR cancel_requested)\n", ""),
        },
    ),
    *in_each(
        "attempt-counted-afterwards",
        "an attempt counts when it has ended, so one that kills its process never does",
        "test_a_job_that_kills_its_worker_each_time_runs_out_of_attempts",
        {
            "memory": [
                Edit(MEMORY, "                attempts=row.record.attempts + 1,\n", ""),
                Edit(
                    MEMORY,
                    "        if event in GIVES_BACK:\n            row.change(attempts=row.record.attempts - 1)\n",
                    "        if event not in GIVES_BACK:\n            row.change(attempts=row.record.attempts + 1)\n",
                ),
                Edit(ROWS, "attempt=record.attempts,", "attempt=record.attempts + 1,"),
                Edit(
                    MEMORY,
                    "recovery_delay(record.id, record.attempts)",
                    "recovery_delay(record.id, record.attempts + 1)",
                ),
            ],
            "sqlite": [
                Edit("sql/sqlite/reserve.sql", "    attempts = attempts + 1,\n", ""),
                Edit("sql/sqlite/reserve.sql", "priority, attempts, max", "priority, attempts + 1 AS attempts, max"),
                Edit("sql/sqlite/settle.sql", "job.attempts - settlement", "job.attempts + 1 - settlement"),
            ],
            "postgresql": [
                Edit("sql/postgresql/reserve.sql", "           attempts = attempts + 1,\n", ""),
                Edit("sql/postgresql/reserve.sql", "r.priority, r.attempts,", "r.priority, r.attempts + 1,"),
                Edit("sql/postgresql/settle.sql", "j.attempts - coalesce(s.gives", "j.attempts + 1 - coalesce(s.gives"),
                Edit("sql/postgresql/recover.sql", "((attempts - 1) %% 3)", "(attempts %% 3)"),
                Edit("sql/postgresql/recover.sql", "least(attempts - 1, 6)", "least(attempts, 6)"),
            ],
        },
    ),
    *in_each(
        "release-counts",
        "a job that was given back at each of three deployments has spent its attempts",
        "test_an_attempt_counts_unless_it_is_given_back",
        {
            "sqlite": Edit("sql/sqlite/settle.sql", "job.attempts - settlement.gives_back", "job.attempts"),
            "postgresql": Edit(
                "sql/postgresql/settle.sql", "j.attempts - coalesce(s.gives_back, false)::integer", "j.attempts"
            ),
            "mysql": Edit("sql/mysql/settle.sql", "j.attempts - s.gives_back", "j.attempts"),
        },
    ),
    Defect(
        name="release-counts",
        breaks="a job that was given back at each of three deployments has spent its attempts",
        edits=[
            Edit(
                "src/creche/_lifecycle.py",
                "GIVES_BACK: Final = frozenset({Event.RELEASE, Event.SNOOZE})",
                "GIVES_BACK: Final = frozenset({Event.SNOOZE})",
            )
        ],
        tests=[VIRTUAL + "test_stopping_lets_jobs_finish_for_the_grace_then_gives_them_back_unspent"],
    ),
    Defect(
        name="one-attempt-too-many",
        breaks="a job that fails is tried once more than its max_attempts say",
        edits=[
            Edit("src/creche/_lifecycle.py", "case.attempt >= case.max_attempts", "case.attempt > case.max_attempts")
        ],
        tests=["tests/lifecycle/test_lifecycle.py::test_the_last_attempt_fails_for_good_whatever_delay_was_asked_for"],
    ),
    Defect(
        name="recovered-together",
        breaks="a job that kills its worker takes all its neighbours along, attempt by attempt",
        edits=[Edit("src/creche/_backoff.py", "return group * span >> 16", "return span")],
        tests=[
            "tests/lifecycle/test_lifecycle.py::test_jobs_that_are_due_together_after_one_attempt_are_not_after_the_next"
        ],
    ),
]

UNKEPT: Final = [
    Defect(
        name="unkept-is-kept",
        breaks="what is to be kept for no time is written once more, and left to upkeep",
        edits=[Edit(BATCHES, "retention.completed > 0", "retention.completed >= 0")],
        tests=[kept("memory", "test_what_succeeds_and_is_kept_for_no_time_goes_with_its_settle")],
    ),
    Defect(
        name="unkept-however-it-ends",
        breaks="a job that failed, or was to be tried again, is gone",
        edits=[Edit(BATCHES, " if settlement.event is Event.SUCCEED]", "]")],
        tests=[kept("memory", "test_the_others_of_its_batch_end_as_ever")],
    ),
    *in_each(
        "unkept-without-random-bits",
        "whoever was overtaken deletes the job that somebody else runs",
        "test_a_lease_of_another_nonce_deletes_nothing",
        {
            "memory": Edit(
                MEMORY, "(row := self._held(lease)) and not", "(row := self._rows.get(lease.job_id)) and not"
            ),
            "sqlite": Edit("sql/sqlite/settle_unkept.sql", "        AND job.nonce = settlement.nonce\n", ""),
            "postgresql": Edit("sql/postgresql/settle_unkept.sql", "       AND j.nonce = e.nonce\n", ""),
            "mysql": Edit(MYSQL_ROWS, "token = {token} AND nonce = {nonce} AND id", "token = {token} AND id"),
        },
    ),
    *in_each(
        "unkept-with-callbacks",
        "what was to follow a job goes with it",
        "test_what_others_follow_is_followed",
        {
            "memory": Edit(MEMORY, "bool(row.callbacks or row.watchers)", "bool(row.watchers)"),
            "sqlite": Edit("sql/sqlite/settle_unkept.sql", "        AND job.callbacks IS NULL\n", ""),
            "postgresql": Edit("sql/postgresql/settle_unkept.sql", "       AND j.callbacks IS NULL\n", ""),
            "mysql": Edit("sql/mysql/delete_unkept.sql", "   AND callbacks IS NULL\n", ""),
        },
    ),
    *in_each(
        "unkept-with-its-result",
        "work whose result was to answer for a day is done again at once",
        "test_a_cached_result_stays_and_answers",
        {
            "memory": Edit(MEMORY, " or row.result_ttl is not None\n        return used", "\n        return used"),
            "sqlite": Edit("sql/sqlite/settle_unkept.sql", "        AND job.result_ttl IS NULL\n", ""),
            "postgresql": Edit("sql/postgresql/settle_unkept.sql", "       AND j.result_ttl IS NULL\n", ""),
            "mysql": Edit("sql/mysql/delete_unkept.sql", "   AND result_ttl IS NULL\n", ""),
        },
    ),
]

ALIKE: Final = [
    *in_each(
        "alike-without-token",
        "whoever was overtaken completes the job that somebody else runs",
        "test_to_settle_token_and_nonce_must_both_be_right",
        {
            "postgresql": Edit("sql/postgresql/complete.sql", "       AND j.token = e.token\n", ""),
            "mysql": Edit(MYSQL_ROWS, "token = {token} AND nonce", "nonce"),
        },
    ),
    *in_each(
        "alike-without-random-bits",
        "after a failover that lost the reserve, two holders have the same token, and both complete the job",
        "test_to_settle_token_and_nonce_must_both_be_right",
        {
            "postgresql": Edit("sql/postgresql/complete.sql", "       AND j.nonce = e.nonce\n", ""),
            "mysql": Edit(MYSQL_ROWS, "token = {token} AND nonce = {nonce} AND id", "token = {token} AND id"),
        },
    ),
    *in_each(
        "alike-with-callbacks",
        "what was to follow a job that ends with many others never runs",
        "test_of_a_batch_that_ends_alike_each_job_keeps_what_is_its_own",
        {
            "postgresql": Edit("sql/postgresql/complete.sql", "       AND j.callbacks IS NULL\n", ""),
            "mysql": Edit("sql/mysql/complete.sql", "   AND callbacks IS NULL\n", ""),
        },
    ),
    Defect(
        name="alike-asks-nothing",
        breaks="where one of many is left out, the others are asked about later, when somebody may have touched them",
        edits=[Edit("sql/mysql/settled_if_short.sql", "IF(ROW_COUNT() = %(wanted)s,", "IF(%(wanted)s,")],
        tests=["tests/storage/test_mysql_callbacks.py::" + ONLY_THEN],
    ),
    Defect(
        name="commit-waits-for-the-event-loop",
        breaks="while a handler blocks the loop, an end that was on its way is rolled back, and its job runs again",
        edits=[
            Edit(
                "src/creche/storage/_mysql_calls.py",
                "return (await send(connection, [BEGIN, *statements, COMMIT]))[1:-1]",
                "answers = (await send(connection, [BEGIN, *statements]))[1:]\n"
                "        await send(connection, [COMMIT])\n"
                "        return answers",
            )
        ],
        tests=[BLOCKED],
    ),
    Defect(
        name="alike-whatever-the-result",
        breaks="a job has the result of another one",
        edits=[Edit(BATCHES, "each.event is Event.SUCCEED and each.result == result", "each.event is Event.SUCCEED")],
        tests=[kept("mysql", "test_of_a_batch_that_ends_alike_each_job_keeps_what_is_its_own")],
    ),
    *in_each(
        "alike-wakes-nobody",
        "whoever waits for one of many jobs that end together looks again only after a second",
        "test_each_job_of_a_batch_wakes_its_own_watchers",
        {
            "postgresql": Edit(
                "sql/postgresql/complete.sql", " WHERE w.job_id = ANY", " WHERE false AND w.job_id = ANY"
            ),
            "mysql": Edit(
                "sql/mysql/watched.sql", " WHERE job_id IN (%(ids)s)", " WHERE FALSE AND job_id IN (%(ids)s)"
            ),
        },
    ),
]

RIVALS: Final = [
    Defect(
        name="reserve-waits-for-rivals-postgresql",
        breaks="workers queue up behind each other's reserves",
        edits=[
            Edit(
                "sql/postgresql/reserve.sql",
                "                  FOR NO KEY UPDATE SKIP LOCKED\n           ) AS j",
                "                  FOR NO KEY UPDATE\n           ) AS j",
            )
        ],
        tests=["tests/storage/test_postgresql.py::test_a_reserve_locks_just_what_it_takes"],
        shows={"LockNotAvailable"},
    ),
    Defect(
        name="reserve-waits-for-rivals-mysql",
        breaks="workers queue up behind each other's reserves",
        edits=[Edit("sql/mysql/claim.sql", "   FOR UPDATE SKIP LOCKED", "   FOR UPDATE")],
        tests=["tests/storage/test_mysql_plans.py::test_a_claim_locks_what_it_takes_and_a_rival_takes_the_next"],
        shows={"OperationalError"},
    ),
    Defect(
        name="reserve-locks-nothing-postgresql",
        breaks="two workers take the same job",
        edits=[
            Edit(
                "sql/postgresql/reserve.sql",
                "                  FOR NO KEY UPDATE SKIP LOCKED\n           ) AS j",
                "           ) AS j",
            )
        ],
        tests=["tests/storage/test_postgresql.py::test_a_reserve_locks_just_what_it_takes"],
        shows={"LockNotAvailable"},
    ),
    Defect(
        name="reserve-sorts-on-mysql",
        breaks="a reserve locks every job that waits, and its rival gets nothing",
        edits=[
            Edit("sql/mysql/claim.sql", " ORDER BY ready_rank, available_at", " ORDER BY priority DESC, available_at")
        ],
        tests=["tests/storage/test_mysql_plans.py::test_a_claim_locks_what_it_takes_and_a_rival_takes_the_next"],
    ),
    Defect(
        name="clock-timestamp-in-the-due-filter",
        breaks="upkeep reads every scheduled job, for no index can be asked for what the clock says meanwhile",
        edits=[
            Edit(
                "sql/postgresql/promote.sql",
                "j.available_at <= coalesce(%(now)s::timestamptz, now())",
                "j.available_at <= coalesce(%(now)s::timestamptz, clock_timestamp())",
            )
        ],
        tests=[
            "tests/storage/test_postgresql_plans.py::test_an_index_is_asked_for_what_is_due_by_the_clock_and_not_walked_over"
        ],
    ),
]

LEASES: Final = [*FENCES, *ATTEMPTS, *UNKEPT, *ALIKE, *RIVALS]
