"""A DSN that names several servers: which one is taken, for how long others are tried, and what becomes of a storage
when its server is no good any more.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import psycopg
import pytest
import trio
import trio.testing
from anyio import current_time, fail_after

from creche._ids import new_job_id, new_nonce
from creche._job import Lease, NewJob, Retention
from creche.abc import Storage
from creche.errors import ConfigurationError, OptionInvalid, StorageUnavailable
from creche.storage import _hosts, open_storage
from creche.storage._asyncmy import AsyncmyDriver
from creche.storage._hosts import AVOIDED, Reputation, shares
from creche.storage._mysql_address import parse_dsn
from creche.storage._mysql_calls import BEGIN, COMMIT, trips
from creche.storage._mysql_cluster import GALERA, GROUP, GROUP_OF_ONE_PRIMARY, Membership
from creche.storage._psycopg import PsycopgDriver
from creche.storage.mysql import MySQLStorage
from creche.storage.postgresql import PostgreSQLStorage
from creche.testing.servers import (
    ForeignServer,
    MariaDBServer,
    MySQLServer,
    PostgreSQLPair,
    PostgreSQLServer,
    connect_mysql,
    private_mariadb,
    private_mysql,
    private_postgresql_pair,
)
from missing import unless_missing
from sockets import closed_port

pytestmark = pytest.mark.anyio

Server: TypeAlias = PostgreSQLServer | MariaDBServer | MySQLServer | ForeignServer
Driver: TypeAlias = PsycopgDriver | AsyncmyDriver

T0 = datetime(2030, 1, 1, tzinfo=UTC)
SOON = 20.0  # seconds: what takes longer hangs


def job() -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}")


async def take(storage: Storage, now: datetime | None = None) -> Lease:
    """Dispatch one job, and reserve it for ten seconds."""
    await storage.insert([job()], now=now)
    (reserved,) = (await storage.reserve(["default"], 1, lease=10, worker="w", nonce=new_nonce(), now=now)).jobs
    return reserved.lease


# --- in turn, and for how long ------------------------------------------------------------------------


def test_who_failed_is_tried_last_and_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(_hosts, "monotonic", lambda: now)
    reputation = Reputation()

    def turns() -> str:
        return "".join(reputation.in_turn("abc", lambda host: host))

    assert turns() == "abc"
    reputation.failed("a")
    assert turns() == "bca"
    reputation.failed("c")
    assert turns() == "bac"
    reputation.answered("a")
    assert turns() == "abc"
    reputation.failed("a")
    now += AVOIDED
    assert turns() == "abc"


def test_each_has_an_equal_share_of_what_is_left() -> None:
    async def run() -> None:
        with trio.move_on_after(9):
            given = list[float]()
            for _, share in shares("abc"):
                given.append(share)
                await trio.sleep(share if len(given) == 1 else 1)
            assert given == [3, 3, 5]
            assert [share for _, share in shares("ab", longest=0.5)] == [0.5, 0.5]
            assert [share for _, share in shares("ab", together=2)] == [1, 2]
        assert [share for _, share in shares("ab", together=2)] == [1, 2]

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


# --- the DSN --------------------------------------------------------------------------------------------


def test_a_dsn_names_several_hosts() -> None:
    destination, options = parse_dsn("mariadb://u:a,b%40@h1,h2:3307,[::1]:3308,[::2]/db?pool_size=2&ssl_mode=disabled")
    assert [(host.host, host.port) for host in destination.hosts] == [
        ("h1", 3306),
        ("h2", 3307),
        ("::1", 3308),
        ("::2", 3306),
    ]
    assert {(host.user, host.password, host.database, host.ssl_mode) for host in destination.hosts} == {
        ("u", "a,b@", "db", "disabled")
    }
    assert options == {"pool_size": 2}
    assert destination.place == "h1:3306, h2:3307, [::1]:3308, [::2]:3306"
    assert (destination.writable, destination.shuffled) == (True, False)


@pytest.mark.parametrize(
    ("dsn", "writable", "shuffled"),
    [
        ("mysql://h/db", False, False),
        ("mysql://h/db?target_session_attrs=read-write", True, False),
        ("mysql://h1,h2/db?target_session_attrs=any&load_balance_hosts=random", False, True),
        ("mysql://h1,h2/db?load_balance_hosts=disable", True, False),
    ],
)
def test_libpq_s_words_say_which_one_is_wanted(dsn: str, writable: bool, shuffled: bool) -> None:
    destination, _ = parse_dsn(dsn)
    assert (destination.writable, destination.shuffled) == (writable, shuffled)


@pytest.mark.parametrize(
    ("rest", "named"),
    [
        ("h1,/db", "comma"),
        (",h2/db", "comma"),
        ("h1,h2:x/db", "port"),
        ("h1,h2/db?target_session_attrs=standby", "target_session_attrs='standby'"),
        ("h1,h2/db?load_balance_hosts=yes", "load_balance_hosts='yes'"),
        ("h1,h2/db?skew_allowance=-1", "skew_allowance"),
        ("h1,h2/db?skew_allowance=much", "skew_allowance"),
    ],
)
def test_hosts_without_sense_are_refused(rest: str, named: str) -> None:
    with pytest.raises((ConfigurationError, OptionInvalid), match=named):
        MySQLStorage(f"mysql://u:p@{rest}")


# --- connecting -----------------------------------------------------------------------------------------


@pytest.fixture(params=["postgresql", "mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """The DSN of an empty database, over TCP."""
    name = f"creche_{secrets.token_hex(6)}"
    yield server.create_database(name)
    server.drop_database(name)


def among(dsn: str, *others: str, last: bool = True, **options: object) -> str:
    """Return a DSN that names these places, too: before its own one, or behind it."""
    parts = urlsplit(dsn)
    account, _, own = parts.netloc.rpartition("@")
    hosts = ",".join([*others, own] if last else [own, *others])
    query = "&".join([*filter(None, [parts.query]), *(f"{name}={option}" for name, option in options.items())])
    return parts._replace(netloc=f"{account}@{hosts}", query=query).geturl()


def driver(dsn: str) -> Driver:
    return PsycopgDriver(dsn) if dsn.startswith("postgres") else AsyncmyDriver(parse_dsn(dsn)[0])


async def closed_after_connecting(driver: Any) -> None:
    await driver.close(await driver.connect())


async def test_the_first_host_that_answers_is_taken(dsn: str) -> None:
    with fail_after(SOON):
        await closed_after_connecting(driver(among(dsn, f"127.0.0.1:{closed_port()}", "no-such-host.invalid:1")))


async def test_when_none_answers_each_is_named(dsn: str, deaf: str) -> None:
    closed = f"127.0.0.1:{closed_port()}"
    dead = among(dsn, closed, deaf, connect_timeout=2)
    dead = dead.replace(f",{urlsplit(dsn).netloc.rpartition('@')[2]}", "")
    with fail_after(SOON), pytest.raises(StorageUnavailable) as caught:
        await driver(dead).connect()
    assert closed in str(caught.value)
    assert f"{deaf}: no answer" in str(caught.value)


async def test_a_deaf_host_has_its_share_of_the_caller_s_time_and_is_then_tried_last(dsn: str, deaf: str) -> None:
    several = driver(among(dsn, deaf))
    began = current_time()
    with fail_after(4):
        await closed_after_connecting(several)
    assert current_time() - began >= 1.9  # half of it, for there is one more
    for _ in range(3):
        began = current_time()
        with fail_after(4):
            await closed_after_connecting(several)
        assert current_time() - began < 1.9


async def test_a_storage_with_several_hosts_is_a_storage(dsn: str) -> None:
    several = open_storage(among(dsn, f"127.0.0.1:{closed_port()}", call_timeout=10))
    await several.migrate()
    async with several as storage:
        lease = await take(storage)
        assert (await storage.extend([lease], 10)).held == {lease}
        found = {finding.check: finding for finding in await storage.check()}
        assert found["reach"].severity == "ok", found["reach"]


# --- read-only is the wrong server: MySQL's family ------------------------------------------------------


@contextmanager
def account_on(*servers: MariaDBServer | MySQLServer) -> Iterator[str]:
    """The DSN of an account, and of a database, that are on each of these servers; it may do nothing special."""
    name = f"twin_{secrets.token_hex(4)}"
    for server in servers:
        server.create_database(name)
        with closing(connect_mysql(server.dsn(socket=True))) as raw, raw.cursor() as cursor:
            cursor.execute(f"CREATE USER {name} IDENTIFIED BY 'pa55word'")
            cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON {name}.* TO {name}")
    places = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    yield f"mysql://{name}:pa55word@{places}/{name}"
    for server in servers:
        with closing(connect_mysql(server.dsn(socket=True))) as raw, raw.cursor() as cursor:
            cursor.execute(f"DROP USER {name}")
        server.drop_database(name)


def alone(dsn: str, server: MariaDBServer | MySQLServer) -> str:
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{server.port}").geturl()


@contextmanager
def read_only(server: MariaDBServer | MySQLServer) -> Iterator[None]:
    with closing(connect_mysql(server.dsn(socket=True))) as raw, raw.cursor() as cursor:
        cursor.execute("SET GLOBAL read_only = ON")
        try:
            yield
        finally:
            cursor.execute("SET GLOBAL read_only = OFF")


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def twins(request: pytest.FixtureRequest) -> Iterator[tuple[MariaDBServer | MySQLServer, ...]]:
    """Two servers that know nothing of each other."""
    private = {"mariadb": private_mariadb, "mysql": private_mysql}[request.param]

    @contextmanager
    def both() -> Iterator[Any]:
        with ExitStack() as stack:
            yield tuple(stack.enter_context(private(own=True)) for _ in range(2))

    yield from unless_missing(both(), required=request.param == "mariadb")


async def place(storage: MySQLStorage) -> int:
    """Return the port of the server that a call goes to."""

    async def work(connection: Any) -> int:
        ((port,),) = (await connection.run("SELECT @@port"))[0].rows
        return int(port)

    return await storage._calls.run(work)


async def test_a_server_that_takes_no_writes_is_passed_over(twins: tuple[MariaDBServer | MySQLServer, ...]) -> None:
    one, two = twins
    with account_on(one, two) as dsn:
        single = alone(dsn, one)
        for each in twins:
            await MySQLStorage(alone(dsn, each)).migrate()
        async with MySQLStorage(dsn) as storage:
            assert await place(storage) == one.port
        with read_only(one):
            async with MySQLStorage(dsn) as storage:
                assert await place(storage) == two.port
            async with MySQLStorage(f"{dsn}?target_session_attrs=any") as storage:
                assert await place(storage) == one.port
            async with MySQLStorage(single) as storage:  # it is asked for by name
                assert await storage.stats() == []
            with fail_after(SOON), pytest.raises(StorageUnavailable, match="takes no writes: read_only"):
                await MySQLStorage(f"{single}?target_session_attrs=read-write&call_timeout=2").migrate()


async def test_a_server_that_becomes_read_only_is_left_at_once(twins: tuple[MariaDBServer | MySQLServer, ...]) -> None:
    one, two = twins
    with account_on(one, two) as dsn:
        for each in twins:
            await MySQLStorage(alone(dsn, each)).migrate()
        async with MySQLStorage(f"{dsn}?pool_size=8") as storage:
            async with anyio.create_task_group() as tasks:  # so that several connections lie there
                for _ in range(20):
                    tasks.start_soon(storage.stats)
            with read_only(one):
                for _ in range(3):
                    with fail_after(SOON):
                        await storage.insert([job()])  # and no error comes through
                assert await place(storage) == two.port
        with closing(connect_mysql(two.dsn(urlsplit(dsn).path[1:], socket=True))) as raw, raw.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM creche_jobs")
            assert cursor.fetchall() == ((3,),)


# --- the primary is gone: PostgreSQL --------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[PostgreSQLPair]:
    yield from unless_missing(private_postgresql_pair(synchronous=False))


@pytest.fixture
async def promotable(pair: PostgreSQLPair) -> AsyncIterator[PostgreSQLStorage]:
    """A storage, some connections of which lie there, on a primary that has a standby."""
    dsn = pair.create_database("q").removesuffix("?target_session_attrs=read-write")  # that is the default
    await PostgreSQLStorage(dsn).migrate()
    async with PostgreSQLStorage(f"{dsn}?call_timeout=2&pool_size=4") as storage:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(storage.stats)
        yield storage


async def port(storage: PostgreSQLStorage) -> int:
    async def work(connection: psycopg.AsyncConnection[Any]) -> int:
        return connection.info.port

    return await storage._calls.run(work)


async def tried_until_it_works(storage: Storage) -> int:
    """Dispatch a job; return how many calls failed before one succeeded."""
    new = job()
    for failures in range(20):
        try:
            await storage.insert([new])
        except StorageUnavailable:
            continue
        return failures
    pytest.fail("it never worked")


async def test_a_promoted_standby_is_found(pair: PostgreSQLPair, promotable: PostgreSQLStorage) -> None:
    assert await port(promotable) == pair.primary.port
    pair.primary.kill()
    await anyio.to_thread.run_sync(pair.promote)
    with fail_after(SOON):
        await tried_until_it_works(promotable)
    assert await port(promotable) == pair.primary.port
    # The old one comes back as the standby, and stands first in the DSN: it is not taken for the primary.
    await anyio.to_thread.run_sync(pair.rejoin)
    async with PostgreSQLStorage(promotable._driver.dsn) as another:
        assert await port(another) == pair.primary.port


async def test_a_frozen_primary_costs_one_call_and_not_one_for_each_connection(
    pair: PostgreSQLPair, promotable: PostgreSQLStorage
) -> None:
    frozen = pair.primary
    with frozen.frozen():
        await anyio.to_thread.run_sync(pair.promote)
        with fail_after(SOON):
            assert await tried_until_it_works(promotable) == 1
            assert await port(promotable) == pair.primary.port != frozen.port
            began = current_time()
            assert [await tried_until_it_works(promotable) for _ in range(5)] == [0] * 5
        assert current_time() - began < 2
        frozen.kill()  # or two would take writes


# --- several clocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "allowance"), [({}, 0), ({"skew_allowance": 3}, 3)])
async def test_a_lease_is_taken_back_when_the_clocks_can_differ_no_more(
    dsn: str, options: Mapping[str, int], allowance: int
) -> None:
    await open_storage(dsn).migrate()
    own = "&".join(f"{name}={value}" for name, value in options.items())
    async with open_storage(f"{dsn}?{own}" if own else dsn) as storage:
        await take(storage, T0)
        run_out = T0 + timedelta(seconds=10 + allowance)
        early = await storage.maintain(10, retention=Retention(), now=run_out - timedelta(seconds=1))
        assert early.recovered == 0
        assert early.next_expiry_in == pytest.approx(1)
        assert (await storage.maintain(10, retention=Retention(), now=run_out)).recovered == 1


async def test_with_several_hosts_two_seconds_are_allowed_for(dsn: str) -> None:
    several = among(dsn, f"127.0.0.1:{closed_port()}", last=False)
    await open_storage(several).migrate()
    async with open_storage(several) as storage:
        await take(storage, T0)
        for late, recovered in ((1, 0), (2, 1)):
            now = T0 + timedelta(seconds=10 + late)
            assert (await storage.maintain(10, retention=Retention(), now=now)).recovered == recovered


# --- what a server says of its cluster ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"read_only": "OFF", "innodb_read_only": "OFF"}, Membership()),
        ({"read_only": "ON", "super_read_only": "OFF"}, Membership(read_only="read_only")),
        ({"read_only": "ON", "super_read_only": "ON"}, Membership(read_only="super_read_only")),
        ({"wsrep_on": "OFF", "wsrep_provider": "none"}, Membership()),
        ({"wsrep_on": "ON", "wsrep_provider": "none"}, Membership()),
        (
            {"wsrep_on": "ON", "wsrep_provider": "/lib.so", "read_only": "OFF"},
            Membership(causal=GALERA, apart=True, several_writers=True),
        ),
        ({"group_replication_single_primary_mode": "OFF"}, Membership(causal=GROUP, several_writers=True)),
        (
            {"group_replication_single_primary_mode": "ON", "super_read_only": "ON"},
            Membership(causal=GROUP_OF_ONE_PRIMARY, read_only="super_read_only"),
        ),
    ],
)
def test_a_server_says_how_it_stands_among_others(said: Mapping[str, str], expected: Membership) -> None:
    assert Membership.told(said) == expected


def test_statements_of_a_transaction_travel_together_or_each_alone() -> None:
    statements = [BEGIN, "one", "two", COMMIT]
    assert [*trips(statements, 1 << 20)] == [statements]
    assert [*trips(statements, 1 << 20, apart=True)] == [[BEGIN, "one"], ["two"], [COMMIT]]
