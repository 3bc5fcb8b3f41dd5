"""What the commands of `creche bench` take on their command lines. It reads no value and measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from creche.cli._chosen import stacked
from creche.cli._storages import dsn_option

F = TypeVar("F", bound=Callable[..., Any])

CONCURRENCY: Final = click.IntRange(1, 10_000)
PREFETCH: Final = click.IntRange(0, 10_000)
PROCESSES: Final = click.IntRange(1, 64)
MOST: Final = 1_000_000  # jobs of a run
FEW: Final = 100  # jobs, of fewer of which no rate can be told


def bounded(*, jobs: int, seconds: float, least: int = 1) -> Callable[[F], F]:
    """Add the bounds of each run, with these defaults, and at least so many jobs: of a few no rate can be told."""
    options = (
        click.option(
            "--jobs",
            type=click.IntRange(least, MOST),
            default=jobs,
            show_default=True,
            metavar="N",
            help="At most so many in each run.",
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(min=0.1, max=600),
            default=seconds,
            show_default=True,
            metavar="S",
            help="At most so long each run.",
        ),
    )
    return lambda function: stacked(options, function)


def repeated(function: F) -> F:
    """Add how often everything is tried."""
    return click.option(
        "--rounds",
        type=click.IntRange(1, 100),
        default=3,
        show_default=True,
        metavar="N",
        help="How often everything is tried, in turns; medians are shown.",
    )(function)


def manner(function: F) -> F:
    """Add what all commands take: where, how, and whether to ask."""
    options = (
        click.option(
            "--backend",
            type=click.Choice(["asyncio", "trio"]),
            default="asyncio",
            show_default=True,
            help="The workers' event loop.",
        ),
        click.option("-y", "--yes", is_flag=True, help="Don't ask; needed where no terminal is."),
        dsn_option,
        click.option("--json", is_flag=True, help="Print JSON."),
    )
    return stacked(options, function)
