"""The nursery: order of start, order of end, stop. It knows no database and no handler.

Outer to inner, the inner ends first: settler and renewer, then the attempts, then the intake. So what renews and
settles outlives the jobs by nesting, not by bookkeeping.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

import anyio
from anyio import TASK_STATUS_IGNORED, CancelScope, create_task_group
from anyio.abc import TaskGroup, TaskStatus
from attrs import frozen

from creche import _events as events
from creche._attempt import Desk, Handlers, Runner
from creche._job import Event, Failure, Lease, Presence, Progress, Retention, Settlement, WorkerState
from creche._leases import Held, Holdings
from creche._lifecycle import BURIES, Case, Outcome, Released, Succeeded, decide
from creche._limits import Limits, StopReason
from creche._logs import about
from creche._maintenance import Maintainer
from creche._registry import Registry
from creche._renewer import Renewer
from creche._reserver import Order, Reserver
from creche._settler import Ended, Settler
from creche._slots import Slots
from creche._wake import Alarm, Doorbell, Listening
from creche._watchdog import Watchdog
from creche.abc import Backoff, Serializer, Storage
from creche.errors import StatementRejected

_log = logging.getLogger("creche")

FAREWELL: Final = 5.0  # seconds for the last settle, after everything else has ended


@frozen(kw_only=True)
class Settings:
    """A worker's settings, checked.

    Attributes:
        presence: what the worker says of itself: its name, its queues, how many attempts at once.
        limits: how many jobs of a queue run at once, of those that have a limit of their own.
        weights: of each queue, if which one comes first is drawn each time.
        types: job types, read anew at each reserve; None for all.
        lease: seconds.
        grace: seconds that running jobs get when the worker is told to stop.
        job_timeout: seconds that an attempt may take whose type says nothing of it.
        max_jobs: how many attempts it begins.
        max_memory: bytes of resident memory above which it begins no more.
        prefetch: how many jobs it reserves ahead of a free slot, at most.
        burst: whether it ends when nothing is left to do.
        poll_interval: seconds between looks when nothing rings; None: as the storage calls for.
        maintenance_interval: seconds between rounds of upkeep.
        retention: how long finished jobs are kept.
        backoff: for job types that have none of their own.
        hooks: told of every event.
    """

    presence: Presence
    limits: Mapping[str, int]
    weights: Mapping[str, int] | None
    types: Collection[str] | None
    lease: float
    grace: float
    job_timeout: float | None
    max_jobs: int | None
    max_memory: int | None
    prefetch: int
    burst: bool
    poll_interval: float | None
    maintenance_interval: float
    retention: Retention
    backoff: Backoff
    hooks: Sequence[events.Hook]

    @property
    def name(self) -> str:
        """Of this start of this worker."""
        return self.presence.name

    @property
    def queues(self) -> Sequence[str]:
        """Names, in the order in which they are served."""
        return self.presence.queues

    @property
    def margin(self) -> float:
        """Seconds by which our deadlines come before the database's: time for a cancelled handler to clean up."""
        return min(self.lease / 10, 2.0)


@frozen(kw_only=True)
class Summary:
    """What a worker did, from its start to its end.

    Attributes:
        reason: why it ended.
        succeeded: jobs that are completed.
        failed: attempts that failed, of which some were tried again.
        dead: jobs that failed for good.
        released: attempts that were given back.
        cancelled: jobs that were cancelled while they ran.
    """

    reason: StopReason
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0
    cancelled: int = 0


@frozen(kw_only=True)
class Health:
    """How a worker is.

    Attributes:
        live: its event loop turns. If not for long, only a new process helps.
        ready: it reserves, and its database answers.
        reason: what is wrong, for people; empty if nothing is.
    """

    live: bool
    ready: bool
    reason: str = ""


