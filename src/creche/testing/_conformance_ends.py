"""The ways in which a job can end, to be gone one by one by whatever follows an end. It tests nothing itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from attrs import field, frozen

from creche._job import Event, Failure, Lease, Status
from creche.abc import Storage
from creche.testing._conformance_base import BOOM, LEASE, SETTLES_WITH, T0, hold, maintain, new_job, settle

RESULT: Final = b'{"ok":true}'
EXPIRED: Final = Failure(type="LeaseExpired", message="the lease of attempt 1 ran out")


@frozen(kw_only=True)
class Way:
    """How a job comes to its end.

    Attributes:
        status: in which it has ended then.
        event: how its attempt is settled; None: `maintain` finds a lease that ran out, or it has no attempt.
        options: of the job.
        held: it is reserved first.
        asked: its cancellation is asked for before the attempt is over.
    """

    status: Status
    event: Event | None = None
    options: dict[str, Any] = field(factory=dict[str, Any])
    held: bool = True
    asked: bool = False

    @property
    def error(self) -> Failure | None:
        """The error that those see who follow the job."""
        if self.status is not Status.FAILED:
            return None
        return EXPIRED if self.event is None else BOOM

    @property
    def result(self) -> bytes | None:
        """The result that those see who follow the job."""
        return RESULT if self.status is Status.COMPLETED else None


WAYS: Final[dict[str, Way]] = {
    "it succeeds": Way(status=Status.COMPLETED, event=Event.SUCCEED),
    "it fails": Way(status=Status.FAILED, event=Event.FAIL),
    "it is discarded": Way(status=Status.FAILED, event=Event.DISCARD),
    "it is aborted": Way(status=Status.CANCELLED, event=Event.ABORT, asked=True),
    "it is cancelled while it is ready": Way(status=Status.CANCELLED, held=False),
    "it is cancelled before it is due": Way(status=Status.CANCELLED, held=False, options={"delay": 3_600.0}),
    "it is buried": Way(status=Status.FAILED, options={"max_attempts": 1}),
    "it is recovered, cancelled meanwhile": Way(status=Status.CANCELLED, asked=True),
    "it is retried, cancelled meanwhile": Way(status=Status.CANCELLED, event=Event.RETRY, asked=True),
    "it is released, cancelled meanwhile": Way(status=Status.CANCELLED, event=Event.RELEASE, asked=True),
    "it is snoozed, cancelled meanwhile": Way(status=Status.CANCELLED, event=Event.SNOOZE, asked=True),
}


async def begin(storage: Storage, way: Way, *, now: datetime = T0, **options: Any) -> Lease | UUID:
    """Bring a new job near to its end; return its lease, or its id if it is not held."""
    options = {**way.options, **options}
    if not way.held:
        job = new_job(**options)
        await storage.insert([job], now=now)
        return job.id
    lease = await hold(storage, now=now, **options)
    if way.asked:
        await storage.cancel([lease.job_id], now=now)
    return lease


async def end(storage: Storage, way: Way, begun: Lease | UUID, *, now: datetime = T0) -> datetime:
    """Bring a job to its end; return when that was."""
    over = now + timedelta(seconds=LEASE)
    if isinstance(begun, UUID):
        assert await storage.cancel([begun], now=over) == {begun: Status.CANCELLED}
    elif way.event is None:
        upkeep = await maintain(storage, now=over)
        assert upkeep.buried + upkeep.recovered == 1
    else:
        assert await settle(storage, begun, way.event, now=over, **SETTLES_WITH[way.event])
    return over


def id_of(begun: Lease | UUID) -> UUID:
    """Return the id of a job that was begun."""
    return begun if isinstance(begun, UUID) else begun.job_id
