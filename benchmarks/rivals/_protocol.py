"""The protocol of a measured process, for rivals: standard library only, for it runs in their environment.

A line of JSON comes in with an order (`creche.bench._orders.Order` says what each field means), a line goes out when
the process is ready, another comes in when it is to go, and the answer goes out as a line. When stdin ends, nobody
waits for the answer any more, and the process ends at once. Of a limit in seconds only drains know here.
"""

# pyright: basic

import asyncio
import json
import os
import random
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

FIRST = 30.0  # seconds in which the first job of a drain has begun; less where others work too


def read_order():
    """Return the order, with its fields as attributes."""
    return SimpleNamespace(**json.loads(sys.stdin.readline()))


class Calls:
    """Counts Python's calls, in all threads."""

    def __init__(self):
        self.count = 0

    def begin(self):
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, _frame, event, _argument):
        if event == "call":
            self.count += 1


class Tally:
    """What handlers leave behind, and when a drain is over."""

    def __init__(self, order):
        self.order = order
        self.calls = Calls()
        self.count = 0
        self.began = self.ended = 0.0
        self.calls_before = self.calls_after = 0
        self.moments = []
        self.text = "x" * max(0, order.payload - len('{"text":""}'))

    def note(self):
        """A no-op job is run: call this in its handler, at once."""
        if not self.count:
            self.began = time.monotonic()
            self.calls_before = self.calls.count
        self.count += 1
        self.ended = time.monotonic()
        self.calls_after = self.calls.count

    def noted(self, number):
        """A job of `pace` begins."""
        self.moments.append((number, time.monotonic()))
        self.count += 1

    @property
    def over(self):
        """Whether a drain has nothing left to do, or no time left: without a job, the others may have taken all."""
        now = time.monotonic()
        if not self.count:
            return now - self.ended > min(FIRST, 5 * self.order.lull)
        if self.order.limit is not None and now - self.began >= self.order.limit:
            return True
        return self.count >= self.order.jobs or now - self.ended > self.order.lull

    def go(self):
        """Say that everything is ready; return when told to go. Blocks: see `gone` for an event loop."""
        say({"ready": True})
        sys.stdin.readline()
        self._went()

    async def gone(self):
        """Do as `go` does, while the event loop turns."""
        say({"ready": True})
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        self._went()

    def _went(self):
        threading.Thread(target=end_with_stdin, daemon=True).start()
        if self.order.count_calls:
            self.calls.begin()
        self.began = self.ended = time.monotonic()
        self.calls_before = self.calls_after = self.calls.count
        self.cpu = time.process_time()

    def dispatched(self, count):
        """So many jobs have been dispatched since `go`."""
        self.count = count
        self.ended = time.monotonic()
        self.calls_after = self.calls.count

    def answer(self, settings, *packages):
        """Say how it went, when everything is written; `settings` are what the docs recommend, for people."""
        cpu = time.process_time() - self.cpu
        sys.setprofile(None)
        say(
            {
                "count": self.count,
                "began": self.began,
                "ended": self.ended,
                "closed": time.monotonic(),
                "cpu": cpu,
                "rss": int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
                "calls": self.calls_after - self.calls_before if self.order.count_calls else None,
                "moments": self.moments,
                "settings": settings,
                "versions": {"python": sys.version.split()[0]} | {name: found(name) for name in packages},
            }
        )


def found(package):
    """Return the version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def say(what):
    """Write a line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def chunks(order):
    """Yield how many jobs each statement of a bulk dispatch gets."""
    for done in range(0, order.jobs, order.chunk):
        yield min(order.chunk, order.jobs - done)


async def singles(tally, dispatch_one):
    """Dispatch one by one from as many tasks as the order says; `dispatch_one(text)` is awaited."""
    order = tally.order
    await asyncio.gather(*(dispatch_one(tally.text) for _ in range(order.callers)))  # connections are there
    await tally.gone()
    left = order.jobs

    async def caller():
        nonlocal left
        while left > 0:
            left -= 1
            await dispatch_one(tally.text)

    await asyncio.gather(*(caller() for _ in range(order.callers)))
    tally.dispatched(order.jobs)


async def paced(tally, dispatch_numbered):
    """Dispatch one by one with pauses; `dispatch_numbered(number)` is awaited."""
    order = tally.order
    draw = random.Random(order.jobs)
    await tally.gone()
    for number in range(order.jobs):
        await asyncio.sleep(draw.uniform(0.5, 1.5) * order.pause)
        began = time.monotonic()
        await dispatch_numbered(number)
        tally.moments.append((number, began))
    tally.dispatched(order.jobs)


async def nothing():
    """Be ready without waiting for anybody."""


async def until_over(tally):
    """Return when a drain is over."""
    while not tally.over:
        await asyncio.sleep(0.01)


def end_with_stdin():
    """End the process when stdin does; past `sys.stdin`, whose lock an interpreter that ends would wait for."""
    while os.read(0, 1):
        pass
    os._exit(1)


def serve(roles):
    """Read the order and carry it out, by the coroutine function of this name among `roles`."""
    order = read_order()
    if order.backend == "uvloop":
        import uvloop

        uvloop.run(roles[order.role](order, Tally(order)))
    else:
        asyncio.run(roles[order.role](order, Tally(order)))
