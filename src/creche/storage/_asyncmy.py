"""MySQL and MariaDB on anyio: asyncmy's parser, ciphers and errors below a connection that needs no asyncio.

It knows no table of the queue, keeps no pool, starts no thread and no event loop, and never asks a server to kill a
statement: of a write that was given up, only the table can tell what became of it.
"""

# asyncmy's stubs leave half of its types open.
# mypy: disallow-untyped-calls=false, warn-return-any=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
import os
import random
import re
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from functools import lru_cache
from struct import Struct
from typing import Any, Final, Self, TypeAlias

import anyio
from anyio import CancelScope, current_time
from anyio.lowlevel import checkpoint_if_cancelled
from asyncmy import auth, errors
from asyncmy.constants import CLIENT, CR, FIELD_TYPE, SERVER_STATUS
from asyncmy.converters import convert_date, convert_datetime, convert_timedelta
from asyncmy.protocol import FieldDescriptorPacket, MysqlPacket, parse_rows_from_buffer
from attrs import field, frozen

from creche.errors import (
    ConfigurationError,
    MissingExtra,
    StatementRejected,
    StorageUnavailable,
)
from creche.storage._hosts import Reputation, shares
from creche.storage._mysql_address import Address, Destination, tls_context
from creche.storage._mysql_cluster import LOOK, PROBE, Membership
from creche.storage._pool import TransientConflict
from creche.storage._wire import Wire, has_news

__all__ = ["Answer", "AsyncmyDriver", "Connection", "Server", "translated"]

# Bytes in one packet of the protocol. A payload of exactly so many, or more, goes on in the next packet.
LONGEST_PACKET: Final = (1 << 24) - 1

# --- errors -----------------------------------------------------------------------------------------

# The transaction, or its last statement, was undone by the server and will do when tried again as a whole. 1180 and
# 3101: a commit refused by Group Replication; 1412: the table was altered meanwhile; 3572: NOWAIT.
CONFLICTS: Final = frozenset({1020, 1180, 1205, 1213, 1412, 3101, 3572})

# The server can't serve this now; another one, or this one later, may. The connection is given up with it.
UNAVAILABLE: Final = frozenset(
    {
        *range(CR.CR_ERROR_FIRST, CR.CR_ERROR_LAST + 1),  # the connection is lost, or was never made
        *(1042, 1043, 1080, 1081, 1129, 1130, 1152, 1158, 1159, 1160, 1161, 1184),  # so says the server
        *(1040, 1135, 1203, 1226, 1637),  # too many: connections, threads, connections of this account, transactions
        *(1021, 1026, 1030, 1037, 1038, 1041, 1114, 1206),  # no room left: on its disk, in its memory
        *(1053, 1077, 1079, 1927, 3032, 3168, 3169, 4031),  # shutting down, offline, or ending this session
        *(1290, 1792, 1836),  # read-only: not the primary, or no longer
        *(1047, 3100, 3796, 3797, 3798, 3799),  # a member of a cluster that has lost the others, or is about to
        *(1317, 1969, 3024),  # the statement was killed, or ran into the server's own time limit
    }
)

# Of these, what ends the statement alone: the connection goes on.
INTERRUPTED: Final = frozenset({1317, 1969, 3024})

# After the others nothing more is said on this connection; nor after 1153, a packet too long to be heard to its end.
FATAL: Final = UNAVAILABLE - INTERRUPTED | {1153}

# Whose messages quote only names. The others may quote a value out of a row, or a piece of the statement.
NAMES_ONLY: Final = frozenset(
    {1044, 1045, 1048, 1049, 1050, 1051, 1054, 1060, 1061, 1072, 1091, 1142, 1146, 1193, 1227, 1290, 1305, 1364, 1406}
)
_QUOTED: Final = re.compile(r"'.*'", re.DOTALL)


@contextmanager
def translated() -> Generator[None]:
    """Turn what asyncmy raises in this block into creche's errors, each chained from its cause.

    Raises:
        TransientConflict: the server undid the statement or the transaction; roll back, run the whole of it again.
        StorageUnavailable: no connection, or no answer. A write may or may not have taken effect.
        StatementRejected: the server refused for good.
    """
    try:
        yield
    except errors.MySQLError as error:
        raise _meaning(error) from error
    except (OSError, anyio.ClosedResourceError) as error:
        raise StorageUnavailable(f"MySQL did not answer: {str(error) or type(error).__name__}") from error


