"""PostgreSQL: the contract, and what is PostgreSQL's own: which rows are locked, what is opened, who is woken."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, LiteralString
from uuid import UUID

import anyio
import psycopg
import pytest
from psycopg import sql

from creche._ids import new_job_id, new_nonce
from creche._job import Event, JobFilter, NewJob, Retention, Settlement, Status
from creche.abc import Storage
from creche.errors import (
    ConfigurationError,
    ListenerDeaf,
    OptionInvalid,
    QueueNotOpen,
    SchemaOutdated,
    StorageUnavailable,
    UsageError,
)
from creche.storage import _postgresql_listener as listener_module
from creche.storage import postgresql as postgresql_module
from creche.storage._batches import in_lock_order
from creche.storage._postgresql_calls import bare, split_options
from creche.storage._postgresql_documents import jobs_document
from creche.storage._postgresql_listener import channel_name
from creche.storage._sql import load
from creche.storage.postgresql import PostgreSQLStorage
from creche.testing import StorageConformance
from databases import empty_schema, in_schema

pytestmark = pytest.mark.anyio

SQL = {name: bare(text) for name, text in load("postgresql").statements.items()}
T0 = datetime(2030, 1, 1, tzinfo=UTC)
SOON = 5.0  # seconds: what takes longer hangs
Raw = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def dsn(postgresql_dsn: str) -> str:
    """An empty schema."""
    return postgresql_dsn


@pytest.fixture
async def storage(dsn: str) -> PostgreSQLStorage:
    """A migrated storage, not open."""
    storage = PostgreSQLStorage(dsn)
    await storage.migrate()
    return storage


@pytest.fixture
def raw(dsn: str) -> Iterator[Raw]:
    """A plain connection to the same schema."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def jobs(count: int, **options: Any) -> list[NewJob]:
    return [NewJob(id=new_job_id(), type="work", payload=b"{}", **options) for _ in range(count)]


async def until(connection: Raw, query: LiteralString) -> None:
    """Wait until a query answers true: for what another session does, and nothing tells of."""
    with anyio.fail_after(SOON):
        while connection.execute(query).fetchone() != (True,):  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.02)


class TestPostgreSQLStorage(StorageConformance):
    @pytest.fixture(scope="class")
    @staticmethod
    def reused(postgresql_database: str) -> Iterator[Raw]:
        """A migrated schema for all tests: making and dropping one takes longer than most tests do."""
        with (
            empty_schema(postgresql_database) as schema,
            psycopg.connect(in_schema(postgresql_database, schema), autocommit=True) as connection,
        ):
            anyio.run(PostgreSQLStorage(in_schema(postgresql_database, schema)).migrate)
            yield connection

    @pytest.fixture
    def unopened(self, reused: Raw, postgresql_database: str) -> PostgreSQLStorage:
        reused.execute("DELETE FROM creche_jobs")
        reused.execute("DELETE FROM creche_dead_letters")
        reused.execute("DELETE FROM creche_watches")
        reused.execute("DELETE FROM creche_queues")
        reused.execute("DELETE FROM creche_workers")
        row = reused.execute("SELECT current_schema()").fetchone()
        assert row
        self.dsn = in_schema(postgresql_database, row[0])
        return PostgreSQLStorage(self.dsn)

    def open_another(self, storage: Storage) -> Storage:
        return PostgreSQLStorage(self.dsn)


# --- rows and locks ---------------------------------------------------------------------------------


def claim(connection: Raw, limit: int, queues: list[str] | None = None) -> list[UUID]:
    parameters = {
        "queues": queues or ["default"],
        "limit": limit,
        "lease": 60.0,
        "worker": "w",
        "nonce": new_nonce(),
        "types": None,
        "now": T0,
    }
    return [row[1] for row in connection.execute(SQL["reserve"], parameters).fetchall() if row[1]]


@pytest.mark.parametrize("queues", [["default"], ["empty", "default"], ["first", "default"]], ids="-".join)
async def test_a_reserve_locks_just_what_it_takes(
    dsn: str, storage: PostgreSQLStorage, raw: Raw, queues: list[str]
) -> None:
    some = jobs(4, queue_name="first") if "first" in queues else []
    new = [*some, *jobs(1_000)]
    async with storage:
        await storage.insert(new, now=T0)
    ids = [job.id for job in new]
    with raw.transaction(), psycopg.connect(dsn, autocommit=True) as rival:
        rival.execute("SET lock_timeout = '5s'")  # what waits for the first one would wait for this very task
        assert claim(raw, 10, queues) == ids[:10]
        # The first transaction is still open, and the second one finds the very next rows.
        with rival.transaction(force_rollback=True):
            assert claim(rival, 10, queues) == ids[10:20]
        assert rival.execute(
            "SELECT count(*) FROM (SELECT FROM creche_jobs FOR UPDATE SKIP LOCKED) AS free"
        ).fetchone() == (len(ids) - 10,)


