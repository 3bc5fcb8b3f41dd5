"""What people and dashboards do: cancel, retry, find, list, dead letters, stats. No worker is concerned."""

from __future__ import annotations

from uuid import UUID

import pytest
from anyio import create_task_group
from attrs import evolve

from creche._ids import new_job_id
from creche._job import RATE_WINDOW, Event, JobFilter, QueueStats, Retention, Status
from creche._lifecycle import TRANSITIONS
from creche.abc import Storage
from creche.testing._conformance_base import (
    BOOM,
    DISTINCT_NAMES,
    LEASE,
    T0,
    Suite,
    add,
    ask,
    at,
    bring,
    everything,
    extend,
    hold,
    maintain,
    new_job,
    reserve,
    row,
    settle,
    take,
)
from creche.testing._conformance_ends import WAYS, begin, end, id_of

PRINT = bytes(range(32))


class CancelConformance(Suite):
    """`Storage.cancel`."""

    @pytest.mark.parametrize("status", list(Status))
    async def test_cancel_answers_with_the_status_that_follows(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status)
        expected = TRANSITIONS.get((status, Event.CANCEL), status)
        assert await storage.cancel([lease.job_id], now=at(1)) == {lease.job_id: expected}
        assert (await row(storage, lease.job_id)).status is expected
        before = await everything(storage)
        assert await storage.cancel([lease.job_id], now=at(1)) == {lease.job_id: expected}
        assert await everything(storage) == before

    async def test_a_waiting_job_ends_at_once(self, storage: Storage) -> None:
        for job_id in (await add(storage), await add(storage, delay=60)):
            await storage.cancel([job_id], now=at(1))
            record = await row(storage, job_id)
            assert (record.status, record.completed_at, record.updated_at) == (Status.CANCELLED, at(1), at(1))
        await maintain(storage, now=at(100))
        assert not (await reserve(storage, 5, now=at(100))).jobs

    async def test_a_holder_is_asked_and_keeps_its_lease(self, storage: Storage) -> None:
        lease = await hold(storage)
        assert not (await storage.extend([lease], LEASE, now=at(1))).cancel_requested
        await storage.cancel([lease.job_id], now=at(1))
        assert (await row(storage, lease.job_id)).cancel_requested
        assert (await storage.extend([lease], LEASE, now=at(2))).cancel_requested == {lease}

    async def test_many_cancellations_are_answered_at_once_and_unknown_ones_not_at_all(self, storage: Storage) -> None:
        waiting, running = await add(storage), await hold(storage)
        done = await bring(storage, Status.COMPLETED)
        assert await storage.cancel([waiting, running.job_id, done.job_id, new_job_id(), waiting], now=T0) == {
            waiting: Status.CANCELLED,
            running.job_id: Status.PROCESSING,
            done.job_id: Status.COMPLETED,
        }
        assert await storage.cancel([new_job_id()], now=T0) == {}
        assert await storage.cancel([], now=T0) == {}

    async def test_a_job_is_either_reserved_or_cancelled_when_both_are_tried_at_once(self, storage: Storage) -> None:
        jobs = [new_job() for _ in range(10)]
        await storage.insert(jobs, now=T0)
        answers: dict[UUID, Status] = {}
        taken: list[UUID] = []

        async def cancel() -> None:
            answers.update(await storage.cancel([job.id for job in jobs], now=T0))

        async def work() -> None:
            taken.extend(job.id for job in (await reserve(storage, 5)).jobs)

        async with create_task_group() as both:
            both.start_soon(work)
            both.start_soon(cancel)
        assert {job for job, status in answers.items() if status is Status.PROCESSING} == set(taken)
        assert {job for job, status in answers.items() if status is Status.CANCELLED} == {job.id for job in jobs} - set(
            taken
        )


