"""Effects that take place exactly once: jobs that write a row in their own transaction, while their workers are killed,
or the answers to their commits are lost. By hand: `python tests/faults/effects.py --engine mariadb --jobs 2000`.

The user's table has no unique key, so that a second effect would stand in it. `--careless` writes outside of the
transaction, as most queues have their users do: then there are some.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import frozen

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from creche import ExponentialBackoff, Job, Queue, Status, Worker
from creche.storage import open_storage
from creche.testing._backdoor import connect, read, reroute, write
from creche.testing._herd import Herd, ended_well, take_turns
from creche.testing._ledger import Chronicle, Ledger, read_ledgers
from faults.storm import ENGINES, database

TABLE: Final = (
    "CREATE TABLE effects (job_id VARCHAR(36) NOT NULL, worker VARCHAR(50) NOT NULL, attempt INTEGER NOT NULL)"
)
BATCH: Final = 500
COMMIT: Final = re.compile(rb"COMMIT(?!TED)")  # the statement, not the isolation level


@frozen(kw_only=True)
class Plan:
    """What is done. Times are in seconds.

    Attributes:
        jobs: how many.
        seconds: after which nobody is killed any more.
        patience: for what is left then.
        calm: between two kills; 0: nobody is killed.
        cuts: which part of all commits loses its answer, or gets lost; a server's only.
        lease: of a worker.
        workers: at any moment.
        concurrency: of each.
        careless: write outside of the job's transaction.
        loop: "asyncio", "trio", or "both" by turns.
    """

    jobs: int = 2_000
    seconds: float = 90.0
    patience: float = 90.0
    calm: float = 0.3
    cuts: float = 0.0
    lease: float = 1.5
    workers: int = 3
    concurrency: int = 5
    careless: bool = False
    loop: str = "both"


# --- who takes part ---------------------------------------------------------------------------------


class Cast:
    """A queue with the one task, and who uses it; each process has its own."""

    def __init__(self, dsn: str, plan: Plan, ledger: Ledger) -> None:
        self.queue = Queue(dsn)
        self._dsn = dsn
        self._plan = plan
        # The longer it is open, the more kills meet it; but on SQLite nobody else can write meanwhile.
        self._hold = 0.04 if dsn.startswith("sqlite") else 0.2
        self._ledger = ledger
        place = "?" if dsn.startswith("sqlite") else "%s"
        self._insert = f"INSERT INTO effects VALUES ({place}, {place}, {place})"
        options: dict[str, Any] = {"max_attempts": 1_000, "backoff": ExponentialBackoff(base=0.1, cap=1.0)}
        self._task = self.queue.task("effect", **options)(self._careless if plan.careless else self._effect)

    async def _effect(self, job: Job, number: int) -> int:
        facts = {"job": str(job.id), "attempt": job.attempt, "token": job.lease.token}
        self._ledger.note("begin", **facts)
        async with job.transaction() as connection:
            await connection.execute(self._insert, (str(job.id), self._ledger.who, job.attempt))
            self._ledger.note("written", **facts)
            await anyio.sleep(random.uniform(0, self._hold))
            job.set_result(number)
        self._ledger.note("end", **facts)
        return number

    async def _careless(self, job: Job, number: int) -> int:
        facts = {"job": str(job.id), "attempt": job.attempt, "token": job.lease.token}
        self._ledger.note("begin", **facts)
        with closing(connect(self._dsn)) as connection:
            connection.cursor().execute(self._insert, (str(job.id), self._ledger.who, job.attempt))
            connection.commit()
        self._ledger.note("written", **facts)
        await anyio.sleep(random.uniform(0, self._hold))
        self._ledger.note("end", **facts)
        return number

    async def work(self) -> None:
        """Be a worker until told to end, or killed."""
        await Worker(
            self.queue,
            queues=["default"],
            lease=self._plan.lease,
            concurrency=self._plan.concurrency,
            poll_interval=0.5,
        ).run()

    async def dispatch(self) -> None:
        """Send all jobs."""
        async with self.queue:
            for first in range(0, self._plan.jobs, BATCH):
                numbers = range(first, min(first + BATCH, self._plan.jobs))
                await self.queue.dispatch_many(self._task.call(number) for number in numbers)

    async def drain(self) -> None:
        """Wait until all are done."""
        async with self.queue:
            while any(stats.counts.get(s) for stats in (await self.queue.stats()).queues for s in Status if s.active):  # noqa: ASYNC110
                await anyio.sleep(0.1)


def cut_commits(listener: socket.socket, server: tuple[str, int], odds: float, ledger: Ledger) -> None:
    """Stand between workers and their server; of some commits lose the answer, of some the commit itself."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_stand_between, args=(client, server, odds, ledger), daemon=True).start()


