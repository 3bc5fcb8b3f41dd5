"""Push without LISTEN: a listener sleeps inside the server, on a connection of its own, until somebody ends its sleep.

MySQL notifies nobody, but whoever dispatches may end a statement of its own account's: `SELECT SLEEP(…)` returns then.
That costs an idle worker two statements a minute, and a wake takes a millisecond, where polling would have to choose.

Nobody else's statement can be hit: a listener is found by a lock that it holds and that ends with its connection, and
its connection does nothing but sleep. Where that fails, through a pooler, on another node of a cluster, or for want of
privileges, a listener that can't be woken finds out at its start, and polling does.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio import CancelScope, current_time, get_cancelled_exc_class, move_on_after
from asyncmy.errors import MySQLError

from creche.errors import ListenerDeaf, StorageError, StorageUnavailable
from creche.storage._asyncmy import AsyncmyDriver, Connection
from creche.storage._calls import Calls
from creche.storage._listener import ServerListener
from creche.storage._mysql_calls import without_limit
from creche.storage._mysql_literals import Expression, literal, render

_log = logging.getLogger("creche")

# Seconds that a listener sleeps when nobody wakes it; a server that is gone is noticed so long after, at the latest.
NAP: Final = 30.0
# Seconds that an answer may come late.
LATE: Final = 3.0

# Seconds between two naps when wakes come thick: from the first, doubling to the last. A busy worker needs no wakes.
FIRST_PAUSE: Final = 0.005
LAST_PAUSE: Final = 0.05
# Seconds after the start of a nap when surely it has begun: who dispatched before has been missed, so one looks again.
ASLEEP: Final = 0.02

# Seconds after which a listener tells of itself again; those that haven't for three are taken for dead.
STILL_HERE: Final = 3600.0

NOT_OWNER: Final = 1095  # ER_KILL_DENIED_ERROR
INTERRUPTED: Final = 1317  # ER_QUERY_INTERRUPTED: MariaDB's word for it; MySQL's SLEEP returns 1


class Waker:
    """Ends the sleep of listeners, those of other processes above all.

    Args:
        calls: how it reaches the database.
        sql: the statements.
    """

    def __init__(self, calls: Calls[Connection], sql: Mapping[str, str]) -> None:
        self._calls = calls
        self._sql = sql
        self._explained = False
        self._called: set[str] = set()
        self.own: set[bytes] = set()

    def call(self, names: Collection[str]) -> None:
        """Have those who are woken next by these names told that it was by name."""
        self._called.update(names)

    async def wake(self, queues: Sequence[str]) -> None:
        """Wake who listens to these queues in other processes; this one's were told directly."""
        own: Sequence[bytes] = sorted(self.own) or [b""]
        find = render(self._sql["find_listeners"], {"queues": queues, "own": own})
        called, self._called = self._called, set()
        if not called:
            await self._end(find)
            return
        try:
            await self._end(f"{render(self._sql['call_listeners'], {'names': sorted(called), 'own': own})};\n{find}")
        except get_cancelled_exc_class():
            self._called |= called  # the notifier wakes them once more
            raise

    async def calls(self, token: bytes, connection: Connection | None = None) -> dict[str, int]:
        """Return how often a listener has been called by which of its names; asked on its connection, or ours."""
        look = render(self._sql["calls"], {"token": token})
        answers = await (connection.run(look) if connection else self._calls.run(lambda ours: ours.run(look)))
        return {name.decode(): calls for name, calls in answers[0].rows}

    async def rouse(self, token: bytes) -> None:
        """Wake one listener."""
        await self._end(f"SELECT IS_USED_LOCK({literal(lock_name(token))})")

    async def register(self, token: bytes, queues: Collection[str]) -> None:
        """Tell everybody of a listener."""
        rows = ", ".join(f"({literal((token, queue))}, UTC_TIMESTAMP(6))" for queue in sorted(queues))
        register = render(self._sql["register_listener"], {"listeners": Expression(rows)})
        await self._send(f"{register};\n{self._sql['expire_listeners']}")

    async def forget(self, token: bytes) -> None:
        """Tell everybody that a listener is gone."""
        await self._send(render(self._sql["forget_listener"], {"token": token}))

    async def _send(self, statements: str) -> None:
        await self._calls.run(lambda connection: connection.run(statements))

    async def _end(self, find: str) -> None:
        async def work(connection: Connection) -> None:
            for (number,) in (await connection.run(find))[-1].rows:
                if number is not None:
                    try:
                        await connection.run(f"KILL QUERY {number}")
                    except MySQLError as error:
                        self._explain(error)

        await self._calls.run(work)

    def _explain(self, error: MySQLError) -> None:
        """Say once what an operator can mend; that it is gone meanwhile is nobody's business."""
        if error.args[0] == NOT_OWNER and not self._explained:
            self._explained = True
            _log.warning(
                "MySQL: a worker that runs under another account can't be woken, and will look for itself: let "
                "dispatchers and workers share an account, or give this one CONNECTION_ADMIN"
            )


