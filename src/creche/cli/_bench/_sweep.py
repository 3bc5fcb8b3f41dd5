"""`creche bench sweep`: which settings of a worker a database likes best, drawn, and advised.

It tries them and shows them; which is the best, and how the maps look, `creche.bench` knows.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from creche.cli._bench._news import cost, measured_on, news, own_up
from creche.cli._bench._options import CONCURRENCY, FEW, PREFETCH, PROCESSES, bounded, manner, repeated
from creche.cli._bench._visit import TURNS, as_guest, ask, order_of, require_turns
from creche.cli._chosen import counted
from creche.cli._display import FAINT, console_of_data, print_json, say, text_of
from creche.cli._problems import Misuse
from creche.cli._tables import new_table

if TYPE_CHECKING:
    from creche.bench._guest import Guest
    from creche.bench._measure import Work
    from creche.bench._orders import Order
    from creche.bench._settings import Cell, Choice

_TRIED: Final = (1, 5, 10, 50, 100)  # concurrencies
_AHEAD: Final = (0, 10, 2_000)  # prefetches


@click.command()
@click.option(
    "-c",
    "--concurrency",
    type=CONCURRENCY,
    multiple=True,
    default=_TRIED,
    show_default=True,
    metavar="N",
    help="To be tried; repeatable.",
)
@click.option(
    "--prefetch",
    type=PREFETCH,
    multiple=True,
    default=_AHEAD,
    show_default=True,
    metavar="N",
    help="Jobs reserved ahead, at most; to be tried; repeatable. 0 is none.",
)
@click.option(
    "--processes",
    type=PROCESSES,
    multiple=True,
    default=(1, 2),
    show_default=True,
    metavar="N",
    help="Workers at the same time; to be tried; repeatable.",
)
@click.option(
    "--handler-ms",
    type=click.FloatRange(min=0, max=60_000),
    multiple=True,
    default=(0,),
    show_default=True,
    metavar="MS",
    help="How long a handler waits for something; repeatable.",
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png", help="Draw it there too.")
@bounded(jobs=20_000, seconds=1.0, least=FEW)
@repeated
@manner
def sweep(  # noqa: PLR0917 - click gives them by name
    concurrency: Sequence[int],
    prefetch: Sequence[int],
    processes: Sequence[int],
    handler_ms: Sequence[float],
    plot: Path | None,
    jobs: int,
    seconds: float,
    rounds: int,
    backend: str,
    yes: bool,
    dsn: str,
    json: bool,
) -> None:
    """Find the settings of a worker that this database likes best.

    Each concurrency is tried with each prefetch and each number of processes, in turns, and drawn as a heat map. What
    is advised is the smallest setting that is within a few percent of the best. Say how long your handlers wait
    (--handler-ms): the longer, the more of them should run at once.
    """
    from creche.bench._heat import panels, require_matplotlib
    from creche.bench._heat import plot as draw
    from creche.bench._settings import Cell, choose, grid

    if plot is not None:
        require_matplotlib()
        _check_writable(plot)
    require_turns(jobs, max(concurrency) * max(processes))
    cells = [
        Cell(setting=setting, milliseconds=each)
        for each in dict.fromkeys(handler_ms)
        for setting in grid(concurrency, prefetch, processes)
    ]
    order = order_of(dsn, backend, jobs=jobs, seconds=max(seconds, TURNS * max(handler_ms) / 1e3))
    ask(dsn, len(cells), rounds, order, yes=yes)
    works = as_guest(dsn, order, lambda guest: _swept(guest, cells, rounds, order))
    choices = [choose([cell for cell in cells if cell.milliseconds == each]) for each in dict.fromkeys(handler_ms)]
    if json:
        print_json(_sweep_json(cells, choices, backend))
    else:
        _print_sweep(cells, choices, rounds, backend)
    own_up(works, order)
    if plot is not None:
        words = f"jobs/s, median of {counted(rounds, 'round')}; framed: the advice; *: the best"
        draw(plot, list(panels(cells, choices)), title=words)
        say(f"drawn in {plot}")


def _check_writable(file: Path) -> None:
    """Open it, and change nothing: what a file's bits say is not all that may be in the way."""
    if file.suffix.lower() != ".png":
        raise Misuse(f"--plot {file}: it draws a PNG: name it FILE.png")
    there = file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise Misuse(f"--plot {file}: nothing can be written there: {error.strerror}") from error
    if not there:
        file.unlink()


