"""The state machine's rivals: several callers at the same moment, inside one rule.

What they may decide among themselves is taken from the storage's answers; all the rest must be as the oracle says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import permutations
from typing import Any, Final
from uuid import UUID

from attrs import evolve, frozen
from hypothesis import strategies as st
from hypothesis.stateful import rule
from msgspec.structs import replace

from creche._job import FINISHED, Event, Extension, Insertion, Lease, Retention, Settled, Settlement, Upkeep
from creche._lifecycle import SETTLING
from creche.abc import Storage
from creche.testing import _machine_draws as draw
from creche.testing._machine_draws import Draft, Limit
from creche.testing._machine_oracle import Oracle
from creche.testing._machine_promises import UPKEEP, Reach
from creche.testing._machine_rows import StoredRows
from creche.testing._machine_rules import Rules
from creche.testing._machine_session import ALL, Ask, Call, agree, asking, at_once, decided, upkeep

PUTS_OFF: Final = frozenset({Event.RETRY, Event.SNOOZE})


class Rivals(Rules):
    """What several callers do at the same moment."""

    @rule(shared=draw.SHARED, jobs=draw.RIVAL_DRAFTS, after=draw.AFTER)
    def rivals_dispatch(self, *, shared: Draft, jobs: list[Draft], after: float | Limit) -> None:
        """Of any number of callers at once with the same fingerprint or key, exactly one inserts."""
        self.pass_time(after)
        plain = [
            {k: v for k, v in job.items() if k not in {"fingerprint", "idempotency_key", "refresh"}} for job in jobs
        ]
        sent = [self.new_job({**job, **shared}) for job in plain]
        cached = self.cached(sent)
        calls = [asking("insert", [job], now=self.now) for job in sent]
        answers = self.run(self._dispatch, calls)
        answered = {answer[0].job_id for answer in answers}
        self.keep("rival dispatches", Reach(touches=answered | cached, adds=True))

    async def _dispatch(self, calls: Sequence[Ask]) -> list[Any]:
        answers = await at_once(calls, self.storage)
        # Whoever inserted was the first; the others may have come in any order.
        order = sorted(range(len(calls)), key=lambda place: not answers[place][0].inserted)
        expected = {place: await calls[place](self.oracle) for place in order}
        agree("what rival dispatches were answered", [expected[place] for place in range(len(calls))], answers)
        return answers

    @rule(
        queues=draw.SOME_QUEUES,
        limits=st.lists(draw.LIMITS, min_size=2, max_size=3),
        seconds=draw.SECONDS,
        types=draw.SOME_TYPES,
        after=draw.AFTER,
    )
    def rivals_reserve(
        self, *, queues: list[str], limits: list[int], seconds: float, types: list[str] | None, after: float | Limit
    ) -> None:
        """Together they get what one would get who asks for all of it, and no two of them the same job."""
        self.pass_time(after)
        options: dict[str, Any] = {"lease": seconds, "types": types, "now": self.now}
        workers = draw.WORKERS[: len(limits)]
        calls = [
            asking("reserve", queues, limit, worker=worker, nonce=self.new_nonce(), **options)
            for limit, worker in zip(limits, workers, strict=True)
        ]
        together = asking("reserve", queues, sum(limits), worker="", nonce=0, **options)
        expected, *answers = self.run(self._one_and_many, together, calls)
        taken = {job.id: job for answer in answers for job in answer.jobs}
        assert len(taken) == sum(len(answer.jobs) for answer in answers), f"the same job twice: {answers}"
        for answer, limit, worker in zip(answers, limits, workers, strict=True):
            assert len(answer.jobs) <= limit, f"more than {limit}: {answer}"
            assert answer.next_due_in == expected.next_due_in
            self.promises.reserved(answer, self.moment(seconds), self.now)
            for job in answer.jobs:
                if self.oracle.has(job.id):
                    self.oracle.give(job.lease, worker)
        right = {job.id: replace(job, lease=taken[job.id].lease) if job.id in taken else job for job in expected.jobs}
        agree("what rivals reserved together", right, taken)
        self.keep("rival reserves", Reach(events=frozenset({Event.RESERVE}), touches=taken.keys()))
        self.take_over(taken.values())

    @rule(limit=draw.UPKEEP_LIMITS, retention=draw.RETENTION, after=draw.AFTER)
    def rivals_maintain(self, *, limit: int, retention: Retention, after: float | Limit) -> None:
        """Together they do what one would do."""
        self.pass_time(after)
        once = asking("maintain", limit, retention=retention, now=self.now)
        call = partial(upkeep, limit, retention, self.now)
        expected, *answers = self.run(self._one_and_many, call, [once, once], call)
        agree("what rival upkeep did", decided(expected), decided(*answers))
        self.keep("rival upkeep", Reach(events=UPKEEP, touches=None, adds=True, removes=True))

    async def _one_and_many(self, one: Call, many: Sequence[Call], *rest: Call) -> list[Any]:
        """Ask the oracle one thing, and the storage many at once, then the rest."""
        answers = await at_once(many, self.storage)
        return [await one(self.oracle), *answers, *[await call(self.storage) for call in rest]]

    @rule(place=draw.PLACE, acts=draw.ACTS, after=draw.AFTER)
    def all_at_once(self, *, place: int, acts: list[str], after: float | Limit) -> None:
        """Whatever is done to one job at once: what comes of it is what comes of some order."""
        self.pass_time(after)
        lease = self.lease(place)
        deeds = [self.deed(lease, act) for act in acts]
        answers = self.run(at_once, [deed.call for deed in deeds], self.storage)
        seen = self.seen()
        order = self.run(self._order, deeds, answers, seen)
        if order is None:
            raise AssertionError(f"no order of {acts} explains {answers}, and what is kept now: {seen}")
        for turn in order:
            self.report(deeds[turn], answers[turn])
        self.keep(" and ".join(acts), reach_of(acts, lease.job_id))

    async def _order(self, deeds: Sequence[Deed], answers: Sequence[Any], seen: StoredRows) -> Sequence[int] | None:
        """Look for an order that explains what was answered and is kept; let the oracle go the same way.

        If none does so to the letter, one may that leaves it open when a dispatch looked at the job that it joined: one
        that joined what was cancelled just then need not wake the queue in which it stood.
        """
        for latest in (None, seen):
            found = [
                (order, oracle)
                for order in orders(deeds)
                if (oracle := await self._outcome(deeds, order, answers, seen, latest)) is not None
            ]
            if found:
                self.oracle.become_one_of([oracle for _, oracle in found], exact=latest is None)
                return [place for place, _ in found[0][0]]
        return None

    async def _outcome(
        self,
        deeds: Sequence[Deed],
        order: Sequence[tuple[int, Call]],
        answers: Sequence[Any],
        seen: StoredRows,
        latest: StoredRows | None,
    ) -> Oracle | None:
        """Return what the oracle would be after this order, if that is what came of it."""
        oracle = self.oracle.copy()
        expected = {place: await call(oracle) for place, call in order}
        right = agreeing([expected[place] for place in range(len(deeds))], answers, latest)
        return oracle if right and self.expected(oracle) == self.completed(seen, oracle) else None

    def deed(self, lease: Lease, act: str) -> Deed:
        """Return what an act is called, when it is done to the job of this lease."""
        job_id = lease.job_id
        match act:
            case "extend":
                return Deed(asking("extend", [lease], 30.0, now=self.now))
            case "cancel" | "delete":
                return Deed(asking(act, [job_id], **({} if act == "delete" else {"now": self.now})))
            case "revive":
                return Deed(asking("retry", [job_id], now=self.now))
            case "recover":
                return Deed(asking("maintain", ALL, retention=Retention(), now=self.now), skips=job_id)
            case "join":
                return Deed(self.joining(job_id))
            case _:
                kept = draw.UNKEPT if act == "vanish" else None
                event = Event.SUCCEED if act == "vanish" else Event(act)
                settlement = Settlement(lease=lease, event=event, delay=5.0 if event in PUTS_OFF else 0.0)
                call = asking("settle", [settlement], retention=kept, now=self.now)
                return Deed(call, settlement=settlement, retention=kept)

    def joining(self, job_id: UUID) -> Ask:
        """Return a dispatch that joins a job, with a callback; a look at it, if it can't be joined."""
        job = self.expected().jobs.get(job_id)
        if job is not None and job.record.fingerprint is not None:
            draft = {"fingerprint": job.record.fingerprint, "callbacks": draw.CALLBACKS[0]}
            return asking("insert", [self.new_job(draft)], now=self.now)
        if job_id not in self.sent:
            return asking("watch", [job_id])
        again = evolve(self.sent[job_id], callbacks=(self.new_callback(draw.CALLBACKS[0][0]),))
        self.promises.dispatched([again])
        return asking("insert", [again], now=self.now)

    def report(self, deed: Deed, answer: Any) -> None:
        """Let the promises know what was done."""
        if isinstance(answer, Extension):
            self.promises.extended(answer, 30.0, self.now)
        elif isinstance(answer, Settled):
            if deed.settlement is not None:
                self.promises.settled([deed.settlement], answer, deed.retention)
        elif deed.call.method == "insert":
            self.promises.joined(answer)


