"""What a storage on PostgreSQL does when its server is cut, frozen, restarted or contended for: answers, or says so."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest

from creche._ids import new_job_id, new_nonce
from creche._job import Event, Insertion, NewJob, Retention, Settlement, Status
from creche.errors import StorageUnavailable
from creche.storage._postgresql_calls import bare
from creche.storage._postgresql_documents import settlements_document
from creche.storage._sql import load
from creche.storage.postgresql import PostgreSQLStorage
from creche.testing.servers import ForeignServer, PostgreSQLServer

pytestmark = pytest.mark.anyio

SQL = {name: bare(text) for name, text in load("postgresql").statements.items()}
T0 = datetime(2030, 1, 1, tzinfo=UTC)
PRINT = b"p" * 32
SOON = 10.0  # seconds: what takes longer hangs
OTHERS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def job(**options: Any) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", **options)


@pytest.fixture
async def dsn(postgresql_dsn: str) -> str:
    """The DSN of a migrated, empty schema."""
    await PostgreSQLStorage(postgresql_dsn).migrate()
    return postgresql_dsn


# --- cut connections --------------------------------------------------------------------------------


async def test_twenty_cuts_of_all_connections_between_calls_cost_no_error(dsn: str) -> None:
    cut = 0
    async with PostgreSQLStorage(dsn) as storage:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for round_number in range(20):
                (insertion,) = await storage.insert([job()])
                cut += connection.execute(OTHERS).fetchone()[0]  # type: ignore[index]  # there is a row
                taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
                assert [job.id for job in taken.jobs] == [insertion.job_id], round_number
                cut += connection.execute(OTHERS).fetchone()[0]  # type: ignore[index]
                lease = taken.jobs[0].lease
                assert (await storage.extend([lease], 60)).held == {lease}
                settled = await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")])
                assert settled.accepted == {lease}
    assert cut >= 40


async def test_a_call_whose_connection_is_cut_while_it_waits_is_sent_again(dsn: str) -> None:
    first = job(fingerprint=PRINT)
    second = job(fingerprint=PRINT)
    answers: list[Insertion] = []

    async def ask(storage: PostgreSQLStorage) -> None:
        answers.extend(await storage.insert([second], now=T0))

    with psycopg.connect(dsn) as winner, psycopg.connect(dsn, autocommit=True) as connection:
        winner.execute(
            "INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, max_attempts, available_at,"
            " fingerprint, single_flight, created_at, updated_at)"
            " VALUES (%s, 'default', 'work', '{}', 'pending', 0, 3, now(), %s, true, now(), now())",
            [first.id, PRINT],
        )
        async with PostgreSQLStorage(dsn) as storage, anyio.create_task_group() as asking:
            asking.start_soon(ask, storage)
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            pid = await _answer(connection, waiting)
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
            await _answer(connection, f"{waiting} AND pid <> {pid}")  # it is back, on another connection
            winner.commit()
    assert [(answer.job_id, answer.inserted) for answer in answers] == [(first.id, False)]


async def _answer(connection: psycopg.Connection[Any], query: str) -> Any:
    with anyio.fail_after(SOON):
        while not (rows := connection.execute(query.encode()).fetchall()):  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.01)
    return rows[0][0]


@pytest.fixture
def own_server(own_postgresql: PostgreSQLServer) -> PostgreSQLServer:
    return own_postgresql


async def test_calls_outlast_a_restart_of_the_server(own_server: PostgreSQLServer) -> None:
    storage = PostgreSQLStorage(own_server.dsn())
    await storage.migrate()
    async with storage:
        before, meanwhile = job(), job()
        await storage.insert([before])
        await anyio.to_thread.run_sync(own_server.stop)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(storage.insert, [meanwhile])
            await anyio.to_thread.run_sync(own_server.start)
        assert (await storage.find([before.id, meanwhile.id])).keys() == {before.id, meanwhile.id}


async def test_a_server_that_is_gone_is_unavailable_in_time(own_server: PostgreSQLServer) -> None:
    storage = PostgreSQLStorage(own_server.dsn(), call_timeout=0.5)
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


# --- servers that don't answer ----------------------------------------------------------------------


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _backend(storage: PostgreSQLStorage) -> int:
    async def work(connection: Any) -> int:
        return int((await (await connection.execute("SELECT pg_backend_pid()")).fetchone())[0])

    return await storage._calls.run(work)


async def test_a_call_to_a_frozen_server_ends_in_time_and_can_be_sent_again(
    postgresql_server: PostgreSQLServer | ForeignServer, dsn: str
) -> None:
    if not postgresql_server.owned:
        pytest.skip("freezes a process of the server, which must be on this machine")
    new = job()
    async with PostgreSQLStorage(dsn, pool_size=1, call_timeout=0.3) as storage:
        with frozen(await _backend(storage)):
            began = anyio.current_time()
            with anyio.fail_after(SOON), pytest.raises(StorageUnavailable, match="unknown"):
                await storage.insert([new])
            assert anyio.current_time() - began < 1.0
        with frozen(await _backend(storage)):  # several statements: the end of a transaction may take two seconds more
            began = anyio.current_time()
            with pytest.raises(StorageUnavailable):
                await storage.maintain(10, retention=Retention())
            assert anyio.current_time() - began < 3.0
        assert [answer.inserted for answer in await storage.insert([new])] == [True]
        (stats,) = await storage.stats()
    assert stats.counts == {Status.PENDING: 1}


async def test_opening_what_swallows_everything_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        storage = PostgreSQLStorage(f"postgresql://me@127.0.0.1:{deaf.getsockname()[1]}/db", call_timeout=0.3)
        with anyio.fail_after(2), pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1"):
            async with storage:
                pytest.fail("nobody answered")


# --- rivals -----------------------------------------------------------------------------------------

RIVAL = textwrap.dedent(
    """
    import sys, anyio
    from creche._ids import new_job_id
    from creche._job import NewJob
    from creche.storage.postgresql import PostgreSQLStorage

    async def main():
        answers = []

        async def ask():
            job = NewJob(id=new_job_id(), type="work", payload=b"{}", fingerprint=b"p" * 32)
            answers.extend(await storage.insert([job]))

        async with PostgreSQLStorage(sys.argv[1]) as storage:
            sys.stdin.readline()
            async with anyio.create_task_group() as tasks:
                for _ in range(25):
                    tasks.start_soon(ask)
        for answer in answers:
            print(answer.job_id, answer.inserted)

    anyio.run(main, backend=sys.argv[2])
    """
)


def test_of_a_hundred_dispatches_of_one_fingerprint_in_four_processes_one_inserts(postgresql_dsn: str) -> None:
    anyio.run(PostgreSQLStorage(postgresql_dsn).migrate)
    command = [sys.executable, "-W", "error", "-c", RIVAL, postgresql_dsn]
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
    async with PostgreSQLStorage(dsn, pool_size=20) as storage:
        old = job(fingerprint=PRINT, result_ttl=60.0)
        await storage.insert([old], now=T0)
        taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1, now=T0)
        await storage.settle([Settlement(lease=taken.jobs[0].lease, event=Event.SUCCEED, result=b"1")], now=T0)

        async def ask() -> None:
            answers.extend(await storage.insert([job(fingerprint=PRINT)], now=T0 + timedelta(seconds=60)))

        async with anyio.create_task_group() as asking:
            for _ in range(20):
                asking.start_soon(ask)
    assert [answer.inserted for answer in answers].count(True) == 1
    assert len({answer.job_id for answer in answers} - {old.id}) == 1
    assert old.id not in {answer.job_id for answer in answers}


async def test_batches_that_name_the_same_fingerprints_in_other_orders_all_get_their_answers(dsn: str) -> None:
    prints = [bytes([n]) * 32 for n in range(40)]
    answers: list[Insertion] = []
    async with PostgreSQLStorage(dsn) as storage:

        async def ask(order: list[bytes]) -> None:
            answers.extend(await storage.insert([job(fingerprint=one) for one in order], now=T0))

        async with anyio.create_task_group() as asking:
            for turn in range(6):
                asking.start_soon(ask, prints if turn % 2 else prints[::-1])
    assert len(answers) == 240
    assert [answer.inserted for answer in answers].count(True) == 40
    assert len({answer.job_id for answer in answers}) == 40


async def test_a_deadlock_is_resolved_by_running_one_side_again(dsn: str) -> None:
    # Both kinds of names in one batch keep the order given, so that these two do wait for each other.
    one, two = job(idempotency_key="one"), job(fingerprint=PRINT)
    answers: list[Insertion] = []

    async def ask(storage: PostgreSQLStorage, *jobs: NewJob) -> None:
        answers.extend(await storage.insert(jobs, now=T0))

    with psycopg.connect(dsn) as rival, psycopg.connect(dsn, autocommit=True) as watcher:
        rival.execute("SET deadlock_timeout = '10s'")  # so that it is the storage's side that is undone
        rival.execute(*_insert(job(fingerprint=PRINT)))
        async with PostgreSQLStorage(dsn) as storage, anyio.create_task_group() as asking:
            asking.start_soon(ask, storage, one, two)
            await _answer(watcher, "SELECT 1 FROM pg_locks WHERE NOT granted")
            with anyio.fail_after(SOON):
                await anyio.to_thread.run_sync(lambda: rival.execute(*_insert(job(idempotency_key="one"))))
            rival.commit()
    assert sorted(answer.inserted for answer in answers) == [False, False]


def _insert(new: NewJob) -> tuple[bytes, dict[str, Any]]:
    from creche.storage._postgresql_documents import jobs_document

    return SQL["insert"], {"jobs": jobs_document([new]), "now": T0, "horizon": 30.0}


async def test_a_settle_that_overtakes_its_own_first_sending_is_accepted(dsn: str) -> None:
    settled: list[Any] = []
    async with PostgreSQLStorage(dsn) as storage:
        await storage.insert([job()], now=T0)
        taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1, now=T0)
        settlement = Settlement(lease=taken.jobs[0].lease, event=Event.SUCCEED, result=b"1")

        async def again() -> None:
            settled.append(await storage.settle([settlement], now=T0))

        with psycopg.connect(dsn) as first, psycopg.connect(dsn, autocommit=True) as watcher:
            document = settlements_document([settlement])
            first.execute(SQL["settle"], {"settlements": document, "kept": 20, "horizon": 30.0, "now": T0})
            async with anyio.create_task_group() as sending:
                sending.start_soon(again)
                await _answer(watcher, "SELECT 1 FROM pg_locks WHERE NOT granted")
                first.commit()
    assert settled[0].accepted == {settlement.lease}
