"""Retention per queue: how long a queue of its own mind keeps what is over. What all others keep stands apart."""

from __future__ import annotations

from uuid import UUID

import pytest
from anyio import create_task_group

from creche._job import DELAY_LIMIT, NAME_LIMIT, Event, QueueStats, Retention, Settlement, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    FOREVER,
    T0,
    Suite,
    add,
    ask,
    at,
    bring,
    everything,
    maintain,
    new_job,
    reserve,
    settle,
    take,
)

BRIEF = Retention(completed=0, failed=0, cancelled=0)
OVER = [Status.COMPLETED, Status.FAILED, Status.CANCELLED]


async def retentions(storage: Storage) -> dict[str, Retention]:
    """Return the queues that have a retention of their own."""
    return {each.queue_name: each.retention for each in await storage.stats(now=T0) if each.retention is not None}


async def finish(storage: Storage, queue: str, count: int, event: Event = Event.SUCCEED) -> list[UUID]:
    """Bring jobs of a queue to their end; return their ids."""
    await storage.insert([new_job(queue_name=queue) for _ in range(count)], now=T0)
    leases = [job.lease for job in (await reserve(storage, count, queues=[queue])).jobs]
    error = BOOM if event is Event.FAIL else None
    await storage.settle([Settlement(lease=lease, event=event, error=error) for lease in leases], now=T0)
    return [lease.job_id for lease in leases]


