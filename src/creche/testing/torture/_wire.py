"""The wire between the actors and their database: a TCP proxy that delays, throttles, swallows, holds back and cuts, as
the conductor tells it. It knows of statements only whether their bytes match a pattern, and what psycopg has prepared.

The proxy is a process of its own; the conductor's end is `Wire`, and they speak in lines of JSON.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import anyio
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    IncompleteRead,
    create_task_group,
)
from anyio.abc import SocketAttribute, SocketListener, SocketStream, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import frozen

from creche.testing._ledger import Ledger

WRITE: Final = re.compile(rb"INSERT INTO|UPDATE |DELETE FROM|COMMIT(?!TED)")
_GONE: Final = (BrokenResourceError, ClosedResourceError, EndOfStream, OSError)
_LAST_ANSWER: Final = 5.0  # seconds that a server has for an answer that nobody will get
_CHUNK: Final = 65_536
_HARD: Final = struct.pack("ii", 1, 0)  # SO_LINGER: whoever closes sends RST

# PostgreSQL's messages in which psycopg prepares a statement, and in which it runs one that it has prepared before.
_PREPARES: Final = re.compile(rb"P.{4}(_pg3_\d+)\0([^\0]*)\0", re.DOTALL)
_RUNS: Final = re.compile(rb"B.{4}\0(_pg3_\d+)\0", re.DOTALL)

# What statements are about, of those whose answers are cut; the first that matches. The texts are those in sql/.
ABOUT: Final[Mapping[str, re.Pattern[bytes]]] = {
    "dispatch": re.compile(rb"INSERT INTO creche_jobs"),
    "end of an attempt": re.compile(rb"gives_back"),
    "reserve": re.compile(rb"attempts = (?:\w+\.)?attempts \+ 1"),
    "renewal": re.compile(rb"locked_until = greatest", re.IGNORECASE),
    "other write": WRITE,
}


@frozen(kw_only=True)
class Weather:
    """What becomes of what goes over the wire. Nothing, unless something is said.

    Attributes:
        delay: seconds that each chunk waits.
        jitter: seconds more or less.
        rate: bytes per second, in each direction of each connection; 0: as fast as it goes.
        swallow: "up" to the server, "down" to the client, "both": bytes vanish, and connections stay open. A
            connection that has lost some is deaf for good.
        hold: keep everything back until this is over, then deliver it, however late.
        refuse: reset who connects.
        cut_answers: of the writes that match, which part is passed on, but its answer is cut off.
        cut_requests: which part is cut off before it is passed on.
        only: only connections over which something has gone to the server that matches; empty: all.
    """

    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    swallow: str = ""
    hold: bool = False
    refuse: bool = False
    cut_answers: float = 0.0
    cut_requests: float = 0.0
    only: str = ""


CLEAR: Final = Weather()


# --- the conductor's end ----------------------------------------------------------------------------


class Wire:
    """Tells the proxy what to do, until it is closed: then the proxy ends.

    Args:
        control: a socket whose other end the proxy has; others may have inherited it.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = control.makefile("rb")
        self._laid: list[Mapping[str, Any]] = []

    @contextmanager
    def weather(self, **facts: Any) -> Generator[None]:
        """Have weather for a while; several at once are one, and of two that differ the later one counts."""
        self._laid.append(facts)
        self._tell()
        try:
            yield
        finally:
            self._laid.remove(facts)
            self._tell()

    def close(self) -> None:
        """Have the proxy end."""
        self._control.shutdown(socket.SHUT_RDWR)  # others may have the socket, too: to close it would tell nobody
        self._lines.close()
        self._control.close()

    def reset(self) -> None:
        """Reset every connection that is open now."""
        self._say({"reset": True})

    def _tell(self) -> None:
        self._say({"weather": {name: value for facts in self._laid for name, value in facts.items()}})

    def _say(self, word: Mapping[str, Any]) -> None:
        self._control.sendall(json.dumps(word).encode() + b"\n")
        if not self._lines.readline():
            raise EOFError("the proxy is gone")


# --- the proxy --------------------------------------------------------------------------------------


