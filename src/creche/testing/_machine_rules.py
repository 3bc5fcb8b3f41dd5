"""The state machine's rules: what can be done to a storage, one thing after another. `_machine_rivals` has the rest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from attrs import evolve
from hypothesis.stateful import initialize, rule
from msgspec.structs import replace

from creche._job import (
    Event,
    JobFilter,
    Lease,
    NewJob,
    Presence,
    Progress,
    Retention,
    Settled,
    Settlement,
)
from creche._lifecycle import SETTLING
from creche.abc import Storage
from creche.testing import _machine_draws as draw
from creche.testing._machine_draws import START, Draft, Limit, Lost
from creche.testing._machine_promises import UPKEEP, Reach
from creche.testing._machine_session import ALL, Call, Session, asking, settle_in_one, upkeep


class Rules(Session):
    """What can be done to a storage by one caller after another, who may lose the answer and ask again."""

    # --- how a program begins: with something that waits, something that runs, and something that is over ------

    @initialize(jobs=draw.FIRST_DRAFTS)
    def some_wait(self, *, jobs: list[Draft]) -> None:
        self.insert(self.new_jobs(jobs))

    @initialize(jobs=draw.FIRST_DRAFTS, seconds=draw.SECONDS)
    def some_run(self, *, jobs: list[Draft], seconds: float) -> None:
        self.insert(self.new_jobs(jobs))
        self.take(list(draw.QUEUES), ALL, seconds, draw.WORKERS[0])

    @initialize(jobs=draw.OVER_DRAFTS, end=draw.FIRST_END)
    def some_are_over(self, *, jobs: list[Draft], end: Draft) -> None:
        self.insert(self.new_jobs(jobs))
        leases = self.take(list(draw.QUEUES), ALL, 30.0, draw.WORKERS[0])
        self.end([self.settlement(lease, end) for lease in leases])

    # --- dispatch -----------------------------------------------------------------------------------

    @rule(jobs=draw.JOB_DRAFTS, after=draw.AFTER, lost=draw.LOST)
    def dispatch(self, *, jobs: list[Draft], after: float | Limit, lost: Lost) -> None:
        self.pass_time(after)
        self.insert(self.new_jobs(jobs), lost=lost)

    @rule(places=draw.PLACES, after=draw.AFTER, lost=draw.LOST)
    def dispatch_again(self, *, places: list[int], after: float | Limit, lost: Lost) -> None:
        self.pass_time(after)
        jobs = dict.fromkeys(self.jobs(places))
        self.insert([self.sent[job_id] for job_id in jobs if job_id in self.sent], lost=lost)

    def insert(self, jobs: Sequence[NewJob], *, lost: Lost = Lost.NOTHING) -> None:
        cached = self.cached(jobs)
        answers = self.ask(asking("insert", jobs, now=self.now), lost=lost, repeats=unentangled(jobs))
        answered = {each.job_id for answer in answers for each in answer}
        self.keep("dispatch", Reach(touches=answered | cached, adds=True))

    def cached(self, jobs: Sequence[NewJob]) -> set[UUID]:
        """Return the jobs whose results answer no more, because somebody wants fresh ones."""
        refreshed = {job.fingerprint for job in jobs if job.refresh and job.fingerprint}
        if not refreshed:
            return set()
        kept = self.expected().jobs.values()
        return {job.record.id for job in kept if job.single_flight and job.record.fingerprint in refreshed}

    # --- leases -------------------------------------------------------------------------------------

    @rule(
        queues=draw.SOME_QUEUES,
        limit=draw.LIMITS,
        seconds=draw.SECONDS,
        worker=draw.WORKER,
        types=draw.SOME_TYPES,
        after=draw.AFTER,
        lost=draw.LOST,
    )
    def reserve(
        self,
        *,
        queues: list[str],
        limit: int,
        seconds: float,
        worker: str,
        types: list[str] | None,
        after: float | Limit,
        lost: Lost,
    ) -> None:
        self.pass_time(after)
        self.take(queues, limit, seconds, worker, types=types, lost=lost)

    def take(
        self,
        queues: list[str],
        limit: int,
        seconds: float,
        worker: str,
        *,
        types: list[str] | None = None,
        lost: Lost = Lost.NOTHING,
    ) -> list[Lease]:
        options = {"lease": seconds, "worker": worker, "nonce": self.new_nonce(), "types": types, "now": self.now}
        call = asking("reserve", queues, limit, **options)
        answers = self.ask(call, lost=lost, repeats=False)
        for answer in answers:
            assert len(answer.jobs) <= limit
            self.promises.reserved(answer, self.moment(seconds), self.now)
        taken = {job.id for answer in answers for job in answer.jobs}
        self.keep("reserve", Reach(events=frozenset({Event.RESERVE}), touches=taken))
        self.take_over(answers[-1].jobs)
        return [job.lease for job in answers[-1].jobs]

    @rule(
        places=draw.PLACES,
        seconds=draw.SPAN,
        progress=draw.PROGRESS,
        forged=draw.FORGED,
        after=draw.AFTER,
        lost=draw.LOST,
    )
    def extend(
        self,
        *,
        places: list[int],
        seconds: float,
        progress: tuple[float, str] | None,
        forged: tuple[int, int | None] | None,
        after: float | Limit,
        lost: Lost,
    ) -> None:
        self.pass_time(after)
        batch = with_a_forged_one([self.lease(place) for place in places], forged)
        said = progress and {lease: Progress(fraction=progress[0], message=progress[1]) for lease in batch[::2]}
        answers = self.ask(asking("extend", batch, seconds, progress=said, now=self.now), lost=lost)
        for answer in answers:
            self.promises.extended(answer, seconds, self.now)
        self.keep("extend", Reach(touches={lease.job_id for answer in answers for lease in answer.held}))

    @rule(ends=draw.END_LIST, forged=draw.FORGED, retention=draw.SETTLE_RETENTION, after=draw.AFTER, lost=draw.LOST)
    def settle(
        self,
        *,
        ends: list[tuple[int, Draft]],
        forged: tuple[int, int | None] | None,
        retention: Retention | None,
        after: float | Limit,
        lost: Lost,
    ) -> None:
        self.pass_time(after)
        by_lease = {self.lease(place): end for place, end in reversed(ends)}
        batch = [
            self.settlement(lease, by_lease.get(lease, ends[0][1]))
            for lease in with_a_forged_one([self.lease(place) for place, _ in ends], forged)
        ]
        self.end(batch, retention=retention, lost=lost)

    @rule(
        queues=draw.SOME_QUEUES,
        limit=draw.LIMITS,
        end=draw.WORK_END,
        retention=draw.SETTLE_RETENTION,
        watcher=draw.SELDOM_A_WATCHER,
        forged=draw.FORGED,
        after=draw.AFTER,
        lost=draw.LOST,
    )
    def work(
        self,
        *,
        queues: list[str],
        limit: int,
        end: Draft,
        retention: Retention | None,
        watcher: str | None,
        forged: tuple[int, int | None] | None,
        after: float | Limit,
        lost: Lost,
    ) -> None:
        """What workers do nearly always: what was taken ends. Just before, somebody may begin to wait for a job, or end
        one that others hold.
        """
        self.pass_time(after)
        leases = self.take(queues, limit, 30.0, draw.WORKERS[0])
        if forged is not None and leases:
            other = with_a_forged_one(leases[:1], forged)[-1]
            self.end([self.settlement(other, end)], retention=retention)
        if watcher is not None:
            self.watch([lease.job_id for lease in leases[:1]], watcher)
        self.end([self.settlement(lease, end) for lease in leases], retention=retention, lost=lost)

    def end(
        self, batch: Sequence[Settlement], *, retention: Retention | None = None, lost: Lost = Lost.NOTHING
    ) -> None:
        answers = self.ask(asking("settle", batch, retention=retention, now=self.now), lost=lost)
        for answer in answers:
            self.promises.settled(batch, answer, retention)
        accepted = {lease.job_id for answer in answers for lease in answer.accepted}
        self.keep("settle", Reach(events=SETTLING, touches=accepted, adds=True))

    @rule(place=draw.PLACE, end=draw.END, after=draw.AFTER, lost=draw.LOST_IN_TRANSACTION)
    def settle_in_a_transaction(self, *, place: int, end: Draft, after: float | Limit, lost: Lost) -> None:
        self.pass_time(after)
        lease = self.lease(place)
        settlement = self.settlement(lease, end)
        answers = self.ask(partial(settle_in_one, settlement, self.now, lost), lost=lost)
        touches = {lease.job_id} if [True] in answers else set[UUID]()
        if touches:
            self.promises.settled([settlement], Settled(accepted=frozenset({lease}), lost=frozenset()))
        self.keep("settle in a transaction", Reach(events=SETTLING, touches=touches, adds=True))

    def settlement(self, lease: Lease, draft: Draft) -> Settlement:
        options = dict(draft)
        if (seconds := options.pop("due", None)) is not None:
            options["available_at"] = self.moment(seconds)
        return Settlement(lease=lease, **options)

    # --- upkeep -------------------------------------------------------------------------------------

    @rule(limit=draw.UPKEEP_LIMITS, retention=draw.RETENTION, after=draw.AFTER, lost=draw.LOST)
    def maintain(self, *, limit: int, retention: Retention, after: float | Limit, lost: Lost) -> None:
        self.pass_time(after)
        self.ask(partial(upkeep, limit, retention, self.now), lost=lost)
        self.keep("maintain", Reach(events=UPKEEP, touches=None, adds=True, removes=True))

    # --- people -------------------------------------------------------------------------------------

    @rule(deed=draw.DEED, places=draw.PLACES, after=draw.AFTER, lost=draw.LOST)
    def by_hand(self, *, deed: str, places: list[int], after: float | Limit, lost: Lost) -> None:
        """What people do to jobs."""
        self.pass_time(after)
        jobs = self.jobs(places)
        if deed == "delete":
            self.ask(asking(deed, jobs))  # sent again it finds nothing, and says so
        else:
            # Of a callback that isn't written yet, the first call may not know what the second one knows.
            known = all(self.oracle.has(job_id) or job_id in self.sent for job_id in jobs)
            self.ask(asking(deed, jobs, now=self.now), lost=lost, repeats=known)
        events = {"cancel": {Event.CANCEL}, "retry": {Event.REVIVE}, "delete": set[Event]()}[deed]
        gone = jobs if deed == "delete" else ()
        self.keep(deed, Reach(events=frozenset(events), touches=jobs, adds=deed == "cancel", deletes=gone))

    @rule(at=draw.VIEW, where=draw.FILTERS, places=draw.PLACES, watcher=draw.WATCHER, after=draw.AFTER)
    def look(self, *, at: str, where: JobFilter, places: list[int], watcher: str | None, after: float | Limit) -> None:
        self.pass_time(after)
        jobs = self.jobs(places)
        views: dict[str, list[Call]] = {
            "jobs": [asking("list", where, 3, before=jobs[0]), asking("list", where, ALL), asking("find", jobs)],
            "dead letters": [asking("dead_letters", ALL), asking("dead_letters", 2, before=jobs[0])],
            "queues": [asking("stats", now=self.now)],
            # Those whose time has run out since the start are there, if no upkeep has forgotten them.
            "workers": [partial(_workers, now) for now in (self.now, START)],
            "ends": [],
        }
        for call in views[at]:
            self.ask(call)
        if at == "ends":
            self.watch(jobs[1:] or jobs, watcher, over=jobs[:2])
        self.keep(f"a look at {at}", Reach())

    def watch(self, jobs: Sequence[UUID], watcher: str | None, *, over: Sequence[UUID] = ()) -> None:
        self.ask(asking("watch", jobs, watcher=watcher, over=over))
        if watcher is not None:
            self.promises.watched(watcher, jobs, over)

    @rule(order=draw.ORDER, after=draw.AFTER, lost=draw.LOST)
    def operate(self, *, order: tuple[str, Any, Any], after: float | Limit, lost: Lost) -> None:
        """What people set of queues, and workers say of themselves."""
        self.pass_time(after)
        match order:
            case "announce", Presence() as presence, ttl:
                call = asking("announce", presence, ttl, now=self.now)
            case "set_retention", queue, retention:
                call = asking("set_retention", queue, retention)
                self.promises.uses.keeps(queue, retention)
            case "pause", queues, _:
                call = asking("pause", queues, now=self.now)
            case method, argument, _:
                call = asking(method, argument)
        self.ask(call, lost=lost)
        self.ask(asking("stats", now=self.now))
        self.ask(partial(_workers, self.now))
        self.keep(order[0], Reach())


def unentangled(jobs: Sequence[NewJob]) -> bool:
    """Whether no job of a batch takes what another one joined by, or left unused: then that one, sent again, would find
    another row in its place, and bring its callbacks there.
    """
    different = {job.id: job for job in jobs}.values()
    keys = [(job.queue_name, job.idempotency_key) for job in different if job.idempotency_key is not None]
    flights = [job.fingerprint for job in different if job.fingerprint is not None]
    refreshed = {job.fingerprint for job in different if job.refresh}
    return len(set(keys)) == len(keys) and all(flights.count(each) < 2 for each in flights if each in refreshed)


def with_a_forged_one(leases: Sequence[Lease], forged: tuple[int, int | None] | None) -> list[Lease]:
    """Return each lease once, and one more that nobody ever had, if that is drawn."""
    known = list(dict.fromkeys(leases))
    if forged is not None:
        off, nonce = forged
        lease = known[0]
        known.append(replace(lease, token=lease.token + off, nonce=lease.nonce if nonce is None else nonce))
    return known


async def _workers(now: Any, storage: Storage) -> list[Any]:
    """Who is there; what is left of a lease is a difference, of which the last bits are nobody's promise."""
    return [
        evolve(worker, jobs=tuple(evolve(job, lease_left=round(job.lease_left, 6)) for job in worker.jobs))
        for worker in await storage.workers(now=now)
    ]
