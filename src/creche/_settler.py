"""The settler: writes how attempts ended, in batches. It decides nothing and runs no job.

Group commit without a timer: what ended while the last batch was being written goes into the next one, so an
idle worker settles at once and a busy one in large batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias

import anyio
from anyio import CancelScope
from msgspec.structs import replace

from creche._job import Event, Failure, Lease, Retention, Settlement
from creche._leases import Held, Holdings
from creche._logs import about
from creche._patience import Patience, answered_within
from creche.abc import Storage
from creche.errors import StatementRejected, StorageUnavailable

_log = logging.getLogger("creche")

_BATCH: Final = 500
_UNSPEAKABLE: Final = "the database refused to store what this error says; the worker's log has it"


Ended: TypeAlias = tuple[Held, Settlement]  # an attempt's end, on its way to the storage


class Settler:
    """Takes ends from `submit`, writes them until it is closed and empty.

    Args:
        storage: where to.
        timeout: seconds until a settle is sent again; a good deal less than a lease.
        holdings: leases are dropped from it when they are settled or lost.
        retention: whether the rows of those that succeed are kept.
        answered: called with a batch of ends, and those of their leases that were lost; the storage accepted the rest.
    """

    def __init__(
        self,
        storage: Storage,
        holdings: Holdings,
        *,
        timeout: float,
        retention: Retention,
        answered: Callable[[Sequence[Ended], Collection[Lease]], None],
    ) -> None:
        self._storage = storage
        self._timeout = timeout
        self._retention = retention
        self._holdings = holdings
        self._answered = answered
        self._waiting: list[Ended] = []
        self._bell: anyio.Event | None = None  # there while nothing is to be written
        self._closed = False
        self._scope = CancelScope(shield=True)
        self.finished = anyio.Event()

    def submit(self, held: Held, settlement: Settlement) -> None:
        """Have this end written. Never blocks; the lease is renewed until it is."""
        held.ended = True
        self._waiting.append((held, settlement))
        if self._bell is not None:
            self._bell.set()
            self._bell = None

    def close(self, farewell: float) -> None:
        """No more will come: write what is left, for at most `farewell` seconds, and end."""
        self._closed = True
        self._scope.deadline = anyio.current_time() + farewell
        if self._bell is not None:
            self._bell.set()

    async def run(self) -> None:
        """Write until closed. Shielded: it outlives the cancellation that made the jobs end."""
        try:
            with self._scope:
                await self._write_all()
        finally:
            self.finished.set()
        if self._scope.cancelled_caught:
            _log.error("stopped before all ends were written: their jobs run again when their leases run out")

    async def _write_all(self) -> None:
        while self._waiting or not self._closed:
            if not self._waiting:
                bell = self._bell = anyio.Event()
                await bell.wait()
                continue
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            await self._write(batch)

    async def _write(self, batch: Sequence[Ended]) -> None:
        """Write one batch, trying again while the leases hold, and once after: it may have been written, and its answer
        lost while this process was frozen; sent again, it is then accepted with no effect.
        """
        patience = Patience("settler", shortest=0.05, longest=1.0)
        while batch:
            sent = anyio.current_time()
            try:
                with answered_within(self._timeout, "a settle"):
                    settlements = [settlement for _, settlement in batch]
                    settled = await self._storage.settle(settlements, retention=self._retention)
            except StorageUnavailable as error:
                await patience.after(error)
                batch = self._without_expired(batch, sent)
            except StatementRejected as error:
                await self._write_apart(batch, error)
                return
            else:
                patience.success()
                lost = settled.lost
                if settled.gone:
                    # While a lease lasts nobody else can end the job: it was ourselves, and the answer was lost.
                    lost -= {held.lease for held, _ in batch if held.lease in settled.gone and not held.expired}
                self._finish(batch, lost)
                return

    async def _write_apart(self, batch: Sequence[Ended], error: StatementRejected) -> None:
        """The storage refuses something in this batch for good: find out what, and let the rest through."""
        if len(batch) > 1:
            for ended in batch:
                await self._write([ended])
            return
        held, settlement = batch[0]
        _log.error("job %s: its end can't be written: %s", held.job.id, error, extra=about(held.job))
        if settlement.event is Event.SUCCEED:
            # A handler's result that the database refuses, though it passed our checks, is a failed attempt.
            refused = Failure(type="creche.errors.StatementRejected", message=str(error))
            await self._write([(held, replace(settlement, event=Event.DISCARD, result=None, error=refused))])
        elif settlement.error is not None and settlement.error.message != _UNSPEAKABLE:
            plain = Failure(type=settlement.error.type.encode("ascii", "replace").decode(), message=_UNSPEAKABLE)
            await self._write([(held, replace(settlement, error=plain))])
        else:
            self._finish(batch, {held.lease})

    def _without_expired(self, batch: Sequence[Ended], sent: float) -> Sequence[Ended]:
        """Let go of what we had no right to any more when it was last sent: another worker will run it."""
        expired = [ended for ended in batch if ended[0].end <= sent]
        if not expired:
            return batch
        self._finish(expired, {held.lease for held, _ in expired})
        return [ended for ended in batch if ended not in expired]

    def _finish(self, batch: Sequence[Ended], lost: Collection[Lease]) -> None:
        for held, _ in batch:
            self._holdings.drop(held)
        self._answered(batch, lost)
