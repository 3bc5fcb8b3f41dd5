"""The pool: nothing leaks, nothing dirty is lent, and a server that is down is not hammered."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import anyio
import anyio.lowlevel
import psycopg
import pytest
import trio.testing
from anyio import current_time, move_on_after

from creche.errors import StorageUnavailable
from creche.storage import _pool
from creche.storage._calls import Calls
from creche.storage._pool import Pool
from creche.storage._psycopg import Connection, PsycopgDriver, translated
from creche.testing.servers import ForeignServer, PostgreSQLServer, private_postgresql
from toys import Toy, ToyDriver, assert_whole

pytestmark = pytest.mark.anyio


@pytest.fixture
def driver() -> ToyDriver:
    return ToyDriver()


async def test_a_connection_is_lent_again_and_never_to_two_at_once(driver: ToyDriver) -> None:
    pool = Pool(driver, size=2)
    async with pool.acquire() as first, pool.acquire() as second:
        assert first is not second
        with pytest.raises(StorageUnavailable, match="all 2 connections are in use"):
            await pool.acquire(timeout=0.01).__aenter__()
    async with pool.acquire() as again:
        assert again is first
    assert pool.stats == _pool.PoolStats(connects=2)
    await assert_whole(pool, 2)
    await pool.aclose()
    assert driver.open == 0


async def test_a_warm_checkout_takes_no_turn_of_the_event_loop_and_sees_a_cancellation(driver: ToyDriver) -> None:
    pool = Pool(driver)
    async with pool.acquire():
        pass
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await anyio.lowlevel.checkpoint()
        before = turns
        async with pool.acquire():
            assert turns == before
        assert turns == before
        tasks.cancel_scope.cancel()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with pool.acquire():
            pytest.fail("a cancelled checkout got a connection")
    await assert_whole(pool, 5)


@pytest.mark.parametrize("fault", ["dirty", "broken"])
async def test_what_comes_back_dirty_or_broken_is_closed(driver: ToyDriver, fault: str) -> None:
    pool = Pool(driver)
    async with pool.acquire() as first:
        setattr(first, fault, True)
    assert first.closed is True
    async with pool.acquire() as second:
        assert second is not first
    setattr(second, fault, True)
    async with pool.acquire() as third:
        assert third is not second
    assert second.closed
    assert pool.stats.discarded == 2


async def test_an_error_keeps_a_clean_connection_and_a_cancellation_does_not(driver: ToyDriver) -> None:
    pool = Pool(driver)
    with pytest.raises(ZeroDivisionError):
        async with pool.acquire() as first:
            raise ZeroDivisionError
    assert driver.open == 1
    with move_on_after(0.01):
        async with pool.acquire() as again:
            await anyio.sleep_forever()
    assert again is first
    assert driver.open == 0
    with pytest.raises(KeyboardInterrupt):
        async with pool.acquire():
            raise KeyboardInterrupt
    assert driver.open == 0
    await assert_whole(pool, 5)


async def test_the_old_and_the_long_idle_are_replaced(driver: ToyDriver) -> None:
    pool = Pool(driver, max_lifetime=0.05)
    async with pool.acquire() as first:
        await anyio.sleep(0.06)
    async with pool.acquire() as second:
        assert first.closed
    pool = Pool(driver, max_idle=0.05)
    async with pool.acquire() as idle, pool.acquire() as busy:
        pass
    await anyio.sleep(0.06)
    async with pool.acquire() as fresh:
        assert fresh not in {first, second, idle, busy}
    assert idle.closed
    assert busy.closed


async def test_what_lies_beside_a_connection_whose_server_failed_is_not_lent_again(driver: ToyDriver) -> None:
    pool = Pool(driver)
    async with pool.acquire() as good:
        async with pool.acquire() as idle:
            pass
        pool.distrust()
    async with pool.acquire() as again, pool.acquire() as fresh:
        assert again is good  # it has been in use since, to the satisfaction of its user
        assert fresh is not idle
    assert idle.closed
    await assert_whole(pool, 5)


async def test_random_cancellation_leaks_no_slot_and_no_connection() -> None:
    driver, luck = ToyDriver(delay=0.001), random.Random(7)
    pool = Pool(driver, size=5)

    async def use() -> None:
        await anyio.sleep(luck.uniform(0, 0.05))
        with move_on_after(luck.uniform(0, 0.03)):
            async with pool.acquire() as connection:
                assert not connection.dirty
                connection.dirty = True
                await anyio.sleep(luck.uniform(0, 0.005))
                connection.dirty = luck.random() < 0.2

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(use)
    assert driver.open <= 5
    assert pool.stats.connects == len(driver.made)
    assert driver.open == pool.stats.connects - pool.stats.discarded
    await assert_whole(pool, 5)
    await pool.aclose()
    assert driver.open == 0


async def test_a_cancellation_at_every_await_of_a_checkout_leaks_nothing() -> None:
    """The checkout is cancelled after each number of turns of the event loop, from none until it succeeds."""
    for turns in range(12):
        driver = ToyDriver()
        pool = Pool(driver, size=1)
        async with anyio.create_task_group() as tasks:

            async def use(pool: Pool[Toy] = pool) -> None:
                async with pool.acquire():
                    await anyio.lowlevel.checkpoint()

            tasks.start_soon(use)
            tasks.start_soon(use)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert driver.open <= 1
        await assert_whole(pool, 1)
        await pool.aclose()
        assert driver.open == 0


def test_a_server_that_is_down_for_a_minute_is_asked_at_most_twenty_times() -> None:
    driver = ToyDriver(down=True)

    async def outage() -> None:
        pool = Pool(driver, timeout=1000)
        async with trio.open_nursery() as nursery:

            async def want() -> None:
                async with pool.acquire():
                    pass

            for _ in range(50):
                nursery.start_soon(want)
            await trio.sleep(60)
            assert driver.connects <= 20
            driver.down, begin = False, trio.current_time()
        assert trio.current_time() - begin <= 5

    trio.run(outage, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_deaf_server_is_not_hammered_by_impatient_callers() -> None:
    driver = ToyDriver(delay=1e6)

    async def outage() -> None:
        pool = Pool(driver, timeout=2)
        with trio.move_on_after(60):
            while True:
                with pytest.raises(StorageUnavailable, match="did not answer"):
                    await pool.acquire().__aenter__()

    trio.run(outage, clock=trio.testing.MockClock(autojump_threshold=0))
    assert driver.connects <= 20


class CallableToys(ToyDriver):
    """A server that can be called."""

    server = "Toy"

    def translated(self) -> AbstractContextManager[None]:
        return nullcontext()

    def drop(self, connection: Toy) -> None:
        connection.closed = True


@pytest.mark.parametrize("offered", [5, 50, 500])
def test_who_asks_for_more_than_there_is_gets_as_much_as_there_is(offered: int) -> None:
    """Calls that queue for long and are cut off in the middle of an answer would cost their connection, too."""
    driver, answers = CallableToys(delay=0.2), 0

    async def work(connection: Toy) -> None:
        connection.dirty = True
        await anyio.sleep(0.2)  # two connections: ten calls a second
        connection.dirty = False

    async def call(calls: Calls[Toy]) -> None:
        nonlocal answers
        with suppress(StorageUnavailable):
            await calls.run(work)
            answers += 1

    async def rush() -> None:
        calls = Calls(driver, pool_size=2, timeout=1)
        calls.open()
        async with trio.open_nursery() as nursery:
            for _ in range(20 * offered):
                nursery.start_soon(call, calls)
                await trio.sleep(1 / offered)

    trio.run(rush, clock=trio.testing.MockClock(autojump_threshold=0))
    assert answers >= 0.9 * 20 * min(offered, 10)
    assert driver.connects == 2


@pytest.mark.parametrize(("callers", "timeout", "connect"), [(70, 2.7, 0.3), (200, 9.0, 0.3), (200, 2.7, 0.1)])
def test_a_crowd_of_callers_is_served_when_the_server_is_back_though_each_is_short_of_time(
    callers: int, timeout: float, connect: float
) -> None:
    driver = ToyDriver(down=True, delay=connect)
    served: list[float] = []

    async def want(pool: Pool[Toy]) -> None:
        while True:
            try:
                async with pool.acquire(timeout):
                    await trio.sleep(0.01)
                    served.append(trio.current_time())
                    return
            except StorageUnavailable:
                await trio.sleep(0.1)

    async def outage() -> None:
        pool = Pool(driver, size=5)
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(want, pool)
                await trio.sleep(0.05)  # as the queue grows, its head has less and less time left
            await trio.sleep(10)
            driver.down, begin = False, trio.current_time()
            nursery.cancel_scope.deadline = begin + 10
        assert len(served) == callers
        assert driver.connects <= 30

    trio.run(outage, clock=trio.testing.MockClock(autojump_threshold=0))


def test_whoever_has_too_little_time_for_a_connect_leaves_it_to_the_next() -> None:
    driver = ToyDriver(delay=0.2)

    async def main() -> None:
        pool = Pool(driver, size=1)
        async with trio.open_nursery() as nursery:

            async def late() -> None:
                began = trio.current_time()
                with pytest.raises(StorageUnavailable):
                    await pool.acquire(timeout=0.3).__aenter__()
                assert trio.current_time() - began == pytest.approx(0.3)

            async def in_time() -> None:
                async with pool.acquire(timeout=1):
                    pass

            async with pool.acquire() as connection:
                connection.broken = True
                nursery.start_soon(late)
                await trio.sleep(0.1)
                nursery.start_soon(in_time)
                await trio.sleep(0.1)  # now the one has 0.1 s left, and the other 0.9
        assert driver.connects == 2

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_who_queues_behind_those_that_wait_for_an_absent_server_waits_as_long_as_they_do() -> None:
    driver = CallableToys(down=True)
    pool = Pool(driver, size=1)

    async def wait_for_it() -> None:
        async with pool.acquire(10, queueing=0.01):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_it)
        with anyio.fail_after(5):
            while not pool.stats.connect_errors:  # noqa: ASYNC110 - it tells nobody
                await anyio.sleep(0.01)
        tasks.start_soon(wait_for_it)
        await anyio.sleep(0.1)
        driver.down = False
    assert pool.stats.connects == 1


async def test_no_connection_in_time_is_chained_from_the_last_connect() -> None:
    pool = Pool(ToyDriver(down=True), timeout=0.1)
    began = current_time()
    with pytest.raises(StorageUnavailable, match=r"no connection in 0.1 s: nobody home") as caught:
        await pool.acquire().__aenter__()
    assert current_time() - began < 1
    assert str(caught.value.__cause__) == "nobody home"
    assert pool.stats.connect_errors == 1


async def test_an_error_that_no_second_try_can_mend_is_raised_at_once(
    driver: ToyDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: ToyDriver) -> Toy:
        raise PermissionError

    pool = Pool(driver)
    with monkeypatch.context() as patched:
        patched.setattr(ToyDriver, "connect", refuse)
        with pytest.raises(PermissionError):
            await pool.acquire().__aenter__()
    await assert_whole(pool, 5)


async def test_a_closed_pool_lends_nothing_and_closes_what_comes_back(driver: ToyDriver) -> None:
    pool = Pool(driver, size=1)
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(StorageUnavailable, match="closed"):
                await pool.acquire().__aenter__()

        async with pool.acquire() as lent:
            tasks.start_soon(wait)
            await anyio.sleep(0.01)
            await pool.aclose()
            assert not lent.closed
    assert lent.closed
    await pool.aclose()


# --- on PostgreSQL ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dsn(postgresql_server: PostgreSQLServer | ForeignServer) -> Iterator[str]:
    yield postgresql_server.create_database("creche_pool")
    postgresql_server.drop_database("creche_pool")


async def pid(connection: Connection[tuple[Any, ...]]) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row
    return int(row[0])


async def test_a_connection_in_a_transaction_is_never_lent(dsn: str) -> None:
    pool = Pool(PsycopgDriver(dsn))
    for statement in ("BEGIN", "BEGIN; SELECT 1/0"):
        async with pool.acquire() as connection:
            with suppress(psycopg.errors.DivisionByZero):
                await connection.execute(statement)
            assert connection.info.transaction_status != 0
        assert connection.closed
    async with pool.acquire() as connection:
        assert connection.info.transaction_status == 0
    await pool.aclose()
    assert connection.closed


async def test_a_terminated_session_is_replaced_before_anyone_notices(dsn: str) -> None:
    pool = Pool(PsycopgDriver(dsn))
    async with pool.acquire() as operator:
        async with pool.acquire() as victim:
            lost = await pid(victim)
        await operator.execute("SELECT pg_terminate_backend(%s, 5000)", [lost])
        async with pool.acquire() as connection:
            assert await pid(connection) != lost
        async with pool.acquire() as victim:
            await operator.execute("SELECT pg_terminate_backend(%s, 5000)", [await pid(victim)])
            with pytest.raises(StorageUnavailable), translated():
                await victim.execute("SELECT 1")
        async with pool.acquire() as connection:
            await pid(connection)
    assert pool.stats.discarded == 2
    await pool.aclose()


async def test_two_hundred_tasks_on_five_connections_with_random_cancellation(dsn: str) -> None:
    pool, luck, answers = Pool(PsycopgDriver(dsn), size=5), random.Random(11), 0

    async def use() -> None:
        nonlocal answers
        with move_on_after(luck.uniform(0.05, 0.5)):
            async with pool.acquire() as connection:
                assert connection.info.transaction_status == 0
                async with connection.transaction():
                    await connection.execute("SELECT pg_sleep(%s)", [luck.uniform(0, 0.02)])
                answers += 1

    async with pool.acquire():
        pass  # to connect takes longer than any of them waits, on a machine that is busy
    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(use)
    assert answers
    await assert_whole(pool, 5)
    await pool.aclose()


async def test_a_restarted_server_is_found_again() -> None:
    with private_postgresql(own=True) as server:
        assert isinstance(server, PostgreSQLServer)
        pool = Pool(PsycopgDriver(server.dsn()))
        async with pool.acquire() as connection:
            await pid(connection)
        server.kill()
        with pytest.raises(StorageUnavailable, match=f"127.0.0.1:{server.port}") as caught:
            await pool.acquire(timeout=0.3).__aenter__()
        assert isinstance(caught.value.__cause__, StorageUnavailable)
        async with anyio.create_task_group() as tasks:

            async def want() -> None:
                async with pool.acquire(timeout=10) as connection:
                    await pid(connection)

            tasks.start_soon(want)
            await anyio.to_thread.run_sync(server.start)
        await pool.aclose()


FORK = """
import os, sys, anyio
from creche.storage._pool import Pool
from creche.storage._psycopg import PsycopgDriver

