"""Defects in how databases are reached: connections, sessions, errors, clocks, wakes."""

from __future__ import annotations

from typing import Final

from sabotage.planting import Defect, Edit

PSYCOPG: Final = "src/creche/storage/_psycopg.py"
ASYNCMY: Final = "src/creche/storage/_asyncmy.py"
POOL: Final = "src/creche/storage/_pool.py"
LISTENER: Final = "src/creche/storage/_postgresql_listener.py"

PSYCOPG_TESTS: Final = "tests/storage/test_psycopg_driver.py::"
ASYNCMY_TESTS: Final = "tests/storage/test_asyncmy_driver.py::"
POSTGRESQL_TESTS: Final = "tests/storage/test_postgresql.py::"
POOL_TESTS: Final = "tests/storage/test_pool.py::"

CANCELLATION: Final = [
    Defect(
        name="cancel-sent-during-commit",
        breaks="a commit that waits for its standby is cut short, and reported as a success that no standby has",
        edits=[
            Edit(
                PSYCOPG,
                "    if scope.cancelled_caught:\n        connection.cancel()\n",
                "    if scope.cancelled_caught:\n"
                "        connection.pgconn.get_cancel().cancel()\n        connection.cancel()\n",
            )
        ],
        tests=[PSYCOPG_TESTS + "test_a_commit_without_an_answer_ends_with_an_unknown_outcome"],
    ),
    Defect(
        name="cancel-sent-during-a-statement",
        breaks="a write that nobody waits for any more is undone, or half of what was to follow",
        edits=[
            Edit(
                PSYCOPG,
                "            if not orderly and self._in_flight():\n                self.cancel()\n",
                "            if not orderly and self._in_flight():\n"
                "                self.pgconn.get_cancel().cancel()\n                self.cancel()\n",
            )
        ],
        tests=[PSYCOPG_TESTS + "test_a_cancelled_write_is_not_cancelled_on_the_server"],
    ),
    Defect(
        name="commit-torn-by-a-cancellation",
        breaks="whoever is cancelled while it commits does not know whether it has",
        edits=[
            Edit(
                PSYCOPG,
                "with CancelScope(shield=True, deadline=deadline) as scope:",
                "with CancelScope(deadline=deadline) as scope:",
            )
        ],
        tests=[PSYCOPG_TESTS + "test_a_commit_is_not_torn_by_a_cancellation"],
    ),
    Defect(
        name="unreplicated-commit-is-a-success",
        breaks="a commit that gave up on its standby is answered as if it were safe",
        edits=[Edit(PSYCOPG, "            self._unreplicated = True\n", "            pass\n")],
        tests=[PSYCOPG_TESTS + "test_a_commit_that_gave_up_on_its_standby_is_no_success"],
    ),
    Defect(
        name="cancelled-connection-is-lent-again",
        breaks="one call gets the answer to another",
        edits=[
            Edit(
                POOL,
                "        except Exception:\n            keep = True\n            raise\n",
                "        except BaseException:\n            keep = True\n            raise\n",
            )
        ],
        tests=[POOL_TESTS + "test_an_error_keeps_a_clean_connection_and_a_cancellation_does_not"],
    ),
    Defect(
        name="cancelled-statement-keeps-its-socket",
        breaks="one call gets the answer to another",
        edits=[
            Edit(
                ASYNCMY,
                "            if self._in_flight:  # in the middle of an answer\n                self.drop()\n",
                "            self._in_flight = False\n",
            )
        ],
        tests=[ASYNCMY_TESTS + "test_a_cancelled_statement_returns_at_once_and_drops_the_socket"],
    ),
    Defect(
        name="dirty-connection-is-lent-again",
        breaks="a call runs inside of a transaction that somebody else had begun, and commits it",
        edits=[
            Edit(POOL, "keep and not self._closed and self._driver.clean(held.connection)", "keep and not self._closed")
        ],
        tests=[POOL_TESTS + "test_what_comes_back_dirty_or_broken_is_closed"],
    ),
    Defect(
        name="child-ends-its-parents-session",
        breaks="a fork that ends takes its parent's connections along",
        edits=[
            Edit(
                PSYCOPG,
                "        if os.getpid() != self._pid:\n            return  # a forked child: the socket",
                "        if os.getpid() == 0:\n            return  # a forked child: the socket",
            )
        ],
        tests=[POOL_TESTS + "test_a_forked_child_leaves_its_parents_connections_alone"],
    ),
]

