"""psycopg on anyio: what it does on both loops, and what it leaves behind when it is cancelled."""

# ruff: noqa: ASYNC110 - only the server knows when it is so far, so it is asked again

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import psycopg
import pytest
from anyio import current_time, fail_after, move_on_after
from psycopg import _conninfo_utils, errors, pq

from creche.errors import ConfigurationError, StatementRejected, StorageUnavailable
from creche.storage import _psycopg
from creche.storage._pool import TransientConflict
from creche.storage._psycopg import Connection, PsycopgDriver, notifications, translated
from creche.testing.servers import ForeignServer, PostgreSQLServer, private_postgresql
from sockets import closed_port, open_files

pytestmark = pytest.mark.anyio

Server: TypeAlias = PostgreSQLServer | ForeignServer
CANARY = "c4nary-pa55"


@pytest.fixture(scope="module")
def dsn(postgresql_server: Server) -> Iterator[str]:
    yield postgresql_server.create_database("creche_driver")
    postgresql_server.drop_database("creche_driver")


@asynccontextmanager
async def connected(dsn: str, **options: Any) -> AsyncIterator[Connection[tuple[Any, ...]]]:
    connection = await Connection.connect(dsn, **options)
    try:
        yield connection
    finally:
        await connection.close()


async def value(connection: Connection[tuple[Any, ...]], query: Any, *parameters: object) -> Any:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row
    return row[0]


# --- what psycopg does, it does here ----------------------------------------------------------------


async def test_queries_over_tcp_and_over_a_unix_socket(postgresql_server: Server, dsn: str) -> None:
    dsns = [dsn]
    if isinstance(postgresql_server, PostgreSQLServer):
        dsns.append(postgresql_server.dsn("creche_driver", socket=True))
    for each in dsns:
        async with connected(each) as connection:
            rows = await connection.execute("SELECT n, n::text FROM generate_series(%s::int, %s) n", [1, 3])
            assert await rows.fetchall() == [(1, "1"), (2, "2"), (3, "3")]
            assert await value(connection, "SELECT current_setting('application_name')") == "creche"


