"""Storages that break the contract in one way each: the memory storage, and one mistake. What judges storages has to
notice them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
from attrs import evolve
from msgspec.structs import replace

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
    Retention,
    Settled,
    Settlement,
    Severity,
    Status,
    Upkeep,
    WorkerRecord,
)
from creche.abc import Capabilities, Transaction
from creche.storage.memory import MemoryStorage


class ForgetsTheNonce(MemoryStorage):
    """A counter alone fences."""

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        known = {
            each.lease: replace(each.lease, nonce=row.nonce)
            for each in settlements
            if (row := self._rows.get(each.lease.job_id))
        }
        back = {real: said for said, real in known.items()}
        answer = await super().settle(
            [replace(each, lease=known.get(each.lease, each.lease)) for each in settlements], retention=retention
        )
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

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        moment = now or self._now()
        alive = [
            each
            for each in settlements
            if (row := self._rows.get(each.lease.job_id)) and (row.record.locked_until or moment) >= moment
        ]
        answer = await super().settle(alive, retention=retention, now=now)
        return evolve(answer, lost=frozenset(each.lease for each in settlements) - answer.accepted)


class SettlesTwice(MemoryStorage):
    """A repeated settlement has an effect."""

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        answer = await super().settle(settlements, retention=retention, now=now)
        for row in self._of([lease.job_id for lease in answer.accepted]):
            row.change(updated_at=now)
        return answer


class KeepsWhatNobodyKeeps(MemoryStorage):
    """What is kept for no time is left to upkeep."""

    def _delete_unkept(self, leases: Collection[Lease]) -> set[Lease]:
        return set()


class DeletesHoweverItEnds(MemoryStorage):
    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        answer = await super().settle(settlements, retention=retention, now=now)
        for row in self._of([lease.job_id for lease in answer.accepted]):
            if retention is not None and retention.completed == 0 and not row.record.status.active:
                del self._rows[row.record.id]
        return answer


class DeletesWhatAnotherHolds(MemoryStorage):
    """Whoever was overtaken deletes the job, and is told that the lease was lost."""

    def _delete_unkept(self, leases: Collection[Lease]) -> set[Lease]:
        gone = super()._delete_unkept(leases)
        for row in self._of([lease.job_id for lease in leases]):
            if row.record.status is Status.PROCESSING and not self._kept(row):
                del self._rows[row.record.id]
        return gone


class DeletesWhatIsOfUse(MemoryStorage):
    """Nobody asks for a result that is to answer for its fingerprint, for a queue's retention, or for who watches."""

    def _kept(self, row: Any) -> bool:
        return bool(row.callbacks)


class NeverSaysThatItIsGone(MemoryStorage):
    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        return evolve(await super().settle(settlements, retention=retention, now=now), gone=frozenset())


class CountsReleases(MemoryStorage):
    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        answer = await super().settle(settlements, retention=retention, now=now)
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
            row.token, row.nonce = leases.get(job_id, (row.token, row.nonce))
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
    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        answer = await super().settle(settlements, retention=retention, now=now)
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

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        seen = {each.lease.job_id: [*self._rows[each.lease.job_id].callbacks] for each in settlements}
        for _ in range(9):
            await anyio.lowlevel.checkpoint()
        for job_id, callbacks in seen.items():
            self._rows[job_id].callbacks = callbacks
        return self.settle_now(settlements, retention=retention, now=now)


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

    async def settle(
        self, settlements: Sequence[Settlement], *, retention: Retention | None = None, now: datetime | None = None
    ) -> Settled:
        held = {each.lease.job_id: self._rows[each.lease.job_id].record.locked_by for each in settlements}
        answer = await super().settle(settlements, retention=retention, now=now)
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
