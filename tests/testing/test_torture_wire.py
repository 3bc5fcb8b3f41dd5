"""The proxy between actors and their database, on both event loops: before a server that notes what it gets."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import SocketAttribute, SocketStream

from creche.storage._sql import load
from creche.testing._ledger import Entry, Ledger, read_ledgers
from creche.testing.torture._wire import ABOUT, Proxy, Wire

pytestmark = pytest.mark.anyio

CUT_OFF = (BrokenResourceError, EndOfStream)
SOON = 0.2  # seconds in which what is let through has long arrived, and what is not has not


class Stage:
    """A proxy, the conductor's end of it, and the server behind."""

    def __init__(self, wire: Wire, port: int, folder: Path) -> None:
        self.got: list[bytes] = []
        self._wire = wire
        self._port = port
        self._folder = folder

    async def connect(self) -> SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self._port)

    async def serve(self, client: SocketStream) -> None:
        async with client:
            with suppress(BrokenResourceError):
                async for data in client:
                    self.got.append(data)
                    await client.send(data.upper())

    @asynccontextmanager
    async def weather(self, **facts: Any) -> AsyncGenerator[None]:
        """The conductor is a process of its own; here it is a thread."""
        weather = self._wire.weather(**facts)
        await anyio.to_thread.run_sync(weather.__enter__)
        yield
        await anyio.to_thread.run_sync(weather.__exit__, None, None, None)

    async def reset(self) -> None:
        await anyio.to_thread.run_sync(self._wire.reset)

    async def works(self) -> bool:
        """Whether a new connection is answered."""
        async with await self.connect() as client:
            return await asked(client, b"new") == b"NEW"

    async def gets(self, *expected: bytes) -> None:
        """Wait until the server got these."""
        with anyio.fail_after(10):
            while self.got != list(expected):  # noqa: ASYNC110 - it is no task of ours that gets them
                await anyio.sleep(0.01)

    def cuts(self) -> list[tuple[bool, str]]:
        entries: list[Entry] = read_ledgers(self._folder)
        return [(entry["sent"], entry["about"]) for entry in entries if entry["what"] == "cut"]


async def asked(client: SocketStream, question: bytes) -> bytes:
    await client.send(question)
    with anyio.fail_after(10):
        return await client.receive()


async def is_deaf(client: SocketStream) -> bool:
    """Whether no answer comes, and no end either."""
    with anyio.move_on_after(SOON):
        await client.receive()
        return False
    return True


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    wire = Wire(ours)
    stage = Stage(wire, listener.getsockname()[1], tmp_path)
    server = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    address = "127.0.0.1", server.extra(SocketAttribute.local_port)
    async with server, anyio.create_task_group() as services:
        services.start_soon(server.serve, stage.serve)
        async with anyio.create_task_group() as proxy:
            proxy.start_soon(Proxy(address, Ledger(tmp_path, "proxy")).run, listener, theirs)
            yield stage
            wire.close()
        services.cancel_scope.cancel()


async def test_what_is_said_goes_through(stage: Stage) -> None:
    async with await stage.connect() as client:
        assert await asked(client, b"one") == b"ONE"
        assert await asked(client, b"two") == b"TWO"
    assert stage.got == [b"one", b"two"]
    assert stage.cuts() == []


async def test_a_slow_wire_delays_both_ways(stage: Stage) -> None:
    async with await stage.connect() as client, stage.weather(delay=0.1):
        began = time.monotonic()
        assert await asked(client, b"one") == b"ONE"
        assert time.monotonic() - began >= 0.2


async def test_a_thin_wire_takes_its_time_for_each_byte(stage: Stage) -> None:
    async with await stage.connect() as client, stage.weather(rate=1_000):
        began = time.monotonic()
        assert await asked(client, b"x" * 100) == b"X" * 100
        assert time.monotonic() - began >= 0.2


async def test_what_never_reached_the_server_never_does_and_the_connection_is_deaf_for_good(stage: Stage) -> None:
    async with await stage.connect() as client:
        assert await asked(client, b"one") == b"ONE"
        async with stage.weather(swallow="up"):
            await client.send(b"two")
            assert await is_deaf(client)
        await client.send(b"three")
        assert await is_deaf(client)
        assert stage.got == [b"one"]
    assert await stage.works()


