"""The reserver: takes no more jobs than there is room for, and no fewer. It runs none of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

import anyio
import anyio.lowlevel
from anyio import CancelScope
from attrs import frozen

from creche._ids import new_nonce
from creche._job import Reservation
from creche._leases import Held, Holdings
from creche._patience import Patience, answered_within
from creche._wake import Alarm, Doorbell
from creche.abc import Storage
from creche.errors import StorageError

_BATCH: Final = 500
_LAST_MOMENT: Final = 2.0  # seconds


@frozen(kw_only=True)
class Order:
    """What a worker asks its storage for.

    Attributes:
        queues: names, in the order in which they are served.
        types: the job types it can run, read anew at each reserve; None for all.
        lease: seconds.
        margin: seconds by which our own deadline comes before the database's.
        worker: its name.
    """

    queues: Sequence[str]
    types: Collection[str] | None
    lease: float
    margin: float
    worker: str


class Reserver:
    """Reserves while there is room.

    Args:
        storage: where from.
        order: what is asked for.
        holdings: where the leases go.
        doorbell: waited for when nothing is ready.
        alarm: told when the next scheduled job is due.
        start: called with each job that was reserved.
        refuse: called instead, when the worker was told to stop in the meantime.
        idle: called when nothing runs and nothing was ready.
    """

    def __init__(
        self,
        storage: Storage,
        order: Order,
        holdings: Holdings,
        *,
        doorbell: Doorbell,
        alarm: Alarm,
        start: Callable[[Held], None],
        refuse: Callable[[Held], None],
        idle: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._order = order
        self._holdings = holdings
        self._doorbell = doorbell
        self._alarm = alarm
        self._start = start
        self._refuse = refuse
        self._idle = idle
        self._shield = CancelScope(shield=True)

    def hurry(self) -> None:
        """The worker is to stop: a reserve in flight gets a last moment to answer, and no more."""
        self._shield.deadline = min(self._shield.deadline, anyio.current_time() + _LAST_MOMENT)

    async def run(self) -> None:
        """Reserve until cancelled. What a reserve in flight brings is not lost: it is given back."""
        patience = Patience("reserver")
        while True:
            room = min(_BATCH, await self._holdings.wait_for_room())
            self._doorbell.answer()
            try:
                found = await self._reserve(room)
            except StorageError as error:
                await patience.after(error)
                continue
            patience.success()
            if found:
                self._doorbell.found_work()
            if found < room:  # a full batch is followed by another reserve at once
                if self._holdings.idle:
                    self._idle()
                await self._doorbell.wait()

    async def _reserve(self, room: int) -> int:
        sent = anyio.current_time()  # before the statement: the database counts from later
        reservation = Reservation(jobs=(), next_due_in=None)
        with CancelScope(shield=True) as self._shield:  # half of a reserve would hold jobs that nobody runs
            reservation = await self._ask(room)
        held = [Held(job, sent + self._order.lease - self._order.margin) for job in reservation.jobs]
        for each in held:
            self._holdings.take(each)
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            for each in held:
                self._refuse(each)
            raise
        for each in held:
            self._start(each)
        self._alarm.due_in(reservation.next_due_in)
        return len(held)

    async def _ask(self, room: int) -> Reservation:
        order = self._order
        with answered_within(order.lease / 2, "a reserve"):
            return await self._storage.reserve(
                order.queues,
                room,
                lease=order.lease,
                worker=order.worker,
                nonce=new_nonce(),
                types=order.types,
            )
