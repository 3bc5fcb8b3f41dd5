"""SQLite: a holder is told across processes, once, that its job's cancellation is asked for, and nobody else is; and a
twin needs one connection.

Another storage on the same file is another process to this one: its commits show in the file, and nowhere else.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from creche._ids import new_job_id, new_nonce
from creche._job import Event, Lease, NewJob, Retention, Settlement, Status
from creche.abc import Listener
from creche.storage import _sqlite3 as driver
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

SOON = 5.0  # seconds: what takes longer hangs
SILENCE = 0.6  # seconds in which a listener has looked twice at least
ANY = frozenset[str]()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SQLiteStorage]:
    async with SQLiteStorage(path, busy_timeout=SOON) as storage:
        yield storage


@pytest.fixture
async def other(storage: SQLiteStorage, path: Path) -> AsyncIterator[SQLiteStorage]:
    """Another process."""
    async with SQLiteStorage(path, busy_timeout=SOON) as other:
        yield other


def job(**options: Any) -> NewJob:
    return NewJob(**{"id": new_job_id(), "type": "work", "payload": b"{}", **options})


async def hold(storage: SQLiteStorage, worker: str = "w") -> Lease:
    await storage.insert([job(queue_name="busy")])
    return await take(storage, worker)


async def take(storage: SQLiteStorage, worker: str = "w") -> Lease:
    reservation = await storage.reserve(["busy"], 1, lease=60, worker=worker, nonce=new_nonce())
    return reservation.jobs[0].lease


async def heard(listener: Listener) -> frozenset[str]:
    with anyio.fail_after(SOON):
        return await listener.wait()


async def is_silent(listener: Listener) -> bool:
    with anyio.move_on_after(SILENCE) as scope:
        await listener.wait()
    return scope.cancelled_caught


# --- cancellations ----------------------------------------------------------------------------------


async def test_the_holder_is_called_by_name_when_another_process_cancels(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    lease = await hold(storage)
    async with storage.listen(["default", "w"]) as listener:
        await other.cancel([lease.job_id])
        assert await heard(listener) == {"w"}
        assert await heard(listener) == ANY  # as after any commit: there may be work
        assert await is_silent(listener)
    assert (await storage.extend([lease], 60)).cancel_requested == {lease}


async def test_nobody_is_called_by_name_because_something_changed(storage: SQLiteStorage, other: SQLiteStorage) -> None:
    await hold(storage)
    waiting = job(delay=60)
    async with storage.listen(["default", "w"]) as listener:
        await other.insert([waiting])
        assert await heard(listener) == ANY
        await other.cancel([waiting.id])
        assert await heard(listener) == ANY
        assert await is_silent(listener)


async def test_only_the_holder_is_called(storage: SQLiteStorage, other: SQLiteStorage) -> None:
    leases = [await hold(storage, name) for name in ("v", "w", "x")]
    async with storage.listen(["v", "default"]) as first, storage.listen(["w", "x", "default"]) as second:
        await other.cancel([leases[1].job_id])
        assert await heard(second) == {"w"}
        assert await heard(second) == ANY
        assert await heard(first) == ANY
        assert await is_silent(first)


async def test_while_a_job_takes_its_time_to_end_other_commits_do_not_call_its_holder_again(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    first, second = await hold(storage), await hold(storage)
    async with storage.listen(["w"]) as listener:
        await other.cancel([first.job_id])
        assert await heard(listener) == {"w"}
        assert await heard(listener) == ANY
        for _ in range(3):
            await other.insert([job()])
            assert await heard(listener) == ANY
        await other.cancel([second.job_id])
        assert await heard(listener) == {"w"}
        assert await heard(listener) == ANY


async def test_a_job_that_is_retried_and_cancelled_again_calls_its_holder_again(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    lease = await hold(storage)
    async with storage.listen(["w"]) as listener:
        for _ in range(2):
            await other.cancel([lease.job_id])
            assert await heard(listener) == {"w"}
            assert await heard(listener) == ANY
            await storage.settle([Settlement(lease=lease, event=Event.ABORT)])
            await storage.retry([lease.job_id])
            lease = await take(storage)


async def test_in_one_process_the_holder_is_called_at_once_and_by_no_later_commit(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    lease = await hold(storage)
    async with storage.listen(["default", "w"]) as listener:
        await storage.cancel([lease.job_id])
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"w"}
        await other.insert([job()])
        assert await heard(listener) == ANY
        assert await is_silent(listener)


async def test_a_holder_that_is_asked_again_in_its_own_process_is_called_again(storage: SQLiteStorage) -> None:
    lease = await hold(storage)
    async with storage.listen(["w"]) as listener:
        for _ in range(2):
            await storage.cancel([lease.job_id])
            assert await heard(listener) == {"w"}
        another = await hold(storage)
        await storage.cancel([another.job_id])
        assert await heard(listener) == {"w"}


async def test_of_what_has_ended_nothing_is_remembered(storage: SQLiteStorage) -> None:
    for _ in range(3):
        lease = await hold(storage)
        await storage.cancel([lease.job_id])
        await storage.settle([Settlement(lease=lease, event=Event.ABORT)])
    last = await hold(storage)
    await storage.cancel([last.job_id])
    assert {job_id for _, job_id, _ in storage._bell._told} == {str(last.job_id)}


async def test_a_request_that_a_write_meets_is_heard_without_a_look(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    lease = await hold(storage)
    async with storage.listen(["w"]) as listener:
        await other.cancel([lease.job_id])
        await storage.insert([job(queue_name="elsewhere")])
        assert listener._called == {"w"}  # type: ignore[attr-defined]  # a look at the room behind the protocol


async def test_what_was_asked_before_somebody_listens_calls_nobody(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    lease = await hold(storage)
    await other.cancel([lease.job_id])
    async with storage.listen(["w"]) as listener:
        await other.insert([job()])
        assert await heard(listener) == ANY
        assert await is_silent(listener)


async def test_to_be_called_and_to_look_writes_nothing(
    storage: SQLiteStorage, other: SQLiteStorage, path: Path
) -> None:
    lease = await hold(storage)
    with closing(sqlite3.connect(path)) as witness:
        async with storage.listen(["w"]) as listener:
            await other.cancel([lease.job_id])
            (before,) = witness.execute("PRAGMA data_version").fetchone()
            assert await heard(listener) == {"w"}
            assert await heard(listener) == ANY
            assert await is_silent(listener)
            assert witness.execute("PRAGMA data_version").fetchone() == (before,)


CANCEL = """
import sys, time, uuid, anyio
from creche.storage.sqlite import SQLiteStorage

