"""The watchdog: sees from a thread of its own that the event loop is blocked, names who blocks it, and renews the
leases meanwhile over a connection of its own. It settles nothing and cancels nothing.

While the loop is blocked nothing on it can renew a lease, nor end the attempt that has lost it: another worker would
begin the job anew while this one is in the middle of it. So the leases are kept for as long as this process lives and
reaches its database. If it does not (frozen as a whole, or in native code that never lets go of the interpreter), the
leases run out, and what the attempts write then is refused.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from anyio import CancelScope

from creche import _stacks as stacks
from creche._leases import Held, Holdings
from creche._logs import about
from creche._nursery import background, current_backend
from creche._patience import answered_within
from creche.abc import Storage
from creche.errors import StorageError, StorageUnavailable

_log = logging.getLogger("creche")

BLOCKED: Final = 1.0  # seconds after which a loop that does not turn is worth a line in the log
_SLOWEST: Final = 0.5  # seconds between two looks, and two turns, at most
_AGAIN: Final = 30.0  # seconds until the same blockage is reported again
_LINGER: Final = 10.0  # seconds that the connection is kept: who blocks once, blocks twice
_LAST_WORD: Final = 3.0  # seconds


class Watchdog:
    """Watches the event loop that it runs on.

    Args:
        storage: where the leases are. One that no other thread can reach (`twin` is None) is not watched: then nobody
            else can take the jobs either, while the loop stands still.
        holdings: which they are.
        lease: seconds that each renewal asks for.
        margin: seconds by which our own deadline comes before the database's.
    """

    def __init__(self, storage: Storage, holdings: Holdings, *, lease: float, margin: float) -> None:
        self._storage = storage
        self._holdings = holdings
        self._lease = lease
        self._margin = margin
        self._tick = min(_SLOWEST, lease / 20)
        self._beat = time.monotonic()
        self._offset = 0.0  # from this thread's clock to the event loop's
        self._loop_thread = 0
        self._backend = ""
        self._stopped = threading.Event()
        self._scope = CancelScope(shield=True)
        self._watched = False
        self._reported = -math.inf
        self._troubled = False

    @property
    def lag(self) -> float:
        """Seconds by which the loop is late, as far as is known; to be asked by any thread."""
        return max(0.0, time.monotonic() - self._beat - self._tick) if self._watched else 0.0

    def stop(self) -> None:
        """The last lease was settled: end."""
        self._scope.cancel()

    async def run(self) -> None:
        """Watch until stopped. Shielded: jobs that are being settled still need their leases."""
        if self._storage.twin() is None:
            return
        self._loop_thread = threading.get_ident()
        self._backend = current_backend()
        self._turn()
        self._watched = True
        thread = threading.Thread(target=self._watch, name="creche watchdog", daemon=True)
        thread.start()
        try:
            with self._scope:
                while True:
                    await anyio.sleep(self._tick)
                    self._turn()
        finally:
            self._watched = False
            self._stopped.set()
            with anyio.move_on_after(_LAST_WORD, shield=True):
                await anyio.to_thread.run_sync(thread.join, _LAST_WORD, abandon_on_cancel=True)

    def _turn(self) -> None:
        self._beat = time.monotonic()
        self._offset = anyio.current_time() - self._beat

    # --- in the thread ------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopped.is_set():
            before = time.monotonic()
            self._stopped.wait(self._tick)
            still = time.monotonic() - before - self._tick
            if still > BLOCKED:  # this thread, too: the loop is no more to blame than we are, and turns in a moment
                text = "this process stood still for %.1f s: frozen, or in native code that kept the interpreter"
                _aside(partial(_log.warning, text, still))
                continue
            self._look()
            if not (self._endangered and self._holdings.snapshot()):
                continue
            try:
                anyio.run(self._keep_leases, backend=self._backend)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may fare better
                self._trouble(error)

    def _look(self) -> None:
        if self.lag > BLOCKED and time.monotonic() - self._reported > _AGAIN:
            self._reported = time.monotonic()
            _aside(self._report)

    @property
    def _endangered(self) -> bool:
        """Whether the loop is so late that it may miss a renewal: that comes after a third of the lease."""
        return self.lag > self._lease / 6

    async def _keep_leases(self) -> None:
        twin = self._storage.twin()
        if twin is None:
            return
        patience = self._lease / 3
        async with background() as services:
            services.start_soon(self._end_when_stopped, services.cancel_scope)
            with CancelScope(deadline=anyio.current_time() + patience) as opening:
                async with twin:
                    opening.deadline = math.inf
                    await self._renew_while_needed(twin)
            if opening.cancelled_caught:
                raise StorageUnavailable(f"no connection in {patience:g} s")

    async def _end_when_stopped(self, scope: CancelScope) -> None:
        while not self._stopped.is_set():  # noqa: ASYNC110 - it is set by another event loop
            await anyio.sleep(self._tick)
        scope.cancel()  # whatever is under way: nothing is held any more

    async def _renew_while_needed(self, twin: Storage) -> None:
        renewed = -math.inf
        last_needed = time.monotonic()
        while time.monotonic() - last_needed < _LINGER:
            now = time.monotonic()
            self._look()
            if self._endangered:
                last_needed = now
                if now - renewed > self._lease / 3 and (held := self._holdings.snapshot()):
                    renewed = await self._renew(twin, held)
            await anyio.sleep(self._tick)

    async def _renew(self, storage: Storage, held: Sequence[Held]) -> float:
        """Renew what is held; return when, or never."""
        sent = time.monotonic()  # before the statement: the database counts from later
        try:
            # A handler's own transaction, whose commit the blocked loop can't send, locks its job: nobody else can take
            # it, and to renew it with the others would make them all wait for that lock.
            until = await self._extend(storage, [each for each in held if not (each.settling or each.ended)])
        except StorageError as error:
            self._trouble(error)
            return -math.inf
        self._troubled = False
        for each in held:
            if each.settling:
                each.guard(until)
        with suppress(StorageError):  # a settle that the loop has begun and can't end may lock them, for as long
            await self._extend(storage, [each for each in held if each.ended])
        return sent

    async def _extend(self, storage: Storage, held: Sequence[Held]) -> float:
        """Extend these leases; return until when. What is lost, the loop finds out for itself."""
        until = time.monotonic() + self._offset + self._lease - self._margin
        with answered_within(self._lease / 3, "a renewal"):
            extension = await storage.extend([each.lease for each in held], self._lease)
        for each in held:
            if each.lease in extension.held:
                each.secure(until)
        return until

    def _trouble(self, error: Exception) -> None:
        if not self._troubled:
            trace = None if isinstance(error, StorageError) else error
            _aside(partial(_log.warning, "watchdog: %s; trying again", error, exc_info=trace))
        self._troubled = True

    def _report(self) -> None:
        blocker = stacks.handler_of(self._loop_thread)
        stack = stacks.describe_thread(self._loop_thread)
        if blocker is None:
            _log.error("the event loop has been blocked for %.1f s, not by a handler:\n%s", self.lag, stack)
            return
        job, place = blocker
        text = (
            "the event loop has been blocked for %.1f s by job %s %r, in %s: "
            "make it async, or a synchronous handler, which gets a thread\n%s"
        )
        _log.error(text, self.lag, job.id, job.type, place, stack, extra=about(job))


def _aside(say: Callable[[], None]) -> None:
    """Write to the log from yet another thread: the loop may be blocked in there, and hold its lock for as long."""
    threading.Thread(target=say, name="creche watchdog's log", daemon=True).start()
