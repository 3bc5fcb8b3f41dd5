"""What a storage on MySQL or MariaDB does when its server is cut, frozen, restarted or contended for: it answers, or
says so.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pymysql
import pytest
from anyio.abc import SocketAttribute, SocketStream
from pymysql.connections import Connection as PyMySQLConnection
from pymysql.cursors import Cursor

from creche._ids import new_job_id, new_nonce
from creche._job import Event, Failure, Insertion, Lease, NewJob, Retention, Settlement, Status
from creche.errors import StorageUnavailable
from creche.storage import _asyncmy
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._mysql_calls import bare
from creche.storage._mysql_literals import Expression, clock, render
from creche.storage._sql import load
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import ForeignServer, MariaDBServer, MySQLServer, connect_mysql
from databases import empty_database

pytestmark = pytest.mark.anyio

Server: TypeAlias = MariaDBServer | MySQLServer | ForeignServer
OwnServer: TypeAlias = MariaDBServer | MySQLServer
Raw: TypeAlias = "PyMySQLConnection[Cursor]"

SQL = {name: bare(text) for name, text in load("mysql").statements.items()}
T0 = datetime(2030, 1, 1, tzinfo=UTC)
PRINT = b"p" * 32
SOON = 15.0  # seconds: what takes longer hangs

# InnoDB tells of waits from a copy that it renews when nobody has read it for a tenth of a second.
LOOK_AGAIN = 0.15


def job(**options: Any) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", **options)


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(family: str, request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found: Server = request.getfixturevalue(f"{family}_server")
    return found


@pytest.fixture
async def dsn(server: Server) -> AsyncIterator[str]:
    """The DSN of a migrated, empty database."""
    with empty_database(server) as dsn:
        await MySQLStorage(dsn).migrate()
        yield dsn


@pytest.fixture
def own_server(family: str, request: pytest.FixtureRequest) -> OwnServer:
    found: OwnServer = request.getfixturevalue(f"own_{family}")
    return found


@pytest.fixture
async def storage(own_dsn: str) -> MySQLStorage:
    """A storage on a server of its own, migrated and not open yet."""
    await MySQLStorage(own_dsn).migrate()
    return MySQLStorage(own_dsn)


def ask(raw: Raw, query: str) -> Any:
    """Return what a query returned; no rows if it returned none."""
    with raw.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def sessions(raw: Raw) -> list[int]:
    """The connections of others to the same database."""
    ((database, own),) = ask(raw, "SELECT DATABASE(), CONNECTION_ID()")
    shown = ask(raw, "SHOW PROCESSLIST")
    return [number for number, _, _, name, *_ in shown if name == database and number != own]


def kill(raw: Raw, *connections: int) -> int:
    """Cut connections, the server's side first; return how many there were."""
    killed = 0
    for number in connections:
        with suppress(pymysql.OperationalError):  # gone already
            ask(raw, f"KILL CONNECTION {number}")
            killed += 1
    return killed


async def waiting(raw: Raw, *, but: int = 0) -> int:
    """Wait until a connection to the same database waits for a lock; return its number."""
    with anyio.fail_after(SOON):
        while True:
            found = ask(
                raw, "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
            )
            if there := {int(number) for (number,) in found}.intersection(sessions(raw)) - {but}:
                return there.pop()
            await anyio.sleep(LOOK_AGAIN)


def insert(raw: Raw, *jobs: NewJob) -> None:
    """Insert as a storage does, in a transaction that goes on."""
    values = Expression(", ".join(rows.job_row(job, clock(T0)) for job in jobs))
    ask(raw, render(SQL["insert"], {"jobs": values}))


async def taken(storage: MySQLStorage, **options: Any) -> Lease:
    """Insert a job and reserve it."""
    await storage.insert([job(**options)], now=T0)
    reservation = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce(), now=T0)
    return reservation.jobs[0].lease


# --- cut connections --------------------------------------------------------------------------------


async def test_twenty_cuts_of_all_connections_between_calls_cost_no_error(dsn: str) -> None:
    cut = 0
    async with MySQLStorage(dsn) as storage:
        with closing(connect_mysql(dsn)) as raw:
            for round_number in range(20):
                (insertion,) = await storage.insert([job()])
                cut += kill(raw, *sessions(raw))
                taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
                assert [job.id for job in taken.jobs] == [insertion.job_id], round_number
                cut += kill(raw, *sessions(raw))
                lease = taken.jobs[0].lease
                assert (await storage.extend([lease], 60)).held == {lease}
                settled = await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")])
                assert settled.accepted == {lease}
    assert cut >= 40


