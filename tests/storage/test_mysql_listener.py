"""Push on MySQL and MariaDB: who sleeps is woken, nobody else is hit, and what can't be woken is found out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import TypeAlias

import anyio
import pytest
from pymysql.connections import Connection
from pymysql.cursors import Cursor

from creche._ids import new_job_id
from creche._job import NewJob
from creche.abc import Listener
from creche.errors import ListenerDeaf, StorageUnavailable
from creche.storage import _mysql_listener as module
from creche.storage._mysql_listener import Waker
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import connect_mysql
from engine_kit import until

pytestmark = pytest.mark.anyio

SOON = 5.0  # seconds: what takes longer hangs
ANY: frozenset[str] = frozenset()  # the end of a sleep says nothing of its reason
Raw: TypeAlias = "Connection[Cursor]"


@pytest.fixture(params=["mariadb", "mysql"])
def dsn(request: pytest.FixtureRequest) -> str:
    """The DSN of an empty database, on each server in turn."""
    return str(request.getfixturevalue(f"{request.param}_dsn"))


@pytest.fixture
def raw(dsn: str) -> Iterator[Raw]:
    """A connection beside the storage's."""
    with closing(connect_mysql(dsn)) as connection:
        yield connection


@pytest.fixture
async def storage(dsn: str) -> AsyncIterator[MySQLStorage]:
    """Open, on a migrated database."""
    storage = MySQLStorage(dsn)
    await storage.migrate()
    async with storage:
        yield storage


@pytest.fixture
async def another(storage: MySQLStorage, dsn: str) -> AsyncIterator[MySQLStorage]:
    """A second one, as another process has it."""
    async with MySQLStorage(dsn) as another:
        yield another


def job(**options: object) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", queue_name="q", **options)  # type: ignore[arg-type]


def one(raw: Raw, statement: str) -> tuple[object, ...]:
    with raw.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        assert row is not None
        return row


async def drain(listener: Listener) -> None:
    """Hear what a listener rings by itself when it has just begun."""
    with anyio.move_on_after(module.ASLEEP * 5):
        await hear_forever(listener)


async def hear_forever(listener: Listener) -> None:
    while True:
        await listener.wait()


async def test_a_dispatch_elsewhere_ends_the_sleep(storage: MySQLStorage, another: MySQLStorage) -> None:
    async with storage.listen(["q"]) as listener:
        await drain(listener)
        for _ in range(5):
            await another.insert([job()])
            with anyio.fail_after(SOON):
                assert await listener.wait() == ANY
            await drain(listener)


async def test_the_name_of_a_holder_is_called_once_for_each_cancellation_and_not_for_dispatches(
    storage: MySQLStorage, another: MySQLStorage
) -> None:
    await another.insert([job(), job()])
    held = (await storage.reserve(["q"], 2, lease=60.0, worker="w", nonce=1)).jobs
    async with storage.listen(["q", "w"]) as listener:
        await drain(listener)
        for each in held:
            await another.insert([job()])
            assert "w" not in await heard(listener)
            await another.cancel([each.lease.job_id])
            assert (await heard(listener)).count("w") == 1


