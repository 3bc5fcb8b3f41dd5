"""The command line: a plan from options, a run, a report, an exit code."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from creche.testing.servers import ServerNotFound
from creche.testing.torture._auditor import VERDICT, read_verdict
from creche.testing.torture._conductor import Conductor
from creche.testing.torture._faults import KINDS
from creche.testing.torture._plan import ENGINES, Plan
from creche.testing.torture._report import report

DEFAULTS: Final = Plan()


def _leave(number: int, _: object) -> None:
    """End in order: nothing is left behind."""
    sys.exit(128 + number)


@click.command(epilog="Exit codes: 0 all is zero that must be, 1 something is not, 2 usage, 3 there is no such server.")
@click.option("--engine", type=click.Choice(ENGINES), default="sqlite", show_default=True, help="The database.")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="How long it lasts.")
@click.option("--seed", type=int, help="Of what is drawn.  [default: another one each time]")
@click.option("--rate", type=float, default=DEFAULTS.rate, show_default=True, help="Dispatches per second.")
@click.option(
    "--hasty", type=int, default=DEFAULTS.hasty, show_default=True, help="Of 100, callers who give up at once."
)
@click.option("--hoard", type=int, default=DEFAULTS.hoard, help="Jobs that workers always reserve ahead.")
@click.option("--every", type=float, default=DEFAULTS.every, show_default=True, help="Seconds between faults.")
@click.option("--only", multiple=True, metavar="WORD", help="Only faults with this in their name; several, in order.")
@click.option("--lease", type=float, default=DEFAULTS.lease, show_default=True, help="Seconds.")
@click.option("--dispatchers", type=int, default=DEFAULTS.dispatchers, show_default=True, help="Processes.")
@click.option("--workers", type=int, default=DEFAULTS.workers, show_default=True, help="Processes that are killed.")
@click.option("--elders", type=int, default=DEFAULTS.elders, show_default=True, help="Workers that grow old.")
@click.option("--loop", type=click.Choice(["asyncio", "trio", "both"]), default="both", show_default=True)
@click.option("--pgbouncer", is_flag=True, help="Put a PgBouncer in transaction mode before PostgreSQL.")
@click.option("--not-durable", is_flag=True, help="Commits do not wait for the disk: what is lost is counted only.")
@click.option("--ledgers", type=click.Path(path_type=Path), help="An empty folder for what everybody writes down.")
@click.option("--json", "verdict_file", type=click.Path(path_type=Path), help="A file for the verdict.")
def main(
    *,
    minutes: float,
    seed: int | None,
    not_durable: bool,
    ledgers: Path | None,
    verdict_file: Path | None,
    **settings: Any,
) -> None:
    """Torture creche on a private server, and count what must not have happened."""
    if settings["pgbouncer"] and settings["engine"] != "postgresql":
        raise click.UsageError("--pgbouncer stands before --engine postgresql, and no other")
    for word in settings["only"]:
        if not any(word in name for name in KINDS):
            raise click.BadParameter(f"no fault has {word!r} in its name: {', '.join(KINDS)}", param_hint="--only")
    seed = random.randrange(1 << 32) if seed is None else seed
    signal.signal(signal.SIGTERM, _leave)
    plan = Plan(seconds=60 * minutes, seed=seed, durable=not not_durable, **settings)
    with ExitStack() as stack:
        folder = ledgers or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="creche-torture-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            Conductor(plan, folder, lambda word: click.echo(word, err=True)).run()
        except ServerNotFound as error:
            click.echo(error, err=True)
            sys.exit(3)
        verdict = read_verdict(folder)
        if verdict_file:
            shutil.copy(folder / VERDICT, verdict_file)
    Console(highlight=False, markup=False, emoji=False).print(report(verdict))
    sys.exit(0 if verdict.clean else 1)
