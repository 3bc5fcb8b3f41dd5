"""State machines: each storage against the oracle, whatever is done to both, in any order and at once, on both loops.

The same programs each time; others, with `CRECHE_MACHINE_SEED=17`. `nox -s deep` plays new ones for hours.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count
from typing import Any, ClassVar, Final, cast

import anyio
import pytest
from attrs import frozen
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from creche.abc import Storage
from creche.storage._listener import LocalListener
from creche.storage._sqlite_listener import SQLiteListener
from creche.storage.memory import MemoryStorage
from creche.storage.postgresql import PostgreSQLStorage
from creche.testing import StoredRows, store_machine
from creche.testing._machine_draws import QUEUES, WATCHERS, WORKERS
from creche.testing._machine_oracle import Oracle, stored_job
from stored_rows import ENGINES

DEEP: Final = settings.get_current_profile_name() == "deep"
PROGRAMS: Final = settings().max_examples if DEEP else 200
STEPS: Final = 60
SEED: Final = int(os.environ.get("CRECHE_MACHINE_SEED") or (secrets.randbits(32) if DEEP else 0))
NAMES: Final = [*QUEUES, *WATCHERS, *WORKERS]


@frozen(kw_only=True)
class Examined:
    """A storage: how an empty one is opened, and how what it keeps is read past it."""

    open_storage: Callable[[], Storage]
    rows: Callable[[], StoredRows]


@pytest.fixture(scope="module", params=["memory", *ENGINES])
def examined(request: pytest.FixtureRequest) -> Iterator[Examined]:
    """Each storage, on one database for all programs."""
    if request.param == "memory":
        yield in_memory(MemoryStorage)
        return
    engine = ENGINES[request.param]
    fixture, empty = engine.database
    with empty(request.getfixturevalue(fixture)) as dsn, closing(engine.connect(dsn)) as raw:
        anyio.run(engine.storage(dsn).migrate)

        def open_storage() -> Storage:
            engine.empty(raw)
            return engine.storage(dsn)

        yield Examined(open_storage=open_storage, rows=partial(engine.rows, raw))


def in_memory(make: Callable[[], MemoryStorage]) -> Examined:
    """Return a way to examine the memory storage, or what is made of it."""
    made: list[MemoryStorage] = []

    def open_storage() -> Storage:
        made.append(make())
        return made[-1]

    return Examined(open_storage=open_storage, rows=lambda: rows_of(made[-1]))


def rows_of(memory: MemoryStorage) -> StoredRows:
    """Return all that a memory storage keeps."""
    jobs = {job_id: stored_job(row) for job_id, row in memory._rows.items()}
    return StoredRows(jobs=jobs, letters=dict(memory._dead))


@pytest.mark.parametrize(("backend", "offset"), [("asyncio", 0), ("trio", 1)])
def test_it_answers_keeps_and_wakes_as_the_oracle_does(examined: Examined, backend: str, offset: int) -> None:
    machine = store_machine(examined.open_storage, backend=backend, rows=examined.rows, also=wakes)
    assert play(machine, PROGRAMS, SEED + offset) >= PROGRAMS


def play(machine: type[RuleBasedStateMachine], programs: int, first: int) -> int:
    """Play until so many programs had all their steps, for some of Hypothesis's are shorter; return how many had."""

    class Counted(machine):  # type: ignore[misc, valid-type]  # it is made at run time
        complete: ClassVar[int] = 0

        def keep(self, *arguments: Any) -> None:
            self.steps = getattr(self, "steps", 0) + 1
            super().keep(*arguments)

        def teardown(self) -> None:
            Counted.complete += getattr(self, "steps", 0) >= STEPS
            super().teardown()

    for drawn in count(first, 2):  # whoever else begins beside `first` draws others
        run_state_machine_as_test(
            seed(drawn)(Counted),
            settings=settings(
                max_examples=max(20, programs - Counted.complete),
                stateful_step_count=STEPS,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
        if Counted.complete >= programs:
            break
    return Counted.complete


# --- wakes: a hint, says the contract; to the letter, say these -------------------------------------


@asynccontextmanager
async def wakes(oracle: Storage, storage: Storage) -> AsyncGenerator[Callable[[str], None]]:
    """Compare who was woken by a step. Where the answer may have been lost, and its wakes with it, there are more."""
    assert isinstance(oracle, Oracle)
    async with listening(storage, NAMES) as heard:

        def heed(doing: str) -> None:
            (must, may), found = oracle.wakes(), taken(heard)
            if isinstance(heard, SQLiteListener):
                assert found <= may, f"{doing} woke {found - may}"
            assert found >= must.intersection(NAMES), f"{doing} did not wake {must - found}"

        yield heed


@asynccontextmanager
async def listening(storage: Storage, names: Collection[str]) -> AsyncGenerator[Any]:
    """Listen to what this process does, of which nothing comes later, or twice, by way of the server."""
    if isinstance(storage, PostgreSQLStorage):
        opened = storage._opened
        assert opened is not None
        local = LocalListener(names)
        with opened.wakes.told(local):
            yield local
    else:
        async with storage.listen(names) as listener:
            yield cast("LocalListener", listener)


def taken(listener: Any) -> set[str]:
    """Take a listener's wakes without waiting for any."""
    woken, listener._woken = listener._woken, set[str]()
    if isinstance(listener, SQLiteListener):  # it keeps apart who is asked to end something
        called, listener._called = listener._called, set[str]()
        return {*woken, *called}
    return set(woken)
