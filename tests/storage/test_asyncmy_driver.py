"""MySQL and MariaDB on anyio: what they do on both loops, and what is left behind after a cancellation or a failure."""

# ruff: noqa: ASYNC110 - only the server knows when it is so far, so it is asked again

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import anyio
import pytest
from anyio import CancelScope, current_time, fail_after, move_on_after
from anyio.abc import SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint
from asyncmy import auth, converters, errors, protocol
from asyncmy.constants import CLIENT, CR, FIELD_TYPE, SERVER_STATUS
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from creche.errors import ConfigurationError, MissingExtra, OptionInvalid, StatementRejected, StorageUnavailable
from creche.storage import _asyncmy
from creche.storage._asyncmy import Answer, AsyncmyDriver, Connection, Server, translated
from creche.storage._mysql_address import Address, parse_dsn
from creche.storage._pool import Pool, TransientConflict
from creche.storage._wire import Wire
from creche.testing.servers import (
    ForeignServer,
    MariaDBServer,
    MySQLServer,
    ServerNotFound,
    connect_mysql,
    private_mariadb,
    private_mysql,
)
from databases import empty_database
from sockets import closed_port, open_files

pytestmark = pytest.mark.anyio

AServer: TypeAlias = MariaDBServer | MySQLServer | ForeignServer
CANARY: Final = "c4nary-pa55"
PRIVATE: Final = {"mariadb": private_mariadb, "mysql": private_mysql}


@pytest.fixture(params=PRIVATE)
def server(request: pytest.FixtureRequest) -> AServer:
    found: AServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def dsn(server: AServer) -> Iterator[str]:
    """The DSN of an empty database, over TCP."""
    with empty_database(server) as found:
        yield tcp(server, found)


def tcp(server: AServer, dsn: str) -> str:
    return dsn if isinstance(server, ForeignServer) else server.dsn(urlsplit(dsn).path[1:])


@asynccontextmanager
async def connected(dsn: str, **options: Any) -> AsyncIterator[Connection]:
    connection = await Connection.connect(parse_dsn(dsn)[0], **options)
    try:
        yield connection
    finally:
        await connection.aclose()


async def value(connection: Connection, sql: str) -> Any:
    (answer,) = await connection.run(sql)
    ((found,),) = answer.rows
    return found


def with_options(dsn: str, **options: object) -> str:
    return dsn + ("&" if "?" in dsn else "?") + "&".join(f"{name}={option}" for name, option in options.items())


def the_address(dsn: str) -> Address:
    (address,) = parse_dsn(dsn)[0].hosts
    return address


@asynccontextmanager
async def meddled(
    dsn: str, to_server: Callable[[bytes], bytes], to_client: Callable[[bytes], bytes]
) -> AsyncIterator[str]:
    """The DSN of a proxy before the server. What the functions return is passed on; nothing at all cuts the line."""
    address = the_address(dsn)

    async def pipe(source: SocketStream, target: SocketStream, meddle: Callable[[bytes], bytes]) -> None:
        try:
            async for data in source:
                if not (passed := meddle(data)):
                    break
                await target.send(passed)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            with CancelScope(shield=True):
                await anyio.aclose_forcefully(source)
                await anyio.aclose_forcefully(target)

    async def serve(client: SocketStream) -> None:
        upstream = await anyio.connect_tcp(address.host, address.port)
        async with anyio.create_task_group() as both:
            both.start_soon(pipe, client, upstream, to_server)
            both.start_soon(pipe, upstream, client, to_client)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(SocketAttribute.local_port)
        yield with_options(dsn.replace(f":{address.port}/", f":{port}/"), ssl_mode="disabled")
        tasks.cancel_scope.cancel()


def unchanged(data: bytes) -> bytes:
    return data


# --- what it does -----------------------------------------------------------------------------------


async def test_statements_are_answered_over_tcp_and_over_a_unix_socket(server: AServer, dsn: str) -> None:
    dsns = [dsn, with_options(dsn, ssl_mode="disabled")]
    if not isinstance(server, ForeignServer):
        dsns.append(server.dsn(urlsplit(dsn).path[1:], socket=True))
    for each in dsns:
        async with connected(each) as connection:
            assert await connection.run("SELECT 1, 'one' UNION SELECT 2, 'two'") == [
                Answer([(1, "one"), (2, "two")], 2)
            ]
            assert connection.thread_id == await value(connection, "SELECT connection_id()")
            assert connection.max_allowed_packet == await value(connection, "SELECT @@max_allowed_packet")
            assert connection.server.mariadb == ("MariaDB" in await value(connection, "SELECT @@version"))
            assert connection.server.version >= (8, 0, 0)


