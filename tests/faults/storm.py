"""The storm: hundreds of dispatchers ask for the same few things while workers are killed, and an auditor reads what
everybody wrote down. By hand: `python tests/faults/storm.py --engine postgresql --seconds 60`, or with `--dsn`.

The auditor believes the ledgers that dispatchers, workers and the one who kills write for themselves, and compares them
with the database's rows. Whatever it objects to breaks a promise; `audit` is a function of the story alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias
from uuid import UUID

import anyio
from attrs import frozen

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from creche import Callback, Job, Queue, Status, Worker, events
from creche.errors import CrecheError
from creche.storage import open_storage
from creche.testing._herd import Herd, ended_well, take_turns
from creche.testing._ledger import Chronicle, Entry, Ledger, read_ledgers
from creche.testing.servers import private_mariadb, private_mysql, private_postgresql

ACTIVE: Final = [status for status in Status if status.active]
ENGINES: Final = ("sqlite", "postgresql", "mariadb", "mysql")
SLACK: Final = 0.5  # seconds between what a dispatcher reads on the clock and what the database reads
PATIENCE: Final = 120.0  # seconds that what is left over may take after the storm
SERVERS: Final = {"postgresql": private_postgresql, "mariadb": private_mariadb, "mysql": private_mysql}


@frozen(kw_only=True)
class Weather:
    """What a storm is like. Times are in seconds.

    Attributes:
        seconds: how long workers are killed.
        ttl: for which a result answers.
        lease: of a worker.
        calm: between two kills, on average.
        pause: of a dispatcher between two dispatches, on average.
        processes: that dispatch.
        dispatchers: in each of them.
        fingerprints: that they ask for.
        workers: at any moment.
        loop: "asyncio", "trio", or "both" by turns.
    """

    seconds: float = 60.0
    ttl: float = 2.0
    lease: float = 2.0
    calm: float = 1.0
    pause: float = 1.5
    processes: int = 4
    dispatchers: int = 50
    fingerprints: int = 50
    workers: int = 3
    loop: str = "both"


# --- who takes part ---------------------------------------------------------------------------------


class Cast:
    """A queue with the tasks of the storm, and who uses it; each process has its own."""

    def __init__(self, dsn: str, weather: Weather, ledger: Ledger) -> None:
        self.queue = Queue(dsn)
        self._weather = weather
        self._ledger = ledger
        self._sent = 0
        self._given_back = set[tuple[UUID, int]]()  # and the storage has yet to say that it took them
        self._work = self.queue.task("work", result_ttl=weather.ttl, max_attempts=100)(self._handle)
        self._told = self.queue.callback("told", max_attempts=100)(self._be_told)

    async def _handle(self, job: Job, key: str) -> dict[str, Any]:
        self._ledger.note("begin", kind="work", subject=key, **_facts(job))
        await anyio.sleep(random.uniform(0, 0.05))
        self._ledger.note("end", job=str(job.id), token=job.lease.token)
        return {"key": key, "job": str(job.id), "attempt": job.attempt}

    async def _be_told(self, job: Job, result: dict[str, Any], dispatch: str) -> None:
        self._ledger.note("begin", kind="told", subject=dispatch, result=result, **_facts(job))
        await anyio.sleep(random.uniform(0, 0.01))
        self._ledger.note("end", job=str(job.id), token=job.lease.token)

    async def work(self) -> None:
        """Be a worker until told to end, or killed."""
        worker = Worker(
            self.queue, queues=["default"], lease=self._weather.lease, poll_interval=1.0, hooks=[self.note_event]
        )
        await worker.run()

    def note_event(self, event: events.WorkerEvent) -> None:
        """Be a worker's hook. That the storage took back what was given back (as what waits for a slot too long is) is
        no end of a job.
        """
        match event:
            case events.JobAcked():
                attempt = event.job_id, event.attempt
                if attempt in self._given_back:
                    self._given_back.remove(attempt)
                else:
                    self._ledger.note("acked", job=str(event.job_id), attempt=event.attempt)
            case events.JobReleased():
                self._given_back.add((event.job_id, event.attempt))
                self._ledger.note("let go", job=str(event.job_id), attempt=event.attempt)
            case events.JobLeaseLost():
                self._given_back.discard((event.job_id, event.attempt))
                self._ledger.note("let go", job=str(event.job_id), attempt=event.attempt)
            case _:
                pass

    async def dispatch(self, until: float) -> None:
        """Be some dispatchers until a moment of `time.monotonic`."""
        async with self.queue, anyio.create_task_group() as tasks:
            for _ in range(self._weather.dispatchers):
                tasks.start_soon(self._ask_and_ask, until)

    async def _ask_and_ask(self, until: float) -> None:
        while time.monotonic() < until:
            await anyio.sleep(random.uniform(0, 2 * self._weather.pause))
            self._sent += 1
            dispatch = f"{self._ledger.who}/{self._sent}"
            try:
                await self._ask(dispatch, f"key {random.randrange(self._weather.fingerprints)}")
            except CrecheError as error:
                self._ledger.note("raised", dispatch=dispatch, error=repr(error))

    async def _ask(self, dispatch: str, key: str) -> None:
        self._ledger.note("asked", dispatch=dispatch, key=key, wall=time.time())
        callback = Callback(self._told, arguments={"dispatch": dispatch})
        receipt = await self._work.options(callbacks=[callback]).dispatch(key)
        self._ledger.note(
            "receipt", dispatch=dispatch, job=str(receipt.job_id), inserted=receipt.inserted, status=receipt.status
        )
        self._ledger.note("answered", dispatch=dispatch, value=await receipt.wait())

    async def drain(self) -> None:
        """Wait until nothing is left to do."""
        async with self.queue:
            while any(stats.counts.get(each) for stats in (await self.queue.stats()).queues for each in ACTIVE):  # noqa: ASYNC110
                await anyio.sleep(0.1)


def _facts(job: Job) -> Entry:
    return {"job": str(job.id), "token": job.lease.token, "attempt": job.attempt}


def rage(dsn: str, weather: Weather, folder: Path) -> None:
    """Have the storm, and calm down. Who calls this has no threads, and no event loop."""

    def play(part: Callable[[Cast], Callable[..., Any]], *arguments: Any) -> Callable[[Ledger], None]:
        loop = next(loops)
        return lambda ledger: anyio.run(part(Cast(dsn, weather, ledger)), *arguments, backend=loop)

    loops = take_turns(weather.loop)
    open_storage(dsn)  # imports what its driver needs, once for all that are forked
    herd = Herd(folder)
    try:
        herd.alone("migrator", play(lambda cast: cast.queue.migrate))
        for _ in range(weather.workers):
            herd.start("worker", play(lambda cast: cast.work))
        until = time.monotonic() + weather.seconds
        for _ in range(weather.processes):
            herd.start("dispatcher", play(lambda cast: cast.dispatch, until))
        while (now := time.monotonic()) < until:
            time.sleep(min(until - now, random.uniform(0.5, 1.5) * weather.calm))
            if herd.kill_one("worker"):
                herd.start("worker", play(lambda cast: cast.work))
            herd.bury()
        if herd.finish(PATIENCE, "dispatcher"):
            herd.start("drainer", play(lambda cast: cast.drain))
            herd.finish(PATIENCE, "drainer")
        herd.ask_to_end("worker")
        herd.finish(30, "worker")
    finally:
        herd.end()


# --- the story --------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Row:
    """A job as the database has it, with what it is about: a key of a "work", the dispatch of a "told"."""

    id: str
    kind: str
    subject: str
    status: str
    attempts: int
    created: datetime
    completed: datetime | None
    expires: datetime | None = None
    fingerprint: str | None = None
    origin: str | None = None


@frozen(kw_only=True)
class Story(Chronicle):
    """All that is known of a storm."""

    weather: Weather
    rows: Sequence[Row]
    dead_letters: int = 0


async def _read_rows(dsn: str) -> tuple[list[Row], int]:
    rows = list[Row]()
    async with Queue(dsn) as queue:
        before = None
        while page := await queue.jobs(limit=1_000, before=before):
            before = page[-1].id
            for each in page:
                payload = json.loads(each.payload)
                rows.append(
                    Row(
                        id=str(each.id),
                        kind=each.type,
                        subject=payload["key" if each.type == "work" else "dispatch"],
                        status=each.status,
                        attempts=each.attempts,
                        created=each.created_at,
                        completed=each.completed_at,
                        expires=each.result_expires_at,
                        fingerprint=each.fingerprint.hex() if each.fingerprint else None,
                        origin=str(each.origin.job_id) if each.origin else None,
                    )
                )
        return rows, len(await queue.storage.dead_letters(1_000))


def read_story(dsn: str, weather: Weather, folder: Path) -> Story:
    """Collect what is known, once the storm is over."""
    rows, dead_letters = anyio.run(_read_rows, dsn)
    return Story(weather=weather, entries=read_ledgers(folder), rows=rows, dead_letters=dead_letters)


# --- the auditor ------------------------------------------------------------------------------------
# Each check is a generator of objections, in words; silence is consent.

Check: TypeAlias = Callable[[Story], Iterator[str]]


def check_windows(story: Story) -> Iterator[str]:
    """Of one fingerprint, a new job is made only when the one before has ended, and its result has expired."""
    for key, rows in _works(story).items():
        for former, latter in pairwise(rows):
            free = former.expires if former.status == Status.COMPLETED else former.completed
            if free is None or latter.created < free:
                yield f"{key}: {latter.id} was made at {latter.created}, {former.id} held it until {free or 'now'}"


def check_fingerprints(story: Story) -> Iterator[str]:
    """A key is a fingerprint, and a fingerprint is a key."""
    owners: dict[str | None, str] = {}
    for row in story.rows:
        if row.kind == "work" and owners.setdefault(row.fingerprint, row.subject) != row.subject:
            yield f"{row.fingerprint} is of {row.subject} and of {owners[row.fingerprint]}"
    if len(owners) != len(_works(story)) or None in owners:
        yield f"{len(owners)} fingerprints for {len(_works(story))} keys"


def check_pace(story: Story) -> Iterator[str]:
    """The ledgers alone: between the last run of a job and the first of the next one a result's life has passed."""
    ends = story.by("job", "end")
    runs = {job: begun for job, begun in story.by("job", "begin").items() if begun[0]["kind"] == "work"}
    keys = defaultdict[str, list[str]](list)
    for job, begun in sorted(runs.items(), key=lambda each: each[1][0]["at"]):
        keys[begun[0]["subject"]].append(job)
    for key, jobs in keys.items():
        for former, latter in pairwise(jobs):
            ended = max((end["at"] for end in ends[former]), default=float("inf"))
            passed = runs[latter][0]["at"] - ended
            if passed < story.weather.ttl - 0.05:  # clocks that are being set right go a little slower
                yield f"{key}: {latter} ran {passed:.3f} s after the end of {former}"


