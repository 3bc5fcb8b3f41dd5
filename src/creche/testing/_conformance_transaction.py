"""Transactions: the end of an attempt is written with the block, or not at all. Handlers' own writes stand apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any
from uuid import UUID

import pytest
from anyio import CancelScope, create_task_group, fail_after, get_cancelled_exc_class, sleep
from anyio import Event as Bell
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from creche._ids import new_job_id
from creche._job import Event, FollowUp, Insertion, JobFilter, Lease, On, ReservedJob, Settlement, Status
from creche.abc import Storage
from creche.errors import OptionInvalid, StorageError
from creche.testing._conformance_base import (
    BOOM,
    LEASE,
    PATIENCE,
    SETTLES_WITH,
    T0,
    Suite,
    add,
    ask,
    at,
    everything,
    extend,
    follow_up,
    hold,
    lapse,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
    written,
)
from creche.testing._conformance_callbacks import one_of_each
from creche.testing._conformance_ends import RESULT
from creche.testing._conformance_listen import hear
from creche.testing._conformance_reserve import forged
from creche.testing._conformance_settle import ENDS, settlement


class LeaseGone(Exception):
    """What a block is left by, whose lease was lost."""


async def settle_in_one(storage: Storage, lease: Lease, event: Event, **options: Any) -> None:
    """Settle a lease in a transaction of its own, as those do who write something of their own in it."""
    async with storage.transaction() as transaction:
        if not await transaction.settle(Settlement(lease=lease, event=event, **options), now=T0):
            raise LeaseGone


class TransactionConformance(Suite):
    """`Storage.transaction`."""

    @pytest.mark.parametrize("event", ENDS)
    async def test_what_is_settled_in_it_is_as_if_it_had_been_settled_alone(
        self, storage: Storage, event: Event
    ) -> None:
        ends: list[list[object]] = []
        for shared in (True, False):
            callbacks = one_of_each(queue_name=f"after {shared}")
            lease = await hold(storage, result_ttl=60.0, callbacks=tuple(callbacks.values()))
            if shared:
                async with storage.transaction() as transaction:
                    assert await transaction.settle(settlement(lease, event), now=at(1)) is True
            else:
                assert await settle(storage, lease, event, now=at(1), **SETTLES_WITH[event])
            record = await row(storage, lease.job_id)
            shown = await storage.list(JobFilter(queues=frozenset({f"after {shared}"})), 5)
            letters = [letter for letter in await storage.dead_letters(10) if letter.job_id == lease.job_id]
            ends.append(
                [
                    *(record.status, record.available_at, record.updated_at, record.completed_at, record.result),
                    *(record.result_expires_at, record.last_error, record.attempts, record.locked_until),
                    [on for on, each in callbacks.items() if each.id in await written(storage, [each])],
                    [(each.status, each.payload, each.available_at) for each in shown],
                    [letter.errors for letter in letters],
                ]
            )
        assert ends[0] == ends[1]

    async def test_nobody_sees_it_before_the_block_is_left(self, storage: Storage) -> None:
        callback = follow_up()
        lease = await hold(storage, callbacks=(callback,))
        before = await everything(storage)
        async with storage.transaction() as transaction:
            assert await everything(storage) == before
            assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=RESULT), now=at(1))
            assert await everything(storage) == before
        assert (await row(storage, lease.job_id)).status is Status.COMPLETED
        assert await written(storage, [callback]) == {callback.id}

    @pytest.mark.parametrize("event", ENDS)
    async def test_left_by_an_exception_nothing_of_it_stays(self, storage: Storage, event: Event) -> None:
        callbacks = one_of_each()
        lease = await hold(storage, queue_name="q", callbacks=tuple(callbacks.values()))
        before = await everything(storage)
        error = ZeroDivisionError("the handler's own")

        async def fail() -> None:
            async with storage.transaction() as transaction:
                assert await transaction.settle(settlement(lease, event), now=at(1))
                raise error

        with pytest.raises(ZeroDivisionError) as caught:
            await fail()
        assert caught.value is error
        assert await everything(storage) == before
        assert await extend(storage, lease, now=at(2))
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(3))
        assert await written(storage, callbacks.values()) == {callbacks[On.SUCCESS].id, callbacks[On.ALWAYS].id}

    async def test_an_empty_one_does_nothing(self, storage: Storage) -> None:
        lease = await hold(storage)
        before = await everything(storage)
        async with storage.transaction():
            pass
        with pytest.raises(LeaseGone):
            async with storage.transaction():
                raise LeaseGone
        assert await everything(storage) == before
        assert await extend(storage, lease, now=at(1))

    async def test_a_lease_that_was_lost_before_settles_nothing(self, storage: Storage) -> None:
        callback = follow_up(on=On.ALWAYS)
        lost = await hold(storage, queue_name="q", callbacks=(callback,))
        lease = (await take(storage, queues=["q"], now=await lapse(storage, now=at(LEASE)))).lease
        before = await everything(storage)
        for each in (lost, *forged(lease), Lease(job_id=new_job_id(), token=1, nonce=1)):
            with pytest.raises(LeaseGone):
                await settle_in_one(storage, each, Event.SUCCEED, result=b'"lost"')
        assert await everything(storage) == before
        assert await settle(storage, lease, Event.SUCCEED, result=b"1", now=at(2 * LEASE))

    @pytest.mark.parametrize("event", ENDS)
    async def test_an_attempt_that_is_over_is_not_ended_in_it_again(self, storage: Storage, event: Event) -> None:
        """Or else what a handler wrote of its own would be committed twice, for one attempt."""
        lease = await hold(storage)
        assert await settle(storage, lease, event, **SETTLES_WITH[event])
        before = await everything(storage)
        for again in (event, Event.SUCCEED):
            with pytest.raises(LeaseGone):
                await settle_in_one(storage, lease, again, **SETTLES_WITH[again])
        assert await everything(storage) == before

    async def test_a_lease_that_is_lost_while_it_is_open_settles_nothing(self, storage: Storage) -> None:
        lease = await hold(storage, max_attempts=1)

        async def settle_late() -> None:
            async with storage.transaction() as transaction:
                assert (await maintain(storage, now=at(LEASE))).buried == 1
                answer = await transaction.settle(
                    Settlement(lease=lease, event=Event.SUCCEED, result=b"1"), now=at(LEASE)
                )
                assert answer is False
                raise LeaseGone

        with pytest.raises(LeaseGone):
            await settle_late()
        record = await row(storage, lease.job_id)
        assert (record.status, record.result) == (Status.FAILED, None)

    async def test_a_cancellation_that_was_asked_for_while_it_is_open_ends_what_would_go_on(
        self, storage: Storage
    ) -> None:
        callbacks = one_of_each()
        lease = await hold(storage, callbacks=tuple(callbacks.values()))
        async with storage.transaction() as transaction:
            await storage.cancel([lease.job_id], now=T0)
            assert await transaction.settle(settlement(lease, Event.RETRY), now=at(1))
        assert (await row(storage, lease.job_id)).status is Status.CANCELLED
        assert await written(storage, callbacks.values()) == {callbacks[On.ALWAYS].id}

    async def test_callbacks_that_come_while_it_is_open_are_written_too(self, storage: Storage) -> None:
        lease = await hold(storage, fingerprint=bytes(32))
        callbacks = [follow_up() for _ in range(3)]
        async with storage.transaction() as transaction:
            for each in callbacks:
                assert not (await ask(storage, fingerprint=bytes(32), callbacks=(each,))).inserted
            assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=b"1"), now=T0)
        assert await written(storage, callbacks) == {each.id for each in callbacks}

    async def test_of_two_at_once_for_one_attempt_one_is_written(self, storage: Storage) -> None:
        for number in range(5):
            callback = follow_up(head="", tail="", queue_name=f"after {number}")
            lease = await hold(storage, callbacks=(callback,))
            done: list[bytes] = []

            async def rival(result: bytes, lease: Lease = lease, done: list[bytes] = done) -> None:
                try:
                    await settle_in_one(storage, lease, Event.SUCCEED, result=result)
                except (LeaseGone, StorageError):
                    return  # nothing in it is tried again
                done.append(result)

            with fail_after(PATIENCE):
                async with create_task_group() as rivals:
                    rivals.start_soon(rival, b'"one"')
                    rivals.start_soon(rival, b'"two"')
            record = await row(storage, lease.job_id)
            assert record.status is Status.COMPLETED
            assert [record.result] == done
            assert (await row(storage, callback.id)).payload == record.result

    @pytest.mark.parametrize("committed", [True, False], ids=["committed", "rolled back"])
    @pytest.mark.parametrize("ttl", [60.0, None], ids=["cached", "not cached"])
    async def test_dispatches_that_come_while_an_end_is_being_written_run_nothing_twice(
        self, storage: Storage, ttl: float | None, committed: bool
    ) -> None:
        work: dict[str, Any] = {"fingerprint": bytes(32), "result_ttl": ttl}
        lease = await hold(storage, **work)
        answers: dict[UUID, list[Insertion]] = {}
        callbacks: list[FollowUp] = []

        async def dispatch() -> None:
            callbacks.append(follow_up())
            job = new_job(**work, callbacks=(callbacks[-1],))
            answers[job.id] = [*await storage.insert([job], now=at(1))]

        with fail_after(PATIENCE):
            async with create_task_group() as rivals:
                rivals.start_soon(dispatch)
                with suppress(LeaseGone):
                    async with storage.transaction() as transaction:
                        rivals.start_soon(dispatch)
                        assert await transaction.settle(
                            Settlement(lease=lease, event=Event.SUCCEED, result=b"1"), now=T0
                        )
                        for _ in range(3):
                            rivals.start_soon(dispatch)
                        await sleep(0.05)  # they look, and wait for what they find
                        if not committed:
                            raise LeaseGone
                for _ in range(2):
                    rivals.start_soon(dispatch)
        told = [answer for each in answers.values() for answer in each]
        runs = {answer.job_id for answer in told} | {lease.job_id}
        assert len(told) == 7
        assert len(runs) <= (2 if committed and ttl is None else 1)
        assert sum(answer.inserted for answer in told) == len(runs) - 1
        if committed and ttl is not None:
            assert await written(storage, callbacks) == {each.id for each in callbacks}
            assert {answer.result for answer in told if answer.status is Status.COMPLETED} == {b"1"}

    async def test_of_a_transaction_and_an_upkeep_at_once_one_ends_the_attempt(self, storage: Storage) -> None:
        for _ in range(5):
            lease = await hold(storage, max_attempts=1)
            outcome: list[str] = []

            async def work(lease: Lease = lease, outcome: list[str] = outcome) -> None:
                try:
                    await settle_in_one(storage, lease, Event.SUCCEED, result=b"1")
                except (LeaseGone, StorageError):
                    outcome.append("lost")
                else:
                    outcome.append("written")

            with fail_after(PATIENCE):
                async with create_task_group() as rivals:
                    rivals.start_soon(work)
                    rivals.start_soon(lambda: maintain(storage, now=at(LEASE)))
            status = (await row(storage, lease.job_id)).status
            if status is Status.PROCESSING:  # the upkeep skipped a row that the transaction held, and then it was lost
                await maintain(storage, now=at(LEASE))
                status = (await row(storage, lease.job_id)).status
            assert (outcome, status) in ((["written"], Status.COMPLETED), (["lost"], Status.FAILED))

    @pytest.mark.parametrize("commits", [True, False], ids=["committed", "rolled back"])
    async def test_the_extension_of_a_lease_that_is_settled_in_it_waits_for_the_outcome(
        self, storage: Storage, commits: bool
    ) -> None:
        lease = await hold(storage)
        answers: list[bool] = []

        async def renew() -> None:
            answers.append(await extend(storage, lease, now=at(1)))

        async def work(group: TaskGroup) -> None:
            async with storage.transaction() as transaction:
                assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=b"1"), now=T0)
                group.start_soon(renew)
                for _ in range(3):
                    await everything(storage)
                if not commits:
                    raise LeaseGone

        with fail_after(PATIENCE):
            async with create_task_group() as group:
                with pytest.raises(LeaseGone) if not commits else nullcontext():
                    await work(group)
        # What is kept in memory is committed when the block is left, and no sooner: there the lease was held still.
        assert answers == [not commits] or not storage.capabilities.durable

    async def test_other_calls_go_on_while_it_is_open(self, storage: Storage) -> None:
        lease, other = await hold(storage), await hold(storage)
        with fail_after(PATIENCE):
            async with storage.transaction() as transaction:
                assert await extend(storage, lease, 2 * LEASE, now=at(1))
                job_id = await add(storage, queue_name="q")
                taken = await take(storage, queues=["q"])
                assert taken.id == job_id
                assert await settle(storage, taken.lease, Event.SUCCEED, result=b"1")
                await maintain(storage, now=at(1))
                await storage.watch([lease.job_id, job_id], watcher="me")
                assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=b"2"), now=at(2))
        assert (await row(storage, lease.job_id)).result == b"2"
        assert await settle(storage, other, Event.RELEASE)

    async def test_many_follow_one_another_and_use_nothing_up(self, storage: Storage) -> None:
        async def work(number: int) -> None:
            lease = await hold(storage)
            if number % 3 == 0:
                with pytest.raises(LeaseGone):
                    await settle_in_one(storage, forged(lease)[0], Event.SUCCEED, result=b"1")
            await settle_in_one(storage, lease, Event.SUCCEED, result=b"1")
            assert (await row(storage, lease.job_id)).status is Status.COMPLETED

        with fail_after(2 * PATIENCE):
            async with create_task_group() as workers:
                for number in range(30):
                    workers.start_soon(work, number)

    async def test_several_are_open_at_once(self, storage: Storage) -> None:
        leases = [await hold(storage) for _ in range(3)]
        inside, everyone = [0], Bell()

        async def work(lease: Lease) -> None:
            async with storage.transaction() as transaction:
                inside[0] += 1
                if inside[0] == len(leases):
                    everyone.set()
                await everyone.wait()
                assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=b"1"), now=T0)

        with fail_after(PATIENCE):
            async with create_task_group() as workers:
                for lease in leases:
                    workers.start_soon(work, lease)
        found = await storage.find([lease.job_id for lease in leases])
        assert {record.status for record in found.values()} == {Status.COMPLETED}

    async def test_cancelled_inside_nothing_of_it_stays(self, storage: Storage) -> None:
        callback = follow_up(on=On.ALWAYS)
        lease = await hold(storage, callbacks=(callback,))
        before = await everything(storage)
        with CancelScope() as scope:
            async with storage.transaction() as transaction:
                assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=b"1"), now=T0)
                scope.cancel()
                await checkpoint()
        assert scope.cancelled_caught
        with fail_after(PATIENCE):
            assert await everything(storage) == before
            assert await extend(storage, lease, now=at(1))
            await settle_in_one(storage, lease, Event.SUCCEED, result=b"2")
        assert await written(storage, [callback]) == {callback.id}

    async def test_cancelled_at_any_moment_it_is_whole_or_nothing(self, storage: Storage) -> None:
        for checkpoints in (0, 1, 2, 3, 5, 8, 13, 20, 40, 100, 400):
            callback = follow_up(on=On.ALWAYS, queue_name=f"after {checkpoints}")
            lease = await hold(storage, callbacks=(callback,))
            raised: list[type[BaseException]] = []

            async def work(lease: Lease = lease, raised: list[type[BaseException]] = raised) -> None:
                try:
                    await settle_in_one(storage, lease, Event.SUCCEED, result=b"1")
                except get_cancelled_exc_class() as error:
                    raised.append(type(error))
                    raise

            with fail_after(PATIENCE):
                async with create_task_group() as group:
                    group.start_soon(work)
                    for _ in range(checkpoints):
                        await checkpoint()
                    group.cancel_scope.cancel()
                # An `extend` waits until the transaction is over, wherever it was when it was cut off.
                held = await extend(storage, lease, now=at(1))
            status = (await row(storage, lease.job_id)).status
            assert status is (Status.PROCESSING if held else Status.COMPLETED)
            assert await written(storage, [callback]) == (set() if held else {callback.id})
            assert raised or not held

    async def test_a_cancelled_one_is_never_begun(self, storage: Storage) -> None:
        with CancelScope() as scope:
            scope.cancel()
            async with storage.transaction():
                pytest.fail("it was begun")
        assert scope.cancelled_caught

    async def test_its_end_wakes_listeners_and_watchers(self, wakeful: Storage) -> None:
        lease = await hold(wakeful, callbacks=(follow_up(),))
        async with wakeful.listen(["after", "watcher"]) as listener:
            await wakeful.watch([lease.job_id], watcher="watcher")
            await settle_in_one(wakeful, lease, Event.SUCCEED, result=b"1")
            await hear(listener, "after", "watcher")
        assert (await take(wakeful, queues=["after"])).origin is not None

    async def test_a_job_that_goes_on_after_it_wakes(self, wakeful: Storage) -> None:
        lease = await hold(wakeful, queue_name="q")
        async with wakeful.listen(["q"]) as listener:
            await settle_in_one(wakeful, lease, Event.RETRY, error=BOOM)
            await hear(listener, "q")
        assert (await take(wakeful, queues=["q"])).attempt == 2

    async def test_whoever_is_woken_by_it_finds_what_it_wrote(self, wakeful: Storage, another: Storage) -> None:
        lease = await hold(wakeful, callbacks=(follow_up(),))
        async with another.listen(["after"]) as listener, create_task_group() as group:

            async def follow() -> None:
                found: Sequence[ReservedJob] = ()
                while not found:  # a wake may be false, and comes again; the one that tells of it must not be early
                    await hear(listener, "after")
                    found = (await reserve(another, queues=["after"])).jobs
                assert found[0].origin is not None

            group.start_soon(follow)
            await settle_in_one(wakeful, lease, Event.SUCCEED, result=b"1")

    async def test_there_is_a_connection_to_every_database(self, storage: Storage) -> None:
        async with storage.transaction() as transaction:
            if storage.capabilities.durable or storage.capabilities.shared:
                assert transaction.connection is not None


class HandleConformance(Suite):
    """`Storage.insert` through a handle of the caller's, as far as every storage is alike."""

    @pytest.mark.parametrize("connection", [object(), "a DSN", 1, False], ids=["object", "text", "number", "boolean"])
    async def test_what_is_no_handle_is_refused_before_anything_is_written(
        self, storage: Storage, connection: object
    ) -> None:
        standing = await add(storage, idempotency_key="k")
        before = await everything(storage)
        callback = follow_up(on=On.ALWAYS)
        jobs = [new_job(), new_job(idempotency_key="k", callbacks=(callback,))]
        with pytest.raises(OptionInvalid):
            await storage.insert(jobs, now=T0, connection=connection)
        assert await everything(storage) == before
        await storage.cancel([standing], now=T0)
        assert not await written(storage, [callback])
