"""What every part of the conformance suite stands on: fixtures, a fixed time, and verbs. It tests nothing itself."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import pytest

from creche._ids import new_job_id, new_nonce
from creche._job import (
    DELAY_LIMIT,
    Event,
    Failure,
    FollowUp,
    Insertion,
    JobFilter,
    JobRecord,
    Lease,
    NewJob,
    Reservation,
    ReservedJob,
    Retention,
    Settlement,
    Status,
    Upkeep,
)
from creche.abc import Storage

T0: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""The moment at which most tests begin. No clock is read: tests hand the time in."""

LEASE: Final = 60.0
PUT_OFF: Final = 1.0
"""Seconds: the most that a job is put off for whose first attempt's lease ran out."""

FOREVER: Final = Retention(completed=DELAY_LIMIT, failed=DELAY_LIMIT, cancelled=DELAY_LIMIT)
BOOM: Final = Failure(type="ValueError", message="boom", traceback="Traceback …\nValueError: boom")
PATIENCE: Final = 10.0
"""Seconds after which something that should have happened counts as never: it bounds a failure, not a success."""

SETTLES_WITH: Final[dict[Event, dict[str, Any]]] = {
    Event.SUCCEED: {"result": b'{"ok":true}'},
    Event.RETRY: {"error": BOOM, "delay": 3_600.0},
    Event.FAIL: {"error": BOOM},
    Event.DISCARD: {"error": BOOM},
    Event.RELEASE: {},
    Event.SNOOZE: {"delay": 3_600.0},
    Event.ABORT: {},
}
"""What a holder sends along with each event."""

UNUSUAL_JSON: Final[dict[str, bytes]] = {
    "keys out of order": b'{"b":1,"a":2,"B":3}',
    "a key twice": b'{"a":1,"a":2}',
    "blanks": b' { "a" :\n\t[ 1 , 2 ] }\r\n',
    "minus zero": b'{"a":-0.0,"b":-0}',
    "trailing zeros": b'{"a":1.0,"b":1.50,"c":1e2,"d":1E+02}',
    "a huge float": b'{"a":1e308,"b":1.7976931348623157e308,"c":5e-324}',
    "big integers": b'{"a":1000000000000000000,"b":18446744073709551615,"c":-9223372036854775808}',
    "escapes": b'{"a":"\\u00e9\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\"\\\\"}',
    "unicode": '{"é":"漢字 😀 e\u0301 \u2028 \u00a0"}'.encode(),
    "quoting": rb"""{"a":"it's 100% $1 :b ? \\' -- ; {0} %s"}""",
    "empty containers": b'{"":"","a":[],"b":{}}',
    "a bare null": b"null",
    "a bare string": b'"x"',
    "a bare number": b"-12.50",
    "a hundred levels": b"[" * 100 + b"]" * 100,
    "a megabyte": b'{"a":"' + b"x" * (1 << 20) + b'"}',
}
"""Valid JSON that a column type which understands JSON would hand back changed."""

DISTINCT_NAMES: Final = (
    *("q", "q ", " q", "Q", "q%", "q_"),
    *("café", "cafe", "CAFÉ", "cafe\u0301", "ß", "ss", "漢字", "a'b"),
)
"""Names that some collation takes for one another."""


class Suite:
    """The ground of `StorageConformance`: where its storages come from, and on which event loops."""

    pytestmark = pytest.mark.anyio

    def open_storage(self) -> Storage | Awaitable[Storage]:
        """Return a storage with no job in it, not opened yet. It may be a coroutine function too."""
        raise NotImplementedError(f"{type(self).__name__}.open_storage must return a fresh, empty storage")

    def open_another(self, storage: Storage) -> Storage | None:  # noqa: ARG002 - for those that override it
        """Return a second storage on the same jobs as `storage`, not opened yet; None if there can be none."""
        return None

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        """Every test runs on both event loops."""
        return str(request.param)

    @pytest.fixture
    async def unopened(self) -> Storage:
        """A fresh, empty storage that nobody has opened. Override it if yours needs fixtures to be made."""
        made = self.open_storage()
        return await made if inspect.isawaitable(made) else made

    @pytest.fixture
    async def storage(self, unopened: Storage) -> AsyncIterator[Storage]:
        """A fresh, empty storage: migrated and open."""
        await unopened.migrate()
        async with unopened:
            yield unopened

    @pytest.fixture
    def second(self, storage: Storage) -> Storage:
        """A second storage on the same jobs, not open. (Not async: what skips in a task would end the tests' task.)"""
        second = self.open_another(storage)
        if second is None:
            pytest.skip("`open_another` gives no second storage on the same jobs")
        return second

    @pytest.fixture
    async def another(self, second: Storage) -> AsyncIterator[Storage]:
        """A second storage on the same jobs, open."""
        async with second:
            yield second

    @pytest.fixture
    def wakeful(self, storage: Storage) -> Storage:
        """A storage that declares that it listens."""
        if not storage.capabilities.listen:
            pytest.skip("this storage declares that it hears of nothing by itself")
        return storage


# --- verbs: each does one thing to a storage, at a given time ---------------------------------------


def at(seconds: float) -> datetime:
    """Return the moment `seconds` after the tests' beginning."""
    return T0 + timedelta(seconds=seconds)


