"""SQLite against the oracle: whatever is done to both, in whatever order, both answer, keep and wake the same."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import anyio
import msgspec
import pytest
from attrs import evolve

from creche._job import (
    Event,
    Failure,
    FollowUp,
    JobFilter,
    Lease,
    NewJob,
    On,
    Origin,
    Progress,
    Reservation,
    Retention,
    Settlement,
    Status,
    Upkeep,
)
from creche._lifecycle import SETTLING
from creche.abc import Storage
from creche.storage import _rows
from creche.storage._rows import attempt_errors
from creche.storage.memory import MemoryStorage
from creche.storage.sqlite import SQLiteStorage

Call: TypeAlias = Callable[[Storage], Awaitable[Any]]

SEEDS: Final = 16
STEPS: Final = 80

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
QUEUES: Final = ("a", "A", "a ", "ä")
WATCHERS: Final = ("w1", "w2")
TYPES: Final = ("t", "T", "u")
KEYS: Final = (None, None, None, "k", "K", "k ", "l", "it's")
FINGERPRINTS: Final = (None, None, *(sha256(bytes([n])).digest() for n in range(5)))
PAYLOADS: Final = (b"{}", b'{"a":1.0,"a":[2,{}]}', "\"\\u0000\\\\ 'quoted' %s ä€\U0001f423\"".encode())
RESULTS: Final = (None, b"null", b'{"n":10000000000000000000000.0}', '"it\'s \\"so\\" \\u0000\U0001f423"'.encode())
HEADS: Final = (("[", "]"), ('{"it\'s \\"\\\\\\u0000 é\U0001f423": ', " }"), ('"\\n"', None), ("", ""))
FAILURES: Final = (
    None,
    Failure(type="E", message='it\'s % \\ "quoted" ä\U0001f423', traceback="line\nline\t\x00"),
    Failure(type="ValueError", message="m" * 700),
)
DEPTH: Final = 2
SPANS: Final = (0.0, 0.000001, 0.5, 1.0, 1.9999995, 5.0, 30.0, 60.0)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_both_answer_keep_and_wake_the_same(tmp_path: Path, seed: int) -> None:
    anyio.run(compare, tmp_path / "jobs.db", seed)


async def compare(path: Path, seed: int, steps: int = STEPS) -> None:
    names = [*QUEUES, *WATCHERS]
    async with (
        MemoryStorage() as memory,
        SQLiteStorage(path, synchronous="NORMAL") as sqlite,
        memory.listen(names) as expected_wakes,
        sqlite.listen(names) as found_wakes,
    ):
        play = Play(random.Random(seed), memory)
        with closing(sqlite3.connect(path)) as raw:
            for step in range(steps):
                name, call = play.next()
                expected, found = await call(memory), await call(sqlite)
                assert found == expected, difference(step, name, expected, found)
                play.hear(expected)
                for look in play.looks():
                    expected, found = await look(memory), await look(sqlite)
                    assert found == expected, difference(step, name, expected, found)
                assert taken(found_wakes) == taken(expected_wakes), f"step {step}, {name}"
                expected, found = insights(memory, play.now), behind(raw, play.now)
                assert found == expected, difference(step, name, expected, found)


def taken(listener: Any) -> set[str]:
    """Take a listener's wakes without waiting for any."""
    woken, listener._woken = listener._woken, set[str]()
    return set(woken)


def difference(step: int, name: str, expected: Any, found: Any) -> str:
    """Say what came of a step, and leave out what is equal."""
    one, other = each(expected), each(found)
    less, more = [value for value in one if value not in other], [value for value in other if value not in one]
    return f"step {step}, {name}\n- {less}\n+ {more}"


def each(answer: Any) -> list[Any]:
    if items := getattr(answer, "items", None):
        return list(items())
    return list(cast("Sequence[Any]", answer)) if isinstance(answer, list | tuple) else [answer]


