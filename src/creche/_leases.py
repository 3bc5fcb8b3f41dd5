"""What this worker holds at this moment: every lease, its local deadline, the scope that ends with it.

It asks no storage; the renewer and the settler do, and write down here what they learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import Final

import anyio
from anyio import CancelScope

from creche._job import Lease, Progress, ReservedJob


class Verdict(Enum):
    """Why an attempt was cut short."""

    LOST = auto()  # its right to run is over, or can't be shown to last
    ASKED = auto()  # somebody cancelled the job


_REASONS: Final = {Verdict.LOST: "the lease is lost", Verdict.ASKED: "the job was cancelled"}


class Held:
    """One lease in our hands.

    The deadline is on the event loop's monotonic clock, and was counted from before the reserving or renewing
    statement was sent, less a margin: so it passes here before the database can give the job away, whatever
    either wall clock says (Martin Kleppmann, "How to do distributed locking", 2016, on why a lease needs both
    this and a fencing token).

    `Holdings.end_what_runs_out` ends its scope at that moment, not a deadline of the scope's own: when the event loop
    was blocked for longer than the lease, a thread may have renewed it meanwhile, and the scope's own deadline would
    end it before anybody could say so.
    """

    __slots__ = (
        "_deadline",
        "_guarded",
        "_scope",
        "_secured",
        "ended",
        "job",
        "lease",
        "progress",
        "reserved",
        "settled",
        "settling",
        "verdict",
    )

    def __init__(self, job: ReservedJob, deadline: float, *, reserved: float = -math.inf) -> None:
        self.job = job
        self.reserved = reserved  # when, on the same clock
        self.lease: Lease = job.lease
        self._deadline = deadline
        self._secured = -math.inf
        self._guarded = -math.inf
        self.verdict: Verdict | None = None
        self.progress: Progress | None = None  # said by the handler, and not written yet
        self.ended = False  # how is on its way to the storage, which may have locked the job for that
        self.settling = False  # the handler's own transaction, which ends the attempt, is being committed
        self.settled = False  # it was
        self._scope: CancelScope | None = None

    @property
    def deadline(self) -> float:
        """When the right to run ends, on the event loop's clock."""
        return max(self._deadline, self._secured)

    @property
    def end(self) -> float:
        """When the attempt is ended: with the right to run, or later, while a lock keeps everybody else away."""
        return max(self._deadline, self._secured, self._guarded)

    @property
    def expired(self) -> bool:
        """Whether that has passed, as far as we can know."""
        return anyio.current_time() >= self.end

    def scope(self, kind: type[CancelScope] = CancelScope) -> CancelScope:
        """Return the scope, of this class, in which the attempt has to run: it ends with the lease."""
        self._scope = kind()
        if self.verdict is not None:
            self._scope.cancel(_REASONS[self.verdict])
        return self._scope

    def postpone(self, deadline: float) -> None:
        """The lease lasts longer now; it never lasts less."""
        self._deadline = max(self._deadline, deadline)

    def secure(self, deadline: float) -> None:
        """The lease lasts longer now. Another thread may say so."""
        self._secured = deadline

    def guard(self, end: float) -> None:
        """The lease may run out, but its own transaction, which ends the attempt, has locked the job: whoever wants it
        waits until that is decided, and whether it is, only a commit can tell. Another thread may say so.
        """
        self._guarded = end

    def settle(self) -> None:
        """The attempt's end is written: no lease ends it any more. What is left of the handler may run on."""
        self.settled = True
        self.postpone(math.inf)

    def revoke(self, verdict: Verdict) -> None:
        """End the attempt now; the first reason stands, but a lost lease outranks a request. One whose end is written
        has nothing left to end: what its handler does afterwards is its own business.
        """
        if self.settled:
            return
        if self.verdict is None or verdict is Verdict.LOST:
            self.verdict = verdict
        if self._scope is not None:
            self._scope.cancel(_REASONS[self.verdict])


class Holdings:
    """All leases that this worker must renew: from the reserve until the settle was answered."""

    def __init__(self) -> None:
        self._held: dict[Lease, Held] = {}
        self._taken: anyio.Event | None = None  # made by whoever waits: it costs more than the rest of `take`
        self._next_end = math.inf
        self._earlier = anyio.Event()

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def snapshot(self) -> list[Held]:
        """Return what is held at this moment, to any thread."""
        return list(self._held.values())

    def get(self, lease: Lease) -> Held | None:
        """Return what is held under this lease."""
        return self._held.get(lease)

    def take(self, batch: Iterable[Held]) -> None:
        """Reserved jobs arrived: their leases must be renewed."""
        for held in batch:
            self._held[held.lease] = held
            if held.end < self._next_end:
                self._next_end = held.end
                self._earlier.set()
        if self._held and self._taken is not None:
            self._taken.set()
            self._taken = None

    def drop(self, held: Held) -> None:
        """The lease is settled, or lost: renew it no more."""
        self._held.pop(held.lease, None)

    async def wait_for_a_lease(self) -> None:
        """Wait until something is held."""
        while not self._held:
            self._taken = anyio.Event()
            await self._taken.wait()

    async def end_what_runs_out(self) -> None:
        """End each attempt at the moment when its lease runs out, until cancelled."""
        while True:
            for held in self:
                if held.expired and held.verdict is not Verdict.LOST:
                    held.revoke(Verdict.LOST)
            lasting = [held.end for held in self._held.values() if held.verdict is not Verdict.LOST]
            self._next_end = min(lasting, default=math.inf)
            self._earlier = anyio.Event()
            with CancelScope(deadline=self._next_end):
                await self._earlier.wait()
