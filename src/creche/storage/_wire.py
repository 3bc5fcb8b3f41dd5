"""A socket on anyio's waits, with or without TLS, that fills one buffer: for a protocol with no event loop of its own.

It knows no protocol. A task that waits on it may be cancelled: what is then half sent or half read is its caller's.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NoReturn, Self

import anyio
from anyio import wait_readable, wait_writable
from anyio.lowlevel import cancel_shielded_checkpoint, current_token

# Sockets that are always ready would keep the event loop to themselves: it gets its turn after this many seconds.
BUSY: Final = 0.005
# Bytes read, or encrypted, at a time.
CHUNK: Final = 1 << 16

# Keepalives notice a lost peer while nothing is in flight, TCP_USER_TIMEOUT (milliseconds) while something is; no
# option notices a frozen one: that takes deadlines. Where a system lacks one of them it does without.
SOCKET_OPTIONS: Final = {
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 3,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,
}


def has_news(sock: socket.socket) -> bool:
    """Whether there is something to read right now; an error and the end of the stream are news too."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


async def _news_or_room(sock: socket.socket) -> None:
    """Wait until there is something to read, or room to write."""
    async with anyio.create_task_group() as either:

        async def first(wait: Callable[[socket.socket], Any]) -> None:
            # A socket closed under both waits is one error, not a group of two: the next call on it says so.
            with suppress(OSError, anyio.ClosedResourceError):
                await wait(sock)
            either.cancel_scope.cancel()

        either.start_soon(first, wait_readable)
        either.start_soon(first, wait_writable)


class _Ear:
    """Waits until a socket is readable. Where the event loop keeps callbacks, asyncio's, one is registered once: there
    anyio adds and removes one for each wait, which costs more than a short statement does. Elsewhere anyio waits.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        loop = current_token().native_token
        self._loop: Any = loop if hasattr(loop, "add_reader") else None
        self._registered = False
        self._heard: Any = None

    async def listen(self) -> None:
        if self._loop is None:
            await wait_readable(self._socket)
            return
        if self._heard is not None:
            raise anyio.BusyResourceError("reading from")
        if not self._registered:
            self._loop.add_reader(self._socket, self._hear)
            self._registered = True
        self._heard = self._loop.create_future()
        try:
            await self._heard
        finally:
            self._heard = None
        if self._socket.fileno() < 0:
            raise anyio.ClosedResourceError

    def _hear(self) -> None:
        if self._heard is None:  # nobody waits: a good-bye would be heard without end
            self.close()
        elif not self._heard.done():
            self._heard.set_result(None)

    def close(self) -> None:
        """Listen no more; wake whoever does."""
        if self._registered:
            self._registered = False
            self._loop.remove_reader(self._socket)
            if self._heard is not None and not self._heard.done():
                self._heard.set_result(None)


class Wire:
    """A connected socket, with or without TLS: bytes go out, and come in at the end of `inbox`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket: Final = sock
        self.inbox: Final = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._encrypted_in: Final = ssl.MemoryBIO()
        self._encrypted_out: Final = ssl.MemoryBIO()
        self._ear: Final = _Ear(sock)
        self._asked = True
        self._breathed = monotonic()

    @classmethod
    async def dial(cls, family: socket.AddressFamily, target: Any) -> Self:
        """Connect. A cancellation leaves nothing behind."""
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(0)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in SOCKET_OPTIONS.items():
                    if (option := getattr(socket, name, None)) is not None:
                        sock.setsockopt(socket.IPPROTO_TCP, option, value)
            if sock.connect_ex(target):
                await wait_writable(sock)
                _check(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Encrypt whatever follows. What came before the handshake, in the clear, is not trusted."""
        self.inbox.clear()
        tls = context.wrap_bio(self._encrypted_in, self._encrypted_out, server_hostname=host)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._transmit(self._encrypted_out.read())
                self._encrypted_in.write(await self._received() or _hung_up())
            else:
                break
        await self._transmit(self._encrypted_out.read())
        self._tls = tls

    async def send(self, data: bytes) -> None:
        """Hand all of it to the system, reading meanwhile what the server says to the beginning."""
        self._asked = True
        if self._tls is None:
            await self._transmit(data)
            return
        for start in range(0, len(data), CHUNK):
            self._tls.write(data[start : start + CHUNK])
            await self._transmit(self._encrypted_out.read())

    async def _transmit(self, data: bytes) -> None:
        # Where the server has hung up, what it said last is still to be read: that is the better error.
        try:
            sent = self._sent(data)
            if sent == len(data):
                return
            rest = memoryview(data)[sent:]
            while rest:
                self._ear.close()  # anyio registers its own callback now, and takes it away afterwards
                await _news_or_room(self.socket)
                if has_news(self.socket):
                    early = self.socket.recv(CHUNK)
                    if not early:
                        return
                    self._take(early)
                rest = rest[self._sent(rest) :]
        except (BrokenPipeError, ConnectionResetError):
            return

    def _sent(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def _take(self, data: bytes) -> None:
        if self._tls is None:
            self.inbox.extend(data)
        else:
            self._encrypted_in.write(data)

    async def receive(self) -> None:
        """Wait until the inbox has grown.

        Raises:
            OSError: the connection is lost.
        """
        if self._tls is None:
            self.inbox.extend(await self._received() or _hung_up())
            return
        while True:
            try:
                self.inbox.extend(self._tls.read(CHUNK) or _hung_up())
            except ssl.SSLWantReadError:
                await self._transmit(self._encrypted_out.read())  # an answer of TLS itself, if there is one
                self._encrypted_in.write(await self._received() or _hung_up())
            except ssl.SSLZeroReturnError:
                _hung_up()
            else:
                return

    async def _received(self) -> bytes:
        if self._asked:  # the answer isn't there yet: waiting for it gives the event loop its turn, too
            self._asked = False
            await self._ear.listen()
            self._breathed = monotonic()
        while True:
            try:
                data = self.socket.recv(CHUNK)
            except BlockingIOError:
                await self._ear.listen()
                self._breathed = monotonic()
            else:
                break
        if monotonic() - self._breathed > BUSY:
            await cancel_shielded_checkpoint()
            self._breathed = monotonic()
        return data

    def say(self, data: bytes) -> None:
        """Send something short if that is possible at once."""
        with suppress(OSError):
            if self._tls is not None:
                self._tls.write(data)
                data = self._encrypted_out.read()
            self.socket.send(data)

    def close(self) -> None:
        """Close the socket at once, whoever waits on it."""
        if self.socket.fileno() >= 0:
            with suppress(RuntimeError):  # no event loop any more
                self._ear.close()
                anyio.notify_closing(self.socket)
            self.socket.close()


def _check(failure: int) -> None:
    if failure:
        raise OSError(failure, os.strerror(failure))


def _hung_up() -> NoReturn:
    raise ConnectionError("the server closed the connection")
