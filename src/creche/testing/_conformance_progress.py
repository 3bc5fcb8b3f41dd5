"""Progress: what a handler says about how far it has come, and who may say it. Leases stand apart."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from creche._job import MESSAGE_LIMIT, Event, Extension, JobFilter, Lease, Progress
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    LEASE,
    SETTLES_WITH,
    T0,
    Suite,
    add,
    at,
    everything,
    extend,
    hold,
    lapse,
    new_job,
    reserve,
    row,
    settle,
    take,
)
from creche.testing._conformance_reserve import forged

HALF = Progress(fraction=0.5, message="half of it")


async def report(storage: Storage, progress: dict[Lease, Progress], *, now: datetime = T0) -> Extension:
    """Extend the leases of those that have come this far."""
    return await storage.extend(list(progress), LEASE, progress=progress, now=now)


class ProgressConformance(Suite):
    """`Storage.extend` with progress."""

    @pytest.mark.parametrize(
        "progress",
        [
            Progress(fraction=0.0),
            Progress(fraction=1.0, message="done"),
            Progress(fraction=0.25, message="a quarter"),
            Progress(fraction=0.5, message='it\'s "100%" \\ \\u00e9 $1 :x ? {0}\r\n\té 漢字 😀 e\u0301 \x7f\x01 --'),
            Progress(fraction=0.75, message="😀" * MESSAGE_LIMIT),
            Progress(fraction=0.125, message=" "),
        ],
        ids=["nothing yet", "all", "a part", "odd text", "long text", "a blank"],
    )
    async def test_progress_is_seen_by_all(self, storage: Storage, progress: Progress) -> None:
        lease = await hold(storage)
        assert (await row(storage, lease.job_id)).progress is None
        answer = await report(storage, {lease: progress}, now=at(1))
        assert answer == Extension(held=frozenset({lease}), lost=frozenset(), cancel_requested=frozenset())
        record = await row(storage, lease.job_id)
        assert record.progress == progress
        assert record.locked_until == at(1 + LEASE)
        assert [each.progress for each in await storage.list(JobFilter(), 10)] == [progress]

    @pytest.mark.parametrize("fraction", [1 / 3, 0.1, 0.999_999, 1e-9])
    async def test_a_fraction_is_kept_as_it_is_or_nearly(self, storage: Storage, fraction: float) -> None:
        lease = await hold(storage)
        await report(storage, {lease: Progress(fraction=fraction)})
        progress = (await row(storage, lease.job_id)).progress
        assert progress is not None
        assert progress.fraction == pytest.approx(fraction, abs=1e-6)
        assert 0.0 <= progress.fraction <= 1.0

    async def test_the_latest_progress_stands(self, storage: Storage) -> None:
        lease = await hold(storage)
        for number, progress in enumerate([HALF, Progress(fraction=0.75, message="more"), Progress(fraction=0.0)]):
            await report(storage, {lease: progress}, now=at(number))
            assert (await row(storage, lease.job_id)).progress == progress

    @pytest.mark.parametrize("progress", [None, {}])
    async def test_an_extension_without_progress_leaves_it(
        self, storage: Storage, progress: dict[Lease, Progress] | None
    ) -> None:
        lease = await hold(storage)
        await report(storage, {lease: HALF})
        assert (await storage.extend([lease], LEASE, progress=progress, now=at(5))).held == {lease}
        record = await row(storage, lease.job_id)
        assert (record.progress, record.locked_until) == (HALF, at(5 + LEASE))

    async def test_progress_changes_nothing_else(self, storage: Storage) -> None:
        lease = await hold(storage, idempotency_key="k", fingerprint=bytes(32))
        await extend(storage, lease, 2 * LEASE, now=at(1))
        before = await row(storage, lease.job_id)
        await report(storage, {lease: HALF}, now=at(1))
        after = await row(storage, lease.job_id)
        assert (after.locked_until, after.status, after.attempts) == (at(1 + 2 * LEASE), before.status, 1)
        assert (after.payload, after.available_at, after.locked_by) == (
            before.payload,
            before.available_at,
            before.locked_by,
        )
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(2))

    async def test_a_lease_that_is_not_held_reports_nothing(self, storage: Storage) -> None:
        lease = await hold(storage)
        await report(storage, {lease: HALF})
        before = await everything(storage)
        forgeries = forged(lease)
        answer = await report(storage, {each: Progress(fraction=1.0, message="forged") for each in forgeries})
        assert answer.lost == set(forgeries)
        assert not answer.held
        assert await everything(storage) == before

    async def test_a_lease_that_another_holder_followed_reports_nothing(self, storage: Storage) -> None:
        stale = await hold(storage, queue_name="q")
        ready = await lapse(storage, now=at(LEASE))
        lease = (await take(storage, queues=["q"], now=ready)).lease
        await report(storage, {lease: HALF}, now=ready)
        answer = await report(storage, {stale: Progress(fraction=1.0)}, now=ready)
        assert answer.lost == {stale}
        assert not answer.held
        assert (await row(storage, lease.job_id)).progress == HALF

    @pytest.mark.parametrize("event", [Event.SUCCEED, Event.RETRY, Event.RELEASE, Event.FAIL, Event.ABORT])
    async def test_a_lease_that_was_settled_reports_nothing(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage)
        await settle(storage, lease, event, **SETTLES_WITH[event])
        before = await everything(storage)
        assert (await report(storage, {lease: HALF})).lost == {lease}
        assert await everything(storage) == before

    async def test_a_lease_that_ran_out_but_was_not_recovered_reports(self, storage: Storage) -> None:
        lease = await hold(storage)
        assert (await report(storage, {lease: HALF}, now=at(10 * LEASE))).held == {lease}
        assert (await row(storage, lease.job_id)).progress == HALF

    @pytest.mark.parametrize(
        ("event", "options"),
        [(Event.RETRY, {"error": BOOM}), (Event.RELEASE, {}), (Event.SNOOZE, {})],
    )
    async def test_the_next_attempt_begins_without_progress(
        self, storage: Storage, event: Event, options: dict[str, Any]
    ) -> None:
        lease = await hold(storage, queue_name="q")
        await report(storage, {lease: HALF})
        await settle(storage, lease, event, **options)
        again = await take(storage, queues=["q"])
        assert (await row(storage, again.id)).progress is None

    async def test_the_attempt_after_one_whose_lease_ran_out_begins_without_progress(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q")
        await report(storage, {lease: HALF})
        await take(storage, queues=["q"], now=await lapse(storage, now=at(LEASE)))
        assert (await row(storage, lease.job_id)).progress is None

    async def test_of_one_batch_each_reports_its_own(self, storage: Storage) -> None:
        jobs = [new_job() for _ in range(100)]
        await storage.insert(jobs, now=T0)
        leases = [job.lease for job in (await reserve(storage, 100)).jobs]
        gone, silent = leases[7], leases[9::10]
        await settle(storage, gone, Event.RELEASE)
        asked = leases[11]
        await storage.cancel([asked.job_id], now=T0)
        progress = {
            lease: Progress(fraction=number / 128, message=f"{number} of them")
            for number, lease in enumerate(leases)
            if lease not in silent
        }
        answer = await storage.extend(leases, LEASE, progress=progress, now=at(1))
        assert answer == Extension(
            held=frozenset(leases) - {gone}, lost=frozenset({gone}), cancel_requested=frozenset({asked})
        )
        found = await storage.find([lease.job_id for lease in leases])
        assert {lease: found[lease.job_id].progress for lease in leases} == {
            lease: None if lease == gone else progress.get(lease) for lease in leases
        }

    async def test_who_is_not_extended_reports_nothing(self, storage: Storage) -> None:
        first, second = await hold(storage), await hold(storage)
        progress = {first: HALF, second: Progress(fraction=1.0)}
        assert (await storage.extend([first], LEASE, progress=progress, now=at(1))).held == {first}
        before = await everything(storage)
        assert (await row(storage, second.job_id)).progress is None
        await storage.extend([], LEASE, progress=progress, now=at(1))
        assert await everything(storage) == before

    async def test_a_job_that_nobody_has_taken_has_no_progress(self, storage: Storage) -> None:
        job_id = await add(storage)
        assert (await row(storage, job_id)).progress is None
