"""The world around one job: workers that stall, crash and lose answers; upkeep, people, the clock; and, if wanted, a
replica that lags behind and takes over. It says what can happen next, and decides nothing.

A worker that does nothing for a while is one that is frozen, or whose statement is still on its way: as the search
tries every order, each of them takes as long as it likes. What a worker has said and nobody confirmed, it may say again
at any time, so a statement that takes effect long after its sender gave up is here, too.

Time is what is left of each lease, in ticks, and has no end. Tokens and nonces are only ever compared, so worlds that
differ in nothing but their names are one (`key`), as are those in which the two workers have changed places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple, TypeAlias

from creche._job import Event, Status
from creche._lifecycle import SETTLING, TRANSITIONS, Aborted
from model.audit import Audit, Job, Promise, ends_by_itself
from model.rules import OUTCOMES, PEOPLE, UPKEEP, Lease, Row, Rules

LAG: Final = 1  # tokens by which the replica may be behind

_NAMES: Final = "ABC"


class Hearing(NamedTuple):
    """It has reserved the job, and the answer is on its way."""

    lease: Lease
    since: int  # ticks since it asked
    doubtful: bool = False


class Renewal(NamedTuple):
    """It has asked for more time, and this answer is on its way."""

    since: int
    held: bool
    cancel_requested: bool


class Holding(NamedTuple):
    """It has the job: the handler runs, or its end is to be written."""

    lease: Lease
    left: int  # ticks until the handler is cancelled
    saying: Event | None = None  # how it ended; None: it runs
    renewal: Renewal | None = None
    doubtful: bool = False  # a failover may have lost this lease


Worker: TypeAlias = Hearing | Holding | None


class World(NamedTuple):
    """Everything there is."""

    workers: tuple[Worker, ...]
    job: Job = Job()
    replica: Job | None = None
    nonces: int = 0  # how many were drawn


class Step(NamedTuple):
    """Something that can happen, in words; the world after it; the promise that it breaks."""

    words: str
    world: World
    broken: Promise | None = None


def start(*, workers: int = 2, failover: bool = False) -> World:
    """A job that was dispatched, and workers that have nothing to do."""
    return World(replica=Job() if failover else None, workers=(None,) * workers)


class Protocol:
    """All that can happen under some rules.

    Args:
        rules: which.
        watched: the promises that are asked for.
    """

    def __init__(self, rules: Rules, watched: Collection[Promise] = frozenset(Promise)) -> None:
        self.rules = rules
        self._watched = watched
        self._audit = Audit(rules.max_attempts)
        self._finite: dict[Row, bool] = {}

    def steps(self, world: World) -> Iterator[Step]:
        """Yield what can happen next."""
        yield Step("a tick passes", self._tick(world))
        yield from self._others(world)
        for place, worker in enumerate(world.workers):
            name = _NAMES[place]
            match worker:
                case None:
                    yield from self._reserve(world, place, name)
                    continue
                case Hearing(lease, since, doubtful):
                    held = Holding(lease, self.rules.deadline(since), doubtful=doubtful)
                    yield Step(f"{name} hears that it has attempt {lease.attempt}", _with(world, place, held))
                case Holding(saying=None):
                    yield from self._run(world, place, name, worker)
                case _:
                    yield from self._settle(world, place, name, worker)
            yield Step(f"{name} dies", _with(world, place, None))
        if world.replica is not None and world.replica != world.job:
            yield Step("the replica catches up", world._replace(replica=world.job))
            workers = tuple(None if each is None else each._replace(doubtful=True) for each in world.workers)
            yield Step("FAILOVER to the replica", World(workers, job=world.replica, nonces=world.nonces))

    def broken_in(self, world: World) -> Promise | None:
        """Say which promise doesn't hold in this world."""
        row, ledger = world.job
        for each in world.workers:
            if isinstance(each, Holding) and each.saying is None and each.left > 0 and not each.doubtful:
                holds = row.status is Status.PROCESSING and ledger.owner == each.lease.nonce
                if not holds or row.left < each.left:
                    return Promise.ALONE
        if (broken := self._audit.broken_in(world.job)) is not None:
            return broken
        if row not in self._finite:
            self._finite[row] = ends_by_itself(self.rules, row)
        return None if self._finite[row] or Promise.FINITE not in self._watched else Promise.FINITE

    # --- who has no lease ----------------------------------------------------------------------------

    def _others(self, world: World) -> Iterator[Step]:
        row = world.job.row
        for who, events in (("upkeep", UPKEEP), ("somebody", PEOPLE)):
            for event in events:
                if (row.status, event) in TRANSITIONS and self.rules.may(row, event):
                    job, broken = self._audit.enter(world.job, event, self.rules.write(row, event, due=False))
                    yield from _within(world, Step(f"{who}: {event}", world._replace(job=job), broken))

    def _reserve(self, world: World, place: int, name: str) -> Iterator[Step]:
        row = world.job.row
        if (row.status, Event.RESERVE) not in TRANSITIONS or not self.rules.may(row, Event.RESERVE):
            return
        nonce = world.nonces + 1
        taken = self.rules.write(row, Event.RESERVE, due=True, nonce=nonce)
        job, broken = self._audit.enter(world.job, Event.RESERVE, taken)
        lease = Lease(taken.token, nonce, taken.attempts)
        for since, words in enumerate(("reserves", "reserves by a statement that was a tick on its way")):
            after = _with(world._replace(job=job, nonces=nonce), place, Hearing(lease, since))
            yield from _within(world, Step(f"{name} {words}", after, broken))

    # --- who has one ---------------------------------------------------------------------------------

    def _run(self, world: World, place: int, name: str, holding: Holding) -> Iterator[Step]:
        lease = holding.lease
        for event in dict.fromkeys(self.rules.decide(lease, outcome) for outcome in OUTCOMES):
            yield Step(f"{name}'s handler ends: {event}", _with(world, place, _ended(holding, event)))
        renewal = holding.renewal
        if renewal is None:
            yield from self._renew(world, place, name, holding)
            return
        yield Step(f"the answer to {name}'s renewal is lost", _with(world, place, holding._replace(renewal=None)))
        if not self.rules.heeds(renewal.held):
            yield Step(f"{name} hears that its lease is lost", _with(world, place, None))
            return
        left = max(holding.left, self.rules.deadline(renewal.since))
        longer = holding._replace(left=left, renewal=None)
        yield Step(f"{name} hears that its lease is renewed", _with(world, place, longer))
        if renewal.cancel_requested:
            aborted = _ended(holding, self.rules.decide(lease, Aborted()))
            yield Step(f"{name} hears that its end is wanted: abort", _with(world, place, aborted))

    def _renew(self, world: World, place: int, name: str, holding: Holding) -> Iterator[Step]:
        row = self.rules.extend(world.job.row, holding.lease)
        job, broken = (world.job, None) if row is None else self._audit.renew(world.job, row, holding.lease)
        for since, words in enumerate(("renews", "renews by a statement that was a tick on its way")):
            answer = Renewal(since, row is not None, job.row.cancel_requested)
            after = _with(world._replace(job=job), place, holding._replace(renewal=answer))
            yield Step(f"{name} {words}", after, broken)

    def _settle(self, world: World, place: int, name: str, holding: Holding) -> Iterator[Step]:
        lease, event = holding.lease, holding.saying
        assert event in SETTLING
        before = world.job.row
        for row in dict.fromkeys(self.rules.settle(before, lease, event, due=due) for due in (True, False)):
            if row is None:
                yield Step(f"{name}'s {event} is refused", _with(world, place, None))
                continue
            if row == before:
                broken = self._audit.accept(world.job, event, lease)
                yield Step(f"{name}'s {event} is accepted, and changes nothing", _with(world, place, None), broken)
                continue
            job, broken = self._audit.enter(world.job, event, row, lease)
            after = world._replace(job=job)
            words = f"{name}'s {event} is written: {row.status}"
            yield Step(words, _with(after, place, None), broken)
            again = holding._replace(saying=self.rules.resend(event))
            yield Step(f"{words}; the answer is lost", _with(after, place, again), broken)

    # --- time ----------------------------------------------------------------------------------------

    def _tick(self, world: World) -> World:
        return World(
            workers=tuple(self._older(each) for each in world.workers),
            job=_later(world.job),
            replica=world.replica and _later(world.replica),
            nonces=world.nonces,
        )

    def _older(self, worker: Worker) -> Worker:
        match worker:
            case Hearing(since=since):
                return worker._replace(since=min(since + 1, self.rules.lease))
            case Holding(left=left, renewal=Renewal(since=since) as renewal):
                older = renewal._replace(since=min(since + 1, self.rules.lease))
                return worker._replace(left=max(left - 1, 0), renewal=older)
            case Holding(left=left) if left:
                return worker._replace(left=left - 1)
            case _:
                return worker


