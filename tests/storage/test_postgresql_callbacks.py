"""Callbacks on PostgreSQL where two sessions meet: who waits for whom, and that each is written once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, LiteralString

import anyio
import psycopg
import pytest

from creche._ids import new_job_id, new_nonce
from creche._job import (
    ERRORS_KEPT,
    Event,
    Failure,
    FollowUp,
    Insertion,
    Lease,
    NewJob,
    On,
    Retention,
    Settlement,
    Status,
)
from creche.storage._pool import TransientConflict
from creche.storage._postgresql_calls import OwnRunner, bare
from creche.storage._postgresql_documents import settlements_document
from creche.storage._sql import load
from creche.storage.postgresql import PostgreSQLStorage

pytestmark = pytest.mark.anyio

SQL: Final = {name: bare(text) for name, text in load("postgresql").statements.items()}
PRINT: Final = b"p" * 32
SOON: Final = 5.0  # seconds: what takes longer hangs
WAITING: Final = "SELECT FROM pg_locks WHERE NOT granted"
Raw = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
async def storage(postgresql_dsn: str) -> AsyncIterator[PostgreSQLStorage]:
    storage = PostgreSQLStorage(postgresql_dsn)
    await storage.migrate()
    async with storage:
        yield storage


@pytest.fixture
def raw(postgresql_dsn: str) -> Iterator[Raw]:
    """Another session, in a transaction from its first statement on."""
    with psycopg.connect(postgresql_dsn) as connection:
        yield connection


@pytest.fixture
def eye(postgresql_dsn: str) -> Iterator[Raw]:
    """A session that looks on."""
    with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
        yield connection


async def until(eye: Raw, query: LiteralString) -> None:
    """Wait until a query finds something: for what another session does, and nothing tells of."""
    with anyio.fail_after(SOON):
        while not eye.execute(query).rowcount:  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.01)


def job(**options: Any) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", fingerprint=PRINT, **options)


def follow_up(on: On = On.SUCCESS, **options: Any) -> FollowUp:
    return FollowUp(id=new_job_id(), type="after", queue_name="after", head='{"of":', tail="}", on=on, **options)


async def hold(storage: PostgreSQLStorage, **options: Any) -> Lease:
    await storage.insert([job(**options)])
    taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
    return taken.jobs[0].lease


def succeed(lease: Lease) -> Settlement:
    return Settlement(lease=lease, event=Event.SUCCEED, result=b"[1, 2]")


def end(raw: Raw, lease: Lease) -> None:
    """What a settle does, left uncommitted."""
    document = settlements_document([succeed(lease)], followed=True)
    raw.execute(SQL["settle"], {"settlements": document, "kept": ERRORS_KEPT, "horizon": 30.0, "now": None})
    raw.execute(SQL["follow_up"], {"ids": [lease.job_id], "now": None})


def written(eye: Raw) -> list[tuple[Any, ...]]:
    return eye.execute("SELECT id, payload::text FROM creche_jobs WHERE type = 'after' ORDER BY id").fetchall()


def left(eye: Raw, lease: Lease) -> Any:
    (row,) = eye.execute("SELECT callbacks FROM creche_jobs WHERE id = %s", [lease.job_id]).fetchall()
    return row[0]


PAYLOAD: Final = '{"of":[1, 2]}'


async def test_a_settle_waits_for_the_callback_that_is_being_recorded_and_writes_it(
    storage: PostgreSQLStorage, raw: Raw, eye: Raw
) -> None:
    lease = await hold(storage)
    callback = follow_up()
    async with anyio.create_task_group() as settling:
        await storage.insert([job(callbacks=(callback,))], connection=raw)
        settling.start_soon(storage.settle, [succeed(lease)])
        await until(eye, WAITING)
        raw.commit()
    assert written(eye) == [(callback.id, PAYLOAD)]
    assert left(eye, lease) is None


async def test_a_batch_in_which_one_job_was_given_a_callback_meanwhile_is_settled_as_a_whole(
    storage: PostgreSQLStorage, raw: Raw, eye: Raw
) -> None:
    await storage.insert([job(), *(NewJob(id=new_job_id(), type="work", payload=b"{}") for _ in range(3))])
    taken = await storage.reserve(["default"], 4, lease=60, worker="w", nonce=new_nonce())
    callback = follow_up()
    accepted: list[Any] = []

    async def settle() -> None:
        accepted.append((await storage.settle([succeed(job.lease) for job in taken.jobs])).accepted)

    async with anyio.create_task_group() as settling:
        await storage.insert([job(callbacks=(callback,))], connection=raw)
        settling.start_soon(settle)
        await until(eye, WAITING)
        raw.commit()
    assert accepted == [{job.lease for job in taken.jobs}]
    assert written(eye) == [(callback.id, PAYLOAD)]


async def test_a_dispatch_waits_for_the_end_that_is_being_written_and_has_its_callback_run(
    storage: PostgreSQLStorage, raw: Raw, eye: Raw
) -> None:
    lease = await hold(storage, result_ttl=60)
    callback = follow_up()
    answers: list[Insertion] = []

    async def join() -> None:
        answers.extend(await storage.insert([job(callbacks=(callback,))]))

    async with anyio.create_task_group() as joining:
        end(raw, lease)
        joining.start_soon(join)
        await until(eye, WAITING)
        assert not answers
        raw.commit()
    assert [(answer.job_id, answer.status, answer.result) for answer in answers] == [
        (lease.job_id, Status.COMPLETED, b"[1, 2]")
    ]
    assert written(eye) == [(callback.id, PAYLOAD)]
    assert left(eye, lease) is None


async def test_a_dispatch_waits_for_the_end_that_is_rolled_back_and_records_its_callback(
    storage: PostgreSQLStorage, raw: Raw, eye: Raw
) -> None:
    lease = await hold(storage)
    callback = follow_up()
    async with anyio.create_task_group() as joining:
        end(raw, lease)
        joining.start_soon(storage.insert, [job(callbacks=(callback,))])
        await until(eye, WAITING)
        raw.rollback()
    assert written(eye) == []
    await storage.settle([succeed(lease)])
    assert written(eye) == [(callback.id, PAYLOAD)]


async def test_of_two_settles_one_writes_the_callbacks(storage: PostgreSQLStorage, raw: Raw, eye: Raw) -> None:
    callback = follow_up()
    lease = await hold(storage, callbacks=(callback,))
    accepted: list[Any] = []

    async def settle() -> None:
        accepted.append((await storage.settle([succeed(lease)])).accepted)

    async with anyio.create_task_group() as settling:
        end(raw, lease)
        settling.start_soon(settle)
        await until(eye, WAITING)
        raw.commit()
    assert accepted == [{lease}]
    assert written(eye) == [(callback.id, PAYLOAD)]


async def test_while_a_job_completes_no_dispatch_runs_it_again_within_its_time(
    storage: PostgreSQLStorage, raw: Raw, eye: Raw
) -> None:
    lease = await hold(storage, result_ttl=60)
    answers: list[Insertion] = []

    async def ask() -> None:
        callbacks = (follow_up(),)
        answers.extend(await storage.insert([job(callbacks=callbacks)]))
        answers.extend(await storage.insert([job(callbacks=callbacks)]))

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as asking:
            for number in range(10):
                asking.start_soon(ask)
                if number == 5:
                    asking.start_soon(storage.settle, [succeed(lease)])
    assert {answer.job_id for answer in answers} == {lease.job_id}
    assert len(written(eye)) == 10  # each twice dispatched, each once written
    assert {payload for _, payload in written(eye)} == {PAYLOAD}


async def test_of_many_that_refresh_at_once_exactly_one_inserts(storage: PostgreSQLStorage) -> None:
    lease = await hold(storage, result_ttl=60)
    await storage.settle([succeed(lease)])
    answers: list[Insertion] = []

    async def refresh() -> None:
        answers.extend(await storage.insert([job(refresh=True, callbacks=(follow_up(),))]))

    async with anyio.create_task_group() as refreshing:
        for _ in range(20):
            refreshing.start_soon(refresh)
    assert sum(answer.inserted for answer in answers) == 1
    (new,) = {answer.job_id for answer in answers}
    assert new != lease.job_id


async def test_a_refresh_that_is_sent_again_lets_go_of_nothing(storage: PostgreSQLStorage) -> None:
    refreshed, keyed = job(refresh=True, result_ttl=60), job(refresh=True, idempotency_key="k")
    await storage.insert([refreshed])
    taken = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
    await storage.settle([succeed(taken.jobs[0].lease)])
    await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}", idempotency_key="k")])
    await storage.insert([refreshed])
    await storage.insert([keyed])
    (answer,) = await storage.insert([job()])
    assert (answer.job_id, answer.result) == (refreshed.id, b"[1, 2]")


async def test_within_a_batch_a_refresh_comes_after_what_a_cached_result_answers(storage: PostgreSQLStorage) -> None:
    lease = await hold(storage, result_ttl=60)
    await storage.settle([succeed(lease)])
    cached, fresh, joining, again = job(), job(refresh=True), job(), job(refresh=True)
    answers = await storage.insert([cached, fresh, joining, again])
    assert [answer.job_id for answer in answers] == [lease.job_id, fresh.id, fresh.id, fresh.id]


async def test_a_batch_with_callbacks_is_whole_or_not_at_all(
    postgresql_dsn: str, storage: PostgreSQLStorage, raw: Raw, eye: Raw
) -> None:
    lease = await hold(storage)
    raw.execute("SELECT FROM creche_jobs WHERE id = %s FOR UPDATE", [lease.job_id])
    batch = [NewJob(id=new_job_id(), type="work", payload=b"{}"), job(callbacks=(follow_up(),))]
    async with anyio.create_task_group() as inserting:
        inserting.start_soon(storage.insert, batch)
        await until(eye, WAITING)
        inserting.cancel_scope.cancel()
        cancelled = anyio.current_time()
    assert anyio.current_time() - cancelled < SOON  # though it waits for a lock that we hold
    raw.rollback()
    assert await storage.find([batch[0].id]) == {}
    assert left(eye, lease) is None


async def test_a_waiting_job_that_was_passed_over_while_it_got_a_callback_wakes_its_queue(
    storage: PostgreSQLStorage,
) -> None:
    await storage.insert([job(queue_name="q")])
    async with storage.listen(["q"]) as listener:
        with anyio.move_on_after(0.2):
            await listener.wait()
        await storage.insert([job(callbacks=(follow_up(),))])
        with anyio.fail_after(SOON):
            assert await listener.wait() == {"q"}


async def test_the_origin_is_written_as_the_storages_in_python_write_it(storage: PostgreSQLStorage, eye: Raw) -> None:
    callbacks = tuple(follow_up(on, then=(follow_up(),)) for on in On)
    lease = await hold(storage, callbacks=callbacks)
    error = Failure(type="E", message='"ä" \\ \n', traceback="t" * 1000)
    for attempt in range(ERRORS_KEPT + 2):
        await storage.settle(
            [Settlement(lease=lease, event=Event.RETRY, error=Failure(type="E", message=str(attempt)))]
        )
        again = await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())
        lease = again.jobs[0].lease
    await storage.settle([Settlement(lease=lease, event=Event.FAIL, error=error)])
    taken = await storage.reserve(["after"], 10, lease=60, worker="w", nonce=new_nonce())
    assert {job.id for job in taken.jobs} == {callbacks[1].id, callbacks[2].id}
    origins = {job.origin for job in taken.jobs}
    (origin,) = origins
    assert origin is not None
    assert (origin.job_id, origin.type, origin.queue_name) == (lease.job_id, "work", "default")
    assert (origin.status, origin.error) == (Status.FAILED, error)
    assert left(eye, lease).keys() == {"success"}
    assert {job.payload for job in taken.jobs} == {b'{"of":null}'}
    assert left(eye, taken.jobs[0].lease).keys() == {"success"}


async def test_a_poll_of_a_thousand_watched_jobs_writes_nothing_again(storage: PostgreSQLStorage, eye: Raw) -> None:
    jobs = [NewJob(id=new_job_id(), type="work", payload=b"{}") for _ in range(1_000)]
    ids = [job.id for job in jobs]
    await storage.insert(jobs)
    query = "SELECT count(*), count(DISTINCT since), min(xmin::text) = max(xmin::text) FROM creche_watches"
    for _ in range(3):
        assert await storage.watch(ids, watcher="me") == dict.fromkeys(ids)
        assert eye.execute(query).fetchone() == (1_000, 1, True)
    await storage.watch([], watcher="me", over=ids)
    assert eye.execute(query).fetchone() == (0, 0, None)


async def test_what_the_first_trip_of_a_settle_has_ended_is_not_lost_when_the_second_is_run_again(
    storage: PostgreSQLStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases: list[Lease] = []
    for callbacks in ((), (follow_up(),)):
        await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}", callbacks=callbacks)])
        leases.append((await storage.reserve(["default"], 1, lease=60, worker="w", nonce=new_nonce())).jobs[0].lease)
    settle_all, trips = OwnRunner.rows, 0

    async def alone(self: OwnRunner, name: str, parameters: dict[str, Any]) -> Any:
        """Leave the job with callbacks to the second trip, as if they had come between the two."""
        if name == "settle" and trips == 0:
            end = settlements_document([Settlement(lease=leases[0], event=Event.SUCCEED, result=b"1")])
            left = leases[1]
            answer = await settle_all(self, name, parameters | {"settlements": end})
            return [*answer, (left.job_id, left.token, left.nonce, None)]
        return await settle_all(self, name, parameters)

    together = OwnRunner.together

    async def undone_once(self: OwnRunner, names: Sequence[str], parameters: dict[str, Any]) -> Any:
        nonlocal trips
        if names[0] == "settle":
            trips += 1
            if trips == 1:
                await storage.maintain(10, retention=Retention(completed=0))
                raise TransientConflict("a rival was in the way")
        return await together(self, names, parameters)

    monkeypatch.setattr(OwnRunner, "rows", alone)
    monkeypatch.setattr(OwnRunner, "together", undone_once)
    settled = await storage.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1") for lease in leases])
    assert trips == 2
    assert set(await storage.find([lease.job_id for lease in leases])) == {leases[1].job_id}
    assert settled.accepted == set(leases)
    assert not settled.lost
