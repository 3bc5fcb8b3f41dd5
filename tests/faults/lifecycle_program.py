"""What the tests of a worker's life run as processes: `creche worker` itself, or a worker within somebody else's task
group, brought to one moment of its life and held there until the test lets go.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, NoReturn

import anyio
from anyio import CancelScope, create_task_group, get_cancelled_exc_class
from attrs import frozen

from creche import Queue, Tasks, Worker, events
from creche.cli import cli
from creche.errors import ListenerDeaf
from creche.testing._ledger import Ledger

MOMENTS: Final = ("idle", "reserving", "coroutine", "thread", "process", "settling", "settled", "renewing")
"""What a worker is doing: nothing; a reserve is on its way back; a handler runs in one of three ways; a settle is on
its way there, or on its way back; a renewal is on its way there. Each has a queue and a task of its own name.
"""

tasks = Tasks()


@frozen(kw_only=True)
class Part:
    """What one process is to be.

    Attributes:
        queues: of moments.
        at: the moment at which it is held; None: it just works; "deaf": that, but no wake reaches it.
        loop: asyncio or trio.
        lease: seconds.
        grace: seconds.
    """

    queues: Sequence[str]
    at: str | None
    loop: str
    lease: float
    grace: float = 60.0


# --- handlers: a job's first one goes on until it is told that it is enough, any other ends at once -------------------


def enough(folder: Path) -> None:
    """Handlers may end now."""
    (folder / "enough").touch()


def _note(folder: str, moment: str, what: str) -> None:
    Ledger(Path(folder), f"handler-{moment}-{os.getpid()}").note(what, moment=moment, pid=os.getpid())


def _begin(folder: str, moment: str) -> Callable[[], bool]:
    """Write down that a handler has begun; return what says whether it may end."""
    _note(folder, moment, "begun")
    try:
        (Path(folder) / f"{moment}.begun").touch(exist_ok=False)
    except FileExistsError:
        return lambda: True
    return (Path(folder) / "enough").exists


async def _wait(folder: str, moment: str) -> None:
    may_end = _begin(folder, moment)
    try:
        while not may_end():  # noqa: ASYNC110 - another process says so
            await anyio.sleep(0.02)
    except get_cancelled_exc_class():
        _note(folder, moment, "cancelled")
        raise


async def _end_at_once(folder: str, moment: str) -> None:
    _begin(folder, moment)


def _block(folder: str, moment: str) -> None:
    may_end = _begin(folder, moment)
    while not may_end():
        time.sleep(0.02)


for _name in ("coroutine", "renewing"):
    tasks.task(_name, queue=_name, max_attempts=5)(_wait)
for _name in ("idle", "reserving", "settling", "settled"):
    tasks.task(_name, queue=_name, max_attempts=5)(_end_at_once)
tasks.task("thread", queue="thread", max_attempts=5)(_block)
tasks.task("process", queue="process", max_attempts=5, cpu=True)(_block)


# --- holding on -------------------------------------------------------------------------------------


def let_go(folder: Path) -> None:
    """Whoever holds a call goes on now, and holds none any more."""
    (folder / "let go").touch()


class _Holder:
    """Keeps calls of a storage from coming there, or from coming back, until it is let go."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger = ledger
        self._folder = folder

    def before(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(call)
        async def held(*args: Any, **options: Any) -> Any:
            await self._hold()
            return await call(*args, **options)

        return held

    def after(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(call)
        async def held(*args: Any, **options: Any) -> Any:
            answer = await call(*args, **options)
            if getattr(answer, "jobs", True):  # of reserves, those that bring something
                await self._hold()
            return answer

        return held

    async def _hold(self) -> None:
        self._ledger.note("there")
        while not (self._folder / "let go").exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.01)


def _hear_nothing(_queues: Collection[str]) -> NoReturn:
    raise ListenerDeaf("nothing is heard here")


def _hold(queue: Queue, part: Part, ledger: Ledger, folder: Path) -> None:
    storage: Any = queue.storage
    holder = _Holder(ledger, folder)
    match part.at:
        case "reserving":
            storage.reserve = holder.after(storage.reserve)
        case "settling":
            storage.settle = holder.before(storage.settle)
        case "settled":
            storage.settle = holder.after(storage.settle)
        case "renewing":
            storage.extend = holder.before(storage.extend)
        case "deaf":
            storage.listen = _hear_nothing
        case _:
            pass


def _make_worker(part: Part, ledger: Ledger, folder: Path) -> Worker:
    def hook(event: events.WorkerEvent) -> None:
        match event:
            case events.WorkerIdle():
                ledger.note("idle")
            case events.JobAcked():
                ledger.note("acked", moment=event.queue_name, attempt=event.attempt)
            case events.JobLeaseLost():
                ledger.note("lost", moment=event.queue_name, attempt=event.attempt)
            case _:
                pass

    queue = Queue()
    queue.include(tasks)
    _hold(queue, part, ledger, folder)
    return Worker(queue, queues=part.queues, lease=part.lease, grace=part.grace, hooks=[hook], concurrency=20)


# --- what a process is ------------------------------------------------------------------------------

made: Worker
"""What the command line finds by its name."""


def command(ledger: Ledger, folder: Path, part: Part) -> None:
    """Be `creche worker`."""
    global made  # noqa: PLW0603 - the command line looks for a module's attribute
    made = _make_worker(part, ledger, folder)
    cli(["worker", f"{__name__}:made", "--backend", part.loop])


def guest(ledger: Ledger, folder: Path, part: Part) -> None:
    """Be a worker in somebody else's task group, which SIGHUP cancels."""
    anyio.run(_host, ledger, _make_worker(part, ledger, folder), backend=part.loop)


async def _host(ledger: Ledger, worker: Worker) -> None:
    async def work() -> None:
        try:
            await worker.run(signals=False)
        except get_cancelled_exc_class():
            ledger.note("over", how="cancelled")
            raise
        ledger.note("over", how="returned")

    with anyio.open_signal_receiver(signal.SIGHUP) as signals, CancelScope() as scope:
        async with create_task_group() as host:
            host.start_soon(work)
            async for _ in signals:
                scope.cancel()
    ledger.note("through", scope=scope.cancelled_caught)