async def test_renewals_stay_on_their_page(storage: PostgreSQLStorage, raw: Raw) -> None:
    async with storage:
        await storage.insert(jobs(20), now=T0)
        taken = await storage.reserve(["default"], 20, lease=60, worker="w", nonce=new_nonce(), now=T0)
        for seconds in range(61, 66):
            await storage.extend([job.lease for job in taken.jobs], seconds, now=T0)
    query = "SELECT n_tup_hot_upd >= 50 FROM pg_stat_user_tables WHERE relid = 'creche_jobs'::regclass"
    await until(raw, query)  # the counters of a session arrive when it has ended


async def test_times_are_utc_whatever_the_session_says(dsn: str, storage: PostgreSQLStorage) -> None:
    elsewhere = PostgreSQLStorage(f"{dsn}%20-cTimeZone%3DAsia/Kolkata")
    async with elsewhere:
        (job,) = jobs(1, available_at=T0)
        await elsewhere.insert([job])
        (record,) = await elsewhere.list(JobFilter(), 1)
    assert record.available_at == T0
    assert {record.available_at.tzinfo, record.created_at.tzinfo} == {UTC}


def test_a_batch_writes_its_unique_names_in_one_order_where_that_changes_no_winner() -> None:
    prints = [bytes([n]) * 32 for n in (3, 1, 2, 1)]
    printed = [*jobs(1), *(jobs(1, fingerprint=fingerprint)[0] for fingerprint in prints)]
    assert [job.fingerprint for job in in_lock_order(printed)] == [None, *sorted(prints)]
    assert [job.id for job in in_lock_order(printed) if job.fingerprint == prints[1]] == [printed[2].id, printed[4].id]
    keyed = [jobs(1, idempotency_key=key)[0] for key in "cabc"]
    assert [job.idempotency_key for job in in_lock_order(keyed)] == list("abcc")
    mixed = [*printed, *keyed]
    assert list(in_lock_order(mixed)) == mixed


