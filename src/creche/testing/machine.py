"""`store_machine`: a storage held to the contract by programs that Hypothesis thinks up, and makes short if they fail.

Hypothesis is imported when it is asked for, for the rest of `creche.testing` needs none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

from creche.abc import Storage
from creche.testing._machine_rows import StoredJob, StoredRows

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["StoredJob", "StoredRows", "store_machine"]

Also: TypeAlias = Callable[[Storage, Storage], AbstractAsyncContextManager[Callable[[str], None]]]


def store_machine(
    open_storage: Callable[[], Storage | Awaitable[Storage]],
    *,
    backend: str,
    rows: Callable[[], StoredRows] | None = None,
    also: Also | None = None,
) -> type[RuleBasedStateMachine]:
    """Return a state machine that plays with a storage, and compares it with the memory storage after each step.

    Its rules are all that can be done to a storage: by one caller, who may lose the answer and ask again; by rivals at
    the same moment; with leases that are right, stale, forged or used before; at moments that are a limit, or a
    microsecond beside it. After each step, what is kept is what the oracle keeps, and what was promised holds on the
    rows alone: one holder, fenced, nothing lost, bounded attempts, single flight, one end, callbacks written with it.

    A program that fails is made short, and printed so that it can be read::

        TestMyStorage = store_machine(MyStorage, backend="trio").TestCase

    How many programs, of how many steps, and what becomes of one that failed is Hypothesis's business
    (`TestCase.settings`, and its profiles).

    Args:
        open_storage: returns a storage with no job in it, not opened yet; called for each program. It may be a
            coroutine function.
        backend: the event loop: asyncio or trio.
        rows: reads what the database keeps, past the storage: by SQL, over a connection of its own. Without it the
            promises are checked on what the storage itself lists.
        also: what else is to be compared: called with the oracle and the storage, both open, it gives for the length of
            a program a function to be called after each step, with the step's name. For what no contract promises, such
            as wakes to the letter.

    Raises:
        ImportError: Hypothesis is not installed.
    """
    try:
        from creche.testing._machine_rivals import Rivals
        from creche.testing._machine_session import Subject
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "hypothesis":
            raise
        raise ImportError("store_machine needs Hypothesis, which is not installed: pip install hypothesis") from error

    subject = Subject(open_storage=open_storage, backend=backend, rows=rows, also=also)
    return type("StoreMachine", (Rivals,), {"subject": subject, "__doc__": Rivals.__doc__})