class Proxy:
    """Stands between clients and one server.

    Args:
        server: where it is.
        ledger: of this process: each cut is noted.
    """

    def __init__(self, server: tuple[str, int], ledger: Ledger) -> None:
        self._server = server
        self._ledger = ledger
        self._links: set[_Link] = set()
        self._changed = anyio.Event()
        self.weather = CLEAR

    async def run(self, listener: socket.socket, control: socket.socket) -> None:
        """Stand there until the conductor's end of the line is closed. Both sockets are this one's from now on."""
        door = await SocketListener.from_socket(listener)
        line = await UNIXSocketStream.from_socket(control)
        async with door, line, create_task_group() as tasks:
            tasks.start_soon(door.serve, self._link)
            words = BufferedByteReceiveStream(line)
            with suppress(EndOfStream, IncompleteRead):
                while True:
                    await self._obey(json.loads(await words.receive_until(b"\n", _CHUNK)))
                    await line.send(b"done\n")
            tasks.cancel_scope.cancel()

    async def change(self) -> None:
        """Wait until the weather is another one."""
        await self._changed.wait()

    def cut(self, statement: bytes, *, sent: bool) -> None:
        """Note that a link is cut off at this statement."""
        about = next(name for name, pattern in ABOUT.items() if pattern.search(statement))
        self._ledger.note("cut", sent=sent, about=about)

    async def _obey(self, word: Mapping[str, Any]) -> None:
        if "weather" in word:
            self.weather = Weather(**word["weather"])
            self._changed.set()
            self._changed = anyio.Event()
        else:
            for link in list(self._links):
                await link.reset()

    async def _link(self, client: SocketStream) -> None:
        if self.weather.refuse:
            await _reset(client)
            return
        try:
            server = await anyio.connect_tcp(*self._server)
        except OSError:
            await _reset(client)
            return
        link = _Link(self, client, server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Link:
    """One connection, of two sockets."""

    def __init__(self, proxy: Proxy, client: SocketStream, server: SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._deaf: set[str] = set()  # directions in which bytes were lost
        self._said: set[str] = set()  # patterns that have matched
        self._prepared: dict[bytes, bytes] = {}
        self._cut = False  # no answer gets through any more
        self._answered = anyio.Event()

    async def run(self) -> None:
        """Pass on what comes, until both ends are closed."""
        try:
            async with create_task_group() as pumps:
                pumps.start_soon(self._pump, self._client, self._server, "up")
                pumps.start_soon(self._pump, self._server, self._client, "down")
        finally:
            with CancelScope(shield=True):
                for end in (self._client, self._server):
                    await anyio.aclose_forcefully(end)

    async def reset(self) -> None:
        """Close both ends, hard."""
        await _reset(self._client)
        await _reset(self._server)

    async def _pump(self, source: SocketStream, sink: SocketStream, way: str) -> None:
        try:
            hard = not await self._pass_all(source, sink, way)
        except _GONE:
            hard = True
        if way == "down":
            self._answered.set()
        if self._cut:
            return
        while self._swallows(way):  # that an end is closed is lost, too
            await self._proxy.change()
        if hard and way == "down":
            await self.reset()
        else:  # what a client sent before it went away still arrives
            with suppress(*_GONE):
                await sink.send_eof()

    async def _pass_all(self, source: SocketStream, sink: SocketStream, way: str) -> bool:
        """Pass on what comes until the source says that this is all; return False if it was cut off before."""
        with suppress(EndOfStream):
            while True:
                data = await source.receive(_CHUNK)
                if way == "up" and await self._cuts_off(data):
                    return False
                if way == "down" and self._cut:
                    continue
                if await self._passes(len(data), way):
                    await sink.send(data)
        return True

    async def _passes(self, size: int, way: str) -> bool:
        """Hold a chunk back for as long as it takes; return whether it gets through at all."""
        while self._meant and self._proxy.weather.hold:
            await self._proxy.change()
        if self._swallows(way):
            self._deaf.add(way)
        if way in self._deaf:
            return False
        weather = self._proxy.weather if self._meant else CLEAR
        pause = max(0.0, weather.delay + random.uniform(-weather.jitter, weather.jitter))
        if weather.rate:
            pause += size / weather.rate
        if pause:
            await anyio.sleep(pause)
        return True

    async def _cuts_off(self, data: bytes) -> bool:
        """Cut this connection off, if that is its lot at this statement."""
        weather = self._proxy.weather
        said = self._in_full(data)
        if weather.only and re.search(weather.only.encode(), said):
            self._said.add(weather.only)
        if not (weather.cut_answers or weather.cut_requests) or not WRITE.search(said):
            return False
        dice = random.random()
        if dice < weather.cut_requests:
            self._cut = True
            self._proxy.cut(said, sent=False)
            await self.reset()
            return True
        if dice < weather.cut_requests + weather.cut_answers:
            self._cut = True
            await self._server.send(data)
            await self._server.send_eof()  # it does what it was told, and then sees that nobody is there
            with anyio.move_on_after(_LAST_ANSWER):
                await self._answered.wait()
            self._proxy.cut(said, sent=True)
            await self.reset()
            return True
        return False

    def _in_full(self, data: bytes) -> bytes:
        """Return what is said, with the texts of statements that are named only."""
        self._prepared.update(_PREPARES.findall(data))
        return data + b"".join(self._prepared.get(name, b"") for name in _RUNS.findall(data))

    def _swallows(self, way: str) -> bool:
        return self._meant and self._proxy.weather.swallow in {way, "both"}

    @property
    def _meant(self) -> bool:
        only = self._proxy.weather.only
        return not only or only in self._said


async def _reset(stream: SocketStream) -> None:
    with suppress(*_GONE):
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD)
    await anyio.aclose_forcefully(stream)
