"""What a storage sees, and is spared, on a cluster where several servers take writes."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import anyio
import pytest
from asyncmy.errors import MySQLError

from creche._ids import new_job_id, new_nonce
from creche._job import Event, JobFilter, Lease, NewJob, Retention, Settlement, Status
from creche.errors import StorageUnavailable
from creche.storage._asyncmy import Connection, translated
from creche.storage._mysql_calls import together
from creche.storage._mysql_cluster import GALERA, GROUP
from creche.storage._pool import TransientConflict
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import GaleraCluster, MySQLGroup, connect_mysql, private_galera, private_group
from ha.conftest import must_be_there
from processes import eventually

pytestmark = pytest.mark.anyio

Cluster: TypeAlias = GaleraCluster | MySQLGroup

T0: Final = datetime(2030, 1, 1, tzinfo=UTC)
SOON: Final = 60.0  # seconds: what takes longer hangs


@pytest.fixture(scope="module", params=["galera", "group"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    must_be_there(request.param)
    with private_galera() if request.param == "galera" else private_group(several_writers=True) as servers:
        yield servers


def members(cluster: Cluster, database: str) -> list[str]:
    """The DSN of each server alone."""
    return [node.dsn(database) for node in cluster.nodes]


@pytest.fixture
async def database(cluster: Cluster) -> str:
    """The name of a migrated, empty database."""
    name = f"creche_{secrets.token_hex(6)}"
    cluster.create_database(name)
    await MySQLStorage(members(cluster, name)[0]).migrate()
    return name


async def take(storage: MySQLStorage, limit: int = 1, now: datetime | None = None) -> list[Lease]:
    reserved = await storage.reserve(["default"], limit, lease=10, worker="w", nonce=new_nonce(), now=now)
    return [job.lease for job in reserved.jobs]


def jobs(count: int) -> list[NewJob]:
    return [NewJob(id=new_job_id(), type="work", payload=b"{}") for _ in range(count)]


async def test_what_was_done_on_one_member_is_known_on_the_next(cluster: Cluster, database: str) -> None:
    """Without waiting for it, one in five or so was not (Galera: 161 of 500)."""
    one, two, three = (MySQLStorage(dsn) for dsn in members(cluster, database))
    async with one, two, three:
        for job in jobs(100):
            await one.insert([job])
            assert (await two.find([job.id])).keys() == {job.id}
            (lease,) = await take(three)
            assert (await one.extend([lease], 10)).held == {lease}
            settled = await two.settle([Settlement(lease=lease, event=Event.SUCCEED, result=b"1")])
            assert settled.accepted == {lease}
            assert (await three.watch([job.id]))[job.id] is not None


async def test_of_rivals_on_several_members_one_wins_and_knows_it(cluster: Cluster, database: str) -> None:
    taken = list[Lease]()

    async def rival(dsn: str) -> None:
        async with MySQLStorage(f"{dsn}?call_timeout=30") as storage:
            while True:
                leases = await take(storage, 3)
                taken.extend(leases)
                if not leases and not [stats for stats in await storage.stats() if stats.counts.get(Status.PENDING)]:
                    return

    everybody = members(cluster, database)
    async with MySQLStorage(everybody[0]) as storage:
        await storage.insert(jobs(600))
        with anyio.fail_after(10 * SOON):
            async with anyio.create_task_group() as rivals:
                for dsn in everybody * 2:
                    rivals.start_soon(rival, dsn)
        assert Counter(Counter(lease.job_id for lease in taken).values()) == {1: 600}
        held = await storage.extend(taken, 10)
        assert held.held == set(taken)


async def test_a_transaction_that_was_undone_for_a_rival_says_so(cluster: Cluster, database: str) -> None:
    """MariaDB loses that error between two statements of one packet, and says OK to the COMMIT behind them. So three of
    two thousand reserves believed in leases that they didn't have.
    """
    one, two = (MySQLStorage(dsn) for dsn in members(cluster, database)[:2])
    async with one, two:
        await one.insert(jobs(1))
        begun = anyio.Event()

        async def slowly(connection: Connection) -> None:
            update = "UPDATE creche_jobs SET locked_by = 'one'"
            begun.set()
            with pytest.raises(MySQLError) as caught:
                await together(connection, [update, "DO SLEEP(3)", "DO SLEEP(0)"])
            assert isinstance(caught.value.args[0], int)
            with pytest.raises(TransientConflict), translated():
                raise caught.value

        async def at_once(connection: Connection) -> None:
            await together(connection, ["UPDATE creche_jobs SET locked_by = 'two'"])

        async with anyio.create_task_group() as rivals:
            rivals.start_soon(one._calls.run, slowly)
            await begun.wait()
            await anyio.sleep(1.5)  # its update waits for nothing
            await two._calls.run(at_once)
        assert [job.locked_by for job in await one.list(JobFilter(), 10)] == ["two"]


async def test_its_sessions_wait_for_the_others_and_its_clock_is_one_of_several(
    cluster: Cluster, database: str, anyio_backend: str
) -> None:
    async with MySQLStorage(members(cluster, database)[0]) as storage:

        async def look(connection: Connection) -> tuple[str, bool]:
            return connection.membership.causal, connection.membership.several_writers

        assert await storage._calls.run(look) == (GALERA if isinstance(cluster, GaleraCluster) else GROUP, True)
        await storage.insert(jobs(1))
        await take(storage, now=T0)
        for late, recovered in ((1, 0), (2, 1)):
            now = T0 + timedelta(seconds=10 + late)
            assert (await storage.maintain(10, retention=Retention(), now=now)).recovered == recovered


async def test_it_takes_no_more_privileges_than_elsewhere(cluster: Cluster, database: str) -> None:
    dsn, name = members(cluster, database)[0], f"plain_{secrets.token_hex(4)}"
    with closing(connect_mysql(dsn)) as raw, raw.cursor() as cursor:
        cursor.execute(f"CREATE USER {name} IDENTIFIED BY 'pa55word'")
        cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO {name}")
    account, _, place = dsn.partition("@")
    async with MySQLStorage(f"{account.partition('://')[0]}://{name}:pa55word@{place}") as storage:
        await storage.insert(jobs(1))
        (lease,) = await take(storage)
        async with storage.transaction() as transaction:
            assert await transaction.settle(Settlement(lease=lease, event=Event.SUCCEED, result=b"1"))
        async with storage.transaction() as transaction:  # on the same connection, made ours again
            found = await transaction.connection.execute("SELECT COUNT(*) FROM creche_jobs")
            assert await found.fetchall() == [(1,)]


@contextmanager
def on_its_own(cluster: Cluster) -> Iterator[int]:
    """Cut the first member off from the others, or have it leave; yield its port."""
    if isinstance(cluster, GaleraCluster):
        with cluster.nodes[0].isolated():
            yield cluster.nodes[0].port
    else:
        cluster.nodes[0].ask("STOP GROUP_REPLICATION")
        try:
            yield cluster.nodes[0].port
        finally:
            cluster.nodes[0].join()


async def test_a_member_that_has_lost_the_others_is_left_and_not_taken_again(cluster: Cluster, database: str) -> None:
    several = cluster.dsn(database)

    async def port(connection: Connection) -> int:
        return connection.address.port

    async with MySQLStorage(f"{several}?call_timeout=20") as storage:
        async with anyio.create_task_group() as tasks:  # so that several connections lie there
            for _ in range(10):
                tasks.start_soon(storage.stats)
        before = await storage._calls.run(port)
        with on_its_own(cluster) as alone:
            assert before == alone
            for _ in range(3):
                with anyio.fail_after(SOON):
                    await storage.insert(jobs(1))  # and no error comes through
            assert await storage._calls.run(port) != alone
            by_itself = f"{members(cluster, database)[0]}?call_timeout=3&target_session_attrs=read-write"
            with anyio.fail_after(SOON), pytest.raises(StorageUnavailable):
                await MySQLStorage(by_itself).__aenter__()
        assert eventually(cluster.nodes[0].serves, SOON)
