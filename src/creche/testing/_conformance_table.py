"""The table: `_lifecycle.TRANSITIONS`, held against a storage cell by cell. It covers states, not what else changes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from creche._job import Event, JobRecord, Lease, Status
from creche._lifecycle import BURIES, GIVES_BACK, GOES_ON, SETTLING, TRANSITIONS, after
from creche.abc import Storage
from creche.testing._conformance_base import (
    LEASE,
    SETTLES_WITH,
    T0,
    Suite,
    at,
    bring,
    everything,
    hold,
    maintain,
    reserve,
    row,
    settle,
)

_HOUR = 3_600.0
_MOMENTS = {Event.PROMOTE: at(_HOUR), Event.RECOVER: at(LEASE + 1), Event.BURY: at(LEASE + 1)}


async def _apply(storage: Storage, lease: Lease, event: Event) -> None:
    """Let an event happen to a job, by whatever operation brings it about."""
    before = await row(storage, lease.job_id)
    now = _MOMENTS.get(event, at(1))
    if event in SETTLING:
        await settle(storage, lease, event, now=now, **SETTLES_WITH[event])
    elif event is Event.RESERVE:
        await reserve(storage, queues=[before.queue_name], now=now)
    elif event is Event.CANCEL:
        await storage.cancel([lease.job_id], now=now)
    elif event is Event.REVIVE:
        await storage.retry([lease.job_id], now=now)
    else:
        await maintain(storage, now=now)


async def _stage(storage: Storage, status: Status, event: Event) -> tuple[Lease, JobRecord]:
    """Bring a job to a status, with the attempts and the lease that let nothing but `event` happen at its moment."""
    lease = await bring(
        storage,
        status,
        max_attempts=1 if event is Event.BURY else 2,
        lease=2 * _HOUR if event is Event.PROMOTE else LEASE,
    )
    record = await row(storage, lease.job_id)
    assert record.status is status
    return lease, record


_CELLS = [(status, event) for status in Status for event in Event]


class TableConformance(Suite):
    """Every status against every event."""

    @pytest.mark.parametrize(("status", "event"), [cell for cell in _CELLS if cell in TRANSITIONS])
    async def test_an_event_leads_where_the_table_says(self, storage: Storage, status: Status, event: Event) -> None:
        lease, _ = await _stage(storage, status, event)
        due = event in {Event.PROMOTE, Event.REVIVE}
        await _apply(storage, lease, event)
        assert (await row(storage, lease.job_id)).status is after(status, event, due=due)

    @pytest.mark.parametrize(("status", "event"), [cell for cell in _CELLS if cell not in TRANSITIONS])
    async def test_an_event_that_the_table_does_not_have_changes_nothing(
        self, storage: Storage, status: Status, event: Event
    ) -> None:
        lease, _ = await _stage(storage, status, event)
        before = await everything(storage)
        await _apply(storage, lease, event)
        assert await everything(storage) == before

    @pytest.mark.parametrize("event", sorted({*SETTLING, Event.RECOVER, Event.BURY}))
    async def test_a_job_whose_cancellation_was_asked_for_does_not_go_on(self, storage: Storage, event: Event) -> None:
        lease, _ = await _stage(storage, Status.PROCESSING, event)
        await storage.cancel([lease.job_id], now=at(1))
        await _apply(storage, lease, event)
        # On its last attempt, too, a lease that runs out ends as the cancellation that was asked for.
        happened = Event.RECOVER if event is Event.BURY else event
        expected = after(Status.PROCESSING, happened, due=False, cancel_requested=True)
        record = await row(storage, lease.job_id)
        assert record.status is expected
        assert (record.completed_at is None) == expected.active
        assert expected is Status.CANCELLED or happened not in GOES_ON

    @pytest.mark.parametrize("event", sorted({*SETTLING, Event.RECOVER, Event.BURY}))
    async def test_an_attempt_counts_unless_it_is_given_back(self, storage: Storage, event: Event) -> None:
        lease, before = await _stage(storage, Status.PROCESSING, event)
        assert before.attempts == 1
        await _apply(storage, lease, event)
        assert (await row(storage, lease.job_id)).attempts == (0 if event in GIVES_BACK else 1)

    @pytest.mark.parametrize("event", sorted({*SETTLING, Event.RECOVER, Event.BURY}))
    async def test_a_dead_letter_is_written_for_those_that_are_buried_and_for_no_other(
        self, storage: Storage, event: Event
    ) -> None:
        lease, _ = await _stage(storage, Status.PROCESSING, event)
        await _apply(storage, lease, event)
        letters = [letter.job_id for letter in await storage.dead_letters(10)]
        assert letters == ([lease.job_id] if event in BURIES else [])

    @pytest.mark.parametrize("event", sorted({*SETTLING, Event.RECOVER, Event.BURY}))
    async def test_a_job_that_is_processing_no_longer_has_no_deadline(self, storage: Storage, event: Event) -> None:
        lease, before = await _stage(storage, Status.PROCESSING, event)
        assert before.locked_until == at(LEASE)
        await _apply(storage, lease, event)
        assert (await row(storage, lease.job_id)).locked_until is None

    async def test_a_lease_of_another_job_moves_nothing(self, storage: Storage) -> None:
        mine = await hold(storage)
        other = await hold(storage)
        before = await everything(storage)
        crossed = replace(mine, job_id=other.job_id)
        for event in sorted(SETTLING):
            assert not await settle(storage, crossed, event, now=T0, **SETTLES_WITH[event])
        assert await everything(storage) == before