async def test_the_loser_inserts_when_the_winner_rolls_back(dsn: str, storage: PostgreSQLStorage, raw: Raw) -> None:
    winner, loser = jobs(2, fingerprint=b"f" * 32)
    answers: list[Any] = []

    async def lose() -> None:
        answers.extend(await storage.insert([loser], now=T0))

    async with storage, anyio.create_task_group() as losing:
        raw.execute("BEGIN")
        raw.execute(SQL["insert"], {"jobs": jobs_document([winner]), "now": T0, "horizon": 30.0})
        losing.start_soon(lose)
        await until(raw, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        assert not answers  # it waits for the winner, whatever that will do
        raw.execute("ROLLBACK")
    assert [(answer.job_id, answer.inserted) for answer in answers] == [(loser.id, True)]


@pytest.mark.parametrize("deed", ["retry", "delete"])
async def test_what_waits_for_a_failure_to_be_committed_leaves_no_dead_letter(
    storage: PostgreSQLStorage, raw: Raw, deed: str
) -> None:
    (job,) = jobs(1)
    stood: dict[UUID, Status] = {}

    async def do() -> None:
        stood.update(await getattr(storage, deed)([job.id]))

    async with storage:
        await storage.insert([job])
        taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
        async with anyio.create_task_group() as waiting, storage.transaction() as transaction:
            assert await transaction.settle(Settlement(lease=taken.jobs[0].lease, event=Event.FAIL))
            waiting.start_soon(do)
            await until(raw, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        assert stood == {job.id: Status.PENDING if deed == "retry" else Status.FAILED}
        assert await storage.dead_letters(10) == []


# --- opening ----------------------------------------------------------------------------------------


async def test_a_missing_schema_says_what_to_run(dsn: str) -> None:
    with pytest.raises(SchemaOutdated, match="creche migrate"):
        async with PostgreSQLStorage(dsn):
            pass


async def test_a_newer_schema_will_do(storage: PostgreSQLStorage, raw: Raw) -> None:
    raw.execute("INSERT INTO creche_migrations (version, name) VALUES (9999, 'from the future')")
    async with storage:
        assert await storage.stats() == []


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    storage = PostgreSQLStorage("postgresql://me:geheim@127.0.0.1:1/db")
    with anyio.fail_after(SOON), pytest.raises(StorageUnavailable) as caught:
        async with storage:
            pass
    assert "127.0.0.1:1" in str(caught.value)
    assert "geheim" not in str(caught.value) + repr(storage) + repr(vars(storage))


async def test_an_unopened_storage_says_so(storage: PostgreSQLStorage) -> None:
    with pytest.raises(QueueNotOpen):
        await storage.insert(jobs(1))
    with pytest.raises(QueueNotOpen):
        async with storage.listen(["q"]):
            pass


async def test_it_is_entered_once_at_a_time(storage: PostgreSQLStorage) -> None:
    async with storage:
        with pytest.raises(UsageError):
            await storage.__aenter__()
    async with storage:
        assert await storage.stats() == []


async def test_an_error_in_the_block_comes_out_as_it_is(storage: PostgreSQLStorage) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage, storage.listen(["q"]):
            _ = 1 // 0


async def test_a_url_may_carry_the_storage_s_own_options(dsn: str, storage: PostgreSQLStorage) -> None:
    async with PostgreSQLStorage(f"{dsn}&prepare_threshold=0&pool_size=1&call_timeout=4.5") as prepared:
        await prepared.insert(jobs(1))
        assert await prepared.stats()
    assert split_options("postgresql://h/d?a=1&pool_size=2") == ("postgresql://h/d?a=1", {"pool_size": 2})
    assert split_options("postgresql://h/d?call_timeout=2") == ("postgresql://h/d", {"call_timeout": 2})
    assert split_options("host=h dbname=d") == ("host=h dbname=d", {})


@pytest.mark.parametrize("query", ["pool_size=0", "pool_size=many", "call_timeout=0", "prepare_threshold=x"])
def test_options_without_sense_are_refused(query: str) -> None:
    with pytest.raises((OptionInvalid, ConfigurationError)):
        PostgreSQLStorage(f"postgresql://h/d?{query}")


async def test_a_server_that_reads_only_is_unavailable(dsn: str, storage: PostgreSQLStorage) -> None:
    async with PostgreSQLStorage(f"{dsn}%20-cdefault_transaction_read_only%3Don") as standby:
        assert await standby.stats() == []
        with pytest.raises(StorageUnavailable, match="25006"):
            await standby.insert(jobs(1))


# --- wakes ------------------------------------------------------------------------------------------


def test_channels_fit_and_differ() -> None:
    long = ["s" * 57, "s" * 58, "ä" * 40]
    names = [channel_name(schema) for schema in ["public", "creche", *long]]
    assert names[0] == "creche_public"
    assert len(set(names)) == 5
    assert all(len(name.encode()) <= 63 for name in names)


async def test_a_producer_that_ends_at_once_has_woken_the_others(dsn: str, storage: PostgreSQLStorage) -> None:
    async with storage, storage.listen(["q"]) as listener:
        async with PostgreSQLStorage(dsn) as producer:
            await producer.insert(jobs(2, queue_name="q"))  # of one alone its own statement tells
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}


async def test_what_is_settled_for_good_notifies_nobody(dsn: str, storage: PostgreSQLStorage) -> None:
    async with storage:
        await storage.insert(jobs(1), now=T0)
        taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=1, now=T0)
        said: list[Any] = []
        assert storage._opened is not None
        storage._opened.wakes.notifier.wake = said.append  # type: ignore[assignment, method-assign]
        await storage.settle([Settlement(lease=taken.jobs[0].lease, event=Event.SUCCEED, result=b"1")], now=T0)
        assert said == []


async def test_a_listener_that_hears_nothing_says_so(
    storage: PostgreSQLStorage, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with storage:
        assert storage._opened is not None
        monkeypatch.setattr(listener_module, "ECHO", 0.1)
        storage._opened.channel = "creche_elsewhere"  # what is said goes where nobody listens, as behind a pooler
        with pytest.raises(ListenerDeaf):
            async with storage.listen(["q"]):
                pass
    await until(raw, "SELECT count(*) = 0 FROM pg_stat_activity WHERE query = 'LISTEN \"creche_elsewhere\"'")


async def test_a_silent_listener_probes_and_goes_on(
    storage: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "SILENCE", 0.05)
    async with storage, storage.listen(["q"]) as listener:
        with anyio.move_on_after(0.5) as silence:
            await listener.wait()
        assert silence.cancelled_caught  # its own words are no wakes
        await storage.insert(jobs(1, queue_name="q"))
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}


