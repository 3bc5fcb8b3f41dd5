"""Jobs that are dispatched to SQLite through a connection of the caller's: they share its transaction's fate."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from hashlib import sha256
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiosqlite
import anyio
import anyio.to_thread
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from creche._ids import new_job_id
from creche._job import Event, FollowUp, JobFilter, NewJob, On, Settlement, Status
from creche.errors import OptionInvalid
from creche.storage._sqlite_handles import literal, with_values
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

SOON = 5.0  # seconds: what takes longer hangs
Open: TypeAlias = Callable[[Path], Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SQLiteStorage]:
    async with SQLiteStorage(path, busy_timeout=SOON) as storage:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
        yield storage


def job(**options: Any) -> NewJob:
    return NewJob(**{"id": new_job_id(), "type": "work", "payload": b"{}", **options})


async def finished(answer: Any) -> Any:
    return await answer if isawaitable(answer) else answer


# --- handles ----------------------------------------------------------------------------------------


@asynccontextmanager
async def plain(path: Path) -> AsyncGenerator[Any]:
    with closing(sqlite3.connect(path)) as connection:
        yield connection


@asynccontextmanager
async def begun(path: Path) -> AsyncGenerator[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        yield connection


@asynccontextmanager
async def strange(path: Path) -> AsyncGenerator[Any]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = lambda _, row: {"row": row}
        connection.text_factory = bytes
        yield connection


@asynccontextmanager
async def aio(path: Path) -> AsyncGenerator[Any]:
    async with aiosqlite.connect(path) as connection:
        connection.row_factory = aiosqlite.Row
        yield connection


@asynccontextmanager
async def alchemy_connection(path: Path) -> AsyncGenerator[Any]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@asynccontextmanager
async def alchemy_session(path: Path) -> AsyncGenerator[Any]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with Session(engine) as session:
        yield session
    engine.dispose()


@asynccontextmanager
async def alchemy_async_connection(path: Path) -> AsyncGenerator[Any]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@asynccontextmanager
async def alchemy_async_session(path: Path) -> AsyncGenerator[Any]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


EITHER_LOOP: Final[list[Open]] = [plain, begun, strange, alchemy_connection, alchemy_session]
ASYNCIO: Final[list[Open]] = [aio, alchemy_async_connection, alchemy_async_session]
ALL: Final = [
    *(
        pytest.param(opens, loop, id=f"{opens.__name__}-{loop}")
        for opens in EITHER_LOOP
        for loop in ("asyncio", "trio")
    ),
    *(pytest.param(opens, "asyncio", id=opens.__name__) for opens in ASYNCIO),
]
every_handle = pytest.mark.parametrize(("opens", "anyio_backend"), ALL)


async def execute(handle: Any, text: str) -> None:
    await finished(handle.execute(sqlalchemy.text(text) if "sqlalchemy" in type(handle).__module__ else text))


# --- its fate ---------------------------------------------------------------------------------------


@every_handle
async def test_jobs_are_there_when_it_is_committed_and_not_before(
    storage: SQLiteStorage, path: Path, opens: Open
) -> None:
    text = '{"it\'s": ":id ? %s \\" \\\\ \\u0000 é漢😀 -- /*"}'
    new = job(payload=text.encode(), idempotency_key="it's 'k' :now", type="ty'pe", fingerprint=sha256(b"1").digest())
    async with opens(path) as handle:
        await execute(handle, "INSERT INTO orders VALUES (1)")
        (insertion,) = await storage.insert([new], connection=handle)
        assert (insertion.job_id, insertion.status, insertion.inserted) == (new.id, Status.PENDING, True)
        (again,) = await storage.insert([job(idempotency_key=new.idempotency_key)], connection=handle)
        assert (again.job_id, again.inserted, again.fingerprint) == (new.id, False, new.fingerprint)
        assert await storage.find([new.id]) == {}
        await finished(handle.commit())
    record = (await storage.find([new.id]))[new.id]
    assert (record.payload, record.type, record.idempotency_key) == (text.encode(), "ty'pe", "it's 'k' :now")


@every_handle
async def test_nothing_is_there_when_it_is_rolled_back(storage: SQLiteStorage, path: Path, opens: Open) -> None:
    callback = FollowUp(id=new_job_id(), type="notify", head="1")
    (standing,) = await storage.insert([job(fingerprint=sha256(b"1").digest())])
    async with opens(path) as handle:
        await storage.insert([job()], connection=handle)
        joining = job(fingerprint=sha256(b"1").digest(), callbacks=(callback,))
        (insertion,) = await storage.insert([joining], connection=handle)
        assert insertion.job_id == standing.job_id
        await finished(handle.rollback())
    assert [record.id for record in await storage.list(JobFilter(), 10)] == [standing.job_id]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT callbacks FROM creche_jobs").fetchall() == [(None,)]


@every_handle
async def test_a_callback_joins_a_job_through_it(storage: SQLiteStorage, path: Path, opens: Open) -> None:
    print_ = sha256(b"1").digest()
    callback = FollowUp(id=new_job_id(), type="notify", head='["é\'", ', tail="]", on=On.ALWAYS)
    late = FollowUp(id=new_job_id(), type="notify", head='["late", ', tail="]")
    (standing,) = await storage.insert([job(fingerprint=print_, result_ttl=3600)])
    async with opens(path) as handle:
        await storage.insert([job(fingerprint=print_, callbacks=(callback,))], connection=handle)
        await finished(handle.commit())
    (reserved,) = (await storage.reserve(["default"], 1, lease=60, worker="w", nonce=7)).jobs
    assert reserved.id == standing.job_id
    await storage.settle([Settlement(lease=reserved.lease, event=Event.SUCCEED, result=b'"ok"')])
    async with opens(path) as handle:
        (joined,) = await storage.insert([job(fingerprint=print_, callbacks=(late,))], connection=handle)
        assert (joined.job_id, joined.result) == (standing.job_id, b'"ok"')
        await finished(handle.commit())
    found = await storage.find([callback.id, late.id])
    assert found[callback.id].payload == '["é\'", "ok"]'.encode()
    assert found[late.id].payload == b'["late", "ok"]'


@every_handle
async def test_an_own_listener_and_another_storages_hear_of_the_commit(
    storage: SQLiteStorage, path: Path, opens: Open
) -> None:
    async with (
        SQLiteStorage(path) as other,
        storage.listen(["default"]) as own,
        other.listen(["default"]) as foreign,
        opens(path) as handle,
    ):
        await storage.insert([job()], connection=handle)
        with anyio.move_on_after(0.05) as early:
            await own.wait()
        assert early.cancelled_caught
        await finished(handle.commit())
        with anyio.fail_after(SOON):
            assert await own.wait() == frozenset()
            assert await foreign.wait() == frozenset()


PROCESS = """
import sqlite3, sys, anyio
from creche._ids import new_job_id
from creche._job import NewJob
from creche.storage.sqlite import SQLiteStorage