def _stand_between(client: socket.socket, address: tuple[str, int], odds: float, ledger: Ledger) -> None:
    deaf = threading.Event()
    with client, socket.create_connection(address) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def answer() -> None:
            with suppress(OSError):
                while (data := server.recv(65_536)) and not deaf.is_set():
                    client.sendall(data)
            _shut(client, server)

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        with suppress(OSError):
            while data := client.recv(65_536):
                if COMMIT.search(data) and random.random() < odds:
                    sent = random.random() < 0.5
                    ledger.note("cut", sent=sent)
                    if not sent:
                        break
                    deaf.set()
                server.sendall(data)
        if deaf.is_set():
            answering.join(5)  # the server has read the commit before it reads of our end
        _shut(client, server)
        answering.join(5)


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def run(dsn: str, plan: Plan, folder: Path) -> None:
    """Have it done. Who calls this has no threads, and no event loop."""

    def play(part: Callable[[Cast], Callable[[], Any]], dsn: str = dsn) -> Callable[[Ledger], None]:
        loop = next(loops)
        return lambda ledger: anyio.run(part(Cast(dsn, plan, ledger)), backend=loop)

    loops = take_turns(plan.loop)
    open_storage(dsn)  # imports what its driver needs, once for all that are forked
    herd = Herd(folder)
    workers_dsn = dsn
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            herd.alone("migrator", play(lambda cast: cast.queue.migrate))
            herd.alone("user", lambda _: write(dsn, TABLE))
            herd.alone("dispatcher", play(lambda cast: cast.dispatch))
            if plan.cuts:
                server, workers_dsn = reroute(dsn, listener.getsockname()[1])
                herd.start("proxy", lambda ledger: cut_commits(listener, server, plan.cuts, ledger))
            until = time.monotonic() + plan.seconds
            for _ in range(plan.workers):
                herd.start("worker", play(lambda cast: cast.work, workers_dsn))
            drainer = herd.start("drainer", play(lambda cast: cast.drain))
            while plan.calm and time.monotonic() < until and drainer not in herd.bury():
                time.sleep(plan.calm)
                if herd.kill_one("worker"):
                    herd.start("worker", play(lambda cast: cast.work, workers_dsn))
            herd.finish(plan.patience, "drainer")
            herd.ask_to_end("worker")
            herd.finish(30, "worker")
        finally:
            herd.end()


# --- the auditor ------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Effect:
    """A row of the user's table."""

    job: str
    worker: str
    attempt: int


@frozen(kw_only=True)
class Done:
    """A job, as the database has it."""

    id: str
    number: int
    status: str
    attempts: int
    result: str | None


@frozen(kw_only=True)
class Story(Chronicle):
    """All that is known."""

    plan: Plan
    effects: Sequence[Effect]
    jobs: Sequence[Done]


async def _read_jobs(dsn: str) -> list[Done]:
    found = list[Done]()
    async with Queue(dsn) as queue:
        before = None
        while page := await queue.jobs(limit=1_000, before=before):
            before = page[-1].id
            for each in page:
                number = json.loads(each.payload)["number"]
                result = None if each.result is None else each.result.decode()
                done = Done(id=str(each.id), number=number, status=each.status, attempts=each.attempts, result=result)
                found.append(done)
    return found


def read_story(dsn: str, plan: Plan, folder: Path) -> Story:
    """Collect what is known, once it is over."""
    effects = [Effect(job=row[0], worker=row[1], attempt=row[2]) for row in read(dsn, "SELECT * FROM effects")]
    return Story(plan=plan, entries=read_ledgers(folder), effects=effects, jobs=anyio.run(_read_jobs, dsn))


