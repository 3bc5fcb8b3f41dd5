"""When statements are prepared: where the server itself answers, and never where somebody in between might hand the
next one to another of its sessions.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from psycopg.conninfo import conninfo_to_dict

from creche import Queue, Retention, Worker
from creche._ids import new_job_id
from creche._job import NewJob, Reservation
from creche.errors import OptionInvalid
from creche.storage import postgresql as module
from creche.storage._psycopg import OFTEN
from creche.storage.postgresql import PostgreSQLStorage
from creche.testing.servers import PgBouncer, PostgreSQLServer, private_pgbouncer, private_postgresql
from missing import unless_missing

pytestmark = pytest.mark.anyio

GREETING = re.compile(rb"K\x00\x00\x00\x0c.{4}", re.DOTALL)  # BackendKeyData: the number of whoever answers
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@pytest.fixture
async def storage(postgresql_dsn: str) -> PostgreSQLStorage:
    """A migrated storage, not open."""
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    return storage


@asynccontextmanager
async def greeted_by_another(dsn: str) -> AsyncGenerator[str]:
    """Stand in between as a pooler does: whoever connects is told a number that is not the server's. Yield a DSN."""
    where = conninfo_to_dict(dsn)
    host, port = str(where["host"]), int(where.get("port") or 5432)

    async def serve(client: ByteStream) -> None:
        server = await (
            anyio.connect_unix(f"{host}/.s.PGSQL.{port}") if host.startswith("/") else anyio.connect_tcp(host, port)
        )

        async def pump(source: ByteStream, sink: ByteStream) -> None:
            with suppress(*GONE):
                while True:
                    data = await source.receive()
                    await sink.send(
                        GREETING.sub(b"K\x00\x00\x00\x0c\x00\x00\x00\x01", data) if sink is client else data
                    )
            pumps.cancel_scope.cancel()

        async with client, server, anyio.create_task_group() as pumps:
            pumps.start_soon(pump, client, server)
            pumps.start_soon(pump, server, client)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as services,
    ):
        services.start_soon(listener.serve, serve)
        port_here = listener.extra(SocketAttribute.local_port)
        options = f"options={where['options']}".replace(" ", "%20").replace("=-csearch_path=", "=-csearch_path%3D")
        yield f"postgresql://{where['user']}@127.0.0.1:{port_here}/{where['dbname']}?{options}"
        services.cancel_scope.cancel()


async def call_often(storage: PostgreSQLStorage) -> None:
    """Send some statements more often than it takes for them to be prepared."""
    for _ in range(OFTEN + 5):
        await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}") for _ in range(2)])
        await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}")])
        await storage.maintain(10, retention=Retention())


async def session(connection: Any) -> Mapping[str, Any]:
    """Return what the server keeps of the session that this connection has now."""
    queries = {
        "prepared": "SELECT coalesce(array_agg(name), '{}') FROM pg_prepared_statements",
        "locks": "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'",
        "channels": "SELECT count(*) FROM pg_listening_channels()",
        "settings": "SELECT coalesce(array_agg(name), '{}') FROM pg_settings"
        " WHERE source = 'session' AND name <> 'application_name'",  # which PgBouncer hands on
    }
    kept: dict[str, Any] = {}
    for name, query in queries.items():
        kept[name] = (await (await connection.execute(query)).fetchone())[0]
    return kept


async def prepared(connection: Any) -> list[str]:
    """Return the first words of the creche statements that are prepared in this connection's session."""
    query = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%creche_%'"
    texts = [text for (text,) in await (await connection.execute(query)).fetchall()]
    return ["reserve" if "SKIP LOCKED" in text else text.split()[0].lower() for text in texts]


async def reserve(storage: PostgreSQLStorage, queue: str) -> Reservation:
    """Reserve one job."""
    return await storage.reserve([queue], 1, lease=60, worker="w", nonce=1)


NOTHING: Mapping[str, Any] = {"prepared": [], "locks": 0, "channels": 0, "settings": []}


async def test_dispatches_and_idle_reserves_are_prepared_and_nothing_else(
    postgresql_dsn: str, storage: PostgreSQLStorage
) -> None:
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        await call_often(single)
        for _ in range(OFTEN + 1):
            assert not (await reserve(single, "empty")).jobs
        kept = await single._calls.run(session)
        texts = await single._calls.run(prepared)
    assert sorted(texts) == ["insert", "insert", "reserve"]
    assert all(re.fullmatch(r"_pg3_\d+", name) for name in kept["prepared"])  # as the torture's proxy knows them
    assert {**kept, "prepared": []} == NOTHING


async def test_with_a_backlog_each_reserve_is_planned_anew(postgresql_dsn: str, storage: PostgreSQLStorage) -> None:
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        await call_often(single)
        for _ in range(OFTEN + 4):
            assert len((await reserve(single, "default")).jobs) == 1
        assert "reserve" not in await single._calls.run(prepared)


