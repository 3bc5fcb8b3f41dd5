"""The settler: writes how attempts ended, in batches. It decides nothing and runs no job.

Group commit without a timer: what ended while the last batch was being written goes into the next one, so an
idle worker settles at once and a busy one in large batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

import anyio
from anyio import CancelScope
from attrs import evolve, frozen

from creche._job import Event, Failure, Lease, Settlement
from creche._leases import Held, Holdings
from creche._logs import about
from creche._patience import Patience, answered_within
from creche.abc import Storage
from creche.errors import StatementRejected, StorageUnavailable

_log = logging.getLogger("creche")

_BATCH: Final = 500
_UNSPEAKABLE: Final = "the database refused to store what this error says; the worker's log has it"


@frozen(kw_only=True)
class Ended:
    """An attempt's end, on its way to the storage."""

    held: Held
    settlement: Settlement


class Settler:
    """Takes ends from `submit`, writes them until it is closed and empty.

    Args:
        storage: where to.
        timeout: seconds until a settle is sent again; a good deal less than a lease.
        holdings: leases are dropped from it when they are settled or lost.
        answered: called with each end and whether the storage accepted it.
    """

    def __init__(
        self, storage: Storage, holdings: Holdings, *, timeout: float, answered: Callable[[Ended, bool], None]
    ) -> None:
        self._storage = storage
        self._timeout = timeout
        self._holdings = holdings
        self._answered = answered
        self._waiting: list[Ended] = []
        self._bell = anyio.Event()
        self._closed = False
        self._scope = CancelScope(shield=True)
        self.finished = anyio.Event()

    def submit(self, ended: Ended) -> None:
        """Have this end written. Never blocks; the lease is renewed until it is."""
        self._waiting.append(ended)
        self._bell.set()

    def close(self, farewell: float) -> None:
        """No more will come: write what is left, for at most `farewell` seconds, and end."""
        self._closed = True
        self._scope.deadline = anyio.current_time() + farewell
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
                self._bell = anyio.Event()
                await self._bell.wait()
                continue
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            await self._write(batch)

    async def _write(self, batch: Sequence[Ended]) -> None:
        """Write one batch, trying again while the leases hold, and once after: it may have been written, and its answer
        lost while this process was frozen; sent again, it is then accepted with no effect.
        """
        patience = Patience("settler", shortest=0.05, longest=1.0)
        while batch:
            expired = {ended.held.lease for ended in batch if ended.held.expired}
            try:
                with answered_within(self._timeout, "a settle"):
                    settled = await self._storage.settle([ended.settlement for ended in batch])
            except StorageUnavailable as error:
                await patience.after(error)
                batch = self._without(batch, expired)
            except StatementRejected as error:
                await self._write_apart(batch, error)
                return
            else:
                patience.success()
                for ended in batch:
                    self._finish(ended, ended.held.lease in settled.accepted)
                return

    async def _write_apart(self, batch: Sequence[Ended], error: StatementRejected) -> None:
        """The storage refuses something in this batch for good: find out what, and let the rest through."""
        if len(batch) > 1:
            for ended in batch:
                await self._write([ended])
            return
        ended = batch[0]
        _log.error("job %s: its end can't be written: %s", ended.held.job.id, error, extra=about(ended.held.job))
        if ended.settlement.event is Event.SUCCEED:
            # A handler's result that the database refuses, though it passed our checks, is a failed attempt.
            refused = Failure(type="creche.errors.StatementRejected", message=str(error))
            failed = evolve(ended.settlement, event=Event.DISCARD, result=None, error=refused)
            await self._write([evolve(ended, settlement=failed)])
        elif ended.settlement.error is not None and ended.settlement.error.message != _UNSPEAKABLE:
            plain = Failure(type=ended.settlement.error.type.encode("ascii", "replace").decode(), message=_UNSPEAKABLE)
            await self._write([evolve(ended, settlement=evolve(ended.settlement, error=plain))])
        else:
            self._finish(ended, accepted=False)

    def _without(self, batch: Sequence[Ended], expired: Collection[Lease]) -> Sequence[Ended]:
        """Let go of what we had no right to any more when it was last sent: another worker will run it."""
        kept: list[Ended] = []
        for ended in batch:
            if ended.held.lease in expired:
                self._finish(ended, accepted=False)
            else:
                kept.append(ended)
        return kept

    def _finish(self, ended: Ended, accepted: bool) -> None:
        self._holdings.drop(ended.held)
        self._answered(ended, accepted)
