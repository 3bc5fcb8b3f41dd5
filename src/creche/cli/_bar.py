"""The bar of `creche jobs watch`: one line, whatever a job says. It knows no job."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from creche.cli._display import shortened

_LONGEST = 40  # columns of the bar itself; a quarter of the window, where that is less


def bar_on(console: Console) -> Progress:
    """Return a bar with words before it, and its share and the time behind it. The words are cut first."""
    return Progress(
        _Words(),
        _Bar(console),
        TaskProgressColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        console=console,
    )


class _Bar(BarColumn):
    def __init__(self, console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> ProgressBar:
        self.bar_width = min(_LONGEST, self._console.width // 4)  # of the window as it is now
        return super().render(task)


class _Words(ProgressColumn):
    def render(self, task: Task) -> Text:
        return shortened(task.description)