async def pid(pool):
    async with pool.acquire() as connection:
        return (await (await connection.execute("SELECT pg_backend_pid()")).fetchone())[0]

async def main():
    pool = Pool(PsycopgDriver(sys.argv[2]))
    async with pool.acquire() as lent:
        inherited = await pid(pool)
        if (child := os.fork()) == 0:
            # The child of a running event loop has none: it leaves by the ways that close things, and dies.
            try:
                await lent.close()
                await pool.aclose()
                del lent
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert await pid(pool) == inherited
        await lent.execute("SELECT 1")
    return pool, lent, {inherited, lent.info.backend_pid}

async def in_child(pool, inherited):
    assert await pid(pool) not in inherited
    await pool.aclose()

pool, lent, inherited = anyio.run(main, backend=sys.argv[1])
if (child := os.fork()) == 0:
    anyio.run(in_child, pool, inherited, backend=sys.argv[1])
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

async def afterwards():
    await lent.execute("SELECT 1")
    await pool.aclose()

anyio.run(afterwards, backend=sys.argv[1])
print("fine")
"""


async def test_a_forked_child_leaves_its_parents_connections_alone(dsn: str, anyio_backend: str) -> None:
    command = [sys.executable, "-W", "error", "-c", FORK, anyio_backend, dsn]
    script = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT, env=dict(os.environ))
    assert script.stdout.decode().strip() == "fine"
