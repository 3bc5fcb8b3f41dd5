"""A worker whose connections are cut goes on by itself; one on trio never starts an asyncio loop."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import anyio
import pytest

from creche import Queue, Status, Worker

pytestmark = pytest.mark.anyio


async def test_a_busy_worker_survives_twenty_cuts_of_all_its_connections(postgresql_dsn: str) -> None:
    import psycopg

    queue = Queue(postgresql_dsn)
    runs: list[int] = []

    @queue.task("brief", max_attempts=30)
    async def brief(number: int) -> int:
        runs.append(number)
        await anyio.sleep(0.02)
        return number

    def cut() -> int:
        statement = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
            row = connection.execute(statement).fetchone()
            return row[0] if row else 0

    cuts: list[int] = []
    await queue.migrate()
    async with queue, Worker(queue, concurrency=8, lease=2, poll_interval=0.5):
        receipts = await queue.dispatch_many(brief.call(number) for number in range(1_500))
        for _ in range(20):
            await anyio.sleep(0.1)
            cuts.append(await anyio.to_thread.run_sync(cut))
        with anyio.fail_after(60):
            for number, receipt in enumerate(receipts):
                assert await receipt.wait() == number
        counts = {stats.queue_name: stats.counts for stats in await queue.stats()}
    assert counts == {"default": {Status.COMPLETED: 1_500}}
    assert set(runs) == set(range(1_500))
    assert sum(cuts) >= 20  # each cut met at least one connection, or the test shows nothing


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
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
