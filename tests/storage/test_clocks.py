"""A server's own clock is the only one: what a worker's says, or a dispatcher's, changes no time that is written."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest
from attrs import asdict

from creche._ids import new_job_id, new_nonce
from creche._job import Event, Failure, JobFilter, NewJob, Retention, Settlement
from creche.abc import Storage
from creche.storage import open_storage

pytestmark = pytest.mark.anyio

AHEAD = timedelta(hours=1)
SOON = timedelta(minutes=10)


class _Times(type):
    """Takes for its own what the real class has made, which all of this is about."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class Ahead(datetime, metaclass=_Times):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.now(tz) + AHEAD


@pytest.fixture(params=["postgresql", "mariadb", "mysql"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return open_storage(request.getfixturevalue(f"{request.param}_dsn"))


def set_ahead(patch: pytest.MonkeyPatch) -> None:
    """Set the wall clock of this process ahead, as creche sees it."""
    wall = time.time
    patch.setattr(time, "time", lambda: wall() + AHEAD.total_seconds())
    for name, module in list(sys.modules.items()):
        if name.startswith("creche.") and getattr(module, "datetime", None) is datetime:
            patch.setattr(module, "datetime", Ahead)


def job(**options: Any) -> NewJob:
    return NewJob(id=new_job_id(), type="work", payload=b"{}", **options)


async def test_every_time_that_is_written_is_the_database_s(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    await storage.migrate()
    async with storage:
        first = job()
        await storage.insert([first])
        begun = (await storage.find([first.id]))[first.id].created_at
        with monkeypatch.context() as patch:
            set_ahead(patch)
            await storage.insert([job(), job(idempotency_key="k"), job(delay=60)])
            taken = (await storage.reserve(["default"], 3, lease=60, worker="w", nonce=new_nonce())).jobs
            leases = [each.lease for each in taken]
            assert (await storage.extend(leases, 120)).held == set(leases)
            upkeep = await storage.maintain(10, retention=Retention())
            error = Failure(type="E", message="m")
            await storage.settle([Settlement(lease=leases[0], event=Event.RETRY, error=error, delay=60)])
            await storage.settle([Settlement(lease=leases[1], event=Event.SUCCEED, result=b"1")])
            await storage.cancel([leases[0].job_id])
        records = await storage.list(JobFilter(), 10)
    assert len(taken) == 3
    assert (upkeep.recovered, upkeep.promoted) == (0, 0), "the leases last, and nothing is due"
    times = [value for record in records for value in asdict(record).values() if isinstance(value, datetime)]
    assert len(times) >= 4 * 3
    assert max(times) - begun < SOON
