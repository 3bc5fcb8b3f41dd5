"""Dispatch through the caller's own handle on PostgreSQL: it is theirs to commit, whatever driver it is of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

import anyio
import asyncpg  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from creche._ids import new_job_id, new_nonce
from creche._job import Event, FollowUp, NewJob, On, Settlement, Status
from creche.errors import OptionInvalid, QueueNotOpen
from creche.storage._postgresql_handles import rendered
from creche.storage._psycopg import Connection
from creche.storage.postgresql import PostgreSQLStorage

pytestmark = pytest.mark.anyio

SOON: Final = 5.0  # seconds: what takes longer hangs
Raw = psycopg.Connection[tuple[Any, ...]]
# Opens a handle in a transaction; the block's end commits it, an exception rolls it back.
Opener: TypeAlias = Callable[[str], AbstractAsyncContextManager[Any]]


@pytest.fixture
async def storage(postgresql_dsn: str) -> AsyncIterator[PostgreSQLStorage]:
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    async with storage:
        yield storage


@pytest.fixture
def database(storage: PostgreSQLStorage, postgresql_database: str) -> str:
    """The same database, with a search_path that does not lead to the queue's tables."""
    return postgresql_database


@pytest.fixture
def raw(postgresql_dsn: str) -> Iterator[Raw]:
    with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
        yield connection


# --- one opener per kind of handle ------------------------------------------------------------------


@asynccontextmanager
async def psycopg_sync(dsn: str) -> AsyncGenerator[Any]:
    with psycopg.connect(dsn) as connection:
        yield connection


@asynccontextmanager
async def psycopg_autocommit_block(dsn: str) -> AsyncGenerator[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def psycopg_of_dicts(dsn: str) -> AsyncGenerator[Any]:
    with psycopg.connect(dsn, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as connection:
        yield connection


@asynccontextmanager
async def psycopg_async(dsn: str) -> AsyncGenerator[Any]:
    async with await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row) as connection:
        yield connection


@asynccontextmanager
async def creches_own(dsn: str) -> AsyncGenerator[Any]:
    connection = await Connection.connect(dsn)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_connection(dsn: str) -> AsyncGenerator[Any]:
    query = parse_qs(urlsplit(dsn).query)
    connection = await asyncpg.connect(
        host=query["host"][0], port=int(query["port"][0]), user="postgres", database=urlsplit(dsn).path[1:]
    )
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


def url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@asynccontextmanager
async def sqlalchemy_connection(dsn: str) -> AsyncGenerator[Any]:
    engine = create_engine(url(dsn, "psycopg"))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_session(dsn: str) -> AsyncGenerator[Any]:
    engine = create_engine(url(dsn, "psycopg"))
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_connection(dsn: str) -> AsyncGenerator[Any]:
    engine = create_async_engine(url(dsn, "asyncpg"))
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_session(dsn: str) -> AsyncGenerator[Any]:
    engine = create_async_engine(url(dsn, "psycopg"))
    try:
        async with AsyncSession(engine) as session, session.begin():
            yield session
    finally:
        await engine.dispose()


EITHER: Final[list[Opener]] = [
    psycopg_sync,
    psycopg_autocommit_block,
    psycopg_of_dicts,
    creches_own,
    sqlalchemy_connection,
    sqlalchemy_session,
]
ASYNCIO: Final[list[Opener]] = [
    psycopg_async,
    asyncpg_connection,
    sqlalchemy_async_connection,
    sqlalchemy_async_session,
]


@pytest.fixture(params=[*EITHER, *ASYNCIO], ids=lambda opener: opener.__name__)
def opener(request: pytest.FixtureRequest, anyio_backend: str) -> Opener:
    if request.param in ASYNCIO and anyio_backend == "trio":
        pytest.skip("this driver knows asyncio only")
    chosen: Opener = request.param
    return chosen


def job(**options: Any) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b'{"a": "%s :b \\" \xc3\xa4"}', **options)