def check_runs(story: Story) -> Iterator[str]:
    """A job ran once; each further run has a killed worker before it. What was acknowledged never ran again."""
    begun, ended, acked = story.by("job", "begin"), story.by("job", "end"), story.by("job", "acked")
    rows = {row.id: row for row in story.rows}
    for job in (begun.keys() | ended.keys() | acked.keys()) - rows.keys():
        yield f"{job} ran, and has no row"
    for job, row in rows.items():
        runs, ends, acks = begun[job], ended[job], acked[job]
        if {end["token"] for end in ends} - {run["token"] for run in runs}:
            yield f"{job} ended a run that never began"
        if any(run["subject"] != row.subject or run["kind"] != row.kind for run in runs):
            yield f"{job} ran as something else"
        if not runs or runs[-1]["token"] not in {end["token"] for end in ends}:
            yield f"{job} is {row.status} without a whole run"
        elif runs[-1]["attempt"] != row.attempts:
            yield f"{job} ran as attempt {runs[-1]['attempt']} last, and has {row.attempts}"
        if len(acks) > 1 or any(ack["at"] < run["at"] for ack in acks for run in runs):
            yield f"{job} was acknowledged {len(acks)} times, or ran after that"
        for former, latter in pairwise(runs):
            if objection := _unexplained(story, former, latter):
                yield objection