async def test_many_rows_both_ways_and_a_statement_larger_than_the_socket_buffer(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute("CREATE TEMPORARY TABLE wide (id int, body text)")
        async with connection.cursor() as cursor:
            await cursor.executemany("INSERT INTO wide VALUES (%s, %s)", [(n, "x" * 2000) for n in range(1000)])
            assert cursor.rowcount == 1000
        assert await value(connection, "SELECT sum(length(body)) FROM wide") == 2_000_000
        large = "é" * 4_000_000
        assert await value(connection, "SELECT %s::text", large) == large


async def test_a_pipeline_sends_without_waiting(dsn: str) -> None:
    async with connected(dsn) as connection:
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::int", [n]) for n in range(200)]
            # The server answers while it is still being written to: neither side may wait for the other.
            bulky = [await connection.execute("SELECT repeat(%s, 1000)", ["x" * 1000]) for _ in range(30)]
        assert [await cursor.fetchone() for cursor in cursors] == [(n,) for n in range(200)]
        assert [len((await cursor.fetchone() or ("",))[0]) for cursor in bulky] == [1_000_000] * 30
        assert connection.info.pipeline_status == pq.PipelineStatus.OFF
        assert await value(connection, "SELECT 1") == 1


async def test_transactions_commit_roll_back_and_nest(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute("CREATE TEMPORARY TABLE kept (n int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO kept VALUES (1)")
            with suppress(RuntimeError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO kept VALUES (2)")
                    raise RuntimeError
            async with connection.pipeline(), connection.transaction():
                await connection.execute("INSERT INTO kept VALUES (3)")
        with suppress(errors.UndefinedTable):
            async with connection.transaction():
                await connection.execute("INSERT INTO kept VALUES (4)")
                await connection.execute("SELECT * FROM nowhere")
        async with connection.transaction(force_rollback=True):
            await connection.execute("INSERT INTO kept VALUES (5)")
        rows = await connection.execute("SELECT n FROM kept ORDER BY n")
        assert await rows.fetchall() == [(1,), (3,)]


async def test_json_arrives_as_the_bytes_that_were_sent(dsn: str) -> None:
    async with connected(dsn) as connection:
        text = '{"b": 1,  "a": [1.0, "é"]}'
        assert await value(connection, "SELECT %s::json", text) == text.encode()
        raw = await value(connection, "SELECT %s::jsonb", text)
        assert isinstance(raw, bytes)
        assert json.loads(raw) == json.loads(text)


async def test_many_tasks_may_share_a_connection(dsn: str) -> None:
    async with connected(dsn) as connection, anyio.create_task_group() as tasks:

        async def ask(n: int) -> None:
            assert await value(connection, "SELECT %s::int", n) == n

        for n in range(50):
            tasks.start_soon(ask, n)


async def test_copy_and_stream_work(dsn: str) -> None:
    async with connected(dsn) as connection, connection.cursor() as cursor:
        await cursor.execute("CREATE TEMPORARY TABLE copied (n int)")
        async with cursor.copy("COPY copied FROM STDIN") as copy:
            for n in range(1000):
                await copy.write_row([n])
        assert [row async for row in cursor.stream("SELECT count(*) FROM copied")] == [(1000,)]


async def test_nothing_is_printed(dsn: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with connected(dsn) as connection:
        await connection.execute("DO $$ BEGIN RAISE WARNING 'loud'; END $$")
        with suppress(RuntimeError):
            async with connection.transaction():
                await connection.close()
                raise RuntimeError
        with suppress(RuntimeError), suppress(psycopg.OperationalError):
            async with connection.pipeline():
                raise RuntimeError
    assert capfd.readouterr() == ("", "")


async def test_no_prepared_statements_and_sensible_socket_options(dsn: str) -> None:
    async with connected(dsn) as connection:
        for _ in range(10):
            await connection.execute("SELECT 1")
        assert await value(connection, "SELECT count(*) FROM pg_prepared_statements") == 0
        assert connection.autocommit
        told = connection.info.get_parameters()
        assert (told["tcp_user_timeout"], told["keepalives_idle"], told["connect_timeout"]) == ("10000", "10", "10")
    async with connected(f"{dsn}?keepalives_idle=77&application_name=mine&tcp_user_timeout=1") as connection:
        told = connection.info.get_parameters()
        assert (told["tcp_user_timeout"], told["keepalives_idle"]) == ("1", "77")
        assert await value(connection, "SELECT current_setting('application_name')") == "mine"


# --- cancellation -----------------------------------------------------------------------------------


async def test_a_cancelled_query_returns_at_once_and_drops_the_socket(dsn: str) -> None:
    async with connected(dsn) as connection:
        began = current_time()
        with move_on_after(0.1) as scope:
            await connection.execute("SELECT pg_sleep(5)")
        assert scope.cancelled_caught
        assert current_time() - began < 1
        assert connection.closed
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")


async def test_a_cancelled_write_is_not_cancelled_on_the_server(dsn: str) -> None:
    async with connected(dsn) as observer:
        await observer.execute("CREATE TABLE IF NOT EXISTS written (n int)")
        await observer.execute("TRUNCATE written")
        async with connected(dsn) as connection:
            with move_on_after(0.1):
                await connection.execute("INSERT INTO written SELECT 1 FROM pg_sleep(0.3)")
            assert connection.closed
        with fail_after(5):
            while not await value(observer, "SELECT count(*) FROM written"):
                await anyio.sleep(0.05)


@pytest.mark.parametrize("block", ["transaction", "pipeline"])
async def test_cancelled_inside_a_block_the_connection_is_dropped_at_once(dsn: str, block: str) -> None:
    async with connected(dsn) as connection:
        began = current_time()
        with move_on_after(0.1) as scope:
            async with getattr(connection, block)():
                cursor = await connection.execute("SELECT pg_sleep(5)")
                await cursor.fetchone()
        assert scope.cancelled_caught
        assert current_time() - began < 1
        assert connection.closed


async def test_cancelled_between_statements_a_transaction_rolls_back_and_keeps_the_connection(dsn: str) -> None:
    async with connected(dsn) as connection:
        with move_on_after(0.05):
            async with connection.transaction():
                await connection.execute("CREATE TABLE never (n int)")
                await anyio.sleep(5)
        assert not connection.closed
        assert await value(connection, "SELECT to_regclass('never')") is None


async def test_a_commit_is_not_torn_by_a_cancellation(dsn: str) -> None:
    async with connected(dsn) as connection:
        with anyio.CancelScope() as scope:
            async with connection.transaction():
                await connection.execute("CREATE TEMPORARY TABLE committed (n int)")
                scope.cancel()
        assert connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        assert await value(connection, "SELECT count(*) FROM committed") == 0


async def test_a_commit_without_an_answer_ends_with_an_unknown_outcome(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_psycopg, "FAREWELL", 0.1)
    slow = "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON lazy INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION lazy()"
    async with connected(dsn) as connection:
        await connection.execute("DROP TABLE IF EXISTS lazy")
        await connection.execute(
            "CREATE OR REPLACE FUNCTION lazy() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$"
        )
        await connection.execute("CREATE TABLE lazy (n int)")
        await connection.execute(slow)
        began = current_time()
        with move_on_after(0.2), pytest.raises(psycopg.OperationalError, match="unknown"):
            async with connection.transaction():
                await connection.execute("INSERT INTO lazy VALUES (1)")
        assert 0.25 < current_time() - began < 0.9
        assert connection.closed
    async with connected(dsn) as observer:
        with fail_after(5):  # nobody has asked the server to end the commit: of that, it might tell a false success
            while not await value(observer, "SELECT count(*) FROM lazy"):
                await anyio.sleep(0.05)


async def test_a_commit_that_gave_up_on_its_standby_is_no_success() -> None:
    settings = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    with private_postgresql(own=True, settings=settings) as server:
        dsn = server.dsn()
        async with connected(dsn) as connection, connected(dsn) as operator, anyio.create_task_group() as tasks:
            await connection.execute("CREATE TABLE t (n int)")
            await connection.execute("SET synchronous_commit = on")

            async def impatient() -> None:
                waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = %s"
                while not await value(operator, waiting, connection.info.backend_pid):
                    await anyio.sleep(0.02)
                await operator.execute("SELECT pg_cancel_backend(%s)", [connection.info.backend_pid])

            tasks.start_soon(impatient)
            with fail_after(10), pytest.raises(psycopg.OperationalError, match="unknown"):
                await connection.execute("INSERT INTO t VALUES (1)")
            assert connection.closed


async def test_closing_wakes_whoever_waits_on_the_connection(dsn: str) -> None:
    async with connected(dsn) as connection, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(StorageUnavailable), translated():
                await connection.execute("SELECT pg_sleep(5)")

        tasks.start_soon(wait)
        await anyio.sleep(0.1)
        with fail_after(1):
            await connection.close()


async def test_a_cancelled_connect_leaves_no_socket_behind(deaf: str) -> None:
    before = open_files()
    for _ in range(3):
        with move_on_after(0.05) as scope:
            await Connection.connect(f"postgresql://u@{deaf}/d")
        assert scope.cancelled_caught
    assert open_files() == before


# --- notifications ----------------------------------------------------------------------------------


async def test_notifications_arrive_and_an_idle_wait_may_be_cancelled(dsn: str) -> None:
    async with connected(dsn) as listener, connected(dsn) as sender:
        await listener.execute("LISTEN bell")
        for _ in range(3):
            with move_on_after(0.02) as scope:
                await notifications(listener)
            assert scope.cancelled_caught
        assert not listener.closed
        await sender.execute("SELECT pg_notify('bell', 'a'), pg_notify('bell', 'b')")
        with fail_after(5):
            heard = await notifications(listener)
            while len(heard) < 2:
                heard += await notifications(listener)
        assert heard == [("bell", "a"), ("bell", "b")]
        # One that comes in the course of another statement is kept for the next who asks.
        await sender.execute("NOTIFY bell, 'c'")
        await listener.execute("SELECT 1")
        with fail_after(5):
            assert await notifications(listener) == [("bell", "c")]


async def test_a_listener_whose_session_ends_hears_about_it(dsn: str) -> None:
    async with connected(dsn) as listener, connected(dsn) as operator, anyio.create_task_group() as tasks:
        await listener.execute("LISTEN bell")

        async def wait() -> None:
            with fail_after(5), pytest.raises(StorageUnavailable):
                await notifications(listener)

        tasks.start_soon(wait)
        await anyio.sleep(0.05)
        await operator.execute("SELECT pg_terminate_backend(%s)", [listener.info.backend_pid])


# --- finding the server -----------------------------------------------------------------------------


async def test_a_deaf_server_is_given_up_after_the_connect_timeout(deaf: str) -> None:
    began = current_time()
    with pytest.raises(StorageUnavailable, match=deaf) as caught:
        await PsycopgDriver(f"postgresql://u@{deaf}/d?connect_timeout=2").connect()
    assert 1.9 < current_time() - began < 3
    assert "no answer in 2 s" in str(caught.value)


async def test_the_first_host_that_answers_is_taken(dsn: str) -> None:
    told = psycopg.conninfo.conninfo_to_dict(dsn)
    hosts = f"127.0.0.1,no-such-host.invalid,{str(told['host']).replace('127.0.0.1', 'localhost')}"
    several = psycopg.conninfo.make_conninfo(dsn, host=hosts, port=f"{closed_port()},1,{told['port']}")
    async with connected(several, target_session_attrs="prefer-standby") as connection:
        assert await value(connection, "SELECT 1") == 1


async def test_an_unreachable_server_is_named_and_its_password_is_not(tmp_path: Path) -> None:
    port = closed_port()
    for dsn, named in {
        f"postgresql://user:{CANARY}@127.0.0.1:{port}/db": f"127.0.0.1:{port}",
        f"postgresql://user:{CANARY}@127.0.0.1,localhost:{port},{port}/db": f"localhost:{port}",
        f"postgresql://user:{CANARY}@no-such-host.invalid/db": "no-such-host.invalid:5432",
        f"postgresql://user:{CANARY}@/db?host={tmp_path}": str(tmp_path),
        f"postgresql://user:x@{CANARY}@no-such-host.invalid/db": "no-such-host.invalid",
    }.items():
        driver = PsycopgDriver(dsn)
        with pytest.raises(StorageUnavailable) as caught:
            await driver.connect()
        assert named in str(caught.value)
        assert_no_canary(caught.value, driver)


@pytest.mark.parametrize(
    "dsn", [f"postgresql://u:%zz{CANARY}@h/d", f"postgresql://u:{CANARY}/x@h/d", CANARY, f"{CANARY}\udcff"]
)
async def test_a_dsn_that_can_not_be_read_is_not_quoted(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encode") as caught:
        await PsycopgDriver(dsn).connect()
    assert_no_canary(caught.value)


async def test_a_refused_password_is_not_quoted(postgresql_server: Server) -> None:
    if isinstance(postgresql_server, ForeignServer):
        pytest.skip("whether that server asks for passwords is its own business")
    dsn = f"postgresql://postgres:{CANARY}@127.0.0.1:{postgresql_server.port}/postgres"
    with pytest.raises(StorageUnavailable, match="password authentication failed") as caught:
        await PsycopgDriver(dsn).connect()
    assert_no_canary(caught.value)


def assert_no_canary(error: BaseException, *others: object) -> None:
    chain: list[BaseException | None] = [error]
    seen: list[object] = [*others, "".join(traceback.format_exception(error))]
    while chain:
        if (link := chain.pop()) is not None:
            seen += [link, vars(link), getattr(link, "pgconn", None)]
            chain += [link.__cause__, link.__context__]
    assert not [thing for thing in seen if CANARY in f"{thing!s}{thing!r}"]


# --- errors -----------------------------------------------------------------------------------------


async def test_a_refused_statement_is_told_from_a_lost_connection(dsn: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as operator:
        with pytest.raises(StatementRejected, match="42P01") as caught, translated():
            await connection.execute("SELECT * FROM nowhere")
        assert isinstance(caught.value.__cause__, errors.UndefinedTable)
        await connection.execute("CREATE TEMPORARY TABLE single (n int PRIMARY KEY)")
        await connection.execute("INSERT INTO single VALUES (4711)")
        with pytest.raises(StatementRejected) as caught, translated():
            await connection.execute("INSERT INTO single VALUES (4711)")
        assert "4711" not in str(caught.value)
        with pytest.raises(StatementRejected), translated():
            await connection.execute("SELECT %s", [object()])
        await operator.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        with pytest.raises(StorageUnavailable) as lost, translated():
            await connection.execute("SELECT 1")
        assert isinstance(lost.value.__cause__, psycopg.Error)
        with pytest.raises(StorageUnavailable), translated():
            await connection.execute("SELECT 1")


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        *((code, TransientConflict) for code in ("40001", "40P01", "55P03")),
        *((code, StorageUnavailable) for code in ("57P01", "57P03", "25006", "25P03", "53300", "08006", "08P01")),
        *((code, StatementRejected) for code in ("42601", "23505", "22P02", "25P02", "XX999")),
    ],
)
async def test_each_code_has_one_meaning(dsn: str, code: str, meaning: type[Exception]) -> None:
    async with connected(dsn) as connection:
        with pytest.raises(meaning) as caught, translated():
            await connection.execute(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{code}'; END $$".encode())
        assert type(caught.value) is meaning


async def test_a_timeout_is_no_answer() -> None:
    with pytest.raises(StorageUnavailable) as caught, translated(), fail_after(0.01):
        await anyio.sleep(1)
    assert isinstance(caught.value.__cause__, TimeoutError)


# --- the ground it stands on ------------------------------------------------------------------------


async def test_trio_runs_without_any_asyncio_loop_or_thread_of_ours(
    dsn: str, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend != "trio":
        pytest.skip("it is about trio")

    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("asyncio was asked for a loop")

    for owner, name in [
        (asyncio.BaseEventLoop, "__init__"),
        (asyncio, "new_event_loop"),
        (asyncio, "get_event_loop"),
        (asyncio, "get_running_loop"),
        (psycopg.waiting, "get_running_loop"),
        (psycopg.waiting, "wait_async"),
        (psycopg.waiting, "wait_conn_async"),
    ]:
        monkeypatch.setattr(owner, name, forbidden)
    threads = threading.active_count()
    async with connected(dsn) as connection:
        async with connection.transaction(), connection.pipeline():
            await connection.execute("SELECT 1")
        with move_on_after(0.05):
            await connection.execute("SELECT pg_sleep(1)")
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (psycopg.AsyncConnection, "_connect_gen"),
        (psycopg.AsyncConnection, "_try_cancel"),
        (psycopg.AsyncConnection, "__del__"),
        (errors, "_WaitTimeout"),
        (_conninfo_utils, "get_param"),
        (_conninfo_utils, "is_ip_address"),
        (_conninfo_utils, "split_attempts"),
        (psycopg.generators, "notifies"),
    ],
)
def test_psycopg_still_has_the_private_names_that_are_used(owner: object, name: str) -> None:
    assert hasattr(owner, name), f"psycopg {psycopg.__version__} has no {name}: storage/_psycopg.py builds on it"


async def test_a_connection_still_has_the_private_attributes_that_are_used(dsn: str) -> None:
    async with connected(dsn) as connection:
        pass
    stock = vars(psycopg.AsyncConnection(connection.pgconn))
    assert stock.keys() >= {"lock", "_autocommit", "_adapters", "_closed", "_pipeline"}