async def test_a_dispatch_stands_or_falls_with_the_callers_transaction(
    storage: PostgreSQLStorage, database: str, opener: Opener
) -> None:
    kept, undone = job(idempotency_key="%s :key"), job()
    async with storage.listen(["default"]) as listener:
        async with opener(database) as handle:
            (answer,) = await storage.insert([kept], connection=handle)
            assert (answer.job_id, answer.status, answer.inserted) == (kept.id, Status.PENDING, True)
            assert await storage.find([kept.id]) == {}
            with anyio.move_on_after(0.05) as silence:
                await listener.wait()
            assert silence.cancelled_caught
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"default"}

    async def fail() -> None:
        async with opener(database) as handle:
            await storage.insert([undone], connection=handle)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    found = await storage.find([kept.id, undone.id])
    assert [(record.payload, record.idempotency_key) for record in found.values()] == [(kept.payload, "%s :key")]


async def test_whatever_answers_is_found_through_the_handle_as_well(
    storage: PostgreSQLStorage, database: str, opener: Opener
) -> None:
    ended, waiting = job(fingerprint=b"e" * 32, result_ttl=60), job(fingerprint=b"w" * 32)
    await storage.insert([ended])
    (taken,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())).jobs
    await storage.settle([Settlement(lease=taken.lease, event=Event.SUCCEED, result=b'{"r": 1}')])
    await storage.insert([waiting])
    late = FollowUp(id=new_job_id(), type="late", head="[", tail="]")
    other = FollowUp(id=new_job_id(), type="other", head="{}", on=On.FAILURE)
    batch = [
        job(fingerprint=b"e" * 32, callbacks=(late, other)),
        job(fingerprint=b"w" * 32, callbacks=(early := FollowUp(id=new_job_id(), type="early", head="{}"),)),
        fresh := job(fingerprint=b"e" * 32, refresh=True),
    ]
    async with opener(database) as handle:
        answers = await storage.insert(batch, connection=handle)
    assert [answer.job_id for answer in answers] == [ended.id, waiting.id, fresh.id]
    assert [answer.inserted for answer in answers] == [False, False, True]
    assert (answers[0].status, answers[0].result, answers[0].fingerprint) == (
        Status.COMPLETED,
        b'{"r": 1}',
        b"e" * 32,
    )
    found = await storage.find([late.id, other.id, early.id])
    assert [(record.id, record.payload) for record in found.values()] == [(late.id, b'[{"r": 1}]')]