class Play:
    """What is done next, drawn at random, with an eye on what would be remarkable."""

    def __init__(self, dice: random.Random, memory: MemoryStorage) -> None:
        self.now = START
        self._dice = dice
        self._memory = memory
        self._ids: list[UUID] = []
        self._sent: list[UUID] = []  # those of them that are no callback's
        self._callbacks: list[FollowUp] = []
        self._leases: list[Lease] = []
        self._moves: list[tuple[int, Callable[[], partial[Coroutine[Any, Any, Any]]]]] = [
            (6, self._insert),
            (5, self._reserve),
            (5, self._settle),
            (2, self._extend),
            (3, self._maintain),
            (2, self._cancel),
            (2, self._retry),
            (2, self._watch),
            (2, self._transact),
        ]

    def next(self) -> tuple[str, Call]:
        """Move the clock, and draw the next call."""
        self._pass_time()
        weights, moves = zip(*self._moves, strict=True)
        (move,) = self._dice.choices(moves, weights)
        call = move()
        return f"{move.__name__}: {call.args}", call

    def hear(self, answer: object) -> None:
        """Remember the leases that a reservation gave."""
        self._leases += [job.lease for job in getattr(answer, "jobs", ())]

    def looks(self) -> Sequence[Call]:
        """How both are asked what they keep."""
        drawn = self._draw
        before = drawn([None, *self._ids])
        where = JobFilter(
            queues=drawn([None, frozenset(self._some(QUEUES))]),
            types=drawn([None, frozenset(self._some(TYPES))]),
            statuses=drawn([None, frozenset(self._some(list(Status)))]),
        )
        return [
            lambda storage: storage.list(JobFilter(), 1_000),
            lambda storage: storage.dead_letters(1_000),
            lambda storage: storage.stats(now=self.now),
            lambda storage: storage.list(where, 3, before=before),
            lambda storage: storage.dead_letters(2, before=before),
            lambda storage: storage.find(self._ids[-5:]),
            lambda storage: storage.watch(self._ids),
        ]

    def _pass_time(self) -> None:
        """By nothing, by anything, or to one side of a limit, or exactly to it."""
        limits = [
            limit
            for row in self._memory._rows.values()
            for limit in (row.record.available_at, row.record.locked_until, row.record.result_expires_at)
            if limit is not None and limit > self.now
        ]
        match self._dice.randrange(4):
            case 0 if limits:
                limit = self._draw(limits) if self._dice.random() < 0.3 else min(limits)
                self.now = max(
                    self.now, min(limit, self.now + timedelta(hours=1)) + self._dice.randint(-1, 1) * MICROSECOND
                )
            case 1:
                self.now += timedelta(seconds=self._draw(SPANS))
            case 2:
                self.now += timedelta(microseconds=self._dice.randrange(3_000_000))
            case _:
                pass

    def _draw(self, choices: Sequence[Any]) -> Any:
        return self._dice.choice(choices)

    def _some(self, choices: Collection[Any]) -> list[Any]:
        return self._dice.sample(list(choices), self._dice.randint(0, len(choices)))

    def _number(self) -> int:
        return self._dice.choice([1, 1, 1, 2, 3, 8])

    def _moment(self) -> datetime:
        moment: datetime = self.now + self._draw([-1, 1]) * timedelta(seconds=self._draw(SPANS))
        return moment

    def _id(self) -> UUID:
        job_id = UUID(int=self._dice.getrandbits(128))
        self._ids.append(job_id)
        return job_id

    # --- what is done -------------------------------------------------------------------------------

    def _insert(self) -> partial[Coroutine[Any, Any, Any]]:
        jobs = {job.id: job for job in [self._new_job() for _ in range(self._number())]}
        # An id that stands twice in one batch is the same job twice, with nothing in between that could take its place.
        batch = [twin for job in jobs.values() for twin in [job] * self._draw([1, 1, 1, 2])]
        return _call("insert", batch, now=self.now)

    def _new_job(self) -> NewJob:
        drawn = self._draw
        again = self._sent and self._dice.random() < 0.15
        job_id = drawn(self._sent) if again else self._id()
        self._sent.append(job_id)
        due: dict[str, Any] = drawn([{}, {}, {"delay": drawn(SPANS)}, {"available_at": self._moment()}])
        plain = self._dice.random() < 0.2
        return NewJob(
            id=job_id,
            queue_name=drawn(QUEUES),
            type=drawn(TYPES),
            payload=drawn(PAYLOADS),
            priority=drawn([0, 0, 0, 1, -100, 100]),
            max_attempts=drawn([1, 2, 3, 25]),
            idempotency_key=None if plain else drawn(KEYS),
            fingerprint=None if plain else drawn(FINGERPRINTS),
            result_ttl=drawn([None, *SPANS]),
            refresh=drawn([False, False, True]),
            callbacks=tuple(self._callback(DEPTH) for _ in range(drawn([0, 0, 1, 1, 2, 3]))),
            origin=drawn(
                [
                    None,
                    None,
                    Origin(job_id=UUID(int=1), type="it's", queue_name="ä", status=Status.FAILED, error=FAILURES[1]),
                ]
            ),
            **due,
        )

    def _callback(self, depth: int) -> FollowUp:
        drawn = self._draw
        written = [each for each in self._callbacks if each.id in self._memory._rows]
        if written and depth == DEPTH and self._dice.random() < 0.15:
            return cast("FollowUp", drawn(written))  # one that is a job by now, so that there is nothing to write
        head, tail = drawn(HEADS)
        callback = FollowUp(
            id=self._id(),
            type=drawn(TYPES),
            queue_name=drawn(QUEUES),
            priority=drawn([0, 5, -5]),
            max_attempts=drawn([1, 2, 3]),
            on=drawn(list(On)),
            head=head,
            tail=tail,
            then=tuple(self._callback(depth - 1) for _ in range(drawn([0, 0, 1, 2]))) if depth else (),
        )
        self._callbacks.append(callback)
        return callback

    def _reserve(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call(
            "reserve",
            self._some(QUEUES) or ["a"],
            self._number(),
            lease=self._draw([0.000001, 0.5, 5.0, 30.0]),
            worker="w's ä",
            nonce=self._dice.getrandbits(64) - (1 << 63),
            types=self._draw([None, None, self._some(TYPES)]),
            now=self.now,
        )

    def _some_leases(self) -> list[Lease]:
        """Held ones and lost ones, and those that nobody ever had."""
        known = list(dict.fromkeys(self._leases[-12:] + self._some(self._leases)[:3]))
        leases = self._dice.sample(known, min(len(known), self._number() + 1))
        forged = [
            Lease(job_id=lease.job_id, token=lease.token + self._draw([0, 1, -1]), nonce=self._draw([0, lease.nonce]))
            for lease in leases
            if self._dice.random() < 0.1
        ]
        return list(dict.fromkeys([*leases, *forged]))

    def _extend(self) -> partial[Coroutine[Any, Any, Any]]:
        leases = self._some_leases()
        progress = {
            lease: Progress(fraction=self._draw([0, 0.1, 1 / 3, 1]), message=self._draw(["", "it's ä\U0001f423"]))
            for lease in self._some(leases)
        }
        return _call("extend", leases, self._draw(SPANS), progress=self._draw([None, progress]), now=self.now)

    def _settle(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("settle", [self._settlement(lease) for lease in self._some_leases()], now=self.now)

    def _transact(self) -> partial[Coroutine[Any, Any, Any]]:
        leases = self._some_leases()[:1]
        return partial(_transact, [self._settlement(lease) for lease in leases], self.now)

    def _settlement(self, lease: Lease) -> Settlement:
        event = self._draw([*sorted(SETTLING), Event.SUCCEED, Event.FAIL])
        due: dict[str, Any] = {}
        if event in {Event.RETRY, Event.SNOOZE}:
            due = {"delay": self._draw(SPANS)}
        if event is Event.SNOOZE:
            due = self._draw([due, {"available_at": self._moment()}])
        fails = event in {Event.RETRY, Event.FAIL, Event.DISCARD}
        return Settlement(
            lease=lease,
            event=event,
            result=self._draw(RESULTS) if event is Event.SUCCEED else None,
            error=self._draw(FAILURES) if fails else None,
            **due,
        )

    def _maintain(self) -> partial[Coroutine[Any, Any, Any]]:
        kept = [*SPANS, 86_400.0, 86_400.0]
        retention = Retention(completed=self._draw(kept), failed=self._draw(kept), cancelled=self._draw(kept))
        limit = self._draw([1, 2, 1_000, 1_000])
        return partial(_maintain, limit, retention, self.now)

    def _known(self) -> list[UUID]:
        ids = self._dice.sample(self._ids, min(len(self._ids), self._number() + 1))
        return [*dict.fromkeys(ids), UUID(int=self._dice.getrandbits(128))]

    def _cancel(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("cancel", self._known(), now=self.now)

    def _retry(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("retry", self._known(), now=self.now)

    def _watch(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("watch", self._known(), watcher=self._draw([None, *WATCHERS]), over=self._known())


def _call(method: str, *arguments: Any, **options: Any) -> partial[Coroutine[Any, Any, Any]]:
    return partial(_ask, method, arguments, options)


async def _ask(method: str, arguments: tuple[Any, ...], options: dict[str, Any], storage: Storage) -> Any:
    answer = await getattr(storage, method)(*arguments, **options)
    # A sequence is a sequence: that one is a list and the other a tuple means nothing.
    if isinstance(answer, Reservation):
        return evolve(answer, jobs=tuple(answer.jobs))
    return tuple(answer) if method == "insert" else answer


async def _transact(settlements: Sequence[Settlement], now: datetime, storage: Storage) -> bool:
    """End an attempt in a transaction."""
    async with storage.transaction() as shared:
        return all([await shared.settle(settlement, now=now) for settlement in settlements])


async def _maintain(limit: int, retention: Retention, now: datetime, storage: Storage) -> Upkeep:
    """Until there is nothing more to do, for which of many come first is nobody's promise; return the sums.

    Once more without a limit for the dead letters, which no count tells of.
    """
    done = {"recovered": 0, "buried": 0, "promoted": 0, "pruned": 0}
    while True:
        upkeep = await storage.maintain(limit, retention=retention, now=now)
        counts = {name: getattr(upkeep, name) for name in done}
        assert max(counts.values()) <= limit
        done = {name: count + counts[name] for name, count in done.items()}
        if not any(counts.values()):
            break
    upkeep = await storage.maintain(1_000, retention=retention, now=now)
    return Upkeep(**done, next_due_in=upkeep.next_due_in, next_expiry_in=upkeep.next_expiry_in)


# --- what only the contract looks at ----------------------------------------------------------------


def insights(memory: MemoryStorage, now: datetime) -> dict[UUID, object]:
    """Of each row its fence, whether its fingerprint is taken, all its errors, and its callbacks."""
    return {
        job_id: (
            row.token,
            row.nonce,
            row.single_flight and not _over(row.record.result_expires_at, now),
            tuple(row.errors),
            _rows.callbacks_document(row.callbacks),
        )
        for job_id, row in memory._rows.items()
    }


def behind(raw: sqlite3.Connection, now: datetime) -> dict[UUID, object]:
    """The same, of SQLite's rows."""
    rows = raw.execute(
        "SELECT id, token, nonce, single_flight, result_expires_at, errors, callbacks FROM creche_jobs"
    ).fetchall()
    return {
        UUID(job_id): (
            token,
            nonce,
            bool(flies) and not _over(None if expiry is None else EPOCH + expiry * MICROSECOND, now),
            attempt_errors(errors),
            {} if callbacks is None else msgspec.json.decode(callbacks),
        )
        for job_id, token, nonce, flies, expiry, errors, callbacks in rows
    }


def _over(expiry: datetime | None, now: datetime) -> bool:
    return expiry is not None and expiry <= now
