"""Where tables and words go: a terminal as rich draws on it, a pipe without what only a window needs. It makes none."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click
from rich.console import Console
from rich.theme import Theme

_ENDLESS: Final = 100_000  # columns: more than the widest row that can be
_PADDING: Final = re.compile(r" +$", re.MULTILINE)


class DataConsole(Console):
    """A console on stdout. In a pipe nothing is cut, for there is no window that it would have to fit, and no line is
    filled up with blanks: one long error would make every line as long.

    Args:
        of_few_colours: styles for others, where the terminal has but sixteen colours.
    """

    def __init__(self, of_few_colours: Mapping[str, str]) -> None:
        self._piped = not sys.stdout.isatty()
        width = _ENDLESS if self._piped and "COLUMNS" not in os.environ else None
        super().__init__(width=width, highlight=False, markup=False, emoji=False)
        if self.color_system == "standard":
            self.push_theme(Theme(of_few_colours))

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does."""
        if not self._piped:
            super().print(*objects, **how)
            return
        with self.capture() as captured:
            super().print(*objects, **how)
        click.echo(_PADDING.sub("", captured.get()), nl=False)

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the command line how that ends; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class WordsConsole(Console):
    """A console on stderr, for a line that is drawn over. It takes nothing from the terminal, not even the cursor: so
    nothing is missing there however the process ends, or while it is suspended.

    Args:
        styles: of what rich draws there.
    """

    def __init__(self, styles: Mapping[str, str]) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False, theme=Theme(styles))
        if self.color_system == "standard":
            self.no_color = True  # a bar then is what is done, and nothing beside it

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002 - it is rich's
        """Leave it as it is."""
        return False