class Supervisor:
    """One run of one worker. It can run once.

    Args:
        settings: what it was told.
        storage: where the jobs are; open.
        handlers: what runs them.
        serializer: for handlers that read payloads by hand.
        result_limit: bytes of JSON that a result may have.
        settled: called with jobs whose ends were written.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        storage: Storage,
        handlers: Handlers,
        serializer: Serializer,
        result_limit: int,
        settled: Callable[[Collection[UUID]], None],
    ) -> None:
        self._settings = settings
        self._who = {"worker": settings.name}
        self._storage = storage
        self._conflicts = storage.conflicts
        self._handlers = handlers
        self._settled = settled
        self._announcer = events.Announcer(settings.hooks)
        self._holdings = Holdings()
        self._slots = Slots(
            settings.presence.concurrency, run=self._attempt, stuck=handlers.stuck, rested=self._look_again
        )
        self._limits = Limits(max_jobs=settings.max_jobs, max_memory=settings.max_memory)
        self._registry = Registry(storage, settings.presence, state=lambda: self._state)
        self._watchdog = Watchdog(storage, self._holdings, lease=settings.lease, margin=settings.margin)
        self._doorbell = Doorbell(settings.poll_interval)
        self._alarm = Alarm()
        self._settler = Settler(
            storage,
            self._holdings,
            timeout=settings.lease / 3,
            retention=settings.retention,
            answered=self._answered,
        )
        self._renewer = Renewer(
            storage,
            self._holdings,
            lease=settings.lease,
            margin=settings.margin,
            renewed=self._renewed,
            progressed=self._progressed,
        )
        desk = Desk(
            storage=storage,
            serializer=serializer,
            result_limit=result_limit,
            margin=settings.margin,
            reported=self._renewer.report,
            committed=self._committed,
        )
        self._runner = Runner(handlers, desk, job_timeout=settings.job_timeout, ended=self._submit)
        self._listening = Listening(
            storage, settings.queues, self._doorbell, name=settings.name, called=self._renewer.hurry
        )
        self._maintainer = Maintainer(
            storage,
            settings.queues,
            settings.retention,
            interval=settings.maintenance_interval,
            doorbell=self._doorbell,
            alarm=self._alarm,
            looked=self._tell_conflicts,
        )
        self._reserver = Reserver(
            storage,
            Order(
                queues=settings.queues,
                limits=settings.limits,
                weights=settings.weights,
                types=settings.types,
                lease=settings.lease,
                margin=settings.margin,
                worker=settings.name,
                prefetch=settings.prefetch,
            ),
            self._holdings,
            self._slots,
            doorbell=self._doorbell,
            alarm=self._alarm,
            left=lambda: self._limits.left - self._slots.waiting,
            start=self._start,
            refuse=self._refuse,
            give_back=self._give_back,
            idle=self._idle,
            drained=self._drained,
            refused=self._refused,
        )
        self._intake = CancelScope()
        self._reserving = CancelScope()
        self._attempts: TaskGroup | None = None
        self._reason = StopReason.STOPPED
        self._last_moment = math.inf  # on the event loop's clock: what runs then is cancelled and given back
        self._state = WorkerState.RUNNING  # what other threads may read, as they may not ask a scope
        self._refusal: StatementRejected | None = None
        self._ends: Counter[Event] = Counter()
        self._succeeded = 0  # besides those among them
        self._hooked = bool(settings.hooks)

    # --- told from outside --------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop reserving, let jobs finish for the grace, then give back what is left. A second call: no grace."""
        grace = self._settings.grace if self._last_moment == math.inf else 0.0
        self._last_moment = anyio.current_time() + grace
        self._limit_attempts()
        self._end_intake()
        self._give_back(self._slots.withdraw())

    def quiet(self) -> None:
        """Reserve no more; do all the rest until `stop`."""
        self._reserving.cancel()
        self._give_back(self._slots.withdraw())
        if self._state is WorkerState.RUNNING:
            self._change(WorkerState.QUIET)

    @property
    def health(self) -> Health:
        """How it is; to be asked by any thread."""
        lag = self._watchdog.lag
        live = lag < self._settings.lease
        match self._state:
            case _ if not live:
                reason = f"the event loop has been blocked for {lag:.1f} s"
            case WorkerState.RUNNING if self._reserver.failing or self._registry.failing:
                reason = "the database does not answer"
            case WorkerState.RUNNING if self._attempts is None:
                reason = "it is starting"
            case WorkerState.RUNNING:
                reason = ""
            case state:
                reason = f"it is {state}: it reserves nothing more"
        return Health(live=live, ready=not reason, reason=reason)

    def _end(self, reason: StopReason) -> None:
        """It has done enough: begin nothing more, finish what is held, however long it takes, and end. A quiet one
        begins nothing more as it is, and was told to stay.
        """
        if self._state is WorkerState.RUNNING:
            self._reason = reason
            text = "worker %s finishes what it holds, and ends: %s"
            _log.info(text, self._settings.name, reason, extra=self._who)
            self._end_intake()
            self._give_back(self._slots.withdraw())

    def _end_intake(self) -> None:
        self._intake.cancel()
        self._change(WorkerState.STOPPING)

    def _change(self, state: WorkerState) -> None:
        self._state = state
        self._registry.change()

    def _limit_attempts(self) -> None:
        if self._attempts is not None:
            scope = self._attempts.cancel_scope
            scope.deadline = min(scope.deadline, self._last_moment)

    # --- the nursery --------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> Summary:
        """Work until `stop`, until a limit is reached, or until cancelled: then what is held is given back at once,
        inside a bounded shield.

        Raises:
            StatementRejected: the database refused the first reserve: a right is missing, say.
        """
        try:
            await self._work(task_status)
        finally:
            self._handlers.close()
        if self._refusal is not None:
            raise self._refusal
        return self._summary()

    async def _work(self, task_status: TaskStatus[None]) -> None:
        async with create_task_group() as services:
            self._announcer.attach(services)
            services.start_soon(self._settler.run, name="settler")
            services.start_soon(self._renewer.run, name="renewer")
            services.start_soon(self._watchdog.run, name="watchdog")
            services.start_soon(self._registry.run, name="registry")
            try:
                async with create_task_group() as self._attempts:
                    self._slots.attach(self._attempts)
                    self._limit_attempts()
                    with self._intake:
                        await self._take_in(task_status)
            finally:
                self._change(WorkerState.STOPPING)
                self._give_back(self._slots.withdraw())
                self._settler.close(FAREWELL)
                self._announcer.hurry(FAREWELL)
                services.start_soon(self._end_with_the_last_settle, name="farewell")

    async def _take_in(self, task_status: TaskStatus[None]) -> None:
        settings = self._settings
        async with create_task_group() as intake:
            intake.start_soon(self._hurry_when_told, name="stop")
            intake.start_soon(self._listening.run, name="listener")
            intake.start_soon(self._maintainer.run, name="maintainer")
            intake.start_soon(self._reserve, name="reserver")
            _log.info("worker %s serves %s", settings.name, ", ".join(settings.queues), extra=self._who)
            self._announcer.tell(events.WorkerStarted(worker=settings.name, queues=settings.queues))
            task_status.started()

    async def _reserve(self) -> None:
        with self._reserving:
            await self._reserver.run()

    async def _hurry_when_told(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._reserver.hurry()

    async def _end_with_the_last_settle(self) -> None:
        with CancelScope(shield=True):
            await self._settler.finished.wait()
        self._renewer.stop()
        self._watchdog.stop()
        self._registry.stop()
        self._tell_conflicts()
        self._announcer.tell(events.WorkerStopped(worker=self._settings.name))
        _log.info("worker %s stopped", self._settings.name, extra=self._who)

    def _tell_conflicts(self) -> None:
        """Tell of what happened since the last time."""
        conflicts, self._conflicts = self._storage.conflicts - self._conflicts, self._storage.conflicts
        if conflicts:
            self._announcer.tell(events.StorageConflicted(worker=self._settings.name, conflicts=conflicts))

    # --- one attempt --------------------------------------------------------------------------------

    def _start(self, batch: Sequence[Held]) -> None:
        self._tell_reserved(batch)
        self._slots.offer(batch)

    def _refuse(self, batch: Sequence[Held]) -> None:
        self._tell_reserved(batch)
        self._give_back(batch)

    def _tell_reserved(self, batch: Sequence[Held]) -> None:
        if self._hooked:
            for held in batch:
                self._tell(events.JobReserved, held)

    def _give_back(self, batch: Sequence[Held]) -> None:
        for held in batch:
            self._submit(held, Released(), 0.0)

    async def _attempt(self, held: Held, now: float) -> None:
        if self._settings.max_jobs is not None and (reason := self._limits.begin()):
            self._end(reason)
        try:
            if self._hooked:
                self._tell(events.JobStarted, held)
            await self._runner.run(held, now)
        finally:
            if held.job.queue_name in self._settings.limits:
                self._doorbell.ring()  # the reserver waits for a slot of this queue, not for any
            if self._settings.max_memory is not None and (reason := self._limits.end()):
                self._end(reason)

    def _submit(self, held: Held, outcome: Outcome | None, started: float) -> None:
        """The attempt that began at this moment is over; the outcome is None where there is nothing left to say: the
        lease is lost.
        """
        match outcome:
            case None:
                self._lost(held)
                return
            case Succeeded(result=result) if not self._hooked:  # what nearly all are, with nothing left to decide
                self._settler.submit(held, Settlement(lease=held.lease, event=Event.SUCCEED, result=result))
                return
            case _:
                pass
        job = held.job
        backoff = self._handlers.backoff(job.type) or self._settings.backoff
        case = Case(lease=held.lease, attempt=job.attempt, max_attempts=job.max_attempts, backoff=backoff)
        settlement = decide(case, outcome)
        seconds = anyio.current_time() - started
        match settlement.event:
            case Event.SUCCEED:
                self._tell(events.JobSucceeded, held, seconds=seconds)
            case Event.RELEASE | Event.SNOOZE:
                self._tell(events.JobReleased, held)
            case Event.ABORT:
                self._tell(events.JobCancelled, held)
            case _:
                retry_in = settlement.delay if settlement.event is Event.RETRY else None
                self._log_failure(held, settlement.error, retry_in)
                self._tell(events.JobFailed, held, seconds=seconds, error=settlement.error, retry_in=retry_in)
        self._settler.submit(held, settlement)

    def _answered(self, batch: Sequence[Ended], lost: Collection[Lease]) -> None:
        over: list[UUID] = []
        for held, settlement in batch:
            if lost and held.lease in lost:
                self._lost(held)
                continue
            over.append(held.lease.job_id)
            if settlement.event is Event.SUCCEED and not self._hooked:
                self._succeeded += 1
            else:
                self._accepted(held, settlement)
        self._settled(over)
        self._slots.nudge()  # the reserver may have waited for this
        self._look_again()

    def _accepted(self, held: Held, settlement: Settlement) -> None:
        self._ends[settlement.event] += 1
        self._tell(events.JobAcked, held)
        if settlement.event in BURIES:
            self._tell(events.JobDeadLettered, held, error=settlement.error)
        if settlement.event in {Event.RETRY, Event.SNOOZE} and settlement.available_at is None:
            self._alarm.due_in(settlement.delay)

    def _committed(self, held: Held, seconds: float) -> None:
        """A handler's own transaction ended its attempt."""
        held.settle()
        self._holdings.drop(held)
        self._succeeded += 1
        self._tell(events.JobSucceeded, held, seconds=seconds)
        self._tell(events.JobAcked, held)
        self._settled([held.job.id])

    def _lost(self, held: Held) -> None:
        self._holdings.drop(held)
        text = "job %s: the lease of attempt %d is lost"
        _log.warning(text, held.job.id, held.job.attempt, extra=about(held.job, self._settings.name))
        self._tell(events.JobLeaseLost, held)
        self._look_again()

    def _renewed(self, held: Held) -> None:
        self._tell(events.JobRenewed, held)

    def _progressed(self, held: Held, progress: Progress) -> None:
        self._tell(events.JobProgressed, held, fraction=progress.fraction, message=progress.message)

    def _idle(self) -> None:
        self._announcer.tell(events.WorkerIdle(worker=self._settings.name))

    def _look_again(self) -> None:
        if self._settings.burst and not self._holdings and self._slots.idle:
            self._doorbell.ring()

    def _refused(self, error: StatementRejected) -> None:
        self._refusal = error
        self._end_intake()

    def _drained(self) -> None:
        if self._settings.burst:
            self._end(StopReason.DRAINED)

    def _summary(self) -> Summary:
        ends = self._ends
        dead = ends[Event.FAIL] + ends[Event.DISCARD]
        return Summary(
            reason=self._reason,
            succeeded=self._succeeded + ends[Event.SUCCEED],
            failed=ends[Event.RETRY] + dead,
            dead=dead,
            released=ends[Event.RELEASE] + ends[Event.SNOOZE],
            cancelled=ends[Event.ABORT],
        )

    def _tell(self, kind: type[events.JobEvent], held: Held, **facts: object) -> None:
        if not self._hooked:
            return
        job = held.job
        self._announcer.tell(
            kind(
                worker=self._settings.name,
                job_id=job.id,
                type=job.type,
                queue_name=job.queue_name,
                attempt=job.attempt,
                **facts,
            )
        )

    def _log_failure(self, held: Held, error: Failure | None, retry_in: float | None) -> None:
        """Tell the operator; never the arguments, for they hold what is nobody's business."""
        job = held.job
        extra = about(job, self._settings.name)
        what = f"{error.type}: {error.message}" if error else "no error was given"
        if retry_in is None:
            text = "job %s %r: attempt %d failed, and was the last: %s\n%s"
            _log.error(text, job.id, job.type, job.attempt, what, error.traceback if error else "", extra=extra)
        else:
            text = "job %s %r: attempt %d of %d failed, the next is in %.3g s: %s"
            _log.warning(text, job.id, job.type, job.attempt, job.max_attempts, retry_in, what, extra=extra)
