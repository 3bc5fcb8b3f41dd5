"""`creche bench sweep`, on private servers: `python -m benchmarks sweep --engine mariadb --plot sweep.png`, say."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click

from benchmarks._grounds import ENGINES, grounds
from benchmarks._options import say
from creche import Queue
from creche.cli import cli


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--engine",
    type=click.Choice([engine for engine in ENGINES if engine != "memory"]),
    default="postgresql",
    show_default=True,
    help="A private server.",
)
@click.option("--dsn", "dsns", multiple=True, help="A server on which databases may be made.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def sweep(engine: str, dsns: Sequence[str], words: Sequence[str]) -> None:
    """The settings of a worker that fit best, as a heat map.

    It takes what `creche bench sweep` takes, too.
    """
    with grounds(dsns, [engine]) as places:
        for place in places:
            with place.database() as dsn:
                anyio.run(Queue(dsn).migrate)
                say(place.name)
                arguments = ["bench", "sweep", "--yes", "--dsn", dsn, *words]
                if code := cli.main(arguments, prog_name="creche", standalone_mode=False):
                    raise SystemExit(code)
