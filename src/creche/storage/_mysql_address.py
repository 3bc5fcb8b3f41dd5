"""Where a MySQL or MariaDB is, and as whom to go there: read from a DSN, whose password stays out of every message."""

from __future__ import annotations

import getpass
import math
import ssl
from contextlib import suppress
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from attrs import field, frozen

from creche.errors import (
    ConfigurationError,
    OptionInvalid,
)

SSL_MODES: Final = ("disabled", "preferred", "required", "verify_ca", "verify_identity")
OWN_OPTIONS: Final[tuple[str, ...]] = ("pool_size", "call_timeout", "push")  # the storage's
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


def parse_dsn(dsn: str) -> tuple[Address, dict[str, int | float | str]]:
    """Read `mysql://user:password@host:port/database?unix_socket=…&ssl_mode=…`; `mariadb://` is the same.

    Of the parameters `pool_size`, `call_timeout` and `push` are the storage's own; they are returned beside the
    address, numbers as numbers, for whoever checks them. `ssl_mode` is one of `SSL_MODES` and means what it means to
    the mysql client; without it, TLS is used if the server offers it, and verified if there is an `ssl_ca`.

    Raises:
        ConfigurationError: the DSN can't be read, or names a parameter that there isn't. It is never quoted.
        OptionInvalid: a parameter has a value that makes no sense.
    """
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
    for name in given:
        # What is no name may be the rest of a password.
        named = repr(name) if name.isidentifier() else "of such a name"
        raise ConfigurationError(f"the MySQL DSN has a parameter {named} that creche doesn't know; {_HINT}")
    return address, ours


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
