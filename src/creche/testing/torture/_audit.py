"""The auditor's checks: what must not have happened, each a generator of objections to a story, in words. Silence is
consent. They are functions of the story alone.
"""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final, TypeAlias

from creche.testing._ledger import Entry
from creche.testing.torture._jobs import EXIT
from creche.testing.torture._overruns import overruns
from creche.testing.torture._story import Attempt, Row, Story

Check: TypeAlias = Callable[[Story], Iterator[str]]

_STATUSES: Final = {"succeeded": "completed", "failed": "failed", "cancelled": "cancelled"}


# --- dispatches -------------------------------------------------------------------------------------


def check_lost(story: Story) -> Iterator[str]:
    """A dispatch that returned is in the database."""
    for receipt in story.all("receipt"):
        if receipt["job"] not in story.known:
            yield f"{receipt['key']} was answered by {receipt['job']}, which is gone"
    for entry in story.all("vanished"):
        yield f"{entry['job']} was not there when it was to be cancelled"


def check_unanswered(story: Story) -> Iterator[str]:
    """Every caller got an answer in the end."""
    over = {entry["key"] for entry in story.all("receipt", "rolled back")}
    for entry in story.all("asked"):
        if entry["key"] not in over and not entry["ask"]["rolled_back"]:
            yield f"{entry['key']} was never answered"


def check_unasked(story: Story) -> Iterator[str]:
    """Each job was asked for, once, and not in a transaction that was rolled back."""
    asks: dict[str | None, Entry] = {entry["key"]: entry["ask"] for entry in story.all("asked")}
    made = Counter(row.key for row in story.rows)
    for row in story.rows:
        ask = asks.get(row.key)
        if ask is None or ask["kind"] != row.kind:
            yield f"{row.id}, {row.kind}, is a job of {row.key}, who did not ask for it"
        elif ask["rolled_back"]:
            yield f"{row.id} is there, though {row.key} rolled it back"
    yield from (f"{key} has {count} jobs" for key, count in made.items() if count > 1)
    asked = {entry["job"] for entry in story.all("cancelling")}
    for row in story.rows:
        if row.status == "cancelled" and row.id not in asked:
            yield f"{row.id} is cancelled, and nobody asked for it"


# --- ends -------------------------------------------------------------------------------------------


def check_left_over(story: Story) -> Iterator[str]:
    """After the faults, every job came to an end."""
    for row in story.rows:
        if row.active:
            yield f"{row.id}, {row.kind}, is {row.status} after {row.attempts} attempts"


def check_undone(story: Story) -> Iterator[str]:
    """An end that was accepted is the job's end."""
    for attempt in _accepted(story):
        row = story.known.get(attempt.job)
        if row is None or row.status != _STATUSES[attempt.outcome] or row.lease != attempt.lease:
            now = "gone" if row is None else f"{row.status} under {row.lease}"
            yield f"{attempt.job}: that it {attempt.outcome} under {attempt.lease} was accepted, and it is {now}"


def check_settled_twice(story: Story) -> Iterator[str]:
    """A job ends once, and does not run again after that."""
    ends = defaultdict[str, list[Attempt]](list)
    for attempt in _accepted(story):
        ends[attempt.job].append(attempt)
    for job, accepted in ends.items():
        if len(accepted) > 1:
            yield f"{job} was settled under {' and '.join(each.lease for each in accepted)}"
        for later in story.attempts[job]:
            if later.began > (accepted[0].acked or 0.0) and later is not accepted[0]:
                yield f"{job} ran again in {later.who} after {accepted[0].who} had settled it"
    for (job, lease), acks in _acks(story).items():
        if acks > 1:
            yield f"{job} was acknowledged {acks} times under {lease}"


def check_results(story: Story) -> Iterator[str]:
    """What is completed was run, by whoever held the lease that is on the row, and has that run's result."""
    runs = {(attempt.job, attempt.lease): attempt for attempts in story.attempts.values() for attempt in attempts}
    for row in story.rows:
        if row.status != "completed":
            continue
        run = runs.get((row.id, row.lease))
        if run is None or (run.how not in {"returned", "gave up"} and row.kind != "effect"):
            yield f"{row.id}, {row.kind}, is completed under {row.lease}, where no run came to its end"
        elif run.how != "gave up" and (row.result is None or row.result.get("lease") != row.lease):
            yield f"{row.id}, {row.kind}, is completed under {row.lease} with the result {row.result}"


def check_effects(story: Story) -> Iterator[str]:
    """What a job wrote in its own transaction is there once if it is completed, and else not at all."""
    written = defaultdict[str, list[int]](list)
    for job, _, attempt in story.effects:
        written[job].append(attempt)
    for row in story.rows:
        expected = [row.attempts] if row.kind == "effect" and row.status == "completed" else []
        if written.pop(row.id, []) != expected:
            yield f"{row.id}, {row.kind}, is {row.status}, and its rows are not those of attempts {expected}"
    yield from (f"{job} wrote a row, and is gone" for job in written)


def check_buried(story: Story) -> Iterator[str]:
    """What failed has used all its attempts, and is a dead letter; nothing else is."""
    failed = {row.id: row for row in story.rows if row.status == "failed"}
    for row in failed.values():
        if row.attempts < row.limit:
            yield f"{row.id}, {row.kind}, failed after {row.attempts} of {row.limit} attempts"
    if set(story.dead) != failed.keys() or len(story.dead) != len(failed):
        yield f"{len(story.dead)} dead letters for {len(failed)} jobs that failed"