SESSIONS: Final = [
    Defect(
        name="found-rows-off",
        breaks="a renewal that changes nothing is taken for a lost lease",
        edits=[Edit(ASYNCMY, '    "FOUND_ROWS": CLIENT.FOUND_ROWS,\n', "")],
        tests=[ASYNCMY_TESTS + "test_an_update_counts_the_rows_that_it_found"],
    ),
    Defect(
        name="read-committed-dropped",
        breaks="workers lock the gaps between jobs, and dispatches wait for them or end in deadlocks",
        edits=[
            Edit(ASYNCMY, "ISOLATION LEVEL READ COMMITTED, READ WRITE", "ISOLATION LEVEL REPEATABLE READ, READ WRITE"),
            Edit(ASYNCMY, '"transaction_isolation": "READ-COMMITTED"', '"transaction_isolation": "REPEATABLE-READ"'),
        ],
        tests=[ASYNCMY_TESTS + "test_the_session_is_ours_whatever_the_server_s_defaults_are"],
    ),
    Defect(
        name="backslashes-escape",
        breaks="a payload with a backslash before a quote ends its literal, and the rest of it is SQL",
        edits=[
            Edit(
                ASYNCMY,
                '"STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_BACKSLASH_ESCAPES"',
                '"STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION"',
            )
        ],
        tests=[ASYNCMY_TESTS + "test_the_session_is_ours_whatever_the_server_s_defaults_are"],
        shows={"ConfigurationError"},  # each connection is held against what it should be
    ),
    Defect(
        name="prepared-behind-a-pooler",
        breaks="behind a pooler the sixth call of a kind finds a prepared statement that isn't there",
        edits=[
            Edit(
                "src/creche/storage/_psycopg.py",
                "        if answer == (True,):",
                "        if answer:",
            )
        ],
        tests=[
            "tests/storage/test_postgresql_prepared.py::test_nothing_stays_in_a_session_that_somebody_else_may_get_next"
        ],
    ),
    Defect(
        name="backlog-by-a-kept-plan",
        breaks="a plan that was made while the table was empty is used for a million jobs",
        edits=[
            Edit(
                "src/creche/storage/postgresql.py",
                "        steady = not self._backlog\n",
                "        steady = True\n",
            )
        ],
        tests=["tests/storage/test_postgresql_prepared.py::test_with_a_backlog_each_reserve_is_planned_anew"],
    ),
    Defect(
        name="worker-clock-in-postgresql",
        breaks="a worker whose clock is ahead takes back jobs that others hold",
        edits=[
            Edit(
                "src/creche/storage/postgresql.py",
                'documents.array(tuple(types)),\n            "now": now,\n',
                'documents.array(tuple(types)),\n            "now": now or datetime.now().astimezone(),\n',
            )
        ],
        tests=["tests/storage/test_clocks.py::test_every_time_that_is_written_is_the_database_s"],
    ),
    Defect(
        name="worker-clock-in-mysql",
        breaks="a worker whose clock is ahead takes back jobs that others hold",
        edits=[
            Edit(
                "src/creche/storage/_mysql_literals.py",
                'return Expression("UTC_TIMESTAMP(6)" if now is None else literal(now))',
                "return Expression(literal(now or datetime.now(UTC)))",
            )
        ],
        tests=["tests/storage/test_clocks.py::test_every_time_that_is_written_is_the_database_s"],
    ),
    Defect(
        name="sqlite-commits-in-memory",
        breaks="a power cut takes jobs along that were acknowledged",
        edits=[
            Edit(
                "src/creche/storage/sqlite.py",
                'path: str | Path, *, synchronous: Synchronous = "FULL"',
                'path: str | Path, *, synchronous: Synchronous = "NORMAL"',
            )
        ],
        tests=["tests/storage/test_sqlite.py::test_by_default_a_commit_waits_for_the_disk"],
    ),
    Defect(
        name="sqlite-reads-before-it-locks",
        breaks="a write fails at once where another process is writing, and whatever it has read before is stale",
        edits=[
            Edit(
                "src/creche/storage/_sqlite3.py", 'connection.execute("BEGIN IMMEDIATE")', 'connection.execute("BEGIN")'
            )
        ],
        tests=["tests/storage/test_sqlite.py::test_a_lock_that_is_given_back_in_time_is_waited_for"],
        shows={"StorageUnavailable"},
    ),
]