async def test_a_call_whose_connection_is_cut_while_it_waits_is_sent_again(dsn: str) -> None:
    first, second = job(fingerprint=PRINT), job(fingerprint=PRINT)
    answers: list[Insertion] = []

    async def dispatch(storage: MySQLStorage) -> None:
        answers.extend(await storage.insert([second], now=T0))

    with closing(connect_mysql(dsn, autocommit=False)) as winner, closing(connect_mysql(dsn)) as raw:
        insert(winner, first)
        async with MySQLStorage(dsn) as storage, anyio.create_task_group() as dispatching:
            dispatching.start_soon(dispatch, storage)
            number = await waiting(raw)
            kill(raw, number)
            await waiting(raw, but=number)  # it is back, on another connection
            winner.commit()
    assert [(answer.job_id, answer.inserted) for answer in answers] == [(first.id, False)]


async def test_calls_outlast_a_restart_of_the_server(own_server: OwnServer, storage: MySQLStorage) -> None:
    async with storage:
        before, meanwhile = job(), job()
        await storage.insert([before])
        await anyio.to_thread.run_sync(own_server.kill)
        async with anyio.create_task_group() as dispatching:
            dispatching.start_soon(storage.insert, [meanwhile])
            await anyio.to_thread.run_sync(own_server.start)
        assert (await storage.find([before.id, meanwhile.id])).keys() == {before.id, meanwhile.id}


async def test_a_server_that_is_gone_is_unavailable_in_time(own_server: OwnServer, own_dsn: str) -> None:
    storage = MySQLStorage(own_dsn, call_timeout=0.5)
    await storage.migrate()
    async with storage:
        await storage.stats()
        await anyio.to_thread.run_sync(own_server.stop)
        try:
            with anyio.fail_after(2), pytest.raises(StorageUnavailable, match=str(own_server.port)):
                await storage.insert([job()])
        finally:
            await anyio.to_thread.run_sync(own_server.start)
        with anyio.fail_after(SOON):  # it comes back by itself, once the pool has waited out its pause
            while True:
                with suppress(StorageUnavailable):
                    await storage.stats()
                    break


@contextmanager
def read_only(server: OwnServer) -> Iterator[None]:
    """As a primary becomes a replica. MySQL shuts out administrators too."""
    name = "read_only" if isinstance(server, MariaDBServer) else "super_read_only"
    with closing(connect_mysql(server.dsn())) as raw:
        ask(raw, f"SET GLOBAL {name} = ON")
        try:
            yield
        finally:
            ask(raw, "SET GLOBAL read_only = OFF")  # and the other with it


async def connection_number(storage: MySQLStorage) -> int:
    async def work(connection: Connection) -> int:
        return connection.thread_id

    return await storage._calls.run(work)


async def test_a_server_that_became_read_only_is_unavailable_and_its_connection_is_not_lent_again(
    own_server: OwnServer, own_dsn: str
) -> None:
    await MySQLStorage(own_dsn).migrate()
    with account(own_dsn, "SELECT, INSERT, UPDATE, DELETE") as plain:
        async with MySQLStorage(plain, pool_size=1) as storage:
            lease = await taken(storage)
            before = await connection_number(storage)
            with read_only(own_server):
                with anyio.fail_after(SOON), pytest.raises(StorageUnavailable, match="read-only"):
                    await storage.insert([job()])
                with anyio.fail_after(SOON), pytest.raises(StorageUnavailable, match="read-only"):
                    await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")])
                assert (await storage.find([lease.job_id])).keys() == {lease.job_id}  # reading goes on
            assert await connection_number(storage) > before + 2
            settled = await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")])
            assert settled.accepted == {lease}


@contextmanager
def account(dsn: str, privileges: str) -> Iterator[str]:
    """The DSN of an account that has these privileges in this database, and no others."""
    parts, name = urlsplit(dsn), f"plain_{new_job_id().hex[-12:]}"
    with closing(connect_mysql(dsn)) as raw:
        ask(raw, f"CREATE USER {name}@'%' IDENTIFIED BY 'pa55word'")
        ask(raw, f"GRANT {privileges} ON `{parts.path[1:]}`.* TO {name}@'%'")
        try:
            yield parts._replace(netloc=f"{name}:pa55word@{parts.hostname}:{parts.port or 3306}").geturl()
        finally:
            ask(raw, f"DROP USER {name}@'%'")


