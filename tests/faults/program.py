"""What the fault tests run as processes of their own: workers and askers that write down what they do."""

from __future__ import annotations

import argparse
import os
import secrets
import time
from pathlib import Path

import anyio
from anyio import get_cancelled_exc_class

from creche import Job, Queue, Worker, events

JOURNAL = Path(os.environ["JOURNAL"])
queue = Queue(os.environ["CRECHE_DSN"])


def note(*words: object) -> None:
    """Add a line to the journal; lines this short are written whole."""
    with JOURNAL.open("a", encoding="utf-8") as journal:
        journal.write(" ".join(map(str, [os.getpid(), *words])) + "\n")


@queue.task("single", result_ttl=300)
async def single(key: str) -> str:
    note("ran", key)
    await anyio.sleep(0.3)
    return secrets.token_hex(8)


@queue.task("hold", max_attempts=5)
async def hold(job: Job, seconds: float, first: float | None = None) -> str:
    """Hold the lease, for another time at the first attempt; when cancelled, insist on a result, as a careless handler
    does.
    """
    note("started", job.attempt)
    try:
        await anyio.sleep(seconds if first is None or job.attempt > 1 else first)
    except get_cancelled_exc_class():
        note("cancelled", job.attempt)
        return f"late, from attempt {job.attempt}"
    note("finished", job.attempt)
    return f"in time, from attempt {job.attempt}"


@queue.task("patient", max_attempts=5)
async def patient(job: Job) -> None:
    note("started", job.attempt)
    await anyio.sleep(300)


@queue.task("brief", max_attempts=30)
async def brief(number: int) -> int:
    note("brief", number)
    await anyio.sleep(0.005)
    return number


@queue.task("poison")
async def poison(job: Job) -> None:
    """Take the whole process along, once its neighbours have begun."""
    note("poison", job.attempt)
    await anyio.sleep(0.05)
    os._exit(1)


@queue.task("innocent")
async def innocent(job: Job) -> None:
    note("innocent", job.attempt)
    await anyio.sleep(0.2)


def hook(event: events.WorkerEvent) -> None:
    match event:
        case events.WorkerStarted():
            note("ready")
        case events.JobLeaseLost():
            note("lease_lost", event.attempt)
        case events.JobAcked():
            note("acked", event.attempt)
        case _:
            pass


async def ask(count: int, key: str) -> None:
    async def one() -> None:
        receipt = await single.dispatch(key)
        note("receipt", receipt.job_id, receipt.inserted)
        note("answer", await receipt.wait(60))

    async with queue, anyio.create_task_group() as askers:
        for _ in range(count):
            askers.start_soon(one)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["work", "ask"])
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--lease", type=float, default=30)
    parser.add_argument("--grace", type=float, default=30)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--key", default="key")
    options = parser.parse_args()
    if options.role == "ask":
        anyio.run(ask, options.count, options.key, backend=options.backend)
        return
    worker = Worker(queue, lease=options.lease, grace=options.grace, hooks=[hook])
    anyio.run(worker.run, backend=options.backend)
    note("ended", time.monotonic())


if __name__ == "__main__":
    main()
