"""Draws rates as heat maps, in a terminal and as a PNG. It decides nothing, and prints nothing.

In a terminal there are numbers, bars and shades, so that no colour is needed.

One panel for each number of processes and each length of a handler; concurrency goes down, prefetch goes right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from rich.table import Table
from rich.text import Text

from creche.bench._settings import Cell, Choice
from creche.errors import ConfigurationError, MissingExtra

SHADES: Final = "░▒▓█"  # up to a quarter of the best rate, a half, three quarters, all of it
# Tones from the middle of the scale, which can be read on white and on black.
_TONES: Final = ("color(61)", "color(31)", "color(35)", "color(178)")
_ABREAST: Final = 6  # cells that have room in eighty columns
_WIDEST: Final = 6  # characters of a bar
_LONG: Final = 9  # characters for a number and a bar, below which it is 12.3k instead of 12,345
_LABELS: Final = 12  # characters of what stands before a row
_AROUND: Final = 4  # characters beside number and bar: brackets, a star, a blank
_INCHES: Final = (1.15, 0.42)  # of a cell of the PNG


class PlotFailed(ConfigurationError):
    """What draws the PNG is installed, and does not do it.

    Attributes:
        error: what it raised.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(f"matplotlib can't draw: {type(error).__name__}: {error}")


@frozen(kw_only=True)
class Panel:
    """What one heat map shows.

    Attributes:
        cells: by concurrency and prefetch.
        choice: the best of all panels of this length of a handler, and what to take.
    """

    processes: int
    milliseconds: float
    cells: dict[tuple[int, int], Cell]
    choice: Choice

    @property
    def title(self) -> str:
        """What is the same in all its cells."""
        words = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return words + (f", handlers of {self.milliseconds:g} ms" if self.milliseconds else "")

    @property
    def rows(self) -> list[int]:
        """Each concurrency."""
        return sorted({concurrency for concurrency, _ in self.cells})

    @property
    def columns(self) -> list[int]:
        """Each prefetch."""
        return sorted({prefetch for _, prefetch in self.cells})

    def share(self, cell: Cell) -> float:
        """Return a cell's rate as a share of the best."""
        return cell.rate / self.choice.best.rate


def panels(cells: Sequence[Cell], choices: Sequence[Choice]) -> Iterator[Panel]:
    """Yield the panels of cells, and of what was chosen for each length of a handler."""
    for choice in choices:
        alike = [cell for cell in cells if cell.milliseconds == choice.best.milliseconds]
        for processes in sorted({cell.setting.processes for cell in alike}):
            yield Panel(
                processes=processes,
                milliseconds=choice.best.milliseconds,
                cells={
                    (cell.setting.concurrency, cell.setting.prefetch): cell
                    for cell in alike
                    if cell.setting.processes == processes
                },
                choice=choice,
            )


# --- in a terminal ------------------------------------------------------------------------------------------


