"""Defects in the engine: when a handler may run, when it has to end, and who learns of it."""

from __future__ import annotations

from typing import Final

from sabotage.planting import BY_ITS_OWN_WORD, Defect, Edit

RESERVER: Final = "src/creche/_reserver.py"
RENEWER: Final = "src/creche/_renewer.py"
SETTLER: Final = "src/creche/_settler.py"
WAKE: Final = "src/creche/_wake.py"

DEADLINE: Final = "tests/engine/test_deadlines.py::"
WAKES_TESTS: Final = "tests/engine/test_wakes.py::"
VIRTUAL: Final = "tests/engine/test_worker_in_virtual_time.py::"
HOSTILE: Final = "tests/engine/test_hostile_handlers.py::"
SLOTS: Final = "tests/engine/test_slots.py::"
TRANSACTIONS: Final = "tests/engine/test_transactions.py::"
STANDING: Final = "tests/engine/test_standing.py::"

DEADLINES: Final = [
    Defect(
        name="deadline-from-after-the-reserve",
        breaks="a handler that was reserved slowly is still at work when somebody else may have its job",
        edits=[Edit(RESERVER, "deadline = sent + order", "deadline = anyio.current_time() + order")],
        tests=[DEADLINE + "test_it_counts_from_before_the_reserve_was_sent"],
    ),
    Defect(
        name="deadline-from-after-the-renewal",
        breaks="a handler that was renewed slowly is still at work when somebody else may have its job",
        edits=[Edit(RENEWER, "each.postpone(sent + self", "each.postpone(anyio.current_time() + self")],
        tests=[DEADLINE + "test_it_counts_from_before_the_renewal_was_sent"],
    ),
    Defect(
        name="deadline-from-after-the-extension",
        breaks="a handler that extended its lease slowly is still at work when somebody else may have its job",
        edits=[
            Edit(
                "src/creche/_attempt.py", "held.postpone(sent + seconds", "held.postpone(anyio.current_time() + seconds"
            )
        ],
        tests=[DEADLINE + "test_it_counts_from_before_the_extension_was_sent"],
    ),
    Defect(
        name="no-margin",
        breaks="a cancelled handler has no time to clean up before its job may be somebody else's",
        edits=[Edit("src/creche/_supervisor.py", "return min(self.lease / 10, 2.0)", "return 0.0")],
        tests=[DEADLINE + "test_it_counts_from_before_the_reserve_was_sent"],
    ),
    Defect(
        name="no-local-deadline",
        breaks="a worker that is cut off from its database goes on with jobs that others run by now",
        edits=[
            Edit(
                "src/creche/_leases.py",
                "                if held.expired and held.verdict is not Verdict.LOST:\n"
                "                    held.revoke(Verdict.LOST)\n",
                "                if held.expired and held.verdict is not Verdict.LOST:\n"
                "                    held.verdict = Verdict.LOST\n",
            )
        ],
        tests=[VIRTUAL + "test_what_cannot_be_renewed_is_cancelled_before_the_database_can_give_it_away"],
    ),
    Defect(
        name="expired-handler-begins",
        breaks="a handler begins although a neighbour has blocked the loop past its lease",
        edits=[
            Edit(
                "src/creche/_attempt.py",
                "            elif held.end > now:",
                "            elif held.end > 0:",
            )
        ],
        tests=[HOSTILE + "test_a_handler_does_not_begin_after_a_neighbour_blocked_the_loop_past_its_lease"],
    ),
    Defect(
        name="token-without-random-bits",
        breaks="after a failover that lost the reserve, two holders have the same lease, and both write",
        edits=[Edit(RESERVER, "nonce=new_nonce(),", "nonce=1,")],
        tests=[DEADLINE + "test_of_two_that_a_failover_gave_the_same_token_the_first_is_refused"],
    ),
]