# --- servers that don't answer ----------------------------------------------------------------------


async def test_a_call_to_a_frozen_server_ends_in_time_and_can_be_sent_again(
    own_server: OwnServer, own_dsn: str
) -> None:
    new = job()
    await MySQLStorage(own_dsn).migrate()
    async with MySQLStorage(own_dsn, pool_size=1, call_timeout=0.3) as storage:
        await storage.stats()  # it is connected
        with own_server.frozen():
            began = anyio.current_time()
            with pytest.raises(StorageUnavailable, match="unknown"):
                await storage.insert([new])
            assert anyio.current_time() - began < 1.0
        await storage.stats()
        with own_server.frozen():  # several statements: the end of a transaction may take two seconds more
            began = anyio.current_time()
            with pytest.raises(StorageUnavailable):
                await storage.maintain(10, retention=Retention())
            assert anyio.current_time() - began < 3.0
        with own_server.frozen():  # nor does it let anybody in
            began = anyio.current_time()
            with pytest.raises(StorageUnavailable):
                await storage.stats()
            assert anyio.current_time() - began < 1.0
        await anyio.sleep(0.5)  # the pool waits a moment before it dials again
        assert [answer.inserted for answer in await storage.insert([new])] == [True]
        (stats,) = await storage.stats()
    assert stats.counts == {Status.PENDING: 1}


async def test_opening_what_swallows_everything_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        storage = MySQLStorage(f"mysql://me@127.0.0.1:{deaf.getsockname()[1]}/db", call_timeout=0.3)
        with anyio.fail_after(2), pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1"):
            async with storage:
                pytest.fail("nobody answered")


async def test_a_listener_s_sleep_is_not_ended_by_the_limit_on_statements(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_asyncmy, "GRACE", 0)
    async with MySQLStorage(dsn, call_timeout=1) as storage, storage.listen(["default"]) as listener:
        with anyio.fail_after(SOON):
            await listener.wait()  # it rings once when it has begun to sleep
        with anyio.move_on_after(1.3) as silence:
            await listener.wait()
    assert silence.cancelled_caught


# --- answers that are lost --------------------------------------------------------------------------


class Cutter:
    """A proxy before a server. When it is told to, it cuts its client off at the next answer to a certain statement,
    while the server goes on with whatever it was sent.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._parts = urlsplit(dsn)
        self._marker = b""
        self.cuts = 0

    def cut_after(self, marker: bytes) -> None:
        self._marker = marker

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Yield the DSN of the proxy; in the clear, for it has to read statements."""
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self._serve)
            place = (
                f"{self._parts.username}:{self._parts.password}@127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            )
            yield self._parts._replace(netloc=place, query="ssl_mode=disabled").geturl()
            tasks.cancel_scope.cancel()

    async def _serve(self, client: SocketStream) -> None:
        upstream = await anyio.connect_tcp(str(self._parts.hostname), self._parts.port or 3306)
        marked = False

        async def forward() -> None:
            nonlocal marked
            async for data in client:
                if self._marker and self._marker in data:
                    self._marker, marked = b"", True
                await upstream.send(data)

        async def answer() -> None:
            async for data in upstream:
                if marked:
                    self.cuts += 1
                    await client.aclose()
                    await anyio.sleep(0.5)
                    return
                await client.send(data)

        async def until_the_end(pipe: Callable[[], Awaitable[None]]) -> None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await pipe()
            if not marked:
                both.cancel_scope.cancel()

        async with client, upstream, anyio.create_task_group() as both:
            both.start_soon(until_the_end, forward)
            both.start_soon(until_the_end, answer)


@pytest.fixture
async def cut(own_dsn: str) -> AsyncIterator[tuple[Cutter, MySQLStorage]]:
    """An open storage behind a proxy."""
    await MySQLStorage(own_dsn).migrate()
    cutter = Cutter(own_dsn)
    async with cutter.running() as dsn, MySQLStorage(dsn, push=False) as storage:
        yield cutter, storage


async def test_a_dispatch_whose_answer_is_lost_is_sent_again_and_inserts_once(
    cut: tuple[Cutter, MySQLStorage],
) -> None:
    cutter, storage = cut
    for jobs in ([job()], [job(fingerprint=PRINT), job(idempotency_key="key"), job()]):
        cutter.cut_after(b"INSERT INTO creche_jobs")
        assert [answer.inserted for answer in await storage.insert(jobs, now=T0)] == [True] * len(jobs)
        assert (await storage.find([job.id for job in jobs])).keys() == {job.id for job in jobs}
    (stats,) = await storage.stats()
    assert (stats.counts, cutter.cuts) == ({Status.PENDING: 4}, 2)


@pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.RETRY, Event.RELEASE])
async def test_a_settle_whose_answer_is_lost_is_sent_again_and_takes_effect_once(
    cut: tuple[Cutter, MySQLStorage], event: Event
) -> None:
    cutter, storage = cut
    settlement = _settlement(await taken(storage), event)
    cutter.cut_after(b"START TRANSACTION")
    settled = await storage.settle([settlement], now=T0)
    assert settled.accepted == {settlement.lease}
    assert cutter.cuts == 1
    (record,) = (await storage.find([settlement.lease.job_id])).values()
    assert record.attempts == (0 if event is Event.RELEASE else 1)
    assert kept_errors(cutter.dsn) == (1 if settlement.error else 0)
    letters = await storage.dead_letters(10)
    assert [len(letter.errors) for letter in letters] == ([1] if event is Event.FAIL else [])


