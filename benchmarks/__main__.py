"""All benchmarks: `python -m benchmarks throughput`, and so on; `python -m benchmarks --help` lists them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

COMMANDS: Final = ("throughput", "latency", "backlog", "idle", "memory", "rivals", "layouts")
TUNING: Final = ("sweep",)  # with what `creche bench` takes
MODULES: Final = ("contention", "waiters", "cancel")  # with a command line of their own


class _Benchmarks(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [*COMMANDS, *TUNING, *MODULES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name in {*COMMANDS, *TUNING}:
            found: click.Command = getattr(importlib.import_module(f"benchmarks.{cmd_name}"), cmd_name)
            return found
        return _module(cmd_name) if cmd_name in MODULES else None


def _module(name: str) -> click.Command:
    module = importlib.import_module(f"benchmarks.{name}")

    @click.command(
        name,
        help=(module.__doc__ or "").partition("\n")[0],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def run(words: Sequence[str]) -> None:
        sys.argv = [f"python -m benchmarks {name}", *words]
        sys.exit(module.main())

    return run


@click.group(cls=_Benchmarks)
def main() -> None:
    """What creche does on this machine, side by side. Only ratios within one run mean anything."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