def check_answers(story: Story) -> Iterator[str]:
    """Whoever has a receipt has an answer: of this key's job, of the attempt that counts, and not of yesterday."""
    rows = {row.id: row for row in story.rows}
    asked, answered = story.by("dispatch", "asked"), story.by("dispatch", "answered")
    for dispatch, (receipt, *_) in story.by("dispatch", "receipt").items():
        row = rows.get(receipt["job"])
        question, answers = asked[dispatch], answered[dispatch]
        if row is None or len(question) != 1 or len(answers) != 1:
            yield f"{dispatch} was asked {len(question)} times, and answered {len(answers)} times"
            continue
        if row.subject != question[0]["key"]:
            yield f"{dispatch} asked for {question[0]['key']} and got a job of {row.subject}"
        if answers[0]["value"] != _result(row):
            yield f"{dispatch} was answered {answers[0]['value']}, {row.id} has {_result(row)}"
        cached = receipt["status"] == Status.COMPLETED
        if cached and (row.expires is None or question[0]["wall"] > row.expires.timestamp() + SLACK):
            yield f"{dispatch} was answered by {row.id} after its result had expired"


def check_receipts(story: Story) -> Iterator[str]:
    """Each job was made for exactly one dispatch, and whoever made it was told so."""
    made = Counter(receipt["job"] for receipt in story.all("receipt") if receipt["inserted"])
    for row in story.rows:
        if row.kind == "work" and made[row.id] != 1 and not (made[row.id] == 0 and story.all("raised")):
            yield f"{row.id} was made by {made[row.id]} dispatches"


