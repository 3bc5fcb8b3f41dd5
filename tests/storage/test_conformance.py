"""The conformance suite itself: it notices storages that break the contract, and none of its tests hides another."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from inspect import getmembers, isfunction, signature
from typing import Any
from uuid import UUID

import anyio
import pytest
from attrs import evolve

from creche._job import (
    End,
    Event,
    Extension,
    Finding,
    FollowUp,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    On,
    Presence,
    Progress,
    QueueStats,
    Reservation,
    Settled,
    Settlement,
    Severity,
    Status,
    Upkeep,
    WorkerRecord,
)
from creche.abc import Capabilities, Transaction
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


# --- storages that break the contract in one way each -----------------------------------------------


class ForgetsTheNonce(MemoryStorage):
    """A counter alone fences."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        known = {
            each.lease: evolve(each.lease, nonce=row.nonce)
            for each in settlements
            if (row := self._rows.get(each.lease.job_id))
        }
        back = {real: said for said, real in known.items()}
        answer = await super().settle([evolve(each, lease=known.get(each.lease, each.lease)) for each in settlements])
        return Settled(
            accepted=frozenset(back.get(lease, lease) for lease in answer.accepted),
            lost=frozenset(back.get(lease, lease) for lease in answer.lost),
        )


class TakesOneTooMany(MemoryStorage):
    async def reserve(self, queues: Sequence[str], limit: int, **options: Any) -> Reservation:
        return await super().reserve(queues, limit + 1, **options)


class IgnoresTheOrderOfQueues(MemoryStorage):
    async def reserve(self, queues: Sequence[str], limit: int, **options: Any) -> Reservation:
        return await super().reserve(sorted(queues), limit, **options)


class PadsNames(MemoryStorage):
    """A collation that ignores trailing blanks."""

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        return await super().insert(
            [evolve(job, queue_name=job.queue_name.rstrip()) for job in jobs], now=now, connection=connection
        )


class FoldsPayloads(MemoryStorage):
    """A column type that understands JSON."""

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        return await super().insert(
            [evolve(job, payload=job.payload.strip()) for job in jobs], now=now, connection=connection
        )


class LooksThenInserts(MemoryStorage):
    """Single flight by asking first."""

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        free = [self._flying(job.fingerprint, self._moment(now)) is None for job in jobs]
        await anyio.lowlevel.checkpoint()
        return await super().insert(
            [evolve(job, fingerprint=None) if alone else job for job, alone in zip(jobs, free, strict=True)],
            now=now,
            connection=connection,
        )


class LosesSeconds(MemoryStorage):
    """A column without microseconds."""

    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        return await super().insert(jobs, now=now and now.replace(microsecond=0), connection=connection)


class ShortensLeases(MemoryStorage):
    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        answer = await super().extend(leases, seconds, progress=progress, now=now)
        for lease in answer.held:
            self._rows[lease.job_id].change(locked_until=(now or self._now()) + timedelta(seconds=seconds))
        return answer


class GivesExpiredLeasesUp(MemoryStorage):
    """An expired lease is lost before anybody took it back."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        moment = now or self._now()
        alive = [
            each
            for each in settlements
            if (row := self._rows.get(each.lease.job_id)) and (row.record.locked_until or moment) >= moment
        ]
        answer = await super().settle(alive, now=now)
        return evolve(answer, lost=frozenset(each.lease for each in settlements) - answer.accepted)


class SettlesTwice(MemoryStorage):
    """A repeated settlement has an effect."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        answer = await super().settle(settlements, now=now)
        for lease in answer.accepted:
            self._rows[lease.job_id].change(updated_at=now)
        return answer


class CountsReleases(MemoryStorage):
    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        answer = await super().settle(settlements, now=now)
        for each in settlements:
            if each.event is Event.RELEASE and (row := self._rows.get(each.lease.job_id)):
                row.change(attempts=row.record.attempts + 1)
        return answer


class RecoversBehindTheHoldersBack(MemoryStorage):
    """Recovery leaves the token, so that the old holder can still write."""

    async def maintain(self, limit: int, **options: Any) -> Upkeep:
        leases = {job_id: (row.token, row.nonce) for job_id, row in self._rows.items()}
        upkeep = await super().maintain(limit, **options)
        for job_id, row in self._rows.items():
            row.token, row.nonce = leases[job_id]
        return upkeep


