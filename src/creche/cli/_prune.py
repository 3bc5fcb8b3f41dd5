"""`creche prune`: upkeep now, for who runs no worker at the moment, or wants the room back sooner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import anyio
import click

from creche._job import DELAY_LIMIT, Retention
from creche.cli._chosen import counted
from creche.cli._display import print_json, say
from creche.cli._durations import duration
from creche.cli._storages import dsn_option, opened

_LIMIT: Final = 1_000  # of each kind, per transaction
_KINDS: Final = ("pruned", "recovered", "buried", "promoted")


@click.command()
@click.option("--completed", type=duration, metavar="TIME", help="Prune what completed longer ago: 1h, 7d.")
@click.option("--failed", type=duration, metavar="TIME", help="Prune what failed longer ago, and dead letters.")
@click.option("--cancelled", type=duration, metavar="TIME", help="Prune what was cancelled longer ago.")
@dsn_option
@click.option("--json", is_flag=True, help="Print JSON.")
def prune(completed: float | None, failed: float | None, cancelled: float | None, dsn: str, json: bool) -> None:
    """Prune what is over, and look after the rest, as workers do.

    It goes on until nothing is left to do, and says how much it was. Jobs that are over are pruned where an option says
    how long ago; what no option names is kept. A queue with a retention of its own (creche queues keep) is pruned by
    that one, whatever is said here. Results that still answer for equal dispatches stay. What dead workers held is
    taken back.
    """
    done = anyio.run(_prune, dsn, _retention(completed, failed, cancelled))
    if json:
        print_json({kind: done[kind] for kind in _KINDS})
    else:
        click.echo(f"{counted(done['pruned'], 'job')} pruned")
    others = [f"{done[kind]:,} {kind}" for kind in _KINDS[1:] if done[kind]]
    if others:
        say(", ".join(others))


def _retention(completed: float | None, failed: float | None, cancelled: float | None) -> Retention:
    """Return what to prune by: what nobody named is kept, for how long the application keeps it is not known here."""
    seconds = [DELAY_LIMIT if each is None else each for each in (completed, failed, cancelled)]
    return Retention(completed=seconds[0], failed=seconds[1], cancelled=seconds[2])


async def _prune(dsn: str, retention: Retention) -> Mapping[str, int]:
    done: Counter[str] = Counter()
    async with opened(dsn) as storage:
        while True:
            upkeep = await storage.maintain(_LIMIT, retention=retention)
            counts = {kind: int(getattr(upkeep, kind)) for kind in _KINDS}
            done.update(counts)
            if max(counts.values()) < _LIMIT:
                return done
            say(f"{done['pruned']:,} pruned so far")
