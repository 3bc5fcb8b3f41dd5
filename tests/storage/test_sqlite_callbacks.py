"""Callbacks, refreshed results and watches on SQLite: what rivals on other connections and in other processes can do to
them, and what they cost those that have none.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest

from creche._ids import new_job_id
from creche._job import (
    WATCH_LIMIT,
    End,
    Event,
    Failure,
    FollowUp,
    JobFilter,
    Lease,
    NewJob,
    On,
    Origin,
    Progress,
    Retention,
    Settlement,
    Status,
)
from creche.errors import StorageUnavailable
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

T0: Final = datetime(2030, 1, 1, tzinfo=UTC)
SOON: Final = 5.0  # seconds: what takes longer hangs
PRINT: Final = sha256(b"the same").digest()
FOREVER: Final = Retention(completed=1e9, failed=1e9, cancelled=1e9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SQLiteStorage]:
    async with SQLiteStorage(path, busy_timeout=SOON) as storage:
        yield storage


def job(**options: Any) -> NewJob:
    return NewJob(**{"id": new_job_id(), "type": "work", "payload": b"{}", **options})


def call(**options: Any) -> FollowUp:
    return FollowUp(**{"id": new_job_id(), "type": "notify", "queue_name": "after", "head": "1", **options})


async def hold(storage: SQLiteStorage, **options: Any) -> Lease:
    await storage.insert([job(**options)], now=T0)
    (reserved,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=7, now=T0)).jobs
    return reserved.lease


def success(lease: Lease, result: bytes = b"1") -> Settlement:
    return Settlement(lease=lease, event=Event.SUCCEED, result=result)


def column(path: Path, job_id: object, name: str) -> Any:
    with closing(sqlite3.connect(path)) as connection:
        (value,) = connection.execute(f"SELECT {name} FROM creche_jobs WHERE id = ?", [str(job_id)]).fetchone()
    return value


# --- ends -------------------------------------------------------------------------------------------


async def test_texts_come_through_byte_for_byte(storage: SQLiteStorage) -> None:
    texts = ["it's", '\\"\\\\\\u0000\\ud83d\\ude00', "é漢😀\u2028\x7f", ":now ?1 $x @y -- /* */ %s {}", "  \\n"]
    callbacks = tuple(call(type=f"t'{n}\"é", head=f'["{text}", ', tail=f' , "{text}"]') for n, text in enumerate(texts))
    lease = await hold(storage, callbacks=callbacks)
    result = '{"it\'s" :  "\\u0000\\\\ é😀", "n": 1.50e+10}'
    await storage.settle([success(lease, result.encode())], now=T0)
    found = await storage.find([each.id for each in callbacks])
    for number, (each, text) in enumerate(zip(callbacks, texts, strict=True)):
        record = found[each.id]
        assert record.payload.decode() == f'["{text}", {result} , "{text}"]'
        assert record.type == f"t'{number}\"é"
    (first, *_) = (await storage.reserve(["after"], 9, lease=60, worker="w", nonce=7, now=T0)).jobs
    assert first.origin == Origin(job_id=lease.job_id, type="work", queue_name="default", status=Status.COMPLETED)


async def test_the_error_that_a_callback_gets_is_the_last_one_of_many(storage: SQLiteStorage) -> None:
    callback = call(on=On.FAILURE)
    lease = await hold(storage, callbacks=(callback,), max_attempts=50)
    for number in range(25):
        error = Failure(type="É", message=f'it\'s {number} \x00 \\ "😀"', traceback="a\nb")
        event = Event.FAIL if number == 24 else Event.RETRY
        await storage.settle([Settlement(lease=lease, event=event, error=error)], now=T0)
        if event is Event.RETRY:
            (reserved,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=7, now=T0)).jobs
            lease = reserved.lease
    origin = (await storage.find([callback.id]))[callback.id].origin
    assert origin is not None
    assert origin.error == Failure(type="É", message='it\'s 24 \x00 \\ "😀"', traceback="a\nb")


async def test_what_an_end_does_not_call_for_stays_in_the_row_and_what_it_does_is_taken_out(
    storage: SQLiteStorage, path: Path
) -> None:
    lease = await hold(storage, callbacks=tuple(call(on=on) for on in On))
    await storage.settle([Settlement(lease=lease, event=Event.ABORT)], now=T0)
    kept = column(path, lease.job_id, "callbacks")
    assert '"success"' in kept
    assert '"failure"' in kept
    assert '"always"' not in kept
    whole = await hold(storage, callbacks=(call(),))
    await storage.settle([success(whole)], now=T0)
    assert column(path, whole.job_id, "callbacks") is None


async def test_jobs_without_callbacks_cost_no_statement_more(storage: SQLiteStorage) -> None:
    seen: list[str] = []
    lease, other = await hold(storage), await hold(storage, callbacks=(call(),))
    opened = storage._database.opened()
    opened.writer.set_trace_callback(seen.append)
    await storage.settle([success(lease)], now=T0)
    plain = len(seen)
    await storage.settle([success(other)], now=T0)
    opened.writer.set_trace_callback(None)
    assert not any("json_extract(follow_up" in text for text in seen[:plain])
    assert sum("json_extract(follow_up" in text for text in seen) == 1


async def test_many_ends_in_one_batch_that_is_cut_into_parts(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("creche.storage._sqlite_rows._CHUNK", 1_000)
    jobs = [job(callbacks=(call(head="[", tail="]"),)) for _ in range(60)]
    await storage.insert(jobs, now=T0)
    taken = (await storage.reserve(["default"], 60, lease=60, worker="w", nonce=7, now=T0)).jobs
    result = b'"' + b"y" * 300 + b'"'
    await storage.settle([success(reserved.lease, result) for reserved in taken], now=T0)
    found = await storage.find([each.callbacks[0].id for each in jobs])
    assert {record.payload for record in found.values()} == {b"[" + result + b"]"}
    assert len(found) == 60


async def test_a_batch_whose_settle_fails_writes_no_callback(storage: SQLiteStorage) -> None:
    callback = call()
    lease = await hold(storage, callbacks=(callback,))
    pages = storage._database.opened().writer.execute("PRAGMA page_count").fetchone()[0]
    storage._database.opened().writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageUnavailable):
        await storage.settle([success(lease, b'"' + b"x" * 100_000 + b'"')], now=T0)
    storage._database.opened().writer.execute("PRAGMA max_page_count = 1000000")
    assert await storage.find([callback.id]) == {}
    await storage.settle([success(lease)], now=T0)
    assert len(await storage.find([callback.id])) == 1


# --- rivals -----------------------------------------------------------------------------------------


async def test_callbacks_that_come_while_the_end_is_being_written_are_written_too(
    storage: SQLiteStorage, path: Path
) -> None:
    """The dispatch waits for the lock, finds the job over, and writes what its end calls for."""
    late = call(head="[", tail="]")
    lease = await hold(storage, fingerprint=PRINT, result_ttl=3600)
    answers: list[Any] = []

    async def dispatch(other: SQLiteStorage) -> None:
        answers.extend(await other.insert([job(fingerprint=PRINT, callbacks=(late,))], now=T0))

    async with (
        SQLiteStorage(path, busy_timeout=SOON) as other,
        anyio.create_task_group() as tasks,
        storage.transaction() as shared,
    ):
        assert await shared.settle(success(lease, b'"done"'), now=T0)
        tasks.start_soon(dispatch, other)
        await anyio.sleep(0.1)
        assert answers == []
    (answer,) = answers
    assert (answer.job_id, answer.status, answer.result) == (lease.job_id, Status.COMPLETED, b'"done"')
    assert (await storage.find([late.id]))[late.id].payload == b'["done"]'


async def test_a_dispatch_that_comes_while_the_end_is_being_written_runs_nothing_twice(
    storage: SQLiteStorage, path: Path
) -> None:
    lease = await hold(storage, fingerprint=PRINT, result_ttl=60)
    inserted: list[bool] = []

    async def dispatch(storage: SQLiteStorage) -> None:
        now = T0 + timedelta(seconds=59)
        inserted.extend(each.inserted for each in await storage.insert([job(fingerprint=PRINT)], now=now))

    async with (
        SQLiteStorage(path, busy_timeout=SOON) as other,
        anyio.create_task_group() as tasks,
        storage.transaction() as shared,
    ):
        assert await shared.settle(success(lease), now=T0)
        for rival in (storage, other, other):
            tasks.start_soon(dispatch, rival)
        await anyio.sleep(0.05)
    assert inserted == [False] * 3
    assert len(await storage.list(JobFilter(), 5)) == 1


async def test_of_many_that_want_a_new_result_at_once_one_inserts_and_the_others_join_it(
    storage: SQLiteStorage, path: Path
) -> None:
    lease = await hold(storage, fingerprint=PRINT, result_ttl=3600)
    await storage.settle([success(lease)], now=T0)
    answers: list[Any] = []

    async def dispatch(storage: SQLiteStorage) -> None:
        answers.extend(await storage.insert([job(fingerprint=PRINT, refresh=True, callbacks=(call(),))], now=T0))

    async with SQLiteStorage(path, busy_timeout=SOON) as other, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(dispatch, (storage, other)[number % 2])
    assert sum(each.inserted for each in answers) == 1
    assert len({each.job_id for each in answers}) == 1
    assert answers[0].job_id != lease.job_id
    assert column(path, answers[0].job_id, "json_array_length(callbacks, '$.success')") == 20


DISPATCHER = """
import sys, anyio
from creche._ids import new_job_id
from creche._job import FollowUp, NewJob
from creche.storage.sqlite import SQLiteStorage

