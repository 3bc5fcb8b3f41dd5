"""Where MySQL or MariaDB is, and as whom to go there: read from a DSN, whose password stays out of every message."""

from __future__ import annotations

import getpass
import math
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from attrs import field, frozen

from creche.errors import (
    ConfigurationError,
    OptionInvalid,
)

SSL_MODES: Final = ("disabled", "preferred", "required", "verify_ca", "verify_identity")
OWN_OPTIONS: Final[tuple[str, ...]] = ("pool_size", "call_timeout", "push", "skew_allowance")  # the storage's
# In libpq's words, as far as they make sense here. Nobody who can't write is of use to a queue.
BALANCING: Final = {"disable": False, "random": True}
TARGETS: Final = {"any": False, "read-write": True}
_HINT: Final = "percent-encode what is special in the user's name and password"


@frozen(kw_only=True)
class Address:
    """Where the server is, and as whom to go there. Its repr hides the password."""

    host: str
    port: int
    unix_socket: str
    user: str
    password: str = field(repr=False)
    database: str
    ssl_mode: str
    ssl_ca: str
    ssl_cert: str
    ssl_key: str
    connect_timeout: float  # seconds, for finding, connecting and authenticating together

    @property
    def place(self) -> str:
        """Where, in words for a message."""
        return self.unix_socket or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


@frozen(kw_only=True)
class Destination:
    """The servers of which one will do.

    Attributes:
        hosts: where they are, in the order in which to try them; at least one.
        shuffled: whether to try them in another order each time.
        writable: whether a server that takes no writes, or has lost its cluster, won't do.
    """

    hosts: tuple[Address, ...]
    shuffled: bool
    writable: bool

    @property
    def place(self) -> str:
        """Where, in words for a message."""
        return ", ".join(host.place for host in self.hosts)

    @property
    def database(self) -> str:
        """Where the queue's tables are."""
        return self.hosts[0].database

    @property
    def connect_timeout(self) -> float:
        """Seconds, for all of them together."""
        return self.hosts[0].connect_timeout


def parse_dsn(dsn: str) -> tuple[Destination, dict[str, int | float | str]]:
    """Read `mysql://user:password@host:port,host:port/database?unix_socket=…&ssl_mode=…`; `mariadb://` is the same.

    Of the parameters those in `OWN_OPTIONS` are the storage's own; they are returned beside the destination, numbers as
    numbers, for whoever checks them. `ssl_mode` is one of `SSL_MODES` and means what it means to the mysql client;
    without it, TLS is used if the server offers it, and verified if there is an `ssl_ca`. `load_balance_hosts` and
    `target_session_attrs` mean what they mean to libpq; of several hosts, one is wanted that takes writes.

    Raises:
        ConfigurationError: the DSN can't be read, or names a parameter that there isn't. It is never quoted.
        OptionInvalid: a parameter has a value that makes no sense.
    """
    before, places, after = _around_the_hosts(dsn)
    if len(places) > 1 and "" in places:
        raise ConfigurationError(f"the MySQL DSN has a comma too many between its hosts: {_HINT}")
    read = [_parse(f"{before}{place}{after}") for place in places]
    _, given, ours = read[0]
    shuffled = _word(given, "load_balance_hosts", BALANCING, "disable")
    writable = _word(given, "target_session_attrs", TARGETS, "any" if len(read) == 1 else "read-write")
    for name in given:
        # What is no name may be the rest of a password.
        named = repr(name) if name.isidentifier() else "of such a name"
        raise ConfigurationError(f"the MySQL DSN has a parameter {named} that creche doesn't know; {_HINT}")
    return Destination(hosts=tuple(address for address, _, _ in read), shuffled=shuffled, writable=writable), ours


def _around_the_hosts(dsn: str) -> tuple[str, list[str], str]:
    scheme, separator, rest = dsn.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    account, at, places = authority.rpartition("@")
    return f"{scheme}{separator}{account}{at}", places.split(","), rest[len(authority) :]


def _word(given: dict[str, str], name: str, words: Mapping[str, bool], default: str) -> bool:
    if (word := given.pop(name, default)) not in words:
        raise OptionInvalid(name, word, f"one of {', '.join(words)}")
    return words[word]


def _parse(dsn: str) -> tuple[Address, dict[str, str], dict[str, int | float | str]]:
    """Return the one address of this DSN, the parameters that aren't about it, and those that are the storage's."""
    parts, port = _split(dsn)
    database = unquote(parts.path[1:])
    if not database or "/" in parts.path[1:]:
        raise ConfigurationError(f"the MySQL DSN names no database: mysql://user:password@host/database; {_HINT}")
    given = _parameters(parts.query)
    ours = {name: _number(given.pop(name)) for name in OWN_OPTIONS if name in given}
    unix_socket, ssl_ca = given.pop("unix_socket", ""), given.pop("ssl_ca", "")
    ssl_mode = given.pop("ssl_mode", "verify_ca" if ssl_ca else "preferred").lower()
    if ssl_mode not in SSL_MODES:
        raise OptionInvalid("ssl_mode", ssl_mode, f"one of {', '.join(SSL_MODES)}")
    patience = _number(given.pop("connect_timeout", "10"))
    if isinstance(patience, str) or not 0 < patience < math.inf:
        raise OptionInvalid("connect_timeout", patience, "seconds, more than zero")
    address = Address(
        host=unquote(parts.hostname or "localhost"),
        port=port,
        unix_socket=unix_socket,
        user=unquote(parts.username or "") or _whoever_runs_this(),
        password=unquote(parts.password or ""),
        database=database,
        ssl_mode=ssl_mode,
        ssl_ca=ssl_ca,
        ssl_cert=given.pop("ssl_cert", ""),
        ssl_key=given.pop("ssl_key", ""),
        connect_timeout=float(patience),
    )
    return address, given, ours


def _split(dsn: str) -> tuple[SplitResult, int]:
    # Nothing is chained here: what could not be read is quoted by the cause, and may be the password.
    try:
        dsn.encode()  # bytes in the environment that are no text have become halves of characters
        parts = urlsplit(dsn)
    except ValueError:
        raise ConfigurationError(f"the MySQL DSN can't be read: {_HINT}") from None
    if parts.scheme not in {"mysql", "mariadb"} or parts.fragment:
        raise ConfigurationError(f"the MySQL DSN can't be read: mysql://user:password@host/database; {_HINT}")
    try:
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"the port in the MySQL DSN is not a number up to 65535: {_HINT}") from None
    return parts, 3306 if port is None else port


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ConfigurationError(f"the parameters in the MySQL DSN are not name=value&name=value: {_HINT}") from None
    return dict(pairs)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _whoever_runs_this() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ConfigurationError("the MySQL DSN names no user, and this process has none") from None


def tls_context(address: Address) -> ssl.SSLContext:
    """What the handshake takes. It isn't ssl.create_default_context: that refuses the certificates that MySQL makes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = address.ssl_mode == "verify_identity"
    try:
        if not address.ssl_mode.startswith("verify"):
            context.verify_mode = ssl.CERT_NONE
        elif address.ssl_ca:
            context.load_verify_locations(address.ssl_ca)
        else:
            context.load_default_certs()
        if address.ssl_cert:
            context.load_cert_chain(address.ssl_cert, address.ssl_key or None, password="")  # never asks the terminal
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"the certificates that the MySQL DSN names can't be loaded: {error}") from error
    return context