def _meaning(error: errors.MySQLError) -> StorageUnavailable | StatementRejected:
    code, text = _code_and_text(error)
    if code in CONFLICTS:
        return TransientConflict(f"MySQL undid the transaction, run it again: {text} ({code})")
    if code in UNAVAILABLE or not code:
        return StorageUnavailable(f"MySQL can't serve this now: {text} ({code})")
    return StatementRejected(f"MySQL refused the statement: {text} ({code})")


def _code_and_text(error: errors.MySQLError) -> tuple[int, str]:
    """What the server said, without what it quotes of a row or a statement. What it did not say has no code."""
    match error.args:
        case (int(code), str(text)):
            return code, text if code in NAMES_ONLY or code in UNAVAILABLE else _QUOTED.sub("'…'", text)
        case _:
            return 0, str(error)


# --- the connection ---------------------------------------------------------------------------------

# Capabilities without which creche's statements would mean something else. FOUND_ROWS: an UPDATE counts the rows that
# it found, not those that it changed.
REQUIRED: Final = {
    "FOUND_ROWS": CLIENT.FOUND_ROWS,
    "MULTI_STATEMENTS": CLIENT.MULTI_STATEMENTS,
    "CONNECT_WITH_DB": CLIENT.CONNECT_WITH_DB,
    "PROTOCOL_41": CLIENT.PROTOCOL_41,
    "SECURE_CONNECTION": CLIENT.SECURE_CONNECTION,
    "PLUGIN_AUTH": CLIENT.PLUGIN_AUTH,
}
WISHED: Final = (
    CLIENT.LONG_PASSWORD
    | CLIENT.LONG_FLAG
    | CLIENT.TRANSACTIONS
    | CLIENT.MULTI_RESULTS
    | CLIENT.PLUGIN_AUTH_LENENC_CLIENT_DATA
    | CLIENT.CONNECT_ATTRS
    | CLIENT.DEPRECATE_EOF
)
UTF8MB4: Final = 45  # the number of utf8mb4_general_ci, which each of the servers knows

SQL_MODE: Final = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_BACKSLASH_ESCAPES"
# Seconds by which the server's limit on a statement exceeds that on a lock: who waits for a lock is told so.
GRACE: Final = 2

# Thread, salt, filler, capabilities, character set, status, more capabilities, the salt's length, reserved.
_GREETING: Final = Struct("<I8sxHBHHB10x")
_RESPONSE: Final = Struct("<IIB23x")  # capabilities, packet size, character set
_HEADER: Final = Struct("<I")

_COM_QUIT: Final = b"\x01\x00\x00\x00\x01"
_COM_QUERY: Final = b"\x03"
_COM_RESET: Final = b"\x1f"
_OK, _LOCAL_INFILE, _END = 0x00, 0xFB, 0xFE  # how a packet begins

# As asyncmy's parser takes them: 0 leaves the bytes, 1 decodes UTF-8, 2 decodes ASCII; then a function, or None.
_Decoder: TypeAlias = tuple[int, str | None, Callable[[Any], Any] | None]
_BYTES: Final[_Decoder] = (0, None, None)
_TEXT: Final[_Decoder] = (1, "utf8", None)
_DECODERS: Final[Mapping[int, _Decoder]] = {
    **dict.fromkeys((FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG), (0, None, int)),
    **dict.fromkeys((FIELD_TYPE.LONGLONG, FIELD_TYPE.YEAR), (0, None, int)),
    **dict.fromkeys((FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE), (0, None, float)),
    **dict.fromkeys((FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL), (2, "ascii", Decimal)),
    **dict.fromkeys((FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP), (0, None, convert_datetime)),
    FIELD_TYPE.DATE: (0, None, convert_date),
    FIELD_TYPE.TIME: (0, None, convert_timedelta),
    FIELD_TYPE.JSON: _TEXT,
}
_BINARY: Final = 63  # the number of the character set of what is no text


@lru_cache(maxsize=1024)
def _column(definition: bytes) -> tuple[str, _Decoder]:
    column = FieldDescriptorPacket(definition, "utf8")
    return column.name, _DECODERS.get(column.type_code) or (_BYTES if column.charsetnr == _BINARY else _TEXT)


