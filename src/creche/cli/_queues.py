"""`creche queues`: how queues stand; pausing and resuming them, and how long they keep what is over."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click
from attrs import evolve, frozen

from creche._job import QueueStats, Retention, WorkerRecord, check_name
from creche.abc import Storage
from creche.cli._display import console_of_data, plain_text, print_json, say
from creche.cli._durations import duration, in_words
from creche.cli._problems import Misuse
from creche.cli._storages import dsn_option, opened
from creche.cli._tables import WIDE, queue_json, queue_table, retention_json, served_by

_json = click.option("--json", is_flag=True, help="Print JSON.")
_names = click.argument("names", metavar="NAME...", nargs=-1, required=True)


class _ListByDefault(click.Group):
    """Lists where no command is named, so that the options of `list` may follow at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = bool(args) and args[0] in ctx.help_option_names
        if not args or (args[0].startswith("-") and not asks_for_help):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListByDefault)
def queues() -> None:
    """Look at queues, pause and resume them. Without a command: list them."""


@frozen
class _Look:
    queues: Sequence[QueueStats]
    workers: Sequence[WorkerRecord]


# --- looking ----------------------------------------------------------------------------------------


@queues.command("list")
@dsn_option
@_json
def list_queues(dsn: str, json: bool) -> None:
    """List queues: their jobs by state, and who serves them.

    OLDEST is how long the oldest ready job has been due, FINISHED/MIN how many came to an end in the last minute, and
    KEEPS how long completed, failed and cancelled jobs are kept, if the queue says so itself. It counts every row.
    """
    look = anyio.run(_look, dsn)
    served = served_by(look.workers)
    if json:
        print_json([queue_json(each, served.get(each.queue_name, 0)) for each in look.queues])
        return
    if not look.queues:
        say("no queues")
        return
    console = console_of_data()
    wide = console.width >= WIDE
    console.print(queue_table(look.queues, served, width=console.width))
    for each in look.queues if not wide else ():
        if each.retention is not None:
            click.echo(f"{plain_text(each.queue_name)} keeps {_kept(each.retention)}")


async def _look(dsn: str) -> _Look:
    async with opened(dsn) as storage:
        return _Look(await storage.stats(), await storage.workers())


# --- pausing ----------------------------------------------------------------------------------------


@queues.command("pause")
@_names
@dsn_option
@_json
def pause_queues(names: Sequence[str], dsn: str, json: bool) -> None:
    """Hand out no more jobs of these queues, to any worker.

    It is noted in the database, until they are resumed: what runs goes on, what is dispatched waits.
    """
    anyio.run(_pause, dsn, _checked(names))
    _tell(names, "paused", json)


@queues.command("resume")
@_names
@dsn_option
@_json
def resume_queues(names: Sequence[str], dsn: str, json: bool) -> None:
    """Hand out jobs of these queues again."""
    anyio.run(_resume, dsn, _checked(names))
    _tell(names, "resumed", json)


async def _pause(dsn: str, names: Sequence[str]) -> None:
    async with opened(dsn) as storage:
        await _warn_of_strangers(storage, names)
        await storage.pause(names)


async def _resume(dsn: str, names: Sequence[str]) -> None:
    async with opened(dsn) as storage:
        await _warn_of_strangers(storage, names)
        await storage.resume(names)


async def _warn_of_strangers(storage: Storage, names: Sequence[str]) -> None:
    """Say which names nobody else uses: they may be meant for later, but are more often misspelt."""
    known = {each.queue_name for each in await storage.stats()} | set(served_by(await storage.workers()))
    for name in names:
        if name not in known:
            say(plain_text(f"queue {name!r} has no jobs and no worker: is that its name?"))


def _tell(names: Sequence[str], what: str, json: bool) -> None:
    if json:
        print_json(dict.fromkeys(names, what))
        return
    for name in names:
        click.echo(f"{plain_text(name)} {what}")


def _checked(names: Sequence[str]) -> Sequence[str]:
    return [check_name("NAME", name) for name in dict.fromkeys(names)]


# --- keeping ----------------------------------------------------------------------------------------


@queues.command("keep")
@click.argument("name")
@click.option("--completed", type=duration, metavar="TIME", help="Keep completed jobs so long: 1h, 7d.")
@click.option("--failed", type=duration, metavar="TIME", help="Keep failed jobs and dead letters so long.")
@click.option("--cancelled", type=duration, metavar="TIME", help="Keep cancelled jobs so long.")
@click.option("--default", "by_default", is_flag=True, help="Take its own retention away: the workers' holds again.")
@dsn_option
@_json
def keep_queue(
    name: str,
    *,
    completed: float | None,
    failed: float | None,
    cancelled: float | None,
    by_default: bool,
    dsn: str,
    json: bool,
) -> None:
    """Say how long a queue keeps jobs that are over.

    It holds whatever the workers say. What is not named stays as the queue has it; where it has none of its own yet,
    completed and cancelled jobs are kept for a day, failed ones for 14.
    """
    given = {"completed": completed, "failed": failed, "cancelled": cancelled}
    changes = {state: seconds for state, seconds in given.items() if seconds is not None}
    if bool(changes) == by_default:
        raise Misuse("say what to keep, by --completed, --failed or --cancelled; or --default")
    (checked,) = _checked([name])
    retention = anyio.run(_keep, dsn, checked, None if by_default else changes)
    if json:
        print_json({"queue": name, "retention": None if retention is None else retention_json(retention)})
    elif retention is None:
        click.echo(f"{plain_text(name)} keeps what is over as its workers say")
    else:
        click.echo(f"{plain_text(name)} keeps {_kept(retention)}")


async def _keep(dsn: str, name: str, changes: dict[str, float] | None) -> Retention | None:
    async with opened(dsn) as storage:
        retention = None
        if changes is not None:
            found = [each.retention for each in await storage.stats() if each.queue_name == name]
            retention = evolve(next(iter(found), None) or Retention(), **changes)
        await storage.set_retention(name, retention)
        return retention


def _kept(retention: Retention) -> str:
    return (
        f"completed jobs {in_words(retention.completed)}, failed {in_words(retention.failed)}, "
        f"cancelled {in_words(retention.cancelled)}"
    )