class RetryConformance(Suite):
    """`Storage.retry`."""

    @pytest.mark.parametrize("status", list(Status))
    async def test_retry_answers_with_the_status_that_follows(self, storage: Storage, status: Status) -> None:
        lease = await bring(storage, status, fingerprint=PRINT)
        expected = TRANSITIONS.get((status, Event.REVIVE), status)
        assert await storage.retry([lease.job_id], now=at(1)) == {lease.job_id: expected}
        assert (await row(storage, lease.job_id)).status is expected
        before = await everything(storage)
        assert await storage.retry([lease.job_id], now=at(2)) == {lease.job_id: expected}
        assert await everything(storage) == before

    @pytest.mark.parametrize("event", [Event.FAIL, Event.ABORT])
    async def test_a_finished_job_starts_anew(self, storage: Storage, event: Event) -> None:
        job_id = await add(storage, max_attempts=2)
        await settle(storage, (await take(storage)).lease, Event.RETRY, error=BOOM)
        lease = (await take(storage)).lease
        await storage.cancel([job_id], now=T0)
        await settle(storage, lease, event, error=BOOM if event is Event.FAIL else None)
        await storage.retry([job_id], now=at(9))
        record = await row(storage, job_id)
        assert (record.status, record.attempts, record.max_attempts) == (Status.PENDING, 0, 2)
        assert (record.completed_at, record.updated_at, record.cancel_requested) == (None, at(9), False)
        assert record.last_error == BOOM
        assert list(await storage.dead_letters(10)) == []
        again = await take(storage, now=at(9))
        assert again.attempt == 1
        assert again.lease.token > lease.token

    async def test_the_errors_of_the_life_before_stay(self, storage: Storage) -> None:
        job_id = await add(storage, max_attempts=1)
        for now in (T0, at(1)):
            await settle(storage, (await take(storage, now=now)).lease, Event.FAIL, error=BOOM, now=now)
            await storage.retry([job_id] if now == T0 else [], now=now)
        (letter,) = await storage.dead_letters(10)
        assert [(error.attempt, error.failed_at) for error in letter.errors] == [(1, T0), (1, at(1))]

    async def test_a_scheduled_job_is_ready_now_and_its_attempts_still_count(self, storage: Storage) -> None:
        job_id = await add(storage)
        await settle(storage, (await take(storage)).lease, Event.RETRY, error=BOOM, delay=600.0)
        await storage.retry([job_id], now=at(1))
        assert (await row(storage, job_id)).available_at == at(1)
        assert (await take(storage, now=at(1))).attempt == 2

    async def test_a_retried_job_takes_its_fingerprint_back(self, storage: Storage) -> None:
        for status in (Status.FAILED, Status.CANCELLED):
            lease = await bring(storage, status, fingerprint=PRINT)
            await storage.retry([lease.job_id], now=at(1))
            assert (await ask(storage, fingerprint=PRINT, now=at(1))).job_id == lease.job_id
            await storage.cancel([lease.job_id], now=at(1))

    async def test_a_job_whose_fingerprint_another_job_holds_is_left_as_it_is(self, storage: Storage) -> None:
        lease = await bring(storage, Status.FAILED, fingerprint=PRINT)
        await hold(storage, fingerprint=PRINT, result_ttl=60.0, now=at(1))
        before = await everything(storage)
        assert await storage.retry([lease.job_id], now=at(1)) == {lease.job_id: Status.FAILED}
        assert await everything(storage) == before

    async def test_a_job_is_left_as_it_is_only_while_the_other_ones_result_is_fresh(self, storage: Storage) -> None:
        lease = await bring(storage, Status.FAILED, fingerprint=PRINT)
        other = await bring(storage, Status.COMPLETED, fingerprint=PRINT, result_ttl=60.0, now=at(1))
        assert await storage.retry([lease.job_id], now=at(60)) == {lease.job_id: Status.FAILED}
        assert (await ask(storage, fingerprint=PRINT, now=at(60))).job_id == other.job_id
        assert await storage.retry([lease.job_id], now=at(61)) == {lease.job_id: Status.PENDING}
        assert (await ask(storage, fingerprint=PRINT, now=at(61))).job_id == lease.job_id

    async def test_of_two_with_one_fingerprint_one_is_retried(self, storage: Storage) -> None:
        first = await bring(storage, Status.FAILED, fingerprint=PRINT)
        second = await bring(storage, Status.CANCELLED, fingerprint=PRINT)
        answers = await storage.retry([first.job_id, second.job_id], now=at(1))
        assert sorted(answers) == sorted([first.job_id, second.job_id])
        (winner,) = [job_id for job_id, status in answers.items() if status is Status.PENDING]
        assert (await ask(storage, fingerprint=PRINT, now=at(1))).job_id == winner
        assert [job_id for job_id, record in (await storage.find(answers)).items() if record.status.active] == [winner]

    async def test_many_retries_are_answered_at_once_and_unknown_ones_not_at_all(self, storage: Storage) -> None:
        failed, done = await bring(storage, Status.FAILED), await bring(storage, Status.COMPLETED)
        assert await storage.retry([failed.job_id, done.job_id, new_job_id(), failed.job_id], now=T0) == {
            failed.job_id: Status.PENDING,
            done.job_id: Status.COMPLETED,
        }
        assert await storage.retry([new_job_id()], now=T0) == {}
        assert await storage.retry([], now=T0) == {}

    async def test_a_running_job_that_is_retried_stays_its_holders(self, storage: Storage) -> None:
        lease = await hold(storage)
        await storage.cancel([lease.job_id], now=T0)
        await storage.retry([lease.job_id], now=T0)
        assert await extend(storage, lease, now=at(1))
        assert (await row(storage, lease.job_id)).cancel_requested