@frozen
class Answer:
    """What came of one statement: its rows; and how many rows it found to change, or returned.

    Attributes:
        columns: the names, if it returns rows.
        last_id: the first AUTO_INCREMENT value that it drew; 0 if it drew none.
    """

    rows: list[tuple[Any, ...]]
    affected: int
    columns: tuple[str, ...] = field(default=(), kw_only=True, eq=False)
    last_id: int = field(default=0, kw_only=True, eq=False)


@frozen
class Server:
    """Which server answers behind whatever stands between."""

    mariadb: bool
    version: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The name and version, for messages."""
        return f"{'MariaDB' if self.mariadb else 'MySQL'} {'.'.join(map(str, self.version))}"

    @classmethod
    def named(cls, version: str) -> Self:
        """Read what `@@version` says."""
        major, minor, patch = (int(found) for found in (re.findall(r"\d+", version) + ["0"] * 3)[:3])
        return cls("mariadb" in version.lower(), (major, minor, patch))


class Connection:
    """A connection to MySQL or MariaDB that runs on asyncio and on trio alike, for one task at a time.

    A task that is cancelled while its statement is in flight drops the socket at once: what became of the statement is
    unknown, and the connection is `closed`. Cancelled before anything was sent, the connection stays good. So it does
    after an error of the server's, unless the server can't serve at all.

    What it has set for the session it has read back: see `_settings`.
    """

    closed: bool
    lent: bool  # whether somebody who isn't us has had it: then `reset` comes first
    server: Server
    thread_id: int
    max_allowed_packet: int

    def __init__(self, wire: Wire, address: Address) -> None:
        self.address: Final = address
        self.membership = Membership()
        self.closed = False
        self.lent = False
        self._wire = wire
        self._at = 0  # what of the inbox is read
        self._sequence = 0  # the number that the next packet has
        self._status = 0
        self._in_flight = True
        self._plain_ends = True
        self._pid = os.getpid()

    @classmethod
    async def connect(
        cls, destination: Destination, *, lock_timeout: float = 10.0, reputation: Reputation | None = None
    ) -> Self:
        """Open a connection to the first of the hosts that will do, and make the session ours.

        Args:
            destination: where, as whom, and for how long to try.
            lock_timeout: seconds that a statement waits for a lock; its end comes `GRACE` seconds later at most,
                even if nobody is there any more to hear of it (on MySQL: of a SELECT only).
            reputation: of the hosts; those that failed are tried last.

        Raises:
            StorageUnavailable: nobody answered, or we were turned away; says where and why, and no password.
            ConfigurationError: the server, or a proxy before it, does not do as it is told.
            StatementRejected: the server does not know one of the settings.
        """
        reputation = reputation or Reputation()
        hosts = list(destination.hosts)
        if destination.shuffled:
            random.shuffle(hosts)
        failures: list[StorageUnavailable] = []
        turns = reputation.in_turn(hosts, lambda host: host)
        for address, share in shares(turns, together=destination.connect_timeout):
            failure = StorageUnavailable(f"MySQL can't be reached at {address.place}: no answer in {share:.3g} s")
            with CancelScope(deadline=current_time() + share):
                try:
                    connection = await cls._reach(address, lock_timeout, writable=destination.writable)
                except StorageUnavailable as error:
                    failure = error
                else:
                    reputation.answered(address)
                    return connection
            reputation.failed(address)
            failures.append(failure)
        if len(failures) == 1:
            raise failures[0]
        raise StorageUnavailable("; ".join(map(str, failures)))

    @classmethod
    async def _reach(cls, address: Address, lock_timeout: float, *, writable: bool) -> Self:
        """Connect to the first of a host's addresses that answers."""
        failures: list[str] = []
        try:
            targets = await _targets(address)
        except (OSError, UnicodeError) as error:
            raise StorageUnavailable(f"{address.host}: the name can't be resolved: {error}") from error
        for (family, target), share in shares(targets):
            where = address.place if family == socket.AF_UNIX else f"{address.place} ({target[0]})"
            with CancelScope(deadline=current_time() + share):
                try:
                    wire = await Wire.dial(family, target)
                    return await cls._open(wire, address, lock_timeout, writable=writable)
                except (OSError, anyio.ClosedResourceError) as error:
                    failures.append(f"{where}: {error}")
                    continue
            failures.append(f"{where}: no answer in {share:.3g} s")
        raise StorageUnavailable(f"MySQL can't be reached at {'; at '.join(failures)}")

    @classmethod
    async def _open(cls, wire: Wire, address: Address, lock_timeout: float, *, writable: bool) -> Self:
        connection = cls(wire, address)
        try:
            try:
                await connection._enter(address)
            except errors.MySQLError as error:
                code, text = _code_and_text(error)
                raise StorageUnavailable(f"the server at {address.place} lets nobody in: {text} ({code})") from error
            with translated():
                await connection._settle_in(lock_timeout)
                await connection._look_round(writable=writable)
        except BaseException:
            connection.drop()
            raise
        return connection

    # --- letting us in

    async def _enter(self, address: Address) -> None:
        greeting = _Greeting.read(await self._packet())
        if missing := [name for name, flag in REQUIRED.items() if not greeting.capabilities & flag]:
            raise ConfigurationError(f"MySQL at {address.place}, or a proxy before it, lacks {', '.join(missing)}")
        flags = sum(REQUIRED.values()) | WISHED & greeting.capabilities
        self._plain_ends = not flags & CLIENT.DEPRECATE_EOF
        encrypted = _wants_tls(address, offered=bool(greeting.capabilities & CLIENT.SSL))
        if encrypted:
            flags |= CLIENT.SSL
            await self._send(_RESPONSE.pack(flags, LONGEST_PACKET, UTF8MB4))
            self._at = 0
            await self._wire.start_tls(tls_context(address), address.host)
        # An account may ask for another proof than the server does; in the first answer nothing is sent in the clear.
        plugin = greeting.plugin if greeting.plugin in {NATIVE, CACHING_SHA2} else NATIVE
        proof = _proof(plugin, address, greeting.salt)
        attributes = b"".join(_counted(word) for word in (b"program_name", b"creche"))
        await self._send(
            _RESPONSE.pack(flags, LONGEST_PACKET, UTF8MB4)
            + address.user.encode()
            + b"\0"
            + _counted(proof)
            + address.database.encode()
            + b"\0"
            + plugin.encode()
            + b"\0"
            + (_counted(attributes) if flags & CLIENT.CONNECT_ATTRS else b"")
        )
        await self._prove(address, plugin, greeting.salt, encrypted=encrypted)

    async def _prove(self, address: Address, plugin: str, salt: bytes, *, encrypted: bool) -> None:
        """Answer what the server asks until it is content."""
        password = address.password.encode()
        while True:
            packet = await self._packet()
            match packet[0], packet[1:]:
                case (0x00, _):
                    self._ended(packet)
                    self._in_flight = False
                    return
                case (0xFE, asked) if asked:  # another plugin
                    name, _, salt = asked.partition(b"\0")
                    plugin = name.decode()
                    await self._send(_proof(plugin, address, salt, encrypted=encrypted))
                case (0x01, b"\x03"):  # the server remembers the password; its OK follows
                    pass
                case (0x01, b"\x04") if encrypted or address.unix_socket:
                    await self._send(password + b"\0")
                case (0x01, b"\x04"):
                    await self._send(b"\x02")  # asks for its key
                case (0x01, key) if plugin == CACHING_SHA2:
                    await self._send(_sealed(password, salt, key))
                case _:
                    raise errors.OperationalError(CR.CR_MALFORMED_PACKET, "the server asks what nobody understands")

    async def _settle_in(self, lock_timeout: float, database: str = "") -> None:
        """Make the session ours, whatever the server's defaults are, and see that it worked."""
        settings = _settings(lock_timeout)
        opening = [_opening(settings, limit=_seconds(lock_timeout) + GRACE)]
        if self.membership.causal:
            opening.insert(0, self.membership.causal)
        if database:
            opening.insert(0, f"USE `{database.replace('`', '``')}`")
        *_, told = await self._exchange(_COM_QUERY + ";".join(opening).encode())
        ((self.thread_id, version, self.max_allowed_packet, *found),) = told.rows
        self.server = Server.named(version)
        wanted = {"transaction_isolation": "READ-COMMITTED", "transaction_read_only": 0, **settings}
        ignored = [
            f"{name} is {now!r}"
            for (name, value), now in zip(wanted.items(), found, strict=True)
            if _comparable(now) != _comparable(value)
        ]
        if not self._status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES:
            ignored.append("its status flags tell nothing of sql_mode")
        if ignored:
            raise ConfigurationError(
                f"{self.server.name}, or a proxy before it, ignores settings: {'; '.join(ignored)}"
            )

    async def _look_round(self, *, writable: bool) -> None:
        """Find out how the server stands among others, and have the session know what those have acknowledged."""
        (looked,) = await self.run(LOOK)
        self.membership = Membership.told(dict(looked.rows))
        if writable and self.membership.read_only:
            raise StorageUnavailable(f"the server at {self.address.place} takes no writes: {self.membership.read_only}")
        if self.membership.causal:
            await self.run(f"{self.membership.causal};{PROBE}")

    # --- statements

    async def run(self, sql: str) -> list[Answer]:
        """Send statements, separated by semicolons, in one round trip; return an answer for each.

        Raises:
            asyncmy.errors.MySQLError: what the server said to the first that failed; those after it were not run.
            OSError, anyio.ClosedResourceError: the connection is lost, the outcome unknown.
            StatementRejected: the text is longer than the server takes, or no Unicode; nothing was sent.
            StorageUnavailable: the session has lost its `sql_mode`, on which the text relies; nothing was sent.
        """
        try:
            statements = sql.encode()
        except UnicodeEncodeError as error:
            # Not chained: the cause carries the whole statement.
            raise StatementRejected(f"the statement can't be sent: {error.reason} at {error.start}") from None
        if len(statements) + 1 >= self.max_allowed_packet:
            raise StatementRejected(
                f"the statement can't be sent: it has {len(statements)} bytes, "
                f"and the server's max_allowed_packet is {self.max_allowed_packet}"
            )
        if not self._status & SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES:
            self.drop()
            raise StorageUnavailable("the session has lost its sql_mode: something changed it, or swapped the session")
        await checkpoint_if_cancelled()
        return await self._exchange(_COM_QUERY + statements)

    async def reset(self, database: str, *, lock_timeout: float) -> None:
        """Make the session what it was when it was opened, whatever has been set, locked or made in it meanwhile.

        Raises:
            asyncmy.errors.MySQLError, OSError, anyio.ClosedResourceError: see `run`.
            ConfigurationError: see `connect`.
        """
        await checkpoint_if_cancelled()
        await self._exchange(_COM_RESET)
        await self._settle_in(lock_timeout, database)

    async def _exchange(self, command: bytes) -> list[Answer]:
        if self.closed:
            raise anyio.ClosedResourceError
        if self._in_flight:
            raise anyio.BusyResourceError("using")
        self._in_flight = True
        try:
            self._sequence = 0
            await self._send(command)
            answers = [await self._answer()]
            while self._status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
                answers.append(await self._answer())
            self._in_flight = False
        finally:
            if self._in_flight:  # in the middle of an answer
                self.drop()
        return answers

    async def _answer(self) -> Answer:
        first = await self._packet()
        if first[0] == _OK:
            affected, last_id = self._ended(first)
            return Answer([], affected, last_id=last_id)
        if first[0] == _LOCAL_INFILE:
            raise errors.OperationalError(CR.CR_MALFORMED_PACKET, "the server asks for a file of ours")
        width = MysqlPacket(first, "utf8").read_length_encoded_integer()
        columns, decoders = zip(*[_column(await self._packet()) for _ in range(width)], strict=True)
        if self._plain_ends:
            await self._packet()
        rows: list[tuple[Any, ...]] = []
        while True:
            self._at, self._sequence = parse_rows_from_buffer(
                self._wire.inbox,
                self._at,
                len(self._wire.inbox),
                decoders,
                self._sequence,
                rows,
                not self._plain_ends,
            )
            # What stopped the parser: the end, an error, a row of 16 MiB, or one that isn't here as a whole.
            packet = await self._packet()
            if packet[0] == _END and len(packet) < LONGEST_PACKET:
                self._ended(packet)
                return Answer(rows, len(rows), columns=columns)
            rows.append(MysqlPacket(packet, "utf8").read_row(decoders))

    def _ended(self, packet: bytes) -> tuple[int, int]:
        """Take over the status flags from the end of an answer; return how many rows it says were affected, and the
        AUTO_INCREMENT value that it drew.
        """
        end = MysqlPacket(packet, "utf8")
        end.advance(1)
        if packet[0] == _END and self._plain_ends:
            end.advance(2)  # warnings
            self._status = end.read_uint16()
            return 0, 0
        affected: int = end.read_length_encoded_integer()
        last_id: int = end.read_length_encoded_integer()
        self._status = end.read_uint16()
        return affected, last_id

    # --- packets

    async def _send(self, payload: bytes) -> None:
        for start in range(0, len(payload) + 1, LONGEST_PACKET):
            piece = payload[start : start + LONGEST_PACKET]
            await self._wire.send(_HEADER.pack(len(piece) | self._sequence << 24) + piece)
            self._sequence = (self._sequence + 1) & 0xFF

    async def _packet(self) -> bytes:
        """Read one packet. An error of the server's is raised; it ends the exchange in good order."""
        inbox = self._wire.inbox
        whole = b""
        while True:
            at = self._at
            if len(inbox) - at < 4:
                await self._have(4)
                at = self._at
            size = inbox[at] | inbox[at + 1] << 8 | inbox[at + 2] << 16
            if len(inbox) - at < 4 + size:
                await self._have(4 + size)
                at = self._at
            end = at + 4 + size
            piece = bytes(inbox[at + 4 : end])
            in_order = inbox[at + 3] == self._sequence
            self._at = end
            self._sequence = (self._sequence + 1) & 0xFF
            if size < LONGEST_PACKET:
                break
            whole += piece
        if whole:
            piece = whole + piece
        if piece[:1] == b"\xff":
            # A server that ends the session says so out of turn.
            code = int.from_bytes(piece[1:3], "little")
            self._in_flight = not in_order or code in FATAL
            errors.raise_mysql_exception(piece)
        if not in_order or not piece:
            raise errors.OperationalError(CR.CR_MALFORMED_PACKET, "the server's packets are out of order")
        return piece

    async def _have(self, size: int) -> None:
        inbox = self._wire.inbox
        del inbox[: self._at]
        self._at = 0
        while len(inbox) < size:
            await self._wire.receive()

    # --- state, and the end

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, by what the server said last. An error of its says nothing about that."""
        return bool(self._status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)

    @property
    def idle(self) -> bool:
        """Whether it is open, and nothing is in flight."""
        return not self.closed and not self._in_flight

    @property
    def quiet(self) -> bool:
        """Whether the server has said nothing unasked: a good-bye, or the end of the stream."""
        return self._at == len(self._wire.inbox) and not has_news(self._wire.socket)

    def drop(self) -> None:
        """Close the socket at once, whoever waits on it; in a forked child, do nothing."""
        # A child shares its parent's event queue, too: the parent would wait for an answer that nobody reports.
        if os.getpid() == self._pid:
            self.closed = True
            self._wire.close()

    async def aclose(self) -> None:
        """Say good-bye if that needs no waiting, and close the socket."""
        if self.idle and os.getpid() == self._pid:
            self._wire.say(_COM_QUIT)
        self.drop()


async def _targets(address: Address) -> list[tuple[socket.AddressFamily, Any]]:
    if address.unix_socket:
        return [(socket.AF_UNIX, address.unix_socket)]
    found = await anyio.getaddrinfo(address.host, address.port, proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
    return [(family, target) for family, _, _, _, target in found]


def _settings(lock_timeout: float) -> dict[str, int | str]:
    """What a session of ours has: each is set, and read back. The storage's statements rely on the sql_mode."""
    seconds = _seconds(lock_timeout)
    return {
        "autocommit": 1,
        "character_set_client": "utf8mb4",
        "character_set_results": "utf8mb4",
        "collation_connection": "utf8mb4_bin",
        "completion_type": "NO_CHAIN",
        "foreign_key_checks": 1,
        "innodb_lock_wait_timeout": seconds,
        "lock_wait_timeout": seconds,
        "sql_mode": SQL_MODE,
        "sql_safe_updates": 0,
        "sql_select_limit": (1 << 64) - 1,
        "time_zone": "+00:00",
        "unique_checks": 1,
    }