@frozen
class Deed:
    """One of several things that are done at once.

    Attributes:
        settlement: the end that it is, if it is one; `retention` is what was said with it.
        skips: the job over which it may pass, because somebody else holds the row just now.
    """

    call: Ask
    settlement: Settlement | None = None
    retention: Retention | None = None
    skips: UUID | None = None

    async def passing(self, oracle: Storage) -> Any:
        """Do it as one does who passes over a row."""
        assert isinstance(oracle, Oracle)
        with oracle.without(self.skips):
            return await self.call(oracle)


def agreeing(expected: Sequence[Any], found: Sequence[Any], latest: StoredRows | None = None) -> bool:
    """Whether the answers are the right ones.

    Of upkeep all told, for one may promote what the other has recovered. And a dispatch that joined may say how its job
    stands by now, if `latest` tells: what was done to it just afterwards may be known when the answer is given.
    """
    upkeeps = [[each for each in answers if isinstance(each, Upkeep)] for answers in (expected, found)]
    if decided(*upkeeps[0]) != decided(*upkeeps[1]):
        return False
    pairs = [each for each in zip(expected, found, strict=True) if not isinstance(each[0], Upkeep)]
    return all(right == answer or right == _earlier(answer, right, latest) for right, answer in pairs)


def _earlier(answer: Any, right: Any, latest: StoredRows | None) -> Any:
    """Return what a dispatch was answered as it would have been a moment earlier, if it says how its job stands now, or
    that it was over before it was deleted.
    """
    match answer, right:
        case (Insertion() as late,), (Insertion() as early,) if latest:
            job = latest.jobs.get(late.job_id)
            if job is None:  # it was over, and somebody deleted it
                possible = late.status in FINISHED
            else:
                possible = late.status is job.record.status and late.result in {None, job.record.result}
            if possible:
                return (replace(late, status=early.status, result=early.result),)
        case _:
            pass
    return answer


def reach_of(acts: Collection[str], job_id: UUID) -> Reach:
    """Return how far things reach that are done to one job at once: upkeep to all, a dispatch to whoever answers."""
    return Reach(
        events=frozenset({*SETTLING, *UPKEEP, Event.CANCEL, Event.REVIVE}),
        touches=None if {"recover", "join"} & {*acts} else {job_id},
        adds=True,
        removes="recover" in acts,
        deletes={job_id} if "delete" in acts else set(),
    )


def orders(deeds: Sequence[Deed]) -> Iterator[list[tuple[int, Call]]]:
    """Return in which orders things that are done at once may come to have been done, the simple ones first."""
    for places in permutations(range(len(deeds))):
        yield [(place, deeds[place].call) for place in places]
    for places in permutations(range(len(deeds))):
        if any(deeds[place].skips for place in places):
            yield [(place, deeds[place].passing if deeds[place].skips else deeds[place].call) for place in places]