async def main():
    async with SQLiteStorage(sys.argv[1], synchronous="NORMAL") as storage:
        sys.stdin.readline()
        for _ in range(150):
            callback = FollowUp(id=new_job_id(), type="notify", queue_name="after", head="1")
            (answer,) = await storage.insert([NewJob(
                id=new_job_id(), type="t", payload=b"{}", fingerprint=b"f" * 32, result_ttl=0.005, callbacks=(callback,)
            )])
            print(callback.id)

anyio.run(main)
"""


def dispatchers(path: Path) -> list[subprocess.Popen[str]]:
    """Let two processes dispatch at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", DISPATCHER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


async def test_callbacks_from_several_processes_run_exactly_once_each(storage: SQLiteStorage, path: Path) -> None:
    processes = dispatchers(path)
    recorded: list[str] = []
    done = threading.Event()

    def collect() -> None:
        for process in processes:
            out, error = process.communicate(timeout=60)
            assert error == ""
            recorded.extend(out.split())
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, collect)
        while True:
            last = done.is_set()
            taken = (await storage.reserve(["default"], 9, lease=60, worker="w", nonce=7)).jobs
            await storage.settle([success(reserved.lease) for reserved in taken])
            if last and not taken:
                break
    jobs = await storage.list(JobFilter(queues=frozenset({"after"})), 1_000)
    assert sorted(str(record.id) for record in jobs) == sorted(recorded)
    assert len(recorded) == 300