def _opening(settings: Mapping[str, int | str], *, limit: int) -> str:
    """Set and read back. Each server takes the other's special comments for comments."""
    assigned = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
    told = ", ".join(f"@@{name}" for name in settings)
    return f"""
        SET {assigned}
            /*!50720 , max_execution_time = {limit * 1000} */
            /*M!100101 , max_statement_time = {limit} */;
        SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
        SELECT connection_id(), @@version, @@max_allowed_packet,
            /*!50720 @@transaction_isolation, @@transaction_read_only, */
            /*M!100101 @@tx_isolation, @@tx_read_only, */
            {told}
    """


def _seconds(lock_timeout: float) -> int:
    return max(1, math.ceil(lock_timeout))


def _comparable(value: object) -> object:
    return set(value.split(",")) if isinstance(value, str) else value  # a mode's words come back in another order


# --- being let in -----------------------------------------------------------------------------------

NATIVE: Final = "mysql_native_password"
CACHING_SHA2: Final = "caching_sha2_password"
ED25519: Final = "client_ed25519"
SALT: Final = 20  # bytes; a zero follows, but not that of ed25519, which is longer and may end in one itself
CLEAR: Final = ("mysql_clear_password", "sha256_password")


@frozen
class _Greeting:
    """What a server says of itself before it knows us."""

    capabilities: int
    salt: bytes
    plugin: str

    @classmethod
    def read(cls, packet: bytes) -> Self:
        version, _, rest = packet.partition(b"\0")
        if version[:1] != b"\x0a" or len(rest) < _GREETING.size:
            raise errors.OperationalError(CR.CR_VERSION_ERROR, "what answers there speaks another protocol")
        _, salt, low, _, _, high, length = _GREETING.unpack_from(rest)
        more = max(13, length - 8)  # with a zero at its end
        rest = rest[_GREETING.size :]
        return cls(low | high << 16, (salt + rest[:more])[:SALT], rest[more:].partition(b"\0")[0].decode())


