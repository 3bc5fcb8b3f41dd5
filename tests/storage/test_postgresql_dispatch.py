"""Dispatch on PostgreSQL: how many statements it takes, and that a batch of thousands is one all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import psycopg
import pytest
from attrs import evolve
from psycopg.abc import Params

from creche import Queue
from creche._ids import new_job_ids
from creche._job import AlikeJobs, FollowUp, JobFilter, NewJob, Status
from creche.errors import StatementRejected
from creche.storage._postgresql_arrays import CHUNK, CHUNK_BYTES, are_plain, arrays, chunks, ids_of, queues_of
from creche.storage._psycopg import Connection
from creche.storage.postgresql import PostgreSQLStorage

pytestmark = pytest.mark.anyio

Raw = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
async def storage(postgresql_dsn: str) -> PostgreSQLStorage:
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    return storage


@pytest.fixture
def raw(postgresql_dsn: str) -> Iterator[Raw]:
    with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The statements that are sent, but for the notifier's, who merges what it has to say, and a new connection's."""
    statements: list[bytes] = []
    execute = Connection.execute

    async def counting(self: Connection[Any], query: bytes, params: Params | None = None, **options: Any) -> Any:
        if b"SELECT pg_notify" not in query.split(b"\n", 1)[0] and b"pg_backend_pid" not in query:
            statements.append(query)
        return await execute(self, query, params, **options)

    monkeypatch.setattr(Connection, "execute", counting)
    return statements


def jobs(count: int, **options: Any) -> list[NewJob]:
    return [
        NewJob(id=job_id, type="work", payload=b'{"number":%d}' % number, **options)
        for number, job_id in enumerate(new_job_ids(count))
    ]


def rows(raw: Raw) -> int:
    (row,) = raw.execute("SELECT count(*) FROM creche_jobs")
    return int(row[0])


# --- statements -------------------------------------------------------------------------------------


async def test_a_dispatch_is_one_statement(storage: PostgreSQLStorage, sent: list[bytes]) -> None:
    async with Queue(storage) as queue:
        sent.clear()
        await queue.dispatch("work", {"number": 1})
        await queue.dispatch("work", {"number": 1}, delay=60)
        await queue.dispatch("work", {"number": 1}, unique=True)
        await queue.dispatch("work", {"number": 1}, idempotency_key="mine")
    assert len(sent) == 4


async def test_a_hundred_dispatches_at_once_are_two_statements(storage: PostgreSQLStorage, sent: list[bytes]) -> None:
    async with Queue(storage) as queue:
        sent.clear()
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(queue.dispatch, "work", {"number": number})
    assert len(sent) == 2


async def test_many_jobs_are_a_statement_for_each_thousand(storage: PostgreSQLStorage, sent: list[bytes]) -> None:
    async with storage:
        sent.clear()
        answers = await storage.insert(jobs(3 * CHUNK))
    assert len(sent) == 3
    assert len(answers) == 3 * CHUNK


# --- all or nothing ---------------------------------------------------------------------------------


async def test_of_many_jobs_none_is_written_if_one_is_refused(storage: PostgreSQLStorage, raw: Raw) -> None:
    bad = NewJob(id=new_job_ids(1)[0], type="work", payload=b"no JSON")
    async with storage:
        with pytest.raises(StatementRejected):
            await storage.insert([*jobs(2 * CHUNK), bad])
        assert rows(raw) == 0
        with pytest.raises(StatementRejected):
            await storage.insert([bad])
        answers = await storage.insert(jobs(2))  # and its connection is good
    assert [answer.inserted for answer in answers] == [True, True]
    assert rows(raw) == 2


async def test_of_many_jobs_nobody_sees_some(storage: PostgreSQLStorage, raw: Raw) -> None:
    seen: set[int] = set()
    async with storage, anyio.create_task_group() as group:

        async def look() -> None:
            while True:
                seen.add(rows(raw))
                await anyio.lowlevel.checkpoint()

        group.start_soon(look)
        await storage.insert(jobs(5 * CHUNK))
        group.cancel_scope.cancel()
    assert seen <= {0, 5 * CHUNK}


# --- what was asked for is what is there ------------------------------------------------------------


async def test_each_job_is_what_was_asked_for(storage: PostgreSQLStorage) -> None:
    asked = [
        NewJob(
            id=job_id,
            type=f"größe.{place % 3}",
            payload=payload,
            queue_name=f"q{place % 2}",
            priority=place - 2,
            max_attempts=place + 1,
        )
        for place, (job_id, payload) in enumerate(
            zip(new_job_ids(5), [b"{}", b'{"a": 1} ', '{"ü":"測"}'.encode(), b"[1.0,1e400]", b'"x"'], strict=True)
        )
    ]
    async with storage:
        await storage.insert(asked[:1])
        await storage.insert(asked[1:])
        records = await storage.find([job.id for job in asked])
    for job in asked:
        record = records[job.id]
        assert (record.type, record.payload, record.queue_name) == (job.type, job.payload, job.queue_name)
        assert (record.priority, record.max_attempts) == (job.priority, job.max_attempts)
        assert (record.status, record.attempts, record.available_at) == (Status.PENDING, 0, record.created_at)


