"""Worker processes: a queue over a link, its tasks, and a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from creche import ExponentialBackoff, Job, Queue, Retention, Worker
from simulation.handlers import perform
from simulation.ledger import Ledger
from simulation.link import Link
from simulation.lives import Life
from simulation.plan import Plan, Script, WorkerPlan

RETENTION = Retention(completed=3_600, failed=3_600, cancelled=3_600)
PIECES = (Script.WORK, Script.STEPS, Script.FAIL, Script.STUBBORN, Script.COMMIT)


def make_queue(ledger: Ledger, plan: Plan, link: Link) -> Queue:
    """Return a queue with all tasks: those who dispatch know them, too."""
    queue = Queue(link.storage)

    @queue.task("work", backoff=ExponentialBackoff(base=1, multiplier=2, cap=20))
    async def work(job: Job, number: int) -> str:
        planned = plan.jobs[number]
        return await perform(ledger, job, planned.script, planned.length)

    @queue.task("piece", result_ttl=120, max_attempts=4)
    async def piece(job: Job, number: int) -> str:
        return await perform(ledger, job, PIECES[number], 5.0 * number)

    @queue.callback("note", on="always")
    async def note(job: Job) -> str:
        return await perform(ledger, job, Script.WORK, 0.0)

    return queue


def run_worker(ledger: Ledger, plan: Plan, mine: WorkerPlan) -> Callable[[Life, Link], Awaitable[None]]:
    """Return what a worker's process does."""

    async def run(life: Life, link: Link) -> None:
        worker = life.worker = Worker(
            make_queue(ledger, plan, link),
            queues=mine.queues,
            concurrency=mine.concurrency,
            lease=mine.lease,
            grace=mine.grace,
            poll_interval=mine.poll_interval,
            retention=RETENTION,
        )
        ledger.serves(life, mine)
        await worker.run(signals=False)

    return run
