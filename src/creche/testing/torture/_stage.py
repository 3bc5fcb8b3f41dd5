"""The stage: what the conductor has in hand, and faults act on. It decides nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

from attrs import frozen

from creche.testing._backdoor import driver_errors
from creche.testing._herd import Herd
from creche.testing._ledger import Ledger
from creche.testing.torture._ground import Ground
from creche.testing.torture._plan import Plan
from creche.testing.torture._wire import Wire

# A fault in progress: what it yields are the seconds until it wants to go on; when it is closed it lets go at once.
Fault: TypeAlias = Generator[float]


@frozen(kw_only=True)
class Stage:
    """What there is.

    Attributes:
        plan: of the run.
        ground: the database.
        herd: everybody's processes.
        wire: between actors and database; None for a file.
        dice: the conductor's.
    """

    plan: Plan
    ground: Ground
    herd: Herd
    wire: Wire | None
    dice: random.Random

    def while_it_lasts(self) -> float:
        """Draw how long a fault lasts."""
        return self.dice.uniform(1.0, 4.0)

    def aside(self, role: str, run: Callable[[Ledger], None]) -> Fault:
        """Have something done by a process of its own, and wait until it is over. It may fail: servers may be down."""

        def try_it(ledger: Ledger) -> None:
            try:
                run(ledger)
            except driver_errors() as error:
                ledger.note("missed", error=repr(error)[:200])

        who = self.herd.start(role, try_it)
        while self.herd.pid(who) is not None:
            yield 0.05

    @contextmanager
    def frozen(self, who: str) -> Generator[None]:
        """Have a process stand still."""
        self.herd.freeze(who)
        try:
            yield
        finally:
            self.herd.thaw(who)
