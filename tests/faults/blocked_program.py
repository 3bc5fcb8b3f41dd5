"""What the tests of a blocked event loop run as processes: workers whose loop somebody blocks, and their rivals."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import frozen

from creche import Job, Queue, Retention, Tasks, Worker, events
from creche.testing._ledger import Ledger

tasks = Tasks()


@frozen(kw_only=True)
class Part:
    """What one process is to be.

    Attributes:
        queues: that it serves.
        loop: asyncio or trio.
        lease: seconds.
        watched: whether a blocked loop's leases are renewed by somebody else.
        keep: whether jobs that succeeded are kept.
    """

    queues: Sequence[str]
    loop: str
    lease: float
    watched: bool = True
    keep: bool = True


class Player:
    """What all handlers of a process use."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self.settling = anyio.Event()

    async def told(self, word: str) -> None:
        """Wait until the test says so."""
        while not (self.folder / word).exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.02)


player: Player


def say(folder: Path, word: str) -> None:
    """Say "go" to those that are to block their loop, and "enough" to their neighbours."""
    (folder / word).touch()


# --- handlers ---------------------------------------------------------------------------------------


def _begin(job: Job) -> bool:
    """Write down that a handler has begun; return whether this is the job's first attempt."""
    player.ledger.note("begun", job=str(job.id), queue=job.queue_name, attempt=job.attempt)
    return job.attempt == 1


@tasks.task("block")
async def block(job: Job, seconds: float) -> None:
    """Compute for a long time, say."""
    if _begin(job):
        await player.told("go")
        player.ledger.note("blocking", queue=job.queue_name)
        time.sleep(seconds)  # noqa: ASYNC251 - the fault
        player.ledger.note("awake", queue=job.queue_name)


@tasks.task("block natively")
async def block_natively(job: Job, seconds: float) -> None:
    """Be in a library that never lets go of the interpreter: no other thread runs."""
    if _begin(job):
        await player.told("go")
        player.ledger.note("blocking", queue=job.queue_name)
        ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
        player.ledger.note("awake", queue=job.queue_name)


@tasks.task("block while another's end is on its way")
async def block_while_settling(job: Job, seconds: float) -> None:
    """Begin to block when a settle has been sent and its answer has yet to come."""
    if _begin(job):
        await player.settling.wait()
        player.ledger.note("blocking", queue=job.queue_name)
        time.sleep(seconds)  # noqa: ASYNC251 - the fault
        player.ledger.note("awake", queue=job.queue_name)


@tasks.task("neighbour")
async def neighbour(job: Job, seconds: float) -> None:
    """Wait, as one does, until long after the loop turns again."""
    _begin(job)
    await player.told("enough")


@tasks.task("end when told")
async def end_when_told(job: Job, seconds: float) -> float:
    """Return; a hook then sleeps for so long where the job is in the queue of hooks."""
    _begin(job)
    await player.told("go")
    return seconds


# --- processes --------------------------------------------------------------------------------------

HOOKED: Final = "hook"


def work(ledger: Ledger, folder: Path, part: Part) -> None:
    """Be a worker until SIGTERM."""
    global player  # noqa: PLW0603 - handlers are found in the module
    player = Player(ledger, folder)
    logging.basicConfig(level=logging.INFO)
    queue = Queue()
    queue.include(tasks)
    _prepare(queue.storage, part)
    hook = _Hook(ledger, part)
    worker = Worker(
        queue,
        queues=part.queues,
        lease=part.lease,
        hooks=[hook],
        poll_interval=0.3,
        concurrency=20,
        retention=Retention() if part.keep else Retention(completed=0),
    )
    anyio.run(worker.run, backend=part.loop)


def _prepare(storage: Any, part: Part) -> None:
    settle = storage.settle

    async def settle_and_say_so(*args: Any, **options: Any) -> Any:
        player.settling.set()
        return await settle(*args, **options)

    storage.settle = settle_and_say_so
    if not part.watched:
        storage.twin = lambda: None


class _Hook(events.Hooks):
    def __init__(self, ledger: Ledger, part: Part) -> None:
        self._ledger = ledger
        self._part = part

    def worker_idle(self, event: events.WorkerIdle) -> None:
        self._ledger.note("idle")

    def job_acked(self, event: events.JobAcked) -> None:
        self._ledger.note("acked", job=str(event.job_id), queue=event.queue_name, attempt=event.attempt)

    def job_lease_lost(self, event: events.JobLeaseLost) -> None:
        self._ledger.note("lost", job=str(event.job_id), queue=event.queue_name, attempt=event.attempt)

    def job_succeeded(self, event: events.JobSucceeded) -> None:
        """Sleep, as no hook should."""
        if event.queue_name == HOOKED and event.type == "end when told":
            self._ledger.note("blocking", queue=event.queue_name)
            time.sleep(3 * self._part.lease)
            self._ledger.note("awake", queue=event.queue_name)