class RetentionConformance(Suite):
    """`Storage.set_retention`, and what `Storage.maintain` makes of it."""

    @pytest.mark.parametrize("status", OVER)
    async def test_a_queue_keeps_its_jobs_for_as_long_as_it_says_itself(self, storage: Storage, status: Status) -> None:
        own = Retention(**{"completed": 10, "failed": 10, "cancelled": 10, status.value: 100})
        await storage.set_retention("q", own)
        mine = await bring(storage, status, queue_name="q")
        other = await bring(storage, status, queue_name="other")
        assert (await maintain(storage, retention=BRIEF, now=at(99.999_999))).pruned == 1
        assert (await storage.find([mine.job_id, other.job_id])).keys() == {mine.job_id}
        letters = [letter.job_id for letter in await storage.dead_letters(10)]
        assert letters == ([mine.job_id] if status is Status.FAILED else [])
        assert (await maintain(storage, retention=BRIEF, now=at(100))).pruned == 1
        assert await storage.find([mine.job_id]) == {}
        assert list(await storage.dead_letters(10)) == []

    @pytest.mark.parametrize("status", OVER)
    async def test_a_queue_lets_its_jobs_go_sooner_than_others_if_it_says_so(
        self, storage: Storage, status: Status
    ) -> None:
        own = Retention(**{"completed": 100, "failed": 100, "cancelled": 100, status.value: 10})
        await storage.set_retention("q", own)
        mine = await bring(storage, status, queue_name="q")
        other = await bring(storage, status, queue_name="other")
        assert (await maintain(storage, now=at(9.999_999))).pruned == 0
        assert (await maintain(storage, now=at(10))).pruned == 1
        assert (await storage.find([mine.job_id, other.job_id])).keys() == {other.job_id}
        letters = [letter.job_id for letter in await storage.dead_letters(10)]
        assert letters == ([other.job_id] if status is Status.FAILED else [])

    @pytest.mark.parametrize("status", OVER)
    async def test_of_no_seconds_what_is_over_goes_with_the_next_upkeep(self, storage: Storage, status: Status) -> None:
        await storage.set_retention("q", BRIEF)
        lease = await bring(storage, status, queue_name="q")
        assert (await maintain(storage, now=T0)).pruned == 1
        assert await storage.find([lease.job_id]) == {}
        assert list(await storage.dead_letters(10)) == []

    async def test_what_was_over_before_is_kept_by_it_too(self, storage: Storage) -> None:
        lease = await bring(storage, Status.FAILED, queue_name="q")
        await storage.set_retention("q", Retention(failed=100))
        assert (await maintain(storage, retention=BRIEF, now=at(99))).pruned == 0
        await storage.set_retention("q", Retention(failed=50))
        assert (await maintain(storage, now=at(99))).pruned == 1
        assert await storage.find([lease.job_id]) == {}

    async def test_taken_away_the_queue_is_as_the_others(self, storage: Storage) -> None:
        await storage.set_retention("q", FOREVER)
        await bring(storage, Status.COMPLETED, queue_name="q")
        assert (await maintain(storage, retention=BRIEF, now=at(9))).pruned == 0
        for _ in range(2):
            await storage.set_retention("q", None)
            assert await retentions(storage) == {}
        assert (await maintain(storage, retention=Retention(completed=10), now=at(9))).pruned == 0
        assert (await maintain(storage, retention=Retention(completed=10), now=at(10))).pruned == 1
        assert list(await storage.stats(now=at(10))) == []

    @pytest.mark.parametrize(
        "retention",
        [Retention(), BRIEF, FOREVER, Retention(completed=0.5, failed=0.000_001, cancelled=DELAY_LIMIT / 3)],
    )
    async def test_it_is_shown_as_it_was_given(self, storage: Storage, retention: Retention) -> None:
        for _ in range(2):
            await storage.set_retention("q", retention)
            assert list(await storage.stats(now=T0)) == [
                QueueStats(queue_name="q", counts={}, oldest_ready=None, retention=retention)
            ]

    async def test_the_last_word_counts(self, storage: Storage) -> None:
        for completed in (1, 2, 3):
            await storage.set_retention("q", Retention(completed=completed))
        assert await retentions(storage) == {"q": Retention(completed=3)}

    async def test_to_take_away_what_is_not_there_is_no_error(self, storage: Storage) -> None:
        await storage.set_retention("unknown", None)
        assert list(await storage.stats(now=T0)) == []

    async def test_it_says_nothing_about_a_pause_nor_a_pause_about_it(self, storage: Storage) -> None:
        await storage.set_retention("q", BRIEF)
        await storage.pause(["q"], now=at(1))
        both = QueueStats(queue_name="q", counts={}, oldest_ready=None, paused_at=at(1), retention=BRIEF)
        assert list(await storage.stats(now=at(1))) == [both]
        await storage.set_retention("q", None)
        await storage.set_retention("r", FOREVER)
        await storage.pause(["r"], now=at(2))
        await storage.resume(["r"])
        assert list(await storage.stats(now=at(2))) == [
            QueueStats(queue_name="q", counts={}, oldest_ready=None, paused_at=at(1)),
            QueueStats(queue_name="r", counts={}, oldest_ready=None, retention=FOREVER),
        ]

    async def test_queues_that_a_collation_would_confuse_have_each_their_own(self, storage: Storage) -> None:
        names = [*DISTINCT_NAMES, "n" * NAME_LIMIT, "é" * (NAME_LIMIT // 2), "\\'\"%s\U0001f423"]
        for number, name in enumerate(names, start=1):
            await storage.set_retention(name, Retention(completed=number))
        assert await retentions(storage) == {
            name: Retention(completed=number) for number, name in enumerate(names, start=1)
        }
        ids = [(await finish(storage, name, 1))[0] for name in names]
        for number in range(1, len(names) + 1):
            assert (await maintain(storage, now=at(number))).pruned == 1
            assert (await storage.find(ids)).keys() == {*ids[number:]}

    async def test_a_fresh_result_keeps_its_row_all_the_same(self, storage: Storage) -> None:
        await storage.set_retention("q", BRIEF)
        lease = await bring(storage, Status.COMPLETED, queue_name="q", fingerprint=bytes(32), result_ttl=100.0)
        assert (await maintain(storage, now=at(99.999_999))).pruned == 0
        assert (await ask(storage, fingerprint=bytes(32), now=at(99))).job_id == lease.job_id
        assert (await maintain(storage, now=at(100))).pruned == 1

    @pytest.mark.parametrize("status", [status for status in Status if status.active])
    async def test_an_active_job_is_never_pruned_by_it(self, storage: Storage, status: Status) -> None:
        await storage.set_retention("q", BRIEF)
        lease = await bring(storage, status, queue_name="q")
        assert (await maintain(storage, now=at(86_400 * 999))).pruned == 0
        assert (await storage.find([lease.job_id])).keys() == {lease.job_id}

    async def test_it_counts_from_the_last_end(self, storage: Storage) -> None:
        await storage.set_retention("q", Retention(failed=10))
        lease = await bring(storage, Status.FAILED, queue_name="q")
        await storage.retry([lease.job_id], now=at(9))
        assert (await maintain(storage, now=at(50))).pruned == 0
        again = await take(storage, queues=["q"], now=at(50))
        await settle(storage, again.lease, Event.FAIL, error=BOOM, now=at(50))
        assert (await maintain(storage, now=at(59.999_999))).pruned == 0
        assert (await maintain(storage, now=at(60))).pruned == 1
        assert list(await storage.dead_letters(10)) == []

    async def test_what_is_kept_longer_uses_up_no_limit(self, storage: Storage) -> None:
        await storage.set_retention("q", FOREVER)
        kept = await finish(storage, "q", 20, Event.FAIL)
        gone = await finish(storage, "other", 5, Event.FAIL)
        pruned = [(await maintain(storage, 2, retention=BRIEF, now=at(1))).pruned for _ in range(4)]
        assert pruned == [2, 2, 1, 0]
        assert (await storage.find([*kept, *gone])).keys() == {*kept}
        assert {letter.job_id for letter in await storage.dead_letters(100)} == {*kept}

    async def test_the_limit_holds_for_queues_of_both_kinds_together(self, storage: Storage) -> None:
        await storage.set_retention("q", BRIEF)
        await storage.set_retention("r", Retention(failed=1))
        for queue in ("q", "r", "other"):
            await finish(storage, queue, 3, Event.FAIL)
        pruned = [(await maintain(storage, 4, retention=BRIEF, now=at(1))).pruned for _ in range(4)]
        assert pruned == [4, 4, 1, 0]
        assert await everything(storage) == ((), ())

    @pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL])
    @pytest.mark.parametrize("last", ["a", "z"])
    async def test_where_the_limit_is_too_little_the_queue_goes_first_that_is_most_overdue(
        self, storage: Storage, event: Event, last: str
    ) -> None:
        await storage.set_retention(last, Retention(completed=100, failed=100, cancelled=100))
        mine, others = await finish(storage, last, 2, event), await finish(storage, "m", 2, event)
        await maintain(storage, limit=2, retention=BRIEF, now=at(200))
        assert (await storage.find([*mine, *others])).keys() == {*mine}
        letters = {letter.job_id for letter in await storage.dead_letters(10)}
        assert letters == ({*mine} if event is Event.FAIL else set())

    @pytest.mark.parametrize("last", ["a", "z"])
    async def test_a_fresh_result_gives_its_queue_no_precedence(self, storage: Storage, last: str) -> None:
        await bring(storage, Status.COMPLETED, queue_name=last, result_ttl=9_999)
        other = await bring(storage, Status.COMPLETED, queue_name="m", now=at(50))
        mine = await bring(storage, Status.COMPLETED, queue_name=last, now=at(100))
        assert (await maintain(storage, limit=1, retention=BRIEF, now=at(200))).pruned == 1
        assert (await storage.find([mine.job_id, other.job_id])).keys() == {mine.job_id}

    async def test_many_queues_have_a_retention_of_their_own(self, storage: Storage) -> None:
        for number in range(60):
            await storage.set_retention(f"q{number:02}", Retention(completed=number + 1))
        await storage.insert([new_job(queue_name=f"q{number:02}") for number in range(0, 60, 7)], now=T0)
        leases = [job.lease for job in (await reserve(storage, 99, queues=[f"q{n:02}" for n in range(60)])).jobs]
        await storage.settle([Settlement(lease=lease, event=Event.SUCCEED) for lease in leases], now=T0)
        left = [(await maintain(storage, retention=BRIEF, now=at(number + 1))).pruned for number in range(0, 60, 7)]
        assert left == [1] * 9
        assert (await retentions(storage)).keys() == {f"q{number:02}" for number in range(60)}


