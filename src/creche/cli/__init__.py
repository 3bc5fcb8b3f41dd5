"""The command line: where the commands meet and errors become exit codes. It keeps no job and opens no database.

Data goes to stdout, words go to stderr. The exit codes are `creche.cli._problems.ExitCode`.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click

from creche.cli._bench import bench
from creche.cli._completion import completion
from creche.cli._dead import dead
from creche.cli._dev import dev
from creche.cli._dispatch import dispatch
from creche.cli._display import plain_text
from creche.cli._doctor import doctor
from creche.cli._health import health
from creche.cli._jobs import jobs
from creche.cli._migrate import migrate
from creche.cli._problems import ExitCode, as_lost_output, as_problem
from creche.cli._prune import prune
from creche.cli._queues import queues
from creche.cli._top import top
from creche.cli._worker import worker
from creche.cli._workers import workers
from creche.errors import CrecheError
from creche.storage import mask

__all__ = ["cli", "main"]

_STREAMS: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}  # in the order of their numbers


class _Root(click.Group):
    """Ends every command with a code and, if need be, one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _shown_safely(error) from None
        except (KeyboardInterrupt, click.Abort):
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
        except (CrecheError, OSError, BaseExceptionGroup) as error:
            problem = as_lost_output(error) or as_problem(error)
            if problem is None:
                raise
            raise problem from error

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Do as click does; --help and --version print meanwhile, and nobody else would notice that it fails."""
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise _shown_safely(error) from None
        except OSError as error:
            problem = as_lost_output(error)
            if problem is None:
                raise
            raise problem from error


def _shown_safely(error: click.UsageError) -> click.UsageError:
    """Take out of click's own words what it quotes: a DSN in the wrong place has a password all the same."""
    said = error.format_message()
    shown = plain_text(mask(said))
    return error if shown == said else click.UsageError(shown, error.ctx)


@click.group(
    cls=_Root,
    context_settings={"auto_envvar_prefix": "CRECHE", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each option can be set by the environment too: CRECHE_WORKER_CONCURRENCY for creche worker --concurrency.",
)
@click.version_option(package_name="creche", message="creche %(version)s", allow_from_autoenv=False)
def cli() -> None:
    """A persistent job queue on the database that you already have."""


for command in (
    worker,
    dispatch,
    jobs,
    dead,
    queues,
    workers,
    top,
    prune,
    doctor,
    migrate,
    dev,
    health,
    bench,
    completion,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    _with_all_streams()
    cli()


def _with_all_streams() -> None:
    """Open what the caller closed of stdin, stdout and stderr, on nothing: Python has None in their place, and a file
    or a connection that got the number of one would be written into.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(number, True)  # noqa: FBT003 - it has no name there
    os.close(number)
    for number, (name, mode) in enumerate(_STREAMS.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
