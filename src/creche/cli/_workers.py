"""`creche workers`: who works, on what, and how long their leases last. It changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import click

from creche._job import WorkerRecord
from creche.cli._display import console_of_data, print_json, say
from creche.cli._storages import dsn_option, opened
from creche.cli._tables import WIDE, running_table, worker_json, worker_table


@click.command()
@dsn_option
@click.option("--json", is_flag=True, help="Print JSON.")
def workers(dsn: str, json: bool) -> None:
    """List the workers that are there, and what each is running.

    SLOTS says how many jobs it holds of how many it takes; LEASE, how long a job is its own unless it renews. A worker
    that ended without a word is listed until its time runs out.
    """
    found = anyio.run(_workers, dsn)
    if json:
        print_json([worker_json(each) for each in found])
        return
    if not found:
        say("no workers")
        return
    console = console_of_data()
    wide = console.width >= WIDE
    console.print(worker_table(found, wide=wide))
    if any(each.jobs for each in found):
        console.print()
        console.print(running_table(found, wide=wide))


async def _workers(dsn: str) -> Sequence[WorkerRecord]:
    async with opened(dsn) as storage:
        return await storage.workers()