def check_callbacks(story: Story) -> Iterator[str]:
    """Each dispatch that returned has one callback, which follows its job, got its result, and ran."""
    rows = defaultdict[str, list[Row]](list)
    for row in story.rows:
        if row.kind == "told":
            rows[row.subject].append(row)
    works = {row.id: row for row in story.rows if row.kind == "work"}
    runs = story.by("subject", "begin")
    receipts = story.by("dispatch", "receipt")
    for dispatch, (receipt, *_) in receipts.items():
        found = rows[dispatch]
        if [row.origin for row in found] != [receipt["job"]]:
            yield f"{dispatch} was answered by {receipt['job']}, its callbacks follow {[row.origin for row in found]}"
        elif not runs[dispatch]:
            yield f"{dispatch} was never called back"
        elif receipt["job"] in works and any(
            run["result"] != _result(works[receipt["job"]]) or run["job"] != found[0].id for run in runs[dispatch]
        ):
            yield f"{dispatch} was called back by another job, or with another's result"
    raised = {entry["dispatch"] for entry in story.all("raised")}
    for dispatch in rows.keys() - receipts.keys():
        if dispatch not in raised or len(rows[dispatch]) > 1:
            yield f"{dispatch} has {len(rows[dispatch])} callbacks, and no receipt"


def check_rest(story: Story) -> Iterator[str]:
    """All is done, and nothing has failed."""
    for status, count in Counter(row.status for row in story.rows).items():
        if status != Status.COMPLETED:
            yield f"{count} jobs are {status}"
    if story.dead_letters:
        yield f"{story.dead_letters} dead letters"


def check_processes(story: Story) -> Iterator[str]:
    """Who was not killed ended well, and no worker ended by itself."""
    for entry in story.all("ended"):
        if not ended_well(entry, story.dismissed):
            yield f"{entry['name']} ended with {entry['code']}"
    dispatchers = [entry for entry in story.all("ended") if entry["name"].startswith("dispatcher")]
    if len(dispatchers) != story.weather.processes:
        yield f"{len(dispatchers)} of {story.weather.processes} dispatching processes came to their end"


def check_weather(story: Story) -> Iterator[str]:
    """It was a storm: without kills, joins and several windows there is nothing to see."""
    numbers = counts(story)
    few = story.weather.seconds / story.weather.calm / 3
    if numbers["workers killed"] < few:
        yield f"{numbers['workers killed']} kills are few"
    if numbers["windows of fingerprints"] < 1.5 * len(_works(story)) or len(_works(story)) < story.weather.fingerprints:
        yield f"{numbers['windows of fingerprints']} windows of {len(_works(story))} fingerprints are few"
    if not numbers["joined one that was on its way"] or not numbers["answered from the cache"]:
        yield "nobody joined anybody"
    if numbers["raised"] > numbers["dispatches"] / 20:
        yield f"{numbers['raised']} of {numbers['dispatches']} dispatches raised: {story.all('raised')[0]['error']}"


CHECKS: Final[Mapping[str, Check]] = {
    "windows": check_windows,
    "fingerprints": check_fingerprints,
    "pace": check_pace,
    "runs": check_runs,
    "answers": check_answers,
    "receipts": check_receipts,
    "callbacks": check_callbacks,
    "rest": check_rest,
    "processes": check_processes,
    "weather": check_weather,
}


def audit(story: Story) -> dict[str, list[str]]:
    """Return all objections, by check."""
    found = {name: list(check(story)) for name, check in CHECKS.items()}
    return {name: objections for name, objections in found.items() if objections}


def _works(story: Story) -> dict[str, list[Row]]:
    """Return the jobs of each key, oldest first."""
    keys = defaultdict[str, list[Row]](list)
    for row in sorted(story.rows, key=lambda row: row.created):
        if row.kind == "work":
            keys[row.subject].append(row)
    return keys


def _result(row: Row) -> Entry:
    return {"key": row.subject, "job": row.id, "attempt": row.attempts}


