"""One outage after another: jobs are dispatched and done while the servers of a cluster are killed, frozen, cut off and
brought back; then an auditor reads what everybody wrote down.

By hand: `python tests/ha/outage.py --cluster galera --jobs 20000 --every 20 --strikes 10`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import anyio
from attrs import evolve

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from creche import Job, Queue, Status, Worker, events
from creche.errors import StorageUnavailable
from creche.storage import open_storage
from creche.testing._herd import Herd, take_turns
from creche.testing._ledger import Ledger, read_ledgers
from ha.audit import CHECKS, Plan, Row, Story, audit, counts
from ha.clusters import Cluster, galera, group, postgresql

ACTIVE: Final = [status for status in Status if status.active]
OUTSTANDING: Final = 50  # dispatches of one process that have no answer yet
PATIENCE: Final = 180.0  # seconds that what is left over may take when nothing happens any more

CLUSTERS: Final[Mapping[str, Callable[[], AbstractContextManager[Cluster]]]] = {
    "postgresql": partial(postgresql, synchronous=True),
    "postgresql-async": partial(postgresql, synchronous=False),
    "galera": galera,
    "group": partial(group, several_writers=True),
    "group-single": partial(group, several_writers=False),
}


# --- who takes part ---------------------------------------------------------------------------------


class Cast:
    """A queue with its one task, and who uses it; each process has its own."""

    def __init__(self, dsn: str, plan: Plan, ledger: Ledger) -> None:
        self.queue = Queue(dsn)
        self._plan = plan
        self._ledger = ledger
        self._task = self.queue.task("work", max_attempts=1_000)(self._handle)
        self._outstanding = anyio.CapacityLimiter(OUTSTANDING)
        self._running: dict[UUID, str] = {}
        self._succeeded: dict[UUID, str] = {}

    async def _handle(self, job: Job, number: int) -> str:
        run = f"{self._ledger.who}/{job.id}/{job.lease.token}/{job.lease.nonce}"
        self._running[job.id] = run
        self._ledger.note("begin", job=str(job.id), run=run, number=number)
        try:
            # One in twenty is renewed a few times.
            await anyio.sleep(self._plan.lease if random.random() < 0.05 else random.uniform(0, 0.03))
        finally:
            self._ledger.note("left", run=run)
        return run

    async def work(self) -> None:
        """Be a worker until told to end."""
        worker = Worker(
            self.queue,
            queues=["default"],
            lease=self._plan.lease,
            concurrency=self._plan.concurrency,
            poll_interval=1.0,
            hooks=[self._note_event],
        )
        await worker.run()

    def _note_event(self, event: events.WorkerEvent) -> None:
        match event:
            case events.JobSucceeded():
                self._succeeded[event.job_id] = self._running[event.job_id]
            case events.JobAcked() if event.job_id in self._succeeded:
                self._ledger.note("acked", job=str(event.job_id), run=self._succeeded.pop(event.job_id))
            case events.JobLeaseLost():
                self._succeeded.pop(event.job_id, None)
                self._ledger.note("lease lost", job=str(event.job_id))
            case events.StorageConflicted():
                self._ledger.note("conflicted", conflicts=event.conflicts)
            case _:
                pass

    async def dispatch(self, start: float, first: int) -> None:
        """Send one's share of the jobs, each at its time, or later where too many are unanswered."""
        async with self.queue, anyio.create_task_group() as tasks:
            for number in range(first, self._plan.jobs, self._plan.dispatchers):
                await anyio.sleep(max(0.0, start + number / self._plan.rate - time.monotonic()))
                await self._outstanding.acquire_on_behalf_of(number)
                tasks.start_soon(self._send, number)

    async def _send(self, number: int) -> None:
        while True:
            try:
                receipt = await self._task.options(idempotency_key=f"number {number}").dispatch(number)
            except StorageUnavailable as error:
                self._ledger.note("raised", number=number, error=repr(error))
                await anyio.sleep(random.uniform(0.1, 0.5))
            else:
                self._ledger.note("receipt", number=number, job=str(receipt.job_id))
                self._outstanding.release_on_behalf_of(number)
                return

    async def drain(self) -> None:
        """Wait until nothing is left to do."""
        async with self.queue:
            while any(stats.counts.get(each) for stats in (await self.queue.stats()).queues for each in ACTIVE):  # noqa: ASYNC110
                await anyio.sleep(0.2)


