"""Cancellation, opening and closing: what is left behind when an operation or a storage is ended early."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from secrets import token_bytes
from typing import Final
from uuid import UUID

import pytest
from anyio import CancelScope, create_task_group, fail_after, sleep
from anyio.lowlevel import checkpoint
from attrs import frozen

from creche._job import Event, FollowUp, JobFilter, JobRecord, Lease, NewJob, Settlement, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    FOREVER,
    LEASE,
    PATIENCE,
    T0,
    Suite,
    add,
    at,
    bring,
    follow_up,
    hold,
    new_job,
    row,
    settle,
    take,
)
from creche.testing._conformance_workers import presence


@frozen(kw_only=True)
class _Scene:
    """Three jobs for each thing that can be done to a job.

    Attributes:
        followed: are held, and have one of the `callbacks` each.
        late: meet what is over, and bring a callback.
        mark: ends the names of its queues and workers: what was cut off in the scene before may yet be written.
    """

    fresh: Sequence[NewJob]
    waiting: Sequence[UUID]
    held: Sequence[Lease]
    failed: Sequence[UUID]
    followed: Sequence[Lease]
    callbacks: Sequence[FollowUp]
    late: Sequence[NewJob]
    mark: str

    def own(self, name: str) -> str:
        """Return a name that is this scene's alone."""
        return f"{name} {self.mark}"


async def _scene(storage: Storage) -> _Scene:
    callbacks = [follow_up() for _ in range(3)]
    for number in range(3):
        await bring(storage, Status.COMPLETED, queue_name="q", idempotency_key=str(number))
    mark = token_bytes(8).hex()
    await storage.pause([f"first {mark}", f"second {mark}"], now=T0)
    await storage.set_retention(f"first {mark}", FOREVER)
    await storage.announce(presence(f"there {mark}"), 60, now=T0)
    return _Scene(
        mark=mark,
        fresh=[new_job(queue_name="fresh", fingerprint=token_bytes(32)) for _ in range(3)],
        waiting=[await add(storage, queue_name="waiting") for _ in range(3)],
        held=[await hold(storage) for _ in range(3)],
        failed=[(await bring(storage, Status.FAILED)).job_id for _ in range(3)],
        followed=[await hold(storage, callbacks=(each,)) for each in callbacks],
        callbacks=callbacks,
        late=[new_job(queue_name="q", idempotency_key=str(n), callbacks=(follow_up(),)) for n in range(3)],
    )


def _ids(leases: Sequence[Lease]) -> list[UUID]:
    return [lease.job_id for lease in leases]


_Operation = Callable[[Storage, _Scene], Awaitable[object]]

WRITES: Final[dict[str, tuple[_Operation, Callable[[_Scene], Sequence[UUID]]]]] = {
    "insert": (
        lambda storage, scene: storage.insert(scene.fresh, now=at(1)),
        lambda scene: [job.id for job in scene.fresh],
    ),
    "reserve": (
        lambda storage, _: storage.reserve(["waiting"], 3, lease=LEASE, worker="w", nonce=1, now=at(1)),
        lambda scene: scene.waiting,
    ),
    "extend": (
        lambda storage, scene: storage.extend(scene.held, 2 * LEASE, now=at(1)),
        lambda scene: _ids(scene.held),
    ),
    "settle": (
        lambda storage, scene: storage.settle(
            [Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in scene.held], now=at(1)
        ),
        lambda scene: _ids(scene.held),
    ),
    "settle what is followed": (
        lambda storage, scene: storage.settle(
            [Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in scene.followed], now=at(1)
        ),
        lambda scene: [*_ids(scene.followed), *(each.id for each in scene.callbacks)],
    ),
    "insert late": (
        lambda storage, scene: storage.insert(scene.late, now=at(1)),
        lambda scene: [job.callbacks[0].id for job in scene.late],
    ),
    "maintain": (
        lambda storage, _: storage.maintain(10, retention=FOREVER, now=at(LEASE + 1)),
        lambda scene: _ids([*scene.held, *scene.followed]),
    ),
    "cancel": (
        lambda storage, scene: storage.cancel(scene.waiting, now=at(1)),
        lambda scene: scene.waiting,
    ),
    "retry": (
        lambda storage, scene: storage.retry(scene.failed, now=at(1)),
        lambda scene: scene.failed,
    ),
    "delete": (
        lambda storage, scene: storage.delete(scene.failed),
        lambda scene: scene.failed,
    ),
}
"""Each operation that writes, and the jobs that it changes: all of them, or none."""

