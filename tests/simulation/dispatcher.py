"""Dispatching processes: an outbox that is sent until it is acknowledged, whatever happens in between."""

from __future__ import annotations

from typing import Any, Final

import trio

from creche import JobCancelled, JobFailed, JobNotFound, Queue, Receipt, WaitTimeout
from creche.errors import StorageUnavailable
from simulation.ledger import Ledger
from simulation.link import Link
from simulation.lives import Life
from simulation.plan import JobPlan, Plan
from simulation.workers import make_queue

_GIVEN_UP: Final = 30.0  # seconds after which a call is sent again
_PAUSE: Final = 1.0
_LONGEST: Final = 60.0
_WAITED: Final = 120.0


class Dispatcher:
    """One of them. What it has to do outlives the process: `run` goes on where it was."""

    def __init__(self, ledger: Ledger, plan: Plan, number: int) -> None:
        self._ledger = ledger
        self._plan = plan
        self._left = {n: job for n, job in enumerate(plan.jobs) if job.dispatcher % plan.dispatchers == number}
        self.done = trio.Event()
        if not self._left:
            self.done.set()

    async def run(self, life: Life, link: Link) -> None:
        """Do what is left to do, and stay."""
        queue = make_queue(self._ledger, self._plan, link)
        async with queue, trio.open_nursery() as errands:
            for number, job in list(self._left.items()):
                errands.start_soon(self._see_to, life, queue, number, job)
            await trio.sleep_forever()

    async def _see_to(self, life: Life, queue: Queue, number: int, job: JobPlan) -> None:
        await trio.sleep_until(job.at)
        receipt: Receipt[Any] = await self._insist(lambda: self._dispatch(queue, number, job))
        if life.alive:
            self._ledger.acknowledge(receipt.job_id, _what(number, job), followed=job.followed)
        if job.cancel_after is not None:
            await trio.sleep(job.cancel_after)
            await self._insist(lambda: queue.cancel(receipt.job_id))
        if job.retry_after is not None:
            await trio.sleep(job.retry_after)
            await self._insist(lambda: queue.retry(receipt.job_id))
        if job.awaited:
            await self._wait(life, receipt)
        if life.alive:
            del self._left[number]
            if not self._left:
                self.done.set()

    async def _insist(self, call: Any) -> Any:
        pause = _PAUSE
        while True:
            with trio.move_on_after(_GIVEN_UP):
                try:
                    return await call()
                except JobNotFound:
                    return None  # a failover, or a long outage: the ledger knows which jobs may be gone
                except StorageUnavailable:
                    pass
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    async def _dispatch(self, queue: Queue, number: int, job: JobPlan) -> Receipt[Any]:
        callbacks = [queue.tasks.get("note")] if job.followed else None
        if job.piece is not None:
            call = queue.tasks.get("piece").call(job.piece)
            return await queue.dispatch(call, queue=job.queue, callbacks=callbacks)
        return await queue.dispatch(
            queue.tasks.get("work").call(number),
            queue=job.queue,
            priority=job.priority,
            delay=job.delay,
            max_attempts=job.max_attempts,
            idempotency_key=None if job.key is None else f"key {job.key}",
            callbacks=callbacks,
        )

    async def _wait(self, life: Life, receipt: Receipt[Any]) -> None:
        try:
            result = await receipt.wait(_WAITED)
        except (WaitTimeout, JobFailed, JobCancelled, JobNotFound):
            return
        if life.alive:
            self._ledger.got(receipt.job_id, f'"{result}"'.encode())


def _what(number: int, job: JobPlan) -> str:
    if job.piece is not None:
        return f"piece {job.piece}"
    return f"dispatch {number}" if job.key is None else f"key {job.key} in {job.queue}"
