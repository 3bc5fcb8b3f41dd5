"""The nursery: order of start, order of end, stop. It knows no database and no handler.

Outer to inner, the inner ends first: settler and renewer, then the attempts, then the intake. So what renews and
settles outlives the jobs by nesting, not by bookkeeping.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final
from uuid import UUID

import anyio
from anyio import TASK_STATUS_IGNORED, CancelScope, create_task_group
from anyio.abc import TaskGroup, TaskStatus
from attrs import frozen

from creche import _events as events
from creche._attempt import Desk, Handlers, Result, Runner
from creche._job import Event, Failure, Progress, Retention
from creche._leases import Held, Holdings
from creche._lifecycle import BURIES, Case, Released, decide
from creche._maintenance import Maintainer
from creche._renewer import Renewer
from creche._reserver import Order, Reserver
from creche._settler import Ended, Settler
from creche._wake import Alarm, Doorbell, Listening
from creche.abc import Backoff, Serializer, Storage

_log = logging.getLogger("creche")

FAREWELL: Final = 5.0  # seconds for the last settle, after everything else has ended


@frozen(kw_only=True)
class Settings:
    """A worker's settings, checked.

    Attributes:
        name: of this start of this worker.
        queues: names, in the order in which they are served.
        types: job types, read anew at each reserve; None for all.
        concurrency: how many attempts at once.
        lease: seconds.
        grace: seconds that running jobs get when the worker is told to stop.
        poll_interval: seconds between looks when nothing rings.
        maintenance_interval: seconds between rounds of upkeep.
        retention: how long finished jobs are kept.
        backoff: for job types that have none of their own.
        hooks: told of every event.
    """

    name: str
    queues: Sequence[str]
    types: Collection[str] | None
    concurrency: int
    lease: float
    grace: float
    poll_interval: float
    maintenance_interval: float
    retention: Retention
    backoff: Backoff
    hooks: Sequence[events.Hook]

    @property
    def margin(self) -> float:
        """Seconds by which our deadlines come before the database's: time for a cancelled handler to clean up."""
        return min(self.lease / 10, 2.0)