class RetentionAtOnceConformance(Suite):
    """`Storage.set_retention`, in more places than one."""

    async def test_what_one_set_the_other_keeps_to(self, storage: Storage, another: Storage) -> None:
        await another.set_retention("q", Retention(completed=100))
        lease = await bring(storage, Status.COMPLETED, queue_name="q")
        assert await retentions(storage) == await retentions(another) == {"q": Retention(completed=100)}
        assert (await maintain(storage, retention=BRIEF, now=at(99))).pruned == 0
        await storage.set_retention("q", None)
        assert (await maintain(another, retention=BRIEF, now=at(99))).pruned == 1
        assert await storage.find([lease.job_id]) == {}

    async def test_of_many_who_set_it_at_once_one_is_right(self, storage: Storage) -> None:
        await self._set_at_once(storage, storage)

    async def test_of_many_who_set_it_in_two_places_one_is_right(self, storage: Storage, another: Storage) -> None:
        await self._set_at_once(storage, another)

    async def _set_at_once(self, storage: Storage, elsewhere: Storage) -> None:
        given = [Retention(completed=number, failed=number, cancelled=number) for number in range(8)]
        async with create_task_group() as group:
            for number, retention in enumerate(given):
                place = (storage, elsewhere)[number % 2]
                group.start_soon(place.set_retention, "q", retention)
                group.start_soon(place.set_retention, f"of {number}", retention)
                group.start_soon(place.pause, ["q", f"of {number}"])
        found = await retentions(elsewhere)
        assert found.pop("q") in given
        assert found == {f"of {number}": retention for number, retention in enumerate(given)}

    async def test_rivals_prune_each_job_once_whichever_its_queue(self, storage: Storage) -> None:
        await storage.set_retention("q", Retention(completed=1))
        await storage.set_retention("kept", FOREVER)
        for queue in ("q", "kept", "other"):
            await finish(storage, queue, 15)
        done: list[int] = []

        async def rival() -> None:
            while pruned := (await maintain(storage, 4, retention=BRIEF, now=at(1))).pruned:
                done.append(pruned)

        async with create_task_group() as rivals:
            for _ in range(4):
                rivals.start_soon(rival)
        while pruned := (await maintain(storage, 100, retention=BRIEF, now=at(1))).pruned:
            done.append(pruned)
        assert sum(done) == 30
        assert [(each.queue_name, each.counts) for each in await storage.stats(now=T0)] == [
            ("kept", {Status.COMPLETED: 15}),
            ("q", {}),
        ]

    async def test_a_retention_is_set_while_jobs_are_dispatched_and_pruned(self, storage: Storage) -> None:
        await finish(storage, "q", 10)

        async def dispatch() -> None:
            for _ in range(3):
                await add(storage, queue_name="q")

        async def set_it() -> None:
            for completed in (3, 2, 1):
                await storage.set_retention("q", Retention(completed=completed))

        async def prune() -> None:
            for _ in range(3):
                await maintain(storage, now=at(9))

        async with create_task_group() as group:
            for task in (dispatch, set_it, prune):
                group.start_soon(task)
        await maintain(storage, now=at(9))
        (stats,) = await storage.stats(now=at(9))
        assert (stats.counts, stats.retention) == ({Status.PENDING: 3}, Retention(completed=1))
