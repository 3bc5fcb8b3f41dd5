"""The slots: as many attempts at once as a worker may run, and the jobs that wait for one of them to end.

It reserves nothing and settles nothing.

A slot is a task that runs one attempt after the other, and ends when none waits. A task for each attempt cost three
times what all the rest of a short one does (on asyncio 14 of 18 µs, and 65 of 85 Python calls, measured).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Final

import anyio
import anyio.lowlevel
from anyio import get_cancelled_exc_class
from anyio.abc import TaskGroup

from creche._leases import Held
from creche._nursery import count_cancellations

# Seconds that a slot may keep the event loop for itself: jobs that never wait would not let the others read what the
# database answers, and send what comes next.
_TURN: Final = 0.001
_SPAWNING: Final = 2  # slots that begin at once: whoever runs first begins the next ones, if there is work left by then


class Slots:
    """At most `limit` attempts at once.

    Args:
        limit: how many.
        run: runs one attempt, given the moment at which it begins, and reports its end; raises nothing but the event
            loop's cancellation.
        stuck: how many handlers, of a queue's jobs or (None) in all, sit in threads that their attempts had to leave;
            each takes a slot until it ends, and rings no bell then.
        rested: called when nothing runs any more, and nothing waits.
    """

    def __init__(
        self,
        limit: int,
        *,
        run: Callable[[Held, float], Awaitable[None]],
        stuck: Callable[[str | None], int],
        rested: Callable[[], None],
    ) -> None:
        self.limit: Final = limit
        self._run = run
        self._stuck = stuck
        self._rested = rested
        self._tasks: TaskGroup | None = None
        self._context = copy_context()
        self._open = 0  # tasks
        self._opening = 0  # of them have not come to run yet
        self._waiting: deque[Held] = deque()
        self._in: Counter[str] = Counter()  # by queue, the waiting ones too
        self.running = 0
        self.ended = 0  # attempts, since the start
        self._busy = 0.0
        self._busy_since = math.inf
        self._few = 0
        self._news: anyio.Event | None = None

    def attach(self, tasks: TaskGroup) -> None:
        """Run attempts in this task group, and with context variables as they are now."""
        self._tasks = tasks
        self._context = copy_context()

    # --- how many ---------------------------------------------------------------------------------------

    @property
    def stuck(self) -> int:
        """How many slots belong to threads whose attempts are over. One that ends rings no bell."""
        return self._stuck(None)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a slot."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """How many slots have no job; negative: so many more jobs wait than slots are left."""
        return self.limit - self.running - len(self._waiting) - self.stuck

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and nothing waits to be."""
        return not (self.running or self._waiting or self.stuck)

    def occupied_by(self, queue_name: str) -> int:
        """Return how many slots the jobs of this queue occupy, or will."""
        return self._in[queue_name] + self._stuck(queue_name)

    def busy(self) -> float:
        """Return for how many seconds there was something to run, since the start."""
        if self._busy_since == math.inf:
            return self._busy
        return self._busy + max(0.0, anyio.current_time() - self._busy_since)

    # --- jobs come, and go ------------------------------------------------------------------------------

    def offer(self, batch: Sequence[Held]) -> None:
        """Run these, in this order, as slots become free."""
        if not batch:
            return
        if self._busy_since == math.inf:
            self._busy_since = anyio.current_time()
        self._waiting.extend(batch)
        for held in batch:
            self._in[held.job.queue_name] += 1
        self.fill()

    def withdraw(self, before: float = math.inf) -> Sequence[Held]:
        """Return the jobs that no slot has begun, of those that were reserved before this moment: they won't be run."""
        withdrawn: list[Held] = []
        while self._waiting and self._waiting[0].reserved < before:
            held = self._waiting.popleft()
            self._in[held.job.queue_name] -= 1
            withdrawn.append(held)
        if withdrawn and not (self._waiting or self.running):
            self._rest(anyio.current_time())
        return withdrawn

    async def wait(self, few: int) -> None:
        """Wait until an attempt has ended, and no more than so many jobs wait; or until `nudge`."""
        self._few = few
        self._news = anyio.Event()
        await self._news.wait()

    def nudge(self) -> None:
        """Something has changed for whoever waits."""
        if self._news is not None:
            self._news.set()
            self._news = None

    # --- the tasks --------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Open slots for jobs that wait; call it also when a stuck thread may have ended."""
        if self._tasks is None:
            return
        while self._opening < min(_SPAWNING, len(self._waiting)) and self._open + self.stuck < self.limit:
            self._open += 1
            self._opening += 1
            self._context.run(self._open_slot)

    def _open_slot(self) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._serve, name="slot")

    async def _serve(self) -> None:
        me = anyio.get_current_task()
        cancelling = count_cancellations()
        asked = cancelling()
        try:
            self._opening -= 1
            await anyio.lowlevel.checkpoint_if_cancelled()  # or a first line would run after the worker was cancelled
            clean = copy_context()
            turned = now = anyio.current_time()
            held = self._next()  # first, or one more slot would be opened for the job that is this one's
            self.fill()
            while held:
                try:
                    await self._run(held, now)
                finally:
                    now = anyio.current_time()
                    self._over(held, now)
                if me.has_pending_cancellation():
                    await anyio.lowlevel.checkpoint()
                retired = cancelling() != asked or not _same(clean)
                if now - turned > _TURN:
                    self.fill()
                    await anyio.lowlevel.checkpoint()
                    turned = now = anyio.current_time()
                held = None if retired else self._next()
        except get_cancelled_exc_class():
            # On asyncio a handler may have asked for the cancellation of its own task, if only by a timer that it left
            # behind: that ends this slot, and another takes its place.
            if anyio.current_effective_deadline() == -math.inf:
                raise
        finally:
            self._open -= 1
        self.fill()

    def _next(self) -> Held | None:
        if not self._waiting or self._open + self.stuck > self.limit:
            return None
        self.running += 1
        return self._waiting.popleft()

    def _over(self, held: Held, now: float) -> None:
        self.running -= 1
        self.ended += 1
        self._in[held.job.queue_name] -= 1
        if not (self.running or self._waiting):
            self._rest(now)
        if self._news is not None and len(self._waiting) <= self._few:
            self.nudge()

    def _rest(self, now: float) -> None:
        self._busy += max(0.0, now - self._busy_since)
        self._busy_since = math.inf
        self._rested()


def _same(context: object) -> bool:
    """Return whether context variables are as they were."""
    try:
        return bool(copy_context() == context)
    except Exception:  # noqa: BLE001 - values of any make are compared
        return False