class BringsBackTogether(MemoryStorage):
    """What was held by a worker that died is ready again at once, and can be taken together once more."""

    async def maintain(self, limit: int, **options: Any) -> Upkeep:
        held = [row for row in self._rows.values() if row.record.status is Status.PROCESSING]
        upkeep = await super().maintain(limit, **options)
        for row in held:
            if row.record.status is Status.SCHEDULED:
                row.change(status=Status.PENDING, available_at=row.record.updated_at)
        return upkeep


class PrunesFreshResults(MemoryStorage):
    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        answer = await super().settle(settlements, now=now)
        for lease in answer.accepted:
            self._rows[lease.job_id].change(result_expires_at=None)
        return answer


class IsHalfDoneWhenCancelled(MemoryStorage):
    """Each row is its own transaction."""

    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> dict[UUID, Status]:
        answer: dict[UUID, Status] = {}
        for job_id in job_ids:
            for _ in range(3):  # trio shuffles its tasks: a cancellation after five steps meets the middle all the same
                await anyio.lowlevel.checkpoint()
            answer.update(await super().cancel([job_id], now=now))
        return answer


class SwallowsCancellation(MemoryStorage):
    async def list(self, where: JobFilter, limit: int, *, before: UUID | None = None) -> Sequence[JobRecord]:
        shown: list[JobRecord] = []
        with anyio.CancelScope(shield=True):
            shown.extend(await super().list(where, limit, before=before))
        return shown


class NeverRings(MemoryStorage):
    def _wake(self, queues: object) -> None:
        pass


class FollowsAnyEnd(MemoryStorage):
    def _follow(self, row: Any, moment: datetime) -> set[str]:
        row.callbacks = [evolve(each, on=On.ALWAYS) for each in row.callbacks]
        return super()._follow(row, moment)


class FollowsOnlyWhatWasSettled(MemoryStorage):
    """An end that nobody holds is no end."""

    async def maintain(self, limit: int, **options: Any) -> Upkeep:
        kept = {job_id: row.callbacks for job_id, row in self._rows.items()}
        for row in self._rows.values():
            row.callbacks = []
        upkeep = await super().maintain(limit, **options)
        for job_id, callbacks in kept.items():
            self._rows[job_id].callbacks = callbacks
        return upkeep


class ForgetsCallbacksThatHadNoTurn(MemoryStorage):
    def _follow(self, row: Any, moment: datetime) -> set[str]:
        woken = super()._follow(row, moment)
        row.callbacks = []
        return woken


class LeavesTheResultOut(MemoryStorage):
    def _follow(self, row: Any, moment: datetime) -> set[str]:
        row.callbacks = [evolve(each, head=each.head + (each.tail or ""), tail=None) for each in row.callbacks]
        return super()._follow(row, moment)


class ForgetsChains(MemoryStorage):
    def _follow(self, row: Any, moment: datetime) -> set[str]:
        row.callbacks = [evolve(each, then=()) for each in row.callbacks]
        return super()._follow(row, moment)


