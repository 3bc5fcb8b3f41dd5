"""Where tables go: a terminal as rich draws on it, a pipe without what only a window needs. It makes no table."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any, Final, NoReturn

import click
from rich.console import Console

_ENDLESS: Final = 100_000  # columns: more than the widest row that can be
_PADDING: Final = re.compile(r" +$", re.MULTILINE)


class DataConsole(Console):
    """A console on stdout. In a pipe nothing is cut, for there is no window that it would have to fit, and no line is
    filled up with blanks: one long error would make every line as long.
    """

    def __init__(self) -> None:
        self._piped = not sys.stdout.isatty()
        width = _ENDLESS if self._piped and "COLUMNS" not in os.environ else None
        super().__init__(width=width, highlight=False, markup=False, emoji=False)

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
