"""The reserver: takes no more jobs than there is room for, and no fewer. It runs none of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

import anyio
import anyio.lowlevel
from anyio import CancelScope
from attrs import frozen

from creche._ids import new_nonce
from creche._job import Reservation
from creche._leases import Held, Holdings
from creche._pace import Pace
from creche._patience import Patience
from creche._slots import Slots
from creche._wake import Alarm, Doorbell
from creche.abc import Storage
from creche.errors import StatementRejected, StorageError, StorageUnavailable

_BATCH: Final = 1_000
_UNWRITTEN: Final = 2 * _BATCH  # ends that may wait to be written, at least: a slow database is not asked for more jobs
_LAST_MOMENT: Final = 2.0  # seconds
_LONGEST_WAIT: Final = 1.0  # seconds that a job which was reserved ahead may wait for a slot, where reserves are quick
_GLANCE: Final = 1.0  # seconds between looks at what rings no bell


@frozen(kw_only=True)
class Order:
    """What a worker asks its storage for.

    Attributes:
        queues: names, in the order in which they are served.
        limits: how many jobs of a queue run at once, of those that have a limit of their own.
        weights: of each queue, if which one comes first is drawn each time; None: always the order given.
        types: the job types it can run, read anew at each reserve; None for all.
        lease: seconds.
        margin: seconds by which our own deadline comes before the database's.
        worker: its name.
        prefetch: jobs that are reserved ahead of a slot, at most.
    """

    queues: Sequence[str]
    limits: Mapping[str, int]
    weights: Mapping[str, int] | None
    types: Collection[str] | None
    lease: float
    margin: float
    worker: str
    prefetch: int

    def turns(self) -> Iterator[tuple[Sequence[str], int | None]]:
        """Yield which queues are asked together, and how many of their jobs may run at once. Queues without a limit of
        their own need no more than one statement; one that has a limit, which no statement knows of, has its own.
        """
        names = self.queues if self.weights is None else _drawn(self.queues, self.weights)
        for key, together in groupby(names, key=lambda name: name if name in self.limits else None):
            yield list(together), None if key is None else self.limits[key]


def _drawn(queues: Sequence[str], weights: Mapping[str, int]) -> Sequence[str]:
    """Draw an order in which a queue of weight 3 comes before one of weight 1 three times out of four."""
    # The smallest of exponential times that run at the rate of the weight (Efraimidis and Spirakis, 2006).
    return sorted(queues, key=lambda name: random.expovariate(weights[name]))


class Reserver:
    """Reserves while there is room, and a little ahead: as many jobs as are likely to end before the next answer.

    Args:
        storage: where from.
        order: what is asked for.
        holdings: where the leases go.
        slots: where the jobs go.
        doorbell: waited for when nothing is ready.
        alarm: told when the next scheduled job is due.
        left: returns how many attempts may still begin, besides those that wait for a slot.
        start: called with the jobs of each reserve.
        refuse: called instead, when the worker was told to stop in the meantime.
        give_back: called with jobs that had waited for a slot for too long.
        idle: called when nothing runs and nothing was ready.
        refused: called when the database refuses the first reserve for good.
        drained: called when that was so from before the look on, and nothing is due that has yet to be promoted.
    """

    def __init__(
        self,
        storage: Storage,
        order: Order,
        holdings: Holdings,
        slots: Slots,
        *,
        doorbell: Doorbell,
        alarm: Alarm,
        left: Callable[[], float],
        start: Callable[[Sequence[Held]], None],
        refuse: Callable[[Sequence[Held]], None],
        give_back: Callable[[Sequence[Held]], None],
        idle: Callable[[], None],
        drained: Callable[[], None],
        refused: Callable[[StatementRejected], None],
    ) -> None:
        self._storage = storage
        self._order = order
        self._holdings = holdings
        self._slots = slots
        self._pace = Pace(order.prefetch)
        self._doorbell = doorbell
        self._alarm = alarm
        self._left = left
        self._start = start
        self._refuse = refuse
        self._give_back = give_back
        self._idle = idle
        self._drained = drained
        self._refused = refused
        self._shield = CancelScope(shield=True)
        self.failing = False

    def hurry(self) -> None:
        """The worker is to stop: a reserve in flight gets a last moment to answer, and no more."""
        self._shield.deadline = min(self._shield.deadline, anyio.current_time() + _LAST_MOMENT)

    async def run(self) -> None:
        """Reserve until cancelled, or until the database refuses the first reserve for good: what it refuses later (for
        somebody changes its rights, say) may be mended while we try. What a reserve in flight brings is given back.
        """
        patience = Patience("reserver")
        answered = False
        while True:
            await self._wait_for_room()
            self._doorbell.answer()
            stuck = self._slots.stuck  # asked before the look: a thread that ends meanwhile rings no bell
            try:
                again = await self._look()
            except StorageError as error:
                self.failing = True
                if isinstance(error, StatementRejected) and not answered:
                    self._refused(error)
                    return
                await patience.after(error)
                continue
            self.failing = False
            answered = True
            patience.success()
            if not again:
                await self._doorbell.wait(self._longest_pause(stuck=stuck))
                self._tidy()

    # --- how many ---------------------------------------------------------------------------------------

    async def _wait_for_room(self) -> None:
        """Wait until a slot has no job, or so few wait for one that the next reserve should be sent."""
        while self._room() <= 0:
            with anyio.move_on_after(self._longest_pause()):
                await self._slots.wait(self._pace.ahead // 2)
            self._tidy()

    @property
    def _longest_wait(self) -> float:
        """Seconds that a job which was reserved ahead may wait for a slot: twice as long as was expected, at least."""
        return min(max(_LONGEST_WAIT, 4 * self._pace.latency), self._order.lease / 4)

    def _longest_pause(self, *, stuck: int = 0) -> float:
        """Return the seconds after which to see to what rings no bell."""
        pause = _GLANCE if stuck or self._slots.stuck else math.inf
        return min(pause, self._longest_wait) if self._slots.waiting else pause

    def _tidy(self) -> None:
        """Give back what was reserved ahead of jobs that take longer than those before them: others may have a slot for
        it. And use the slots of stuck threads that have ended.
        """
        if self._slots.waiting and (late := self._slots.withdraw(anyio.current_time() - self._longest_wait)):
            self._pace.slow_down(self._slots.ended, self._slots.busy())
            self._give_back(late)
        self._slots.fill()

    def _room(self) -> int:
        """Return how many jobs to reserve: for the slots that have none, and as many as are likely to end meanwhile."""
        slots = self._slots
        self._pace.measure(slots.ended, slots.busy())
        free, ahead = slots.free, self._pace.ahead
        if free <= 0 and -free > ahead // 2:
            return 0
        unwritten = len(self._holdings) - slots.running - slots.waiting
        return int(min(_BATCH, free + ahead, max(2 * slots.limit, _UNWRITTEN) - unwritten, self._left()))

    # --- one look ---------------------------------------------------------------------------------------

    async def _look(self) -> bool:
        """Ask each queue that has room; return whether there may be more: a full batch is followed by another one."""
        was_idle = self._nothing_held
        again = found = False
        due = math.inf
        for queues, limit in self._order.turns():
            room = self._room()
            if limit is not None:  # none ahead: a slot of its own is what it would wait for
                room = min(room, self._slots.free, limit - self._slots.occupied_by(queues[0]))
            if room <= 0:
                continue
            reservation = await self._reserve(queues, room)
            found = found or bool(reservation.jobs)
            again = again or len(reservation.jobs) >= room
            due = min(due, math.inf if reservation.next_due_in is None else reservation.next_due_in)
        if found:
            self._doorbell.found_work()
        if not (again or found) and self._nothing_held:
            self._idle()
            if was_idle and due > 0:
                self._drained()
        return again

    @property
    def _nothing_held(self) -> bool:
        return not self._holdings and self._slots.idle

    async def _reserve(self, queues: Sequence[str], room: int) -> Reservation:
        await anyio.lowlevel.checkpoint_if_cancelled()
        order = self._order
        reservation: Reservation | None = None
        sent = anyio.current_time()  # before the statement: the database counts from later
        # Shielded: half of a reserve would hold jobs that nobody runs.
        with CancelScope(shield=True, deadline=sent + order.lease / 2) as self._shield:
            reservation = await self._storage.reserve(
                queues,
                room,
                lease=order.lease,
                worker=order.worker,
                nonce=new_nonce(),
                types=order.types,
            )
        if reservation is None:
            await anyio.lowlevel.checkpoint_if_cancelled()  # it was told to stop, and its last moment is over
            raise StorageUnavailable(f"no answer to a reserve in {order.lease / 2:g} s")
        self._pace.answered(anyio.current_time() - sent, [len(job.payload) for job in reservation.jobs])
        deadline = sent + order.lease - order.margin
        held = [Held(job, deadline, reserved=sent) for job in reservation.jobs]
        self._holdings.take(held)
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._refuse(held)
            raise
        self._start(held)
        self._alarm.due_in(reservation.next_due_in)
        if held:
            await anyio.lowlevel.checkpoint()  # slots first: whatever is left to do here can wait
        return reservation
