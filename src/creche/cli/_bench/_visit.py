"""Being a guest in somebody's database: what is asked before, and that a signal ends it with everything deleted.

It has no command, and does not know what is measured.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Awaitable, Callable
from textwrap import indent
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import click
from anyio import CancelScope

from creche._nursery import background
from creche.cli._chosen import confirmed, counted
from creche.cli._display import can_draw, plain_text, say, span
from creche.cli._problems import ExitCode, Misuse, Problem, Trouble
from creche.cli._storages import opened
from creche.cli._worker import require
from creche.storage import mask

if TYPE_CHECKING:
    from creche.bench import ChildFailed
    from creche.bench._guest import Guest
    from creche.bench._orders import Order

T = TypeVar("T")

CALLERS: Final = 16  # who dispatch at once, where several do
TURNS: Final = 3  # jobs that each slot of a worker runs, at least: a first job tells only how workers begin
_AROUND: Final = 3.0  # seconds that a run takes besides: processes begin and end, jobs are dispatched and deleted
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_WORD: Final = 0.1  # seconds: whoever stops the process, and then its whole group, means it once


def order_of(dsn: str, backend: str, *, jobs: int, seconds: float) -> Order:
    """Return the bounds of every run; raise MissingExtra unless the event loop is installed."""
    from creche.bench._orders import Order

    require(backend)
    return Order(role="drain", dsn=dsn, jobs=jobs, limit=seconds, backend=backend)


def require_turns(jobs: int, slots: int) -> None:
    """Raise Misuse unless so many slots have something to do for a while; --jobs is a promise, and stays as it is."""
    if jobs < TURNS * slots:
        raise Misuse(
            f"--jobs {jobs}: {slots} slots would run a job or two each, and nothing be told by it: say --jobs "
            f"{TURNS * slots}, or try fewer slots"
        )


def ask(dsn: str, runs: int, rounds: int, order: Order, *, yes: bool) -> None:
    """Say what will be done, where it can be done, and let people think twice."""
    anyio.run(_look, dsn)
    times = f", {rounds} times" if rounds > 1 else ""
    limit = order.limit or 0.0
    most = runs * rounds * (order.jobs + CALLERS)
    say(
        f"In {mask(dsn)}: {counted(runs, 'run')}{times}, of at most {counted(order.jobs, 'job')} and {limit:g} s.\n"
        f"At most {counted(most, 'job')} go through a queue of their own, and are deleted. It takes about "
        f"{span(runs * rounds * (limit + _AROUND))}.\n"
        "No other queue is touched, but whoever uses the database meanwhile feels it."
    )
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misuse("there is no terminal to ask at: say --yes to measure")
    if not confirmed("measure?"):
        say("nothing was written")
        raise click.exceptions.Exit(ExitCode.INTERRUPTED)


async def _look(dsn: str) -> None:
    async with opened(dsn):
        pass


def as_guest(dsn: str, order: Order, measure: Callable[[Guest], Awaitable[T]]) -> T:
    """Measure; a signal ends that, and everything is deleted; a second one ends that, too."""
    from creche.bench import ChildFailed

    try:
        return anyio.run(_visit, dsn, order, measure)
    except ChildFailed as error:
        raise _last_words(error) from error


def _last_words(error: ChildFailed) -> Trouble:
    """Show all that is known of what a process said, and return the line that ends the command: the last of it."""
    from creche.bench._children import TAIL

    tail = error.tail if len(error.tail) < TAIL else error.tail.partition("\n")[2]  # what is cut can't be masked
    said = plain_text(mask(tail)).rstrip()
    what = str(error).removesuffix(error.tail).rstrip(":\n")
    if not said:
        return Trouble(f"{what}, nor a word")
    say(indent(said, "  "))
    lines = (line.strip("-+| \t") for line in reversed(said.splitlines()))  # which draw groups of exceptions
    return Trouble(f"{what}: {next((line for line in lines if line), said)}")


async def _visit(dsn: str, order: Order, measure: Callable[[Guest], Awaitable[T]]) -> T:
    from creche.bench._guest import LeftBehind, visiting

    measuring = CancelScope()
    ended_by = 0
    hurried = False

    async def obey(guest: Guest) -> None:
        nonlocal ended_by, hurried
        told = -math.inf
        async for number in received:
            if measuring.cancel_called and anyio.current_time() - told > _ONE_WORD:
                hurried = True
                guest.hurry()
            elif not measuring.cancel_called:
                line = "\n" if can_draw(sys.stderr) else ""  # there is one that is drawn over
                say(f"{line}deleting what was made; once more, and it is left behind")
                ended_by, told = number, anyio.current_time()
                measuring.cancel()

    signals = [each for each in _SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    with anyio.open_signal_receiver(*signals) as received:
        try:
            async with opened(dsn) as storage, background() as services, visiting(storage, order) as guest:
                services.start_soon(obey, guest, name="signals")
                say(f"in the queue {guest.queue}")
                with measuring:
                    return await measure(guest)
        except LeftBehind as error:
            if not hurried:
                raise
            Problem(str(error)).show()  # it was asked for, so the code is the signal's
    raise click.exceptions.Exit(128 + ended_by)
