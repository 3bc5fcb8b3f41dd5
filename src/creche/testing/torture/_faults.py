"""What breaks: one generator for each kind of fault, which yields until it goes on, and mends what it broke when it is
closed. When which of them comes is the conductor's business.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import frozen

from creche.testing._backdoor import connect
from creche.testing._ledger import Ledger
from creche.testing.servers import PrivateServer
from creche.testing.torture._ground import Ground
from creche.testing.torture._stage import Fault, Stage

Act: TypeAlias = Callable[[Stage], Fault]

_LOCKED: Final = 5.0  # seconds that a lock is held


@frozen(kw_only=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: for people.
        place: what it breaks. Two of one place do not go on at once: a server that is down can't be frozen.
        act: does it.
        possible: whether it can be done on this ground.
    """

    name: str
    place: str
    act: Act
    possible: Callable[[Ground], bool]


def kinds(ground: Ground, only: Sequence[str] = ()) -> list[Kind]:
    """Return what can break on this ground; if `only` has words, what has one in its name, in their order."""
    possible = [kind for kind in KINDS.values() if kind.possible(ground)]
    chosen = [kind for word in only for kind in possible if word in kind.name]
    return list(dict.fromkeys(chosen)) if only else possible


KINDS: Final[dict[str, Kind]] = {}


def _anywhere(_: Ground) -> bool:
    return True


def _over_a_wire(ground: Ground) -> bool:
    return ground.server is not None


def _fault(
    name: str, possible: Callable[[Ground], bool] = _anywhere, *, place: str | None = None
) -> Callable[[Act], Act]:
    def note(act: Act) -> Act:
        KINDS[name] = Kind(name=name, place=place or name, act=act, possible=possible)
        return act

    return note


# --- processes --------------------------------------------------------------------------------------


@_fault("a worker is killed")
def _kill_worker(stage: Stage) -> Fault:
    stage.herd.kill_one("worker")
    yield 0.0


@_fault("a worker is frozen for two leases")
def _freeze_worker(stage: Stage) -> Fault:
    if who := stage.herd.choose(stage.dice.choice(["worker", "elder"])):
        with stage.frozen(who):
            yield 2 * stage.plan.lease


@_fault("a dispatcher is killed")
def _kill_dispatcher(stage: Stage) -> Fault:
    stage.herd.kill_one("dispatcher")
    yield 0.0


@_fault("all workers are told to end, one by one")
def _roll_workers(stage: Stage) -> Fault:
    for who in stage.herd.names("worker"):
        if stage.herd.pid(who) is not None:
            stage.herd.tell(who)
            yield 0.5


# --- the wire ---------------------------------------------------------------------------------------


def _weather(name: str, **facts: Any) -> None:
    def act(stage: Stage) -> Fault:
        assert stage.wire is not None
        with stage.wire.weather(**facts):
            yield stage.while_it_lasts()

    _fault(name, _over_a_wire)(act)


_weather("the wire is slow", delay=0.15, jitter=0.1)
_weather("the wire is thin", rate=20_000.0)
_weather("nothing reaches the database", swallow="up")
_weather("no answer comes back", swallow="down")
_weather("the wire is dead both ways", swallow="both")
_weather("the wire holds everything back, and delivers it late", hold=True)
_weather("listeners are deaf", swallow="down", only="LISTEN|SLEEP")
_weather("answers to writes are cut off", cut_answers=0.15)
_weather("writes are cut off before they arrive", cut_requests=0.15)


@_fault("all connections are reset, again and again", _over_a_wire)
def _reset(stage: Stage) -> Fault:
    assert stage.wire is not None
    for _ in range(stage.dice.randrange(1, 5)):
        stage.wire.reset()
        yield stage.dice.uniform(0.1, 0.6)


@_fault("nobody can connect", _over_a_wire)
def _refuse(stage: Stage) -> Fault:
    assert stage.wire is not None
    with stage.wire.weather(refuse=True):
        stage.wire.reset()
        yield stage.while_it_lasts()


# --- the server -------------------------------------------------------------------------------------


def _stopped(name: str, stop: Callable[[PrivateServer], None], possible: Callable[[Ground], bool]) -> None:
    def act(stage: Stage) -> Fault:
        server = stage.ground.server
        assert server is not None
        stop(server)
        try:
            yield stage.dice.uniform(0.0, 2.0)
        finally:
            server.start()

    _fault(name, possible, place="the server")(act)