def kept_errors(dsn: str) -> int:
    with closing(connect_mysql(dsn)) as raw:
        ((errors,),) = ask(raw, "SELECT JSON_LENGTH(errors) FROM creche_jobs")
    return int(errors)


def _settlement(lease: Lease, event: Event) -> Settlement:
    error = Failure(type="ValueError", message="no", traceback="")
    match event:
        case Event.SUCCEED:
            return Settlement(lease=lease, event=event, result=b"1")
        case Event.FAIL:
            return Settlement(lease=lease, event=event, error=error)
        case Event.RETRY:
            return Settlement(lease=lease, event=event, error=error, delay=5)
        case _:
            return Settlement(lease=lease, event=event)


async def test_a_reserve_whose_answer_is_lost_takes_other_jobs_and_leaves_those_to_their_lease(
    cut: tuple[Cutter, MySQLStorage],
) -> None:
    cutter, storage = cut
    await storage.insert([job(), job()], now=T0)
    cutter.cut_after(b"nonce = 7")
    reservation = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=7, now=T0)
    assert (len(reservation.jobs), cutter.cuts) == (1, 1)
    (stats,) = await storage.stats()
    assert stats.counts == {Status.PROCESSING: 2}
    done = await storage.maintain(10, retention=Retention(), now=T0 + timedelta(seconds=60))
    assert done.recovered == 2


async def test_what_people_ask_for_can_lose_its_answer_too(cut: tuple[Cutter, MySQLStorage]) -> None:
    cutter, storage = cut
    new = job()
    await storage.insert([new], now=T0)
    cutter.cut_after(b"'cancelled'")
    assert await storage.cancel([new.id], now=T0) == {new.id: Status.CANCELLED}
    cutter.cut_after(b"SET attempts")
    assert await storage.retry([new.id], now=T0) == {new.id: Status.PENDING}
    lease = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1, now=T0)).jobs[0].lease
    cutter.cut_after(b"GREATEST")
    assert (await storage.extend([lease], 120, now=T0)).held == {lease}
    assert cutter.cuts == 3


async def test_upkeep_that_is_cut_off_in_the_middle_is_done_by_the_next_round(
    cut: tuple[Cutter, MySQLStorage],
) -> None:
    cutter, storage = cut
    lease = await taken(storage)
    cutter.cut_after(b"LeaseExpired")
    with anyio.fail_after(SOON):
        while True:  # the lost transaction's rows are passed over until the server has noticed
            await storage.maintain(10, retention=Retention(), now=T0 + timedelta(seconds=60))
            (record,) = (await storage.find([lease.job_id])).values()
            if record.status is Status.SCHEDULED:
                break
            await anyio.sleep(0.05)
    assert (kept_errors(cutter.dsn), cutter.cuts) == (1, 1)


# --- rivals -----------------------------------------------------------------------------------------

RIVAL = textwrap.dedent(
    """
    import sys, anyio
    from creche._ids import new_job_id
    from creche._job import NewJob
    from creche.storage.mysql import MySQLStorage

    async def main():
        answers = []

        async def ask():
            job = NewJob(id=new_job_id(), type="work", payload=b"{}", fingerprint=b"p" * 32)
            answers.extend(await storage.insert([job]))

        async with MySQLStorage(sys.argv[1]) as storage:
            sys.stdin.readline()
            async with anyio.create_task_group() as tasks:
                for _ in range(25):
                    tasks.start_soon(ask)
        for answer in answers:
            print(answer.job_id, answer.inserted)

    anyio.run(main, backend=sys.argv[2])
    """
)


