"""Settle: what the end of an attempt writes, and that only the holder can write it. The table stands apart."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from anyio import create_task_group

from creche._ids import new_job_id
from creche._job import (
    ERRORS_KEPT,
    AttemptError,
    DeadLetter,
    Event,
    Failure,
    FollowUp,
    JobFilter,
    Lease,
    Settled,
    Settlement,
    Status,
)
from creche._lifecycle import SETTLING
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    LEASE,
    SETTLES_WITH,
    T0,
    UNUSUAL_JSON,
    Suite,
    add,
    at,
    everything,
    hold,
    lapse,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
)
from creche.testing._conformance_reserve import forged

ENDS = sorted(SETTLING)


def settlement(lease: Lease, event: Event) -> Settlement:
    """Return how a lease is settled by this event."""
    return Settlement(lease=lease, event=event, **SETTLES_WITH[event])


class SettleConformance(Suite):
    """`Storage.settle`: what is written."""

    async def test_settling_nothing_does_nothing(self, storage: Storage) -> None:
        assert await storage.settle([], now=T0) == Settled(accepted=frozenset(), lost=frozenset())

    @pytest.mark.parametrize(
        ("event", "changes"),
        [
            (Event.SUCCEED, {"result": b'{"ok":true}', "result_expires_at": at(65)}),
            (Event.FAIL, {"last_error": BOOM}),
            (Event.DISCARD, {"last_error": BOOM}),
            (Event.ABORT, {}),
        ],
    )
    async def test_a_job_that_ended_says_when_and_how(
        self, storage: Storage, event: Event, changes: dict[str, Any]
    ) -> None:
        lease = await hold(storage, result_ttl=60.0, fingerprint=bytes(32))
        await settle(storage, lease, event, now=at(5), **SETTLES_WITH[event])
        record = await row(storage, lease.job_id)
        assert not record.status.active
        assert (record.completed_at, record.updated_at, record.created_at) == (at(5), at(5), T0)
        assert (record.attempts, record.locked_until, record.locked_by) == (1, None, None)
        shown = (record.result, record.result_expires_at, record.last_error)
        assert shown == tuple(changes.get(name) for name in ("result", "result_expires_at", "last_error"))

    async def test_a_result_without_a_time_to_answer_is_kept_and_does_not_expire(self, storage: Storage) -> None:
        lease = await hold(storage)
        await settle(storage, lease, Event.SUCCEED, result=b"null")
        record = await row(storage, lease.job_id)
        assert (record.result, record.result_expires_at) == (b"null", None)

    @pytest.mark.parametrize("result", list(UNUSUAL_JSON.values()), ids=list(UNUSUAL_JSON))
    async def test_a_result_is_kept_byte_for_byte(self, storage: Storage, result: bytes) -> None:
        job = new_job()
        await storage.insert([job], now=T0)
        await settle(storage, (await take(storage)).lease, Event.SUCCEED, result=result)
        assert (await row(storage, job.id)).result == result
        (again,) = await storage.insert([job], now=T0)
        assert again.result == result

    @pytest.mark.parametrize("result", list(UNUSUAL_JSON.values()), ids=list(UNUSUAL_JSON))
    async def test_a_result_is_kept_byte_for_byte_beside_others(self, storage: Storage, result: bytes) -> None:
        leases = [await hold(storage) for _ in range(3)]
        results = [result, b'"of its own"', b"[%s]" % result]
        batch = [
            Settlement(lease=lease, event=Event.SUCCEED, result=each)
            for lease, each in zip(leases, results, strict=True)
        ]
        assert (await storage.settle(batch, now=at(1))).accepted == set(leases)
        assert [(await row(storage, lease.job_id)).result for lease in leases] == results

    @pytest.mark.parametrize(
        ("event", "options", "status", "due"),
        [
            (Event.RETRY, {"error": BOOM}, Status.PENDING, at(5)),
            (Event.RETRY, {"error": BOOM, "delay": 0.5}, Status.SCHEDULED, at(5.5)),
            (Event.RETRY, {"error": BOOM, "delay": 3_600.0}, Status.SCHEDULED, at(3_605)),
            (Event.SNOOZE, {}, Status.PENDING, at(5)),
            (Event.SNOOZE, {"delay": 60.25}, Status.SCHEDULED, at(65.25)),
            (Event.SNOOZE, {"available_at": at(100)}, Status.SCHEDULED, at(100)),
            (Event.SNOOZE, {"available_at": at(5)}, Status.PENDING, at(5)),
            (Event.SNOOZE, {"available_at": at(-5)}, Status.PENDING, at(-5)),
            (Event.RELEASE, {}, Status.PENDING, at(-7)),
        ],
    )
    async def test_a_job_that_goes_on_is_due_when_it_was_said(
        self, storage: Storage, event: Event, options: dict[str, Any], status: Status, due: datetime
    ) -> None:
        lease = await hold(storage, queue_name="q", available_at=at(-7))
        await settle(storage, lease, event, now=at(5), **options)
        record = await row(storage, lease.job_id)
        assert (record.status, record.available_at, record.updated_at) == (status, due, at(5))
        assert (record.completed_at, record.locked_until, record.locked_by) == (None, None, None)
        at_once = (await reserve(storage, queues=["q"], now=at(5))).jobs
        assert bool(at_once) == (status is Status.PENDING)

    async def test_a_delayed_retry_comes_back_at_its_time_and_not_before(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q")
        await settle(storage, lease, Event.RETRY, error=BOOM, delay=30.0)
        assert (await maintain(storage, now=at(29.999_999))).promoted == 0
        assert not (await reserve(storage, queues=["q"], now=at(29.999_999))).jobs
        assert (await maintain(storage, now=at(30))).promoted == 1
        assert (await take(storage, queues=["q"], now=at(30))).attempt == 2

    async def test_a_retry_of_the_last_attempt_is_written_as_it_was_decided(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q", max_attempts=1)
        assert await settle(storage, lease, Event.RETRY, error=BOOM)
        assert (await row(storage, lease.job_id)).status is Status.PENDING
        assert list(await storage.dead_letters(10)) == []
        again = await take(storage, queues=["q"])
        assert (again.attempt, again.max_attempts) == (2, 1)
        assert (await maintain(storage, now=at(LEASE))).buried == 1

    async def test_a_released_job_stands_where_it_stood(self, storage: Storage) -> None:
        first, second = await add(storage), await add(storage, now=at(1))
        assert (await take(storage, now=at(2))).id == first
        assert (await row(storage, second)).status is Status.PENDING
        lease = (await take(storage, now=at(2))).lease
        await settle(storage, lease, Event.RELEASE, now=at(2))
        third = await add(storage, now=at(3))
        taken = (await reserve(storage, 5, now=at(3))).jobs
        assert [job.id for job in taken] == [second, third]

    async def test_any_number_of_snoozes_use_up_no_attempt(self, storage: Storage) -> None:
        job_id = await add(storage, max_attempts=1)
        for event in (Event.SNOOZE, Event.RELEASE) * 3:
            job = await take(storage)
            assert job.attempt == 1
            await settle(storage, job.lease, event)
        assert (await row(storage, job_id)).attempts == 0

    @pytest.mark.parametrize("event", [Event.FAIL, Event.DISCARD])
    async def test_a_dead_letter_has_all_errors_oldest_first(self, storage: Storage, event: Event) -> None:
        job = new_job(type="ocr", payload=b"[1]", priority=4, max_attempts=3)
        await storage.insert([job], now=T0)
        errors = {attempt: Failure(type="E", message=f"attempt {attempt}", traceback="…") for attempt in (1, 2)}
        for attempt, error in errors.items():
            lease = (await take(storage, now=at(attempt))).lease
            await settle(storage, lease, Event.RETRY, error=error, now=at(attempt + 0.25))
        lease = (await take(storage, now=at(3))).lease
        await settle(storage, lease, event, error=BOOM, now=at(3.25))
        assert list(await storage.dead_letters(10)) == [
            DeadLetter(
                job_id=job.id,
                queue_name="default",
                type="ocr",
                payload=b"[1]",
                priority=4,
                attempts=3,
                max_attempts=3,
                created_at=T0,
                buried_at=at(3.25),
                errors=(
                    AttemptError(
                        attempt=1, failed_at=at(1.25), error=Failure(type="E", message="attempt 1", traceback="…")
                    ),
                    AttemptError(
                        attempt=2, failed_at=at(2.25), error=Failure(type="E", message="attempt 2", traceback="…")
                    ),
                    AttemptError(attempt=3, failed_at=at(3.25), error=BOOM),
                ),
            )
        ]

    async def test_of_many_errors_the_newest_are_kept(self, storage: Storage) -> None:
        tries = ERRORS_KEPT + 5
        job_id = await add(storage, max_attempts=tries)
        for attempt in range(1, tries + 1):
            lease = (await take(storage, now=at(attempt))).lease
            event = Event.FAIL if attempt == tries else Event.RETRY
            error = Failure(type="E", message=str(attempt))
            await settle(storage, lease, event, error=error, now=at(attempt))
            assert (await row(storage, job_id)).last_error == error
        (letter,) = await storage.dead_letters(10)
        newest = list(range(tries - ERRORS_KEPT + 1, tries + 1))
        assert [error.attempt for error in letter.errors] == newest
        assert [error.error.message for error in letter.errors] == [str(attempt) for attempt in newest]

    @pytest.mark.parametrize("event", [Event.RETRY, Event.FAIL, Event.DISCARD])
    async def test_an_error_text_is_kept_whatever_it_holds(self, storage: Storage, event: Event) -> None:
        text = 'it\'s "100%" \\ \\u0000 $1 :x ? {0}\r\n\té 漢字 😀 \x7f\x01 \N{REPLACEMENT CHARACTER}'
        for error in (Failure(type=text, message=text, traceback=text * 200), Failure(type="E", message="")):
            lease = await hold(storage)
            await settle(storage, lease, event, error=error)
            assert (await row(storage, lease.job_id)).last_error == error
        kept = [letter.errors[0].error.message for letter in await storage.dead_letters(10)]
        assert kept == ([] if event is Event.RETRY else ["", text])

    async def test_an_error_that_was_got_over_stays_to_be_seen(self, storage: Storage) -> None:
        await add(storage)
        await settle(storage, (await take(storage)).lease, Event.RETRY, error=BOOM)
        lease = (await take(storage)).lease
        await settle(storage, lease, Event.SUCCEED, result=b"1")
        assert (await row(storage, lease.job_id)).last_error == BOOM
        assert list(await storage.dead_letters(10)) == []

    async def test_one_batch_ends_attempts_in_every_way_and_names_the_lost(self, storage: Storage) -> None:
        leases = {event: await hold(storage) for event in ENDS}
        cancelled = await hold(storage)
        await settle(storage, cancelled, Event.RELEASE)
        await storage.cancel([cancelled.job_id], now=T0)
        unknown = Lease(job_id=new_job_id(), token=1, nonce=1)
        batch = [settlement(lease, event) for event, lease in leases.items()]
        batch.insert(3, settlement(cancelled, Event.SUCCEED))
        batch.insert(0, settlement(unknown, Event.FAIL))
        assert await storage.settle(batch, now=at(1)) == Settled(
            accepted=frozenset(leases.values()), lost=frozenset({cancelled, unknown}), gone=frozenset({unknown})
        )
        statuses = {event: (await row(storage, lease.job_id)).status for event, lease in leases.items()}
        assert statuses == {
            Event.SUCCEED: Status.COMPLETED,
            Event.RETRY: Status.SCHEDULED,
            Event.FAIL: Status.FAILED,
            Event.DISCARD: Status.FAILED,
            Event.RELEASE: Status.PENDING,
            Event.SNOOZE: Status.SCHEDULED,
            Event.ABORT: Status.CANCELLED,
        }
        buried = {letter.job_id for letter in await storage.dead_letters(10)}
        assert buried == {leases[Event.FAIL].job_id, leases[Event.DISCARD].job_id}
        assert (await row(storage, cancelled.job_id)).status is Status.CANCELLED

    async def test_a_thousand_attempts_end_in_one_batch_each_with_its_own_result(self, storage: Storage) -> None:
        await storage.insert([new_job() for _ in range(1_000)], now=T0)
        leases = [job.lease for job in (await reserve(storage, 1_000)).jobs]
        batch = [
            Settlement(lease=lease, event=Event.SUCCEED, result=b'"%d"' % number) for number, lease in enumerate(leases)
        ]
        assert (await storage.settle(batch, now=at(1))).accepted == set(leases)
        found = await storage.find([lease.job_id for lease in leases])
        assert [found[lease.job_id].result for lease in leases] == [each.result for each in batch]

    async def test_of_a_batch_that_ends_alike_each_job_keeps_what_is_its_own(self, storage: Storage) -> None:
        """What most of a batch has in common may be written at once; all else is as if each were alone."""
        callback = FollowUp(id=new_job_id(), type="next", queue_name="after", head="[]")
        cached = await hold(storage, result_ttl=60.0, fingerprint=bytes(32))
        followed = await hold(storage, callbacks=(callback,))
        await settle(storage, await hold(storage, queue_name="again"), Event.RETRY, error=BOOM)
        second = (await take(storage, queues=["again"])).lease
        plain = [await hold(storage) for _ in range(5)]
        apart, failed = await hold(storage), await hold(storage)
        gone = await hold(storage)
        await settle(storage, gone, Event.RELEASE)
        await storage.cancel([gone.job_id], now=T0)
        nobodys = forged(plain[0])
        alike = [cached, plain[0], gone, second, *plain[1:], followed, *nobodys]
        batch = [Settlement(lease=lease, event=Event.SUCCEED, result=b"null") for lease in alike]
        batch.insert(0, Settlement(lease=apart, event=Event.SUCCEED, result=b'"own"'))
        batch.insert(5, Settlement(lease=failed, event=Event.FAIL, error=BOOM))
        answer = await storage.settle(batch, now=at(1))
        assert answer.accepted == {cached, second, followed, *plain, apart, failed}
        assert answer.lost == {gone, *nobodys}
        assert (await storage.find([callback.id])).keys() == {callback.id}
        assert await storage.settle(batch, now=at(2)) == answer, "sent again, for the answer was lost"

        records = {record.id: record for record in await storage.list(JobFilter(), 100)}
        for lease in (cached, second, followed, *plain):
            record = records[lease.job_id]
            assert (record.status, record.result, record.locked_by) == (Status.COMPLETED, b"null", None)
            assert (record.completed_at, record.updated_at) == (at(1), at(1))
        assert (records[cached.job_id].result_expires_at, records[plain[0].job_id].result_expires_at) == (at(61), None)
        assert (records[second.job_id].attempts, records[second.job_id].last_error) == (2, BOOM)
        assert records[apart.job_id].result == b'"own"'
        assert records[failed.job_id].status is Status.FAILED
        assert records[gone.job_id].status is Status.CANCELLED
        assert records[callback.id].status is Status.PENDING


class FencingConformance(Suite):
    """`Storage.settle`: who may write."""

    @pytest.mark.parametrize("event", ENDS)
    async def test_to_settle_token_and_nonce_must_both_be_right(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage)
        before = await everything(storage)
        forgeries = forged(lease)
        answer = await storage.settle([settlement(each, event) for each in forgeries], now=at(1))
        assert answer.lost == set(forgeries)
        assert not answer.accepted
        assert await everything(storage) == before
        assert await settle(storage, lease, event, now=at(1), **SETTLES_WITH[event])

    @pytest.mark.parametrize("event", ENDS)
    async def test_settled_twice_is_accepted_twice_and_written_once(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage, max_attempts=2)
        assert await settle(storage, lease, event, now=at(1), **SETTLES_WITH[event])
        before = await everything(storage)
        assert await settle(storage, lease, event, now=at(2), **SETTLES_WITH[event])
        assert await everything(storage) == before

    @pytest.mark.parametrize("event", ENDS)
    async def test_settled_again_in_another_way_the_first_stands(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage, max_attempts=2)
        assert await settle(storage, lease, event, now=at(1), **SETTLES_WITH[event])
        before = await everything(storage)
        for other in ENDS:
            await settle(storage, lease, other, now=at(2), **SETTLES_WITH[other])
        assert await everything(storage) == before

    @pytest.mark.parametrize("event", ENDS)
    async def test_a_lease_that_ran_out_but_was_not_recovered_settles(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage)
        assert await settle(storage, lease, event, now=at(10 * LEASE), **SETTLES_WITH[event])
        assert (await row(storage, lease.job_id)).status is not Status.PROCESSING

    @pytest.mark.parametrize("max_attempts", [1, 2])
    @pytest.mark.parametrize("event", ENDS)
    async def test_a_recovered_lease_writes_nothing(self, storage: Storage, event: Event, max_attempts: int) -> None:
        lease = await hold(storage, max_attempts=max_attempts)
        await maintain(storage, now=at(LEASE + 1))
        before = await everything(storage)
        assert not await settle(storage, lease, event, now=at(LEASE + 2), **SETTLES_WITH[event])
        assert await everything(storage) == before

    @pytest.mark.parametrize("event", ENDS)
    async def test_a_lease_that_another_holder_followed_writes_nothing(self, storage: Storage, event: Event) -> None:
        lease = await hold(storage, queue_name="q")
        ready = await lapse(storage, now=at(LEASE))
        theirs = await take(storage, queues=["q"], now=ready, worker="worker", nonce=lease.nonce)
        before = await everything(storage)
        assert not await settle(storage, lease, event, now=at(LEASE + 2), **SETTLES_WITH[event])
        assert await everything(storage) == before
        assert await settle(storage, theirs.lease, Event.SUCCEED, result=b"1", now=at(LEASE + 2))

    @pytest.mark.parametrize("first", [Event.RELEASE, Event.RETRY, Event.SNOOZE])
    async def test_a_given_back_lease_is_lost_once_the_job_is_reserved_again(
        self, storage: Storage, first: Event
    ) -> None:
        lease = await hold(storage, queue_name="q")
        await settle(storage, lease, first)
        # The same worker, and after a release or a snooze the same attempt number: neither is the lease.
        again = await take(storage, queues=["q"])
        before = await everything(storage)
        for event in ENDS:
            assert not await settle(storage, lease, event, now=at(1), **SETTLES_WITH[event])
        assert await everything(storage) == before
        assert await settle(storage, again.lease, Event.SUCCEED, result=b"1")

    @pytest.mark.parametrize("first", [Event.RELEASE, Event.SNOOZE])
    async def test_a_given_back_lease_is_lost_once_the_job_is_cancelled(self, storage: Storage, first: Event) -> None:
        lease = await hold(storage)
        await settle(storage, lease, first, **SETTLES_WITH[first])
        await storage.cancel([lease.job_id], now=at(1))
        before = await everything(storage)
        assert not await settle(storage, lease, first, now=at(2), **SETTLES_WITH[first])
        assert not await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(2))
        assert await everything(storage) == before

    @pytest.mark.parametrize("first", [Event.FAIL, Event.ABORT, Event.SNOOZE])
    async def test_a_settled_lease_is_lost_once_the_job_was_retried(self, storage: Storage, first: Event) -> None:
        lease = await hold(storage)
        await settle(storage, lease, first, **SETTLES_WITH[first])
        await storage.retry([lease.job_id], now=at(1))
        before = await everything(storage)
        assert not await settle(storage, lease, first, now=at(2), **SETTLES_WITH[first])
        assert await everything(storage) == before

    async def test_a_cancellation_that_was_asked_for_does_not_take_the_lease_away(self, storage: Storage) -> None:
        lease = await hold(storage)
        await storage.cancel([lease.job_id], now=T0)
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(1))
        record = await row(storage, lease.job_id)
        assert (record.status, record.result) == (Status.COMPLETED, b"1")

    async def test_of_two_holders_who_settle_at_once_only_the_right_one_writes(self, storage: Storage) -> None:
        lease = await hold(storage, queue_name="q")
        theirs = (await take(storage, queues=["q"], now=await lapse(storage, now=at(LEASE)))).lease
        accepted: dict[Lease, bool] = {}

        async def end(mine: Lease, result: bytes) -> None:
            accepted[mine] = await settle(storage, mine, Event.SUCCEED, result=result, now=at(LEASE + 2))

        async with create_task_group() as holders:
            for number in range(4):
                holders.start_soon(end, lease, b'"stale %d"' % number)
            holders.start_soon(end, theirs, b'"right"')
        assert accepted == {lease: False, theirs: True}
        assert (await row(storage, lease.job_id)).result == b'"right"'