def rage(cluster: Cluster, plan: Plan, folder: Path) -> None:
    """Have it happen. Who calls this has no threads, and no event loop."""

    def play(part: Callable[[Cast], Callable[..., Any]], *arguments: Any) -> Callable[[Ledger], None]:
        loop, dsn = next(loops), cluster.dsn(next(numbers))
        return lambda ledger: anyio.run(part(Cast(dsn, plan, ledger)), *arguments, backend=loop)

    loops, numbers = take_turns(plan.loop), iter(range(1_000))
    open_storage(cluster.dsn(0))  # imports what its driver needs, once for all that are forked
    herd = Herd(folder)
    try:
        herd.alone("migrator", play(lambda cast: cast.queue.migrate))
        for _ in range(plan.workers):
            herd.start("worker", play(lambda cast: cast.work))
        start = time.monotonic()
        for first in range(plan.dispatchers):
            herd.start("dispatcher", play(lambda cast: cast.dispatch, start, first))
        strike(cluster, plan, herd, Ledger(folder, "fate"))
        if herd.finish(PATIENCE, "dispatcher"):
            herd.start("drainer", play(lambda cast: cast.drain))
            herd.finish(PATIENCE, "drainer")
        herd.ask_to_end("worker")
        herd.finish(60, "worker")
    finally:
        herd.end()


def strike(cluster: Cluster, plan: Plan, herd: Herd, ledger: Ledger) -> None:
    """Have something happen to the cluster, again and again, while there is something to dispatch."""
    cluster.turn = lambda: ledger.note("turn")
    kinds = cycle(plan.faults)
    done = False
    for number in range(1_000_000):
        began = time.monotonic()
        while not done and time.monotonic() < began + plan.every:
            done = herd.finish(0.2, "dispatcher")
        if done and number >= plan.strikes:
            return
        kind = next(kinds)
        ledger.note("struck", kind=kind, fault=number)
        ledger.note("healed", kind=kind, fault=number, told=cluster.faults[kind]())


# --- the story --------------------------------------------------------------------------------------


async def _read_rows(dsn: str) -> list[Row]:
    rows = list[Row]()
    async with Queue(dsn) as queue:
        before = None
        while page := await queue.jobs(limit=1_000, before=before):
            before = page[-1].id
            rows += [
                Row(
                    id=str(each.id),
                    number=json.loads(each.payload)["number"],
                    status=each.status,
                    result=None if each.result is None else json.loads(each.result),
                )
                for each in page
            ]
    return rows


def read_story(cluster: Cluster, plan: Plan, folder: Path) -> Story:
    """Collect what is known, once it is over."""
    return Story(
        plan=plan,
        entries=read_ledgers(folder),
        rows=anyio.run(_read_rows, cluster.dsn(0)),
        copies={node: anyio.run(_read_rows, node) for node in cluster.nodes()},
        lossy=cluster.lossy,
    )


# --- by hand ----------------------------------------------------------------------------------------


def report(story: Story) -> Iterator[str]:
    """Yield the lines of a table: what happened, and what the auditor says."""
    objections = audit(story)
    yield from (f"{number:>8,}  {name}" for name, number in counts(story).items())
    for name in CHECKS:
        yield f"{'BROKEN' if name in objections else 'ok':>8}  {name}"
        yield from (f"{'':>10}{objection}" for objection in objections.get(name, ())[:20])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", choices=CLUSTERS, required=True)
    parser.add_argument("--ledgers", type=Path, help="a folder to keep what everybody wrote down")
    parser.add_argument("--report", type=Path, help="a file for the table")
    for attribute in Plan.__attrs_attrs__:
        kind = str if attribute.name == "faults" else type(attribute.default)
        parser.add_argument(f"--{attribute.name}", type=kind, default=None)
    options = vars(parser.parse_args())
    name, ledgers, file = (options.pop(option) for option in ("cluster", "ledgers", "report"))
    if options["faults"]:
        options["faults"] = options["faults"].split(",")
    plan = evolve(Plan(), **{option: value for option, value in options.items() if value is not None})
    with ExitStack() as stack:
        folder = ledgers or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        cluster = stack.enter_context(CLUSTERS[name]())
        rage(cluster, plan, folder)
        story = read_story(cluster, plan, folder)
    table = "\n".join(report(story))
    print(table)  # noqa: T201
    if file:
        file.write_text(table)
    return 1 if audit(story) else 0


if __name__ == "__main__":
    sys.exit(main())
