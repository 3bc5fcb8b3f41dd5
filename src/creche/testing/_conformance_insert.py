"""Insert: what a new row looks like, and that sending it again is harmless. Keys and fingerprints stand apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from anyio import create_task_group

from creche._ids import new_job_id
from creche._job import KEY_LIMIT, NAME_LIMIT, Event, Insertion, JobFilter, JobRecord, NewJob, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    DISTINCT_NAMES,
    T0,
    UNUSUAL_JSON,
    Suite,
    add,
    ask,
    at,
    everything,
    new_job,
    reserve,
    row,
    settle,
    take,
)


class InsertConformance(Suite):
    """`Storage.insert`, without keys and fingerprints."""

    async def test_a_new_job_stands_there_as_it_was_sent(self, storage: Storage) -> None:
        job = new_job(
            type="report.generate",
            payload=b'{"year": 2024}',
            queue_name="reports",
            priority=-7,
            max_attempts=5,
            idempotency_key="report:2024",
            fingerprint=bytes(range(32)),
            result_ttl=60.0,
        )
        assert list(await storage.insert([job], now=T0)) == [
            Insertion(job_id=job.id, status=Status.PENDING, inserted=True, fingerprint=bytes(range(32)))
        ]
        assert await row(storage, job.id) == JobRecord(
            id=job.id,
            queue_name="reports",
            type="report.generate",
            payload=b'{"year": 2024}',
            status=Status.PENDING,
            priority=-7,
            attempts=0,
            max_attempts=5,
            available_at=T0,
            locked_until=None,
            locked_by=None,
            last_error=None,
            idempotency_key="report:2024",
            fingerprint=bytes(range(32)),
            cancel_requested=False,
            created_at=T0,
            updated_at=T0,
            completed_at=None,
            result=None,
            result_expires_at=None,
        )

    @pytest.mark.parametrize(
        ("options", "status", "due"),
        [
            ({}, Status.PENDING, T0),
            ({"delay": 0.000_001}, Status.SCHEDULED, T0 + timedelta(microseconds=1)),
            ({"delay": 3_600}, Status.SCHEDULED, at(3_600)),
            ({"available_at": at(3_600)}, Status.SCHEDULED, at(3_600)),
            ({"available_at": T0}, Status.PENDING, T0),
            ({"available_at": at(-60)}, Status.PENDING, at(-60)),
        ],
    )
    async def test_a_job_is_scheduled_if_it_is_due_later_and_pending_if_not(
        self, storage: Storage, options: dict[str, Any], status: Status, due: datetime
    ) -> None:
        insertion = await ask(storage, **options)
        assert insertion.status is status
        record = await row(storage, insertion.job_id)
        assert (record.status, record.available_at) == (status, due)

    async def test_times_keep_their_microseconds(self, storage: Storage) -> None:
        now = datetime(2030, 6, 1, 12, 30, 59, 999_999, tzinfo=UTC)
        due = datetime(2031, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
        record = await row(storage, await add(storage, available_at=due, now=now))
        assert (record.created_at, record.updated_at, record.available_at) == (now, now, due)

    async def test_times_of_any_zone_are_taken_and_come_back_in_utc(self, storage: Storage) -> None:
        now = datetime(2030, 6, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
        due = datetime(2030, 6, 1, 12, tzinfo=timezone(timedelta(hours=-8)))
        record = await row(storage, await add(storage, available_at=due, now=now))
        assert (record.created_at, record.updated_at, record.available_at) == (now, now, due)
        assert record.created_at.utcoffset() == record.available_at.utcoffset() == timedelta(0)

    async def test_without_a_given_now_the_storage_has_a_clock_that_counts_seconds(self, storage: Storage) -> None:
        ready, later = new_job(), new_job(delay=3_600)
        await storage.insert([ready, later])
        reservation = await storage.reserve(["default"], 2, lease=60, worker="w", nonce=1)
        assert [job.id for job in reservation.jobs] == [ready.id]
        assert reservation.next_due_in == pytest.approx(3_600, abs=60)
        record = await row(storage, later.id)
        assert record.available_at - record.created_at == timedelta(hours=1)
        assert record.created_at.tzinfo == UTC or record.created_at.utcoffset() == timedelta(0)

    async def test_inserting_nothing_does_nothing(self, storage: Storage) -> None:
        assert list(await storage.insert([], now=T0)) == []
        assert await storage.list(JobFilter(), 10) == []

    async def test_a_batch_of_two_thousand_is_answered_in_order(self, storage: Storage) -> None:
        jobs = [new_job(payload=b"%d" % number) for number in range(2_000)]
        # Shuffled by a fixed stride, so that an answer in the order of ids would be noticed.
        sent = [jobs[number * 7 % 2_000] for number in range(2_000)]
        answers = await storage.insert(sent, now=T0)
        assert [answer.job_id for answer in answers] == [job.id for job in sent]
        assert all(answer.inserted for answer in answers)
        found = await storage.find([job.id for job in jobs])
        assert [found[job.id].payload for job in jobs] == [job.payload for job in jobs]

    @pytest.mark.parametrize("payload", list(UNUSUAL_JSON.values()), ids=list(UNUSUAL_JSON))
    async def test_a_handler_gets_exactly_the_bytes_that_were_sent(self, storage: Storage, payload: bytes) -> None:
        job_id = await add(storage, payload=payload)
        assert (await take(storage)).payload == payload
        assert (await row(storage, job_id)).payload == payload

    @pytest.mark.parametrize("name", [*DISTINCT_NAMES, "n" * NAME_LIMIT, "é" * (NAME_LIMIT // 2)])
    async def test_names_come_back_as_they_were(self, storage: Storage, name: str) -> None:
        key = name * (KEY_LIMIT // len(name.encode()))
        job_id = await add(storage, queue_name=name, type=name, idempotency_key=key)
        job = await take(storage, queues=[name], types=[name], worker=name)
        record = await row(storage, job_id)
        assert (job.queue_name, job.type) == (record.queue_name, record.type) == (name, name)
        assert (record.idempotency_key, record.locked_by) == (key, name)

    async def test_a_job_sent_again_is_one_row_and_still_the_senders_own(self, storage: Storage) -> None:
        job = new_job(delay=60)
        await storage.insert([job], now=T0)
        before = await everything(storage)
        (again,) = await storage.insert([job], now=at(5))
        assert again == Insertion(job_id=job.id, status=Status.SCHEDULED, inserted=True)
        assert await everything(storage) == before

    async def test_a_job_sent_twice_in_one_batch_is_one_row(self, storage: Storage) -> None:
        job, other = new_job(), new_job()
        answers = await storage.insert([job, other, job], now=T0)
        assert [(answer.job_id, answer.inserted) for answer in answers] == [
            (job.id, True),
            (other.id, True),
            (job.id, True),
        ]
        assert len(await storage.list(JobFilter(), 10)) == 2

    async def test_a_batch_sent_again_in_part_adds_the_missing_part(self, storage: Storage) -> None:
        first, second, third = new_job(), new_job(), new_job()
        await storage.insert([second], now=T0)
        answers = await storage.insert([first, second, third], now=T0)
        assert [answer.job_id for answer in answers] == [first.id, second.id, third.id]
        assert all(answer.inserted for answer in answers)
        assert len(await storage.list(JobFilter(), 10)) == 3

    async def test_a_job_sent_again_while_it_runs_is_told_so(self, storage: Storage) -> None:
        job = new_job()
        await storage.insert([job], now=T0)
        await reserve(storage)
        (again,) = await storage.insert([job], now=T0)
        assert (again.status, again.inserted) == (Status.PROCESSING, True)

    async def test_a_job_sent_again_after_it_completed_is_answered_with_its_result(self, storage: Storage) -> None:
        job = new_job()
        await storage.insert([job], now=T0)
        await settle(storage, (await take(storage)).lease, Event.SUCCEED, result=b"[1, 2]")
        (again,) = await storage.insert([job], now=T0)
        assert again == Insertion(job_id=job.id, status=Status.COMPLETED, inserted=True, result=b"[1, 2]")
        assert not (await reserve(storage)).jobs

    async def test_a_job_sent_by_many_at_once_is_one_row(self, storage: Storage) -> None:
        job, answers = new_job(), list[Insertion]()

        async def send() -> None:
            answers.extend(await storage.insert([job], now=T0))

        async with create_task_group() as senders:
            for _ in range(8):
                senders.start_soon(send)
        assert {(answer.job_id, answer.inserted) for answer in answers} == {(job.id, True)}
        assert len(await storage.list(JobFilter(), 10)) == 1

    async def test_many_at_once_lose_nothing(self, storage: Storage) -> None:
        batches: list[list[NewJob]] = [[new_job() for _ in range(5)] for _ in range(20)]

        async def send(batch: list[NewJob]) -> None:
            await storage.insert(batch, now=T0)

        async with create_task_group() as senders:
            for batch in batches:
                senders.start_soon(send, batch)
        assert set(await storage.find([job.id for batch in batches for job in batch])) == {
            job.id for batch in batches for job in batch
        }

    async def test_an_id_that_was_never_sent_is_not_found(self, storage: Storage) -> None:
        await add(storage)
        assert await storage.find([new_job_id()]) == {}