async def main():
    async with SQLiteStorage(sys.argv[1]) as storage:
        connection = sqlite3.connect(sys.argv[1])
        await storage.insert([NewJob(id=new_job_id(), type="t", payload=b"{}")], connection=connection)
        connection.commit() if sys.argv[2] == "commit" else connection.rollback()
        connection.close()

anyio.run(main)
"""


@pytest.mark.parametrize(("end", "jobs"), [("commit", 1), ("rollback", 0)])
async def test_another_process_does_so_too(storage: SQLiteStorage, path: Path, end: str, jobs: int) -> None:
    async with storage.listen(["default"]) as listener:
        await anyio.run_process([sys.executable, "-W", "error", "-c", PROCESS, str(path), end], stderr=subprocess.PIPE)
        if jobs:
            with anyio.fail_after(SOON):
                assert await listener.wait() == frozenset()
    assert len((await storage.reserve(["default"], 5, lease=60, worker="w", nonce=7)).jobs) == jobs


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["jobs.db", 7, object(), sqlite3])
async def test_what_is_no_handle_is_refused_with_the_names_of_those_that_are(
    storage: SQLiteStorage, handle: object
) -> None:
    with pytest.raises(OptionInvalid, match=r"a sqlite3\.Connection, an aiosqlite\.Connection"):
        await storage.insert([job()], connection=handle)


@pytest.mark.parametrize("opens", [plain, alchemy_session])
async def test_a_connection_to_another_file_is_refused(storage: SQLiteStorage, path: Path, opens: Open) -> None:
    async with SQLiteStorage(path.with_name("other.db")), opens(path.with_name("other.db")) as handle:
        with pytest.raises(OptionInvalid, match=r"a connection to .*jobs\.db"):
            await storage.insert([job()], connection=handle)
    async with opens(path.with_name("none.db")) as handle:
        with pytest.raises(OptionInvalid, match=r"a connection to .*jobs\.db"):
            await storage.insert([job()], connection=handle)
    with closing(sqlite3.connect(":memory:")) as memory, pytest.raises(OptionInvalid, match="a connection to"):
        await storage.insert([job()], connection=memory)


async def test_the_same_file_by_another_name_is_the_same_file(storage: SQLiteStorage, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with closing(sqlite3.connect(link)) as connection:
        await storage.insert([job()], connection=connection)
        connection.commit()
    assert len(await storage.list(JobFilter(), 5)) == 1


async def test_a_connection_that_would_commit_each_statement_is_refused(storage: SQLiteStorage, path: Path) -> None:
    autocommit = closing(sqlite3.connect(path, isolation_level=None))
    with autocommit as plainest, pytest.raises(OptionInvalid, match="a connection in a transaction"):
        await storage.insert([job()], connection=plainest)
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(OptionInvalid, match="a connection in a transaction"):
        await storage.insert([job()], connection=connection)
    with Session(engine) as session, pytest.raises(OptionInvalid, match="a connection in a transaction"):
        await storage.insert([job()], connection=session)
    engine.dispose()
    assert await storage.list(JobFilter(), 5) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_async_one_too(storage: SQLiteStorage, path: Path) -> None:
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        with pytest.raises(OptionInvalid, match="a connection in a transaction"):
            await storage.insert([job()], connection=connection)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", isolation_level="AUTOCOMMIT")
    async with engine.connect() as alchemy:
        with pytest.raises(OptionInvalid, match="a connection in a transaction"):
            await storage.insert([job()], connection=alchemy)
    await engine.dispose()
    assert await storage.list(JobFilter(), 5) == []


async def test_an_empty_batch_touches_no_handle(storage: SQLiteStorage) -> None:
    assert await storage.insert([], connection=object()) == ()


# --- whose errors, whose locks ----------------------------------------------------------------------


@contextmanager
def lock_held(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_its_drivers_errors_go_to_the_caller(storage: SQLiteStorage, path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="json_valid"):
            await storage.insert([job(payload=b"no JSON")], connection=connection)
        connection.rollback()
        with lock_held(path), pytest.raises(sqlite3.OperationalError, match="locked"):
            await storage.insert([job()], connection=connection)
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.connect() as alchemy, pytest.raises(sqlalchemy.exc.IntegrityError):
        await storage.insert([job(payload=b"no JSON")], connection=alchemy)
    engine.dispose()


async def test_a_connection_of_another_thread_is_its_drivers_error(storage: SQLiteStorage, path: Path) -> None:
    opened: list[sqlite3.Connection] = []
    there, used = threading.Event(), threading.Event()

    def own() -> None:
        with closing(sqlite3.connect(path)) as connection:
            opened.append(connection)
            there.set()
            used.wait(SOON)

    thread = threading.Thread(target=own)
    thread.start()
    assert there.wait(SOON)
    with pytest.raises(sqlite3.ProgrammingError, match="thread"):
        await storage.insert([job()], connection=opened[0])
    used.set()
    thread.join()


@pytest.mark.parametrize("opens", [plain, begun, alchemy_session, alchemy_connection])
async def test_the_write_lock_is_taken_first_so_that_a_rivals_commit_is_no_conflict(
    storage: SQLiteStorage, path: Path, opens: Open
) -> None:
    locked, held = threading.Event(), threading.Event()

    def rival() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO orders VALUES (5)")
            locked.set()
            held.wait(0.2)
            connection.execute("COMMIT")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, rival)
        await anyio.to_thread.run_sync(locked.wait, SOON)
        async with opens(path) as handle:
            (insertion,) = await storage.insert([job()], connection=handle)
            await finished(handle.commit())
    assert await storage.find([insertion.job_id])


async def test_of_a_dispatch_in_an_open_transaction_and_a_rivals_one_inserts(
    storage: SQLiteStorage, path: Path
) -> None:
    print_ = sha256(b"1").digest()
    answers: list[bool] = []

    async def rival() -> None:
        answers.extend(each.inserted for each in await storage.insert([job(fingerprint=print_)]))

    async with anyio.create_task_group() as tasks:
        with closing(sqlite3.connect(path)) as connection:
            (mine,) = await storage.insert([job(fingerprint=print_)], connection=connection)
            tasks.start_soon(rival)
            await anyio.sleep(0.1)
            assert answers == []
            connection.commit()
    assert (mine.inserted, answers) == (True, [False])


async def test_due_times_are_by_the_hosts_clock(storage: SQLiteStorage, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        before = time.time()
        (insertion,) = await storage.insert([job()], connection=connection)
        connection.commit()
    record = (await storage.find([insertion.job_id]))[insertion.job_id]
    assert before - 0.001 <= record.created_at.timestamp() <= time.time()


# --- texts ------------------------------------------------------------------------------------------


def test_a_literal_is_what_sqlite_reads_back() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for value in ("", "it's", "''", '"\\n\\', "é漢😀\u2028", ":id ? %s --", None, 0, -1, 1 << 62, True):
            assert connection.execute(f"SELECT {literal(value)}").fetchone() == (value,)


def test_values_stand_where_their_names_stood_and_nowhere_else() -> None:
    text = "-- :a why's\nSELECT :a, ':a -- no', :ab -- :b\nFROM t\n"
    assert with_values(text, {"a": "x:ab", "ab": 1}) == "SELECT 'x:ab', ':a -- no', 1 \nFROM t"


def test_every_statement_of_a_dispatch_begins_with_its_verb() -> None:
    texts = SQLiteStorage("unused.db")._dialect.statements
    names = ("insert", "refresh", "expire_results", "record_callbacks", "follow_up", "forget_callbacks")
    columns = dict.fromkeys(
        ("jobs", "now", "fingerprint", "fingerprints", "id", "ids", "queue_name", "idempotency_key", "callbacks")
    )
    for name in names:
        assert with_values(texts[name], columns).split()[0] in {"INSERT", "UPDATE"}
