"""Each SQL storage against the oracle: whatever is done to both, in any order, both answer, keep and wake the same.

Another range of seeds: `CRECHE_SEEDS=100:200`. Every other seed runs on trio.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import anyio
import msgspec
import psycopg
import pytest
from attrs import evolve, frozen

from creche._job import (
    RATE_WINDOW,
    Event,
    Failure,
    FollowUp,
    JobFilter,
    Lease,
    NewJob,
    On,
    Origin,
    Presence,
    Progress,
    Reservation,
    Retention,
    Settlement,
    Status,
    Upkeep,
    WorkerState,
)
from creche._lifecycle import SETTLING
from creche.abc import Storage
from creche.storage import _rows
from creche.storage._listener import LocalListener
from creche.storage._rows import attempt_errors
from creche.storage._sqlite_listener import SQLiteListener
from creche.storage.memory import MemoryStorage
from creche.storage.mysql import MySQLStorage
from creche.storage.postgresql import PostgreSQLStorage
from creche.storage.sqlite import SQLiteStorage
from creche.testing.servers import connect_mysql
from databases import empty_database, empty_schema, in_schema

Call: TypeAlias = Callable[[Storage], Awaitable[Any]]

SEEDS: Final = range(*map(int, os.environ.get("CRECHE_SEEDS", "0:16").split(":")))
STEPS: Final = 80

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
# Each differs from another by what a collation would fold.
QUEUES: Final = ("a", "A", "a ", "ä")
WATCHERS: Final = ("w1", "w's ä")
WORKERS: Final = ("host:1", "HOST:1", "host:1 ", "w's \\ ä\U0001f423")
TYPES: Final = ("t", "T", "u")
KEYS: Final = (None, None, None, "k", "K", "k ", "l", "it's", "ß")
FINGERPRINTS: Final = (None, None, *(sha256(bytes([n])).digest() for n in range(5)))
PAYLOADS: Final = (b"{}", b'{"a":1.0,"a":[2,{}]}', "\"\\u0000\\\\ 'quoted' %s ä€\U0001f423\"".encode())
RESULTS: Final = (
    None,
    b"null",
    b'{"n":10000000000000000000000.0}',
    '"it\'s \\"so\\" \\u0000\U0001f423"'.encode(),
    '"it\'s \\"so\\" \U0001f423"'.encode(),
)
HEADS: Final = (
    ("[", "]"),
    ('{"it\'s \\"\\\\\\u0000 é\U0001f423": ', " }"),
    ('"\\n"', None),
    ("", ""),
    *((payload.decode(), None) for payload in PAYLOADS),
    *((f"[{payload.decode()},", f",{payload.decode()}]") for payload in PAYLOADS),
)
MESSAGES: Final = ("", "it's ä\U0001f423", *(payload.decode() for payload in PAYLOADS))
DEPTH: Final = 3
TABLES: Final = ("creche_jobs", "creche_dead_letters", "creche_queues", "creche_workers")
SPANS: Final = (0.0, 0.000001, 0.5, 1.0, 1.9999995, 5.0, 30.0, 60.0)
WHOLE_SPANS: Final = (0.0, 0.000001, 0.5, 1.0, 1.999999, 5.0, 30.0, 60.0)


@frozen
class Engine:
    """What is particular about a storage.

    Attributes:
        database: the name of the fixture that tells where databases are, and how to get an empty one there.
        open: the storage on one.
        connect: a second look at it, by a driver that has nothing to do with the storage's.
        id: turns what this driver makes of an id into a UUID; `moment` likewise.
        columns: of `creche_jobs`, those that only the contract looks at, as SQL.
        tables: what is emptied between two seeds.
        wakes_again: also for what was done already: the answer may have been lost, and its wakes with it.
        ordered: whether a job's callbacks stay in the order in which they were asked for, of which nobody is told.
        spans: seconds; half a microsecond is rounded by PostgreSQL itself.
        nul: a NUL in an error, or what has to stand for it; creche itself sends none.
    """

    database: tuple[str, Callable[[Any], AbstractContextManager[str]]]
    open: Callable[[str], Storage]
    connect: Callable[[str], Any]
    id: Callable[[Any], UUID]
    moment: Callable[[Any], datetime]
    columns: str = "id, token, nonce, single_flight, result_expires_at, errors, callbacks"
    tables: Sequence[str] = (*TABLES, "creche_watches")
    wakes_again: bool = True
    ordered: bool = True
    spans: Sequence[float] = SPANS
    nul: str = "\x00"


@contextmanager
def empty_schema_of(dsn: str) -> Iterator[str]:
    """Make an empty schema and yield a DSN of it."""
    with empty_schema(dsn) as schema:
        yield in_schema(dsn, schema)


MYSQL: Final = partial(
    Engine,
    open=lambda dsn: MySQLStorage(dsn, push=False),
    connect=connect_mysql,
    id=lambda value: UUID(bytes=value),
    moment=lambda value: value.replace(tzinfo=UTC),
)
ENGINES: Final = {
    "sqlite": Engine(
        database=("tmp_path_factory", lambda factory: nullcontext(f"{factory.mktemp('against')}/jobs.db")),
        open=lambda path: SQLiteStorage(path, synchronous="NORMAL"),
        connect=lambda path: sqlite3.connect(path, isolation_level=None),
        id=UUID,
        moment=lambda value: EPOCH + value * MICROSECOND,
        tables=TABLES,
        wakes_again=False,
    ),
    "postgresql": Engine(
        database=("postgresql_database", empty_schema_of),
        open=PostgreSQLStorage,
        connect=lambda dsn: psycopg.connect(dsn, autocommit=True),
        id=lambda value: value,
        moment=lambda value: value,
        columns="id, token, nonce, single_flight, result_expires_at, errors::text, callbacks::text",
        ordered=False,
        spans=WHOLE_SPANS,
        nul="",
    ),
    "mariadb": MYSQL(("mariadb_server", empty_database)),
    "mysql": MYSQL(("mysql_server", empty_database)),
}


@pytest.fixture(scope="module", params=ENGINES)
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, str, Any]]:
    """An engine, a migrated database for all seeds, and a way to look into it."""
    engine = ENGINES[request.param]
    fixture, empty = engine.database
    with empty(request.getfixturevalue(fixture)) as dsn:
        anyio.run(engine.open(dsn).migrate)
        with closing(engine.connect(dsn)) as raw:
            yield engine, dsn, raw


@pytest.mark.parametrize("seed", SEEDS)
def test_both_answer_keep_and_wake_the_same(subject: tuple[Engine, str, Any], seed: int) -> None:
    anyio.run(compare, *subject, seed, backend="trio" if seed % 2 else "asyncio")


async def compare(engine: Engine, dsn: str, raw: Any, seed: int, steps: int = STEPS) -> None:
    for table in engine.tables:
        ask(raw, f"DELETE FROM {table}")
    async with MemoryStorage() as memory, engine.open(dsn) as storage:
        names = [*QUEUES, *WATCHERS, *WORKERS]
        async with memory.listen(names) as expected_wakes, listening(storage, names) as found_wakes:
            play = Play(random.Random(seed), memory, engine)
            for step in range(steps):
                name, call = play.next()
                expected, found = await call(memory), await call(storage)
                assert found == expected, difference(step, name, expected, found)
                play.hear(expected)
                for look in play.looks():
                    expected, found = await look(memory), await look(storage)
                    assert found == expected, difference(step, name, expected, found)
                expected, found = taken(expected_wakes), taken(found_wakes)
                if engine.wakes_again:
                    found &= expected
                assert found == expected, difference(step, f"{name}, wakes", [*expected], [*found])
                expected, found = insights(engine, memory, play.now), behind(engine, raw, play.now)
                assert found == expected, difference(step, name, expected, found)


def ask(raw: Any, statement: str) -> list[Any]:
    """Run a statement on a connection of any driver; return its rows."""
    with closing(raw.cursor()) as cursor:
        cursor.execute(statement)
        return [*cursor.fetchall()] if cursor.description else []


@asynccontextmanager
async def listening(storage: Storage, names: Collection[str]) -> AsyncGenerator[LocalListener]:
    """Listen to what this process does, of which nothing comes later, or twice, by way of the server."""
    if isinstance(storage, PostgreSQLStorage):
        opened = storage._opened
        assert opened is not None
        local = LocalListener(names)
        with opened.wakes.told(local):
            yield local
    else:
        async with storage.listen(names) as listener:
            yield cast("LocalListener", listener)


def taken(listener: Any) -> set[str]:
    """Take a listener's wakes without waiting for any."""
    woken, listener._woken = listener._woken, set[str]()
    if isinstance(listener, SQLiteListener):  # it keeps apart who is asked to end something
        called, listener._called = listener._called, set[str]()
        return {*woken, *called}
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

    def __init__(self, dice: random.Random, memory: MemoryStorage, engine: Engine) -> None:
        self.now = START
        self._dice = dice
        self._memory = memory
        self._engine = engine
        odd = Failure(type="E", message='it\'s % \\ "quoted" ä\U0001f423', traceback=f"line\nline\t{engine.nul}")
        self._failures = (None, odd, Failure(type="ValueError", message="m" * 700))
        self._origins = [
            Origin(job_id=UUID(int=1), type=name, queue_name="ä", status=Status.FAILED, error=odd)
            for name in ("t", "it's")
        ]
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
            (1, self._pause),
            (1, self._resume),
            (1, self._set_retention),
            (2, self._delete),
            (2, self._announce),
            (1, self._withdraw),
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
            partial(_workers, self.now),
            partial(_workers, START),  # whose time has run out since is there, if no upkeep has forgotten it
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
        limits += [each.expires_at for each in self._memory._workers.values() if each.expires_at > self.now]
        limits += [over for over in self._just_over() if over > self.now]
        match self._dice.randrange(4):
            case 0 if limits:
                limit = self._draw(limits) if self._dice.random() < 0.3 else min(limits)
                self.now = max(
                    self.now, min(limit, self.now + timedelta(hours=1)) + self._dice.randint(-1, 1) * MICROSECOND
                )
            case 1:
                self.now += timedelta(seconds=self._draw(self._engine.spans))
            case 2:
                self.now += timedelta(microseconds=self._dice.randrange(3_000_000))
            case _:
                pass

    def _just_over(self) -> list[datetime]:
        """When ends cease to count as of the last minute."""
        ends = [row.record.completed_at for row in self._memory._rows.values()]
        return [ended + timedelta(seconds=RATE_WINDOW) for ended in ends if ended is not None][-3:]

    def _draw(self, choices: Sequence[Any]) -> Any:
        return self._dice.choice(choices)

    def _some(self, choices: Collection[Any]) -> list[Any]:
        return self._dice.sample(list(choices), self._dice.randint(0, len(choices)))

    def _number(self) -> int:
        return self._dice.choice([1, 1, 1, 2, 3, 8])

    def _moment(self) -> datetime:
        moment: datetime = self.now + self._draw([-1, 1]) * timedelta(seconds=self._draw(self._engine.spans))
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
        due: dict[str, Any] = drawn([{}, {}, {"delay": drawn(self._engine.spans)}, {"available_at": self._moment()}])
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
            result_ttl=drawn([None, None, *self._engine.spans]),
            refresh=drawn([False, False, True]),
            callbacks=tuple(self._callback(DEPTH) for _ in range(drawn([0, 0, 1, 1, 2, 3]))),
            origin=drawn([None, None, *self._origins]),
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
            priority=drawn([0, 1, 5, -5, -100]),
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
            worker=self._draw(WORKERS),
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
            lease: Progress(fraction=self._draw([0, 0.1, 1 / 3, 1, self._dice.random()]), message=self._draw(MESSAGES))
            for lease in self._some(leases)
        }
        return _call(
            "extend", leases, self._draw(self._engine.spans), progress=self._draw([None, progress]), now=self.now
        )

    def _settle(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("settle", [self._settlement(lease) for lease in self._some_leases()], now=self.now)

    def _transact(self) -> partial[Coroutine[Any, Any, Any]]:
        leases = self._some_leases()[:1]
        return partial(_transact, [self._settlement(lease) for lease in leases], self.now)

    def _settlement(self, lease: Lease) -> Settlement:
        event = self._draw([*sorted(SETTLING), Event.SUCCEED, Event.FAIL])
        due: dict[str, Any] = {}
        if event in {Event.RETRY, Event.SNOOZE}:
            due = {"delay": self._draw(self._engine.spans)}
        if event is Event.SNOOZE:
            due = self._draw([due, {"available_at": self._moment()}])
        fails = event in {Event.RETRY, Event.FAIL, Event.DISCARD}
        return Settlement(
            lease=lease,
            event=event,
            result=self._draw(RESULTS) if event is Event.SUCCEED else None,
            error=self._draw(self._failures) if fails else None,
            **due,
        )

    def _maintain(self) -> partial[Coroutine[Any, Any, Any]]:
        limit = self._draw([1, 2, 1_000, 1_000])
        return partial(_maintain, limit, self._retention(self._engine.spans), self.now)

    def _retention(self, spans: Sequence[float]) -> Retention:
        kept = [*spans, 86_400.0, 86_400.0]
        return Retention(completed=self._draw(kept), failed=self._draw(kept), cancelled=self._draw(kept))

    def _known(self) -> list[UUID]:
        ids = self._dice.sample(self._ids, min(len(self._ids), self._number() + 1))
        return [*dict.fromkeys(ids), UUID(int=self._dice.getrandbits(128))]

    def _cancel(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("cancel", self._known(), now=self.now)

    def _retry(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("retry", self._known(), now=self.now)

    def _watch(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("watch", self._known(), watcher=self._draw([None, *WATCHERS]), over=self._known())

    def _delete(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("delete", self._known())

    def _pause(self) -> partial[Coroutine[Any, Any, Any]]:
        # Seldom all of them, or the rest of the play would stand still.
        return _call("pause", [self._draw(QUEUES)] * self._draw([0, 1, 1, 1, 2]), now=self.now)

    def _resume(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("resume", self._some(QUEUES))

    def _set_retention(self) -> partial[Coroutine[Any, Any, Any]]:
        # It is shown again, and columns know no half microseconds.
        return _call("set_retention", self._draw(QUEUES), self._draw([None, self._retention(WHOLE_SPANS)]))

    def _announce(self) -> partial[Coroutine[Any, Any, Any]]:
        said = Presence(
            name=self._draw(WORKERS),
            host=self._draw(["host", "it's \\ ä\U0001f423"]),
            pid=self._dice.randrange(1 << 22),
            backend=self._draw(["asyncio", "trio"]),
            version="1.0",
            queues=tuple(self._some(QUEUES)),
            concurrency=self._number(),
            state=self._draw(list(WorkerState)),
        )
        return _call("announce", said, self._draw(self._engine.spans), now=self.now)

    def _withdraw(self) -> partial[Coroutine[Any, Any, Any]]:
        return _call("withdraw", self._draw(WORKERS))


def _call(method: str, *arguments: Any, **options: Any) -> partial[Coroutine[Any, Any, Any]]:
    return partial(_ask, method, arguments, options)


async def _ask(method: str, arguments: tuple[Any, ...], options: dict[str, Any], storage: Storage) -> Any:
    answer = await getattr(storage, method)(*arguments, **options)
    # A sequence is a sequence: that one is a list and the other a tuple means nothing.
    if isinstance(answer, Reservation):
        return evolve(answer, jobs=tuple(answer.jobs))
    return tuple(answer) if method == "insert" else answer


async def _workers(now: datetime, storage: Storage) -> list[Any]:
    """Who is there; what is left of a lease is a difference, of which the last bits are nobody's promise."""
    return [
        evolve(worker, jobs=tuple(evolve(job, lease_left=round(job.lease_left, 6)) for job in worker.jobs))
        for worker in await storage.workers(now=now)
    ]


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


def insights(engine: Engine, memory: MemoryStorage, now: datetime) -> dict[UUID, object]:
    """Of each row its fence, whether its fingerprint is taken, all its errors, and its callbacks."""
    return {
        job_id: (
            row.token,
            row.nonce,
            row.single_flight and not _over(row.record.result_expires_at, now),
            tuple(row.errors),
            _callbacks(engine, _rows.callbacks_document(row.callbacks)),
        )
        for job_id, row in memory._rows.items()
    }


def behind(engine: Engine, raw: Any, now: datetime) -> dict[UUID, object]:
    """The same, of the rows in a database."""
    return {
        engine.id(job_id): (
            token,
            nonce,
            bool(flies) and not _over(None if expiry is None else engine.moment(expiry), now),
            attempt_errors(errors),
            _callbacks(engine, {} if callbacks is None else msgspec.json.decode(callbacks)),
        )
        for job_id, token, nonce, flies, expiry, errors, callbacks in ask(
            raw, f"SELECT {engine.columns} FROM creche_jobs"
        )
    }


def _callbacks(engine: Engine, document: dict[str, list[dict[str, Any]]]) -> object:
    if engine.ordered:
        return document
    return {on: sorted(callbacks, key=lambda each: each["id"]) for on, callbacks in document.items()}


def _over(expiry: datetime | None, now: datetime) -> bool:
    return expiry is not None and expiry <= now