async def test_a_listener_that_went_deaf_is_found_out(
    storage: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with storage, storage.listen(["q"]) as listener:
        assert storage._opened is not None
        monkeypatch.setattr(listener_module, "ECHO", 0.1)
        monkeypatch.setattr(listener_module, "SILENCE", 0.05)
        (listening,) = storage._opened.wakes.listeners
        assert isinstance(listening, listener_module.PostgreSQLListener)
        listening._say = partial(storage._notify, "creche_elsewhere")
        await storage._calls.run(_say_to(storage._opened.channel))  # so that it comes round to the shorter silence
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}
            with pytest.raises(StorageUnavailable):
                await listener.wait()


def _say_to(channel: str) -> Any:
    async def work(connection: Any) -> None:
        await connection.execute("SELECT pg_notify(%s, 'q')", [channel])

    return work


async def test_a_listener_whose_connection_is_cut_says_so(storage: PostgreSQLStorage, raw: Raw) -> None:
    async with storage, storage.listen(["q"]) as listener:
        raw.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN \"creche_s%'")
        with anyio.fail_after(SOON), pytest.raises(StorageUnavailable):
            await listener.wait()
        # Another one can be had at once.
        async with storage.listen(["q"]) as another:
            await storage.insert(jobs(1, queue_name="q"))
            with anyio.fail_after(SOON):
                assert await another.wait() == {"q"}


async def test_a_cancellation_notifies_the_holders_and_nobody_else(
    dsn: str, storage: PostgreSQLStorage, raw: Raw
) -> None:
    async with PostgreSQLStorage(dsn) as other:
        new = jobs(3)
        await other.insert(new, now=T0)
        for worker in ("first", "second"):
            await other.reserve(["default"], 1, lease=60, worker=worker, nonce=1, now=T0)
    async with storage:
        assert storage._opened is not None
        raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(storage._opened.channel)))
        await storage.cancel([job.id for job in new[1:]], now=T0)
    assert [notify.payload for notify in raw.notifies(timeout=0.2)] == ["second"]


async def test_a_waiting_job_that_delete_leaves_alone_is_told_of_again(
    dsn: str, storage: PostgreSQLStorage, raw: Raw
) -> None:
    new = jobs(1, queue_name="q")
    async with PostgreSQLStorage(dsn) as other:
        await other.insert(new, now=T0)
    async with storage:
        assert storage._opened is not None
        raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(storage._opened.channel)))
        await storage.delete([new[0].id])  # a reserve that came just then has passed it over
    assert [notify.payload for notify in raw.notifies(timeout=0.2)] == ["q"]


async def test_a_queue_of_which_nothing_is_set_has_no_row(storage: PostgreSQLStorage, raw: Raw) -> None:
    async with storage:
        await storage.pause(["a", "b", "c"], now=T0)
        await storage.set_retention("b", Retention())
        await storage.set_retention("d", Retention())
        await storage.resume(["a", "b", "unknown"])
        await storage.set_retention("d", None)
        await storage.set_retention("unknown", None)
    left = raw.execute("SELECT queue_name, paused_at IS NULL FROM creche_queues ORDER BY queue_name").fetchall()
    assert left == [("b", True), ("c", False)]


async def test_a_pause_and_a_reserve_wait_for_each_other_nowhere(storage: PostgreSQLStorage, raw: Raw) -> None:
    async with storage:
        await storage.pause(["paused"], now=T0)
        await storage.insert(jobs(1), now=T0)
        with raw.transaction(), anyio.fail_after(SOON):
            raw.execute("SELECT FROM creche_queues FOR UPDATE")
            taken = await storage.reserve(["paused", "default"], 1, lease=60, worker="w", nonce=1, now=T0)
            assert (await storage.maintain(10, retention=Retention(), now=T0)).pruned == 0
        assert len(taken.jobs) == 1


async def test_many_inserts_are_few_notifications(
    dsn: str, storage: PostgreSQLStorage, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "NOTIFY_PAUSE", 0.5)
    began = anyio.current_time()
    async with storage, storage.listen(["q"]):
        assert storage._opened is not None
        raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(storage._opened.channel)))
        for _ in range(100):
            await storage.insert(jobs(1, queue_name="q"))
    most = 2 + (anyio.current_time() - began) / 0.5  # the first at once, and the last when it is closed
    heard = [notify.payload for notify in raw.notifies(timeout=0.2)]
    assert heard
    assert set(heard) == {"q"}
    assert len(heard) <= most