def audit(story: Story) -> Iterator[str]:
    """Yield all objections, in words."""
    jobs = {job.id: job for job in story.jobs}
    if sorted(job.number for job in story.jobs) != list(range(story.plan.jobs)):
        yield f"{len(story.jobs)} jobs for {story.plan.jobs} dispatches"
    if len(story.effects) != story.plan.jobs:
        yield f"{len(story.effects)} rows for {story.plan.jobs} jobs"
    effects = Counter(effect.job for effect in story.effects)
    for job in story.jobs:
        if effects[job.id] != 1:
            yield f"{job.id} has {effects[job.id]} rows"
        if job.status != Status.COMPLETED or job.result != str(job.number):
            yield f"{job.id}, number {job.number}, is {job.status} with the result {job.result}"
    begun = {(each["job"], each["who"], each["attempt"]) for each in story.all("begin")}
    for effect in story.effects:
        if effect.job not in jobs or effect.attempt != jobs[effect.job].attempts:
            yield f"{effect.job} has a row of attempt {effect.attempt}, which is not the one that completed it"
        if (effect.job, effect.worker, effect.attempt) not in begun:
            yield f"{effect.job} has a row of {effect.worker}, which never began attempt {effect.attempt}"
    yield from (f"{job} was committed {count} times" for job, count in _committed(story).items() if count > 1)
    yield from _audit_processes(story)


def _audit_processes(story: Story) -> Iterator[str]:
    for each in story.all("ended"):
        if not ended_well(each, story.dismissed):
            yield f"{each['name']} ended with {each['code']}"
    numbers = counts(story)
    if story.plan.calm and not numbers["killed with a transaction open"]:
        yield "no worker was killed within a transaction: there is nothing to see"
    if story.plan.cuts and not (numbers["commits that were lost"] and numbers["answers to commits that were lost"]):
        yield "no commit was cut: there is nothing to see"


def _committed(story: Story) -> Counter[str]:
    return Counter(each["job"] for each in story.all("end"))


def counts(story: Story) -> dict[str, int]:
    """Return what happened, in numbers."""
    what = Counter(entry["what"] for entry in story.entries)
    cuts = Counter(entry["sent"] for entry in story.all("cut"))
    return {
        "jobs": len(story.jobs),
        "rows": len(story.effects),
        "jobs with more than one row": sum(n > 1 for n in Counter(each.job for each in story.effects).values()),
        "runs": what["begin"],
        "inserts that were sent": what["written"],
        "workers killed": what["killed"],
        "killed with a transaction open": len(_struck(story)),
        "answers to commits that were lost": cuts[True],
        "commits that were lost": cuts[False],
        "jobs that took several attempts": sum(job.attempts > 1 for job in story.jobs),
        "most attempts of a job": max((job.attempts for job in story.jobs), default=0),
        "seconds": round(_length(story)),
    }


def _struck(story: Story) -> set[tuple[str, int]]:
    """Return the runs of killed workers that had written and not come to their end."""
    killed = {entry["name"] for entry in story.all("killed")}

    def runs(what: str) -> set[tuple[str, int]]:
        return {(entry["job"], entry["token"]) for entry in story.all(what) if entry["who"] in killed}

    return runs("written") - runs("end")


def _length(story: Story) -> float:
    times = [entry["at"] for entry in story.all("begin", "end")]
    return max(times) - min(times) if times else 0.0


# --- by hand ----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--dsn", help="an empty database")
    where.add_argument("--engine", choices=ENGINES, help="start a server of its own")
    parser.add_argument("--ledgers", type=Path, help="a folder to keep what everybody wrote down")
    for attribute in Plan.__attrs_attrs__:
        if attribute.name != "careless":
            parser.add_argument(f"--{attribute.name}", type=type(attribute.default), default=attribute.default)
    parser.add_argument("--careless", action="store_true", help="write outside of the job's transaction")
    options = vars(parser.parse_args())
    dsn, engine, ledgers = (options.pop(name) for name in ("dsn", "engine", "ledgers"))
    plan = Plan(**options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = dsn or stack.enter_context(database(engine, folder))
        if ledgers:
            ledgers.mkdir(parents=True, exist_ok=True)
        run(dsn, plan, ledgers or folder)
        story = read_story(dsn, plan, ledgers or folder)
    objections = list(audit(story))
    for name, number in counts(story).items():
        print(f"{number:>8,}  {name}")  # noqa: T201
    print(f"{'BROKEN' if objections else 'ok':>8}")  # noqa: T201
    for objection in objections[:30]:
        print(f"{'':>10}{objection}")  # noqa: T201
    return 1 if objections else 0


if __name__ == "__main__":
    sys.exit(main())
