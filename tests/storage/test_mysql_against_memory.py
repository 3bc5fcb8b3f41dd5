"""MySQL and MariaDB against the oracle: whatever is done to both, in whatever order, both answer and keep the same."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import anyio
import pytest
from attrs import evolve
from pymysql.connections import Connection
from pymysql.cursors import Cursor

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
from creche.storage._rows import attempt_errors
from creche.storage.memory import MemoryStorage
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import ForeignServer, MariaDBServer, MySQLServer, connect_mysql
from databases import empty_database

Server: TypeAlias = "MariaDBServer | MySQLServer | ForeignServer"
Raw: TypeAlias = "Connection[Cursor]"
Call: TypeAlias = Callable[[Storage], Awaitable[Any]]

SEEDS: Final = 16
STEPS: Final = 80

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
# Each differs from another by what a collation would fold.
QUEUES: Final = ("a", "A", "a ", "ä")
TYPES: Final = ("t", "T", "u")
KEYS: Final = (None, None, None, "k", "K", "k ", "l", "ß")
FINGERPRINTS: Final = (None, None, None, *(sha256(bytes([n])).digest() for n in range(5)))
PAYLOADS: Final = (b"{}", b'{"a":1.0,"a":[2,{}]}', "\"\\u0000\\\\ 'quoted' %s ä€\U0001f423\"".encode())
RESULTS: Final = (None, b"null", b'{"n":10000000000000000000000.0}', '"it\'s \\"so\\" \U0001f423"'.encode())
FAILURES: Final = (
    None,
    Failure(type="E", message='it\'s % \\ "quoted" ä\U0001f423', traceback="line\nline\t\x00"),
    Failure(type="ValueError", message="m" * 700),
)
ORIGIN: Final = Origin(job_id=UUID(int=1), type="t", queue_name="ä", status=Status.FAILED, error=FAILURES[1])
SPANS: Final = (0.0, 0.000001, 0.5, 1.0, 1.9999995, 5.0, 30.0, 60.0)


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[tuple[str, Raw]]:
    """A migrated database for all seeds, and a way to look into it."""
    with empty_database(server) as dsn, closing(connect_mysql(dsn)) as connection:
        anyio.run(MySQLStorage(dsn).migrate)
        yield dsn, connection


@pytest.mark.parametrize("seed", range(SEEDS))
def test_both_answer_and_keep_the_same(database: tuple[str, Raw], seed: int) -> None:
    anyio.run(compare, *database, seed)


async def compare(dsn: str, raw: Raw, seed: int, steps: int = STEPS) -> None:
    with raw.cursor() as cursor:
        for table in ("jobs", "dead_letters", "watches"):
            cursor.execute(f"DELETE FROM creche_{table}")
    async with MemoryStorage() as memory, MySQLStorage(dsn, push=False) as mysql:
        play = Play(random.Random(seed), memory)
        for step in range(steps):
            name, call = play.next()
            expected, found = await call(memory), await call(mysql)
            assert found == expected, difference(step, name, expected, found)
            play.hear(expected)
            for look in play.looks():
                expected, found = await look(memory), await look(mysql)
                assert found == expected, difference(step, name, expected, found)
            expected, found = insights(memory, play.now), behind(raw, play.now)
            assert found == expected, difference(step, name, expected, found)


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
        self._sent: list[UUID] = []
        self._leases: list[Lease] = []
        self._moves: list[tuple[int, Callable[[], partial[Coroutine[Any, Any, Any]]]]] = [
            (5, self._insert),
            (5, self._reserve),
            (5, self._settle),
            (2, self._extend),
            (1, self._watch),
            (3, self._maintain),
            (1, self._cancel),
            (1, self._retry),
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
        ]

    def _pass_time(self) -> None:
        """By nothing, by anything, or to one side of a limit, or exactly to it."""
        rows = [row.record for row in self._memory._rows.values()]  # pyright: ignore[reportPrivateUsage]
        limits = [
            limit
            for row in rows
            for limit in (row.available_at, row.locked_until, row.result_expires_at)
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

    # --- what is done -------------------------------------------------------------------------------

    def _insert(self) -> partial[Coroutine[Any, Any, Any]]:
        jobs = {job.id: job for job in [self._new_job() for _ in range(self._number())]}
        # An id that stands twice in one batch is the same job twice, with nothing in between that could take its place.
        batch = [twin for job in jobs.values() for twin in [job] * self._draw([1, 1, 1, 2])]
        return _call("insert", batch, now=self.now)

    def _new_job(self) -> NewJob:
        drawn = self._draw
        again = self._sent and self._dice.random() < 0.15
        job_id = drawn(self._sent) if again else UUID(int=self._dice.getrandbits(128))
        self._ids.append(job_id)
        self._sent.append(job_id)
        due: dict[str, Any] = drawn([{}, {}, {"delay": drawn(SPANS)}, {"available_at": self._moment()}])
        plain = self._dice.random() < 0.3
        return NewJob(
            id=job_id,
            queue_name=drawn(QUEUES),
            type=drawn(TYPES),
            payload=drawn(PAYLOADS),
            priority=drawn([0, 0, 0, 1, -100, 100]),
            max_attempts=drawn([1, 2, 3, 25]),
            idempotency_key=None if plain else drawn(KEYS),
            fingerprint=None if plain else drawn(FINGERPRINTS),
            result_ttl=drawn([None, None, *SPANS]),
            refresh=drawn([False, False, True]),
            callbacks=tuple(self._some_callbacks()),
            origin=drawn([None, None, ORIGIN]),
            **due,
        )

    def _some_callbacks(self, depth: int = 0) -> list[FollowUp]:
        return [self._callback(depth) for _ in range(self._draw([0, 0, 0, 1, 2] if depth < 3 else [0]))]

    def _callback(self, depth: int) -> FollowUp:
        """A new one: of two jobs that had the same and ended together, nobody promises which one it follows."""
        drawn = self._draw
        callback_id = UUID(int=self._dice.getrandbits(128))
        self._ids.append(callback_id)
        return FollowUp(
            id=callback_id,
            type=drawn(TYPES),
            queue_name=drawn(QUEUES),
            priority=drawn([0, 1, -100]),
            max_attempts=drawn([1, 3]),
            on=drawn(list(On)),
            head=drawn(PAYLOADS).decode(),
            tail=drawn([None, drawn(PAYLOADS).decode()]),
            then=tuple(self._some_callbacks(depth + 1)),
        )

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
        told = {
            lease: Progress(fraction=self._dice.random(), message=self._draw(PAYLOADS).decode())
            for lease in leases
            if self._dice.random() < 0.5
        }
        return _call("extend", leases, self._draw(SPANS), progress=self._draw([None, told]), now=self.now)

    def _watch(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("watch", self._known(), watcher=self._draw([None, "w", "ä"]), over=self._known())

    def _settle(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("settle", [self._settlement(lease) for lease in self._some_leases()], now=self.now)

    def _settlement(self, lease: Lease) -> Settlement:
        event = self._draw(sorted(SETTLING))
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


def _call(method: str, *arguments: Any, **options: Any) -> partial[Coroutine[Any, Any, Any]]:
    return partial(_ask, method, arguments, options)


async def _ask(method: str, arguments: tuple[Any, ...], options: dict[str, Any], storage: Storage) -> Any:
    answer = await getattr(storage, method)(*arguments, **options)
    # A sequence is a sequence: that one is a list and the other a tuple means nothing.
    return evolve(answer, jobs=tuple(answer.jobs)) if isinstance(answer, Reservation) else answer


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
    """Of each row its fence, whether its fingerprint is taken, and all its errors."""
    return {
        job_id: (
            row.token,
            row.nonce,
            row.single_flight and not _over(row.record.result_expires_at, now),
            tuple(row.errors),
            sorted(each.id.hex for each in row.callbacks),
        )
        for job_id, row in memory._rows.items()  # pyright: ignore[reportPrivateUsage]
    }


def behind(raw: Raw, now: datetime) -> dict[UUID, object]:
    """The same, of MySQL's rows."""
    with raw.cursor() as cursor:
        cursor.execute("SELECT id, token, nonce, single_flight, result_expires_at, errors, callbacks FROM creche_jobs")
        return {
            UUID(bytes=job_id): (
                token,
                nonce,
                bool(flies) and not _over(None if expiry is None else expiry.replace(tzinfo=UTC), now),
                attempt_errors(errors),
                sorted(UUID(each["id"]).hex for kept in json.loads(callbacks or "{}").values() for each in kept),
            )
            for job_id, token, nonce, flies, expiry, errors, callbacks in cursor.fetchall()
        }


def _over(expiry: datetime | None, now: datetime) -> bool:
    return expiry is not None and expiry <= now
