"""A worker whose connections are cut, and whose server is killed, goes on by itself; on trio it never starts an asyncio
loop.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from uuid import UUID

import anyio
import psycopg
import pymysql
import pytest

from creche import Queue, Status, Worker, events
from creche.errors import StorageUnavailable
from creche.testing.servers import PrivateServer, connect_mysql

pytestmark = pytest.mark.anyio

SERVERS = ["postgresql", "mariadb", "mysql"]


def cut_postgresql(dsn: str) -> int:
    statement = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement).fetchone()
        return row[0] if row else 0


def cut_mysql(dsn: str) -> int:
    cut = 0
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT DATABASE(), CONNECTION_ID()")
        database, own = cursor.fetchone() or ()
        cursor.execute("SHOW PROCESSLIST")
        for number in [row[0] for row in cursor.fetchall() if row[3] == database and row[0] != own]:
            with suppress(pymysql.OperationalError):  # gone already
                cursor.execute(f"KILL CONNECTION {number}")
                cut += 1
    return cut


CUT: dict[str, Callable[[str], int]] = {"postgresql": cut_postgresql, "mariadb": cut_mysql, "mysql": cut_mysql}


@pytest.mark.parametrize("engine", SERVERS)
async def test_a_busy_worker_survives_twenty_cuts_of_all_its_connections(
    engine: str, request: pytest.FixtureRequest
) -> None:
    dsn = request.getfixturevalue(f"{engine}_dsn")
    queue = Queue(dsn)
    runs: list[int] = []

    @queue.task("brief", max_attempts=30)
    async def brief(number: int) -> int:
        runs.append(number)
        await anyio.sleep(0.02)
        return number

    cuts: list[int] = []
    await queue.migrate()
    async with queue, Worker(queue, concurrency=8, lease=2, poll_interval=0.5):
        receipts = await queue.dispatch_many(brief.call(number) for number in range(1_500))
        for _ in range(20):
            await anyio.sleep(0.1)
            cuts.append(await anyio.to_thread.run_sync(CUT[engine], dsn))
        with anyio.fail_after(60):
            for number, receipt in enumerate(receipts):
                assert await receipt.wait() == number
        counts = {stats.queue_name: stats.counts for stats in (await queue.stats()).queues}
    assert counts == {"default": {Status.COMPLETED: 1_500}}
    assert set(runs) == set(range(1_500))
    assert sum(cuts) >= 20  # each cut met at least one connection, or the test shows nothing


@pytest.fixture(params=SERVERS)
def own_server(request: pytest.FixtureRequest) -> PrivateServer:
    found: PrivateServer = request.getfixturevalue(f"own_{request.param}")
    return found


class Told(events.Hooks):
    """How often each job's end was acknowledged, but for those that were given back; and whose leases were lost."""

    def __init__(self) -> None:
        self.acknowledged: Counter[UUID] = Counter()
        self.lost: set[UUID] = set()
        self._released: set[UUID] = set()

    def job_released(self, event: events.JobReleased) -> None:
        self._released.add(event.job_id)  # it was reserved ahead, and had to wait

    def job_lease_lost(self, event: events.JobLeaseLost) -> None:
        self._released.discard(event.job_id)
        self.lost.add(event.job_id)

    def job_acked(self, event: events.JobAcked) -> None:
        if event.job_id in self._released:
            self._released.discard(event.job_id)
        else:
            self.acknowledged[event.job_id] += 1


async def test_a_server_killed_under_load_costs_no_job_and_settles_none_twice(
    own_server: PrivateServer, own_dsn: str
) -> None:
    queue, producer = Queue(own_dsn), Queue(own_dsn)
    told = Told()
    acknowledged = told.acknowledged
    sent: list[UUID] = []
    over = anyio.Event()

    @queue.task("brief", max_attempts=30)
    async def brief(number: int) -> int:
        await anyio.sleep(0.005)
        return number

    async def produce(name: str) -> None:
        number = 0
        unsent = False
        while unsent or not over.is_set():
            unsent = True
            with suppress(StorageUnavailable):  # the key makes a second sending of the same job harmless
                receipt = await producer.dispatch("brief", {"number": number}, idempotency_key=f"{name}-{number}")
                sent.append(receipt.job_id)
                number, unsent = number + 1, False
            await anyio.sleep(0.002)

    await queue.migrate()
    async with queue, producer, Worker(queue, concurrency=8, lease=3, poll_interval=0.5, hooks=[told]):
        async with anyio.create_task_group() as producers:
            for name in ("a", "b", "c"):
                producers.start_soon(produce, name)
            for kills in range(1, 4):
                with anyio.fail_after(60):
                    while len(acknowledged) < 100 * kills:  # noqa: ASYNC110 - load, and not the clock, says when
                        await anyio.sleep(0.01)
                await anyio.to_thread.run_sync(own_server.kill)
                await anyio.to_thread.run_sync(own_server.start)
            over.set()
        with anyio.fail_after(60):
            while (await _counts(queue)).keys() - {Status.COMPLETED}:  # noqa: ASYNC110
                await anyio.sleep(0.1)
        counts = await _counts(queue)
    assert counts == {Status.COMPLETED: len(sent)}
    assert len(set(sent)) == len(sent)
    # Of an end that was accepted by a server killed right then, nobody may have been told before the lease was over.
    assert acknowledged.keys() <= set(sent)
    assert set(acknowledged.values()) == {1}
    assert set(sent) - acknowledged.keys() <= told.lost


async def _counts(queue: Queue) -> dict[Status, int]:
    return {status: jobs for stats in (await queue.stats()).queues for status, jobs in stats.counts.items() if jobs}


@pytest.mark.parametrize("engine", ["sqlite", *SERVERS])
def test_on_trio_no_asyncio_loop_is_ever_started(engine: str, request: pytest.FixtureRequest) -> None:
    dsn = request.getfixturevalue(f"{engine}_dsn")
    program = textwrap.dedent(
        """
        import asyncio, asyncio.base_events, asyncio.events, sys
        import anyio
        from creche import Queue, Worker

        def refuse(*_, **__):
            raise AssertionError("an asyncio loop was started under trio")

        asyncio.base_events.BaseEventLoop.__init__ = refuse
        asyncio.new_event_loop = asyncio.run = refuse
        asyncio.events.new_event_loop = asyncio.events.set_event_loop = refuse

        queue = Queue(sys.argv[1])

        @queue.task("async")
        async def in_the_loop(number: int) -> int:
            return number

        @queue.task("thread")
        def in_a_thread(number: int) -> int:
            return number

        async def main():
            await queue.migrate()
            async with queue, Worker(queue):
                a, b = await queue.dispatch_many([in_the_loop.call(1), in_a_thread.call(2)])
                print(await a.wait(20), await b.wait(20))

        anyio.run(main, backend="trio")
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, dsn], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1 2\n"), done.stderr
