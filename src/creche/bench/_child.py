"""The process that is measured, when it is creche's: `python -m creche.bench._child`. It judges nothing.

Its first line on stdin is an order; it says that it is ready, waits for another line, does as it was told, and answers
in one line. A handler does nothing but count: what is measured is everything around it. When stdin ends, nobody wants
its answer any more: it gives back what it holds, and ends.
"""

from __future__ import annotations

import math
import os
import random
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from time import monotonic, process_time
from types import FrameType
from typing import Any, Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from attrs import evolve

from creche import Call, Queue, Retention, Task, Worker
from creche._job import Upkeep
from creche.bench._facts import versions
from creche.bench._orders import QUIET, Answer, Order
from creche.bench._processes import resident
from creche.storage import open_storage

NOOP: Final = "bench.noop"
NOTED: Final = "bench.noted"
LOOK: Final = 0.01  # seconds between looks whether everything has been run
FIRST: Final = 30.0  # seconds in which the first job of a run with a limit has begun


class Calls:
    """Counts Python's calls, in all threads."""

    def __init__(self) -> None:
        self.count = 0

    def begin(self) -> None:
        """Count from now on; threads that are there already are left out."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            self.count += 1


class Statements:
    """Counts what is sent to SQLite by this process. Servers count for themselves."""

    def __init__(self) -> None:
        self.count = 0
        self.since = monotonic()

    async def restart(self, after: float) -> None:
        """Count anew, `after` so many seconds: of a worker that has found nothing, what it costs to be idle."""
        await anyio.sleep(after)
        self.count, self.since = 0, monotonic()

    def begin(self) -> None:
        """Count on every connection that is opened from now on."""
        connect = sqlite3.connect

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(self._note)
            return connection

        setattr(sqlite3, "connect", connected)  # noqa: B010 - a type checker would want all of its overloads

    def _note(self, _statement: str) -> None:
        self.count += 1


class Tally:
    """What handlers leave behind."""

    def __init__(self, calls: Calls) -> None:
        self.count = 0
        self.began = self.ended = 0.0
        self.calls_before = self.calls_after = 0
        self.moments: list[tuple[int, float]] = []
        self._calls = calls

    def first(self) -> None:
        """Note that the first handler begins."""
        self.began = monotonic()
        self.calls_before = self._calls.count

    def last(self) -> None:
        """Note that, so far, the last handler has ended."""
        self.count += 1
        self.ended = monotonic()
        self.calls_after = self._calls.count


def _tasks(queue: Queue, order: Order, tally: Tally) -> Task[[str], None]:
    """Register the handlers; return the one that is drained."""

    async def at_once(text: str) -> None:  # noqa: ARG001 - the payload
        if not tally.count:
            tally.first()
        tally.last()

    async def slow(text: str) -> None:  # noqa: ARG001 - the payload
        if not tally.began:
            tally.first()
        await anyio.sleep(order.seconds)
        tally.last()

    @queue.task(NOTED)
    async def noted(number: int) -> None:  # pyright: ignore[reportUnusedFunction]
        tally.moments.append((number, monotonic()))
        tally.count += 1

    return queue.task(NOOP, queue=order.queues[-1])(slow if order.seconds else at_once)


def _worker(queue: Queue, order: Order) -> Worker:
    retention = Retention() if order.keep else Retention(completed=0)
    return Worker(queue, queues=order.queues, concurrency=order.concurrency, retention=retention, **dict(order.options))


def _text(order: Order) -> str:
    return "x" * max(0, order.payload - len('{"text":""}'))


async def _fill(queue: Queue, noop: Task[[str], None], order: Order, after: Callable[[int], None] | None = None) -> int:
    text = _text(order)
    until, done = _until(order), 0
    while done < order.jobs and monotonic() < until:
        calls: Sequence[Call[None]] = [noop.call(text) for _ in range(min(order.chunk, order.jobs - done))]
        await queue.dispatch_many(calls)
        done += len(calls)
        if after is not None:
            after(done)
    return done


def _until(order: Order) -> float:
    return monotonic() + (math.inf if order.limit is None else order.limit)


# --- roles: each returns its answer, without what is added for all -------------------------------------------


async def fill(queue: Queue, order: Order, calls: Calls, go: Callable[[], Awaitable[None]]) -> Answer:
    """Dispatch in bulk."""
    noop = _tasks(queue, order, Tally(calls))
    samples: list[tuple[int, int]] = []
    async with queue:
        await queue.jobs(limit=1)  # the connection is there before the clock runs
        await go()
        began, before = monotonic(), calls.count
        count = await _fill(queue, noop, order, lambda done: samples.append((done, resident())))
        ended = monotonic()
        return _answer(count, began, ended, calls=calls.count - before, samples=samples)


async def dispatch(queue: Queue, order: Order, calls: Calls, go: Callable[[], Awaitable[None]]) -> Answer:
    """Dispatch one by one, from one or several tasks."""
    noop = _tasks(queue, order, Tally(calls))
    text = _text(order)
    left, until = order.jobs, math.inf

    async def caller() -> None:
        nonlocal left
        while left > 0 and monotonic() < until:
            left -= 1
            await noop.dispatch(text)

    async with queue:
        async with anyio.create_task_group() as callers:  # every connection is there before the clock runs
            for _ in range(order.callers):
                callers.start_soon(noop.dispatch, text)
        await go()
        began, before, until = monotonic(), calls.count, _until(order)
        async with anyio.create_task_group() as callers:
            for _ in range(order.callers):
                callers.start_soon(caller)
        return _answer(order.jobs - left, began, monotonic(), calls=calls.count - before)


async def drain(queue: Queue, order: Order, calls: Calls, go: Callable[[], Awaitable[None]]) -> Answer:
    """Work until everything has been run."""
    tally = Tally(calls)
    noop = _tasks(queue, order, tally)
    samples: list[tuple[int, int]] = []

    async with queue, AsyncExitStack() as stack:
        if order.here:
            await _fill(queue, noop, order)
        else:
            await queue.jobs(limit=1)
        worker = _worker(queue, order)

        async def end() -> None:
            sampled = 0
            asked = monotonic()
            first = min(FIRST, 5 * order.lull)  # the others may have taken all of them
            while tally.count < order.jobs and (
                monotonic() - tally.ended < order.lull if tally.count else tally.began or monotonic() - asked < first
            ):
                await anyio.sleep(LOOK)
                if order.limit is not None and _is_over(order, order.limit, asked, tally.began):
                    break
                if tally.count - sampled >= order.chunk:
                    sampled = tally.count
                    samples.append((sampled, resident()))
            worker.stop()

        await go()
        watch = await stack.enter_async_context(anyio.create_task_group())
        watch.start_soon(end)
        await worker.run(signals=False)
        if tally.count:
            samples.append((tally.count, resident()))
        counted = tally.calls_after - tally.calls_before
        return _answer(tally.count, tally.began, tally.ended, calls=counted, samples=samples)


def _is_over(order: Order, limit: float, asked: float, began: float) -> bool:
    """Whether a drain with a limit has worked for as long, or has waited in vain for its first job: longer where it is
    alone, for where it is not, the others may have taken them all.
    """
    return monotonic() - began >= limit if began else monotonic() - asked >= max(limit, min(FIRST, 5 * order.lull))


async def work(queue: Queue, order: Order, calls: Calls, go: Callable[[], Awaitable[None]]) -> Answer:
    """Work until told to stop; `go` means that."""
    tally = Tally(calls)
    _tasks(queue, order, tally)
    async with queue, _worker(queue, order):
        began = monotonic()
        await go()
        ended = monotonic()
    return _answer(tally.count, began, ended, moments=tally.moments)


async def pace(queue: Queue, order: Order, calls: Calls, go: Callable[[], Awaitable[None]]) -> Answer:
    """Dispatch one by one, each to a worker that has grown idle again."""
    _tasks(queue, order, Tally(calls))
    moments: list[tuple[int, float]] = []
    waited: list[float] = []
    draw = random.Random(order.jobs)  # noqa: S311 - not a secret
    async with queue:
        await queue.jobs(limit=1)
        await go()
        start, until = monotonic(), _until(order)
        for number in range(order.jobs):
            if monotonic() >= until:
                break
            await anyio.sleep(draw.uniform(0.5, 1.5) * order.pause)
            began = monotonic()
            receipt = await queue.dispatch(NOTED, {"number": number}, queue=order.queues[-1])
            moments.append((number, began))
            if order.wait:
                await receipt.wait(timeout=60)
                waited.append(monotonic() - began)
        return _answer(len(moments), start, monotonic(), moments=moments, waited=waited)


ROLES: Final = {"fill": fill, "dispatch": dispatch, "drain": drain, "work": work, "pace": pace}


def _answer(count: int, began: float, ended: float, **more: Any) -> Answer:
    return Answer(count=count, began=began, ended=ended, closed=0.0, cpu=0.0, rss=resident(), **more)


async def _none_of_ours(_limit: int, *, retention: Retention, now: datetime | None = None) -> Upkeep:  # noqa: ARG001 - as `Storage.maintain`
    return Upkeep(recovered=0, buried=0, promoted=0, pruned=0)


def _opened(order: Order) -> Queue:
    storage = open_storage(order.dsn)
    if order.guest:
        setattr(storage, "maintain", _none_of_ours)  # noqa: B010 - it stays a storage for everything else
    return Queue(storage)


async def serve(order: Order) -> None:
    """Carry out one order, or leave it when nobody waits for its end any more."""
    async with anyio.create_task_group() as run:
        await _serve(order, run)
        run.cancel_scope.cancel()


async def _hear(run: TaskGroup) -> None:
    """Wait for a line; the end of stdin ends everything."""
    if not await to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        run.cancel_scope.cancel()
        await checkpoint()


async def _serve(order: Order, run: TaskGroup) -> None:
    calls, statements = Calls(), Statements()
    counted = order.count_statements and order.dsn.startswith("sqlite")
    if counted:
        statements.begin()
    queue = _opened(order)
    if not order.guest and (order.role in {"fill", "dispatch"} or order.here):
        await queue.migrate()
    working = order.role == "work"  # until it is told to end: that is counted, and not what comes after
    if working:
        run.start_soon(statements.restart, QUIET)
    computed, sent = 0.0, 0

    async def go() -> None:
        nonlocal computed, sent
        _say(b'{"ready": true}\n')
        await _hear(run)
        run.start_soon(_hear, run)
        if order.count_calls:
            calls.begin()
        computed, sent = process_time(), statements.count

    answer = await ROLES[order.role](queue, order, calls, go)
    sys.setprofile(None)
    answer = evolve(
        answer,
        began=statements.since if working and counted else answer.began,
        closed=monotonic(),
        cpu=process_time() - computed,
        calls=answer.calls if order.count_calls else None,
        statements=(sent if working else statements.count - sent) if counted else None,
        versions=versions(),
    )
    _say(answer.encode())


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the order, and serve it on its event loop."""
    order = Order.decode(sys.stdin.readline())
    if order.backend == "uvloop":
        anyio.run(partial(serve, order), backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(serve, order, backend=order.backend)
    os._exit(0)  # what is measured is over, and an interpreter's end is not


if __name__ == "__main__":
    main()
