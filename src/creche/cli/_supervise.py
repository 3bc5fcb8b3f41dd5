"""`creche worker --processes N`: starts workers, replaces those that end unasked, and ends them all when told.

It runs no job and opens no database: whether a child is well, the child says.
"""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Sequence
from typing import Final

import anyio
from anyio import create_task_group
from anyio.abc import TaskGroup
from attrs import field, frozen, mutable

from creche import Health
from creche.cli._children import Child, End
from creche.cli._problems import ExitCode
from creche.cli._slot import MARGIN

_log = logging.getLogger("creche")

_SHORTEST: Final = 1.0  # seconds before a crashed child is started again
_LONGEST: Final = 30.0  # seconds, however often it has crashed
_SETTLED: Final = 60.0  # seconds of life after which a crash counts as the first one
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_DRAINED: Final = "drained"


# --- what follows when a child ends -----------------------------------------------------------------


@frozen(kw_only=True)
class Verdict:
    """What is to be done when a child has ended.

    Attributes:
        again_in: seconds until its place is taken again; None: it stays empty.
        code: what the supervisor's exit code is at least.
        hopeless: none of the others will do any better.
    """

    again_in: float | None = None
    code: int = ExitCode.OK
    hopeless: bool = False


@mutable(kw_only=True)
class Crashes:
    """How often one place has seen its child crash lately."""

    delay: float = field(default=0.0)

    def again_in(self, lived: float) -> float:
        """Return the seconds until the next try: 1, doubled up to 30, less up to a half of it."""
        self.delay = _SHORTEST if lived >= _SETTLED else min(_LONGEST, max(_SHORTEST, self.delay * 2))
        return self.delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load, guarding nothing


def judge(end: End, crashes: Crashes, *, leaving: bool, proven: bool) -> Verdict:
    """Decide what follows.

    Args:
        end: how the child ended.
        crashes: of its place.
        leaving: no child is to be started any more.
        proven: some child has begun to work: so the configuration is right.
    """
    if leaving and end.code == -signal.SIGTERM and not end.report.up:
        return Verdict()  # told to stop before it had begun
    late = end.code < 0 and end.report.ended != ""  # all that it held was settled before it was killed
    code = ExitCode.TROUBLE if end.code and not late else ExitCode.OK
    if leaving:
        return Verdict(code=code)
    if end.report.ended == _DRAINED:
        return Verdict(code=code)
    if end.report.ended:  # its limit is reached, or somebody stopped it: its work goes on, but in no hot loop
        return Verdict(code=code, again_in=max(0.0, _SHORTEST - end.lived))
    if not proven:
        return Verdict(code=end.code if end.code > 0 else ExitCode.TROUBLE, hopeless=True)
    return Verdict(again_in=crashes.again_in(end.lived))


# --- the supervisor ---------------------------------------------------------------------------------


class Crew:
    """The children of one supervisor. It can run once.

    Args:
        command: what each child runs.
        processes: how many.
    """

    def __init__(self, command: Sequence[str], processes: int) -> None:
        self._children = [Child(number, command) for number in range(1, processes + 1)]
        self._leaving = anyio.Event()
        self._stopping = self._quiet = self._proven = False
        self._code: int = ExitCode.OK
        self._tasks: TaskGroup | None = None

    @property
    def health(self) -> Health:
        """How all of them are; to be asked by any thread. Live if each is, ready if one is."""
        said = [(child.name, child.health) for child in self._children]
        return Health(
            live=all(health.live for _, health in said),
            ready=any(health.ready for _, health in said) and not self._stopping,
            reason="; ".join(f"{name}: {health.reason}" for name, health in said if health.reason),
        )

    async def run(self) -> int:
        """Keep all places taken until told to stop, or until all are empty for good; return the exit code."""
        with anyio.open_signal_receiver(*_SIGNALS) as received:
            async with create_task_group() as self._tasks:

                async def obey() -> None:
                    async for number in received:
                        self._obey(number)

                self._tasks.start_soon(obey, name="signals")
                async with create_task_group() as places:
                    for child in self._children:
                        places.start_soon(self._keep, child, name=child.name)
                self._tasks.cancel_scope.cancel()
        _log.info("all processes have ended")
        return self._code

    # --- what it is told ----------------------------------------------------------------------------

    def _obey(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGUSR1:
                _log.info("quiet: no process reserves any more, and none is replaced")
                self._quiet = True
                self._leaving.set()
                self._tell(number)
            case signal.SIGUSR2:
                self._tell(number)
            case _:
                self._stop()

    def _stop(self) -> None:
        grace = 0.0 if self._stopping else max(child.report.grace for child in self._children)
        _log.info("stopping %s", "without a grace" if self._stopping else f"within {grace:g} s")
        for child in self._children:
            if self._stopping:
                child.hurry()
            else:
                child.signal(signal.SIGTERM)
        self._stopping = True
        self._leaving.set()
        if self._tasks is not None:
            self._tasks.start_soon(self._kill_after, grace + MARGIN)

    async def _kill_after(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        _log.error("not ended in time, and killed: their jobs run again when their leases run out")
        self._tell(signal.SIGKILL)

    def _tell(self, number: signal.Signals) -> None:
        for child in self._children:
            child.signal(number)

    # --- one place ----------------------------------------------------------------------------------

    async def _keep(self, child: Child) -> None:
        crashes = Crashes()
        while True:
            end = await child.run(self._heard)
            verdict = judge(end, crashes, leaving=self._leaving.is_set(), proven=self._proven)
            self._code = max(self._code, verdict.code)
            _tell_of(child, end, verdict)
            if verdict.hopeless:
                self._stop()
            if verdict.again_in is None:
                return
            with anyio.move_on_after(verdict.again_in):
                await self._leaving.wait()
                return

    def _heard(self, child: Child) -> None:
        """A child has begun to work."""
        self._proven = True
        if self._quiet:
            child.signal(signal.SIGUSR1)


def _tell_of(child: Child, end: End, verdict: Verdict) -> None:
    why = f" ({end.report.ended})" if end.report.ended else ""
    if verdict.hopeless:
        _log.error("%s %s before anything worked: giving up", child.name, end)
    elif verdict.again_in is None:
        _log.info("%s %s%s", child.name, end, why)
    elif end.report.ended:
        _log.info("%s %s%s: it is replaced", child.name, end, why)
    else:
        _log.warning("%s %s: it is started again in %.1f s", child.name, end, verdict.again_in)
