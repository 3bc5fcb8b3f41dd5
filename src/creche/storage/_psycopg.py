"""psycopg's asynchronous connection, native to anyio: how it connects, waits and closes, and what its errors mean.

It knows no table of the queue, keeps no pool, starts no thread and no event loop, and never asks the server to
cancel anything: PostgreSQL may report a commit that was cancelled while it waited for its standby as a success.
"""

# ruff: noqa: ARG002, SLF001 - the signatures, and the private names, are those of the class this one extends
# pyright: reportPrivateUsage=false

from __future__ import annotations

import logging
import math
import os
import select
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Hashable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

import anyio
import psycopg
from anyio import CancelScope, current_effective_deadline, current_time, wait_readable, wait_writable
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint
from attrs import evolve, field, frozen
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, AsyncTransaction, pq
from psycopg import errors as e
from psycopg._conninfo_utils import get_param, is_ip_address, split_attempts
from psycopg._preparing import PrepareManager
from psycopg.abc import AdaptContext, Buffer, ConnDict, ConnParam, PQGen, PQGenConn
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.conninfo import conninfo_attempts_async, conninfo_to_dict, make_conninfo, timeout_from_conninfo
from psycopg.rows import AsyncRowFactory, Row, tuple_row
from psycopg.waiting import Ready, Wait

from creche.errors import ConfigurationError, StatementRejected, StorageUnavailable
from creche.storage._hosts import Reputation, shares
from creche.storage._pool import TransientConflict

__all__ = ["BinaryArray", "Connection", "Prepare", "PsycopgDriver", "notifications", "translated"]

# When statements are prepared: sent so many times before; "auto": where the server itself answers; None: never.
Prepare: TypeAlias = int | Literal["auto"] | None

# A statement ends by its own deadline; leaving a transaction may outlive that deadline by FAREWELL seconds, so that a
# COMMIT isn't torn by a cancellation that came just then. Where no deadline was set, PATIENCE is the bound.
FAREWELL: Final = 2.0
PATIENCE: Final = 10.0

# Sockets that are always ready would keep the event loop to themselves: it gets its turn after this many seconds.
BUSY: Final = 0.005

# Times that a statement is sent before it is worth preparing: many are never sent again.
OFTEN: Final = 5

# A pooler greets each client with a number of its own making; the server, with that of the process that answers.
_ANSWERS_ITSELF: Final = b"SELECT pg_backend_pid() = %s"

# The transaction was undone by the server and will do when tried again as a whole.
CONFLICTS: Final = frozenset({"40001", "40P01", "55P03"})
# The connection, or the server behind it, is no good now: another one may be, later. 57014 is a time limit of the
# server's own, as creche never cancels; 26000 a prepared statement that somebody in between has forgotten.
UNAVAILABLE: Final = frozenset(
    {"57P01", "57P02", "57P03", "57P04", "57P05", "57014", "25006", "25P03", "25P04", "26000", "08P01"}
)
UNAVAILABLE_CLASSES: Final = ("08", "53", "58")  # connection, resources, the system's own input and output

T = TypeVar("T")

# psycopg warns through logging; unconfigured, Python would print that on the user's terminal.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


# --- errors -----------------------------------------------------------------------------------------


@contextmanager
def translated() -> Generator[None]:
    """Turn what psycopg raises in this block into creche's errors, each chained from its cause.

    Raises:
        TransientConflict: the server undid the transaction; run the whole of it again.
        StorageUnavailable: no connection, or no answer. A write may or may not have taken effect.
        StatementRejected: the server refused for good.
    """
    try:
        yield
    except e.Error as error:
        raise _meaning(error) from error
    except (OSError, anyio.ClosedResourceError) as error:
        raise StorageUnavailable(f"PostgreSQL did not answer: {str(error) or type(error).__name__}") from error


def _meaning(error: e.Error) -> StorageUnavailable | StatementRejected:
    code = error.sqlstate
    # Only the primary message: the detail of a violated constraint quotes the row.
    text = error.diag.message_primary or str(error)
    if code in CONFLICTS:
        return TransientConflict(f"PostgreSQL undid the transaction, run it again: {text} ({code})")
    if code is None:
        if isinstance(error, e.OperationalError):
            return StorageUnavailable(text)
        return StatementRejected(f"the statement can't be sent: {text}")
    if code in UNAVAILABLE or code.startswith(UNAVAILABLE_CLASSES):
        return StorageUnavailable(f"PostgreSQL can't serve this now: {text} ({code})")
    return StatementRejected(f"PostgreSQL refused the statement: {text} ({code})")


