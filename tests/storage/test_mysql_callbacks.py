"""Callbacks on MySQL and MariaDB: to the byte, between connections, and what a dispatch that joins leaves behind."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, Final

import anyio
import pytest

from creche._ids import new_job_id
from creche._job import (
    CHAIN_LIMIT,
    Event,
    Failure,
    FollowUp,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    On,
    Origin,
    Progress,
    Retention,
    Settlement,
    Status,
)
from creche.storage._asyncmy import Answer, Connection
from creche.storage._mysql_calls import BEGIN, together
from creche.storage._mysql_ends import settling
from creche.storage._mysql_literals import clock
from creche.storage._pool import TransientConflict
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import connect_mysql
from databases import empty_database
from mysql_contract import Server

pytestmark = pytest.mark.anyio

TEXTS: Final = (
    "",
    "'",
    "\\",
    "\\'",
    'it\'s "so" \\" \\\\ %s %% %(x)s ; -- # /* */',
    "ä€\U0001f423\u2028\ufeff",
    "\\u0000\\n\t\n\r\x08\x1f",
    "{} [] $.a $[0] null",
    " trailing ",
)
PRINT: Final = b"f" * 32


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(scope="module")
def dsn(server: Server) -> Iterator[str]:
    """The DSN of a migrated database."""
    with empty_database(server) as dsn:
        anyio.run(MySQLStorage(dsn).migrate)
        yield dsn


@pytest.fixture
async def storage(dsn: str) -> AsyncIterator[MySQLStorage]:
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        for table in ("jobs", "dead_letters", "watches"):
            cursor.execute(f"DELETE FROM creche_{table}")
    async with MySQLStorage(dsn, call_timeout=5) as storage:
        yield storage


def follow_up(on: On = On.SUCCESS, **options: Any) -> FollowUp:
    usual: dict[str, Any] = {"id": new_job_id(), "type": "next", "queue_name": "after", "on": on, "head": "{}"}
    return FollowUp(**{**usual, **options})


def job(*callbacks: FollowUp, **options: Any) -> NewJob:
    usual: dict[str, Any] = {"id": new_job_id(), "type": "work", "payload": b"{}", "callbacks": callbacks}
    return NewJob(**{**usual, **options})


async def taken(storage: MySQLStorage, queue: str = "default") -> Lease:
    reservation = await storage.reserve([queue], 1, lease=60, worker="w", nonce=1)
    return reservation.jobs[0].lease


async def end(storage: MySQLStorage, lease: Lease, event: Event = Event.SUCCEED, **options: Any) -> None:
    assert (await storage.settle([Settlement(lease=lease, event=event, **options)])).accepted == {lease}


async def rows(storage: MySQLStorage, queue: str = "after") -> list[JobRecord]:
    return [*await storage.list(JobFilter(queues=frozenset({queue})), 1_000)]


@asynccontextmanager
async def half_settled(storage: MySQLStorage, lease: Lease) -> AsyncGenerator[None]:
    """A settle whose statements have run, and whose commit comes at the end of the block."""
    end = Settlement(lease=lease, event=Event.SUCCEED, result=b"1")
    connection = await storage._driver.connect()  # pyright: ignore[reportPrivateUsage]
    render = storage._render  # pyright: ignore[reportPrivateUsage]
    try:
        statements = settling(render, [end], now=clock(None), most=connection.max_allowed_packet)
        await connection.run(";\n".join(["START TRANSACTION", *statements]))
        yield
        await connection.run("COMMIT")
    finally:
        await connection.aclose()


# --- to the byte ------------------------------------------------------------------------------------


async def test_what_follows_is_exact_to_the_byte(storage: MySQLStorage) -> None:
    for text in TEXTS:
        around = [text, f"{{{text}", f"[{text}]"]
        callbacks = [
            follow_up(head=around[0], tail=around[1]),
            follow_up(On.ALWAYS, head=around[2], then=(follow_up(head=text, tail=text),)),
        ]
        first = job(*callbacks)
        await storage.insert([first])
        await end(storage, await taken(storage), result=text.encode())
        written = {row.id: row for row in await rows(storage)}
        assert written[callbacks[0].id].payload == f"{around[0]}{text}{around[1]}".encode()
        assert written[callbacks[1].id].payload == around[2].encode()
        for row in written.values():
            if row.status is Status.PENDING:
                await end(storage, await taken(storage, "after"), result=text.encode())
        (last,) = [row for row in await rows(storage) if row.status is Status.PENDING]
        assert last.payload == f"{text}{text}{text}".encode()
        await end(storage, await taken(storage, "after"))


async def test_an_error_reaches_what_follows_as_it_was(storage: MySQLStorage) -> None:
    for text in filter(None, TEXTS):
        failure = Failure(type=text, message=f"{text}\x00", traceback=text * 3)
        callback = follow_up(On.FAILURE, queue_name="ä'\\", type="t'\\ä")
        first = job(callback, queue_name="q'\\ä", type="T'\\ä")
        await storage.insert([first])
        lease = await taken(storage, "q'\\ä")
        await end(storage, lease, Event.RETRY, error=Failure(type="Earlier", message="no"))
        await storage.retry([first.id])
        await end(storage, await taken(storage, "q'\\ä"), Event.FAIL, error=failure)
        reservation = await storage.reserve(["ä'\\"], 1, lease=60, worker="w", nonce=1)
        assert reservation.jobs[0].origin == Origin(
            job_id=first.id, type="T'\\ä", queue_name="q'\\ä", status=Status.FAILED, error=failure
        )
        assert (await storage.find([callback.id]))[callback.id].origin == reservation.jobs[0].origin


async def test_the_longest_chain_runs_to_its_end(storage: MySQLStorage) -> None:
    chain: tuple[FollowUp, ...] = ()
    for link in range(CHAIN_LIMIT):
        chain = (follow_up(head=f"{link}:", tail="'\\", then=chain),)
    await storage.insert([job(*chain, queue_name="after")])
    for _ in range(CHAIN_LIMIT):
        await end(storage, await taken(storage, "after"), result=b'"r"')
    last = await storage.reserve(["after"], 1, lease=60, worker="w", nonce=1)
    assert last.jobs[0].payload == b'0:"r"\'\\'


async def test_a_megabyte_of_payload_and_result_goes_through(storage: MySQLStorage) -> None:
    text = "ä'\\" * 200_000
    callback = follow_up(head=text, tail=text)
    await storage.insert([job(callback)])
    await end(storage, await taken(storage), result=text.encode())
    assert (await storage.find([callback.id]))[callback.id].payload == (text * 3).encode()


# --- each once, and what is not called for stays ----------------------------------------------------


async def test_a_revived_job_may_end_in_another_way(storage: MySQLStorage) -> None:
    callbacks = {on: follow_up(on) for on in On}
    first = job(*callbacks.values())
    await storage.insert([first])
    await end(storage, await taken(storage), Event.FAIL, error=Failure(type="E", message="m"))
    assert {row.id for row in await rows(storage)} == {callbacks[On.FAILURE].id, callbacks[On.ALWAYS].id}
    await storage.retry([first.id])
    await end(storage, await taken(storage))
    assert {row.id for row in await rows(storage)} == {each.id for each in callbacks.values()}
    await end(storage, await taken(storage, "after"))
    assert len(await rows(storage)) == 3


@pytest.mark.parametrize("alike", [False, True])
async def test_only_a_job_that_is_followed_takes_a_second_transaction_to_end(
    storage: MySQLStorage, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    sent: list[int] = []
    run = Connection.run

    async def counted(connection: Connection, sql: str) -> list[Answer]:
        answers = await run(connection, sql)
        if sql.startswith(BEGIN):  # which a wake that is under way does not
            sent.append(len(answers))
        return answers

    callback = follow_up()
    await storage.insert([job() for _ in range(3)] + [job(callback)])
    reservation = await storage.reserve(["default"], 4, lease=60, worker="w", nonce=1)
    *plain, followed = [
        Settlement(lease=each.lease, event=Event.SUCCEED, result=b"null" if alike else b"%d" % number)
        for number, each in enumerate(reservation.jobs)
    ]
    monkeypatch.setattr(Connection, "run", counted)
    assert len((await storage.settle(plain)).accepted) == 3
    # One trip, commit and all: an event loop that is blocked meanwhile holds up nothing. Those that are alike: begin,
    # complete, what to ask, prepare, execute, commit. The others: begin, settle, settled, commit.
    assert sent == ([6] if alike else [4])
    sent.clear()
    assert len((await storage.settle([*plain, followed])).accepted) == 4
    assert len(sent) == 2
    assert [row.id for row in await rows(storage)] == [callback.id]


async def test_what_upkeep_ends_is_followed_and_its_watchers_are_woken(storage: MySQLStorage) -> None:
    doomed, unwanted = job(follow_up(On.FAILURE), max_attempts=1), job(follow_up(On.ALWAYS))
    await storage.insert([doomed, unwanted])
    await storage.reserve(["default"], 2, lease=0.000001, worker="w", nonce=1)
    await storage.cancel([unwanted.id])
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(storage.listen(["after"]))
        watcher = await stack.enter_async_context(storage.listen(["me"]))
        await storage.watch([doomed.id, unwanted.id], watcher="me")
        upkeep = await storage.maintain(10, retention=Retention())
        assert (upkeep.recovered, upkeep.buried) == (1, 1)
        with anyio.fail_after(3):
            assert "after" in await listener.wait()
            assert "me" in await watcher.wait()
    assert {row.origin.status for row in await rows(storage) if row.origin} == {Status.FAILED, Status.CANCELLED}
    ends = await storage.watch([doomed.id, unwanted.id])
    assert {end.status for end in ends.values() if end} == {Status.FAILED, Status.CANCELLED}


async def test_a_watch_is_written_once_and_goes_when_it_is_old(dsn: str, storage: MySQLStorage) -> None:
    jobs = [job() for _ in range(1_000)]
    await storage.insert(jobs)
    ids = [each.id for each in jobs]
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        for _ in range(2):
            assert set((await storage.watch(ids, watcher="w")).values()) == {None}
            cursor.execute("SELECT COUNT(*), COUNT(DISTINCT since) FROM creche_watches")
            assert cursor.fetchone() == (1_000, 1)
        await storage.watch(ids[:1], watcher="w", over=ids[1:11])
        cursor.execute("UPDATE creche_watches SET since = since - INTERVAL 61 MINUTE LIMIT 500")
        for left in (790, 590, 490, 490):
            await storage.maintain(200, retention=Retention())
            cursor.execute("SELECT COUNT(*) FROM creche_watches")
            assert cursor.fetchone() == (left,)


async def test_progress_comes_back_as_it_was_told(storage: MySQLStorage) -> None:
    await storage.insert([job() for _ in range(40)])
    reservation = await storage.reserve(["default"], 40, lease=60, worker="w", nonce=1)
    dice = random.Random(4)
    told = {
        each.lease: Progress(fraction=dice.choice([0.0, 1.0, 1, dice.random()]), message=dice.choice(TEXTS))
        for each in reservation.jobs[:30]
    }
    await storage.extend([each.lease for each in reservation.jobs], 60, progress=told)
    found = await storage.find([each.id for each in reservation.jobs])
    assert {lease: found[lease.job_id].progress for lease in told} == told
    assert found[reservation.jobs[-1].id].progress is None


# --- two connections --------------------------------------------------------------------------------


async def test_a_join_that_comes_while_the_job_ends_waits_and_is_followed(storage: MySQLStorage) -> None:
    await storage.insert([job(fingerprint=PRINT)])
    lease = await taken(storage)
    joining = job(follow_up(head="<", tail=">"), fingerprint=PRINT)
    (answer,) = await answers_after(storage, lease, joining)
    # Without a result_ttl the job answers no more: what was asked for is a job of its own, followed by its own end.
    assert (answer.job_id, answer.inserted) == (joining.id, True)
    assert await rows(storage) == []
    await end(storage, await taken(storage), result=b"2")
    assert [row.payload for row in await rows(storage)] == [b"<2>"]


async def test_a_join_that_comes_while_a_cached_job_ends_is_followed_at_once(storage: MySQLStorage) -> None:
    first = job(fingerprint=PRINT, result_ttl=60)
    await storage.insert([first])
    lease = await taken(storage)
    (answer,) = await answers_after(storage, lease, job(follow_up(head="<", tail=">"), fingerprint=PRINT))
    assert (answer.job_id, answer.status, answer.result) == (first.id, Status.COMPLETED, b"1")
    assert [row.payload for row in await rows(storage)] == [b"<1>"]


async def answers_after(storage: MySQLStorage, lease: Lease, joining: NewJob) -> list[Insertion]:
    """Dispatch a job while another's end is not committed yet; it must wait for that."""
    answers: list[Insertion] = []

    async def join() -> None:
        answers.extend(await storage.insert([joining]))

    async with anyio.create_task_group() as group, half_settled(storage, lease):
        group.start_soon(join)
        await anyio.sleep(0.2)
        assert answers == []
    return answers