ERRORS: Final = [
    Defect(
        name="group-replication-is-fatal",
        breaks="on a cluster with several writers the loser of a certification is told that its statement is wrong",
        edits=[
            Edit(
                ASYNCMY,
                "CONFLICTS: Final = frozenset({1020, 1180, 1205, 1213, 1412, 3101, 3572})",
                "CONFLICTS: Final = frozenset({1020, 1205, 1213, 1412, 3572})",
            )
        ],
        tests=["tests/faults/test_mysql_storage_faults.py::test_whatever_the_server_undoes_is_run_again"],
        shows={"StatementRejected"},
    ),
    Defect(
        name="deadlock-is-fatal",
        breaks="of two batches that met in a deadlock one is lost",
        edits=[
            Edit(
                PSYCOPG,
                'CONFLICTS: Final = frozenset({"40001", "40P01", "55P03"})',
                'CONFLICTS: Final = frozenset({"40001"})',
            )
        ],
        tests=["tests/faults/test_postgresql_storage_faults.py::test_a_deadlock_is_resolved_by_running_one_side_again"],
        shows={"StatementRejected"},
    ),
    Defect(
        name="demoted-primary-is-fatal-on-postgresql",
        breaks="after a failover a worker goes on asking the server that takes no writes any more",
        edits=[Edit(PSYCOPG, '"57014", "25006", "25P03"', '"57014", "25P03"')],
        tests=[POSTGRESQL_TESTS + "test_a_server_that_reads_only_is_unavailable"],
        shows={"StatementRejected"},
    ),
    Defect(
        name="demoted-primary-is-fatal-on-mysql",
        breaks="after a failover a worker goes on asking the server that takes no writes any more",
        edits=[Edit(ASYNCMY, "        *(1290, 1792, 1836),  # read-only", "        *(1792, 1836),  # read-only")],
        tests=[ASYNCMY_TESTS + "test_each_code_has_one_meaning"],
        shows={"StatementRejected"},
    ),
    Defect(
        name="cut-connection-fails-the-call",
        breaks="a restart of the server costs every caller an error",
        edits=[Edit("src/creche/storage/_calls.py", "BREAKS: Final = 6", "BREAKS: Final = 1")],
        tests=[
            "tests/faults/test_postgresql_storage_faults.py::test_a_call_whose_connection_is_cut_while_it_waits_is_sent_again"
        ],
        shows={"StorageUnavailable"},
    ),
    Defect(
        name="call-without-a-deadline",
        breaks="against a frozen server a worker waits for ever, and its handlers run on beside others",
        edits=[
            Edit("src/creche/storage/_calls.py", "with move_on_after(self.timeout) as", "with move_on_after(None) as")
        ],
        tests=[
            "tests/faults/test_postgresql_storage_faults.py::test_a_call_to_a_frozen_server_ends_in_time_and_can_be_sent_again"
        ],
    ),
    Defect(
        name="reconnect-storm",
        breaks="a server that comes back is met by every client at once, again and again",
        edits=[Edit(POOL, "LONGEST_DELAY: Final = 5.0", "LONGEST_DELAY: Final = 0.25")],
        tests=[POOL_TESTS + "test_a_server_that_is_down_for_a_minute_is_asked_at_most_twenty_times"],
    ),
    Defect(
        name="passwords-are-shown",
        breaks="a password stands in logs and tracebacks",
        edits=[
            Edit(
                "src/creche/storage/__init__.py",
                '        text = form.sub(r"\\g<before>***", text)\n',
                '        text = form.sub(r"\\g<0>", text)\n',
            )
        ],
        tests=["tests/engine/test_bad_input.py::test_a_password_is_never_shown"],
    ),
]

LISTENERS: Final = [
    Defect(
        name="deaf-listener-is-believed",
        breaks="behind a pooler nothing is ever heard, and nothing is polled for",
        edits=[
            Edit(
                LISTENER,
                "sql.Identifier(self._channel)))\n        await self._prove(connection)\n",
                "sql.Identifier(self._channel)))\n",
            )
        ],
        tests=[POSTGRESQL_TESTS + "test_a_listener_that_hears_nothing_says_so"],
    ),
    Defect(
        name="silence-is-never-questioned",
        breaks="a listener whose connection went deaf is trusted for ever",
        edits=[
            Edit(
                LISTENER,
                "current_time() + _silence()\n            await self._prove(connection)\n",
                "current_time() + _silence()\n",
            )
        ],
        tests=[POSTGRESQL_TESTS + "test_a_listener_that_went_deaf_is_found_out"],
    ),
    Defect(
        name="last-wake-is-not-sent",
        breaks="what a program dispatches just before it ends is found by a poll",
        edits=[
            Edit(
                "src/creche/storage/postgresql.py",
                "            await opened.wakes.notifier.flush()\n",
                "            pass\n",
            )
        ],
        tests=[POSTGRESQL_TESTS + "test_a_producer_that_ends_at_once_has_woken_the_others"],
    ),
    Defect(
        name="aloud-each-time",
        breaks="each dispatch makes all others wait that notify as they commit",
        edits=[Edit("src/creche/storage/_notifier.py", "SELDOM: Final = 10", "SELDOM: Final = 0")],
        tests=[
            "tests/storage/test_notifier.py::test_after_a_silence_a_call_may_wake_as_it_commits_and_then_not_for_ten_times_as_long"
        ],
    ),
    Defect(
        name="notify-for-each-insert",
        breaks="each dispatch wakes every worker, and takes a lock of the whole server at its commit",
        edits=[
            Edit(
                "src/creche/storage/_notifier.py",
                "            await anyio.sleep_until(self._sent + self._pause)\n",
                "            await anyio.sleep(0)\n",
            )
        ],
        tests=[POSTGRESQL_TESTS + "test_many_inserts_are_few_notifications"],
    ),
]

DRIVERS: Final = [*CANCELLATION, *SESSIONS, *ERRORS, *LISTENERS]