async def test_jobs_that_were_sent_before_are_found_and_the_others_written(
    storage: PostgreSQLStorage, raw: Raw
) -> None:
    asked = jobs(6)
    async with storage:
        await storage.insert(asked[:3])
        await storage.cancel([asked[0].id])
        answers = await storage.insert([*asked, asked[0]])
    assert [answer.inserted for answer in answers] == [True] * 7
    assert [answer.status for answer in answers] == [Status.CANCELLED, *[Status.PENDING] * 5, Status.CANCELLED]
    assert rows(raw) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 60.0},
        {"idempotency_key": "mine"},
        {"fingerprint": bytes(32)},
        {"result_ttl": 60.0},
        {"callbacks": (FollowUp(id=new_job_ids(1)[0], type="after", head="{}"),)},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_among_plain_jobs_one_that_is_not_is_what_it_would_be_alone(
    storage: PostgreSQLStorage, options: dict[str, Any]
) -> None:
    async with storage:
        (alone,) = await storage.insert(jobs(1, **options))
        record = (await storage.find([alone.job_id]))[alone.job_id]
        await storage.cancel([alone.job_id])
        await storage.delete([alone.job_id])
        plain = jobs(2)
        _, among, _ = await storage.insert([plain[0], *jobs(1, **options), plain[1]])
        again = (await storage.find([among.job_id]))[among.job_id]
    assert (among.status, among.inserted, among.fingerprint) == (alone.status, True, alone.fingerprint)
    assert (again.idempotency_key, again.status) == (record.idempotency_key, record.status)


async def test_where_text_is_not_utf_8_on_the_wire_the_driver_encodes_it(
    storage: PostgreSQLStorage, postgresql_dsn: str
) -> None:
    separator = "&" if "?" in postgresql_dsn else "?"
    async with PostgreSQLStorage(f"{postgresql_dsn}{separator}client_encoding=latin1") as latin:
        await latin.insert([NewJob(id=job_id, type="größe", payload=b"{}") for job_id in new_job_ids(2)])
    async with storage:
        assert {record.type for record in await storage.list(JobFilter(), 10)} == {"größe"}


# --- how they are cut -------------------------------------------------------------------------------


def test_a_statement_has_so_many_jobs_at_most() -> None:
    assert [len(chunk) for chunk in chunks(jobs(CHUNK))] == [CHUNK]
    assert [len(chunk) for chunk in chunks(jobs(2 * CHUNK + 1))] == [CHUNK, CHUNK, 1]


def test_a_statement_has_so_many_bytes_at_most_unless_one_job_has_more() -> None:
    sizes = [1, CHUNK_BYTES + 1, 1, CHUNK_BYTES - 1, 1, 1]
    some = [
        NewJob(id=job_id, type="work", payload=b"x" * size)
        for size, job_id in zip(sizes, new_job_ids(len(sizes)), strict=True)
    ]
    cut = list(chunks(some))
    assert [[len(job.payload) for job in chunk] for chunk in cut] == [
        [1],
        [CHUNK_BYTES + 1],
        [1, CHUNK_BYTES - 1],
        [1, 1],
    ]
    assert [job for chunk in cut for job in chunk] == some


# --- jobs that are alike ----------------------------------------------------------------------------


def test_jobs_that_are_alike_are_what_each_would_be_by_itself() -> None:
    like = NewJob(
        id=new_job_ids(1)[0], type="work", payload=b"{}", queue_name="ä", priority=-3, max_attempts=2, delay=5.0
    )
    ids = new_job_ids(2 * CHUNK + 1)
    payloads = [b'{"number":%d}' % number for number in range(len(ids))]
    alike = AlikeJobs(like, ids, payloads)
    each = [evolve(like, id=job_id, payload=payload) for job_id, payload in zip(ids, payloads, strict=True)]
    assert list(alike) == each
    assert (alike[-1], alike[5]) == (each[-1], each[5])
    assert list(alike[3:7]) == each[3:7]
    assert isinstance(alike[3:7], AlikeJobs)
    assert [len(chunk) for chunk in chunks(alike)] == [len(chunk) for chunk in chunks(each)] == [CHUNK, CHUNK, 1]
    assert [arrays(chunk) for chunk in chunks(alike)] == [arrays(chunk) for chunk in chunks(each)]
    assert (ids_of(alike), queues_of(alike), are_plain(alike)) == (ids_of(each), queues_of(each), are_plain(each))
    assert are_plain(alike) is False
    assert are_plain(AlikeJobs(evolve(like, delay=0.0), ids, payloads))


async def test_calls_of_one_task_are_written_like_those_of_several(storage: PostgreSQLStorage) -> None:
    async with Queue(storage) as queue:

        @queue.task("one", priority=7)
        async def one(number: int) -> None:
            pass

        @queue.task("two", unique=True)
        async def two(number: int) -> None:
            pass

        alike = await queue.dispatch_many(one.call(number) for number in range(3))
        mixed = await queue.dispatch_many([one.call(0), two.call(1), one.options(delay=60).call(2)])
        twice = await queue.dispatch_many([two.call(1), two.call(2)])
        found = await storage.find([receipt.job_id for receipt in (*alike, *mixed)])
    assert [(found[each.job_id].payload, found[each.job_id].priority) for each in alike] == [
        (b'{"number":%d}' % number, 7) for number in range(3)
    ]
    assert [found[each.job_id].type for each in mixed] == ["one", "two", "one"]
    assert [found[each.job_id].status for each in mixed] == [Status.PENDING, Status.PENDING, Status.SCHEDULED]
    assert [each.inserted for each in twice] == [False, True]