def _wants_tls(address: Address, *, offered: bool) -> bool:
    if address.ssl_mode == "disabled":
        return False
    if address.ssl_mode == "preferred":
        return offered and not address.unix_socket
    if not offered:
        raise errors.OperationalError(CR.CR_SSL_CONNECTION_ERROR, f"ssl_mode={address.ssl_mode}, and it offers no TLS")
    return True


def _proof(plugin: str, address: Address, salt: bytes, *, encrypted: bool = False) -> bytes:
    """What convinces the server that we know the password."""
    password = address.password.encode()
    if plugin == NATIVE:
        return auth.scramble_native_password(password, salt[:SALT])
    if plugin == CACHING_SHA2:
        return auth.scramble_caching_sha2(password, salt[:SALT])
    if plugin == ED25519:
        try:
            return auth.ed25519_password(password, salt)
        except RuntimeError as error:  # asyncmy could not import it
            raise ConfigurationError(
                "accounts with ed25519 signatures need one more package: pip install pynacl"
            ) from error
    if plugin in CLEAR and encrypted and address.ssl_mode.startswith("verify"):
        return password + b"\0"
    hint = "; it wants the password itself: use ssl_mode=verify_identity" if plugin in CLEAR else ""
    raise errors.OperationalError(CR.CR_AUTH_PLUGIN_ERR, f"the account's authentication is {plugin!r}{hint}")