class FollowsAfterAwhile(MemoryStorage):
    """Callbacks are looked at first, and the end is written later."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        seen = {each.lease.job_id: [*self._rows[each.lease.job_id].callbacks] for each in settlements}
        for _ in range(9):
            await anyio.lowlevel.checkpoint()
        for job_id, callbacks in seen.items():
            self._rows[job_id].callbacks = callbacks
        return self.settle_now(settlements, now=now)


class JoinsWithEmptyHands(MemoryStorage):
    def _record(self, callbacks: Sequence[FollowUp], row: Any, moment: datetime) -> set[str]:
        return super()._record([] if row.record.status.active else callbacks, row, moment)


class ComesTooLate(MemoryStorage):
    def _record(self, callbacks: Sequence[FollowUp], row: Any, moment: datetime) -> set[str]:
        return super()._record(callbacks if row.record.status.active else [], row, moment)


class WritesAgain(MemoryStorage):
    """A dispatch that is sent again writes its callbacks again."""

    def _record(self, callbacks: Sequence[FollowUp], row: Any, moment: datetime) -> set[str]:
        for each in callbacks:
            self._rows.pop(each.id, None)
        return super()._record(callbacks, row, moment)


class NeverRefreshes(MemoryStorage):
    def _flying(self, fingerprint: bytes | None, moment: datetime, *, refresh: bool = False) -> Any:
        return super()._flying(fingerprint, moment)


class RefreshesWhatIsOnItsWay(MemoryStorage):
    def _flying(self, fingerprint: bytes | None, moment: datetime, *, refresh: bool = False) -> Any:
        return None if refresh else super()._flying(fingerprint, moment)


class NeverTellsWhoWatches(MemoryStorage):
    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        return await super().watch(job_ids, watcher=watcher and "somebody else", over=over)


class NeverForgetsWhoWatched(MemoryStorage):
    async def watch(
        self, job_ids: Collection[UUID], *, watcher: str | None = None, over: Collection[UUID] = ()
    ) -> Mapping[UUID, End | None]:
        return await super().watch([*job_ids, *over], watcher=watcher)


class KeepsProgress(MemoryStorage):
    async def reserve(self, queues: Sequence[str], limit: int, **options: Any) -> Reservation:
        before = {job_id: row.record.progress for job_id, row in self._rows.items()}
        reservation = await super().reserve(queues, limit, **options)
        for job in reservation.jobs:
            self._rows[job.id].change(progress=before[job.id])
        return reservation


class BelievesAnybody(MemoryStorage):
    async def extend(
        self,
        leases: Collection[Lease],
        seconds: float,
        *,
        progress: Mapping[Lease, Progress] | None = None,
        now: datetime | None = None,
    ) -> Extension:
        for lease, said in (progress or {}).items():
            if lease.job_id in self._rows:
                self._rows[lease.job_id].change(progress=said)
        return await super().extend(leases, seconds, now=now)


class CommitsAtOnce(MemoryStorage):
    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        async with super().transaction() as transaction:

            class Eager:
                connection = None

                @staticmethod
                async def settle(settlement: Settlement, *, now: datetime | None = None) -> bool:
                    answer = await transaction.settle(settlement, now=now)
                    await self.settle([settlement], now=now)
                    return answer

            yield Eager()


class CommitsWhateverHappens(MemoryStorage):
    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        error: Exception | None = None
        async with super().transaction() as transaction:
            try:
                yield transaction
            except Exception as raised:  # noqa: BLE001 - that is the mistake
                error = raised
        if error is not None:
            raise error


class TakesAnyHandle(MemoryStorage):
    async def insert(
        self, jobs: Sequence[NewJob], *, now: datetime | None = None, connection: object = None
    ) -> Sequence[Insertion]:
        return await super().insert(jobs, now=now)


class PausesWhatIsDispatchedLater(MemoryStorage):
    """A pause is written on the jobs that wait, and not on the queue."""

    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        self._asleep = {job_id for job_id, row in self._rows.items() if row.record.queue_name in queues}

    async def reserve(self, queues: Sequence[str], limit: int, **options: Any) -> Reservation:
        asleep = {job_id: self._rows.pop(job_id) for job_id in getattr(self, "_asleep", ())}
        reservation = await super().reserve(queues, limit, **options)
        self._rows.update(asleep)
        return reservation


class CountsThePausedIn(MemoryStorage):
    """What is scheduled in a paused queue is announced, and the worker comes for it in vain."""

    async def reserve(self, queues: Sequence[str], limit: int, **options: Any) -> Reservation:
        reservation = await super().reserve(queues, limit, **options)
        return evolve(reservation, next_due_in=self._next_due_in(queues, self._moment(options.get("now"))))


class PausesAnew(MemoryStorage):
    async def pause(self, queues: Collection[str], *, now: datetime | None = None) -> None:
        await self.resume(queues)
        await super().pause(queues, now=now)


class PausesByCollation(MemoryStorage):
    async def reserve(self, queues: Sequence[str], limit: int, **options: Any) -> Reservation:
        paused = {queue.casefold() for queue in self._settings.paused}
        return await super().reserve([queue for queue in queues if queue.casefold() not in paused], limit, **options)


class ResumesInSilence(MemoryStorage):
    async def resume(self, queues: Collection[str]) -> None:
        for queue in queues:
            self._settings.paused.pop(queue, None)


class KeepsLettersAsToldByTheWorker(MemoryStorage):
    """A queue's own retention is forgotten where its dead letters are pruned."""

    async def maintain(self, limit: int, **options: Any) -> Upkeep:
        buried = {job_id: letter.queue_name for job_id, letter in self._dead.items()}
        upkeep = await super().maintain(limit, **options)
        for job_id in buried.keys() & self._dead.keys():
            if self._dead[job_id].buried_at + timedelta(seconds=options["retention"].failed) <= options["now"]:
                del self._dead[job_id]
        return upkeep