async def test_a_settle_that_comes_while_a_join_is_uncommitted_waits_and_is_followed(
    dsn: str, storage: MySQLStorage
) -> None:
    first, callback = job(fingerprint=PRINT), follow_up()
    await storage.insert([first])
    lease = await taken(storage)
    with closing(connect_mysql(dsn, autocommit=False)) as theirs:
        theirs.begin()
        (answer,) = await storage.insert([job(callback, fingerprint=PRINT)], connection=theirs)
        assert (answer.job_id, answer.status) == (first.id, Status.PROCESSING)
        async with anyio.create_task_group() as group:
            group.start_soon(end, storage, lease)
            await anyio.sleep(0.2)
            theirs.commit()
    assert [row.id for row in await rows(storage)] == [callback.id]


async def test_of_many_dispatches_while_jobs_end_none_runs_twice_within_its_time(storage: MySQLStorage) -> None:
    prints = [bytes([n]) * 32 for n in range(6)]
    callbacks: list[FollowUp] = []
    ran: list[Lease] = []

    async def dispatch() -> None:
        for fingerprint in prints:
            callback = follow_up(head='"', tail='"')
            callbacks.append(callback)
            await storage.insert([job(callback, fingerprint=fingerprint, result_ttl=600)])

    async def work() -> None:
        while len(ran) < len(prints):
            reservation = await storage.reserve(["default"], 2, lease=60, worker="w", nonce=1)
            for each in reservation.jobs:
                ran.append(each.lease)
                await end(storage, each.lease, result=b"7")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(dispatch)
            group.start_soon(work)
    assert len(await rows(storage, "default")) == len(prints)
    followed = await rows(storage)
    assert {row.id for row in followed} == {each.id for each in callbacks}
    assert {row.payload for row in followed} == {b'"7"'}


