"""`creche completion`: prints what makes a shell complete commands, options and values. The completing is click's."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from creche.cli._problems import Trouble

_VARIABLE: Final = "_CRECHE_COMPLETE"  # where click looks for the shell's question


@click.command(
    epilog="""\b
bash  echo 'eval "$(creche completion bash)"' >> ~/.bashrc
zsh   echo 'eval "$(creche completion zsh)"' >> ~/.zshrc
fish  creche completion fish > ~/.config/fish/completions/creche.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete creche's words.

    They are its commands, options and their values.
    """
    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover - click has had these three since 8.0
        raise Trouble(f"this version of click completes nothing in {shell}")
    click.echo(kind(context.find_root().command, {}, "creche", _VARIABLE).source())