RENEWALS: Final = [
    Defect(
        name="renew-ignores-the-answer",
        breaks="a handler whose job was given to somebody else goes on beside it",
        edits=[Edit(RENEWER, "if each.lease in extension.lost:", "if not each.lease:")],
        tests=[VIRTUAL + "test_a_lost_lease_cancels_the_handler_and_writes_nothing"],
    ),
    Defect(
        name="renew-ignores-cancellations",
        breaks="a running job can't be cancelled",
        edits=[Edit(RENEWER, "each.lease in extension.cancel_requested and", "not each.lease and")],
        tests=[VIRTUAL + "test_a_running_job_is_cancelled_by_way_of_the_renewal"],
    ),
    Defect(
        name="renewer-ends-with-the-jobs",
        breaks="leases run out while the last ends are being written, and the jobs run again",
        edits=[Edit(RENEWER, "self._scope = CancelScope(shield=True)", "self._scope = CancelScope()")],
        tests=[DEADLINE + "test_what_takes_its_time_to_clean_up_is_renewed_though_its_worker_was_cancelled"],
    ),
    Defect(
        name="watchdog-renews-nothing",
        breaks="a handler that blocks the event loop for longer than the lease is run twice",
        edits=[Edit("src/creche/_watchdog.py", "extend([each.lease for each in held], self", "extend([], self")],
        tests=["tests/engine/test_watchdog.py::test_a_handler_that_blocks_the_loop_for_three_leases_runs_once"],
    ),
    Defect(
        name="watchdog-waits-for-a-settle",
        breaks="a settle that a blocked event loop can't end keeps all of its leases from being renewed",
        edits=[Edit("src/creche/_watchdog.py", "if not (each.settling or each.ended)]", "if not each.settling]")],
        tests=["tests/engine/test_watchdog.py::test_a_job_that_its_settle_has_locked_keeps_nobody_from_being_renewed"],
    ),
]

ENDS: Final = [
    Defect(
        name="failed-acknowledgement-is-dropped",
        breaks="a job that succeeded while the database was away for a moment runs again",
        edits=[
            Edit(
                SETTLER,
                "        expired = [ended for ended in batch if ended[0].end <= sent]\n",
                "        expired = [*batch]\n",
            )
        ],
        tests=[VIRTUAL + "test_an_acknowledgement_that_fails_is_retried_while_the_lease_holds"],
        shows={"JobFailed"},
    ),
    Defect(
        name="pruned-commit-is-taken-for-lost",
        breaks="a handler whose transaction was committed is told that it was rolled back, for its row is gone since",
        edits=[Edit("src/creche/_attempt.py", "if self.lease in settled.gone and not", "if not self.lease and not")],
        tests=[
            TRANSACTIONS + "test_a_commit_whose_answer_is_lost_and_whose_job_is_pruned_since_is_found_out_too",
        ],
    ),
    Defect(
        name="settler-ends-with-the-jobs",
        breaks="what a stopped worker held comes back only when its leases have run out",
        edits=[Edit(SETTLER, "self._scope = CancelScope(shield=True)", "self._scope = CancelScope()")],
        tests=[VIRTUAL + "test_cancelling_the_host_gives_leases_back_before_the_cancellation_goes_through"],
    ),
    Defect(
        name="reserve-is-cut-off",
        breaks="jobs that a stopping worker had just taken wait for their leases to run out, an attempt less",
        edits=[Edit(RESERVER, "with CancelScope(shield=True, deadline=sent", "with CancelScope(deadline=sent")],
        tests=[VIRTUAL + "test_what_a_reserve_in_flight_brings_while_the_worker_stops_is_given_back"],
    ),
    Defect(
        name="failure-while-stopping-counts",
        breaks="an error that a handler raises because it is cancelled by a stop spends an attempt",
        edits=[
            Edit(
                "src/creche/_attempt.py",
                "            return _RELEASED  # an error raised while the whole",
                "            return outcome  # an error raised while the whole",
            )
        ],
        tests=["tests/engine/test_worker.py::test_a_task_group_that_fails_while_the_worker_stops_is_given_back"],
    ),
    Defect(
        name="hook-ends-the-worker",
        breaks="a hook that raises takes the worker along",
        edits=[
            Edit(
                "src/creche/_events.py",
                "            except BaseException:  # noqa: BLE001 - nothing waits here: no cancellation is ours\n"
                "                _log_failure(listener, event)\n",
                "            except ZeroDivisionError:\n                _log_failure(listener, event)\n",
            )
        ],
        tests=["tests/engine/test_worker.py::test_hooks_hear_everything_and_can_break_nothing"],
        shows={"RuntimeError"},
    ),
    Defect(
        name="back-off-settles-wrongly",
        breaks="a back-off that raises kills the worker",
        edits=[
            Edit(
                "src/creche/_lifecycle.py",
                "    except Exception:  # noqa: BLE001, S110",
                "    except ZeroDivisionError:  #",
            )
        ],
        tests=["tests/engine/test_worker.py::test_a_raising_back_off_is_replaced_by_the_default"],
        shows={"RuntimeError"},
    ),
]