async def test_an_aborted_transaction_is_the_callers_to_hear_of(storage: PostgreSQLStorage, database: str) -> None:
    with psycopg.connect(database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await storage.insert([job()], connection=connection)
        connection.rollback()
    with pytest.raises(psycopg.OperationalError):
        await storage.insert([job()], connection=connection)


async def test_a_handle_that_would_commit_each_statement_is_refused(storage: PostgreSQLStorage, database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as connection,
        pytest.raises(OptionInvalid, match="in a transaction"),
    ):
        await storage.insert([job()], connection=connection)


async def test_a_session_that_would_commit_each_statement_is_refused(
    storage: PostgreSQLStorage, database: str, anyio_backend_name: str
) -> None:
    engine = create_engine(url(database, "psycopg"), isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(OptionInvalid, match="AUTOCOMMIT"):
        await storage.insert([job()], connection=session)
    engine.dispose()
    if anyio_backend_name == "asyncio":
        for driver in ("psycopg", "asyncpg"):
            asynchronous = create_async_engine(url(database, driver))
            async with asynchronous.connect() as connection:
                loose = await connection.execution_options(isolation_level="AUTOCOMMIT")
                with pytest.raises(OptionInvalid, match="AUTOCOMMIT"):
                    await storage.insert([job()], connection=loose)
            await asynchronous.dispose()
    assert await storage.stats() == []


@pytest.mark.parametrize("handle", ["postgresql://", object(), 1])
async def test_what_is_no_handle_is_refused(storage: PostgreSQLStorage, handle: object) -> None:
    with pytest.raises(OptionInvalid, match="psycopg, asyncpg or SQLAlchemy"):
        await storage.insert([job()], connection=handle)


async def test_another_databases_handle_is_refused(storage: PostgreSQLStorage) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection, pytest.raises(OptionInvalid, match="postgresql"):
        await storage.insert([job()], connection=connection)
    engine.dispose()


async def test_nothing_through_a_handle_costs_no_statement(storage: PostgreSQLStorage, database: str) -> None:
    with psycopg.connect(database) as connection:
        assert list(await storage.insert([], connection=connection)) == []
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with pytest.raises(QueueNotOpen):
            await PostgreSQLStorage(database).insert([job()], connection=connection)


async def test_a_session_may_read_strings_as_it_likes(storage: PostgreSQLStorage, database: str) -> None:
    new = job(queue_name="back\\slash 'quote' $1 :x %s")
    with psycopg.connect(database) as connection:
        connection.execute("SET standard_conforming_strings = off")
        connection.execute("SET bytea_output = 'escape'")
        connection.execute("SET DateStyle = 'German'")
        await storage.insert([new, job(fingerprint=bytes(range(32)))], connection=connection)
    assert (await storage.find([new.id]))[new.id].queue_name == new.queue_name


async def test_two_callers_with_one_fingerprint_wait_for_each_other_and_one_inserts(
    storage: PostgreSQLStorage, database: str, raw: Raw
) -> None:
    first, second = job(fingerprint=b"f" * 32), job(fingerprint=b"f" * 32)
    answers: list[Any] = []

    async def join() -> None:
        answers.extend(await storage.insert([second]))

    with anyio.fail_after(SOON), psycopg.connect(database) as connection:
        await storage.insert([first], connection=connection)
        async with anyio.create_task_group() as joining:
            joining.start_soon(join)
            while not raw.execute("SELECT FROM pg_locks WHERE NOT granted").rowcount:  # noqa: ASYNC110 - no event for it
                await anyio.sleep(0.01)
            connection.commit()
    assert [(answer.job_id, answer.inserted) for answer in answers] == [(first.id, False)]


def test_a_statement_is_a_whole_text_with_its_tables_in_full() -> None:
    text = rendered(
        "SELECT %(a)s, %(b)s, %(c)s FROM creche_jobs AS j, creche_jobs_x -- 5 %%",
        {"a": None, "b": 1.5, "c": "'%s"},
        schema='my "own"',
    )
    assert text == (
        "SELECT NULL, 1.5, convert_from(decode('272573', 'hex'), 'UTF8') "
        'FROM "my ""own""".creche_jobs AS j, creche_jobs_x -- 5 %'
    )


@asynccontextmanager
async def psycopg_sync_pipeline(dsn: str) -> AsyncGenerator[Any]:
    with psycopg.connect(dsn) as connection, connection.pipeline():
        yield connection


@asynccontextmanager
async def creches_own_pipeline(dsn: str) -> AsyncGenerator[Any]:
    async with creches_own(dsn) as connection, connection.pipeline():
        yield connection


@pytest.mark.parametrize("opener", [psycopg_sync_pipeline, creches_own_pipeline])
async def test_within_a_pipeline_of_the_callers_the_answers_are_those_that_come_without(
    storage: PostgreSQLStorage, database: str, opener: Opener
) -> None:
    print_ = new_job_id().bytes * 2
    callbacks = [FollowUp(id=new_job_id(), type="after", queue_name="q", head="{}") for _ in range(2)]
    jobs = [
        NewJob(id=new_job_id(), type="work", payload=b"{}"),
        *(NewJob(id=new_job_id(), type="work", payload=b"{}", fingerprint=print_, callbacks=(c,)) for c in callbacks),
    ]
    async with opener(database) as handle:
        result = handle.execute("SELECT 7")
        cursor = result if isinstance(handle, psycopg.Connection) else await result
        answers = await storage.insert(jobs, connection=handle)
        assert [(each.job_id, each.inserted) for each in answers] == [
            (jobs[0].id, True),
            (jobs[1].id, True),
            (jobs[1].id, False),
        ]
        row = cursor.fetchone() if isinstance(handle, psycopg.Connection) else await cursor.fetchone()
        assert row == (7,)
        assert not await storage.find([job.id for job in jobs])
    assert set(await storage.find([job.id for job in jobs])) == {jobs[0].id, jobs[1].id}
