"""Many processes reserve from one backlog while others dispatch: does a reserve ever come back with nothing, or with
what another has? It runs no handlers, so that nothing but the storage is in the way.

`python -m benchmarks.contention --dsn mysql://…` prints its figures, and fails if a job was reserved twice, lost, or
not settled, or if a reserve came back empty though more jobs were ready than all its rivals could have locked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from time import monotonic, perf_counter
from typing import Any, Final

import anyio
from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table

from creche._ids import new_job_id, new_nonce
from creche._job import Event, Lease, NewJob, Settlement, Status
from creche.abc import Storage
from creche.storage import mask, open_storage

BATCH: Final = 10
LEASE: Final = 600.0
PATIENCE: Final = 300.0  # seconds: whoever still finds nothing by then gives up


@frozen
class Load:
    """How many of what.

    Attributes:
        backlog: jobs that are ready before the first reserve.
        dispatched: jobs that come meanwhile, over all dispatching processes, one by one.
    """

    backlog: int = 20_000
    dispatched: int = 4_000
    reservers: int = 8
    dispatchers: int = 4


@frozen
class Reserved:
    """What one reserving process saw."""

    jobs: Sequence[str]
    reserves: int
    empty: int
    wrongly_empty: int
    refused: int
    conflicts: int
    seconds: float


@frozen
class Outcome:
    """What became of all of them together."""

    jobs: int
    twice: int
    lost: int
    reserves: int
    empty: int
    wrongly_empty: int
    refused: int
    conflicts: int
    jobs_per_second: float

    @property
    def sound(self) -> bool:
        """Whether each job was reserved once and settled, and nobody went away empty-handed from a full queue."""
        return not (self.twice or self.lost or self.refused or self.wrongly_empty)


def new_job(queue: str) -> NewJob:
    """Return a job that does nothing."""
    return NewJob(id=new_job_id(), type="contention", payload=b"{}", queue_name=queue)


async def count(storage: Storage, queue: str, status: Status) -> int:
    """Return how many jobs of a queue stand in a state."""
    return sum(stats.counts.get(status, 0) for stats in await storage.stats() if stats.queue_name == queue)


async def reserve(dsn: str, queue: str, load: Load, start: float) -> Reserved:
    """Reserve and settle until everything that is to come has been settled."""
    taken: list[str] = []
    reserves = empty = wrongly_empty = refused = 0
    worker = f"rival {os.getpid()}"
    async with open_storage(dsn) as storage:
        await anyio.sleep(max(0.0, start - monotonic()))
        began = perf_counter()
        while perf_counter() - began < PATIENCE:
            answer = await storage.reserve([queue], BATCH, lease=LEASE, worker=worker, nonce=new_nonce())
            reserves += 1
            if answer.jobs:
                leases: Sequence[Lease] = [job.lease for job in answer.jobs]
                taken.extend(lease.job_id.hex for lease in leases)
                settled = await storage.settle([Settlement(lease=lease, event=Event.SUCCEED) for lease in leases])
                refused += len(settled.lost)
                continue
            empty += 1
            # Rivals may have locked so many, and an inserted job may not have been there yet.
            if await count(storage, queue, Status.PENDING) > BATCH * load.reservers + load.dispatchers:
                wrongly_empty += 1
            if await count(storage, queue, Status.COMPLETED) >= load.backlog + load.dispatched:
                break
            await anyio.sleep(0.02)
        return Reserved(taken, reserves, empty, wrongly_empty, refused, storage.conflicts, perf_counter() - began)


async def dispatch(dsn: str, queue: str, jobs: int, start: float) -> int:
    """Insert jobs one by one."""
    async with open_storage(dsn) as storage:
        await anyio.sleep(max(0.0, start - monotonic()))
        for _ in range(jobs):
            await storage.insert([new_job(queue)])
        return storage.conflicts


async def prepare(dsn: str, queue: str, load: Load) -> None:
    """Write the backlog."""
    storage = open_storage(dsn)
    await storage.migrate()
    async with storage:
        for done in range(0, load.backlog, 1_000):
            await storage.insert([new_job(queue) for _ in range(min(1_000, load.backlog - done))])


def _reserve(*arguments: Any) -> Reserved:
    return anyio.run(reserve, *arguments)


def _dispatch(*arguments: Any) -> int:
    return anyio.run(dispatch, *arguments)


def contend(dsns: Sequence[str], load: Load) -> Outcome:
    """Run it once; the processes take turns with the DSNs, which are of one database."""
    queue = f"contention-{secrets.token_hex(4)}"
    anyio.run(prepare, dsns[0], queue, load)
    # Not forked: what a fork inherits would be a fault of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(load.reservers + load.dispatchers, mp_context=context) as processes:
        start = monotonic() + 1.5
        turns = cycle(dsns)
        shares = [len(range(number, load.dispatched, load.dispatchers)) for number in range(load.dispatchers)]
        dispatching = [processes.submit(_dispatch, next(turns), queue, share, start) for share in shares]
        reserving = [processes.submit(_reserve, next(turns), queue, load, start) for _ in range(load.reservers)]
        conflicts = sum(future.result() for future in dispatching)
        seen = [future.result() for future in reserving]
    times = Counter(job for each in seen for job in each.jobs)
    jobs = load.backlog + load.dispatched
    return Outcome(
        jobs=jobs,
        twice=sum(n > 1 for n in times.values()),
        lost=jobs - len(times),
        reserves=sum(each.reserves for each in seen),
        empty=sum(each.empty for each in seen),
        wrongly_empty=sum(each.wrongly_empty for each in seen),
        refused=sum(each.refused for each in seen),
        conflicts=conflicts + sum(each.conflicts for each in seen),
        jobs_per_second=jobs / max(each.seconds for each in seen),
    )


def main() -> int:
    """Measure and print; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contention")
    parser.add_argument(
        "--dsn", action="append", required=True, help="a database made for this; several: the nodes of one cluster"
    )
    parser.add_argument("--backlog", type=int, default=Load().backlog)
    parser.add_argument("--dispatched", type=int, default=Load().dispatched)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    outcome = contend(options.dsn, Load(backlog=options.backlog, dispatched=options.dispatched))
    figures = asdict(outcome)
    if options.json:
        print(json.dumps(figures))
    else:
        table = Table(*figures, title=f"8 reserve {BATCH} at a time, 4 dispatch: {mask(' '.join(options.dsn))}")
        table.add_row(*(f"{value:,.0f}" for value in figures.values()))
        Console(width=140).print(table)
    return 0 if outcome.sound else 1


if __name__ == "__main__":
    sys.exit(main())