class ViewConformance(Suite):
    """`find`, `list`, `dead_letters` and `stats`."""

    async def test_find_returns_those_that_exist(self, storage: Storage) -> None:
        first, second = await add(storage, payload=b"1"), await add(storage, payload=b"2")
        await add(storage)
        found = await storage.find([second, new_job_id(), first, second])
        assert {job_id: record.payload for job_id, record in found.items()} == {first: b"1", second: b"2"}
        assert await storage.find([]) == {}

    async def test_list_shows_the_newest_first_page_by_page(self, storage: Storage) -> None:
        jobs = [new_job() for _ in range(7)]
        await storage.insert(jobs[::-1], now=T0)
        newest = [job.id for job in jobs[::-1]]
        pages: list[list[UUID]] = []
        before = None
        while page := [record.id for record in await storage.list(JobFilter(), 3, before=before)]:
            pages.append(page)
            before = page[-1]
        assert pages == [newest[:3], newest[3:6], newest[6:]]

    async def test_list_shows_what_every_given_field_matches(self, storage: Storage) -> None:
        jobs = [
            new_job(queue_name=queue, type=kind, delay=delay)
            for queue in ("a", "A", "b")
            for kind in ("x", "y")
            for delay in (0.0, 60.0)
        ]
        await storage.insert(jobs, now=T0)
        filters = [
            JobFilter(),
            JobFilter(queues=frozenset("a")),
            JobFilter(queues=frozenset("ab"), types=frozenset("y")),
            JobFilter(types=frozenset("x"), statuses=frozenset({Status.SCHEDULED})),
            JobFilter(queues=frozenset("b"), types=frozenset("xy"), statuses=frozenset({Status.PENDING})),
            JobFilter(statuses=frozenset({Status.FAILED, Status.COMPLETED})),
            JobFilter(queues=frozenset({"unknown"})),
            JobFilter(queues=frozenset()),
        ]
        for where in filters:
            expected = [
                job.id
                for job in jobs[::-1]
                if (where.queues is None or job.queue_name in where.queues)
                and (where.types is None or job.type in where.types)
                and (where.statuses is None or (Status.SCHEDULED if job.delay else Status.PENDING) in where.statuses)
            ]
            assert [record.id for record in await storage.list(where, 100)] == expected
            assert [record.id for record in await storage.list(where, 100, before=jobs[6].id)] == [
                job_id for job_id in expected if job_id < jobs[6].id
            ]

    async def test_list_shows_whole_rows(self, storage: Storage) -> None:
        lease = await bring(storage, Status.FAILED, payload=b'{"a":1}', idempotency_key="k", fingerprint=PRINT)
        assert list(await storage.list(JobFilter(), 1)) == [await row(storage, lease.job_id)]

    async def test_dead_letters_come_newest_first_page_by_page(self, storage: Storage) -> None:
        jobs = [(await bring(storage, Status.FAILED)).job_id for _ in range(5)]
        await bring(storage, Status.COMPLETED)
        newest = jobs[::-1]
        assert [letter.job_id for letter in await storage.dead_letters(2)] == newest[:2]
        assert [letter.job_id for letter in await storage.dead_letters(2, before=newest[1])] == newest[2:4]
        assert [letter.job_id for letter in await storage.dead_letters(2, before=newest[3])] == newest[4:]
        assert list(await storage.dead_letters(2, before=newest[4])) == []

    async def test_stats_count_each_queue_by_state(self, storage: Storage) -> None:
        for number, status in enumerate(Status):
            for _ in range(number + 1):
                await bring(storage, status, queue_name=f"only {status}")
        await storage.insert([new_job(queue_name="A"), new_job(queue_name="a"), new_job(queue_name="a")], now=T0)
        stats = await storage.stats(now=at(1))
        counts = {each.queue_name: {s: n for s, n in each.counts.items() if n} for each in stats}
        expected: dict[str, dict[Status, int]] = {"A": {Status.PENDING: 1}, "a": {Status.PENDING: 2}}
        for number, status in enumerate(Status):
            expected[f"only {status}"] = {status: number + 1}
        assert counts == expected
        assert [each.queue_name for each in stats] == sorted(expected)

    async def test_stats_of_an_empty_storage_are_empty(self, storage: Storage) -> None:
        assert list(await storage.stats(now=T0)) == []

    async def test_stats_say_how_long_the_oldest_ready_job_has_been_due(self, storage: Storage) -> None:
        await add(storage, queue_name="q", available_at=at(-100), now=at(-10))
        await add(storage, queue_name="q")
        await add(storage, queue_name="later", delay=60)
        ages = {each.queue_name: each.oldest_ready for each in await storage.stats(now=at(5.5))}
        assert ages == {"q": pytest.approx(105.5, abs=1e-5), "later": None}
        await reserve(storage, 1, queues=["q"], now=at(6))
        ages = {each.queue_name: each.oldest_ready for each in await storage.stats(now=at(6))}
        assert ages == {"q": pytest.approx(6, abs=1e-5), "later": None}

    async def test_stats_count_what_came_to_an_end_within_the_last_minute(self, storage: Storage) -> None:
        for number, way in enumerate(WAYS.values()):
            queue = f"q{number:02}"
            begun = await begin(storage, way, queue_name=queue)
            assert [each.finished for each in await storage.stats(now=at(1))] == [1] * number + [0]
            over = await end(storage, way, begun)
            counts = {each.queue_name: each.finished for each in await storage.stats(now=over)}
            assert counts[queue] == 1
            await storage.delete([id_of(begun)])
            begun = await begin(storage, way, queue_name=queue, now=at(-LEASE))
            assert await end(storage, way, begun, now=at(-LEASE)) == T0

    async def test_stats_count_an_end_for_a_minute_to_the_microsecond(self, storage: Storage) -> None:
        first, second, third = [await hold(storage, queue_name="q", lease=600) for _ in range(3)]
        await hold(storage, queue_name="q", lease=600)
        await settle(storage, first, Event.SUCCEED, result=b"1", now=at(0.000_001))
        await settle(storage, second, Event.FAIL, error=BOOM, now=at(30))
        await settle(storage, third, Event.RETRY, error=BOOM, now=at(30))
        for now, finished in ((30, 2), (RATE_WINDOW, 2), (RATE_WINDOW + 0.000_001, 1), (RATE_WINDOW + 30, 0)):
            (stats,) = await storage.stats(now=at(now))
            assert stats.finished == finished

    async def test_stats_no_longer_count_an_end_that_was_undone_or_is_gone(self, storage: Storage) -> None:
        failed, gone, pruned = [await bring(storage, Status.FAILED, queue_name="q") for _ in range(3)]
        await bring(storage, Status.COMPLETED, queue_name="q")
        assert [each.finished for each in await storage.stats(now=at(1))] == [4]
        await storage.retry([failed.job_id], now=at(1))
        assert [each.finished for each in await storage.stats(now=at(1))] == [3]
        await storage.delete([gone.job_id])
        assert [each.finished for each in await storage.stats(now=at(1))] == [2]
        assert (await maintain(storage, retention=Retention(failed=1), now=at(1))).pruned == 1
        assert await storage.find([pruned.job_id]) == {}
        assert [each.finished for each in await storage.stats(now=at(1))] == [1]

    async def test_stats_name_each_queue_that_has_jobs_is_paused_or_keeps_its_own_time(self, storage: Storage) -> None:
        await add(storage, queue_name="all")
        await add(storage, queue_name="jobs")
        await storage.pause(["all", "paused"], now=at(1))
        for queue in ("all", "own time"):
            await storage.set_retention(queue, Retention(failed=5))
        assert [evolve(each, oldest_ready=None) for each in await storage.stats(now=at(2))] == [
            QueueStats(
                queue_name="all",
                counts={Status.PENDING: 1},
                oldest_ready=None,
                paused_at=at(1),
                retention=Retention(failed=5),
            ),
            QueueStats(queue_name="jobs", counts={Status.PENDING: 1}, oldest_ready=None),
            QueueStats(queue_name="own time", counts={}, oldest_ready=None, retention=Retention(failed=5)),
            QueueStats(queue_name="paused", counts={}, oldest_ready=None, paused_at=at(1)),
        ]
        await storage.resume(["all", "paused"])
        for queue in ("all", "own time"):
            await storage.set_retention(queue, None)
        assert [each.queue_name for each in await storage.stats(now=at(2))] == ["all", "jobs"]

    async def test_stats_come_by_the_name_whatever_is_said_of_a_queue(self, storage: Storage) -> None:
        names = sorted([*DISTINCT_NAMES, "\uffee", "\U0001f423"])
        await storage.insert([new_job(queue_name=name) for name in names[::3]], now=T0)
        await storage.pause(names[1::3], now=T0)
        for name in names[2::3]:
            await storage.set_retention(name, Retention())
        assert [each.queue_name for each in await storage.stats(now=T0)] == names
