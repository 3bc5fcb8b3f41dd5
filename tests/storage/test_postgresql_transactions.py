"""A handler's transaction on PostgreSQL: what is committed with the end of its attempt, and what is not."""

# ruff: noqa: PT012 - what must fail is a whole transaction

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from creche._ids import new_job_id, new_nonce
from creche._job import Event, FollowUp, Lease, NewJob, Retention, Settlement, Status
from creche.errors import QueueNotOpen, StatementRejected, StorageUnavailable, UsageError
from creche.storage.postgresql import PostgreSQLStorage

pytestmark = pytest.mark.anyio

SOON = 5.0  # seconds: what takes longer hangs
Raw = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
async def storage(postgresql_dsn: str) -> AsyncIterator[PostgreSQLStorage]:
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    async with storage:
        yield storage


@pytest.fixture
def raw(postgresql_dsn: str, storage: PostgreSQLStorage) -> Iterator[Raw]:
    """Another connection to the same schema, with a table of the application's own."""
    with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (number integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        yield connection


async def hold(storage: PostgreSQLStorage, **options: Any) -> Lease:
    await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}", **options)])
    taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
    return taken.jobs[0].lease


def done(lease: Lease, result: bytes = b"1") -> Settlement:
    return Settlement(lease=lease, event=Event.SUCCEED, result=result)


def orders(raw: Raw) -> list[int]:
    return [number for (number,) in raw.execute("SELECT number FROM orders ORDER BY number").fetchall()]


async def status(storage: PostgreSQLStorage, lease: Lease) -> Status:
    return (await storage.find([lease.job_id]))[lease.job_id].status


async def test_a_handlers_writes_and_its_end_are_seen_together(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(
        storage, callbacks=(FollowUp(id=(after := new_job_id()), type="after", queue_name="q", head="{}"),)
    )
    async with storage.listen(["q"]) as listener:
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            assert await transaction.settle(done(lease))
            assert orders(raw) == []
            assert not await storage.find([after])
            with anyio.move_on_after(0.1) as silence:
                await listener.wait()
            assert silence.cancelled_caught
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}
    assert orders(raw) == [1]
    assert await status(storage, lease) is Status.COMPLETED
    record = (await storage.find([after]))[after]
    assert record.status is Status.PENDING
    assert record.origin is not None
    assert record.origin.job_id == lease.job_id


