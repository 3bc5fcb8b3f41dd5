"""`creche worker`: runs the application's worker until a signal stops it. The work, and the stopping, are Worker's."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import anyio
import click

from creche import MissingExtra, Worker
from creche.cli._problems import ExitCode, Misuse
from creche.cli._targets import APP, load

_log = logging.getLogger("creche")

_AFTERGLOW: Final = 1.0  # seconds between the worker's end and the process's, for threads that are on their way out
_HANDLER_THREADS: Final = ("AnyIO worker thread", "asyncio_")  # trio's are daemons


@click.command(epilog="Exit codes: 0 it was stopped, 1 configuration or database, 2 usage.")
@click.argument("target", envvar=APP)
@click.option(
    "--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True, help="The event loop."
)
@click.option("-c", "--concurrency", type=int, metavar="N", help="How many jobs at once.  [default: 10]")
@click.option("-q", "--queue", multiple=True, metavar="NAME", help="Serve this queue; repeatable, first come first.")
@click.option("--lease", type=float, metavar="SECONDS", help="How long a job is ours unless renewed.  [default: 30]")
@click.option("--grace", type=float, metavar="SECONDS", help="What running jobs get when stopped.  [default: 30]")
@click.option("--poll-interval", type=float, metavar="SECONDS", help="How often to look unasked.  [default: 5]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    metavar="LEVEL",
    help="debug, info, warning or error: what goes to stderr, unless the application has set up logging.",
)
def worker(
    target: str,
    *,
    backend: str,
    concurrency: int | None,
    queue: Sequence[str],
    lease: float | None,
    grace: float | None,
    poll_interval: float | None,
    log_level: str,
) -> None:
    """Run jobs until a signal stops it.

    SIGTERM or SIGINT: running jobs get the grace, then they are given back. A second signal skips the grace.

    TARGET is module:name of a Queue, a Worker, or a function that returns one; CRECHE_APP stands in for it. The
    application says which database: Queue() without a DSN takes CRECHE_DSN.
    """
    if find_spec(backend) is None:
        raise MissingExtra(backend, backend)
    found = load(target)
    settings: dict[str, Any] = {
        "concurrency": concurrency,
        "queues": list(queue) or None,
        "lease": lease,
        "grace": grace,
        "poll_interval": poll_interval,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if not isinstance(found, Worker):
        found = Worker(found, **given)
    elif given:
        names = ", ".join(given)
        raise Misuse(f"{target!r} is a Worker with settings of its own: set {names} there")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    if not found.queue.storage.capabilities.shared:
        _log.warning("nobody else can dispatch to %r: it lives in this process alone", found.queue.storage)
    anyio.run(_run, found, backend=backend)


async def _run(found: Worker) -> None:
    await found.run(signals=True)
    threading.Thread(target=_leave_threads_behind, name="creche exit", daemon=True).start()


def _leave_threads_behind() -> None:
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
        os._exit(ExitCode.OK)
