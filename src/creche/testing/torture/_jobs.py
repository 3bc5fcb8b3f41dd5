"""The jobs of a torture run: what their handlers do, and what is noted of each attempt. It dispatches none.

Every attempt notes when it begins, under which lease and until when that holds, each renewal, and how it ends; so a
process that is killed has said by then all that it knew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import anyio
from anyio import CancelScope, get_cancelled_exc_class

from creche import ExponentialBackoff, Job, Queue, events
from creche.testing._ledger import Ledger
from creche.testing.torture._plan import GENTLE, MIX, Plan

EFFECTS: Final = (
    "CREATE TABLE effects (job_id VARCHAR(36) NOT NULL, worker VARCHAR(50) NOT NULL, attempt INTEGER NOT NULL)"
)
STUBBORN: Final = 2.0  # seconds for which a handler swallows its cancellation
LONGER: Final = 1.6  # leases that a handler takes which is to outlast one
CALM: Final = "calm"  # the queue of what ends no process
WILD: Final = "wild"
EXIT: Final = 17  # the code of a process that a handler ended


def queue_of(kind: str, number: int) -> str:
    """Return where a job is to run."""
    return CALM if kind in GENTLE and number % 2 else WILD


class Troublemaker(Exception):
    """A handler raises it because it was told to."""


class Jobs:
    """The tasks, on a queue, and what this process knows of the attempts that run in it.

    Args:
        queue: that they are registered on.
        dsn: of the database, which says how a parameter is written.
        ledger: of this process.
        plan: of the run.
    """

    def __init__(self, queue: Queue, dsn: str, ledger: Ledger, plan: Plan) -> None:
        place = "?" if dsn.startswith("sqlite") else "%s"
        self._insert = f"INSERT INTO effects VALUES ({place}, {place}, {place})"
        self._ledger = ledger
        self._plan = plan
        self._clock = 0.0  # what has to be added to the event loop's clock to get the ledgers'
        self._running: dict[UUID, Job] = {}
        self._leases: dict[tuple[UUID, int], str] = {}
        self._ends: dict[tuple[UUID, int], str] = {}
        backoff = ExponentialBackoff(base=0.1, cap=1.0)
        for kind in MIX:
            queue.task(kind, max_attempts=plan.attempts, backoff=backoff, unique=kind == "flight")(getattr(self, kind))

    def set_clock(self) -> None:
        """Compare the clocks, once the event loop runs."""
        self._clock = time.monotonic() - anyio.current_time()

    # --- handlers -----------------------------------------------------------------------------------

    async def brief(self, job: Job, key: str, number: int) -> dict[str, Any]:
        """Take up to 20 ms."""
        with self._noted(job):
            await anyio.sleep(number % 21 / 1_000)
            return _result(job, key)

    async def flight(self, job: Job, number: int) -> dict[str, Any]:
        """Take up to 300 ms, alone of its fingerprint."""
        with self._noted(job):
            await anyio.sleep(number % 4 / 10)
            return _result(job, str(number))

    async def long(self, job: Job, key: str, number: int) -> dict[str, Any]:  # noqa: ARG002 - every task takes it
        """Outlast a lease, in steps with a child task in each."""
        with self._noted(job):
            for _ in range(8):
                async with anyio.create_task_group() as children:
                    children.start_soon(anyio.sleep, self._longer / 8)
            return _result(job, key)

    async def effect(self, job: Job, key: str, number: int) -> None:
        """Write a row in the transaction that ends the attempt."""
        with self._noted(job):
            async with job.transaction() as connection:
                await connection.execute(self._insert, (str(job.id), self._ledger.who, job.attempt))
                await anyio.sleep(number % 30 / 1_000)
                job.set_result(_result(job, key))
                self._ledger.note("commits", job=str(job.id), lease=_lease(job))

    async def fail(self, job: Job, key: str, number: int) -> dict[str, Any]:
        """Raise: one in four at each attempt, the others at their first."""
        with self._noted(job):
            await anyio.sleep(number % 21 / 1_000)
            if _told_to(job, number):
                raise Troublemaker(key)
            return _result(job, key)

    def thread(self, job: Job, key: str, number: int) -> dict[str, Any] | None:  # noqa: ARG002 - every task takes it
        """Outlast a lease in a thread, which nobody can end, but which asks now and then."""
        with self._noted(job) as noted:
            until = time.monotonic() + self._longer
            while time.monotonic() < until:
                if job.cancel_reason is not None:
                    noted["how"] = "gave up"
                    return None
                time.sleep(0.02)
            return _result(job, key)

    async def swallow(self, job: Job, key: str, number: int) -> dict[str, Any]:  # noqa: ARG002 - every task takes it
        """Outlast a lease, and swallow the cancellation for a while."""
        with self._noted(job):
            try:
                await anyio.sleep(self._longer)
            except get_cancelled_exc_class():
                self._ledger.note("swallows", job=str(job.id), lease=_lease(job))
                with CancelScope(shield=True):
                    await anyio.sleep(STUBBORN)
                raise
            return _result(job, key)

    async def exit(self, job: Job, key: str, number: int) -> dict[str, Any]:
        """End the process: one in four at each attempt, the others at their first."""
        with self._noted(job):
            await anyio.sleep(number % 21 / 1_000)
            if _told_to(job, number):
                self._ledger.note("exits", job=str(job.id))
                os._exit(EXIT)
            return _result(job, key)

    async def block(self, job: Job, key: str, number: int) -> dict[str, Any]:  # noqa: ARG002 - every task takes it
        """Block the event loop for longer than a lease."""
        with self._noted(job):
            self._ledger.note("blocks", until=time.monotonic() + self._longer)
            time.sleep(self._longer)  # noqa: ASYNC251 - that is the point
            self._ledger.note("unblocked")
            self._note_beliefs()
            return _result(job, key)

    async def call(self, job: Job, key: str, number: int) -> dict[str, Any]:  # noqa: ARG002 - every task takes it
        """Extend the lease by hand, and say how far it has come."""
        with self._noted(job):
            for step in range(4):
                await job.extend(self._plan.lease)
                await job.progress(step / 4, key)
                await anyio.sleep(self._longer / 8)
            return _result(job, key)

    @property
    def _longer(self) -> float:
        return LONGER * self._plan.lease

    # --- what is noted ------------------------------------------------------------------------------

    @contextmanager
    def _noted(self, job: Job) -> Generator[dict[str, str]]:
        lease = _lease(job)
        self._running[job.id] = job
        self._leases[job.id, job.attempt] = lease
        facts = {"job": str(job.id), "lease": lease}
        self._ledger.note("begin", **facts, kind=job.type, attempt=job.attempt, until=self._until(job))
        noted = {"how": "cancelled"}
        try:
            yield noted
            if noted["how"] == "cancelled":
                noted["how"] = "returned"
        except Exception:
            noted["how"] = "raised"
            raise
        finally:
            self._running.pop(job.id, None)
            self._ledger.note("end", **facts, until=self._until(job), **noted)

    def _note_beliefs(self) -> None:
        """Note until when each job is held: while the loop stood still, a thread may have renewed them, and whoever is
        killed next says no more.
        """
        for job in list(self._running.values()):
            self._note_belief(job)

    def _note_belief(self, job: Job) -> None:
        self._ledger.note("renewed", job=str(job.id), lease=_lease(job), until=self._until(job))

    def _until(self, job: Job) -> float | None:
        until = job.deadline + self._clock
        return None if until == float("inf") else until  # its own transaction has ended it

    def hear(self, event: events.WorkerEvent) -> None:
        """Be a worker's hook."""
        match event:
            case events.JobRenewed():
                if (job := self._running.get(event.job_id)) is not None:
                    self._note_belief(job)
            case events.JobSucceeded():
                self._ending(event, "succeeded")
            case events.JobFailed():
                self._ending(event, "failed" if event.retry_in is None else "retry")
            case events.JobReleased():
                self._ending(event, "released")
            case events.JobCancelled():
                self._ending(event, "cancelled")
            case events.JobAcked():
                attempt = event.job_id, event.attempt
                self._note("acked", event, how=self._ends.pop(attempt, None))
                self._leases.pop(attempt, None)
            case events.JobLeaseLost():
                self._note("lost", event)
                self._ends.pop((event.job_id, event.attempt), None)
                self._leases.pop((event.job_id, event.attempt), None)
            case _:
                pass

    def _ending(self, event: events.JobEvent, how: str) -> None:
        self._ends[event.job_id, event.attempt] = how
        self._note("ending", event, how=how)

    def _note(self, what: str, event: events.JobEvent, **facts: Any) -> None:
        lease = self._leases.get((event.job_id, event.attempt))
        self._ledger.note(what, job=str(event.job_id), attempt=event.attempt, lease=lease, **facts)


def _lease(job: Job) -> str:
    return f"{job.lease.token}:{job.lease.nonce}"


def _result(job: Job, key: str) -> dict[str, Any]:
    return {"key": key, "lease": _lease(job)}


def _told_to(job: Job, number: int) -> bool:
    return job.attempt == 1 or number % 4 == 0
