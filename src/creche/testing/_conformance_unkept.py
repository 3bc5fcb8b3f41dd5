"""A settle of jobs that are kept for no time: their rows go with it, unless somebody has still a use for them."""

from __future__ import annotations

from uuid import UUID

import pytest

from creche._job import Event, Lease, Retention, Settled, Settlement, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    FOREVER,
    T0,
    Suite,
    add,
    ask,
    at,
    everything,
    extend,
    follow_up,
    hold,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
)

NONE = Retention(completed=0)


async def end(storage: Storage, *leases: Lease, event: Event = Event.SUCCEED, retention: Retention = NONE) -> Settled:
    """Settle leases whose jobs are kept for so long."""
    error = BOOM if event in {Event.RETRY, Event.FAIL, Event.DISCARD} else None
    settlements = [Settlement(lease=lease, event=event, error=error) for lease in leases]
    return await storage.settle(settlements, retention=retention, now=T0)


def done(*leases: Lease) -> Settled:
    """Return the answer in which all was accepted."""
    return Settled(accepted=frozenset(leases), lost=frozenset())


class UnkeptConformance(Suite):
    """`Storage.settle` with a retention that keeps nothing."""

    async def test_what_succeeds_and_is_kept_for_no_time_goes_with_its_settle(self, storage: Storage) -> None:
        leases = [await hold(storage, queue_name=name) for name in ("a", "b", "c")]
        assert await end(storage, *leases) == done(*leases)
        assert await everything(storage) == ((), ())

    async def test_the_others_of_its_batch_end_as_ever(self, storage: Storage) -> None:
        events = [Event.SUCCEED, Event.RETRY, Event.FAIL, Event.SNOOZE, Event.RELEASE, Event.SUCCEED]
        leases = [await hold(storage) for _ in events]
        settlements = [
            Settlement(
                lease=lease, event=event, error=BOOM if event in {Event.RETRY, Event.FAIL} else None, delay=delay
            )
            for lease, event, delay in zip(leases, events, [0, 60, 0, 60, 0, 0], strict=True)
        ]
        assert await storage.settle(settlements, retention=NONE, now=T0) == done(*leases)
        found = await storage.find([lease.job_id for lease in leases])
        assert {place: found[lease.job_id].status for place, lease in enumerate(leases) if lease.job_id in found} == {
            1: Status.SCHEDULED,
            2: Status.FAILED,
            3: Status.SCHEDULED,
            4: Status.PENDING,
        }

    @pytest.mark.parametrize("event", [Event.FAIL, Event.DISCARD, Event.ABORT])
    async def test_other_ends_are_left_to_upkeep(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage)
        nothing = Retention(completed=0, failed=0, cancelled=0)
        assert await end(storage, lease, event=event, retention=nothing) == done(lease)
        assert not (await row(storage, lease.job_id)).status.active
        assert (await maintain(storage, retention=nothing)).pruned == 1

    async def test_without_a_word_of_retention_and_with_a_longer_one_it_stays(self, storage: Storage) -> None:
        silent, kept = await hold(storage), await hold(storage)
        assert await settle(storage, silent, Event.SUCCEED)
        assert await end(storage, kept, retention=Retention(completed=0.000_001)) == done(kept)
        assert [(await row(storage, lease.job_id)).status for lease in (silent, kept)] == [Status.COMPLETED] * 2

    async def test_what_its_queue_keeps_stays(self, storage: Storage) -> None:
        await storage.set_retention("keeps", Retention(completed=10))
        await storage.set_retention("keeps not", Retention(completed=0, failed=FOREVER.failed))
        kept = [await hold(storage, queue_name="keeps") for _ in range(2)]
        others = [await hold(storage, queue_name=name) for name in ("keeps not", "has none")]
        assert await end(storage, *kept, *others) == done(*kept, *others)
        found = await storage.find([lease.job_id for lease in (*kept, *others)])
        assert {job_id: job.status for job_id, job in found.items()} == {
            lease.job_id: Status.COMPLETED for lease in kept
        }

    async def test_a_cached_result_stays_and_answers(self, storage: Storage) -> None:
        lease = await hold(storage, fingerprint=bytes(32), result_ttl=100.0)
        assert await end(storage, lease) == done(lease)
        assert (await ask(storage, fingerprint=bytes(32), now=at(99))).job_id == lease.job_id

    async def test_a_fingerprint_and_a_key_without_a_cached_result_are_free_at_once(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q", fingerprint=bytes(32), idempotency_key="key")
        assert await end(storage, lease) == done(lease)
        again = await ask(storage, queue_name="q", fingerprint=bytes(32), idempotency_key="key")
        assert again.inserted

    async def test_what_others_follow_is_followed(self, storage: Storage) -> None:
        callback = follow_up()
        lease, plain = await hold(storage, callbacks=(callback,)), await hold(storage)
        assert await end(storage, lease, plain) == done(lease, plain)
        found = await storage.find([callback.id, lease.job_id, plain.job_id])
        assert {job_id: job.status for job_id, job in found.items()} == {
            callback.id: Status.PENDING,
            lease.job_id: Status.COMPLETED,
        }

    async def test_what_somebody_watches_stays_for_them(self, storage: Storage) -> None:
        watched, plain = await hold(storage), await hold(storage)
        assert await storage.watch([watched.job_id], watcher="somebody") == {watched.job_id: None}
        assert await end(storage, watched, plain) == done(watched, plain)
        assert (await row(storage, watched.job_id)).status is Status.COMPLETED
        assert await storage.find([plain.job_id]) == {}
        assert (await maintain(storage, retention=NONE)).pruned == 1

    async def test_sent_again_it_is_lost_and_gone(self, storage: Storage) -> None:
        leases = [await hold(storage) for _ in range(3)]
        assert await end(storage, *leases[:2]) == done(*leases[:2])
        again = await end(storage, *leases)
        gone = frozenset(leases[:2])
        assert again == Settled(accepted=frozenset(leases[2:]), lost=gone, gone=gone)

    async def test_what_is_there_is_not_gone(self, storage: Storage) -> None:
        stale = await hold(storage, queue_name="q")
        await settle(storage, stale, Event.RELEASE)
        held = await take(storage, queues=["q"])
        before = await everything(storage)
        assert await end(storage, stale) == Settled(accepted=frozenset(), lost=frozenset([stale]))
        assert await everything(storage) == before
        assert await extend(storage, held.lease)

    async def test_a_lease_of_another_nonce_deletes_nothing(self, storage: Storage) -> None:
        lease = await hold(storage)
        other = Lease(job_id=lease.job_id, token=lease.token, nonce=lease.nonce ^ 1)
        assert await end(storage, other) == Settled(accepted=frozenset(), lost=frozenset([other]))
        assert await end(storage, lease) == done(lease)

    async def test_what_ended_before_and_is_there_is_accepted_again(self, storage: Storage) -> None:
        lease = await hold(storage)
        assert await settle(storage, lease, Event.SUCCEED)
        assert await end(storage, lease) == done(lease)
        assert (await row(storage, lease.job_id)).status is Status.COMPLETED

    async def test_one_whose_cancellation_was_asked_for_has_succeeded_all_the_same(self, storage: Storage) -> None:
        lease = await hold(storage)
        assert await storage.cancel([lease.job_id], now=T0) == {lease.job_id: Status.PROCESSING}
        assert await end(storage, lease) == done(lease)
        assert await storage.find([lease.job_id]) == {}

    async def test_of_hundreds_each_goes(self, storage: Storage) -> None:
        await storage.insert([new_job(queue_name="q") for _ in range(700)], now=T0)
        kept: UUID = await add(storage, queue_name="q", result_ttl=9.0)
        leases = [job.lease for job in (await reserve(storage, 1_000, queues=["q"])).jobs]
        assert await end(storage, *leases) == done(*leases)
        jobs, _ = await everything(storage)
        assert [job.id for job in jobs] == [kept]  # type: ignore[attr-defined]