def _later(job: Job) -> Job:
    return job._replace(row=job.row._replace(left=job.row.left - 1)) if job.row.left else job


def _with(world: World, place: int, worker: Worker) -> World:
    return world._replace(workers=(*world.workers[:place], worker, *world.workers[place + 1 :]))


def _ended(holding: Holding, event: Event) -> Holding:
    """Its lease is renewed on while it settles, which would only keep others away for longer: so not here."""
    return holding._replace(left=0, saying=event, renewal=None)


def _within(world: World, step: Step) -> Iterator[Step]:
    """Hold the world still where the replica would fall behind by more than can be looked through."""
    if world.replica is None or step.world.job.row.token - world.replica.row.token <= LAG:
        yield step


# --- which worlds are the same -----------------------------------------------------------------------


def key(world: World) -> tuple[object, ...]:
    """Return what distinguishes this world from others.

    Tokens count from the lowest that a database has, and no row will ever have a lower one again: those are all the
    same. Nonces are renamed as they come, and one that no database knows will never be known.
    """
    row, ledger = world.job
    replica = world.replica
    least = row.token if replica is None else min(row.token, replica.row.token)
    names = {0: 0}
    names.setdefault(row.nonce, 1)
    names.setdefault(ledger.owner, 2)
    if replica is not None:
        names.setdefault(replica.row.nonce, 3)
        names.setdefault(replica.ledger.owner, 4)
    workers: list[tuple[object, ...]] = []
    for each in world.workers:
        if each is None:
            workers.append(())
            continue
        lease = each.lease
        token = lease.token - least if lease.token >= least else -1
        workers.append((len(each), token, names.get(lease.nonce, -1), lease.attempt, *_rest(each)))
    workers.sort()
    return (_named(world.job, least, names), replica and _named(replica, least, names), *workers)


def _named(job: Job, least: int, names: dict[int, int]) -> tuple[object, ...]:
    row, ledger = job
    return (row.status, row.attempts, row.token - least, names[row.nonce], *row[4:], names[ledger.owner], *ledger[1:])


def _rest(worker: Hearing | Holding) -> tuple[object, ...]:
    if isinstance(worker, Hearing):
        return (worker.since, worker.doubtful)
    return (worker.left, worker.saying or "", worker.renewal or (), worker.doubtful)