async def test_a_kept_plan_that_has_become_slow_is_forgotten(
    postgresql_dsn: str, storage: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        monkeypatch.setattr(module, "SLOW", 60.0)  # nothing is, on a machine that others use too
        for _ in range(OFTEN + 1):
            await reserve(single, "empty")
        assert await single._calls.run(prepared) == ["reserve"]
        monkeypatch.setattr(module, "SLOW", -60.0)
        await reserve(single, "empty")
        await single.stats()  # with which the server is told
        assert await single._calls.run(prepared) == []
        monkeypatch.setattr(module, "SLOW", 60.0)
        for _ in range(OFTEN + 1):
            await reserve(single, "empty")
        assert await single._calls.run(prepared) == ["reserve"]


async def test_on_a_server_that_is_far_away_the_plan_is_kept_too(
    postgresql_dsn: str, storage: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(module, "monotonic", lambda: 2 * module.SLOW * next(ticks))
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        for _ in range(OFTEN + 1):
            await reserve(single, "empty")
        assert await single._calls.run(prepared) == ["reserve"]


async def test_what_is_sent_now_and_then_is_not(postgresql_dsn: str, storage: PostgreSQLStorage) -> None:
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        for _ in range(OFTEN):
            await single.stats()
        assert (await single._calls.run(session))["prepared"] == []


async def test_nothing_stays_in_a_session_that_somebody_else_may_get_next(
    postgresql_dsn: str, storage: PostgreSQLStorage
) -> None:
    async with greeted_by_another(postgresql_dsn) as dsn, PostgreSQLStorage(f"{dsn}&pool_size=1") as single:
        await call_often(single)
        assert await single._calls.run(session) == NOTHING


@pytest.mark.parametrize("threshold", [None, "never"])
async def test_nor_where_it_is_switched_off(
    postgresql_dsn: str, storage: PostgreSQLStorage, threshold: str | None
) -> None:
    single = (
        PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1", prepare_threshold=None)
        if threshold is None
        else PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1&prepare_threshold={threshold}")
    )
    async with single:
        await call_often(single)
        assert await single._calls.run(session) == NOTHING


async def test_who_knows_better_may_have_it_anywhere(postgresql_dsn: str, storage: PostgreSQLStorage) -> None:
    async with greeted_by_another(postgresql_dsn) as dsn:
        single = PostgreSQLStorage(f"{dsn}&pool_size=1&prepare_threshold=0")
        async with single, single.twin() as twin:
            for each in (single, twin):
                await each.stats()
                assert len((await each._calls.run(session))["prepared"]) == 2  # that question itself was sent


def test_a_threshold_is_a_number_or_a_word() -> None:
    for value in ("sometimes", -1, True):
        with pytest.raises(OptionInvalid, match="auto"):
            PostgreSQLStorage("postgresql://h/d", prepare_threshold=value)  # type: ignore[arg-type]


async def test_a_statement_that_somebody_has_forgotten_is_sent_again_on_another_connection(
    postgresql_dsn: str, storage: PostgreSQLStorage
) -> None:
    async def forget(connection: Any) -> None:
        await connection.execute(b"DEALLOCATE ALL", prepare=False)

    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        await call_often(single)
        first = await single._calls.run(session)
        assert first["prepared"]
        await single._calls.run(forget)
        await call_often(single)
        stats = await single.stats()
    assert sum(sum(each.counts.values()) for each in stats) == 2 * 3 * (OFTEN + 5)


async def test_a_transaction_that_is_lent_has_none(postgresql_dsn: str, storage: PostgreSQLStorage) -> None:
    async with storage:
        for _ in range(OFTEN + 2):
            async with storage.transaction() as transaction:
                assert await session(transaction.connection) == NOTHING


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer]:
    """One that a pooler may stand before."""
    for server in unless_missing(private_postgresql(own=True)):
        assert isinstance(server, PostgreSQLServer)
        yield server


@pytest.fixture
def pooler(server: PostgreSQLServer, request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    """A PgBouncer in the mode that the test names."""
    yield from unless_missing(private_pgbouncer(server, request.param), required=False)


@pytest.fixture
def database(server: PostgreSQLServer) -> Iterator[str]:
    """The name of an empty database."""
    name = f"pooled_{secrets.token_hex(4)}"
    server.create_database(name)
    yield name
    server.drop_database(name)


@pytest.mark.parametrize("pooler", ["transaction", "session"], indirect=True)
async def test_pgbouncer_is_told_from_the_server(server: PostgreSQLServer, pooler: PgBouncer, database: str) -> None:
    await PostgreSQLStorage(server.dsn(database)).migrate()
    done: list[int] = []
    async with PostgreSQLStorage(pooler.dsn(database)) as pooled:
        async with anyio.create_task_group() as callers:  # so that there are several sessions to be mixed up
            for _ in range(4):
                callers.start_soon(call_often, pooled)
        assert await pooled._calls.run(session) == NOTHING
    queue = Queue(pooler.dsn(database))

    @queue.task("work")
    async def work() -> None:
        done.append(1)

    summary = await Worker(queue, burst=True).run(signals=False)
    assert summary.succeeded == len(done) == 4 * 3 * (OFTEN + 5)