WAKES: Final = [
    Defect(
        name="notify-without-poll",
        breaks="a wake that is lost leaves a job lying for as long as nobody else dispatches",
        edits=[Edit(WAKE, "self._looked_after else self._poll_interval\n", "self._looked_after else math.inf\n")],
        tests=[WAKES_TESTS + "test_a_wake_that_is_lost_costs_no_more_than_a_poll"],
    ),
    Defect(
        name="upkeep-that-fails-is-trusted",
        breaks="a worker that leaves its polls to upkeep finds nothing while that fails",
        edits=[Edit("src/creche/_maintenance.py", "                self._doorbell.left_alone()\n", "")],
        tests=[WAKES_TESTS + "test_who_relies_on_upkeep_looks_for_itself_while_that_fails"],
    ),
    Defect(
        name="reconnected-listener-looks-not",
        breaks="what was dispatched while a listener was being replaced waits for the next poll",
        edits=[Edit(WAKE, "                    self._doorbell.ring()  # wakes may have been missed meanwhile\n", "")],
        tests=[WAKES_TESTS + "test_a_listener_that_is_back_makes_the_worker_look_at_once"],
    ),
    Defect(
        name="broken-listener-is-trusted",
        breaks="after its listener broke, a worker looks for jobs as seldom as if it still heard",
        edits=[
            Edit(
                WAKE,
                "            except StorageUnavailable as error:\n                self._doorbell.listening = False\n",
                "            except StorageUnavailable as error:\n",
            )
        ],
        tests=[WAKES_TESTS + "test_whoever_has_lost_its_listener_looks_again_soon_after_work"],
    ),
    Defect(
        name="cool-down-after-a-full-batch",
        breaks="a backlog is worked off at the pace of the poll interval",
        edits=[Edit(RESERVER, "again = again or len(reservation.jobs) >= room", "again = False")],
        tests=[VIRTUAL + "test_a_backlog_is_drained_without_a_pause_between_batches"],
    ),
    Defect(
        name="slow-job-blocks-the-batch",
        breaks="one slow job keeps all other slots empty",
        edits=[
            Edit(
                RESERVER,
                "        while self._room() <= 0:",
                "        while self._room() <= 0 or self._slots.running:",
            )
        ],
        tests=[VIRTUAL + "test_a_slow_job_never_blocks_free_slots"],
    ),
    Defect(
        name="long-jobs-are-hoarded",
        breaks="jobs that were reserved ahead of some that grew long wait for them, though other workers have slots",
        edits=[Edit(RESERVER, "(late := self._slots.withdraw(anyio", "(late := self._slots.withdraw(-anyio")],
        tests=[SLOTS + "test_what_waits_behind_jobs_that_grew_long_is_given_back_unspent"],
    ),
    Defect(
        name="payloads-without-bound",
        breaks="a worker reserves two gigabytes of large payloads ahead",
        edits=[
            Edit(
                "src/creche/_pace.py",
                "return min(ahead, int(_BYTES / self._size)) if self._size else ahead",
                "return ahead",
            )
        ],
        tests=[SLOTS + "test_of_large_payloads_fewer_are_reserved_ahead"],
    ),
    Defect(
        name="stop-keeps-what-waits",
        breaks="a worker that is told to stop begins jobs that it had reserved ahead",
        edits=[
            Edit(
                "src/creche/_supervisor.py",
                "        self._end_intake()\n        self._give_back(self._slots.withdraw())\n",
                "        self._end_intake()\n",
            )
        ],
        tests=[SLOTS + "test_told_to_begin_no_more_it_gives_back_what_it_has_not_begun"],
    ),
    Defect(
        name="slot-hands-on-its-context",
        breaks="a job finds the context variables that the one before it has set",
        edits=[Edit("src/creche/_slots.py", "cancelling() != asked or not _same(clean)", "cancelling() != asked")],
        tests=[SLOTS + "test_no_job_finds_the_context_variables_of_another"],
    ),
    Defect(
        name="slot-hands-on-a-cancellation",
        breaks="a handler that cancels its own task on asyncio fails the next job",
        edits=[
            Edit("src/creche/_slots.py", "if me.has_pending_cancellation():", "if not me:"),
            Edit("src/creche/_slots.py", "retired = cancelling() != asked or ", "retired = "),
        ],
        tests=[SLOTS + "test_a_cancellation_that_a_handler_asked_for_itself_strikes_no_other"],
    ),
    Defect(
        name="slot-is-told-of-former-cancellations",
        breaks="a job's task groups fail because one before it, on asyncio, has swallowed a cancellation",
        edits=[Edit("src/creche/_slots.py", "retired = cancelling() != asked or ", "retired = ")],
        tests=[SLOTS + "test_a_cancellation_that_was_swallowed_is_not_in_the_next_job_s_task"],
    ),
    Defect(
        name="slot-heeds-a-timer",
        breaks="a timer that a handler left behind, and that cancels its task on asyncio, ends the whole worker",
        edits=[
            Edit(
                "src/creche/_slots.py",
                "            if anyio.current_effective_deadline() == -math.inf:\n                raise\n",
                "            raise\n",
            )
        ],
        tests=[SLOTS + "test_a_cancellation_that_a_handler_left_behind_ends_no_worker"],
    ),
    Defect(
        name="odd-handler-ends-the-worker",
        breaks="a handler that cancels its own task while its job is being cancelled takes the worker along",
        edits=[
            Edit(
                "src/creche/_attempt.py",
                "            if anyio.current_effective_deadline() == -math.inf:\n                raise\n",
                "            if scope.cancel_called:\n                raise\n",
            )
        ],
        tests=[
            SLOTS + "test_a_handler_that_cancels_its_own_task_while_it_is_cancelled_ends_as_cancelled_and_no_other_does"
        ],
        shows={"JobCancelled", *BY_ITS_OWN_WORD},
    ),
    Defect(
        name="deleted-is-taken-for-lost",
        breaks="a settle that deleted its jobs, and whose answer was lost, counts as a lost lease",
        edits=[Edit(SETTLER, "                if settled.gone:", "                if not settled:")],
        tests=[SLOTS + "test_a_settle_that_deleted_and_was_not_answered_is_no_lost_lease"],
    ),
    Defect(
        name="delayed-job-waits-for-a-round",
        breaks="a delayed job starts up to a whole round of upkeep late",
        edits=[
            Edit(
                "src/creche/_maintenance.py",
                "                if news is not None:",
                "                if news is not None and news < 0:",
            )
        ],
        tests=[VIRTUAL + "test_a_delayed_job_starts_at_the_moment_it_is_due"],
    ),
]

ENGINE: Final = [*DEADLINES, *RENEWALS, *ENDS, *WAKES]
