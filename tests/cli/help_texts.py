"""Writes what each command says to `--help` into docs/cli.md: `python tests/cli/help_texts.py`, after a change.

It replaces the blocks that follow a comment with the command in it, and touches nothing else on the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from creche.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
WIDTH = 78  # what click makes of a terminal of 80 columns

_BLOCK = re.compile(r"(?P<comment><!-- creche(?P<words>[\w ]*) --help -->\n)```text\n.*?```", re.DOTALL)


def commands() -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """Yield each command that does something, by its words."""
    yield from _below((), _context(cli, None, "creche"))


def _below(words: tuple[str, ...], context: click.Context) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    yield words, context
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            yield from _below((*words, name), _context(command, context, name))


def _context(command: click.Command, parent: click.Context | None, name: str) -> click.Context:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return type(command).context_class(command, parent=parent, info_name=name, **settings)


def rendered(page: str) -> str:
    """Return the page with the help texts that the commands have now."""
    texts = {" ".join(words): context.get_help() for words, context in commands()}
    return _BLOCK.sub(lambda block: f"{block['comment']}```text\n{texts[block['words'].strip()]}\n```", page)


def documented(page: str) -> set[str]:
    """Return the commands that the page shows."""
    return {block["words"].strip() for block in _BLOCK.finditer(page)}


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