def _is_postgresql(ground: Ground) -> bool:
    return ground.dsn.startswith("postgres")


_stopped("the server is killed", PrivateServer.kill, _over_a_wire)
_stopped("the server is stopped in order", lambda server: server.stop(signal.SIGINT), _is_postgresql)
_stopped("the server is stopped at once", PrivateServer.stop, _over_a_wire)


@_fault("the server is frozen", _over_a_wire, place="the server")
def _freeze_server(stage: Stage) -> Fault:
    server = stage.ground.server
    assert server is not None
    with server.frozen():
        yield stage.while_it_lasts()


@_fault("the pooler is killed", lambda ground: ground.pooler is not None)
def _kill_pooler(stage: Stage) -> Fault:
    pooler = stage.ground.pooler
    assert pooler is not None
    pooler.kill()
    try:
        yield stage.dice.uniform(0.0, 2.0)
    finally:
        pooler.start()


# --- what other people do to a database -------------------------------------------------------------

_SESSIONS: Final[Mapping[bool, str]] = {
    True: "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    False: "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}


@_fault("all sessions are ended", _over_a_wire)
def _end_sessions(stage: Stage) -> Fault:
    dsn = stage.ground.dsn

    def end(ledger: Ledger) -> None:
        with closing(connect(dsn)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(_SESSIONS[_is_postgresql(stage.ground)])
            found = cursor.fetchall()
            if not _is_postgresql(stage.ground):
                for (number,) in found:
                    with suppress(Exception):  # it has ended by itself
                        cursor.execute(f"KILL {number}")
            ledger.note("ended sessions", count=len(found))

    for _ in range(stage.dice.randrange(1, 4)):
        yield from stage.aside("saboteur", end)
        yield 0.3


def _held(name: str, statements: Mapping[bool, str], seconds: float, possible: Callable[[Ground], bool]) -> None:
    """A transaction of somebody's that does something, and then nothing for a while."""

    def act(stage: Stage) -> Fault:
        statement = statements[_is_postgresql(stage.ground)]

        def hold(ledger: Ledger) -> None:
            with closing(connect(stage.ground.dsn)) as connection, closing(connection.cursor()) as cursor:
                for each in statement.split(";"):
                    cursor.execute(each)
                with suppress(Exception):  # LOCK TABLES answers nothing
                    cursor.fetchall()
                ledger.note("holds")
                time.sleep(seconds)
                connection.rollback()

        yield from stage.aside("saboteur", hold)

    _fault(name, possible)(act)


_held(
    "the table is locked for 5 s",
    {True: "LOCK TABLE creche_jobs IN SHARE ROW EXCLUSIVE MODE", False: "LOCK TABLES creche_jobs WRITE"},
    _LOCKED,
    _over_a_wire,
)
_held(
    "the rows of running jobs are locked for 5 s",
    dict.fromkeys([True, False], "SELECT id FROM creche_jobs WHERE status = 'processing' FOR UPDATE"),
    _LOCKED,
    _over_a_wire,
)
_held(
    "an old snapshot is held for 10 s",
    {
        True: "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;SELECT count(*) FROM creche_jobs",
        False: "START TRANSACTION WITH CONSISTENT SNAPSHOT;SELECT COUNT(*) FROM creche_jobs",
    },
    10.0,
    _over_a_wire,
)


@_fault("the file is locked for 5 s", lambda ground: ground.server is None)
def _lock_file(stage: Stage) -> Fault:
    path = stage.ground.dsn.removeprefix("sqlite:///")

    def hold(ledger: Ledger) -> None:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            ledger.note("holds")
            time.sleep(_LOCKED)
            connection.execute("ROLLBACK")

    yield from stage.aside("saboteur", hold)


@_fault("the disk is full", lambda ground: ground.disk is not None)
def _fill_disk(stage: Stage) -> Fault:
    assert stage.ground.disk is not None
    ballast = stage.ground.disk / "ballast"
    try:
        _fill(ballast)
        yield 2 * stage.while_it_lasts()
    finally:
        ballast.unlink()


def _fill(path: Path) -> None:
    """Write until there is no room, not even for the last bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)