async def test_an_answer_that_was_swallowed_never_comes_but_the_question_was_heard(stage: Stage) -> None:
    async with await stage.connect() as client:
        async with stage.weather(swallow="down"):
            await client.send(b"one")
            assert await is_deaf(client)
        await client.send(b"two")
        assert await is_deaf(client)
        await stage.gets(b"one", b"two")
    assert await stage.works()


async def test_whoever_connects_while_the_wire_is_dead_is_not_answered(stage: Stage) -> None:
    async with stage.weather(swallow="both"), await stage.connect() as client:
        await client.send(b"one")
        assert await is_deaf(client)
    assert stage.got == []
    assert await stage.works()


async def test_what_is_held_back_arrives_late_even_when_who_sent_it_is_gone(stage: Stage) -> None:
    async with stage.weather(hold=True):
        async with await stage.connect() as client:
            await client.send(b"late")
            assert await is_deaf(client)
        assert stage.got == []
    await stage.gets(b"late")


async def test_whoever_connects_is_refused(stage: Stage) -> None:
    async with stage.weather(refuse=True):
        with pytest.raises(CUT_OFF):
            async with await stage.connect() as client:
                await asked(client, b"one")
    assert await stage.works()


async def test_open_connections_are_reset(stage: Stage) -> None:
    async with await stage.connect() as client:
        assert await asked(client, b"one") == b"ONE"
        await stage.reset()
        with pytest.raises(BrokenResourceError):
            await asked(client, b"two")
    assert stage.got == [b"one"]
    assert await stage.works()


async def test_a_write_whose_answer_is_cut_off_was_heard(stage: Stage) -> None:
    async with stage.weather(cut_answers=1.0), await stage.connect() as client:
        assert await asked(client, b"SELECT 1") == b"SELECT 1"
        with pytest.raises(CUT_OFF):
            await asked(client, b"INSERT INTO creche_jobs")
    await stage.gets(b"SELECT 1", b"INSERT INTO creche_jobs")
    assert stage.cuts() == [(True, "dispatch")]


async def test_a_statement_that_was_prepared_is_known_by_its_name(stage: Stage) -> None:
    prepared = b"P\0\0\0\x2a_pg3_7\0INSERT INTO creche_jobs\0\0\0"
    again = b"B\0\0\0\x20\0_pg3_7\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0"
    other = again.replace(b"_pg3_7", b"_pg3_8")
    async with await stage.connect() as client:
        await asked(client, prepared)
        async with stage.weather(cut_requests=1.0):
            assert await asked(client, other) == other.upper()
            with pytest.raises(CUT_OFF):
                await asked(client, again)
    assert stage.cuts() == [(False, "dispatch")]


async def test_a_write_that_is_cut_off_was_never_heard(stage: Stage) -> None:
    async with stage.weather(cut_requests=1.0), await stage.connect() as client:
        assert await asked(client, b"SELECT 1") == b"SELECT 1"
        with pytest.raises(CUT_OFF):
            await asked(client, b"COMMIT")
    assert await stage.works()
    assert stage.got == [b"SELECT 1", b"new"]
    assert stage.cuts() == [(False, "other write")]


async def test_only_those_are_meant_who_have_said_a_word(stage: Stage) -> None:
    deaf = stage.weather(swallow="down", only="LISTEN")
    async with deaf, await stage.connect() as listener, await stage.connect() as other:
        await listener.send(b"LISTEN work")
        assert await is_deaf(listener)
        assert await asked(other, b"SELECT 1") == b"SELECT 1"
    assert stage.got == [b"LISTEN work", b"SELECT 1"]


async def test_two_kinds_of_weather_at_once_are_one_and_each_ends_for_itself(stage: Stage) -> None:
    async with await stage.connect() as client, stage.weather(delay=0.1):
        async with stage.weather(cut_answers=1.0):
            began = time.monotonic()
            assert await asked(client, b"one") == b"ONE"
            assert time.monotonic() - began >= 0.2
        assert await asked(client, b"COMMIT") == b"COMMIT"
    assert stage.cuts() == []


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
@pytest.mark.parametrize(
    ("statement", "about"),
    [("insert", "dispatch"), ("settle", "end of an attempt"), ("reserve", "reserve"), ("extend", "renewal")],
)
def test_what_a_cut_statement_was_about_is_known(engine: str, statement: str, about: str) -> None:
    text = load(engine).statements[statement].encode()
    assert next(name for name, pattern in ABOUT.items() if pattern.search(text)) == about
