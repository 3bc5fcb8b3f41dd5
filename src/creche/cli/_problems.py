"""What ends a command early: the exit codes, and errors as one line. It prints nothing; click does."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, cast

import click

from creche import errors
from creche.cli._display import plain_text
from creche.storage import mask


class ExitCode(IntEnum):
    """How a command ended. `docs/cli.md` explains them to people."""

    OK = 0
    TROUBLE = 1  # the configuration, the database or the application; or `migrate --check`, `doctor` found something
    USAGE = 2  # the command line itself; nothing was written
    JOB = 3  # a job failed, was cancelled, is not there, or could not be changed
    TIMEOUT = 4  # `dispatch --wait --timeout`: the job goes on
    INTERRUPTED = 130  # Ctrl-C, as shells have it: 128 + SIGINT; or a question was answered with no
    UNREAD = 141  # whoever read the output went away, as shells have it: 128 + SIGPIPE


class Problem(click.ClickException):
    """Ends the command with one line on stderr, in which no password is shown and nothing that a terminal obeys."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_text(mask(" ".join(message.split()))))


class Trouble(Problem):
    """The configuration, the database or the application is not as it must be."""

    exit_code = ExitCode.TROUBLE


class Misuse(Problem):
    """The command line asks for what can't be; nothing was written."""

    exit_code = ExitCode.USAGE


class JobProblem(Problem):
    """A job is not there, or did not come to a good end."""

    exit_code = ExitCode.JOB


class Unfinished(Problem):
    """A job is not over yet."""

    exit_code = ExitCode.TIMEOUT


_KINDS: Final[Sequence[tuple[type[errors.CrecheError], type[Problem]]]] = (
    (errors.WaitTimeout, Unfinished),
    (errors.JobError, JobProblem),
    (errors.UsageError, Misuse),
    (errors.CrecheError, Trouble),
)


_LOST: Final[frozenset[int | None]] = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def as_problem(error: BaseException) -> Problem | None:
    """Return an error as the line that ends the command; None if it is a bug, whose traceback somebody must see."""
    leaves = list(_leaves(error))
    if not leaves or not all(isinstance(leaf, errors.CrecheError | Problem) for leaf in leaves):
        return None
    first = leaves[0]
    if isinstance(first, Problem):
        return first
    if isinstance(first, errors.StatementRejected):
        return Trouble(f"{first}: ask `creche doctor` what is wrong")
    return next(problem(str(first)) for kind, problem in _KINDS if isinstance(first, kind))


def as_lost_output(error: BaseException) -> click.exceptions.Exit | Trouble | None:
    """Return how to end when the output can't be written: in silence if nobody reads it; None if it is no such error.

    What is left of the output goes nowhere: Python would try once more when it exits, and complain.
    """
    numbers = {leaf.errno if isinstance(leaf, OSError) else None for leaf in _leaves(error)}
    if not numbers or not numbers <= _LOST:
        return None
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    os.close(nowhere)
    if errno.EPIPE in numbers:
        return click.exceptions.Exit(ExitCode.UNREAD)
    return Trouble(f"what it prints can't be written: {os.strerror(next(number for number in numbers if number))}")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
        yield from _leaves(inner)