# --- leases -----------------------------------------------------------------------------------------


def check_two_leases(story: Story) -> Iterator[str]:
    """At most one valid lease per job, by what its holders knew."""
    for attempts in story.attempts.values():
        for former, latter in pairwise(attempts):
            if latter.began < former.valid_until:
                early = 1_000 * (former.valid_until - latter.began)
                yield f"{former.job} began in {latter.who} {early:.0f} ms before {former.who} had to let go of it"


def check_alive(story: Story) -> Iterator[str]:
    """No handler is alive when its lease is over, unless it or its process was hindered in ending."""
    for overrun in overruns(story):
        if overrun.unexcused:
            who = f"{overrun.attempt.job}, {overrun.attempt.kind}, in {overrun.attempt.who}"
            why = overrun.why or "nobody knows why"
            yield f"{who}: alive {1_000 * overrun.awake:.0f} ms after its own deadline: {why}"


def check_attempts(story: Story) -> Iterator[str]:
    """No job has more attempts than it may have; none is counted for two leases, unless the first was given back."""
    for row in story.rows:
        most = max([row.attempts, *(attempt.number for attempt in story.attempts.get(row.id, ()))])
        if most > row.limit:
            yield f"{row.id}, {row.kind}, had {most} of {row.limit} attempts"
    for attempts in story.attempts.values():
        for former, latter in pairwise(attempts):
            if latter.number <= former.number and former.outcome != "released":
                numbers = f"{former.number} in {former.who}, then {latter.number} in {latter.who}"
                yield f"{former.job} ran as attempt {numbers}"


def check_single_flight(story: Story) -> Iterator[str]:
    """At most one active job per fingerprint: seen in the database at once, and by when they ran."""
    for entry in story.all("rivals"):
        yield f"{entry['count']} jobs were active with the fingerprint {entry['fingerprint']}"
    flights = defaultdict[str, list[Row]](list)
    for row in story.rows:
        if row.fingerprint and row.id in story.attempts:
            flights[row.fingerprint].append(row)
    for fingerprint, rows in flights.items():
        runs = sorted((story.attempts[row.id] for row in rows), key=lambda attempts: attempts[0].began)
        for former, latter in pairwise(runs):
            over = former[-1].valid_until
            if latter[0].began < over:
                yield f"{former[0].job} and {latter[0].job}, both of {fingerprint}, ran at the same time"


# --- the run itself ---------------------------------------------------------------------------------


def check_processes(story: Story) -> Iterator[str]:
    """Who was not killed ended well: no outage ends a worker, and no dispatcher."""
    told = {entry["name"] for entry in story.all("told")}
    exits = {entry["who"] for entry in story.all("exits")}
    unopened = {entry["who"] for entry in story.all("unopened")}
    for entry in story.all("ended"):
        name, code = entry["name"], entry["code"]
        role = name.partition("-")[0]
        if role in {"worker", "elder"}:
            asked = name in told or entry["at"] >= story.dismissed > 0
            # One that was asked to end before it listened for signals is ended by the signal itself.
            well = code == EXIT if name in exits else code in ({0, -signal.SIGTERM} if asked else set[int]())
            well = well or (code == 0 and name in unopened)
        else:
            well = code == 0
        if not well:
            yield f"{name} ended with {code}"
    ended = {entry["name"] for entry in story.all("ended", "killed")}
    for entry in story.all("born"):
        if entry["name"] not in ended and not entry["name"].startswith("auditor-"):
            yield f"{entry['name']} did not end"


def check_exercise(story: Story) -> Iterator[str]:
    """Something happened: without faults and unknown outcomes there is nothing to see."""
    if not story.all("mended"):
        yield "nothing broke"
    if not story.all("unknown"):
        yield "no outcome was unknown to whoever dispatched"
    if not any(row.status == "completed" for row in story.rows):
        yield "nothing was completed"


CHECKS: Final[Mapping[str, Check]] = {
    "lost": check_lost,
    "never answered": check_unanswered,
    "jobs that nobody asked for": check_unasked,
    "not ended in time": check_left_over,
    "ends that were accepted, and undone": check_undone,
    "settled twice": check_settled_twice,
    "completed without a run": check_results,
    "effects that are not there exactly once": check_effects,
    "buried too early": check_buried,
    "two valid leases at once": check_two_leases,
    "handlers alive past their lease": check_alive,
    "attempts over the limit": check_attempts,
    "two active per fingerprint": check_single_flight,
    "processes that ended badly": check_processes,
    "reasons to doubt this run": check_exercise,
}

# What a server that does not wait for its disk may do.
EXCUSED: Final = frozenset(
    {"lost", "ends that were accepted, and undone", "settled twice", "effects that are not there exactly once"}
)


def audit(story: Story) -> dict[str, list[str]]:
    """Return the objections of each check."""
    return {name: list(check(story)) for name, check in CHECKS.items()}


def _accepted(story: Story) -> Iterator[Attempt]:
    """Yield the attempts whose end ended the job, and was known to be accepted."""
    for attempts in story.attempts.values():
        for attempt in attempts:
            if attempt.acked is not None and attempt.outcome in _STATUSES:
                yield attempt


def _acks(story: Story) -> Counter[tuple[str, str]]:
    return Counter((entry["job"], entry["lease"]) for entry in story.all("acked") if entry["lease"] is not None)
