"""Dispatches in a caller's own transaction on MySQL and MariaDB, through each kind of handle, in any mode."""

# asyncmy's stubs leave half of its types open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
import asyncmy
import pymysql
import pytest
import sqlalchemy
from asyncmy.cursors import DictCursor as AsyncDictCursor
from pymysql.cursors import DictCursor
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from creche._ids import new_job_id
from creche._job import Event, FollowUp, JobFilter, JobRecord, NewJob, Settlement, Status
from creche.errors import OptionInvalid
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import connect_mysql
from databases import empty_database
from mysql_contract import Raw, Server

pytestmark = pytest.mark.anyio

PRINT: Final = b"f" * 32
TEXT: Final = "it's \"so\" \\' \\ %s %% ä€\U0001f423"
# Whatever a caller's session is set to.
MODES: Final = ("", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ANSI,PIPES_AS_CONCAT,IGNORE_SPACE", "HIGH_NOT_PRECEDENCE")


@pytest.fixture
def anyio_backend() -> str:
    """These drivers are asyncio's."""
    return "asyncio"


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[tuple[str, Raw]]:
    """A migrated database."""
    with empty_database(server) as dsn, closing(connect_mysql(dsn)) as raw:
        anyio.run(MySQLStorage(dsn).migrate)
        yield dsn, raw


@pytest.fixture
async def storage(database: tuple[str, Raw]) -> AsyncIterator[MySQLStorage]:
    dsn, raw = database
    with raw.cursor() as cursor:
        for table in ("jobs", "dead_letters", "watches"):
            cursor.execute(f"DELETE FROM creche_{table}")
    async with MySQLStorage(dsn, call_timeout=5) as storage:
        yield storage


def options(dsn: str) -> dict[str, Any]:
    """What drivers call the parts of a DSN."""
    parts = urlsplit(dsn)
    found: dict[str, Any] = {"user": parts.username, "password": parts.password, "database": parts.path[1:]}
    if socket := parse_qs(parts.query).get("unix_socket"):
        return {**found, "unix_socket": unquote(socket[0])}
    return {**found, "host": parts.hostname, "port": parts.port or 3306}


Opened = tuple[Any, Callable[[], Awaitable[object]], Callable[[], Awaitable[object]], Callable[[str], Awaitable[Any]]]


@asynccontextmanager
async def opened(kind: str, dsn: str) -> AsyncGenerator[Opened]:
    """A handle of some kind in a transaction; how it is committed and rolled back; and how it runs a statement."""
    parts = options(dsn)
    if kind == "pymysql":
        with closing(pymysql.connect(**parts, cursorclass=DictCursor)) as sync:

            async def run_inline(text: str) -> Any:
                with sync.cursor() as cursor:
                    cursor.execute(text)
                    return cursor.fetchall()

            yield sync, awaited(sync.commit), awaited(sync.rollback), run_inline
    elif kind == "asyncmy":
        native = await asyncmy.connect(**parts, cursor_cls=AsyncDictCursor)

        async def run(text: str) -> Any:
            async with native.cursor() as cursor:
                await cursor.execute(text)
                return await cursor.fetchall()

        try:
            await native.begin()
            yield native, native.commit, native.rollback, run
        finally:
            native.close()
    elif kind.startswith("sync"):
        engine = sqlalchemy.create_engine("mysql+pymysql://", connect_args=parts)
        handle: Any = Session(engine) if kind.endswith("session") else engine.connect()

        async def execute(text: str) -> Any:
            connection = handle.connection() if kind.endswith("session") else handle
            return connection.exec_driver_sql(text)

        try:
            yield handle, awaited(handle.commit), awaited(handle.rollback), execute
        finally:
            handle.close()
            engine.dispose()
    else:
        asynchronous = create_async_engine("mysql+asyncmy://", connect_args=parts)
        later: Any = AsyncSession(asynchronous) if kind.endswith("session") else await asynchronous.connect()

        async def execute_later(text: str) -> Any:
            connection = await later.connection() if kind.endswith("session") else later
            return await connection.exec_driver_sql(text)

        try:
            yield later, later.commit, later.rollback, execute_later
        finally:
            await later.close()
            await asynchronous.dispose()


def awaited(function: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        return function()

    return call


KINDS: Final = ("pymysql", "asyncmy", "sync session", "sync connection", "async session", "async connection")


def follow_up(**options: Any) -> FollowUp:
    usual: dict[str, Any] = {"id": new_job_id(), "type": "next", "queue_name": "after", "head": TEXT, "tail": TEXT}
    return FollowUp(**{**usual, **options})


def job(*callbacks: FollowUp, **options: Any) -> NewJob:
    usual: dict[str, Any] = {"id": new_job_id(), "type": "work", "payload": b"{}", "callbacks": callbacks}
    return NewJob(**{**usual, **options})


async def all_rows(storage: MySQLStorage, queue: str = "default") -> list[JobRecord]:
    return [*await storage.list(JobFilter(queues=frozenset({queue})), 100)]


async def finished(storage: MySQLStorage, event: Event = Event.SUCCEED, result: bytes | None = b"1") -> None:
    reservation = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1)
    await storage.settle([Settlement(lease=each.lease, event=event, result=result) for each in reservation.jobs])


# --- each kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_there_after_the_commit_and_gone_after_a_rollback(
    storage: MySQLStorage, database: tuple[str, Raw], kind: str
) -> None:
    async with opened(kind, database[0]) as (handle, commit, rollback, _):
        for end, there in ((rollback, 0), (commit, 3)):
            new = [
                job(follow_up()),
                job(idempotency_key=TEXT),
                job(follow_up(), fingerprint=PRINT, payload=TEXT.encode()),
            ]
            answers = await storage.insert(new, connection=handle)
            assert [(each.job_id, each.inserted, each.status) for each in answers] == [
                (each.id, True, Status.PENDING) for each in new
            ]
            again = await storage.insert([job(fingerprint=PRINT), job(idempotency_key=TEXT)], connection=handle)
            assert [each.job_id for each in again] == [new[2].id, new[1].id]
            assert await all_rows(storage) == []
            await end()
            assert len(await all_rows(storage)) == there
    assert TEXT.encode() in {row.payload for row in await all_rows(storage)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
async def test_its_session_may_be_whatever_it_is(
    storage: MySQLStorage, database: tuple[str, Raw], kind: str, mode: str
) -> None:
    cached = job(fingerprint=PRINT, result_ttl=60)
    await storage.insert([cached])
    await finished(storage, result=TEXT.encode())
    async with opened(kind, database[0]) as (handle, commit, rollback, run):
        await rollback()
        await run(f"SET sql_mode = '{mode}', time_zone = '-07:00', character_set_results = latin1")
        await run("SET character_set_client = gbk, collation_connection = latin1_swedish_ci")
        await rollback()
        if kind in {"pymysql", "asyncmy"}:
            await run("START TRANSACTION")
        callback = follow_up(type="t'\\ä")
        (answer,) = await storage.insert([job(callback, fingerprint=PRINT)], connection=handle)
        assert (answer.job_id, answer.result) == (cached.id, TEXT.encode())
        new = job(follow_up(), payload=TEXT.encode(), queue_name="q'\\ä", delay=60)
        await storage.insert([new], connection=handle)
        await commit()
    (row,) = await all_rows(storage, "after")
    assert (row.id, row.type, row.payload) == (callback.id, "t'\\ä", (TEXT * 3).encode())
    (other,) = await all_rows(storage, "q'\\ä")
    assert (other.payload, other.status) == (TEXT.encode(), Status.SCHEDULED)
    assert abs((other.available_at - other.created_at).total_seconds() - 60) < 0.001


@pytest.mark.parametrize("kind", KINDS)
async def test_what_the_driver_raises_goes_to_the_caller(
    storage: MySQLStorage, database: tuple[str, Raw], kind: str
) -> None:
    async with opened(kind, database[0]) as (handle, _, rollback, run):
        await run("CREATE TEMPORARY TABLE creche_jobs (id INT)")
        with pytest.raises(Exception, match=r"Unknown column|1054") as caught:
            await storage.insert([job()], connection=handle)
        assert type(caught.value).__module__.split(".")[0] in {"pymysql", "asyncmy", "sqlalchemy"}
        await rollback()


# --- REPEATABLE READ --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pymysql", "asyncmy"])
async def test_a_snapshot_that_is_older_than_a_row_hides_nothing(
    storage: MySQLStorage, database: tuple[str, Raw], kind: str
) -> None:
    ended, running = job(fingerprint=b"e" * 32), job(fingerprint=PRINT)
    await storage.insert([ended])
    async with opened(kind, database[0]) as (handle, commit, _, run):
        await run("SELECT COUNT(*) FROM creche_jobs")
        await finished(storage)
        await storage.insert([running])
        keyed = job(idempotency_key="k")
        await storage.insert([keyed])
        late = job(fingerprint=b"e" * 32)
        callback = follow_up()
        answers = await storage.insert(
            [late, job(callback, fingerprint=PRINT), job(idempotency_key="k", fingerprint=b"g" * 32), running],
            connection=handle,
        )
        assert [each.job_id for each in answers] == [late.id, running.id, keyed.id, running.id]
        await commit()
    await finished(storage)
    assert [row.id for row in await all_rows(storage, "after")] == [callback.id]


async def test_a_plain_dispatch_of_others_waits_for_no_caller(storage: MySQLStorage, database: tuple[str, Raw]) -> None:
    await storage.insert([job(fingerprint=PRINT), job(idempotency_key="k")])
    async with opened("asyncmy", database[0]) as one, opened("asyncmy", database[0]) as other:
        for handle in (one[0], other[0]):
            await storage.insert(
                [job(), job(fingerprint=PRINT), job(idempotency_key="k"), job(fingerprint=new_job_id().bytes * 2)],
                connection=handle,
            )
        with anyio.fail_after(2):
            await storage.insert([job()])
            await storage.insert([job(fingerprint=b"z" * 32)])
            await storage.insert([job(idempotency_key="z")])
        await one[1]()
        await other[1]()
    assert len(await all_rows(storage)) == 9


async def test_who_loses_to_an_uncommitted_dispatch_waits_and_gets_its_job(
    storage: MySQLStorage, database: tuple[str, Raw]
) -> None:
    first, callback = job(fingerprint=PRINT), follow_up()
    async with opened("asyncmy", database[0]) as one, opened("asyncmy", database[0]) as other:
        await other[3]("SELECT COUNT(*) FROM creche_jobs")
        await storage.insert([first], connection=one[0])
        answers: list[Any] = []

        async def join() -> None:
            answers.extend(await storage.insert([job(callback, fingerprint=PRINT)], connection=other[0]))

        async with anyio.create_task_group() as group:
            group.start_soon(join)
            await anyio.sleep(0.2)
            assert answers == []
            await one[1]()
        await other[1]()
    assert answers[0].job_id == first.id
    await finished(storage)
    assert [row.id for row in await all_rows(storage, "after")] == [callback.id]


async def test_a_stale_or_refused_result_lets_go_in_their_transaction_too(
    storage: MySQLStorage, database: tuple[str, Raw]
) -> None:
    cached = job(fingerprint=PRINT, result_ttl=60)
    await storage.insert([cached])
    await finished(storage)
    async with opened("asyncmy", database[0]) as (handle, commit, rollback, _):
        for end in (rollback, commit):
            fresh = job(fingerprint=PRINT, refresh=True)
            answers = await storage.insert([job(fingerprint=PRINT), fresh, job(fingerprint=PRINT)], connection=handle)
            assert [each.job_id for each in answers] == [cached.id, fresh.id, fresh.id]
            (meanwhile,) = (await storage.find([cached.id]),)
            assert cached.id in meanwhile
            await end()
    (answer,) = await storage.insert([job(fingerprint=PRINT)])
    assert answer.job_id == fresh.id


# --- wakes, and what is refused ---------------------------------------------------------------------


async def test_listeners_are_woken_after_a_commit_that_comes_late(
    storage: MySQLStorage, database: tuple[str, Raw]
) -> None:
    async with storage.listen(["default"]) as listener, opened("asyncmy", database[0]) as (handle, commit, _, _run):
        await anyio.sleep(0.1)
        with anyio.move_on_after(0.1):
            await listener.wait()
        await storage.insert([job()], connection=handle)
        await anyio.sleep(0.3)
        await commit()
        with anyio.move_on_after(0.02):
            await listener.wait()
        with anyio.fail_after(1):
            await listener.wait()


@pytest.mark.parametrize("handle", [object(), "mysql://", 1])
async def test_what_is_no_handle_is_refused(storage: MySQLStorage, handle: object) -> None:
    with pytest.raises(OptionInvalid, match="connection"):
        await storage.insert([job()], connection=handle)


async def test_a_handle_that_commits_by_itself_is_refused_unless_a_transaction_was_begun(
    storage: MySQLStorage, database: tuple[str, Raw]
) -> None:
    parts = options(database[0])
    with closing(pymysql.connect(**parts, autocommit=True)) as sync:
        with pytest.raises(OptionInvalid, match="autocommit"):
            await storage.insert([job()], connection=sync)
        sync.begin()
        with sync.cursor() as cursor:
            cursor.execute("SELECT 1")
        await storage.insert([job()], connection=sync)
        sync.rollback()
    native = await asyncmy.connect(**parts, autocommit=True)
    with pytest.raises(OptionInvalid, match="autocommit"):
        await storage.insert([job()], connection=native)
    await native.begin()
    async with native.cursor() as later:
        await later.execute("SELECT 1")
    await storage.insert([job()], connection=native)
    await native.rollback()
    native.close()
    engine = sqlalchemy.create_engine("mysql+pymysql://", connect_args=parts, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(OptionInvalid, match="autocommit"):
        await storage.insert([job()], connection=connection)
    engine.dispose()
    assert await all_rows(storage) == []


async def test_another_database_of_sqlalchemys_is_refused(storage: MySQLStorage) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(OptionInvalid, match="mariadb or mysql"):
        await storage.insert([job()], connection=connection)