def drawn(panel: Panel, empty: Callable[[], Table], *, width: int = 80) -> Iterator[Table]:
    """Yield a panel as tables of so many columns: one, or several where too many prefetches were tried.

    Args:
        panel: which.
        empty: returns an empty table.
        width: columns.
    """
    tables = -(-len(panel.columns) // _ABREAST)
    size = -(-len(panel.columns) // tables)
    for start in range(0, len(panel.columns), size):
        yield _filled(empty(), panel, panel.columns[start : start + size], width)


def _filled(table: Table, panel: Panel, prefetches: Sequence[int], width: int) -> Table:
    room = (width - _LABELS) // len(prefetches) - _AROUND
    cells = [[panel.cells[concurrency, prefetch] for prefetch in prefetches] for concurrency in panel.rows]
    rates = [[_rate(cell.rate, short=room < _LONG) for cell in row] for row in cells]
    numbers = max(len(rate) for row in rates for rate in row)
    bars = max(1, min(_WIDEST, room - numbers))
    table.add_column("\nCONCURRENCY", justify="right", no_wrap=True)
    for place, prefetch in enumerate(prefetches):
        table.add_column(f"{'' if place else ' PREFETCH'}\n {prefetch:>{numbers}}", no_wrap=True)
    for concurrency, row, words in zip(panel.rows, cells, rates, strict=True):
        drawn = (_cell(panel, cell, f"{rate:>{numbers}}", bars) for cell, rate in zip(row, words, strict=True))
        table.add_row(str(concurrency), *drawn)
    return table


def _rate(rate: float, *, short: bool) -> str:
    if rate < 100:
        return f"{rate:.1f}"
    if not short or rate < 10_000:
        return f"{rate:,.0f}"
    return f"{rate / 1e3:.1f}k" if rate < 100_000 else f"{rate / 1e3:.0f}k"


def _cell(panel: Panel, cell: Cell, words: str, width: int) -> Text:
    share = panel.share(cell)
    level = min(len(SHADES) - 1, int(share * len(SHADES)))
    chosen, best = cell is panel.choice.chosen, cell is panel.choice.best
    text = Text("[" if chosen else " ", style="bold" if chosen else "")
    text.append(f"{words}{'*' if best else ' '}")
    text.append(f"{SHADES[level] * math.ceil(share * width):{width}}", _TONES[level])
    return text.append("]" if chosen else " ")


# --- as a PNG -----------------------------------------------------------------------------------------------


def require_matplotlib() -> None:
    """Import what draws the PNG.

    Raises:
        MissingExtra: it is not installed.
        PlotFailed: it is, and can't be imported.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtra("bench", "matplotlib")
    try:
        import_module("matplotlib.figure")
    except Exception as error:
        raise PlotFailed(error) from error


def plot(path: Path, shown: Sequence[Panel], *, title: str) -> None:
    """Write panels to a PNG: a column for each number of processes, a row for each length of a handler.

    Raises:
        MissingExtra: matplotlib is not installed.
        PlotFailed: it can't be imported, or drawn with, or the file can't be written.
    """
    require_matplotlib()
    try:
        _plot(path, shown, title)
    except Exception as error:
        raise PlotFailed(error) from error


def _plot(path: Path, shown: Sequence[Panel], title: str) -> None:
    from matplotlib.figure import Figure

    across = sorted({panel.processes for panel in shown})
    down = sorted({panel.milliseconds for panel in shown})
    rows, columns = len(shown[0].rows), len(shown[0].columns)
    size = (max(6.0, len(across) * (columns * _INCHES[0] + 1.0)), len(down) * (rows * _INCHES[1] + 1.1) + 1.2)
    figure: Any = Figure(figsize=size, layout="constrained", dpi=150)
    axes: Any = figure.subplots(len(down), len(across), squeeze=False)
    for panel in shown:
        _plot_panel(axes[down.index(panel.milliseconds)][across.index(panel.processes)], panel)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("prefetch", fontsize=9)
    figure.supylabel("concurrency", fontsize=9)
    figure.savefig(path, format="png")


def _plot_panel(axes: Any, panel: Panel) -> None:
    shares = [[panel.share(panel.cells[row, column]) for column in panel.columns] for row in panel.rows]
    axes.imshow(shares, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_title(panel.title, fontsize=9)
    axes.set_xticks(range(len(panel.columns)), [f"{each:,}" for each in panel.columns], fontsize=8)
    axes.set_yticks(range(len(panel.rows)), [f"{each:,}" for each in panel.rows], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, row in enumerate(panel.rows):
        for x, column in enumerate(panel.columns):
            cell = panel.cells[row, column]
            colour = "black" if panel.share(cell) > 0.55 else "white"
            words = _rate(cell.rate, short=False) + ("*" if cell is panel.choice.best else "")
            chosen = cell is panel.choice.chosen
            axes.text(
                x, y, words, ha="center", va="center", color=colour, fontsize=8, weight="bold" if chosen else "normal"
            )
            if chosen:
                _frame(axes, x, y)


def _frame(axes: Any, x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor="crimson", linewidth=2.2))
