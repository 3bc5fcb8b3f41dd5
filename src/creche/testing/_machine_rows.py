"""What a database keeps, as the state machine compares it: rows that were read past the adapter, and how two of them
differ. It reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from attrs import evolve, field, fields, frozen, has

from creche._job import AttemptError, DeadLetter, FollowUp, JobRecord, Lease


def by_id(callbacks: Iterable[FollowUp]) -> tuple[FollowUp, ...]:
    """Put callbacks into an order, and their own too: nobody is promised the one in which they were asked for."""
    ordered = sorted(callbacks, key=lambda each: each.id)
    return tuple(evolve(each, then=by_id(each.then)) if each.then else each for each in ordered)


def ids_of(callbacks: Iterable[FollowUp]) -> Iterator[UUID]:
    """Return the ids of callbacks, and of theirs."""
    for each in callbacks:
        yield each.id
        yield from ids_of(each.then)


@frozen(kw_only=True)
class StoredJob:
    """A job's row as it stands in a database: what `Storage.list` shows of it, and what only the contract looks at.

    Attributes:
        token: of the lease that was given out last; `nonce` likewise.
        single_flight: whether the row is the one that a dispatch with its fingerprint joins.
        errors: all that are kept, oldest first.
        callbacks: those that wait for the job's end.
    """

    record: JobRecord
    token: int = 0
    nonce: int = 0
    single_flight: bool = False
    errors: tuple[AttemptError, ...] = ()
    callbacks: tuple[FollowUp, ...] = field(default=(), converter=by_id)

    def __str__(self) -> str:
        usual = {
            "token": 0,
            "nonce": 0,
            "single_flight": False,
            "errors": (),
            "callbacks": (),
            "cancel_requested": False,
        }
        values = {each.name: getattr(self.record, each.name) for each in fields(JobRecord)}
        values |= {each.name: getattr(self, each.name) for each in fields(StoredJob) if each.name != "record"}
        said = {name: value for name, value in values.items() if value is not None and value != usual.get(name)}
        return f"the job ({', '.join(f'{name}: {value!s}' for name, value in said.items())})"

    @property
    def lease(self) -> Lease:
        """The lease that was given out last."""
        return Lease(job_id=self.record.id, token=self.token, nonce=self.nonce)

    def at(self, now: datetime) -> StoredJob:
        """Return the row as it reads at a moment: a result that is stale answers for nothing, whatever stands there."""
        expiry = self.record.result_expires_at
        stale = self.single_flight and expiry is not None and expiry <= now
        return evolve(self, single_flight=False) if stale else self


@frozen(kw_only=True)
class StoredRows:
    """All that a database keeps of jobs, dead or alive."""

    jobs: Mapping[UUID, StoredJob]
    letters: Mapping[UUID, DeadLetter]


def differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    """Say where two answers differ, a line for each place."""
    kind, alike = _kind(expected), type(expected) is type(found)
    if expected == found:
        return
    if alike and has(kind):
        for each in fields(kind):
            yield from differences(getattr(expected, each.name), getattr(found, each.name), f"{path}.{each.name}")
    elif alike and kind is dict:
        yield from _of_mappings(expected, found, path)
    elif alike and kind in {list, tuple} and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{path}[{place}]")
    else:
        yield f"{path}: {expected!r} is right, {found!r} was found"


def _kind(value: object) -> Any:
    return type(value)


def _of_mappings(expected: Mapping[Any, Any], found: Mapping[Any, Any], path: str) -> Iterator[str]:
    for key in [*expected, *(key for key in found if key not in expected)]:
        if key not in found:
            yield f"{path}[{key!s}]: missing, {expected[key]!r}"
        elif key not in expected:
            yield f"{path}[{key!s}]: not meant to be there, {found[key]!r}"
        else:
            yield from differences(expected[key], found[key], f"{path}[{key!s}]")