async def test_a_call_that_falls_between_two_naps_is_heard_with_the_next_wake(
    storage: MySQLStorage, another: MySQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await another.insert([job()])
    (held,) = (await storage.reserve(["q"], 1, lease=60.0, worker="w", nonce=1)).jobs
    async with storage.listen(["q", "w"]) as listener:
        await drain(listener)
        assert another._opened is not None
        monkeypatch.setitem(another._sql, "find_listeners", "SELECT NULL")
        await another.cancel([held.lease.job_id])
        await another._opened.wakes.notifier.flush()
        monkeypatch.undo()
        assert await heard(listener) == []
        await another.insert([job()])
        assert (await heard(listener)).count("w") == 1


async def heard(listener: Listener) -> list[str]:
    """Return the names that a listener rings within a moment."""
    names: list[str] = []
    with anyio.move_on_after(module.ASLEEP * 10):
        while True:
            names += await listener.wait()
    return names


async def test_a_wake_that_falls_between_two_naps_is_made_up_for(
    storage: MySQLStorage, another: MySQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with storage.listen(["q"]) as listener:
        await drain(listener)
        # Whoever dispatches finds nobody to wake, as in the moment between two naps.
        monkeypatch.setattr(Waker, "wake", _sent_to_nobody)
        await another.insert([job()])
        monkeypatch.undo()
        await anyio.sleep(module.ASLEEP)
        # The next wake, for whatever reason, rings twice: once when it comes, once when the nap after it has begun.
        await another.insert([job()])
        with anyio.fail_after(SOON):
            assert await listener.wait() == ANY
            assert await listener.wait() == ANY


async def _sent_to_nobody(waker: Waker, queues: object) -> None:
    await anyio.lowlevel.checkpoint()


async def test_wakes_that_come_thick_let_a_listener_sleep_less_and_none_is_lost(
    storage: MySQLStorage, another: MySQLStorage, raw: Raw
) -> None:
    async with storage.listen(["q"]) as listener:
        await drain(listener)
        before = int(str(one(raw, "SHOW GLOBAL STATUS LIKE 'Com_kill'")[1]))
        for _ in range(200):
            await another.insert([job()])
        kills = int(str(one(raw, "SHOW GLOBAL STATUS LIKE 'Com_kill'")[1])) - before
        assert kills <= 100, "each insert wakes by itself"
        with anyio.fail_after(SOON):
            assert await listener.wait() == ANY


async def test_who_has_left_is_forgotten(storage: MySQLStorage, raw: Raw) -> None:
    async with storage.listen(["q", "other"]):
        assert one(raw, "SELECT COUNT(*) FROM creche_listeners") == (2,)
    assert one(raw, "SELECT COUNT(*) FROM creche_listeners") == (0,)


async def test_what_killed_processes_left_behind_wakes_nobody_and_goes_after_three_hours(
    storage: MySQLStorage, another: MySQLStorage, raw: Raw
) -> None:
    with raw.cursor() as cursor:
        cursor.execute(
            "INSERT INTO creche_listeners (token, queue_name, registered_at) VALUES "
            "(REPEAT('y', 16), 'q', UTC_TIMESTAMP(6) - INTERVAL 170 MINUTE), "
            "(REPEAT('o', 16), 'q', UTC_TIMESTAMP(6) - INTERVAL 190 MINUTE)"
        )
        # A connection that has one of those numbers now is somebody's who works.
        cursor.execute("SELECT GET_LOCK('creche_of_another_name', 0)")
    async with storage.listen(["q"]) as listener:
        assert one(raw, "SELECT COUNT(*) FROM creche_listeners WHERE token = REPEAT('o', 16)") == (0,)
        assert one(raw, "SELECT COUNT(*) FROM creche_listeners WHERE token = REPEAT('y', 16)") == (1,)
        await another.insert([job()])
        with anyio.fail_after(SOON):
            assert await listener.wait() == ANY


async def test_a_listener_tells_of_itself_again(
    storage: MySQLStorage, another: MySQLStorage, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STILL_HERE", 0.0)
    async with storage.listen(["q"]) as listener:
        with raw.cursor() as cursor:
            cursor.execute("UPDATE creche_listeners SET registered_at = '2000-01-01'")
        await another.insert([job()])
        with anyio.fail_after(SOON):
            await listener.wait()
            await until(lambda: one(raw, "SELECT MIN(registered_at) > '2001-01-01' FROM creche_listeners") == (1,))


async def test_nobody_else_is_hit(storage: MySQLStorage, another: MySQLStorage, dsn: str) -> None:
    """A statement of the same account goes on while listeners are woken."""
    interrupted: list[object] = []

    def work() -> None:
        with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(1)")
            interrupted.append(cursor.fetchone())

    async with storage.listen(["q"]), anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, work)
        for _ in range(20):
            await another.insert([job()])
            await anyio.sleep(0.03)
    assert interrupted == [(0,)]


async def test_a_listener_whose_connection_is_killed_says_so(storage: MySQLStorage, raw: Raw) -> None:
    async with storage.listen(["q"]) as listener:
        await drain(listener)
        token = one(raw, "SELECT LOWER(HEX(token)) FROM creche_listeners")[0]
        (number,) = one(raw, f"SELECT IS_USED_LOCK('creche_{token}')")
        with raw.cursor() as cursor:
            cursor.execute(f"KILL {number}")
        with anyio.fail_after(SOON), pytest.raises(StorageUnavailable):
            await hear_forever(listener)


async def test_a_listener_that_can_not_be_woken_is_deaf(storage: MySQLStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_vain(waker: Waker, token: bytes) -> None:
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(module, "LATE", 0.3)
    monkeypatch.setattr(Waker, "rouse", in_vain)
    with pytest.raises(ListenerDeaf):
        async with storage.listen(["q"]):
            raise AssertionError("never reached")


async def test_who_may_not_wake_another_account_is_told_once_and_goes_on(
    storage: MySQLStorage, dsn: str, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    database = str(one(raw, "SELECT DATABASE()")[0])
    with raw.cursor() as cursor:
        cursor.execute("DROP USER IF EXISTS 'weak'@'%', 'weak'@'localhost'")
        for host in ("%", "localhost"):
            cursor.execute(f"CREATE USER 'weak'@'{host}' IDENTIFIED BY 'secret'")
            cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO 'weak'@'{host}'")
    credentials, _, rest = dsn.partition("://")[2].rpartition("@")
    weak = f"mysql://weak:secret@{rest}"
    assert credentials
    caplog.set_level(logging.WARNING, "creche")
    async with storage.listen(["q"]) as listener, MySQLStorage(weak) as dispatcher:
        await drain(listener)
        for _ in range(3):
            await dispatcher.insert([job()])
            await anyio.sleep(0.05)
        assert dispatcher._opened is not None
        await dispatcher._opened.wakes.notifier.flush()
    told = [record for record in caplog.records if "another account" in record.message]
    assert len(told) == 1
    # And its own account it may wake.
    async with MySQLStorage(weak) as dispatcher, MySQLStorage(weak) as worker, worker.listen(["q"]) as listener:
        await drain(listener)
        await dispatcher.insert([job()])
        with anyio.fail_after(SOON):
            assert await listener.wait() == ANY


async def test_without_push_a_listener_hears_of_its_own_process_alone(
    storage: MySQLStorage, another: MySQLStorage, dsn: str, raw: Raw
) -> None:
    async with MySQLStorage(dsn, push=False) as polled, polled.listen(["q"]) as listener:
        assert not polled.capabilities.listen
        assert one(raw, "SELECT COUNT(*) FROM creche_listeners") == (0,)
        await another.insert([job()])
        with anyio.move_on_after(0.1) as scope:
            await listener.wait()
        assert scope.cancelled_caught
        await polled.insert([job()])
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}