# --- watches ----------------------------------------------------------------------------------------


async def test_an_end_wakes_who_watches_it_and_an_end_in_another_process_wakes_all(
    storage: SQLiteStorage, path: Path
) -> None:
    lease, other = await hold(storage), await hold(storage)
    async with storage.listen(["mine"]) as mine, storage.listen(["not mine"]) as not_mine:
        assert await storage.watch([lease.job_id, other.job_id], watcher="mine") == {
            lease.job_id: None,
            other.job_id: None,
        }
        await storage.settle([success(lease)])
        assert await mine.wait() == {"mine"}
        assert not not_mine._rung.is_set()  # type: ignore[attr-defined]  # a look behind the protocol
        async with SQLiteStorage(path) as foreign:
            await foreign.settle([success(other, b"2")])
        with anyio.fail_after(SOON):
            assert await mine.wait() == frozenset()
    ended = {
        lease.job_id: End(status=Status.COMPLETED, result=b"1"),
        other.job_id: End(status=Status.COMPLETED, result=b"2"),
    }
    assert await storage.watch([lease.job_id, other.job_id], watcher="mine") == ended


async def test_nothing_is_kept_of_watches_that_are_over(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = [await hold(storage) for _ in range(3)]
    ids = [lease.job_id for lease in leases]
    kept = storage._watches._watchers
    await storage.watch([*ids, new_job_id()], watcher="mine")
    await storage.watch(ids[:1], watcher="yours")
    assert set(kept) == set(ids)
    await storage.settle([success(leases[0])])
    await storage.watch(ids[1:], watcher="mine", over=[ids[0], ids[1]])
    assert set(kept) == set(ids[1:])
    await storage.watch([], watcher="mine", over=[ids[1]])
    assert set(kept) == {ids[2]}
    await storage.maintain(10, retention=FOREVER, now=T0)
    assert set(kept) == {ids[2]}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + WATCH_LIMIT + 1)
    await storage.maintain(10, retention=FOREVER, now=T0)
    assert kept == {}


async def test_progress_is_a_number_and_a_text_for_people(storage: SQLiteStorage, path: Path) -> None:
    lease = await hold(storage)
    await storage.extend([lease], 60, progress={lease: Progress(fraction=1, message="it's é😀")}, now=T0)
    assert column(path, lease.job_id, "typeof(progress)") == "real"
    await storage.extend([lease], 60, now=T0)
    assert column(path, lease.job_id, "progress_message") == "it's é😀"