# --- waiting ----------------------------------------------------------------------------------------


def _poll(fileno: int, wanted: int) -> int:
    """What the socket is ready for right now; an error counts as readable, so that libpq finds out and says so."""
    poller = select.poll()
    poller.register(fileno, (select.POLLIN if wanted & Wait.R else 0) | (select.POLLOUT if wanted & Wait.W else 0))
    ready = 0
    for _, event in poller.poll(0):
        if event & select.POLLNVAL:
            raise OSError("the socket is closed")
        ready |= (Ready.R if event & ~select.POLLOUT else 0) | (Ready.W if event & select.POLLOUT else 0)
    return ready


async def _ready(fileno: int, wanted: int) -> int:
    """Wait until the socket is ready for any of what is wanted."""
    if wanted == Wait.R:
        await wait_readable(fileno)
        return Ready.R
    # Asked for writing, a socket nearly always is ready: a poll is cheaper than a turn of the event loop.
    if ready := _poll(fileno, wanted):
        return ready
    if wanted == Wait.W:
        await wait_writable(fileno)
        return Ready.W
    async with anyio.create_task_group() as either:

        async def first(wait: Callable[[int], Awaitable[None]]) -> None:
            # A socket closed under both waits is one error, not a group of two: the poll below finds it.
            with suppress(OSError, anyio.ClosedResourceError):
                await wait(fileno)
            either.cancel_scope.cancel()

        either.start_soon(first, wait_readable)
        either.start_soon(first, wait_writable)
    return _poll(fileno, wanted)


async def _connected(dialogue: PQGenConn[T]) -> T:
    """Drive the opening dialogue, whose socket may change from step to step."""
    try:
        fileno, wanted = next(dialogue)
        while True:
            fileno, wanted = dialogue.send(await _ready(fileno, wanted))
    except StopIteration as stop:
        result: T = stop.value
        return result
    except OSError as error:
        raise e.OperationalError(f"the socket failed while connecting: {error}") from error
    finally:
        dialogue.close()  # a half-open connection is closed now, not when the collector comes by


# --- finding the server -----------------------------------------------------------------------------

# What is set where neither the DSN nor the environment says otherwise. Keepalives notice a lost peer while nothing is
# in flight, tcp_user_timeout (milliseconds) while something is; no option notices a frozen one: that takes deadlines.
DEFAULTS: Final[dict[str, str]] = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "fallback_application_name": "creche",
}


def _parameters(conninfo: str, **kwargs: ConnParam) -> ConnDict:
    parameters: ConnDict | None = None
    with suppress(
        e.ProgrammingError, UnicodeEncodeError
    ):  # half a character: bytes in the environment that are no text
        parameters = conninfo_to_dict(conninfo, **kwargs)
    hint = "percent-encode what is special in the user's name and password"
    if parameters is None:
        # Not chained: libpq quotes the part it stumbled over, and that may be the password.
        raise ConfigurationError(f"the PostgreSQL DSN can't be read: {hint}")
    if (port := get_param(parameters, "port")) and not port.replace(",", "").isdecimal():
        raise ConfigurationError(f"the port in the PostgreSQL DSN is not a number: {hint}")
    defaults = {**DEFAULTS, "target_session_attrs": "read-write"} if _several(parameters) else DEFAULTS
    for name, value in defaults.items():
        if get_param(parameters, name) is None:
            parameters[name] = value
    return parameters


def _several(parameters: ConnDict) -> bool:
    """Whether they name more than one server, of which a standby would be of no use to us."""
    return any("," in (get_param(parameters, name) or "") for name in ("host", "hostaddr"))