class WalksOverWhatIsKept(MemoryStorage):
    """The limit is spent on rows that are past the worker's retention, and kept by their queue's."""

    async def maintain(self, limit: int, **options: Any) -> Upkeep:
        own = self._settings.retentions
        kept = sum(row.record.queue_name in own and not row.record.status.active for row in self._rows.values())
        return await super().maintain(max(0, limit - kept), **options)


class DeletesWhatRuns(MemoryStorage):
    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        statuses = await super().delete(job_ids)
        for job_id in statuses:
            self._rows.pop(job_id, None)
        return statuses


class KeepsTheLetter(MemoryStorage):
    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        letters = dict(self._dead)
        statuses = await super().delete(job_ids)
        self._dead = letters
        return statuses


class LooksThenDeletes(MemoryStorage):
    """What it answers was read before it held the rows."""

    async def delete(self, job_ids: Collection[UUID]) -> Mapping[UUID, Status]:
        seen = {row.record.id: row.record.status for row in self._of(job_ids)}
        for _ in range(9):
            await anyio.lowlevel.checkpoint()
        await super().delete(job_ids)
        return seen


class BeginsAnew(MemoryStorage):
    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        self._workers.pop(presence.name, None)
        await super().announce(presence, ttl, now=now)


class ForgetsNobody(MemoryStorage):
    async def maintain(self, limit: int, **options: Any) -> Upkeep:
        there = dict(self._workers)
        upkeep = await super().maintain(limit, **options)
        self._workers = there
        return upkeep


class ShowsWhoIsGone(MemoryStorage):
    async def workers(self, *, now: datetime | None = None) -> Sequence[WorkerRecord]:
        return await super().workers(now=min(each.seen_at for each in self._workers.values()))


class ShowsWhatEachHeld(MemoryStorage):
    """A worker's name stays on the rows of its attempts."""

    async def settle(self, settlements: Sequence[Settlement], *, now: datetime | None = None) -> Settled:
        held = {each.lease.job_id: self._rows[each.lease.job_id].record.locked_by for each in settlements}
        answer = await super().settle(settlements, now=now)
        for job_id, worker in held.items():
            self._rows[job_id].change(locked_by=worker)
        return answer


class WakesNoHolder(MemoryStorage):
    async def cancel(self, job_ids: Collection[UUID], *, now: datetime | None = None) -> Mapping[UUID, Status]:
        held = [row for row in self._of(job_ids) if row.record.status is Status.PROCESSING]
        names = [row.record.locked_by for row in held]
        for row in held:
            row.change(locked_by=None)
        answer = await super().cancel(job_ids, now=now)
        for row, name in zip(held, names, strict=True):
            row.change(locked_by=name)
        return answer


class CountsEndsForEver(MemoryStorage):
    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        stats = await super().stats(now=now)
        return [evolve(each, finished=sum(n for s, n in each.counts.items() if not s.active)) for each in stats]


class MentionsOnlyQueuesWithJobs(MemoryStorage):
    async def stats(self, *, now: datetime | None = None) -> Sequence[QueueStats]:
        return [each for each in await super().stats(now=now) if each.counts]


class PromisesMuch(MemoryStorage):
    """What several processes can use, another thread can use too."""

    @property
    def capabilities(self) -> Capabilities:
        return evolve(super().capabilities, shared=True)


class HasOnlyGoodNews(MemoryStorage):
    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:
        return [evolve(each, severity=Severity.OK) for each in await super().check(concurrency=concurrency)]


class RepairsWhatItLooksAt(MemoryStorage):
    async def check(self, *, concurrency: int | None = None) -> Sequence[Finding]:
        await self.resume(list(self._settings.paused))
        return await super().check(concurrency=concurrency)


class AnnouncesInTwoSteps(MemoryStorage):
    """A cancellation between them leaves nobody there."""

    async def announce(self, presence: Presence, ttl: float, *, now: datetime | None = None) -> None:
        await self.withdraw(presence.name)
        for _ in range(9):
            await anyio.lowlevel.checkpoint()
        await super().announce(presence, ttl, now=now)


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