SETTINGS: Final[dict[str, _Operation]] = {
    "pause": lambda storage, scene: storage.pause([scene.own("third"), scene.own("other")], now=at(1)),
    "resume": lambda storage, scene: storage.resume([scene.own("first"), scene.own("second"), scene.own("x")]),
    "set_retention": lambda storage, scene: storage.set_retention(scene.own("second"), FOREVER),
    "take a retention away": lambda storage, scene: storage.set_retention(scene.own("first"), None),
    "announce": lambda storage, scene: storage.announce(presence(scene.own("new")), 60, now=at(1)),
    "announce again": lambda storage, scene: storage.announce(presence(scene.own("there"), pid=2), 90, now=at(1)),
    "withdraw": lambda storage, scene: storage.withdraw(scene.own("there")),
}
"""Each operation that changes no job, but what is set for queues or known of workers."""

READS: Final[dict[str, _Operation]] = {
    "find": lambda storage, scene: storage.find(scene.waiting),
    "list": lambda storage, _: storage.list(JobFilter(), 10),
    "dead_letters": lambda storage, _: storage.dead_letters(10),
    "stats": lambda storage, _: storage.stats(now=T0),
    "workers": lambda storage, _: storage.workers(now=T0),
    "check": lambda storage, _: storage.check(),
    "watch": lambda storage, scene: storage.watch(scene.waiting),
    "watch for a watcher": lambda storage, scene: storage.watch(scene.waiting, watcher="me", over=scene.failed),
}


async def _rows(storage: Storage) -> dict[UUID, JobRecord]:
    return {record.id: record for record in await storage.list(JobFilter(), 100)}


async def _settings(storage: Storage, scene: _Scene) -> object:
    """Return what is set for a scene's queues, and which of its workers are there."""
    queues = [(each.queue_name, each.paused_at, each.retention) for each in await storage.stats(now=T0)]
    workers = [(each.presence, each.started_at, each.seen_at) for each in await storage.workers(now=at(1))]
    return (
        [each for each in queues if each[0].endswith(scene.mark)],
        [each for each in workers if each[0].name.endswith(scene.mark)],
    )


async def _assert_usable(storage: Storage) -> None:
    """Use a storage from many tasks at once: no connection may be missing, and none left in the middle."""

    async def use(name: str) -> None:
        job_id = await add(storage, queue_name=name)
        lease = (await take(storage, queues=[name])).lease
        assert await settle(storage, lease, Event.SUCCEED, result=b"1")
        assert (await row(storage, job_id)).status is Status.COMPLETED

    with fail_after(PATIENCE):
        async with create_task_group() as users:
            for number in range(12):
                users.start_soon(use, f"after {number}")