class Supervisor:
    """One run of one worker. It can run once.

    Args:
        settings: what it was told.
        storage: where the jobs are; open.
        handlers: what runs them.
        serializer: for handlers that read payloads by hand.
        result_limit: bytes of JSON that a result may have.
        settled: called with each job whose end was written.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        storage: Storage,
        handlers: Handlers,
        serializer: Serializer,
        result_limit: int,
        settled: Callable[[UUID], None],
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._conflicts = storage.conflicts
        self._handlers = handlers
        self._settled = settled
        self._announcer = events.Announcer(settings.hooks)
        self._holdings = Holdings(settings.concurrency, handlers.stuck)
        self._doorbell = Doorbell(settings.poll_interval)
        self._alarm = Alarm()
        self._settler = Settler(storage, self._holdings, timeout=settings.lease / 3, answered=self._answered)
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
        self._runner = Runner(handlers, desk)
        self._listening = Listening(storage, settings.queues, self._doorbell)
        self._maintainer = Maintainer(
            storage,
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
                types=settings.types,
                lease=settings.lease,
                margin=settings.margin,
                worker=settings.name,
            ),
            self._holdings,
            doorbell=self._doorbell,
            alarm=self._alarm,
            start=self._start,
            refuse=self._refuse,
            idle=self._idle,
        )
        self._intake = CancelScope()
        self._attempts: TaskGroup | None = None
        self._impatient = False

    def stop(self) -> None:
        """Stop reserving, let jobs finish for the grace, then give back what is left. A second call: no grace."""
        self._impatient = self._intake.cancel_called
        self._intake.cancel()
        if self._impatient and self._attempts is not None:
            self._attempts.cancel_scope.cancel()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Work until `stop`, or until cancelled: then what is held is given back at once, inside a bounded shield."""
        settings = self._settings
        async with create_task_group() as services:
            self._announcer.attach(services)
            services.start_soon(self._settler.run, name="settler")
            services.start_soon(self._renewer.run, name="renewer")
            try:
                async with create_task_group() as self._attempts:
                    with self._intake:
                        await self._take_in(task_status)
                    grace = 0.0 if self._impatient else settings.grace
                    self._attempts.cancel_scope.deadline = anyio.current_time() + grace
            finally:
                self._settler.close(FAREWELL)
                self._announcer.hurry(FAREWELL)
                services.start_soon(self._end_with_the_last_settle, name="farewell")

    async def _take_in(self, task_status: TaskStatus[None]) -> None:
        settings = self._settings
        async with create_task_group() as intake:
            intake.start_soon(self._hurry_when_told, name="stop")
            intake.start_soon(self._listening.run, name="listener")
            intake.start_soon(self._maintainer.run, name="maintainer")
            intake.start_soon(self._reserver.run, name="reserver")
            _log.info("worker %s serves %s", settings.name, ", ".join(settings.queues))
            self._announcer.tell(events.WorkerStarted(worker=settings.name, queues=settings.queues))
            task_status.started()

    async def _hurry_when_told(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._reserver.hurry()

    async def _end_with_the_last_settle(self) -> None:
        with CancelScope(shield=True):
            await self._settler.finished.wait()
        self._renewer.stop()
        self._tell_conflicts()
        self._announcer.tell(events.WorkerStopped(worker=self._settings.name))
        _log.info("worker %s stopped", self._settings.name)

    def _tell_conflicts(self) -> None:
        """Tell of what happened since the last time."""
        conflicts, self._conflicts = self._storage.conflicts - self._conflicts, self._storage.conflicts
        if conflicts:
            self._announcer.tell(events.StorageConflicted(worker=self._settings.name, conflicts=conflicts))

    # --- one attempt --------------------------------------------------------------------------------

    def _start(self, held: Held) -> None:
        self._tell(events.JobReserved, held)
        if self._attempts is None:  # pragma: no cover - the reserver lives inside the attempts' group
            raise AssertionError
        self._attempts.start_soon(self._attempt, held, name=f"job {held.job.id}")

    def _refuse(self, held: Held) -> None:
        self._holdings.vacate()
        self._submit(held, Result(outcome=Released(), seconds=0.0))

    async def _attempt(self, held: Held) -> None:
        try:
            self._tell(events.JobStarted, held)
            await self._runner.run(held, lambda result: self._submit(held, result))
        finally:
            self._holdings.vacate()

    def _submit(self, held: Held, result: Result) -> None:
        if result.outcome is None:
            self._lost(held)
            return
        job = held.job
        backoff = self._handlers.backoff(job.type) or self._settings.backoff
        case = Case(lease=held.lease, attempt=job.attempt, max_attempts=job.max_attempts, backoff=backoff)
        settlement = decide(case, result.outcome)
        match settlement.event:
            case Event.SUCCEED:
                self._tell(events.JobSucceeded, held, seconds=result.seconds)
            case Event.RELEASE | Event.SNOOZE:
                self._tell(events.JobReleased, held)
            case Event.ABORT:
                self._tell(events.JobCancelled, held)
            case _:
                retry_in = settlement.delay if settlement.event is Event.RETRY else None
                _log_failure(held, settlement.error, retry_in)
                self._tell(events.JobFailed, held, seconds=result.seconds, error=settlement.error, retry_in=retry_in)
        self._settler.submit(Ended(held=held, settlement=settlement))

    def _answered(self, ended: Ended, accepted: bool) -> None:
        held, settlement = ended.held, ended.settlement
        if not accepted:
            self._lost(held)
            return
        self._tell(events.JobAcked, held)
        if settlement.event in BURIES:
            self._tell(events.JobDeadLettered, held, error=settlement.error)
        if settlement.event in {Event.RETRY, Event.SNOOZE} and settlement.available_at is None:
            self._alarm.due_in(settlement.delay)
        self._settled(held.job.id)

    def _committed(self, held: Held, seconds: float) -> None:
        """A handler's own transaction ended its attempt."""
        held.settle()
        self._holdings.drop(held)
        self._tell(events.JobSucceeded, held, seconds=seconds)
        self._tell(events.JobAcked, held)
        self._settled(held.job.id)

    def _lost(self, held: Held) -> None:
        self._holdings.drop(held)
        _log.warning("job %s: the lease of attempt %d is lost", held.job.id, held.job.attempt)
        self._tell(events.JobLeaseLost, held)

    def _renewed(self, held: Held) -> None:
        self._tell(events.JobRenewed, held)

    def _progressed(self, held: Held, progress: Progress) -> None:
        self._tell(events.JobProgressed, held, fraction=progress.fraction, message=progress.message)

    def _idle(self) -> None:
        self._announcer.tell(events.WorkerIdle(worker=self._settings.name))

    def _tell(self, kind: type[events.JobEvent], held: Held, **facts: object) -> None:
        if not self._settings.hooks:
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


def _log_failure(held: Held, error: Failure | None, retry_in: float | None) -> None:
    """Tell the operator; never the arguments, for they hold what is nobody's business."""
    job = held.job
    what = f"{error.type}: {error.message}" if error else "no error was given"
    if retry_in is None:
        text = "job %s %r: attempt %d failed, and was the last: %s\n%s"
        _log.error(text, job.id, job.type, job.attempt, what, error.traceback if error else "")
    else:
        text = "job %s %r: attempt %d of %d failed, the next is in %.3g s: %s"
        _log.warning(text, job.id, job.type, job.attempt, job.max_attempts, retry_in, what)
