"""The conformance suite itself: it notices storages that break the contract, and none of its tests hides another."""

from __future__ import annotations

from collections import Counter
from functools import partial
from inspect import getmembers, isfunction, signature
from typing import Any

import anyio
import pytest

from broken_storages import (
    AnnouncesInTwoSteps,
    BeginsAnew,
    BelievesAnybody,
    BringsBackTogether,
    ComesTooLate,
    CommitsAtOnce,
    CommitsWhateverHappens,
    CountsEndsForEver,
    CountsReleases,
    CountsThePausedIn,
    DeletesHoweverItEnds,
    DeletesWhatAnotherHolds,
    DeletesWhatIsOfUse,
    DeletesWhatRuns,
    FoldsPayloads,
    FollowsAfterAwhile,
    FollowsAnyEnd,
    FollowsOnlyWhatWasSettled,
    ForgetsCallbacksThatHadNoTurn,
    ForgetsChains,
    ForgetsNobody,
    ForgetsTheNonce,
    GivesExpiredLeasesUp,
    HasOnlyGoodNews,
    IgnoresTheOrderOfQueues,
    IsHalfDoneWhenCancelled,
    JoinsWithEmptyHands,
    KeepsLettersAsToldByTheWorker,
    KeepsProgress,
    KeepsTheLetter,
    KeepsWhatNobodyKeeps,
    LeavesTheResultOut,
    LooksThenDeletes,
    LooksThenInserts,
    LosesSeconds,
    MentionsOnlyQueuesWithJobs,
    NeverForgetsWhoWatched,
    NeverRefreshes,
    NeverRings,
    NeverSaysThatItIsGone,
    NeverTellsWhoWatches,
    PadsNames,
    PausesAnew,
    PausesByCollation,
    PausesWhatIsDispatchedLater,
    PromisesMuch,
    PrunesFreshResults,
    RecoversBehindTheHoldersBack,
    RefreshesWhatIsOnItsWay,
    RepairsWhatItLooksAt,
    ResumesInSilence,
    SettlesTwice,
    ShortensLeases,
    ShowsWhatEachHeld,
    ShowsWhoIsGone,
    SwallowsCancellation,
    TakesAnyHandle,
    TakesOneTooMany,
    WakesNoHolder,
    WalksOverWhatIsKept,
    WritesAgain,
)
from creche._job import (
    Event,
    Status,
)
from creche.storage.memory import MemoryStorage
from creche.testing import StorageConformance
from creche.testing._conformance_base import BOOM, Suite
from creche.testing._conformance_ends import WAYS
from creche.testing._conformance_joins import MEETS


def test_no_test_of_one_part_hides_a_test_of_another() -> None:
    parts = [part for part in StorageConformance.__mro__ if issubclass(part, Suite)]
    names = Counter(name for part in parts for name in vars(part) if name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) == sum(name.startswith("test_") for name, _ in getmembers(StorageConformance, isfunction))


def test_every_part_of_the_suite_is_in_it() -> None:
    assert {part for part in Suite.__subclasses__() if part.__module__.startswith("creche.testing.")} <= {
        *StorageConformance.__mro__
    }