async def test_an_error_in_the_block_undoes_all_of_it(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(storage)
    with pytest.raises(ZeroDivisionError):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            await transaction.settle(done(lease))
            _ = 1 // 0
    assert orders(raw) == []
    assert await status(storage, lease) is Status.PROCESSING


async def test_a_lease_that_is_lost_settles_nothing(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(storage)
    await storage.settle([Settlement(lease=lease, event=Event.RELEASE)])
    await storage.reserve(["default"], 1, lease=60, worker="another", nonce=new_nonce())
    with pytest.raises(RuntimeError, match="lost"):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            if not await transaction.settle(done(lease)):
                raise RuntimeError("lost")
    assert orders(raw) == []


async def test_a_cancelled_handler_leaves_nothing_and_nobody_waits_for_it(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(storage)
    with anyio.fail_after(SOON), anyio.move_on_after(0.2):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            await transaction.settle(done(lease))
            await transaction.connection.execute("SELECT pg_sleep(0.4)")
    with anyio.fail_after(SOON):
        assert (await storage.extend([lease], 60)).held == {lease}
    assert orders(raw) == []


async def test_what_a_handlers_statement_raises_is_psycopgs_own(storage: PostgreSQLStorage) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("SELECT * FROM nowhere")


async def test_an_error_that_a_handler_swallowed_is_no_success(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(storage)
    with pytest.raises(StatementRejected, match="commit nothing"):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await transaction.connection.execute("SELECT 1 / 0")
            await transaction.settle(done(lease))
    with pytest.raises(StatementRejected, match="commit nothing"):
        async with storage.transaction() as transaction:
            with pytest.raises(psycopg.errors.DivisionByZero):
                await transaction.connection.execute("SELECT 1 / 0")
    assert orders(raw) == []
    assert await status(storage, lease) is Status.PROCESSING


async def test_a_part_can_be_undone_by_itself(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(storage)
    async with storage.transaction() as transaction:
        connection = transaction.connection
        await connection.execute("INSERT INTO orders VALUES (1)")
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with connection.transaction():
                await connection.execute("INSERT INTO orders VALUES (2)")
                await connection.execute("SELECT 1 / 0")
        assert await transaction.settle(done(lease))
    assert orders(raw) == [1]
    assert await status(storage, lease) is Status.COMPLETED


@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK"])
async def test_a_handler_that_ended_the_transaction_is_told_so(storage: PostgreSQLStorage, raw: Raw, word: str) -> None:
    lease = await hold(storage)
    with pytest.raises(UsageError, match="leave COMMIT and ROLLBACK"):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            await transaction.connection.execute(word)
            await transaction.settle(done(lease))
    with pytest.raises(UsageError, match="leave COMMIT and ROLLBACK"):
        async with storage.transaction() as transaction:
            await transaction.connection.execute(word)
    with pytest.raises(psycopg.ProgrammingError):
        async with storage.transaction() as transaction:
            await transaction.connection.commit()
    assert await status(storage, lease) is Status.PROCESSING


async def test_what_the_server_refuses_at_the_commit_is_an_error(storage: PostgreSQLStorage, raw: Raw) -> None:
    raw.execute("INSERT INTO orders VALUES (1)")
    lease = await hold(storage)
    with pytest.raises(StatementRejected, match="23505"):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            assert await transaction.settle(done(lease))
    assert await status(storage, lease) is Status.PROCESSING
    async with storage.transaction() as transaction:
        assert await transaction.settle(done(lease))


async def test_a_commit_without_an_answer_has_an_unknown_outcome_that_an_extend_waits_for(
    postgresql_dsn: str, storage: PostgreSQLStorage, raw: Raw
) -> None:
    raw.execute(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3.5); RETURN NULL; END'"
    )
    raw.execute(
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION linger()"
    )
    lease = await hold(storage)
    async with PostgreSQLStorage(f"{postgresql_dsn}&call_timeout=1") as impatient:
        with anyio.fail_after(SOON), pytest.raises(StorageUnavailable, match="outcome is unknown"):
            async with impatient.transaction() as transaction:
                await transaction.connection.execute("INSERT INTO orders VALUES (1)")
                assert await transaction.settle(done(lease))
    with anyio.fail_after(SOON):
        held = (await storage.extend([lease], 60)).held
    assert bool(held) is (orders(raw) == [])


async def test_a_connection_that_is_cut_commits_nothing(storage: PostgreSQLStorage, raw: Raw) -> None:
    lease = await hold(storage)
    with pytest.raises(StorageUnavailable):
        async with storage.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO orders VALUES (1)")
            raw.execute("SELECT pg_terminate_backend(%s)", [transaction.connection.info.backend_pid])
            await transaction.settle(done(lease))
    async with storage.transaction() as transaction:
        assert await transaction.settle(done(lease))
    assert orders(raw) == []


async def test_nothing_that_a_handler_sets_is_there_for_the_next(
    postgresql_dsn: str, storage: PostgreSQLStorage
) -> None:
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1") as single:
        pids: list[int] = []
        for _ in range(2):
            lease = await hold(single)
            async with single.transaction() as transaction:
                connection = transaction.connection
                pids.append(connection.info.backend_pid)
                assert await (await connection.execute("SELECT 1, '[1]'::json")).fetchone() == (1, [1])
                assert await (await connection.execute("SHOW statement_timeout")).fetchone() == ("0",)
                assert await (await connection.execute("SELECT to_regclass('mine')::text")).fetchone() == (None,)
                connection.row_factory = dict_row
                connection.prepare_threshold = 0
                await connection.execute("SET statement_timeout = '7s'")
                await connection.execute("CREATE TEMPORARY TABLE mine (document jsonb)")
                await connection.execute("INSERT INTO mine VALUES (%s)", [Jsonb({"a": 1})])
                assert await transaction.settle(done(lease))
    assert len(set(pids)) == 1


async def test_the_end_is_written_wherever_a_handlers_search_path_leads(storage: PostgreSQLStorage) -> None:
    elsewhere = (
        "SET search_path = pg_catalog",
        "SET LOCAL search_path = pg_catalog",
        "CREATE TEMPORARY TABLE creche_jobs (id integer)",
        "CREATE TEMPORARY TABLE creche_watches (id integer)",
        "CREATE TEMPORARY TABLE creche_dead_letters (id integer)",
    )
    for statement in elsewhere:
        lease = await hold(
            storage, callbacks=(FollowUp(id=(after := new_job_id()), type="after", queue_name="q", head="{}"),)
        )
        async with storage.transaction() as transaction:
            await transaction.connection.execute(statement)
            assert await transaction.settle(done(lease))
        assert await status(storage, lease) is Status.COMPLETED
        assert await storage.find([after])


async def test_long_transactions_keep_no_call_waiting_and_a_turn_is_waited_for(
    postgresql_dsn: str, storage: PostgreSQLStorage
) -> None:
    finished: list[int] = []
    lease = await hold(storage)
    async with PostgreSQLStorage(f"{postgresql_dsn}&pool_size=1&call_timeout=0.5") as single:
        begun = anyio.Event()

        async def handle(number: int) -> None:
            async with single.transaction() as transaction:
                begun.set()
                await transaction.connection.execute("SELECT pg_sleep(0.4)")
                finished.append(number)

        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as handlers:
                for number in range(3):  # the last of them waits for longer than a call may take
                    handlers.start_soon(handle, number)
                await begun.wait()
                assert (await single.extend([lease], 60)).held == {lease}
                assert not finished
            assert sorted(finished) == [0, 1, 2]
            with anyio.move_on_after(0.1):
                await handle(3)
            await handle(4)
    assert finished == [*finished[:3], 4]


async def test_the_end_is_dated_when_it_was_written_and_not_when_the_handler_began(storage: PostgreSQLStorage) -> None:
    lease = await hold(storage)
    async with storage.transaction() as transaction:
        begun = datetime.now(UTC)
        await transaction.connection.execute("SELECT pg_sleep(0.3)")
        assert await transaction.settle(done(lease))
    record = (await storage.find([lease.job_id]))[lease.job_id]
    assert record.completed_at is not None
    assert record.completed_at >= begun + timedelta(seconds=0.25)


async def test_a_dispatch_goes_with_the_handlers_transaction(storage: PostgreSQLStorage) -> None:
    lease = await hold(storage)
    new = [NewJob(id=new_job_id(), type="work", payload=b"{}") for _ in range(2)]
    async with storage.transaction() as transaction:
        await storage.insert(new, connection=transaction.connection)
        assert not await storage.find([job.id for job in new])
        assert await transaction.settle(done(lease))
    assert len(await storage.find([job.id for job in new])) == 2


async def test_who_waited_for_an_end_that_is_rolled_back_finds_the_job_running(storage: PostgreSQLStorage) -> None:
    lease = await hold(storage)
    found: list[Any] = []

    async def extend() -> None:
        found.append((await storage.extend([lease], 60)).held)

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as waiting:
            with pytest.raises(ZeroDivisionError):
                async with storage.transaction() as transaction:
                    assert await transaction.settle(done(lease))
                    later = datetime.now(UTC) + timedelta(hours=1)
                    assert (await storage.maintain(10, retention=Retention(), now=later)).recovered == 0
                    waiting.start_soon(extend)
                    await anyio.sleep(0.1)
                    assert not found
                    raise ZeroDivisionError
    assert found == [{lease}]


async def test_a_closed_storage_begins_nothing(postgresql_dsn: str) -> None:
    with pytest.raises(QueueNotOpen):
        async with PostgreSQLStorage(postgresql_dsn).transaction():
            pass