def test_of_a_hundred_dispatches_of_one_fingerprint_in_four_processes_one_inserts(server: Server) -> None:
    with empty_database(server) as dsn:
        anyio.run(MySQLStorage(dsn).migrate)
        command = [sys.executable, "-W", "error", "-c", RIVAL, dsn]
        rivals = [
            subprocess.Popen([*command, backend], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for backend in ("asyncio", "trio") * 2
        ]
        for rival in rivals:
            assert rival.stdin is not None
            rival.stdin.write("go\n")
            rival.stdin.flush()
        answers = [line.split() for rival in rivals for line in rival.communicate(timeout=60)[0].splitlines()]
    assert len(answers) == 100
    assert len({job_id for job_id, _ in answers}) == 1
    assert [inserted for _, inserted in answers].count("True") == 1


async def test_of_twenty_dispatches_that_find_a_stale_result_one_inserts(dsn: str) -> None:
    answers: list[Insertion] = []
    async with MySQLStorage(dsn, pool_size=20) as storage:
        lease = await taken(storage, fingerprint=PRINT, result_ttl=60.0)
        await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")], now=T0)

        async def dispatch() -> None:
            answers.extend(await storage.insert([job(fingerprint=PRINT)], now=T0 + timedelta(seconds=60)))

        async with anyio.create_task_group() as dispatching:
            for _ in range(20):
                dispatching.start_soon(dispatch)
    assert [answer.inserted for answer in answers].count(True) == 1
    assert len({answer.job_id for answer in answers} - {lease.job_id}) == 1
    assert lease.job_id not in {answer.job_id for answer in answers}


async def test_batches_that_name_the_same_fingerprints_in_other_orders_all_get_their_answers(dsn: str) -> None:
    prints = [bytes([n]) * 32 for n in range(40)]
    answers: list[Insertion] = []
    async with MySQLStorage(dsn) as storage:

        async def dispatch(order: list[bytes]) -> None:
            answers.extend(await storage.insert([job(fingerprint=one) for one in order], now=T0))

        async with anyio.create_task_group() as dispatching:
            for turn in range(6):
                dispatching.start_soon(dispatch, prints if turn % 2 else prints[::-1])
    assert len(answers) == 240
    assert [answer.inserted for answer in answers].count(True) == 40
    assert len({answer.job_id for answer in answers}) == 40


async def test_a_deadlock_is_resolved_by_running_one_side_again(dsn: str) -> None:
    # Both kinds of names in one batch keep the order given, so that these two do wait for each other.
    batch = [job(idempotency_key="b"), job(idempotency_key="a"), job(fingerprint=PRINT)]
    answers: list[Insertion] = []

    async def dispatch(storage: MySQLStorage) -> None:
        answers.extend(await storage.insert(batch, now=T0))

    with closing(connect_mysql(dsn, autocommit=False)) as rival, closing(connect_mysql(dsn)) as raw:
        # InnoDB undoes whoever has written less.
        insert(rival, job(idempotency_key="a"), *(job() for _ in range(50)))
        async with MySQLStorage(dsn) as storage:
            async with anyio.create_task_group() as dispatching:
                dispatching.start_soon(dispatch, storage)
                await waiting(raw)
                with anyio.fail_after(SOON):
                    await anyio.to_thread.run_sync(partial(insert, rival, job(idempotency_key="b")))
                rival.commit()
            assert storage._calls.conflicts == 1
    assert [answer.inserted for answer in answers] == [False, False, True]


async def test_who_waited_too_long_for_a_lock_runs_the_whole_transaction_again(dsn: str) -> None:
    one, two = job(idempotency_key="one"), job(fingerprint=PRINT)
    answers: list[Insertion] = []

    async def dispatch(storage: MySQLStorage) -> None:
        answers.extend(await storage.insert([one, two], now=T0))

    storage = MySQLStorage(dsn, call_timeout=1)
    storage._calls.timeout = SOON  # type: ignore[misc]  # so that a lock's wait ends long before the call does
    with closing(connect_mysql(dsn, autocommit=False)) as rival, closing(connect_mysql(dsn)) as raw:
        insert(rival, rivals_job := job(fingerprint=PRINT))
        async with storage, anyio.create_task_group() as dispatching:
            dispatching.start_soon(dispatch, storage)
            await waiting(raw)
            with anyio.fail_after(SOON):
                while not storage._calls.conflicts:  # noqa: ASYNC110 - there is no event for it
                    await anyio.sleep(0.01)
            rival.commit()
    assert [(answer.job_id, answer.inserted) for answer in answers] == [(one.id, True), (rivals_job.id, False)]


CONFLICTS = {1020: "read before", 1180: "Group Replication", 1205: "a lock", 1213: "a deadlock", 3101: "certification"}


@pytest.mark.parametrize("code", CONFLICTS)
async def test_whatever_the_server_undoes_is_run_again(dsn: str, code: int) -> None:
    new = job(fingerprint=PRINT)
    with closing(connect_mysql(dsn)) as raw:
        ask(raw, f"SELECT GET_LOCK('trouble_{new.id.hex}', 0)")
        ask(
            raw,
            f"""
            CREATE TRIGGER trouble BEFORE INSERT ON creche_jobs FOR EACH ROW
                IF IS_USED_LOCK('trouble_{new.id.hex}') THEN SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}; END IF
            """,
        )
        async with MySQLStorage(dsn) as storage, anyio.create_task_group() as dispatching:
            dispatching.start_soon(storage.insert, [new])
            with anyio.fail_after(SOON):
                while storage._calls.conflicts < 2:  # noqa: ASYNC110 - there is no event for it
                    await anyio.sleep(0.001)
            ask(raw, "DO RELEASE_ALL_LOCKS()")
        async with MySQLStorage(dsn) as storage:
            assert (await storage.find([new.id])).keys() == {new.id}


async def test_conflicts_without_end_are_unavailability(dsn: str) -> None:
    with closing(connect_mysql(dsn)) as raw:
        trouble = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"
        ask(raw, f"CREATE TRIGGER trouble BEFORE INSERT ON creche_jobs FOR EACH ROW {trouble}")
        async with MySQLStorage(dsn, pool_size=1) as storage:
            before = await connection_number(storage)
            with anyio.fail_after(SOON), pytest.raises(StorageUnavailable, match="1213"):
                await storage.insert([job(fingerprint=PRINT)])
            assert await connection_number(storage) == before  # which is none the worse for it
        assert ask(raw, "SELECT COUNT(*) FROM creche_jobs") == ((0,),)


async def test_a_burial_that_meets_a_dead_letter_just_written_takes_its_place(
    own_server: OwnServer, own_dsn: str, storage: MySQLStorage
) -> None:
    # On a server with innodb_snapshot_isolation the statement may be refused: it can't see the row that is in its way.
    async with storage:
        lease = await taken(storage)
        failed = _settlement(lease, Event.FAIL)
        settled: list[Any] = []

        async def bury() -> None:
            settled.append(await storage.settle([failed], now=T0))

        with closing(connect_mysql(own_dsn, autocommit=False)) as rival, closing(connect_mysql(own_dsn)) as raw:
            ask(
                rival,
                "INSERT INTO creche_dead_letters SELECT id, queue_name, type, payload, priority, attempts,"
                " max_attempts, created_at, created_at, errors FROM creche_jobs",
            )
            rival.commit()
            ask(rival, "UPDATE creche_dead_letters SET attempts = 77")
            async with anyio.create_task_group() as burying:
                burying.start_soon(bury)
                await waiting(raw)
                rival.commit()
        assert settled[0].accepted == {lease}
        assert [(letter.attempts, len(letter.errors)) for letter in await storage.dead_letters(10)] == [(1, 1)]


async def test_a_settle_that_overtakes_its_own_first_sending_is_accepted(dsn: str) -> None:
    settled: list[Any] = []
    async with MySQLStorage(dsn) as storage:
        settlement = _settlement(await taken(storage), Event.SUCCEED)

        async def again() -> None:
            settled.append(await storage.settle([settlement], now=T0))

        with closing(connect_mysql(dsn, autocommit=False)) as first, closing(connect_mysql(dsn)) as raw:
            document = rows.joined(rows.settlement_elements([settlement]))
            ask(first, "SET sql_mode = CONCAT(@@sql_mode, ',NO_BACKSLASH_ESCAPES')")
            ask(
                first, render(SQL["settle"], {"settlements": document, "kept": 20, "followed": False, "now": clock(T0)})
            )
            async with anyio.create_task_group() as sending:
                sending.start_soon(again)
                await waiting(raw)
                first.commit()
    assert settled[0].accepted == {settlement.lease}