MUTANTS: dict[type[MemoryStorage], tuple[str, dict[str, Any]]] = {
    ForgetsTheNonce: ("test_to_settle_token_and_nonce_must_both_be_right", {"event": Event.SUCCEED}),
    TakesOneTooMany: ("test_never_more_than_the_limit_and_never_fewer_while_there_are_jobs", {}),
    IgnoresTheOrderOfQueues: ("test_queues_are_served_in_the_order_given", {}),
    PadsNames: ("test_queues_that_a_collation_would_confuse_are_different", {}),
    FoldsPayloads: ("test_a_handler_gets_exactly_the_bytes_that_were_sent", {"payload": b" 1 "}),
    LooksThenInserts: ("test_of_many_callers_with_one_fingerprint_exactly_one_inserts", {}),
    LosesSeconds: ("test_times_keep_their_microseconds", {}),
    ShortensLeases: ("test_it_never_brings_a_deadline_nearer", {}),
    GivesExpiredLeasesUp: ("test_a_lease_that_ran_out_but_was_not_recovered_settles", {"event": Event.SUCCEED}),
    SettlesTwice: ("test_settled_twice_is_accepted_twice_and_written_once", {"event": Event.ABORT}),
    KeepsWhatNobodyKeeps: ("test_what_succeeds_and_is_kept_for_no_time_goes_with_its_settle", {}),
    DeletesHoweverItEnds: ("test_the_others_of_its_batch_end_as_ever", {}),
    DeletesWhatAnotherHolds: ("test_what_is_there_is_not_gone", {}),
    DeletesWhatIsOfUse: ("test_a_cached_result_stays_and_answers", {}),
    NeverSaysThatItIsGone: ("test_sent_again_it_is_lost_and_gone", {}),
    CountsReleases: ("test_an_attempt_counts_unless_it_is_given_back", {"event": Event.RELEASE}),
    RecoversBehindTheHoldersBack: (
        "test_a_recovered_lease_writes_nothing",
        {"event": Event.SUCCEED, "max_attempts": 2},
    ),
    BringsBackTogether: ("test_jobs_that_were_held_together_are_due_at_moments_of_their_own", {}),
    PrunesFreshResults: ("test_a_fresh_result_keeps_its_row", {}),
    IsHalfDoneWhenCancelled: (
        "test_a_cancelled_write_is_whole_or_nothing_and_can_be_sent_again",
        {"name": "cancel", "checkpoints": 7},
    ),
    SwallowsCancellation: ("test_every_operation_is_a_checkpoint", {"name": "list"}),
    NeverRings: ("test_a_job_that_maintain_promotes_wakes", {}),
    FollowsAnyEnd: ("test_the_end_of_a_job_writes_the_callbacks_that_it_calls_for", {"way": WAYS["it fails"]}),
    FollowsOnlyWhatWasSettled: (
        "test_the_end_of_a_job_writes_the_callbacks_that_it_calls_for",
        {"way": WAYS["it is buried"]},
    ),
    ForgetsCallbacksThatHadNoTurn: (
        "test_a_job_that_succeeds_after_a_retry_runs_those_that_had_not_run",
        {"first": Event.FAIL},
    ),
    LeavesTheResultOut: ("test_its_payload_has_the_result_byte_for_byte", {}),
    ForgetsChains: ("test_a_chain_runs_link_by_link_each_with_the_result_before", {}),
    FollowsAfterAwhile: (
        "test_a_dispatch_that_joins_while_a_job_ends_has_its_callback_run_once",
        {"meets": MEETS["by key"], "ending": Event.SUCCEED},
    ),
    JoinsWithEmptyHands: (
        "test_a_dispatch_that_joins_adds_its_callbacks",
        {"meets": MEETS["by key"], "status": Status.PENDING},
    ),
    ComesTooLate: (
        "test_those_of_a_dispatch_that_meets_a_job_that_is_over_are_written_at_once",
        {"meets": MEETS["by fingerprint"], "status": Status.COMPLETED},
    ),
    WritesAgain: ("test_a_dispatch_that_is_sent_twice_records_its_callbacks_once", {"meets": MEETS["by key"]}),
    NeverRefreshes: ("test_of_many_callers_that_refresh_exactly_one_inserts", {}),
    RefreshesWhatIsOnItsWay: ("test_of_many_callers_that_refresh_exactly_one_inserts", {}),
    NeverTellsWhoWatches: ("test_the_end_of_a_job_wakes_who_watches_it", {"way": WAYS["it succeeds"]}),
    NeverForgetsWhoWatched: ("test_a_watch_that_is_over_wakes_nobody", {}),
    KeepsProgress: (
        "test_the_next_attempt_begins_without_progress",
        {"event": Event.RETRY, "options": {"error": BOOM}},
    ),
    BelievesAnybody: ("test_a_lease_that_another_holder_followed_reports_nothing", {}),
    CommitsAtOnce: ("test_nobody_sees_it_before_the_block_is_left", {}),
    CommitsWhateverHappens: ("test_left_by_an_exception_nothing_of_it_stays", {"event": Event.SUCCEED}),
    PausesWhatIsDispatchedLater: ("test_what_is_dispatched_waits", {}),
    CountsThePausedIn: ("test_a_paused_queue_is_as_if_it_had_not_been_named", {}),
    PausesAnew: ("test_one_that_is_paused_already_stays_so_since_then", {}),
    PausesByCollation: ("test_queues_that_a_collation_would_confuse_are_paused_one_by_one", {}),
    ResumesInSilence: ("test_to_resume_a_queue_wakes_who_listens_to_it", {}),
    KeepsLettersAsToldByTheWorker: (
        "test_a_queue_keeps_its_jobs_for_as_long_as_it_says_itself",
        {"status": Status.FAILED},
    ),
    WalksOverWhatIsKept: ("test_what_is_kept_longer_uses_up_no_limit", {}),
    DeletesWhatRuns: ("test_one_that_is_active_is_left_as_it_is", {"status": Status.PROCESSING}),
    KeepsTheLetter: ("test_its_dead_letter_goes_and_no_other", {"event": Event.FAIL}),
    LooksThenDeletes: ("test_a_job_is_either_deleted_or_retried_when_both_are_tried_at_once", {}),
    BeginsAnew: ("test_repeated_it_replaces_what_was_said_but_not_when_it_began", {}),
    ForgetsNobody: ("test_upkeep_forgets_who_was_not_seen_and_nobody_else", {}),
    ShowsWhoIsGone: ("test_it_is_there_until_its_time_has_run_out_and_no_longer", {}),
    ShowsWhatEachHeld: ("test_an_attempt_that_is_over_is_not_shown", {"event": Event.SUCCEED}),
    WakesNoHolder: ("test_a_cancellation_wakes_the_name_under_which_the_holder_reserved", {}),
    CountsEndsForEver: ("test_stats_count_an_end_for_a_minute_to_the_microsecond", {}),
    MentionsOnlyQueuesWithJobs: (
        "test_stats_name_each_queue_that_has_jobs_is_paused_or_keeps_its_own_time",
        {},
    ),
    PromisesMuch: ("test_a_storage_that_several_processes_can_use_has_a_twin", {}),
    HasOnlyGoodNews: ("test_it_finds_something_and_says_what_to_do_about_what_is_not_well", {}),
    RepairsWhatItLooksAt: ("test_it_changes_nothing", {}),
    AnnouncesInTwoSteps: (
        "test_a_cancelled_setting_is_whole_or_nothing_and_can_be_sent_again",
        {"name": "announce again", "checkpoints": 5},
    ),
    TakesAnyHandle: ("test_what_is_no_handle_is_refused_before_anything_is_written", {"connection": object()}),
}


async def _run(test: str, arguments: dict[str, Any], storage: MemoryStorage) -> None:
    async with storage:
        parameters = signature(getattr(StorageConformance, test)).parameters
        (given,) = {"storage", "wakeful", "unopened"}.intersection(parameters)
        await getattr(StorageConformance(), test)(**{given: storage}, **arguments)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_storage_that_breaks_the_contract_is_caught(
    mutant: type[MemoryStorage], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("creche.testing._conformance_listen.PATIENCE", 0.05)
    test, arguments = MUTANTS[mutant]
    anyio.run(partial(_run, test, arguments), MemoryStorage(), backend=backend)
    with pytest.raises((AssertionError, TimeoutError, ValueError, pytest.fail.Exception)):
        anyio.run(partial(_run, test, arguments), mutant(), backend=backend)