def draw_id() -> UUID:
    """Return a job's id of which no recovery makes the job due at once: one in 65,536 does, so once a year a test."""
    return UUID(int=new_job_id().int | 0x0001_0001_0001)


def new_job(**options: Any) -> NewJob:
    """Return a job like any other, but for `options`."""
    defaults: dict[str, Any] = {"id": draw_id(), "type": "work", "payload": b"{}"}
    return NewJob(**{**defaults, **options})


def follow_up(**options: Any) -> FollowUp:
    """Return a callback like any other, but for `options`: it runs in the queue `after`, when a job has succeeded."""
    defaults: dict[str, Any] = {"id": draw_id(), "type": "follow", "queue_name": "after", "head": "{}"}
    return FollowUp(**{**defaults, **options})


async def add(storage: Storage, *, now: datetime = T0, **options: Any) -> UUID:
    """Insert one new job and return its id."""
    (insertion,) = await storage.insert([new_job(**options)], now=now)
    assert insertion.inserted
    return insertion.job_id


async def ask(storage: Storage, *, now: datetime = T0, **options: Any) -> Insertion:
    """Insert one job that may find another one in its place, and return the answer."""
    (insertion,) = await storage.insert([new_job(**options)], now=now)
    return insertion


async def reserve(
    storage: Storage,
    limit: int = 1,
    *,
    queues: Sequence[str] = ("default",),
    lease: float = LEASE,
    worker: str = "worker",
    nonce: int | None = None,
    types: Collection[str] | None = None,
    now: datetime = T0,
) -> Reservation:
    """Reserve with a fresh nonce."""
    nonce = new_nonce() if nonce is None else nonce
    return await storage.reserve(queues, limit, lease=lease, worker=worker, nonce=nonce, types=types, now=now)


async def take(storage: Storage, **options: Any) -> ReservedJob:
    """Reserve the one job that must be there."""
    (job,) = (await reserve(storage, **options)).jobs
    return job


async def hold(storage: Storage, *, now: datetime = T0, lease: float = LEASE, **options: Any) -> Lease:
    """Insert a job and reserve it, in a queue of its own; return its lease."""
    job = new_job(**{"queue_name": f"of {new_job_id()}", **options})
    await storage.insert([job], now=now)
    taken = await take(storage, queues=[job.queue_name], lease=lease, now=now)
    assert taken.id == job.id
    return taken.lease


async def hold_as(storage: Storage, worker: str, *, queue_name: str | None = None) -> Lease:
    """Insert a job and reserve it under a worker's name, in a queue of its own; return its lease."""
    job = new_job(queue_name=queue_name or f"of {new_job_id()}")
    await storage.insert([job], now=T0)
    return (await take(storage, queues=[job.queue_name], worker=worker)).lease


async def settle(storage: Storage, lease: Lease, event: Event, *, now: datetime = T0, **options: Any) -> bool:
    """Settle one lease; return whether it was accepted rather than lost."""
    settled = await storage.settle([Settlement(lease=lease, event=event, **options)], now=now)
    assert settled.accepted | settled.lost == {lease}
    assert not settled.accepted & settled.lost
    return lease in settled.accepted


async def extend(storage: Storage, lease: Lease, seconds: float = LEASE, *, now: datetime = T0) -> bool:
    """Extend one lease; return whether it is still held."""
    extension = await storage.extend([lease], seconds, now=now)
    assert extension.held | extension.lost == {lease}
    assert not extension.held & extension.lost
    assert extension.cancel_requested <= extension.held
    return lease in extension.held


async def maintain(
    storage: Storage, limit: int = 1_000, *, retention: Retention = FOREVER, now: datetime = T0
) -> Upkeep:
    """Maintain, with nothing pruned unless a retention says so."""
    return await storage.maintain(limit, retention=retention, now=now)


async def lapse(storage: Storage, *, now: datetime) -> datetime:
    """Take back what was held under leases that ran out during first attempts; return the moment when it is ready."""
    ready = now + timedelta(seconds=PUT_OFF)
    await maintain(storage, now=now)
    await maintain(storage, now=ready)
    return ready


async def row(storage: Storage, job_id: UUID) -> JobRecord:
    """Return one job's row, which must exist."""
    return (await storage.find([job_id]))[job_id]


async def written(storage: Storage, callbacks: Collection[FollowUp]) -> set[UUID]:
    """Return the ids of those callbacks that are jobs already."""
    return set(await storage.find([each.id for each in callbacks]))


async def everything(storage: Storage) -> tuple[object, ...]:
    """Return all that people can see of a storage, to be compared with itself later."""
    return tuple(await storage.list(JobFilter(), 10_000)), tuple(await storage.dead_letters(10_000))


_WAYS: Final[dict[Status, Event]] = {
    Status.PENDING: Event.RELEASE,
    Status.SCHEDULED: Event.SNOOZE,
    Status.COMPLETED: Event.SUCCEED,
    Status.FAILED: Event.FAIL,
    Status.CANCELLED: Event.ABORT,
}


async def bring(storage: Storage, status: Status, **options: Any) -> Lease:
    """Insert a job and bring it to a status by way of an attempt; return the lease of that attempt.

    A scheduled one is due an hour after `now`.
    """
    lease = await hold(storage, **options)
    if status is not Status.PROCESSING:
        event = _WAYS[status]
        assert await settle(storage, lease, event, now=options.get("now", T0), **SETTLES_WITH[event])
    return lease