async def test_a_dispatch_sent_twice_is_followed_once(storage: MySQLStorage) -> None:
    callbacks = [follow_up(), follow_up(On.ALWAYS)]
    first = job(*callbacks, fingerprint=PRINT, result_ttl=60)
    joins = job(follow_up(), fingerprint=PRINT)
    for _ in range(2):
        await storage.insert([first, joins])
    await end(storage, await taken(storage))
    for _ in range(2):
        await storage.insert([first, joins])
    assert {row.id for row in await rows(storage)} == {*(each.id for each in callbacks), joins.callbacks[0].id}


async def test_a_pending_job_that_is_joined_wakes_its_queue(storage: MySQLStorage) -> None:
    await storage.insert([job(fingerprint=PRINT)])
    async with storage.listen(["default"]) as listener:
        await anyio.sleep(0.1)
        with anyio.move_on_after(0.2):
            await listener.wait()
        await storage.insert([job(follow_up(), fingerprint=PRINT)])
        with anyio.fail_after(3):
            assert "default" in await listener.wait()


# --- refreshed results ------------------------------------------------------------------------------


async def test_within_a_batch_a_result_answers_until_somebody_refreshes_it(storage: MySQLStorage) -> None:
    cached = job(fingerprint=PRINT, result_ttl=60)
    await storage.insert([cached])
    await end(storage, await taken(storage), result=b"1")
    before, callback = job(fingerprint=PRINT), follow_up()
    joined = job(callback, fingerprint=PRINT)
    fresh, behind = job(fingerprint=PRINT, refresh=True), job(fingerprint=PRINT)
    answers = await storage.insert([before, joined, fresh, behind])
    assert [answer.job_id for answer in answers] == [cached.id, cached.id, fresh.id, fresh.id]
    assert [row.id for row in await rows(storage)] == [callback.id]
    (again,) = await storage.insert([job(fingerprint=PRINT, refresh=True)])
    assert again.job_id == fresh.id, "an active job goes on answering"


@pytest.mark.parametrize("results", [[b"1", b"2"], [b"1", b"1"]], ids=["different", "alike"])
async def test_what_the_first_trip_of_a_settle_has_ended_is_not_lost_when_the_second_is_run_again(
    storage: MySQLStorage, monkeypatch: pytest.MonkeyPatch, results: Sequence[bytes]
) -> None:
    leases: list[Lease] = []
    for each in (job(), job(follow_up())):
        await storage.insert([each])
        leases.append(await taken(storage))
    trips = 0

    async def undone_once(connection: Connection, statements: Sequence[str]) -> list[Answer]:
        nonlocal trips
        trips += 1
        if trips == 2:
            await storage.maintain(10, retention=Retention(completed=0))
            raise TransientConflict("a rival was in the way")
        return await together(connection, statements)

    monkeypatch.setattr("creche.storage._mysql_ends.together", undone_once)
    settled = await storage.settle(
        [
            Settlement(lease=lease, event=Event.SUCCEED, result=result)
            for lease, result in zip(leases, results, strict=True)
        ]
    )
    assert trips == 4
    assert set(await storage.find([lease.job_id for lease in leases])) == {leases[1].job_id}
    assert settled.accepted == set(leases)
    assert not settled.lost