def _unexplained(story: Story, former: Entry, latter: Entry) -> str | None:
    """Return an objection to a second run, unless the first one's worker was killed, or says that it let go of it."""
    if latter["token"] <= former["token"]:
        return f"{former['job']} ran twice under one lease"
    why = _why(story, former, latter)
    return None if why else f"{former['job']} ran again in {latter['who']}, while {former['who']} was well"


def _why(story: Story, former: Entry, latter: Entry) -> str | None:
    for death in story.all("killed"):
        if death["name"] == former["who"] and former["at"] <= death["at"] and death["struck"] <= latter["at"]:
            return "killed"
    for farewell in story.all("let go"):
        same = all(farewell[fact] == former[fact] for fact in ("who", "job", "attempt"))
        if same and farewell["at"] <= latter["at"]:
            return "let go"
    return None


def counts(story: Story) -> dict[str, int]:
    """Return what happened, in numbers."""
    receipts = story.all("receipt")
    runs = story.by("job", "begin")
    again = {kind: Counter[str | None]() for kind in ("work", "told")}
    for begun in runs.values():
        for former, latter in pairwise(begun):
            again[former["kind"]][_why(story, former, latter)] += 1
    works = [row for row in story.rows if row.kind == "work"]
    told = [row for row in story.rows if row.kind == "told"]
    return {
        "workers killed": len(story.all("killed")),
        "dispatches": len(story.all("asked")),
        "made a new job": sum(receipt["inserted"] for receipt in receipts),
        "joined one that was on its way": sum(
            not receipt["inserted"] and receipt["status"] != Status.COMPLETED for receipt in receipts
        ),
        "answered from the cache": sum(receipt["status"] == Status.COMPLETED for receipt in receipts),
        "raised": len(story.all("raised")),
        "answered": len(story.all("answered")),
        "fingerprints": len(_works(story)),
        "windows of fingerprints": len(works),
        "runs of them": sum(len(runs[row.id]) for row in works),
        "again: their worker was killed": again["work"]["killed"],
        "again: their worker had let go": again["work"]["let go"],
        "again: nobody knows why": again["work"][None],
        "callbacks": len(told),
        "runs of callbacks": sum(len(runs[row.id]) for row in told),
        "callbacks again: killed": again["told"]["killed"],
        "callbacks again: let go": again["told"]["let go"],
        "callbacks again: nobody knows": again["told"][None],
        "jobs that took several attempts": sum(row.attempts > 1 for row in story.rows),
        "most attempts of a job": max((row.attempts for row in story.rows), default=0),
        "ms, the longest wait for an answer": round(1_000 * _longest_wait(story)),
    }


def _longest_wait(story: Story) -> float:
    answered = story.by("dispatch", "answered")
    receipts = [each for each in story.all("receipt") if each["dispatch"] in answered]
    return max((answered[each["dispatch"]][0]["at"] - each["at"] for each in receipts), default=0.0)


# --- by hand ----------------------------------------------------------------------------------------


@contextmanager
def database(engine: str, folder: Path) -> Iterator[str]:
    """Have an empty database of an engine for a while; yield its DSN."""
    if engine == "sqlite":
        yield f"sqlite:///{folder}/storm.db"
        return
    with SERVERS[engine]() as server:
        yield server.create_database("storm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--dsn", help="an empty database")
    where.add_argument("--engine", choices=ENGINES, help="start a server of its own")
    parser.add_argument("--ledgers", type=Path, help="a folder to keep what everybody wrote down")
    for attribute in Weather.__attrs_attrs__:
        parser.add_argument(f"--{attribute.name}", type=type(attribute.default), default=attribute.default)
    options = vars(parser.parse_args())
    dsn, engine, ledgers = (options.pop(name) for name in ("dsn", "engine", "ledgers"))
    weather = Weather(**options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = dsn or stack.enter_context(database(engine, folder))
        if ledgers:
            ledgers.mkdir(parents=True, exist_ok=True)
        rage(dsn, weather, ledgers or folder)
        story = read_story(dsn, weather, ledgers or folder)
    objections = audit(story)
    for name, number in counts(story).items():
        print(f"{number:>8,}  {name}")  # noqa: T201
    for name in CHECKS:
        print(f"{'BROKEN' if name in objections else 'ok':>8}  {name}")  # noqa: T201
        for objection in objections.get(name, ())[:20]:
            print(f"{'':>10}{objection}")  # noqa: T201
    return 1 if objections else 0


if __name__ == "__main__":
    sys.exit(main())