async def _attempts(parameters: ConnDict, patience: float, failures: list[str]) -> list[ConnDict]:
    """Every address to try, in order. Names are resolved here, as psycopg would ask asyncio's loop to."""
    found: list[tuple[str, str, str]] = []
    for attempt in split_attempts(parameters):
        host, port = get_param(attempt, "host") or "", get_param(attempt, "port") or "5432"
        address = get_param(attempt, "hostaddr") or (host if is_ip_address(host) else "")
        if address or not host or host.startswith("/"):
            found.append((host, address, port))
            continue
        try:
            with anyio.fail_after(patience):
                answers = await anyio.getaddrinfo(host, port, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            failures.append(f"{_target(attempt)}: its name can't be resolved: {error}")
        else:
            found.extend((host, str(answer[4][0]), port) for answer in answers)
    if not found:
        return []
    # psycopg orders them by target_session_attrs and load_balance_hosts; nothing is left for it to resolve.
    hosts, addresses, ports = (",".join(column) for column in zip(*found, strict=True))
    return await conninfo_attempts_async({**parameters, "host": hosts, "hostaddr": addresses, "port": ports})


def _place(attempt: ConnDict) -> tuple[str | None, ...]:
    return tuple(get_param(attempt, name) for name in ("host", "hostaddr", "port"))


def _target(attempt: ConnDict) -> str:
    """Where an attempt went. A password with an unescaped @ in it begins what libpq takes for the host."""
    host = (get_param(attempt, "host") or get_param(attempt, "hostaddr") or "the local socket").rpartition("@")[2]
    return f"{host}:{get_param(attempt, 'port') or 5432}"


# --- the connection ---------------------------------------------------------------------------------


class _RawLoader(Loader):
    """JSON as it came over the wire: whoever asked decodes it once, in the way they need it."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class BinaryArray(bytes):
    """An array as it goes over the wire, its texts in UTF-8. The statement says of what."""

    __slots__ = ()


class _BinaryArrayDumper(Dumper):
    """An array as it is, for who makes one knows its values better than we could find out one by one."""

    format = pq.Format.BINARY

    def dump(self, obj: BinaryArray) -> Buffer:
        return obj


_ADAPTERS: Final = AdaptersMap(psycopg.adapters)
_ADAPTERS.register_loader("json", _RawLoader)
_ADAPTERS.register_loader("jsonb", _RawLoader)
_ADAPTERS.register_dumper(BinaryArray, _BinaryArrayDumper)


class _Transaction(AsyncTransaction):
    """A transaction block whose end is not torn by a cancellation, yet bounded."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallow = False
        with _last_word(self.connection, error):
            swallow = await super().__aexit__(kind, error, trace)
        return swallow  # noqa: RET504 - the block above may have been left early


@contextmanager
def _last_word(connection: AsyncConnection[Any], error: BaseException | None) -> Generator[None]:
    """Shield the end of a block. Out of time, the connection is dropped; with no error under way, that is one."""
    now = current_time()
    wished = max(current_effective_deadline(), now) + FAREWELL
    deadline = now + PATIENCE if math.isinf(wished) else wished
    with CancelScope(shield=True, deadline=deadline) as scope:
        yield
    if scope.cancelled_caught:
        connection.cancel()
        if error is None:
            raise e.OperationalError("no answer at the end of a transaction: its outcome is unknown")


class Connection(AsyncConnection[Row]):
    """A connection to PostgreSQL that runs on asyncio and on trio alike.

    A task that is cancelled while its statement is in flight drops the socket at once: what became of the statement is
    unknown, and the connection is `closed`. Cancelled while nothing is in flight, the connection stays good. Leaving a
    transaction, or a pipeline that is one, is shielded, for at most `FAREWELL` seconds past the surrounding deadline.
    """

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.place: Hashable = None  # where its server has a reputation
        # A semaphore has no owner: one task may release what another acquired, as psycopg's generators do.
        self.lock = anyio.Semaphore(1, max_value=1, fast_acquire=True)  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        self._pid = os.getpid()
        self._breathed = monotonic()
        self._unreplicated = False
        self.unsteady: bool | None = None  # psycopg's `prepare`, for statements whose plan should not be kept
        self.add_notice_handler(self._notice)

    @classmethod
    async def connect(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = None,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Any] | None = None,
        cursor_factory: type[AsyncCursor[Any]] | None = None,
        reputation: Reputation | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Open a connection to the first of the conninfo's hosts that answers, last to those of a bad reputation.

        What the conninfo and the environment leave open is set here: timeouts, keepalives, the application's name; and
        of several hosts, that it be one that takes writes. `connect_timeout` (seconds, at least 2) bounds each address
        tried; so does its share of the time that the caller has. Prepared statements are off by default, because a
        transaction-pooling PgBouncer hands each statement to another server connection.

        Raises:
            psycopg.OperationalError: no host answered; the message names each and what it said, and no password.
            creche.errors.ConfigurationError: the conninfo can't be read.
        """
        parameters = _parameters(conninfo, **kwargs)
        patience = timeout_from_conninfo(parameters)
        failures: list[str] = []
        reputation = reputation or Reputation()
        attempts = reputation.in_turn(await _attempts(parameters, patience, failures), _place)
        for attempt, share in shares(attempts, longest=patience):
            try:
                connection = await cls._dial(attempt, share)
            except e.Error as error:
                failures.append(f"{_target(attempt)}: {' '.join(str(error).split())}")
                reputation.failed(_place(attempt))
            else:
                connection.place = _place(attempt)
                reputation.answered(connection.place)
                break
        else:
            # A new error, not a chained one: psycopg's own carries the conninfo with its password as an attribute.
            raise e.OperationalError("PostgreSQL can't be reached at " + "; at ".join(failures))
        connection._autocommit = autocommit
        connection._adapters = AdaptersMap(context.adapters if context else _ADAPTERS)
        connection.prepare_threshold = prepare_threshold
        connection.row_factory = row_factory or connection.row_factory
        connection.cursor_factory = cursor_factory or connection.cursor_factory
        return connection

    @classmethod
    async def _dial(cls, attempt: ConnDict, patience: float) -> Self:
        with anyio.move_on_after(patience):
            return await _connected(cls._connect_gen(make_conninfo("", **attempt)))
        raise e.ConnectionTimeout(f"no answer in {patience:.3g} s")

    async def prepare_if_direct(self) -> None:
        """Prepare what is sent often, if it is the server itself that we speak to: one round trip.

        But not where `unsteady` is given to psycopg: PostgreSQL may keep the plan of a statement that is prepared, and
        one that was made for a table while it was empty would be kept when a million jobs are in it.
        """
        answer = await (await self.execute(_ANSWERS_ITSELF, (self.pgconn.backend_pid,))).fetchone()
        if answer == (True,):
            self.prepare_threshold = OFTEN
            self.unsteady = False

    def replan(self) -> None:
        """Have everything that is prepared forgotten with the next statement, here and by the server."""
        self._prepared.clear()

    async def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Drive one of psycopg's generators: the only place that waits for the server."""
        try:
            result = await self._drive(gen, timeout)
        except BaseException as error:
            # An error from the server leaves the protocol in order; anything else leaves it in the middle of an answer.
            orderly = isinstance(error, e.Error) and not isinstance(error, e._WaitTimeout)
            if not orderly and self._in_flight():
                self.cancel()
            if self.closed:
                with suppress(e.Error, RuntimeError):
                    gen.close()  # it may try to tidy up a connection that is gone: here, not in the collector
            raise
        if self._unreplicated:
            self.cancel()
            raise e.OperationalError("the server gave up waiting for its standby: the commit's outcome is unknown")
        return result

    async def _drive(self, gen: Generator[int, int, T], timeout: float | None) -> T:
        deadline = None if timeout is None else current_time() + timeout
        try:
            wanted = next(gen)
            fileno = self.pgconn.socket
            while True:
                if wanted != Wait.R and monotonic() - self._breathed > BUSY:
                    await checkpoint()
                    self._breathed = monotonic()
                if deadline is None:
                    ready = await _ready(fileno, wanted)
                else:
                    ready = 0
                    with CancelScope(deadline=deadline):
                        ready = await _ready(fileno, wanted)
                    ready = ready or _poll(fileno, wanted)
                if wanted == Wait.R:
                    self._breathed = monotonic()
                wanted = gen.send(ready)
                if deadline is not None and current_time() >= deadline:
                    raise e._WaitTimeout("wait timeout expired")
        except StopIteration as stop:
            if monotonic() - self._breathed > BUSY:
                await cancel_shielded_checkpoint()  # a result that is here already isn't lost to a cancellation
                self._breathed = monotonic()
            result: T = stop.value
            return result
        except (OSError, anyio.ClosedResourceError) as error:
            raise e.OperationalError("the connection's socket is closed") from error

    def _in_flight(self) -> bool:
        pgconn = self.pgconn
        return (
            pgconn.transaction_status == pq.TransactionStatus.ACTIVE or pgconn.pipeline_status != pq.PipelineStatus.OFF
        )

    def _notice(self, diagnostic: e.Diagnostic) -> None:
        # The commit is durable here and perhaps nowhere else; the text is translated, the function's name is not.
        if diagnostic.source_function == "SyncRepWaitForLSN":
            self._unreplicated = True

    def forget(self) -> None:
        """Be as psycopg makes connections, whatever its last user has set on it; what the server keeps of a session is
        not touched.
        """
        plain: tuple[Any, Any] = tuple_row, AsyncCursor
        self.row_factory, self.cursor_factory = plain
        self._adapters = AdaptersMap(psycopg.adapters)
        self._adapters.register_dumper(BinaryArray, _BinaryArrayDumper)  # a type that nobody else knows
        self._prepared = PrepareManager()
        self.prepare_threshold = None
        self._notify_handlers.clear()
        self._notice_handlers[:] = [self._notice]

    def cancel(self) -> None:
        """Drop the socket at once, whoever waits on it. Where psycopg would ask the server to stop, this happens."""
        if os.getpid() != self._pid:
            return  # a forked child: the socket is its parent's, and a farewell on it would end the parent's session
        with suppress(e.OperationalError, RuntimeError):
            anyio.notify_closing(self.pgconn.socket)
        self._closed = True
        self.pgconn.finish()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Drop the socket at once."""
        self.cancel()

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        self.cancel()

    async def close(self) -> None:
        """Close the connection, at once and without a checkpoint; in a forked child, do nothing."""
        self.cancel()

    def __del__(self, *args: Any) -> None:
        if getattr(self, "_pid", None) == os.getpid():
            super().__del__(*args)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncGenerator[AsyncTransaction]:
        """A transaction, or a savepoint within one. Its end is shielded; see the class for how long."""
        block = _Transaction(self, savepoint_name, force_rollback)
        if self._pipeline:
            async with self.pipeline(), block, self.pipeline():
                yield block
        else:
            async with block:
                yield block

    @asynccontextmanager
    async def pipeline(self) -> AsyncGenerator[AsyncPipeline]:
        """Send statements without waiting for each answer. The end of the block collects them, shielded: it commits
        them, too, unless a transaction has begun before.
        """
        within = self.pgconn.transaction_status == pq.TransactionStatus.INTRANS
        block = super().pipeline()
        pipeline = await block.__aenter__()
        try:
            yield pipeline
        except BaseException as error:
            with _last_word(self, error):
                await block.__aexit__(type(error), error, error.__traceback__)
            raise
        with nullcontext() if within else _last_word(self, None):
            await block.__aexit__(None, None, None)


async def notifications(connection: AsyncConnection[Any]) -> list[tuple[str, str]]:
    """Wait until the server notifies this connection; return every (channel, payload) that has arrived.

    The connection must be in autocommit mode and have said LISTEN; nobody else can use it meanwhile. Nothing is in
    flight while waiting, so a cancellation leaves the connection good and loses no notification.

    It does what psycopg's own generator does, in a fifth of the calls: whoever is woken by it has a job to begin.

    Raises:
        StorageUnavailable: the connection is gone.
    """
    pgconn, backlog = connection.pgconn, connection._notifies_backlog
    heard: list[tuple[str, str]] = []
    while backlog:  # came with the answer to a statement
        early = backlog.popleft()
        heard.append((early.channel, early.payload))
    with translated():
        while True:
            while (word := pgconn.notifies()) is not None:
                heard.append((word.relname.decode(), word.extra.decode()))
            if heard:
                return heard
            await wait_readable(pgconn.socket)
            pgconn.consume_input()


@frozen
class PsycopgDriver:
    """What the pool and the calls need to know about PostgreSQL. The DSN stays out of its repr.

    Attributes:
        prepare: when statements are prepared.
    """

    dsn: str = field(repr=False)
    prepare: Prepare = None
    _reputation: Reputation = field(factory=Reputation, repr=False, eq=False)

    server = "PostgreSQL"

    def preparing(self, prepare: Prepare) -> PsycopgDriver:
        """Return a driver that connects to the same servers, and prepares statements."""
        return evolve(self, prepare=prepare)

    @property
    def several(self) -> bool:
        """Whether the DSN names more than one server."""
        return _several(_parameters(self.dsn))

    async def connect(self) -> Connection[tuple[Any, ...]]:
        """Open a connection. Raises StorageUnavailable where another try makes sense."""
        threshold = None if self.prepare == "auto" else self.prepare
        with translated():
            connection = await Connection.connect(self.dsn, prepare_threshold=threshold, reputation=self._reputation)
            if self.prepare == "auto":
                try:
                    await connection.prepare_if_direct()
                except BaseException:
                    connection.cancel()
                    raise
            return connection

    def usable(self, connection: Connection[tuple[Any, ...]]) -> bool:
        """Whether the server has not hung up: an idle connection with something to read was told good-bye."""
        try:
            return self.clean(connection) and not _poll(connection.pgconn.socket, Wait.R)
        except OSError:
            return False

    def clean(self, connection: Connection[tuple[Any, ...]]) -> bool:
        """Whether it is open, with no transaction, statement or pipeline under way."""
        return (
            not connection.closed
            and not connection._in_flight()
            and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        )

    def translated(self) -> AbstractContextManager[None]:
        """See `translated`."""
        return translated()

    def drop(self, connection: Connection[tuple[Any, ...]]) -> None:
        """Cut it at once: its server has failed."""
        self._reputation.failed(connection.place)
        connection.cancel()

    async def close(self, connection: Connection[tuple[Any, ...]]) -> None:
        """Close it, at once."""
        await connection.close()