def _sealed(password: bytes, salt: bytes, key: bytes) -> bytes:
    """The password, for whoever has the other half of the key."""
    try:
        return auth.sha2_rsa_encrypt(password, salt, key)
    except RuntimeError as error:  # asyncmy could not import it
        raise MissingExtra("mysql", "cryptography") from error


def _counted(text: bytes) -> bytes:
    return bytes([len(text)]) + text


@frozen
class AsyncmyDriver:
    """What the pool needs to know about MySQL. `lock_timeout`: seconds, see `Connection.connect`."""

    destination: Destination
    lock_timeout: float = field(default=10.0, kw_only=True)
    _reputation: Reputation = field(factory=Reputation, init=False, repr=False, eq=False)

    server = "MySQL"

    async def connect(self) -> Connection:
        """Open a connection. Raises StorageUnavailable where another try makes sense."""
        return await Connection.connect(self.destination, lock_timeout=self.lock_timeout, reputation=self._reputation)

    def usable(self, connection: Connection) -> bool:
        """Whether the server has not hung up: an idle connection with something to read was told good-bye."""
        return self.clean(connection) and connection.quiet

    def clean(self, connection: Connection) -> bool:
        """Whether it is open, with no transaction or statement under way."""
        return connection.idle and not connection.in_transaction

    async def close(self, connection: Connection) -> None:
        """Close it, at once."""
        await connection.aclose()

    def translated(self) -> AbstractContextManager[None]:
        """See `translated`."""
        return translated()

    def drop(self, connection: Connection) -> None:
        """Cut it at once: its server has failed."""
        self._reputation.failed(connection.address)
        connection.drop()
