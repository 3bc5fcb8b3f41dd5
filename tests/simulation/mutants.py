"""Defects of the engine, planted one at a time: the simulation must find each, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

import anyio
from attrs import evolve
from msgspec.structs import replace

from creche import _reserver, _supervisor
from creche._job import Event, Extension, Failure, Settlement
from creche._leases import Holdings
from creche._renewer import Renewer
from creche._settler import Settler
from creche._wake import Doorbell
from creche.errors import StorageUnavailable
from creche.storage import memory
from creche.storage._memory_rows import Row
from creche.storage.memory import MemoryStorage


def no_local_deadline() -> AbstractContextManager[object]:
    """Nothing ends an attempt whose lease could not be renewed."""

    async def never(_: Holdings) -> None:
        await anyio.sleep_forever()

    return patch.object(Holdings, "end_what_runs_out", never)


def deadline_after_the_lease() -> AbstractContextManager[object]:
    """The local deadline is later than the database's, as if it were counted from a late answer."""
    return patch.object(_supervisor.Settings, "margin", property(lambda self: -self.lease / 3))


@contextmanager
def renew_ignores_the_answer() -> Generator[None]:
    """Whatever a renewal says, all is still held."""
    renew = Renewer._renew

    async def deaf(self: Renewer, held: Any) -> None:
        extend = self._storage.extend

        async def ask(leases: Any, seconds: float, **options: Any) -> Extension:
            await extend(leases, seconds, **options)
            return Extension(held=frozenset(leases), lost=frozenset(), cancel_requested=frozenset())

        self._storage, link = _With(self._storage, extend=ask), self._storage
        try:
            await renew(self, held)
        finally:
            self._storage = link

    with patch.object(Renewer, "_renew", deaf):
        yield


class _With:
    """A storage with one operation of another."""

    def __init__(self, storage: Any, **operations: Any) -> None:
        self._storage = storage
        self.__dict__.update(operations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def token_without_nonce() -> AbstractContextManager[object]:
    """The lease is a bare counter."""
    return patch.object(_reserver, "new_nonce", lambda: 0)


def release_is_counted() -> AbstractContextManager[object]:
    """What is given back has used up its attempt."""
    return patch.object(memory, "GIVES_BACK", frozenset({Event.SNOOZE}))


@contextmanager
def failed_acknowledgement_is_a_failure() -> Generator[None]:
    """An end that could not be written becomes a failed attempt."""
    write = Settler._write

    async def despair(self: Settler, batch: Any) -> None:
        settle = self._storage.settle

        async def once(settlements: Any, **named: Any) -> Any:
            try:
                return await settle(settlements, **named)
            except StorageUnavailable as error:
                return await settle([_failed(each, error) for each in settlements], **named)

        self._storage, link = _With(self._storage, settle=once), self._storage
        try:
            await write(self, batch)
        finally:
            self._storage = link

    with patch.object(Settler, "_write", despair):
        yield


def _failed(settlement: Settlement, error: Exception) -> Settlement:
    failure = Failure(type="StorageUnavailable", message=str(error))
    return replace(settlement, event=Event.RETRY, result=None, error=failure)


def no_poll_behind_wakes() -> AbstractContextManager[object]:
    """Who is not woken never looks."""

    async def wait(self: Doorbell, at_most: float = 0.0) -> None:
        await self._rung.wait()

    return patch.object(Doorbell, "wait", wait)


def no_fence() -> AbstractContextManager[object]:
    """Whoever names a job may write about it."""
    return patch.object(Row, "holds", lambda self, lease: True)


@contextmanager
def recover_steals() -> Generator[None]:
    """Upkeep takes back leases that have not run out."""
    recover = MemoryStorage._recover

    def early(self: MemoryStorage, limit: int, moment: Any) -> Any:
        rows = [row for row in self._rows.values() if row.record.locked_until is not None]
        for row in rows:
            row.record = evolve(row.record, locked_until=moment)
        return recover(self, limit, moment)

    with patch.object(MemoryStorage, "_recover", early):
        yield


Mutant = Callable[[], AbstractContextManager[object]]

MUTANTS: Final[Mapping[str, Mutant]] = {
    mutant.__name__: mutant
    for mutant in (
        no_local_deadline,
        deadline_after_the_lease,
        renew_ignores_the_answer,
        token_without_nonce,
        release_is_counted,
        failed_acknowledgement_is_a_failure,
        no_poll_behind_wakes,
        no_fence,
        recover_steals,
    )
}
