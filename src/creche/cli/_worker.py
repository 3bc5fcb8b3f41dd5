"""`creche worker`: runs the application's worker until it ends. The work, and the stopping, are Worker's."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

import anyio
import click

from creche import Health, MissingExtra, StopReason, Summary, Worker
from creche._nursery import background
from creche._stacks import describe_tasks
from creche.cli._children import the_same_again
from creche.cli._display import say
from creche.cli._durations import duration
from creche.cli._health import HOST, served
from creche.cli._init import behind_an_init
from creche.cli._logging import logging_options, set_up_logging
from creche.cli._problems import ExitCode, Misuse
from creche.cli._slot import Slot
from creche.cli._supervise import Crew
from creche.cli._targets import load, required_app

_log = logging.getLogger("creche")

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_AFTERGLOW: Final = 1.0  # seconds between the worker's end and the process's, for threads that are on their way out
_HANDLER_THREADS: Final = ("AnyIO worker thread", "asyncio_")  # trio's are daemons
_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.ASCII | re.IGNORECASE)
_MEBIBYTE: Final = 1 << 20


def size(text: str | int) -> int:
    """Return the bytes that a text means, for `click.option(type=size)`: 512M is 512,000,000, 512Mi is 536,870,912."""
    found = _SIZE.fullmatch(str(text).strip())
    if found is None or (found["binary"] and not found["unit"]):
        raise click.BadParameter(f"{text!r} is no size: write 512M or 512MB, 512Mi or 512MiB, 2G or 2Gi.")
    power = " kmgt".index(found["unit"].lower() or " ")
    number = round(float(found["number"]) * (1024.0 if found["binary"] else 1000.0) ** power)
    if number < _MEBIBYTE:
        raise click.BadParameter(f"{text!r} is {number} bytes, in which no worker could live: write 512M, say.")
    return number


@click.command(
    epilog="""Exit codes: 0 it was stopped, has drained the queues (--burst) or has reached a limit (--max-jobs,
    --max-memory); 1 configuration or database, with --burst also: a job failed for good, with --processes also: a
    process had to be killed; 2 usage."""
)
@click.argument("target", required=False)
@click.option(
    "--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop."
)
@click.option("-c", "--concurrency", type=int, metavar="N", help="How many jobs at once.  [default: 10]")
@click.option(
    "-q",
    "--queue",
    multiple=True,
    metavar="NAME[:N]",
    help="Serve this queue, with at most N of its jobs at once; repeatable, first come first.",
)
@click.option(
    "--weight",
    multiple=True,
    metavar="NAME=N",
    help="Draw which queue comes first, N times as often as one of weight 1; repeatable.",
)
@click.option("--lease", type=duration, metavar="TIME", help="How long a job is ours unless renewed.  [default: 30s]")
@click.option("--grace", type=duration, metavar="TIME", help="What running jobs get when stopped.  [default: 30s]")
@click.option("--job-timeout", type=duration, metavar="TIME", help="What an attempt may take, unless its task says.")
@click.option("--poll-interval", type=duration, metavar="TIME", help="How often to look unasked.  [default: 5s or so]")
@click.option("--max-jobs", type=int, metavar="N", help="End after so many; --processes starts a fresh one.")
@click.option("--max-memory", type=size, metavar="SIZE", help="End above so much resident memory: 512M, 2Gi.")
@click.option("--prefetch", type=int, metavar="N", help="Short jobs to reserve ahead, at most.  [default: 2000]")
@click.option("--burst", is_flag=True, help="End when nothing is left to do.")
@click.option("--name", metavar="NAME", help="What it is called where its jobs are shown.")
@click.option("--processes", type=click.IntRange(1, 1_000), metavar="N", help="Run N of it, and replace what crashes.")
@click.option("--health-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Serve /live and /ready there.")
@click.option("--health-host", default=HOST, show_default=True, metavar="HOST", help="The address for it.")
@logging_options()
@click.pass_context
def worker(
    context: click.Context,
    /,
    target: str | None,
    *,
    backend: str,
    processes: int | None,
    health_port: int | None,
    health_host: str,
    log_format: str,
    log_level: str,
    **settings: Any,
) -> None:
    """Run jobs until a signal stops it.

    SIGTERM or SIGINT: running jobs get the grace, then they are given back. A second signal skips the grace. SIGUSR1:
    no more jobs, but stay. SIGUSR2: what every task is doing, to stderr.

    TARGET is module:name of a Queue, a Worker, or a function that returns one; CRECHE_APP stands in for it, or app in
    [tool.creche] of pyproject.toml. The application says which database: Queue() without a DSN takes CRECHE_DSN.

    TIME is 90, 90s, 15m or 2h.
    """

    def work() -> int:
        slot = Slot.taken()
        several = processes is not None
        app = required_app(target)
        require(backend)
        if several and slot is None:
            multiprocessing.current_process().name = "supervisor"
            set_up_logging(log_format, log_level, processes=True)
            return _supervise(the_same_again(context), processes or 1, health_host, health_port)
        found = made(app, _settings(slot, **settings))
        set_up_logging(log_format, log_level, processes=several)
        with served(lambda: found.health, health_host, None if slot else health_port):
            return run(found, backend, slot, burst=settings["burst"])

    context.exit(behind_an_init(work))


# --- from options to a worker -----------------------------------------------------------------------


def _settings(slot: Slot | None, *, queue: Sequence[str], weight: Sequence[str], name: str | None, **rest: Any) -> Any:
    """Return what Worker is to be told; only what was given."""
    settings: dict[str, Any] = {
        **rest,
        "burst": rest["burst"] or None,
        "queues": _queues(queue),
        "weights": _weights(weight),
        "name": f"{name}-{slot.number}" if name and slot else name,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _queues(words: Sequence[str]) -> Sequence[str] | Mapping[str, int | None] | None:
    """Return names, with limits if there is one: the last colon counts, with digits after it."""
    queues: dict[str, int | None] = {}
    for word in words:
        name, colon, digits = word.rpartition(":")
        limited = bool(colon and name) and digits.isascii() and digits.isdigit()
        _once("--queue", queues, name if limited else word)
        queues[name if limited else word] = int(digits) if limited else None
    if any(limit is not None for limit in queues.values()):
        return queues
    return list(queues) or None


def _weights(words: Sequence[str]) -> Mapping[str, int] | None:
    weights: dict[str, int] = {}
    for word in words:
        name, _, digits = word.rpartition("=")
        if not name or not (digits.isascii() and digits.isdigit()):
            raise Misuse(f"--weight {word!r}: write it as NAME=N, such as mail=3")
        _once("--weight", weights, name)
        weights[name] = int(digits)
    return weights or None


def _once(option: str, names: Iterable[str], name: str) -> None:
    if name in names:
        raise Misuse(f"{option} {name!r} is given twice")


def require(backend: str) -> None:
    """Raise MissingExtra unless an event loop is installed."""
    if find_spec(backend) is None:
        raise MissingExtra(backend, backend)


def made(target: str, settings: Mapping[str, Any]) -> Worker:
    """Return the worker that TARGET names, or one for the queue that it names.

    Raises:
        Misuse: it is a worker, which has settings of its own.
    """
    found = load(target)
    if not isinstance(found, Worker):
        return Worker(found, **settings)
    if settings:
        raise Misuse(f"{target!r} is a Worker with settings of its own: set {', '.join(settings)} there")
    return found


# --- running it -------------------------------------------------------------------------------------


def run(found: Worker, backend: str, slot: Slot | None, *, burst: bool = False) -> int:
    """Run a worker, and return the exit code: of a burst, whether something died in it."""
    if not found.queue.storage.capabilities.shared:
        _log.warning("nobody else can dispatch to %r: it lives in this process alone", found.queue.storage)
    return anyio.run(_run, found, slot, burst, backend=backend)


async def _run(found: Worker, slot: Slot | None, burst: bool) -> int:
    if slot is None:
        summary = await found.run(signals=True)
    else:
        summary = await _run_in_slot(found, slot)
    died = summary.dead > 0 and (burst or summary.reason is StopReason.DRAINED)
    code = ExitCode.TROUBLE if died else ExitCode.OK
    _log.info(
        "%s: succeeded %d, failed for good %d; attempts that failed %d, that were given back %d",
        summary.reason,
        summary.succeeded,
        summary.dead,
        summary.failed,
        summary.released,
    )
    if slot is not None:
        slot.over(str(summary.reason))
    threading.Thread(target=_leave_threads_behind, args=(code,), name="creche exit", daemon=True).start()
    return code


async def _run_in_slot(found: Worker, slot: Slot) -> Summary:
    """Run a worker for a supervisor, who alone says when there is no grace any more."""
    with anyio.open_signal_receiver(*_SIGNALS) as received:

        async def obey() -> None:
            stopping = False
            async for number in received:
                match number:
                    case signal.SIGUSR1:
                        found.quiet()
                    case signal.SIGUSR2:
                        say(describe_tasks().rstrip())
                    case _:
                        for _ in range(int(not stopping) + slot.hurried):
                            found.stop()
                        stopping = True

        async with background() as services:
            services.start_soon(obey, name="signals")
            return await found.run(signals=False, task_status=_Started(slot, found))


class _Started:
    """Tells the supervisor when the worker has begun to work."""

    def __init__(self, slot: Slot, found: Worker) -> None:
        self._slot = slot
        self._found = found

    def started(self, value: None = None) -> None:  # noqa: ARG002 - as anyio calls it
        """It reserves from now on."""
        self._slot.up(lambda: self._found.health, self._found.grace)


def _leave_threads_behind(code: int) -> None:
    """End the process although a handler's thread still runs: its job is given back, and no thread can be ended.

    Python would wait for it, for as long as it takes: asyncio when its loop closes, the interpreter when it exits.
    """
    time.sleep(_AFTERGLOW)
    names = [thread.name for thread in threading.enumerate() if not thread.daemon]
    running = sum(name.startswith(_HANDLER_THREADS) for name in names)
    if running:
        _log.warning("threads of handlers that did not end in time, and end with this process: %d", running)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _supervise(command: Sequence[str], processes: int, host: str, port: int | None) -> int:
    crew: Crew | None = None

    def health() -> Health:
        return crew.health if crew else Health(live=True, ready=False, reason="it is starting")

    async def supervise() -> int:
        nonlocal crew
        crew = Crew(command, processes)
        return await crew.run()

    with served(health, host, port):
        return anyio.run(supervise)