async def test_values_arrive_as_what_they_are(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.run(
            "CREATE TABLE t (a BIGINT UNSIGNED, b TINYINT, c DECIMAL(9, 2), d DOUBLE, e DATETIME(6), f DATETIME, "
            "g DATE, h TIME, i VARCHAR(9) CHARACTER SET latin1, j LONGTEXT CHARACTER SET utf8mb4, k BINARY(2), "
            "l VARBINARY(9), m LONGBLOB, n JSON, o INT)"
        )
        await connection.run(
            "INSERT INTO t VALUES (18446744073709551615, -1, 1.50, 0.1, '2026-02-28 23:59:59.000001', '1000-01-01', "
            "'9999-12-31', '-01:00:00', 'é', '🐘\\n''', 0x00FF, '', 0xFF00, '[1]', NULL)"
        )
        (answer,) = await connection.run("SELECT * FROM t")
        assert answer.rows == [
            (
                *((1 << 64) - 1, -1, Decimal("1.50"), 0.1),
                *(datetime(2026, 2, 28, 23, 59, 59, 1), datetime(1000, 1, 1), date(9999, 12, 31), timedelta(hours=-1)),  # noqa: DTZ001
                *("é", "🐘\\n'", b"\0\xff", b"", b"\xff\0", "[1]", None),
            )
        ]


async def test_a_date_that_is_none_breaks_nothing(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.run("CREATE TABLE t (d DATETIME(6), e DATE)")
        await connection.run("INSERT INTO t VALUES ('0000-00-00 00:00:00', '0000-00-00')")
        (answer,) = await connection.run("SELECT * FROM t")
        assert answer.rows == [("0000-00-00 00:00:00.000000", "0000-00-00")]
        assert await value(connection, "SELECT 1") == 1


async def test_several_statements_have_an_answer_each(dsn: str) -> None:
    async with connected(dsn) as connection:
        answers = await connection.run(
            "CREATE TABLE t (n INT); BEGIN; INSERT INTO t VALUES (1), (2); SELECT n FROM t ORDER BY n;"
            "SELECT 1 FROM t LIMIT 0; COMMIT"
        )
        assert answers == [
            Answer([], 0),
            Answer([], 0),
            Answer([], 2),
            Answer([(1,), (2,)], 2),
            Answer([], 0),
            Answer([], 0),
        ]
        assert not connection.in_transaction


async def test_an_error_in_the_middle_ends_the_round_trip_in_good_order(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.run("CREATE TABLE t (n INT)")
        with pytest.raises(errors.ProgrammingError) as caught:
            await connection.run(
                "BEGIN; INSERT INTO t VALUES (1); SELECT * FROM nowhere; INSERT INTO t VALUES (2); COMMIT"
            )
        assert caught.value.args[0] == 1146
        assert connection.in_transaction
        assert not AsyncmyDriver(parse_dsn(dsn)[0]).clean(connection)
        assert await value(connection, "SELECT group_concat(n) FROM t") == "1"
        await connection.run("ROLLBACK")
        assert await value(connection, "SELECT count(*) FROM t") == 0
        assert not connection.in_transaction


async def test_an_update_counts_the_rows_that_it_found(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.run("CREATE TABLE t (n INT); INSERT INTO t VALUES (1), (1), (2)")
        assert await connection.run("UPDATE t SET n = 1 WHERE n = 1") == [Answer([], 2)]
        assert await connection.run("UPDATE t SET n = 1 WHERE n = 3") == [Answer([], 0)]


@pytest.mark.parametrize("size", [3_000_000, 20_000_000])
async def test_much_goes_both_ways(own: AServer, size: int) -> None:
    with empty_database(own) as found:
        for each in (found, with_options(tcp(own, found), ssl_mode="required")):
            async with connected(each) as connection:
                await connection.run("CREATE TABLE t (b LONGBLOB)")
                text = "é" * (size // 2)
                assert await connection.run(f"INSERT INTO t VALUES ('{text}')") == [Answer([], 1)]
                assert await value(connection, "SELECT b FROM t") == text.encode()
                assert await value(connection, f"SELECT length('{text}')") == size
                await connection.run("DROP TABLE t")


@pytest.mark.parametrize("size", [(1 << 24) - 1 + shift for shift in (-1, 0, 1)])
async def test_the_limit_of_a_packet_is_no_limit_of_a_statement(own: AServer, size: int) -> None:
    async with connected(own.dsn("mysql")) as connection:
        around = len("\x03SELECT length('')")
        assert await value(connection, f"SELECT length('{'x' * (size - around)}')") == size - around
        assert len(await value(connection, f"SELECT repeat('x', {size})")) == size


async def test_many_rows_let_other_tasks_have_their_turn(dsn: str) -> None:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = current_time()
        while True:
            await checkpoint()
            longest, last = max(longest, current_time() - last), current_time()

    async with connected(dsn) as connection, anyio.create_task_group() as tasks:
        await connection.run("CREATE TABLE t (n INT, s CHAR(200)); INSERT INTO t VALUES (1, repeat('x', 200))")
        for _ in range(16):
            await connection.run("INSERT INTO t SELECT n, s FROM t")
        tasks.start_soon(tick)
        (answer,) = await connection.run("SELECT * FROM t")
        tasks.cancel_scope.cancel()
    assert len(answer.rows) == 1 << 16
    assert longest < 0.3


async def test_who_answers_before_hearing_the_end_is_heard_meanwhile() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    much = bytes(5_000_000)

    def talk() -> None:
        theirs.sendall(much)
        got = 0
        while got < len(much):
            got += len(theirs.recv(1 << 16))

    with theirs:
        talker = threading.Thread(target=talk)
        talker.start()
        wire = Wire(ours)
        with fail_after(5):
            await wire.send(much)
        while len(wire.inbox) < len(much):
            await wire.receive()
        wire.close()
        talker.join()


async def test_the_answer_to_what_was_sent_slowly_is_heard() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    much = bytes(5_000_000)

    def talk() -> None:
        time.sleep(0.1)  # so that there is no room for a while
        got = 0
        while got < len(much):
            got += len(theirs.recv(1 << 16))
        time.sleep(0.2)  # so that it is waited for
        theirs.sendall(b"heard")

    with theirs:
        wire = Wire(ours)
        with move_on_after(0.05):
            await wire.receive()  # leaves a callback registered
        talker = threading.Thread(target=talk)
        talker.start()
        with fail_after(5):
            await wire.send(much)  # and anyio registers another one meanwhile
            await wire.receive()
        wire.close()
        talker.join()
        assert bytes(wire.inbox) == b"heard"


async def test_the_answer_to_a_long_statement_may_take_its_time(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert await value(connection, "SELECT 1") == 1
        with fail_after(10):
            slow = f"SELECT length('{'x' * 12_000_000}') + n FROM (SELECT SLEEP(0.3) AS n) t"
            assert await value(connection, slow) == 12_000_000


async def test_a_statement_too_long_for_the_server_is_not_sent(server: AServer, dsn: str) -> None:
    async with connected(dsn) as connection:
        connection.max_allowed_packet = 1 << 20
        longest = (1 << 20) - 2
        around = len("SELECT length('')")
        assert await value(connection, f"SELECT length('{'x' * (longest - around)}')") == longest - around
        with pytest.raises(StatementRejected, match=f"{longest + 1} bytes.*max_allowed_packet is {1 << 20}"):
            await connection.run(f"SELECT length('{'x' * (longest - around + 1)}')")
        with pytest.raises(StatementRejected, match="can't be sent"):
            await connection.run("SELECT '\ud800'")
        assert await value(connection, "SELECT 1") == 1


async def test_the_longest_statement_is_what_the_server_takes(mariadb_server: AServer) -> None:
    with empty_database(mariadb_server) as dsn:
        async with connected(dsn) as connection:
            longest = connection.max_allowed_packet - 2 - len("SELECT length('')")
            assert await value(connection, f"SELECT length('{'x' * longest}')") == longest
            connection.max_allowed_packet += 1
            with pytest.raises(StatementRejected, match="1153"), translated():
                await connection.run(f"SELECT length('{'x' * (longest + 1)}')")
            assert connection.closed


async def test_warnings_are_nobody_s_business(dsn: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with connected(dsn) as connection:
        assert await value(connection, "SELECT 1 / 0") is None
        await connection.run("DROP TABLE IF EXISTS nowhere; SELECT CAST('12x' AS SIGNED)")
    assert capfd.readouterr() == ("", "")


async def test_two_tasks_do_not_share_a_connection(dsn: str) -> None:
    async with connected(dsn) as connection, anyio.create_task_group() as tasks:

        async def first() -> None:
            assert await value(connection, "SELECT 1 FROM (SELECT SLEEP(0.2)) t") == 1

        tasks.start_soon(first)
        await anyio.sleep(0.05)
        with pytest.raises(anyio.BusyResourceError):
            await connection.run("SELECT 2")


# --- the session ------------------------------------------------------------------------------------

HOSTILE: Final = {
    "autocommit": "0",
    "character_set_server": "latin1",
    "completion_type": "CHAIN",
    "default_time_zone": "+05:00",
    "innodb_lock_wait_timeout": "77",
    "lock_wait_timeout": "77",
    "max_allowed_packet": "64M",
    "sql_mode": "ANSI_QUOTES,NO_ZERO_DATE",
    "transaction_isolation": "SERIALIZABLE",
}


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """A folder that a server may read: ca.pem, and what it signed for `localhost`; stranger.pem signed nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        now = datetime.now(UTC)

        def write(
            name: str, subject: str, issuer: tuple[str, ec.EllipticCurvePrivateKey] | None
        ) -> ec.EllipticCurvePrivateKey:
            key = ec.generate_private_key(ec.SECP256R1())
            by, signing = issuer or (subject, key)
            certificate = (
                x509.CertificateBuilder()
                .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
                .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - timedelta(days=1))
                .not_valid_after(now + timedelta(days=1))
                .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
                .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
                .sign(signing, hashes.SHA256())
            )
            (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            (folder / f"{name}.key").write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            return key

        authority = write("ca", "authority", None)
        write("server", "localhost", ("authority", authority))
        write("client", "client", ("authority", authority))
        write("stranger", "stranger", None)
        for file in folder.iterdir():
            file.chmod(0o644)
        yield folder


@pytest.fixture(scope="module", params=PRIVATE)
def own(request: pytest.FixtureRequest, certificates: Path) -> Iterator[AServer]:
    """A server with TLS, large packets, and defaults that nobody would want."""
    tls = {name: str(certificates / file) for name, file in TLS_FILES.items()}
    with ExitStack() as stack:
        try:
            server = stack.enter_context(PRIVATE[request.param](own=True, settings={**HOSTILE, **tls}))
        except ServerNotFound as error:
            pytest.skip(str(error))
        yield server


TLS_FILES: Final = {"ssl_ca": "ca.pem", "ssl_cert": "server.pem", "ssl_key": "server.key"}


async def test_the_session_is_ours_whatever_the_server_s_defaults_are(own: AServer) -> None:
    read_only = f"GLOBAL {'tx' if isinstance(own, MariaDBServer) else 'transaction'}_read_only"
    with empty_database(own) as dsn, connect_mysql(own.dsn()) as operator, operator.cursor() as cursor:
        cursor.execute(f"SET {read_only} = 1")
        try:
            async with connected(dsn, lock_timeout=3.5) as connection:
                await check_the_session(connection)
        finally:
            cursor.execute(f"SET {read_only} = 0")


async def check_the_session(connection: Connection) -> None:
    (answer,) = await connection.run(
        "SELECT @@autocommit, @@time_zone, @@character_set_connection, @@completion_type, @@innodb_lock_wait_timeout, "
        "@@lock_wait_timeout, @@sql_mode"
    )
    *plain, mode = answer.rows[0]
    assert plain == [1, "+00:00", "utf8mb4", "NO_CHAIN", 4, 4]
    assert set(mode.split(",")) == {"STRICT_ALL_TABLES", "NO_ENGINE_SUBSTITUTION", "NO_BACKSLASH_ESCAPES"}
    limit = "@@max_statement_time" if connection.server.mariadb else "@@max_execution_time / 1000"
    assert await value(connection, f"SELECT {limit}") == 6
    isolation = "tx_isolation" if connection.server.mariadb else "transaction_isolation"
    assert await value(connection, f"SELECT @@{isolation}") == "READ-COMMITTED"
    await connection.run("CREATE TABLE t (n INT); BEGIN; INSERT INTO t VALUES (1); COMMIT")
    assert not connection.in_transaction
    assert await value(connection, r"SELECT length('\n')") == 2
    assert await value(connection, "SELECT abs(timestampdiff(SECOND, utc_timestamp(), now())) < 60") == 1


@pytest.mark.parametrize(
    ("told", "passed_on", "named"),
    [
        (b"time_zone = '+00:00'", b"time_zone = '+01:00'", "time_zone is '[+]01:00'"),
        (b"READ COMMITTED", b"SERIALIZABLE  ", "transaction_isolation is 'SERIALIZABLE'"),
        (b"NO_BACKSLASH_ESCAPES", b"IGNORE_SPACE        ", "sql_mode is '.*IGNORE_SPACE.*status flags"),
    ],
)
async def test_a_proxy_that_does_not_pass_settings_on_is_found_out(
    dsn: str, told: bytes, passed_on: bytes, named: str
) -> None:
    async with meddled(dsn, lambda data: data.replace(told, passed_on), unchanged) as proxy:
        with pytest.raises(ConfigurationError, match=named):
            await AsyncmyDriver(parse_dsn(proxy)[0]).connect()


async def test_a_server_that_can_not_count_found_rows_is_refused(dsn: str) -> None:
    def mask(data: bytes) -> bytes:
        at = data.index(b"\0", 5) + 1 + 4 + 8 + 1  # of the capabilities in the greeting
        return data[:at] + bytes([data[at] & ~CLIENT.FOUND_ROWS]) + data[at + 1 :]

    async with meddled(dsn, unchanged, mask) as proxy:
        with pytest.raises(ConfigurationError, match="lacks FOUND_ROWS"):
            await AsyncmyDriver(parse_dsn(proxy)[0]).connect()


async def test_a_session_that_has_lost_its_sql_mode_is_given_up(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.run("SET sql_mode = ''")
        with pytest.raises(StorageUnavailable, match="sql_mode"):
            await connection.run("SELECT 1")
        assert connection.closed


# --- cancellation -----------------------------------------------------------------------------------


async def test_a_cancelled_statement_returns_at_once_and_drops_the_socket(dsn: str) -> None:
    async with connected(dsn) as connection:
        began = current_time()
        with move_on_after(0.1) as scope:
            await connection.run("SELECT SLEEP(5)")
        assert scope.cancelled_caught
        assert current_time() - began < 1
        assert connection.closed
        with pytest.raises(StorageUnavailable), translated():
            await connection.run("SELECT 1")


async def test_a_cancelled_write_is_not_cancelled_on_the_server(dsn: str) -> None:
    async with connected(dsn) as observer:
        await observer.run("CREATE TABLE t (n INT)")
        async with connected(dsn) as connection:
            with move_on_after(0.1):
                await connection.run("DO SLEEP(0.3); INSERT INTO t VALUES (1)")
            assert connection.closed
        async with connected(dsn) as connection:
            with move_on_after(0.1):
                await connection.run("INSERT INTO t SELECT 1 FROM (SELECT SLEEP(0.3)) s")
        with fail_after(5):
            while not await value(observer, "SELECT count(*) FROM t"):
                await anyio.sleep(0.05)


async def test_cancelled_before_anything_was_sent_the_connection_stays_good(dsn: str) -> None:
    async with connected(dsn) as connection:
        with CancelScope() as scope:
            scope.cancel()
            await connection.run("SELECT 1")
        assert scope.cancelled_caught
        assert not connection.closed
        assert await value(connection, "SELECT 1") == 1


async def test_a_pool_keeps_no_connection_whose_statement_was_cancelled(dsn: str) -> None:
    pool = Pool(AsyncmyDriver(parse_dsn(dsn)[0]), size=2)
    for _ in range(3):
        async with pool.acquire() as connection:
            assert await value(connection, "SELECT 1") == 1
    assert pool.stats.connects == 1
    with move_on_after(0.05):
        async with pool.acquire() as connection:
            await connection.run("SELECT SLEEP(5)")
    assert (pool.stats.discarded, connection.closed) == (1, True)
    async with pool.acquire() as connection:
        await connection.run("BEGIN")
    assert pool.stats.discarded == 2
    async with pool.acquire() as connection:
        assert await value(connection, "SELECT 1") == 1
    await pool.aclose()


async def test_dropping_wakes_whoever_waits_on_the_connection(dsn: str) -> None:
    async with connected(dsn) as connection:

        async def wait() -> None:
            with pytest.raises(StorageUnavailable), translated():
                await connection.run("SELECT SLEEP(5)")

        with fail_after(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(0.1)
                connection.drop()


async def test_a_cancelled_connect_leaves_no_socket_behind(deaf: str) -> None:
    async def attempt() -> None:
        with move_on_after(0.05) as scope:
            await AsyncmyDriver(parse_dsn(f"mysql://u@{deaf}/d")[0]).connect()
        assert scope.cancelled_caught

    await attempt()
    before = open_files()
    for _ in range(3):
        await attempt()
    assert open_files() == before


# --- when the connection breaks ---------------------------------------------------------------------


async def test_a_line_cut_between_statement_and_answer_leaves_the_outcome_unknown(dsn: str) -> None:
    cutting = False

    def cut(data: bytes) -> bytes:
        nonlocal cutting
        cutting = cutting or b"INSERT" in data
        return data

    async with connected(dsn) as observer, meddled(dsn, cut, lambda data: b"" if cutting else data) as proxy:
        await observer.run("CREATE TABLE t (n INT)")
        connection = await Connection.connect(parse_dsn(proxy)[0])
        with fail_after(5), pytest.raises(StorageUnavailable), translated():
            await connection.run("INSERT INTO t VALUES (1)")
        assert connection.closed
        assert await value(observer, "SELECT count(*) FROM t") == 1


@pytest.mark.parametrize("kind", ["CONNECTION", "QUERY"])
async def test_a_killed_statement_says_that_the_storage_is_unavailable(dsn: str, kind: str) -> None:
    async with connected(dsn) as connection, connected(dsn) as operator, anyio.create_task_group() as tasks:
        await connection.run("CREATE TABLE t (n INT); INSERT INTO t VALUES (1)")

        async def wait() -> None:
            with pytest.raises(StorageUnavailable), translated():
                await connection.run("UPDATE t SET n = 2 WHERE SLEEP(5) = 0")
            assert connection.closed == (kind == "CONNECTION")

        tasks.start_soon(wait)
        await anyio.sleep(0.1)
        await operator.run(f"KILL {kind} {connection.thread_id}")


async def test_an_idle_connection_that_the_server_ended_is_not_usable(dsn: str) -> None:
    driver = AsyncmyDriver(parse_dsn(dsn)[0])
    async with connected(dsn) as connection, connected(dsn) as operator:
        assert driver.usable(connection)
        await connection.run("BEGIN")
        assert not driver.usable(connection)
        await connection.run("COMMIT")
        assert driver.usable(connection)
        await operator.run(f"KILL CONNECTION {connection.thread_id}")
        with fail_after(5):
            while driver.usable(connection):
                await anyio.sleep(0.01)
        assert driver.clean(connection)  # nobody knows yet
        with pytest.raises(StorageUnavailable), translated():
            await connection.run("SELECT 1")
        assert connection.closed
        assert not driver.clean(connection)
        assert not driver.usable(connection)
        await driver.close(connection)


async def test_a_forked_child_leaves_its_parent_s_connection_alone(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(dsn) as connection:
        assert await value(connection, "SELECT 1") == 1
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: connection._pid + 1)
            connection.drop()
            await connection.aclose()
        assert await value(connection, "SELECT 2") == 2


async def test_a_connection_that_is_closed_takes_its_leave(server: AServer, dsn: str) -> None:
    async with connected(dsn) as operator:

        async def aborted() -> int:
            (answer,) = await operator.run("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
            return int(answer.rows[0][1])

        before = await aborted()
        async with connected(dsn) as connection:
            await connection.run("SELECT 1")
        with fail_after(5):
            while await value(
                operator, f"SELECT count(*) FROM information_schema.processlist WHERE id = {connection.thread_id}"
            ):
                await anyio.sleep(0.01)
        assert await aborted() == before


# --- finding the server, and being let in -----------------------------------------------------------


async def test_a_deaf_server_is_given_up_after_the_connect_timeout(deaf: str) -> None:
    began = current_time()
    with pytest.raises(StorageUnavailable, match=f"{deaf}.*no answer in 0.5 s"):
        await AsyncmyDriver(parse_dsn(f"mysql://u@{deaf}/d?connect_timeout=0.5")[0]).connect()
    assert 0.4 < current_time() - began < 1


async def test_each_address_of_a_name_is_tried(dsn: str, deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = parse_dsn(with_options(dsn, connect_timeout=3))[0]
    address = the_address(dsn)
    ports = [closed_port(), int(deaf.rpartition(":")[2]), address.port]

    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address.host, port)) for port in ports]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    connection = await AsyncmyDriver(destination).connect()
    assert await value(connection, "SELECT 1") == 1
    await connection.aclose()


async def test_an_unreachable_server_is_named_and_its_password_is_not(tmp_path: Path) -> None:
    port = closed_port()
    for dsn, named in {
        f"mysql://user:{CANARY}@127.0.0.1:{port}/db": f"127.0.0.1:{port}",
        f"mysql://user:{CANARY}@[::1]:{port}/db": f"[::1]:{port}",
        f"mysql://user:{CANARY}@no-such-host.invalid/db": "no-such-host.invalid",
        f"mysql://user:{CANARY}@localhost/db?unix_socket={tmp_path}/none": f"{tmp_path}/none",
    }.items():
        driver = AsyncmyDriver(parse_dsn(dsn)[0])
        with pytest.raises(StorageUnavailable) as caught:
            await driver.connect()
        assert named in str(caught.value)
        assert_no_canary(caught.value, driver)


async def test_what_is_no_mysql_server_is_told_from_one() -> None:
    async def serve(client: SocketStream) -> None:
        async with client:
            await client.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(1 << 21))

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(SocketAttribute.local_port)
        with pytest.raises(StorageUnavailable):
            await AsyncmyDriver(parse_dsn(f"mysql://u@127.0.0.1:{port}/d?connect_timeout=2")[0]).connect()
        tasks.cancel_scope.cancel()


@contextmanager
def account(server: AServer, how: str, *, password: str = CANARY) -> Iterator[str]:
    """The DSN of an account made with these words, over TCP, without TLS."""
    operator = connect_mysql(server.dsn())
    with operator, operator.cursor() as cursor:
        cursor.execute("DROP USER IF EXISTS someone@'127.0.0.1'")
        try:
            cursor.execute(f"CREATE USER someone@'127.0.0.1' {how}")
        except Exception as error:  # noqa: BLE001 - whatever it is called
            pytest.skip(f"this server has no such accounts: {error}")
        cursor.execute("GRANT ALL ON mysql.* TO someone@'127.0.0.1'")
        try:
            yield f"mysql://someone:{password}@{urlsplit(server.dsn()).netloc.rpartition('@')[2]}/mysql?ssl_mode=disabled"
        finally:
            cursor.execute("DROP USER someone@'127.0.0.1'")


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("mariadb", f"IDENTIFIED BY '{CANARY}'"),
        ("mariadb", ""),
        ("mariadb", f"IDENTIFIED VIA ed25519 USING PASSWORD('{CANARY}')"),
        ("mysql", f"IDENTIFIED WITH caching_sha2_password BY '{CANARY}'"),
        ("mysql", "IDENTIFIED WITH caching_sha2_password BY ''"),
        ("mysql", f"IDENTIFIED WITH mysql_native_password BY '{CANARY}'"),
        ("mysql", f"IDENTIFIED WITH sha256_password BY '{CANARY}'"),
    ],
)
async def test_each_kind_of_account_is_let_in_and_the_wrong_password_is_not(
    request: pytest.FixtureRequest, kind: str, how: str
) -> None:
    server: AServer = request.getfixturevalue(f"{kind}_server")
    if "ed25519" in how:
        pytest.importorskip("nacl")
        with connect_mysql(server.dsn()) as operator, operator.cursor() as cursor:
            cursor.execute("INSTALL SONAME 'auth_ed25519'")
    with account(server, how, password=CANARY if CANARY in how else "") as dsn:
        wrong = AsyncmyDriver(parse_dsn(dsn.replace("someone:", f"someone:wrong-{CANARY}"))[0])
        with pytest.raises(StorageUnavailable) as caught:
            await wrong.connect()
        assert_no_canary(caught.value, wrong)
        if "sha256" in how:
            assert "verify_identity" in str(caught.value)
            return
        assert "Access denied for user 'someone'" in str(caught.value)
        for _ in range(2):  # MySQL keeps the password in mind: the second time is another dialogue
            async with connected(dsn) as connection:
                assert await value(connection, "SELECT 1") == 1


async def test_a_missing_cipher_names_its_package(mysql_server: AServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_have_cryptography", False)
    with (
        account(mysql_server, f"IDENTIFIED WITH caching_sha2_password BY '{CANARY}'") as dsn,
        pytest.raises(MissingExtra, match="cryptography"),
    ):
        await AsyncmyDriver(parse_dsn(dsn)[0]).connect()


async def test_a_salt_may_end_in_a_zero_where_it_is_not_padded_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "ed25519_password", lambda _, salt: salt)
    address = the_address("mysql://u:p@h/d")
    assert _asyncmy._proof("client_ed25519", address, bytes(32)) == bytes(32)
    for plugin in ("mysql_native_password", "caching_sha2_password"):
        plain = _asyncmy._proof(plugin, address, b"x" * 20)
        assert _asyncmy._proof(plugin, address, b"x" * 20 + b"\0") == plain != b""


async def test_a_missing_signature_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(auth, "ed25519_password", missing)
    with pytest.raises(ConfigurationError, match="pip install pynacl"):
        _asyncmy._proof("client_ed25519", the_address("mysql://u:p@h/d"), bytes(32))


async def test_a_database_that_is_not_there_is_named(dsn: str) -> None:
    with pytest.raises(StorageUnavailable, match="never_made"):
        await AsyncmyDriver(parse_dsn(dsn.replace("/creche_", "/never_made_"))[0]).connect()


# --- TLS --------------------------------------------------------------------------------------------


async def cipher(dsn: str) -> str:
    async with connected(dsn) as connection:
        (answer,) = await connection.run("SHOW STATUS LIKE 'Ssl_cipher'")
        return str(answer.rows[0][1])


async def test_tls_is_used_where_it_is_offered_and_not_on_a_unix_socket(own: AServer) -> None:
    assert await cipher(own.dsn("mysql"))
    assert await cipher(with_options(own.dsn("mysql"), ssl_mode="required"))
    assert not await cipher(with_options(own.dsn("mysql"), ssl_mode="disabled"))
    if not isinstance(own, ForeignServer):
        assert not await cipher(own.dsn("mysql", socket=True))


async def test_a_certificate_is_verified_as_far_as_was_asked_for(own: AServer, certificates: Path) -> None:
    by_number = own.dsn("mysql")
    by_name = by_number.replace("@127.0.0.1:", "@localhost:")
    authority = certificates / "ca.pem"
    assert await cipher(with_options(by_number, ssl_ca=authority))
    assert await cipher(with_options(by_number, ssl_ca=authority, ssl_mode="verify_ca"))
    assert await cipher(with_options(by_name, ssl_ca=authority, ssl_mode="verify_identity"))
    for refused in (
        with_options(by_number, ssl_ca=authority, ssl_mode="verify_identity"),
        with_options(by_name, ssl_ca=certificates / "stranger.pem"),
        with_options(by_name, ssl_mode="verify_ca"),
    ):
        with pytest.raises(StorageUnavailable, match="certificate verify failed"):
            await AsyncmyDriver(parse_dsn(refused)[0]).connect()


async def test_a_client_s_certificate_is_shown(own: AServer, certificates: Path) -> None:
    with account(own, f"IDENTIFIED BY '{CANARY}' REQUIRE X509") as dsn:
        encrypted = dsn.replace("ssl_mode=disabled", "ssl_mode=required")
        with pytest.raises(StorageUnavailable, match="Access denied"):
            await AsyncmyDriver(parse_dsn(encrypted)[0]).connect()
        assert await cipher(
            with_options(encrypted, ssl_cert=certificates / "client.pem", ssl_key=certificates / "client.key")
        )


async def test_tls_that_is_required_and_not_offered_is_missed(mariadb_server: AServer) -> None:
    with pytest.raises(StorageUnavailable, match="ssl_mode=required, and it offers no TLS"):
        await AsyncmyDriver(parse_dsn(with_options(mariadb_server.dsn("mysql"), ssl_mode="required"))[0]).connect()


async def test_certificates_that_are_not_there_are_a_matter_of_configuration(own: AServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="certificates"):
        await AsyncmyDriver(parse_dsn(with_options(own.dsn("mysql"), ssl_ca=tmp_path / "none.pem"))[0]).connect()


# --- the DSN ----------------------------------------------------------------------------------------


def test_a_dsn_says_where_and_as_whom() -> None:
    destination, options = parse_dsn(
        "mariadb://j%40ne:p%3Ass%2F@[::1]:3307/jobs%20db?connect_timeout=2.5&pool_size=3&call_timeout=1.5&push=off"
    )
    (address,) = destination.hosts
    assert (address.host, address.port, address.user, address.password) == ("::1", 3307, "j@ne", "p:ss/")
    assert (address.database, address.connect_timeout, address.ssl_mode) == ("jobs db", 2.5, "preferred")
    assert address.place == "[::1]:3307"
    assert options == {"pool_size": 3, "call_timeout": 1.5, "push": "off"}
    destination, options = parse_dsn("mysql://u@/db?unix_socket=%2Frun%2Fs")
    (address,) = destination.hosts
    assert (address.host, address.port, address.unix_socket, address.place) == ("localhost", 3306, "/run/s", "/run/s")
    assert options == {}
    assert the_address("mysql://u@h/db?ssl_ca=/ca.pem").ssl_mode == "verify_ca"
    assert the_address("mysql://h/db").user


@pytest.mark.parametrize(
    ("rest", "named"),
    [
        ("h:x/db", "port"),
        ("h:70000/db", "port"),
        ("h", "no database"),
        ("h/", "no database"),
        ("h/a/b", "no database"),
        ("h/db?sslmode=require", "'sslmode'"),
        ("h/db?pool_size", "name=value"),
        ("h/db?ssl_mode=maybe", "ssl_mode='maybe'"),
        ("h/db?connect_timeout=soon", "connect_timeout='soon'"),
        ("h/db?connect_timeout=0", "connect_timeout=0"),
        ("[h/db", "can't be read"),
        ("h/db\udcff", "can't be read"),
    ],
)
def test_a_dsn_without_sense_is_refused_and_not_quoted(rest: str, named: str) -> None:
    with pytest.raises((ConfigurationError, OptionInvalid)) as caught:
        parse_dsn(f"mysql://user:{CANARY}@{rest}")
    assert named in str(caught.value)
    assert_no_canary(caught.value)


@pytest.mark.parametrize("special", ["/", "?", "#", "[", "12?", "12/x?", "12/db?"])
def test_a_password_that_is_not_encoded_is_not_quoted_either(special: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encode") as caught:
        parse_dsn(f"mysql://user:{special}{CANARY}=@host/db")
    assert_no_canary(caught.value)


def assert_no_canary(error: BaseException, *others: object) -> None:
    chain: list[BaseException | None] = [error]
    seen: list[object] = [*others, "".join(traceback.format_exception(error))]
    while chain:
        if (link := chain.pop()) is not None:
            seen += [link, vars(link)]
            chain += [link.__cause__, None if link.__suppress_context__ else link.__context__]
    assert not [thing for thing in seen if CANARY in f"{thing!s}{thing!r}"]


# --- errors -----------------------------------------------------------------------------------------

UNAVAILABLE: Final = (
    1021,
    1040,
    1047,
    1053,
    1114,
    1158,
    1290,
    1317,
    1792,
    1836,
    1927,
    1969,
    2013,
    3024,
    3100,
    3169,
    4031,
)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        *((code, TransientConflict) for code in (1020, 1180, 1205, 1213, 3101, 3572)),
        *((code, StorageUnavailable) for code in UNAVAILABLE),
        *((code, StatementRejected) for code in (1062, 1064, 1146, 1366, 1406, 1644, 3819)),
    ],
)
async def test_each_code_has_one_meaning(mariadb_dsn: str, code: int, meaning: type[Exception]) -> None:
    async with connected(mariadb_dsn) as connection:
        with pytest.raises(meaning) as caught, translated():
            await connection.run(f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'no'; SELECT 1")
        assert type(caught.value) is meaning
        assert str(code) in str(caught.value)
        assert isinstance(caught.value.__cause__, errors.MySQLError)
        assert connection.closed == (meaning is StorageUnavailable and code not in _asyncmy.INTERRUPTED)


async def test_a_message_quotes_no_row_and_no_statement(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.run(
            "CREATE TABLE t (n VARCHAR(99) PRIMARY KEY, i INT, j JSON); INSERT INTO t (n) VALUES ('it''s 4711')"
        )
        for statement, named in {
            "INSERT INTO t (n) VALUES ('it''s 4711')": "Duplicate entry",
            "SELEC 'it''s 4711'": "syntax",
            "INSERT INTO t (n, i) VALUES ('x', 'it''s 4711')": "integer",
            "INSERT INTO t (n, j) VALUES ('x', 'it''s 4711')": "",
            "SELECT * FROM nowhere": "nowhere",
            "SELECT x4711x FROM t": "Unknown column",
        }.items():
            with pytest.raises(StatementRejected) as caught, translated():
                await connection.run(statement)
            assert named in str(caught.value)
            assert "it's" not in str(caught.value)
        assert await value(connection, "SELECT 1") == 1


async def test_who_waits_too_long_for_a_lock_may_try_again(dsn: str) -> None:
    async with connected(dsn) as holder, connected(dsn, lock_timeout=0.5) as waiter:
        await holder.run("CREATE TABLE t (n INT); INSERT INTO t VALUES (1); BEGIN; UPDATE t SET n = 2")
        began = current_time()
        with pytest.raises(TransientConflict, match="1205"), translated():
            await waiter.run("UPDATE t SET n = 3")
        assert current_time() - began < 3
        assert AsyncmyDriver(parse_dsn(dsn)[0]).usable(waiter)


async def test_a_deadlock_undoes_one_of_the_two(dsn: str) -> None:
    outcomes: list[str] = []

    async def rival(first: int, second: int) -> None:
        async with connected(dsn) as connection:
            await connection.run(f"BEGIN; UPDATE t SET n = n + 1 WHERE k = {first}")
            await anyio.sleep(0.2)
            try:
                with translated():
                    await connection.run(f"UPDATE t SET n = n + 1 WHERE k = {second}; COMMIT")
            except TransientConflict:
                outcomes.append("undone")
                await connection.run("ROLLBACK")
                assert not connection.in_transaction
            else:
                outcomes.append("done")

    async with connected(dsn) as connection:
        await connection.run("CREATE TABLE t (k INT PRIMARY KEY, n INT); INSERT INTO t VALUES (1, 0), (2, 0)")
        async with anyio.create_task_group() as rivals:
            rivals.start_soon(rival, 1, 2)
            rivals.start_soon(rival, 2, 1)
        assert sorted(outcomes) == ["done", "undone"]
        assert await value(connection, "SELECT sum(n) FROM t") == 2


async def test_a_statement_ends_even_if_nobody_waits_for_it(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_asyncmy, "GRACE", 0)
    async with connected(dsn, lock_timeout=1) as connection:
        began = current_time()
        with fail_after(5), pytest.raises(StorageUnavailable, match=r"1969|3024"), translated():
            await connection.run(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) "
                "SELECT count(*) FROM n a, n b, n c WHERE a.i + b.i + c.i > 5"
            )
        assert current_time() - began < 3
        assert await value(connection, "SELECT 1") == 1


async def test_a_timeout_is_no_answer() -> None:
    with pytest.raises(StorageUnavailable) as caught, translated(), fail_after(0.01):
        await anyio.sleep(1)
    assert isinstance(caught.value.__cause__, TimeoutError)


# --- the ground it stands on ------------------------------------------------------------------------


def test_a_server_is_known_by_its_version() -> None:
    assert Server.named("10.11.19-MariaDB-0+deb12u1") == Server(mariadb=True, version=(10, 11, 19))
    assert Server.named("8.0.36-28").name == "MySQL 8.0.36"
    assert Server.named("11.4-MariaDB").name == "MariaDB 11.4.0"


async def test_an_address_hides_its_password() -> None:
    destination = parse_dsn(f"mysql://u:{CANARY}@h/d")[0]
    assert isinstance(destination.hosts[0], Address)
    assert CANARY not in f"{destination!r}{destination!s}{AsyncmyDriver(destination)!r}"


async def test_the_socket_notices_a_lost_peer(dsn: str) -> None:
    async with connected(dsn) as connection:
        found = connection._wire.socket
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000


async def test_trio_runs_without_any_asyncio_loop_or_thread_of_ours(
    mariadb_dsn: str, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend != "trio":
        pytest.skip("it is about trio")

    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("asyncio was asked for a loop")

    monkeypatch.setattr(asyncio.BaseEventLoop, "__init__", forbidden)
    for name in ("new_event_loop", "get_event_loop", "get_running_loop"):
        monkeypatch.setattr(asyncio, name, forbidden)
    threads = threading.active_count()
    async with connected(mariadb_dsn) as connection:
        await connection.run("BEGIN; SELECT 1; COMMIT")
        with move_on_after(0.05):
            await connection.run("SELECT SLEEP(1)")
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (auth, "scramble_native_password scramble_caching_sha2 sha2_rsa_encrypt ed25519_password"),
        (converters, "convert_date convert_datetime convert_timedelta"),
        (protocol, "FieldDescriptorPacket MysqlPacket parse_rows_from_buffer"),
        (errors, "MySQLError OperationalError raise_mysql_exception"),
        (CLIENT, "FOUND_ROWS MULTI_STATEMENTS DEPRECATE_EOF SSL CONNECT_ATTRS"),
        (SERVER_STATUS, "SERVER_STATUS_IN_TRANS SERVER_STATUS_NO_BACKSLASH_ESCAPES SERVER_MORE_RESULTS_EXISTS"),
        (CR, "CR_ERROR_FIRST CR_ERROR_LAST CR_MALFORMED_PACKET"),
        (FIELD_TYPE, "LONGLONG NEWDECIMAL JSON"),
    ],
)
def test_asyncmy_still_has_what_is_used_below_its_connection(owner: object, names: str) -> None:
    missing = [name for name in names.split() if not hasattr(owner, name)]
    assert not missing, f"asyncmy {version('asyncmy')} has no {missing}: storage/_asyncmy.py builds on it"


def test_asyncmy_s_parser_still_takes_what_it_is_given() -> None:
    row = b"\x05\x00\x00\x05" + b"\x0217" + b"\x01x"
    rows: list[tuple[Any, ...]] = []
    decoders = ((0, None, int), (1, "utf8", None))
    assert protocol.parse_rows_from_buffer(bytearray(row), 0, len(row), decoders, 5, rows, deprecate_eof=True) == (9, 6)
    assert rows == [(17, "x")]
