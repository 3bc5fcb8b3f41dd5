"""What a command does as the first process of a container: an init, and the command itself in a child of it.

To process 1 the kernel gives no default actions, so that a signal nobody handles is lost; and it makes it the parent
of whatever is orphaned, so that those would stay zombies for ever. It decides nothing: what it hears it hands on, and
how the child ends, it ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

import click

FIRST: Final = 1
_UNHEARD: Final = frozenset({signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})  # nobody's orders


def behind_an_init(run: Callable[[], int]) -> int:
    """Run something and return its exit code; in a process of its own, if this is the first of a container.

    Call it before there is a second thread. The fork costs next to no memory: nothing is imported in the init.
    """
    if os.getpid() != FIRST:
        return run()
    everything = signal.valid_signals()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)  # blocked signals wait for process 1 too
    child = os.fork()
    if child:
        return _serve(child, everything)
    os.setpgid(0, 0)  # so that a terminal's Ctrl-C comes once, from the init, and not twice
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return run()


def _serve(child: int, signals: set[signal.Signals]) -> int:
    while True:
        heard = signal.sigwait(signals)
        if heard == signal.SIGCHLD:
            code = _reap(child)
            if code is not None:
                return code
        elif heard not in _UNHEARD:
            os.kill(child, heard)


def _reap(child: int) -> int | None:
    """Let everything go that has ended; return the child's exit code, as shells have it, if it is among them."""
    code: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not pid:
            return code
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def exit_with(context: click.Context, run: Callable[[], int]) -> None:
    """End a command with the code of what it runs."""
    context.exit(behind_an_init(run))