async def _swept(guest: Guest, cells: Sequence[Cell], number: int, order: Order) -> Sequence[Work]:
    from creche.bench._settings import rounds

    works: list[Work] = []
    with news(len(cells) * number) as tell:
        for turn, cell in rounds(cells, number):
            setting, seconds = cell.setting, cell.milliseconds / 1e3
            tell(f"round {turn + 1} of {number}: {_words(cell)}")
            slots = setting.processes * setting.concurrency
            enough = order.jobs if not seconds else min(order.jobs, 1 + int(2 * slots * (order.limit or 0) / seconds))
            work = await guest.drain(
                concurrency=setting.concurrency,
                prefetch=setting.prefetch,
                processes=setting.processes,
                seconds=seconds,
                jobs=enough,
            )
            cell.rates.append(work.rate)
            cell.costs.append(cost(work))
            works.append(work)
    return works


def _words(cell: Cell) -> str:
    setting = cell.setting
    words = f"concurrency {setting.concurrency}, prefetch {setting.prefetch}"
    return words + (f", {setting.processes} processes" if setting.processes > 1 else "")


def _sweep_json(cells: Sequence[Cell], choices: Sequence[Choice], backend: str) -> Mapping[str, Any]:
    return {
        "measured": measured_on(),
        "cells": [_cell_json(cell) for cell in cells],
        "advice": [
            {
                "handler_ms": each.chosen.milliseconds,
                "best": _cell_json(each.best),
                "chosen": _cell_json(each.chosen),
                "tolerance": each.tolerance,
                "code": _code(each.chosen),
                "command": _command(each.chosen, backend),
            }
            for each in choices
        ],
    }


def _cell_json(cell: Cell) -> Mapping[str, Any]:
    return {
        "concurrency": cell.setting.concurrency,
        "prefetch": cell.setting.prefetch,
        "processes": cell.setting.processes,
        "handler_ms": cell.milliseconds,
        "jobs_per_second": cell.rate,
        "cpu_per_job": statistics.median(cell.costs),
        "rounds": cell.rates,
    }


def _code(cell: Cell) -> str:
    setting = cell.setting
    words = f"Worker(queue, concurrency={setting.concurrency}, prefetch={setting.prefetch})"
    return words + (f"  # in each of {setting.processes} processes" if setting.processes > 1 else "")


def _command(cell: Cell, backend: str) -> str:
    setting = cell.setting
    words = f"creche worker app:queue --concurrency {setting.concurrency} --prefetch {setting.prefetch}"
    words += f" --processes {setting.processes}" if setting.processes > 1 else ""
    return words + (f" --backend {backend}" if backend != "asyncio" else "")


def _print_sweep(cells: Sequence[Cell], choices: Sequence[Choice], number: int, backend: str) -> None:
    from creche.bench._heat import drawn, panels

    console = console_of_data()
    width = min(80, console.width)
    for panel in panels(cells, choices):
        console.print(text_of(panel.title, "bold"))
        for table in drawn(panel, new_table, width=width):
            console.print(table)
        console.print()
    words = f"jobs/s, median of {counted(number, 'round')}; the bars are shares of the best"
    console.print(text_of(words, FAINT))
    tried = {cell.setting.concurrency for cell in cells}
    for each in choices:
        console.print()
        for line in _advice(each, tried, backend, several=len(choices) > 1):
            console.print(text_of(line), soft_wrap=True)


def _advice(choice: Choice, tried: Collection[int], backend: str, *, several: bool) -> Sequence[str]:
    from creche.bench._figures import number

    best, chosen = choice.best, choice.chosen
    lines = [f"With handlers of {best.milliseconds:g} ms:"] if several else []
    lines.append(f"*  the best: {number(best.rate)} jobs/s at {_words(best)}")
    if chosen is best:
        lines.append(f"[] the same; nothing smaller is within {choice.tolerance:.0%} of it")
    else:
        lines.append(f"[] the smallest within {choice.tolerance:.0%} of it: {number(chosen.rate)} jobs/s")
    if len(tried) > 1 and chosen.setting.concurrency == max(tried):
        lines.append("   No higher concurrency was tried: there may be more in it.")
    return [*lines, "", f"   {_code(chosen)}", f"   {_command(chosen, backend)}"]
