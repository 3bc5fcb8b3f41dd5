"""Processes that aren't any: the tasks of one can be frozen, and killed between any two of their steps.

Each task knows the life that it belongs to by a context variable, which its children inherit. The event loop's queue
of tasks that can run asks for it: what belongs to a frozen life is held back (SIGSTOP), while time goes on, deadlines
pass and answers arrive; a life that is dead never runs again as far as anybody can tell (SIGKILL): its tasks are
unwound, for they must end before the simulation does, but its link is cut and the ledger does not listen.

What this can't do: stop a process between two awaits; and where a deadline and an answer both came while a process was
frozen, the earlier one wins, as if it had seen them come.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch
from uuid import UUID

import trio
from attrs import define, field
from trio._core import _run

from creche import _bulk, _calls, _ids, _queue

if TYPE_CHECKING:
    from creche import Worker
    from simulation.weather import Weather

LIFE: Final[ContextVar[Life | None]] = ContextVar("life", default=None)
CALLER: Final[ContextVar[Life | None]] = ContextVar("caller", default=None)


def caller() -> Life | None:
    """Return on whose behalf this runs: in the process itself, or, for what it has sent, outside of it."""
    return LIFE.get() or CALLER.get()


@define(eq=False)
class Place:
    """Where a process runs, dies and is started again: its name, its network, its wall clock."""

    name: str
    weather: Weather
    wall_clock: float = 0.0  # seconds by which it is wrong
    last_id: int = 0  # the sequence that ids rise by
    life: Life | None = None
    down_for: float = 1.0  # seconds until it is started again
    snoozed: set[object] = field(factory=set[object])  # jobs that handlers here have put off

    def __repr__(self) -> str:
        return self.name


@define(eq=False)
class Life:
    """One run of a process, from its start to its end."""

    place: Place
    died: Callable[[Life], None]
    alive: bool = True
    frozen: bool = False
    thawed_at: float = -math.inf
    steps_left: int | None = None  # until `at_step` is called
    at_step: Callable[[], None] = lambda: None
    held_back: list[trio.lowlevel.Task] = field(factory=list)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    over: trio.Event = field(factory=trio.Event)
    worker: Worker | None = None
    stopping: bool = False

    def __repr__(self) -> str:
        return self.place.name

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self.thawed_at = trio.current_time()
        runnable, self.held_back = self.held_back, []
        for task in runnable:
            run_queue().append(task)

    def in_steps(self, count: int, do: Callable[[], None]) -> None:
        """Do something right before one of its tasks would take a step, so many steps from now."""
        self.steps_left, self.at_step = count, do

    def kill(self) -> None:
        """SIGKILL. From here on it does nothing that anybody could see."""
        if self.alive:
            self.alive = False
            self.frozen = True
            self.steps_left = None
            self.died(self)

    def bury(self) -> None:
        """Unwind the tasks of the dead."""
        self.thaw()
        self.scope.cancel()

    def may_step(self, task: trio.lowlevel.Task) -> bool:
        """A task of ours can run: may it?"""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.steps_left = None
                self.at_step()
        if self.frozen:
            self.held_back.append(task)
        return not self.frozen


class RunQueue(deque[Any]):
    """The event loop's queue of tasks that can run, less those that may not."""

    def append(self, task: Any, /) -> None:
        life = task.context.get(LIFE)
        if life is None or life.may_step(task):
            super().append(task)


def run_queue() -> RunQueue:
    """Return the event loop's queue, made ours at the first call."""
    runner = _run.GLOBAL_RUN_CONTEXT.runner
    if not isinstance(runner.runq, RunQueue):
        runner.runq = RunQueue(runner.runq)
    return runner.runq


class Dice:
    """Stands in for the module `secrets`."""

    @staticmethod
    def randbits(count: int) -> int:
        return random.getrandbits(count)

    @staticmethod
    def token_hex(count: int) -> str:
        return random.randbytes(count).hex()


def _new_job_id() -> UUID:
    """Draw an id as the process does, which has a rising sequence of its own."""
    life = caller()
    if life is None:
        return _ids.new_job_id()
    _ids._last = life.place.last_id
    job_id = _ids.new_job_id()
    life.place.last_id = _ids._last
    return job_id


@contextmanager
def determined(seed: int, wall_clock: object) -> Generator[None]:
    """Have one seed decide all that is drawn in the block: by us, by creche, by trio's scheduler."""
    state = random.getstate()
    with ExitStack() as stack:
        for target, name, stand_in in (
            (_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (_run, "_r", random._inst),  # the one that the module's functions draw from
            (_ids, "secrets", Dice),
            (_ids, "time", wall_clock),
            (_ids, "_last", 0),
            (_bulk, "time", wall_clock),
            (_queue, "new_job_id", _new_job_id),
            (_queue, "new_job_ids", lambda count: [_new_job_id() for _ in range(count)]),
            (_calls, "new_job_id", _new_job_id),
        ):
            stack.enter_context(patch.object(target, name, stand_in))
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
