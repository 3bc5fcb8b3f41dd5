"""A simulation: processes, a database, and what goes wrong between them, from a plan to a report."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final

import trio
from attrs import frozen

from simulation.clocks import JumpingClock, WallClock
from simulation.database import Database
from simulation.dispatcher import Dispatcher
from simulation.ledger import Ledger
from simulation.link import Link
from simulation.lives import CALLER, LIFE, Life, Place, determined, run_queue
from simulation.plan import ANYWHERE, NETWORK, Fault, Kind, Plan
from simulation.weather import Weather
from simulation.workers import run_worker

_PATIENCE: Final = 60.0  # seconds beyond its grace that a stop may take
_SETTLING: Final = 900.0  # seconds, see `_due_by`


@frozen(kw_only=True)
class Report:
    """What came of a plan.

    Attributes:
        digest: a hash of all events, in their order.
        worker_hours: how long workers were simulated, all together.
        cpu: seconds of this machine that it took.
    """

    plan: Plan
    violations: list[str]
    digest: str
    timeline: str
    counts: Counter[str]
    worker_hours: float
    cpu: float

    def __str__(self) -> str:
        broken = "\n".join(self.violations)
        return f"{broken}\n\nThe last events:\n{self.timeline}\n\nTo see it again: simulate({self.plan!r})"


def simulate(plan: Plan) -> Report:
    """Carry out a plan in virtual time; the same one gives the same events, each time and everywhere."""
    began = time.process_time()
    log = logging.getLogger("creche")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with determined(plan.seed, WallClock):
            world = World(plan)
            trio.run(world.run, clock=JumpingClock())
    finally:
        log.setLevel(level)
    ledger = world.ledger
    return Report(
        plan=plan,
        violations=ledger.violations,
        digest=ledger.digest(),
        timeline=ledger.timeline(),
        counts=ledger.counts,
        worker_hours=world.hours * len(plan.workers),
        cpu=time.process_time() - began,
    )


class World:
    """Everything there is."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ledger = Ledger()
        self.hours = 0.0

    async def run(self) -> None:
        """Live through the plan."""
        run_queue()
        self._context = copy_context()
        self._database = Database(self.ledger)
        names = [f"w{n}" for n in range(len(self.plan.workers))] + [f"d{n}" for n in range(self.plan.dispatchers)]
        self._places = [Place(name, Weather()) for name in names]
        self._closing = trio.Event()
        self._links: dict[Life, Link] = {}
        async with trio.open_nursery() as self._outside:
            self._outside.start_soon(self._end_when_broken)
            await self._live()
            self.hours = trio.current_time() / 3_600
            self.ledger.finish()
            self._outside.cancel_scope.cancel()

    async def _end_when_broken(self) -> None:
        await self.ledger.broken.wait()
        self.hours = trio.current_time() / 3_600
        self._outside.cancel_scope.cancel()

    async def _live(self) -> None:
        workers = self._places[: len(self.plan.workers)]
        dispatchers = [
            Dispatcher(self.ledger, self.plan, number) for number, _ in enumerate(self._places[len(workers) :])
        ]
        async with trio.open_nursery() as processes:
            for place, worker in zip(workers, self.plan.workers, strict=True):
                body = run_worker(self.ledger, self.plan, worker)
                processes.start_soon(self._keep_up, place, body)
            for place, dispatcher in zip(self._places[len(workers) :], dispatchers, strict=True):
                processes.start_soon(self._keep_up, place, dispatcher.run)
            async with trio.open_nursery() as faults:
                for fault in self.plan.faults:
                    faults.start_soon(self._suffer, fault)
                for dispatcher in dispatchers:
                    await dispatcher.done.wait()
            await self._expect_an_end()
            await trio.sleep_until(self.plan.hours * 3_600)
            await self._close(workers)
            processes.cancel_scope.cancel()

    async def _expect_an_end(self) -> None:
        """I7: after the faults every job is over, in bounded time."""
        with trio.move_on_after(self._longest()):
            # Nobody is told of it, for the engine is not to know that somebody waits.
            while self.ledger.unfinished or not self.ledger.calm:  # noqa: ASYNC110
                await trio.sleep(5)
        if unfinished := self.ledger.unfinished:
            self.ledger.fail(f"I7: not over after {self._longest():.0f} s of calm: {', '.join(unfinished)}")

    def _longest(self) -> float:
        """Seconds that the slowest of all jobs may take, and all of them together, if every attempt is made."""
        plan = self.plan
        lease = max(worker.lease for worker in plan.workers)
        attempts = sum(2 * job.length * job.max_attempts for job in plan.jobs) * 2  # some are revived
        slots = min(worker.concurrency for worker in plan.workers if len(worker.queues) > 1)
        between = max((job.max_attempts for job in plan.jobs), default=1) * (lease + 120)
        return _SETTLING + attempts / slots + between

    async def _close(self, workers: list[Place]) -> None:
        """Stop everybody politely."""
        self._closing.set()
        with trio.move_on_after(_PATIENCE + max(worker.grace for worker in self.plan.workers)) as scope:
            for place in workers:
                if place.life is not None and place.life.worker is not None:
                    place.life.steps_left = None  # what was to happen to it, and has not
                    place.life.worker.stop()
            for place in workers:
                if place.life is not None:
                    await place.life.over.wait()
        if scope.cancelled_caught:
            self.ledger.fail("a stop is not bounded")
        elif left := await self._database.workers():
            self.ledger.fail(f"{len(left)} workers have ended, and are still announced")

    # --- processes ----------------------------------------------------------------------------------

    async def _keep_up(self, place: Place, body: Callable[[Life, Link], Any]) -> None:
        """Run a process, and start it again when it has ended."""
        while not self._closing.is_set():
            life = place.life = Life(place, self._died)
            link = self._links[life] = Link(self._database, life, self._send)
            self.ledger.note(place, "starts")
            self._start(LIFE, life, self._inhabit, life, link, body)
            await life.over.wait()
            self.ledger.serves_no_more(life)
            place.life = None
            del self._links[life]
            if not self._closing.is_set():
                self.ledger.trouble(began=True)
                await trio.sleep(place.down_for)
                place.down_for = 1.0
                self.ledger.trouble(began=False)

    async def _inhabit(self, life: Life, link: Link, body: Callable[[Life, Link], Any]) -> None:
        try:
            with life.scope:
                await body(life, link)
        except Exception as error:  # noqa: BLE001 - whatever ended the worker, it should not have
            if life.alive:
                self.ledger.fail(f"{life} ended by itself: {error!r}")
        finally:
            if life.alive and not (life.stopping or self._closing.is_set() or self.ledger.violations):
                self.ledger.fail(f"{life} ended by itself")
            if life.alive:
                self.ledger.note(life, "ends")
                life.over.set()

    def _died(self, life: Life) -> None:
        """Killed, at whatever step this is."""
        self.ledger.note(life, "is killed")
        self.ledger.counts["processes killed"] += 1
        self.ledger.serves_no_more(life)
        self._links[life].reset()
        life.over.set()
        self._start(CALLER, None, self._bury, life)

    async def _bury(self, life: Life) -> None:
        life.bury()

    def _send(self, life: Life, carry: Callable[..., Any], *args: Any) -> None:
        self._start(CALLER, life, carry, *args)

    def _start(self, variable: Any, life: Life | None, function: Callable[..., Any], *args: Any) -> None:
        """Start a task that does not belong to whoever is running now."""
        context: Context = self._context.copy()
        context.run(variable.set, life)
        context.run(self._outside.start_soon, function, *args)

    # --- faults -------------------------------------------------------------------------------------

    async def _suffer(self, fault: Fault) -> None:
        await trio.sleep_until(fault.at)
        places = self._places if fault.where == ANYWHERE else [self._places[fault.where % len(self._places)]]
        where = "everywhere" if fault.where == ANYWHERE else places[0]
        counts_as_trouble = fault.kind not in {Kind.DEAF, Kind.CLOCK}
        if counts_as_trouble:
            self.ledger.trouble(began=True)
        self.ledger.note("----", f"{fault.kind} {where}, {fault.strength:g}, for {fault.lasts:g} s")
        self.ledger.counts[f"fault: {fault.kind}"] += 1
        try:
            if fault.kind in NETWORK:
                await self._spoil_the_weather(fault, places)
            elif fault.kind is Kind.FAILOVER:
                standby = self._database.replicate()
                await trio.sleep(fault.lasts)
                self._fail_over(standby)
            else:
                await self._do_to_process(fault, places[0])
        finally:
            if counts_as_trouble:
                self.ledger.trouble(began=False)
            self.ledger.note("----", f"{fault.kind} {where} is over")

    async def _spoil_the_weather(self, fault: Fault, places: list[Place]) -> None:
        for place in places:
            place.weather.begin(fault)
        if fault.kind in {Kind.DOWN, Kind.LOSSY}:
            self._reset(places)
        await trio.sleep(fault.lasts)
        for place in places:
            place.weather.end(fault)
        if fault.kind is not Kind.DEAF:
            self._reset(places)  # a connection that was in a hole is noticed by its keepalives, sooner or later

    def _reset(self, places: list[Place]) -> None:
        for place in places:
            if place.life is not None and place.life in self._links:
                self._links[place.life].reset()

    def _fail_over(self, standby: Any) -> None:
        self._database.fail_over(standby)
        self._reset(self._places)

    async def _do_to_process(self, fault: Fault, place: Place) -> None:
        if fault.kind is Kind.CLOCK:
            place.wall_clock += fault.strength
            return
        life = place.life
        if life is None or not life.alive or life.frozen:
            return
        if fault.kind is Kind.CRASH:
            place.down_for = fault.lasts
            life.in_steps(int(fault.strength), life.kill)
            return
        reached = trio.Event()
        life.in_steps(int(fault.strength), reached.set)
        with trio.move_on_after(fault.lasts):
            await reached.wait()
        if life.over.is_set():
            return
        match fault.kind:
            case Kind.PAUSE:
                life.freeze()
                await trio.sleep(fault.lasts)
                if not life.over.is_set():
                    life.thaw()
            case Kind.TERM if life.worker is not None:
                place.down_for = fault.lasts
                life.stopping = True
                life.worker.stop()
                await life.over.wait()
            case Kind.ABORT if life.worker is not None:
                place.down_for = fault.lasts
                life.stopping = True
                life.scope.cancel()
                await life.over.wait()
            case _:
                pass