class CancellationConformance(Suite):
    """What a cancelled operation leaves behind."""

    @pytest.mark.parametrize("name", [*WRITES, *SETTINGS, *READS])
    async def test_every_operation_is_a_checkpoint(self, storage: Storage, name: str) -> None:
        scene = await _scene(storage)
        operation = WRITES[name][0] if name in WRITES else {**SETTINGS, **READS}[name]
        with CancelScope() as scope:
            scope.cancel()
            await operation(storage, scene)
        assert scope.cancelled_caught
        await _assert_usable(storage)

    @pytest.mark.parametrize("checkpoints", [0, 1, 2, 5, 20, 100, 400])
    @pytest.mark.parametrize("name", list(WRITES))
    async def test_a_cancelled_write_is_whole_or_nothing_and_can_be_sent_again(
        self, storage: Storage, name: str, checkpoints: int
    ) -> None:
        write, changes = WRITES[name]
        scene = await _scene(storage)
        before = await _rows(storage)

        async def run() -> None:
            await write(storage, scene)

        with fail_after(PATIENCE):
            async with create_task_group() as group:
                group.start_soon(run)
                for _ in range(checkpoints):
                    await checkpoint()
                group.cancel_scope.cancel()
            after = await _rows(storage)
            changed = {job_id for job_id in before.keys() | after.keys() if before.get(job_id) != after.get(job_id)}
            assert changed in (set(), set(changes(scene)))
            await write(storage, scene)
            again = await _rows(storage)
            while not all(before.get(job_id) != again.get(job_id) for job_id in changes(scene)):
                await sleep(0.01)  # a server may still be at the statement whose caller has gone
                again = await _rows(storage)
        if changed:
            assert again == after

    @pytest.mark.parametrize("checkpoints", [0, 1, 2, 5, 20, 100, 400])
    @pytest.mark.parametrize("name", list(SETTINGS))
    async def test_a_cancelled_setting_is_whole_or_nothing_and_can_be_sent_again(
        self, storage: Storage, name: str, checkpoints: int
    ) -> None:
        scene = await _scene(storage)
        before = await _settings(storage, scene)

        async def run() -> None:
            await SETTINGS[name](storage, scene)

        with fail_after(PATIENCE):
            async with create_task_group() as group:
                group.start_soon(run)
                for _ in range(checkpoints):
                    await checkpoint()
                group.cancel_scope.cancel()
            after = await _settings(storage, scene)
            await SETTINGS[name](storage, scene)
            again = await _settings(storage, scene)
        assert again != before
        assert after in (before, again)

    @pytest.mark.parametrize("name", ["check", "workers"])
    @pytest.mark.parametrize("checkpoints", [1, 2, 5, 20, 100])
    async def test_a_look_that_was_cancelled_half_way_leaves_nothing_in_the_middle(
        self, storage: Storage, name: str, checkpoints: int
    ) -> None:
        scene = await _scene(storage)

        async def run() -> None:
            await READS[name](storage, scene)

        with fail_after(PATIENCE):
            async with create_task_group() as group:
                for _ in range(3):
                    group.start_soon(run)
                for _ in range(checkpoints):
                    await checkpoint()
                group.cancel_scope.cancel()
        await _assert_usable(storage)

    async def test_many_cancelled_operations_use_up_nothing(self, storage: Storage) -> None:
        for number in range(40):
            async with create_task_group() as group:
                for _ in range(3):
                    group.start_soon(storage.insert, [new_job(queue_name="cut off")])
                for _ in range(number):
                    await checkpoint()
                group.cancel_scope.cancel()
        await _assert_usable(storage)


class LifecycleConformance(Suite):
    """Opening, closing, and the schema."""

    async def test_migrate_applies_what_was_pending_and_then_nothing_is(self, unopened: Storage) -> None:
        pending = [name for name, _ in await unopened.pending_migrations()]
        assert list(await unopened.migrate()) == pending
        assert list(await unopened.pending_migrations()) == []
        assert list(await unopened.migrate()) == []

    async def test_migrating_again_changes_no_job(self, storage: Storage) -> None:
        job_id = await add(storage)
        before = await row(storage, job_id)
        assert list(await storage.migrate()) == []
        assert await row(storage, job_id) == before

    async def test_it_opens_with_no_job_in_it(self, storage: Storage) -> None:
        assert list(await storage.list(JobFilter(), 10)) == []
        assert list(await storage.dead_letters(10)) == []

    async def test_closed_and_opened_again_it_works_and_what_is_durable_is_there(self, unopened: Storage) -> None:
        await unopened.migrate()
        async with unopened as opened:
            assert opened is unopened
            job_id = await add(unopened, queue_name="first")
            durable = unopened.capabilities.durable
        for _ in range(2):
            async with unopened:
                if durable:
                    assert (await row(unopened, job_id)).queue_name == "first"
                await _assert_usable(unopened)

    async def test_an_error_inside_the_block_comes_out_as_it_is(self, unopened: Storage) -> None:
        await unopened.migrate()
        error = ZeroDivisionError("the user's own")

        async def use_and_fail() -> None:
            async with unopened:
                await add(unopened)
                raise error

        with pytest.raises(ZeroDivisionError) as caught:
            await use_and_fail()
        assert caught.value is error
        async with unopened:
            await _assert_usable(unopened)

    async def test_cancelled_while_open_it_closes_and_can_be_opened_again(self, unopened: Storage) -> None:
        await unopened.migrate()
        with CancelScope() as scope:
            async with unopened:
                await add(unopened)
                scope.cancel()
                await checkpoint()
        assert scope.cancelled_caught
        async with unopened:
            await _assert_usable(unopened)

    @pytest.mark.parametrize("checkpoints", [0, 1, 3, 10, 100])
    async def test_cancelled_while_opening_it_can_be_opened_again(self, unopened: Storage, checkpoints: int) -> None:
        await unopened.migrate()

        async def use() -> None:
            async with unopened:
                await checkpoint()

        with fail_after(PATIENCE):
            async with create_task_group() as group:
                group.start_soon(use)
                for _ in range(checkpoints):
                    await checkpoint()
                group.cancel_scope.cancel()
            async with unopened:
                await _assert_usable(unopened)