def lock_name(token: bytes) -> str:
    """Return the name of the lock that a listener holds."""
    return f"creche_{token.hex()}"


async def nap(connection: Connection, seconds: float) -> bool:
    """Sleep; return whether somebody ended it."""
    with move_on_after(seconds + LATE):
        try:
            ((left,),) = (await connection.run(f"SELECT SLEEP({seconds})"))[0].rows
        except MySQLError as error:
            if error.args[0] != INTERRUPTED:
                raise
            return True
        return bool(left)
    raise StorageUnavailable("MySQL did not come back from a nap")


class MySQLListener(ServerListener[Connection]):
    """Sleeps until it is woken.

    Args:
        queues: whose wakes it hears.
        driver: makes its connection.
        waker: wakes it on another connection, which proves that it can be woken, and makes it known.
        later: starts a task that the storage outlives.
    """

    def __init__(
        self,
        queues: Collection[str],
        driver: AsyncmyDriver,
        *,
        waker: Waker,
        later: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
    ) -> None:
        super().__init__(queues, driver)
        self._token = secrets.token_bytes(16)
        self._waker = waker
        self._later = later
        self._proven = anyio.Event()
        self._roused = False
        self._heard: dict[str, int] = {}  # how often we were called, as far as we know

    async def _begin(self, connection: Connection) -> None:
        await without_limit(connection)
        await connection.run(f"SELECT GET_LOCK({literal(lock_name(self._token))}, 0)")
        self._waker.own.add(self._token)
        await self._prove(connection)
        await self._waker.register(self._token, self._queues)

    async def _prove(self, connection: Connection) -> None:
        self._later(self._rouse_myself)
        woken = await nap(connection, LATE)
        self._proven.set()
        if not woken and not self._roused:
            raise StorageUnavailable("MySQL gave no answer to a listener that was to be woken")
        if not woken:
            raise ListenerDeaf(
                "a sleeping connection was not woken: between here and MySQL stands a pooler, or the account may not "
                "end its own statements"
            )

    async def _rouse_myself(self) -> None:
        while not self._proven.is_set():
            with suppress(StorageError):
                await self._waker.rouse(self._token)
                self._roused = True
            with move_on_after(ASLEEP):
                await self._proven.wait()

    async def _hear(self, connection: Connection) -> None:
        pause, told = 0.0, current_time()
        self._later(self._look_again)
        while True:
            began = current_time()
            if await nap(connection, NAP):
                self.ring_any()
                await self._look_who_called(connection)
                thick = current_time() - began < LAST_PAUSE
                pause = min(LAST_PAUSE, pause * 2 or FIRST_PAUSE) if thick else 0.0
                await anyio.sleep(pause)
                self._later(self._look_again)
            if current_time() - told > STILL_HERE:
                await self._waker.register(self._token, self._queues)
                told = current_time()

    async def _look_again(self) -> None:
        """Ring once more when a nap has surely begun: a wake that came between two naps was heard by nobody."""
        await anyio.sleep(ASLEEP)
        self.ring_any()
        with suppress(StorageError):
            self._answer(await self._waker.calls(self._token))

    async def _look_who_called(self, connection: Connection) -> None:
        try:
            self._answer(await self._waker.calls(self._token, connection))
        except MySQLError as error:
            if error.args[0] != INTERRUPTED:  # that was the next wake already; we look again
                raise

    def _answer(self, calls: Mapping[str, int]) -> None:
        """Ring by the names by which somebody has called since; by each once."""
        self.ring([name for name, number in calls.items() if number != self._heard.get(name, 0)])
        self._heard.update(calls)

    async def _end(self, connection: Connection) -> None:
        connection.drop()
        self._proven.set()
        self._waker.own.discard(self._token)
        with CancelScope(shield=True), move_on_after(LATE), suppress(StorageError):
            await self._waker.forget(self._token)
            await self._waker.rouse(self._token)  # or the server would sleep on for nobody
