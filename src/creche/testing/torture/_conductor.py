"""The conductor: brings everybody on, breaks things, waits until all is done. It is a plain process, without a thread,
an event loop or a connection, for it forks the others; and it judges nothing.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import define

from creche import Queue
from creche.storage import open_storage
from creche.testing._backdoor import reroute, write
from creche.testing._herd import Herd, take_turns
from creche.testing._ledger import Ledger, read_ledger
from creche.testing.torture._actors import Dispatcher, Workman, unanswered
from creche.testing.torture._auditor import judge, watch
from creche.testing.torture._faults import Kind, kinds
from creche.testing.torture._ground import Ground, prepared
from creche.testing.torture._jobs import EFFECTS
from creche.testing.torture._plan import Plan
from creche.testing.torture._stage import Fault, Stage
from creche.testing.torture._wire import Proxy, Wire

# What each process would import anew: the loops, and what the first job of each kind needs.
_PRELOADED: Final = ("trio", "anyio._backends._asyncio", "anyio._backends._trio")
_TICK: Final = 0.05  # seconds
_GLANCE: Final = 0.5  # seconds
_PROLOGUE: Final = 2.0  # seconds before the first fault, for it should meet somebody
_FAREWELL: Final = 30.0  # seconds


@define
class _Broken:
    """A fault that is going on."""

    number: int
    kind: Kind
    fault: Fault
    due: float = 0.0


class Conductor:
    """One run.

    Args:
        plan: what it is like.
        folder: where everybody's ledgers go.
        report: told in a few words how far it has come.
    """

    def __init__(self, plan: Plan, folder: Path, report: Callable[[str], None]) -> None:
        self._plan = plan
        self._folder = folder
        self._report = report
        self._ledger = Ledger(folder, "conductor")
        self._herd = Herd(folder)
        self._loops = take_turns(plan.loop)
        self._seats: list[str] = []
        self._until = 0.0
        self._going: list[_Broken] = []
        self._entrance = ""
        self._mended = 0.0

    def run(self) -> None:
        """Do it all."""
        for module in _PRELOADED:
            import_module(module)
        with prepared(self._plan, self._folder) as ground, self._herd_at_work():
            self._ledger.note("rig", facts=ground.facts)
            self._ledger.note("load", load=os.getloadavg()[0])
            open_storage(ground.dsn)  # imports what its driver needs, once for all that are forked
            self._herd.alone("migrator", self._played(lambda _: Queue(ground.dsn).migrate()))
            self._herd.alone("user", lambda _: write(ground.dsn, EFFECTS))
            with self._wire(ground) as wire:
                dice = random.Random(self._plan.seed)
                stage = Stage(plan=self._plan, ground=ground, herd=self._herd, wire=wire, dice=dice)
                watcher = self._herd.start("watcher", partial(watch, ground.dsn))
                self._torture(stage)
                self._drain(watcher)
                self._herd.kill(watcher)
                self._dismiss()
            self._herd.finish(_FAREWELL, "proxy")
            self._ledger.note("load", load=os.getloadavg()[0])
            self._herd.alone("auditor", partial(_judge, ground.dsn, self._plan, self._folder))

    @contextmanager
    def _herd_at_work(self) -> Generator[None]:
        try:
            yield
        finally:
            for broken in self._going:
                broken.fault.close()
            self._herd.end()

    @contextmanager
    def _wire(self, ground: Ground) -> Generator[Wire | None]:
        self._entrance = ground.entrance
        if ground.server is None:
            yield None
            return
        with ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=200))
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            wire = stack.enter_context(closing(Wire(ours)))
            server, self._entrance = reroute(ground.entrance, listener.getsockname()[1])
            self._herd.start("proxy", self._played(lambda ledger: Proxy(server, ledger).run(listener, theirs)))
            yield wire

    # --- who is there -------------------------------------------------------------------------------

    def _played(self, part: Callable[[Ledger], Any]) -> Callable[[Ledger], None]:
        """Return what a process does: a part, on the event loop whose turn it is."""
        loop = next(self._loops)

        def play(ledger: Ledger) -> None:
            _speak_into(self._folder / f"{ledger.who}.log")
            anyio.run(part, ledger, backend=loop)

        return play

    def _fill_up(self) -> None:
        """See to it that everybody is there who should be."""
        plan, entrance = self._plan, self._entrance
        self._herd.bury()
        for role, wanted in (("worker", plan.workers), ("elder", plan.elders)):
            for _ in range(wanted - len(self._herd.names(role))):
                self._herd.start(role, self._played(partial(_work, entrance, plan, role == "elder")))
        for seat, who in enumerate(self._seats):
            if self._herd.pid(who) is None and self._herd.codes.get(who):
                left = unanswered(read_ledger(self._folder, who))
                self._seats[seat] = self._seat(left)

    def _seat(self, left: list[Any]) -> str:
        plan, entrance, until = self._plan, self._entrance, self._until
        return self._herd.start(
            "dispatcher", self._played(lambda ledger: Dispatcher(entrance, ledger, plan, left).run(until))
        )

    # --- the run ------------------------------------------------------------------------------------

    def _torture(self, stage: Stage) -> None:
        began = time.monotonic()
        self._until = began + self._plan.seconds
        self._fill_up()
        self._seats = [self._seat([]) for _ in range(self._plan.dispatchers)]
        only = self._plan.only
        deck = _deck(kinds(stage.ground, only), stage.dice, in_order=bool(only))
        self._ledger.note("curtain", until=self._until)
        kind = next(deck)
        last, number = began + _PROLOGUE - self._plan.every, 0
        while (now := time.monotonic()) < self._until or self._going:
            self._fill_up()
            self._go_on(now)
            if now < self._until and self._may_break(kind, now, last, halfway=now > began + self._plan.seconds / 2):
                last, number = now, number + 1
                self._break(kind, number, stage)
                kind = next(deck)
            time.sleep(_TICK)
        self._ledger.note("calm")

    def _may_break(self, kind: Kind, now: float, last: float, *, halfway: bool) -> bool:
        """One at a time in the first half, with time to recover; in the second, pairs, but not of one place."""
        if halfway:
            taken = {broken.kind.place for broken in self._going}
            return len(taken) < 2 and kind.place not in taken and now > last + self._plan.every / 2
        return not self._going and now > max(last + self._plan.every, self._mended + self._plan.every / 2)

    def _break(self, kind: Kind, number: int, stage: Stage) -> None:
        self._report(f"{max(0, self._until - time.monotonic()):4.0f} s  {kind.name}")
        self._ledger.note("broke", number=number, fault=kind.name)
        self._going.append(_Broken(number, kind, kind.act(stage)))

    def _go_on(self, now: float) -> None:
        for broken in [each for each in self._going if each.due <= now]:
            try:
                broken.due = time.monotonic() + next(broken.fault)
            except StopIteration:
                self._going.remove(broken)
                self._mended = time.monotonic()
                self._ledger.note("mended", number=broken.number, fault=broken.kind.name)

    def _drain(self, watcher: str) -> None:
        """Wait until dispatchers have their answers, and jobs their ends; as long as that goes on."""
        self._report("waiting until all is done")
        before, moved = None, time.monotonic()
        while time.monotonic() < moved + self._plan.patience:
            self._fill_up()
            busy = self._herd.names("dispatcher")
            looked = time.monotonic()
            time.sleep(_GLANCE)
            seen = [entry for entry in read_ledger(self._folder, watcher) if entry["what"] == "jobs"][-1:]
            for entry in seen:
                if entry["at"] > looked and not busy and not entry["active"]:
                    self._ledger.note("drained")
                    return
                if before != (before := (entry["active"], entry["over"])):
                    moved = time.monotonic()

    def _dismiss(self) -> None:
        self._herd.ask_to_end("worker")
        self._herd.ask_to_end("elder")
        self._herd.finish(_FAREWELL, "worker")
        self._herd.finish(_FAREWELL, "elder")


async def _work(dsn: str, plan: Plan, gentle: bool, ledger: Ledger) -> None:
    await Workman(dsn, ledger, plan, gentle=gentle).run()


def _judge(dsn: str, plan: Plan, folder: Path, _: Ledger) -> None:
    judge(dsn, plan, folder)


def _deck(cards: list[Kind], dice: random.Random, *, in_order: bool) -> Iterator[Kind]:
    """Yield all, in one order after another: at first in the order given, if that was asked for."""
    if in_order:
        yield from cards
    while True:
        yield from dice.sample(cards, len(cards))


def _speak_into(path: Path) -> None:
    """Have a process say what it says into a file of its own."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s")
