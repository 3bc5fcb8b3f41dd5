"""Who tells listeners that there is work: the notifier a moment later, or now and then the statement that makes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import anyio
import pytest
from anyio import current_time

from creche._ids import new_job_id
from creche._job import NewJob
from creche.errors import StorageUnavailable
from creche.storage import _notifier as module
from creche.storage._notifier import Notifier
from creche.storage.postgresql import PostgreSQLStorage

pytestmark = pytest.mark.anyio

SOON = 5.0  # seconds: what takes longer hangs


async def no_one(_queues: Sequence[str]) -> None:
    """Send nothing."""


async def test_after_a_silence_a_call_may_wake_as_it_commits_and_then_not_for_ten_times_as_long() -> None:
    notifier = Notifier(no_one, pause=0.0)
    with notifier.aloud() as first:
        assert first
        with notifier.aloud() as meanwhile:
            assert not meanwhile
        await anyio.sleep(0.004)
    began = current_time()
    with notifier.aloud() as at_once:
        assert not at_once
    while True:
        await anyio.sleep(0.01)
        with notifier.aloud() as again:
            if again:
                break
    assert current_time() - began >= 0.99 * 10 * 0.004


async def test_nor_while_a_wake_waits_to_be_sent_nor_right_after_one() -> None:
    notifier = Notifier(no_one, pause=0.1)
    notifier.wake(["q"])
    with notifier.aloud() as waiting:
        assert not waiting
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.run)
        await anyio.sleep(0.01)
        with notifier.aloud() as just_sent:
            assert not just_sent
        await anyio.sleep(0.12)
        with notifier.aloud() as later:
            assert later
        tasks.cancel_scope.cancel()


async def test_one_that_failed_is_over_too() -> None:
    notifier = Notifier(no_one, pause=0.0)

    async def failing() -> None:
        with notifier.aloud() as first:
            assert first
            raise StorageUnavailable

    with pytest.raises(StorageUnavailable):
        await failing()
    await anyio.sleep(0.01)
    with notifier.aloud() as again:
        assert again


# --- on PostgreSQL ----------------------------------------------------------------------------------


@pytest.fixture
async def producer(postgresql_dsn: str) -> AsyncIterator[PostgreSQLStorage]:
    """An open storage, of a process that says nothing afterwards."""
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    async with storage:
        yield storage


def job(queue: str) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", queue_name=queue)


def silence(storage: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the notifier say nothing; return what it was to say."""
    said: list[str] = []
    assert storage._opened is not None
    monkeypatch.setattr(storage._opened.wakes.notifier, "wake", said.extend)
    return said


async def test_the_first_job_after_a_silence_is_told_of_by_the_statement_that_writes_it(
    producer: PostgreSQLStorage, postgresql_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = silence(producer, monkeypatch)
    async with PostgreSQLStorage(postgresql_dsn) as other, other.listen(["q"]) as listener:
        await producer.insert([job("q")])
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}
        assert said == []
        await producer.insert([job("q")])
        await producer.insert([job("q"), job("r")])
        assert sorted(said) == ["q", "q", "r"]


async def test_a_listener_of_this_process_hears_it_at_once(producer: PostgreSQLStorage) -> None:
    async with producer.listen(["q"]) as listener:
        await producer.insert([job("q")])
        assert await listener.wait() == {"q"}


async def test_one_that_was_there_before_is_told_of_by_the_notifier(
    producer: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SELDOM", 0)
    said = silence(producer, monkeypatch)
    again = job("q")
    (first,) = await producer.insert([again])
    await anyio.sleep(0.01)
    assert await producer.insert([again]) == [first]
    assert said == ["q"]


async def test_where_nobody_has_listened_for_too_long_jobs_are_written_all_the_same(
    producer: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill(connection: object) -> None:
        await connection.execute(  # type: ignore[attr-defined]
            b"CREATE FUNCTION pg_temp.full_queue(text, text) RETURNS text LANGUAGE plpgsql AS"
            b" $$ BEGIN RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000'; END $$"
        )

    await producer._calls.run(fill)
    said = silence(producer, monkeypatch)
    aloud = producer._sql["insert_aloud"]
    monkeypatch.setitem(producer._sql, "insert_aloud", aloud.replace(b"pg_notify", b"pg_temp.full_queue"))
    (written,) = await producer.insert([job("q")])
    assert list(await producer.find([written.job_id])) == [written.job_id]
    assert said == ["q"]
