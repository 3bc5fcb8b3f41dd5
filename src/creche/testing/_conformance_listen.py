"""Listen: what must wake a listener. Silence is never tested where a wake may be false, for a wake is a hint."""

from __future__ import annotations

import pytest
from anyio import CancelScope, create_task_group, fail_after, move_on_after

from creche._job import NAME_LIMIT, WAKE_HORIZON, Event, Status
from creche.abc import Listener, Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    LEASE,
    PATIENCE,
    PUT_OFF,
    Suite,
    add,
    at,
    bring,
    hold_as,
    maintain,
    new_job,
    settle,
    take,
)


async def hear(listener: Listener, *queues: str) -> None:
    """Wait for a wake that concerns all these queues, or any."""
    missing = set(queues)
    with fail_after(PATIENCE):
        while missing:
            woken = await listener.wait()
            missing -= woken or missing


class ListenConformance(Suite):
    """`Storage.listen`, for a storage that declares it can."""

    @pytest.mark.parametrize("options", [{}, {"delay": WAKE_HORIZON - 0.5}, {"available_at": at(-60)}])
    async def test_a_job_that_is_ready_or_soon_will_be_wakes(
        self, wakeful: Storage, options: dict[str, object]
    ) -> None:
        async with wakeful.listen(["q"]) as listener:
            await wakeful.insert([new_job(queue_name="q", **options)], now=at(0))
            await hear(listener, "q")

    async def test_a_listener_that_waits_already_is_woken(self, wakeful: Storage) -> None:
        async with wakeful.listen(["q"]) as listener, create_task_group() as group:
            group.start_soon(hear, listener, "q")
            await add(wakeful, queue_name="q")

    async def test_a_job_that_is_due_before_the_others_of_its_batch_wakes(self, wakeful: Storage) -> None:
        async with wakeful.listen(["q"]) as listener:
            jobs = [new_job(queue_name="elsewhere"), new_job(queue_name="q", delay=9_999), new_job(queue_name="q")]
            await wakeful.insert(jobs, now=at(0))
            await hear(listener, "q")

    async def test_a_wake_names_only_queues_that_are_listened_to(self, wakeful: Storage) -> None:
        async with wakeful.listen(["a", "b"]) as listener:
            await wakeful.insert([new_job(queue_name=name) for name in ("c", "A", "b")], now=at(0))
            with fail_after(PATIENCE):
                assert await listener.wait() <= {"a", "b"}

    async def test_each_queue_that_is_listened_to_wakes_whatever_its_name(self, wakeful: Storage) -> None:
        names = [*DISTINCT_NAMES, "n" * NAME_LIMIT, "é" * (NAME_LIMIT // 2)]
        async with wakeful.listen(names) as listener:
            for name in names:
                await add(wakeful, queue_name=name)
                await hear(listener, name)

    async def test_wakes_that_come_together_are_all_kept(self, wakeful: Storage) -> None:
        names = ["a", "b", "c"]
        async with wakeful.listen(names) as listener:
            async with create_task_group() as group:
                for name in names:
                    group.start_soon(wakeful.insert, [new_job(queue_name=name)])
            await hear(listener, *names)

    async def test_every_listener_is_woken(self, wakeful: Storage) -> None:
        async with wakeful.listen(["q"]) as first, wakeful.listen(["other", "q"]) as second:
            await add(wakeful, queue_name="q")
            await hear(first, "q")
            await hear(second, "q")

    async def test_a_cancelled_wait_loses_no_wake(self, wakeful: Storage) -> None:
        async with wakeful.listen(["q"]) as listener:
            with CancelScope() as scope:
                scope.cancel()
                await listener.wait()
            assert scope.cancelled_caught
            await add(wakeful, queue_name="q")
            # It may return what is there already, or raise; if it raises, the wake stays for the next one.
            with CancelScope() as scope:
                scope.cancel()
                await listener.wait()
            if scope.cancelled_caught:
                await hear(listener, "q")

    async def test_it_can_be_left_and_entered_many_times(self, wakeful: Storage) -> None:
        for _ in range(20):
            async with wakeful.listen(["q"]):
                pass
        async with wakeful.listen(["q"]) as listener:
            await add(wakeful, queue_name="q")
            await hear(listener, "q")

    @pytest.mark.parametrize(
        ("event", "delay"),
        [(Event.RELEASE, 0.0), (Event.RETRY, 0.0), (Event.RETRY, 5.0), (Event.SNOOZE, 0.0), (Event.SNOOZE, 5.0)],
    )
    async def test_an_attempt_whose_job_goes_on_at_once_or_soon_wakes(
        self, wakeful: Storage, event: Event, delay: float
    ) -> None:
        async with wakeful.listen(["q"]) as listener:
            await add(wakeful, queue_name="q")
            await hear(listener, "q")
            lease = (await take(wakeful, queues=["q"])).lease
            error = BOOM if event is Event.RETRY else None
            assert await settle(wakeful, lease, event, error=error, delay=delay)
            await hear(listener, "q")

    async def test_a_job_that_maintain_recovered_wakes_when_it_is_promoted(self, wakeful: Storage) -> None:
        async with wakeful.listen(["q"]) as listener:
            await add(wakeful, queue_name="q")
            await hear(listener, "q")
            await take(wakeful, queues=["q"])
            assert (await maintain(wakeful, now=at(LEASE))).recovered == 1
            assert (await maintain(wakeful, now=at(LEASE + PUT_OFF))).promoted == 1
            await hear(listener, "q")

    async def test_a_job_that_maintain_promotes_wakes(self, wakeful: Storage) -> None:
        async with wakeful.listen(["q"]) as listener:
            await add(wakeful, queue_name="q", delay=3_600)
            assert (await maintain(wakeful, now=at(3_600))).promoted == 1
            await hear(listener, "q")

    @pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED, Status.SCHEDULED])
    async def test_a_job_that_is_retried_wakes(self, wakeful: Storage, status: Status) -> None:
        async with wakeful.listen(["q"]) as listener:
            await add(wakeful, queue_name="q")
            await hear(listener, "q")
            lease = (await take(wakeful, queues=["q"])).lease
            event = {Status.FAILED: Event.FAIL, Status.CANCELLED: Event.ABORT, Status.SCHEDULED: Event.RETRY}[status]
            error = None if event is Event.ABORT else BOOM
            await settle(wakeful, lease, event, error=error, delay=3_600.0 if event is Event.RETRY else 0.0)
            await wakeful.retry([lease.job_id], now=at(1))
            await hear(listener, "q")

    async def test_a_cancellation_wakes_the_name_under_which_the_holder_reserved(self, wakeful: Storage) -> None:
        async with wakeful.listen(["host:1:ab", "q"]) as listener:
            lease = await hold_as(wakeful, "host:1:ab")
            # Again, too: the answer to the first may have been lost, and its wake with it.
            for _ in range(2):
                assert await wakeful.cancel([lease.job_id], now=at(1)) == {lease.job_id: Status.PROCESSING}
                await hear(listener, "host:1:ab")
                assert (await wakeful.extend([lease], LEASE, now=at(2))).cancel_requested == {lease}

    async def test_many_cancellations_wake_each_holder_whatever_its_name(self, wakeful: Storage) -> None:
        names = [*DISTINCT_NAMES, "n" * NAME_LIMIT, "é" * (NAME_LIMIT // 2)]
        leases = [await hold_as(wakeful, name) for name in names for _ in range(2)]
        waiting = await add(wakeful, queue_name="elsewhere")
        async with wakeful.listen(names) as listener:
            await wakeful.cancel([waiting, *(lease.job_id for lease in leases)], now=at(1))
            await hear(listener, *names)

    async def test_a_cancellation_wakes_the_holder_of_now_and_not_of_before(self, wakeful: Storage) -> None:
        lease = await hold_as(wakeful, "before", queue_name="q")
        await settle(wakeful, lease, Event.RELEASE)
        await take(wakeful, queues=["q"], worker="now")
        async with wakeful.listen(["before", "now"]) as listener:
            await wakeful.cancel([lease.job_id], now=at(1))
            with fail_after(PATIENCE):
                assert await listener.wait() <= {"now"}

    async def test_a_cancellation_elsewhere_wakes_the_holder(self, wakeful: Storage, another: Storage) -> None:
        lease = await hold_as(wakeful, "host:1:ab")
        async with wakeful.listen(["host:1:ab"]) as listener:
            await another.cancel([lease.job_id], now=at(1))
            await hear(listener, "host:1:ab")


class SilenceConformance(Suite):
    """`Storage.listen`, for a storage that declares it can't: it hears of its own process at most."""

    @pytest.fixture
    def silent(self, storage: Storage) -> Storage:
        """A storage that declares that it can't listen."""
        if storage.capabilities.listen:
            pytest.skip("this storage declares that it hears of new work by itself")
        return storage

    async def test_a_storage_that_hears_little_breaks_nothing(self, silent: Storage) -> None:
        storage = silent
        async with storage.listen(["q"]) as listener:
            await bring(storage, Status.PENDING, queue_name="q")
            woken = frozenset[str]()
            with move_on_after(0.05):
                woken = await listener.wait()
            assert woken <= {"q"}
            # The one place where time passes: that nothing happens can't be seen any other way.
            with move_on_after(0.05) as scope:
                await listener.wait()
            assert scope.cancelled_caught
        assert (await take(storage, queues=["q"])).attempt == 1