async def main():
    async with SQLiteStorage(sys.argv[1]) as storage:
        print("ready", flush=True)
        for line in sys.stdin:
            await storage.cancel([uuid.UUID(line.strip())])
            print(time.monotonic(), flush=True)

anyio.run(main)
"""


async def test_a_real_other_process_is_heard_soon(storage: SQLiteStorage, path: Path) -> None:
    process = await anyio.open_process(
        [sys.executable, "-W", "error", "-c", CANCEL, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    async with process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = BufferedByteReceiveStream(process.stdout)
        with anyio.fail_after(60):
            assert await answers.receive_until(b"\n", 100) == b"ready"
        async with storage.listen(["default", "w"]) as listener:
            for _ in range(3):
                lease = await hold(storage)
                await anyio.sleep(SILENCE)  # until it looks seldom
                await process.stdin.send(f"{lease.job_id}\n".encode())
                assert await heard(listener) == {"w"}
                woken = time.monotonic()
                assert woken - float(await answers.receive_until(b"\n", 100)) < SOON
                assert await heard(listener) == ANY
        await process.stdin.aclose()


# --- pause, retention -------------------------------------------------------------------------------


async def test_a_pause_and_a_retention_leave_nothing_behind_when_they_are_taken_back(
    storage: SQLiteStorage, path: Path
) -> None:
    def rows() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            return [name for (name,) in connection.execute("SELECT queue_name FROM creche_queues")]

    await storage.pause(["a", "b"])
    await storage.set_retention("a", Retention())
    assert sorted(rows()) == ["a", "b"]
    await storage.resume(["a", "b", "c"])
    assert rows() == ["a"]
    await storage.pause(["a"])
    await storage.set_retention("a", None)
    assert rows() == ["a"]
    await storage.resume(["a"])
    assert rows() == []


async def test_reserving_from_a_queue_that_is_paused_writes_nothing(
    storage: SQLiteStorage, other: SQLiteStorage
) -> None:
    await storage.insert([job()])
    await storage.pause(["default"])
    async with storage.listen(["default"]) as listener:
        assert (await other.reserve(["default"], 1, lease=60, worker="w", nonce=1)).jobs == []
        assert await is_silent(listener)


async def test_a_queue_is_resumed_for_other_processes_too(storage: SQLiteStorage, other: SQLiteStorage) -> None:
    await storage.insert([job()])
    await storage.pause(["default"])
    async with storage.listen(["default"]) as listener:
        await other.resume(["default"])
        assert await heard(listener) == ANY
    assert (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1)).jobs


# --- twins ------------------------------------------------------------------------------------------


def opened(storage: SQLiteStorage) -> driver.Open:
    found = storage._database._open
    assert found is not None
    return found


async def test_a_twin_has_one_connection_until_it_reads(storage: SQLiteStorage) -> None:
    lease = await hold(storage)
    twin = storage.twin()
    assert isinstance(twin, SQLiteStorage)
    async with twin:
        assert (await twin.extend([lease], 60)).held == {lease}
        assert opened(twin).reader is None
        assert (await twin.find([lease.job_id]))[lease.job_id].status is Status.PROCESSING
        assert opened(twin).reader is not None


async def test_a_twin_waits_for_the_disk_and_for_locks_as_its_storage_does(path: Path) -> None:
    twin = SQLiteStorage(path, synchronous="EXTRA", busy_timeout=0.25).twin()
    assert isinstance(twin, SQLiteStorage)
    async with twin:
        assert opened(twin).writer.execute("PRAGMA synchronous").fetchone()[0] == 3
        assert twin._database.busy_timeout == 0.25
