"""The command line: where the commands meet and errors become exit codes. It keeps no job and opens no database.

Data goes to stdout, words go to stderr. The exit codes are `creche.cli._problems.ExitCode`.
"""

from __future__ import annotations

from typing import Any

import click

from creche.cli._completion import completion
from creche.cli._dead import dead
from creche.cli._dev import dev
from creche.cli._dispatch import dispatch
from creche.cli._doctor import doctor
from creche.cli._health import health
from creche.cli._jobs import jobs
from creche.cli._migrate import migrate
from creche.cli._problems import ExitCode, as_problem
from creche.cli._prune import prune
from creche.cli._queues import queues
from creche.cli._top import top
from creche.cli._worker import worker
from creche.cli._workers import workers
from creche.errors import CrecheError

__all__ = ["cli", "main"]


class _Root(click.Group):
    """Ends every command with a code and, if need be, one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
        except (CrecheError, BaseExceptionGroup) as error:
            problem = as_problem(error)
            if problem is None:
                raise
            raise problem from error


@click.group(
    cls=_Root,
    context_settings={"auto_envvar_prefix": "CRECHE", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each option can be set by the environment too: CRECHE_WORKER_CONCURRENCY for creche worker --concurrency.",
)
@click.version_option(package_name="creche", message="creche %(version)s", allow_from_autoenv=False)
def cli() -> None:
    """A persistent job queue on the database that you already have."""


for command in (worker, dispatch, jobs, dead, queues, workers, top, prune, doctor, migrate, dev, health, completion):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    cli()
