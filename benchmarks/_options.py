"""What every benchmark takes on its command line, and how it says what it found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from creche.bench import Report, compared, read, table, write
from creche.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

CONSOLE: Final = Console(width=230, highlight=False, markup=False)


def common(engines: Sequence[str], *, rounds: int) -> Callable[[F], F]:
    """Add the options that all have."""
    options = [
        click.option("--dsn", "dsns", multiple=True, help="A server on which databases may be made; may be repeated."),
        click.option("--engine", "engines", multiple=True, default=engines, show_default=True, help="Private servers."),
        click.option("--rounds", default=rounds, show_default=True, help="Each visits everything once."),
        click.option(
            "--json",
            "output",
            type=click.Path(path_type=Path, dir_okay=False, writable=True),
            callback=_in_a_folder,
            help="Write the figures to this file.",
        ),
        click.option(
            "--compare",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            callback=_readable,
            help="An older such file.",
        ),
    ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _in_a_folder(_context: click.Context, _option: click.Parameter, output: Path | None) -> Path | None:
    """Refuse a file that can't be written, before anything is measured."""
    if output is not None and not output.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {output.absolute().parent}")
    return output


def _readable(_context: click.Context, _option: click.Parameter, compare: Path | None) -> Path | None:
    """Refuse a file that is none of ours, before anything is measured."""
    if compare is not None:
        try:
            read(compare)
        except UsageError as error:
            raise click.BadParameter(str(error)) from error
    return compare


def chosen(names: Collection[str], words: Collection[str]) -> Collection[str]:
    """Return the names that are meant: by each word the one that it is, else all that have it in them; without
    words all are.
    """
    if not words:
        return names
    return {name for word in words for name in ([word] if word in names else names) if word in name}


def say(words: str) -> None:
    """Say what is being done, on stderr."""
    click.echo(words, err=True)


def publish(reports: Sequence[Report], *, output: Path | None = None, compare: Path | None = None) -> None:
    """Print reports, write them, and put them beside older ones."""
    for report in reports:
        CONSOLE.print(table(report))
    if reports:
        facts = reports[0].facts
        CONSOLE.print(f"{facts.date}  {', '.join(f'{name} {value}' for name, value in facts.versions.items())}")
        CONSOLE.print(f"{', '.join(facts.servers)}; {', '.join(facts.machine.values())}")
        for name, value in facts.settings.items():
            CONSOLE.print(f"  {name}: {value}")
    if output is not None:
        write(output, reports)
    if compare is not None:
        before = {report.title: report for report in read(compare)}
        for report in reports:
            if report.title in before:
                CONSOLE.print(compared(report, before[report.title]))
