"""The story of a torture run: everybody's ledgers, and the database's own rows. It judges nothing.

Rows are read by plain drivers, not through the storage whose work is judged.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

from attrs import define, frozen

from creche._job import ACTIVE
from creche.testing._backdoor import read
from creche.testing._ledger import Chronicle, Entry, read_ledgers
from creche.testing.torture._plan import Plan

_ROWS: Final = (
    "SELECT id, type, status, attempts, max_attempts, idempotency_key, fingerprint, token, nonce, result "
    "FROM creche_jobs"
)


@frozen(kw_only=True)
class Row:
    """A job, as the database has it in the end.

    Attributes:
        limit: how many attempts it may have.
        key: its idempotency key.
        lease: the last one, token and nonce.
    """

    id: str
    kind: str
    status: str
    attempts: int
    limit: int
    key: str | None
    fingerprint: str | None = None
    lease: str = ""
    result: Any = None

    @property
    def active(self) -> bool:
        """Whether there is still something to come."""
        return self.status in ACTIVE


@define(kw_only=True)
class Attempt:
    """One attempt, as the process that ran it told. Times are on the ledgers' clock.

    Attributes:
        lease: under which it ran.
        until: when its right to run ended, as its worker knew last: by the worker's own deadline.
        ended: when the handler was over; None: nobody has seen that.
        how: the handler ended.
        swallows: whether it swallowed its cancellation for a while.
        commits: whether its own transaction had come to its commit.
        ending: when its end was handed to the settler.
        outcome: that end.
        acked: when the storage was known to have accepted it.
        lost: when its worker gave it up.
        died: when its process did, if it was killed or ended itself.
    """

    job: str
    lease: str
    kind: str
    number: int
    who: str
    began: float
    until: float
    ended: float | None = None
    how: str = ""
    swallows: bool = False
    commits: bool = False
    ending: float | None = None
    outcome: str = ""
    acked: float | None = None
    lost: float | None = None
    died: float | None = None

    @property
    def valid_until(self) -> float:
        """When its right ended: its worker gave it back, gave it up, or could not show any more that it lasts."""
        return min(at for at in (self.until, self.ending, self.lost) if at is not None)

    @property
    def alive_until(self) -> float | None:
        """When its handler was over, or its process; None: nobody knows."""
        return self.died if self.ended is None else self.ended


@frozen(kw_only=True, slots=False)
class Story(Chronicle):
    """All that is known.

    Attributes:
        dead: the jobs of dead letters.
        effects: the rows that jobs wrote: job, worker, attempt.
    """

    plan: Plan
    rows: Sequence[Row]
    dead: Sequence[str] = ()
    effects: Sequence[tuple[str, str, int]] = ()

    @cached_property
    def attempts(self) -> Mapping[str, Sequence[Attempt]]:
        """Every job's attempts, in the order in which they began."""
        found = defaultdict[str, list[Attempt]](list)
        for attempt in _attempts(self.entries).values():
            found[attempt.job].append(attempt)
        deaths = self.deaths
        for attempt in (each for attempts in found.values() for each in attempts):
            if attempt.ended is None:
                attempt.died = deaths.get(attempt.who)
        return found

    @cached_property
    def deaths(self) -> Mapping[str, float]:
        """When processes died that did not end by themselves, or ended in the middle of a job. Of those that were
        killed, when they were struck: from then on they do nothing.
        """
        exits = {entry["who"]: entry["at"] for entry in self.all("exits")}
        return exits | {entry["name"]: entry["struck"] for entry in self.all("killed")}

    @cached_property
    def known(self) -> Mapping[str, Row]:
        """The rows by their ids."""
        return {row.id: row for row in self.rows}


def read_story(dsn: str, plan: Plan, folder: Path) -> Story:
    """Collect what is known, once it is over."""
    return Story(
        plan=plan,
        entries=read_ledgers(folder),
        rows=[_row(values) for values in read(dsn, _ROWS)],
        dead=[_id(row[0]) for row in read(dsn, "SELECT job_id FROM creche_dead_letters")],
        effects=[(row[0], row[1], row[2]) for row in read(dsn, "SELECT job_id, worker, attempt FROM effects")],
    )


def _attempts(entries: Sequence[Entry]) -> Mapping[tuple[str, str], Attempt]:
    found: dict[tuple[str, str], Attempt] = {}
    for entry in entries:
        what = entry["what"]
        if what not in {"begin", "renewed", "end", "ending", "acked", "lost", "swallows", "commits"}:
            continue
        name = entry["job"], entry["lease"]
        if what == "begin":
            found[name] = Attempt(
                job=entry["job"],
                lease=entry["lease"],
                kind=entry["kind"],
                number=entry["attempt"],
                who=entry["who"],
                began=entry["at"],
                until=_moment(entry["until"]),
            )
        elif (attempt := found.get(name)) is not None:
            _go_on(attempt, entry)
    return found


def _go_on(attempt: Attempt, entry: Entry) -> None:
    match entry["what"]:
        case "renewed":
            attempt.until = max(attempt.until, _moment(entry["until"]))
        case "end":
            attempt.until = max(attempt.until, _moment(entry["until"]))
            attempt.ended, attempt.how = entry["at"], entry["how"]
        case "swallows":
            attempt.swallows = True
        case "commits":
            attempt.commits = True
        case "ending":
            attempt.ending, attempt.outcome = entry["at"], entry["how"]
        case "acked":
            attempt.acked = entry["at"]
        case _:
            attempt.lost = entry["at"]


def _moment(until: float | None) -> float:
    return float("inf") if until is None else until


def _row(values: Sequence[Any]) -> Row:
    job_id, kind, status, attempts, limit, key, fingerprint, token, nonce, result = values
    return Row(
        id=_id(job_id),
        kind=text(kind) or "",
        status=text(status) or "",
        attempts=attempts,
        limit=limit,
        key=text(key),
        fingerprint=text(fingerprint, hexadecimal=True),
        lease=f"{token}:{nonce}",
        result=json.loads(result) if isinstance(result, str | bytes) else result,
    )


def _id(value: object) -> str:
    return str(UUID(bytes=bytes(value))) if isinstance(value, bytes) else str(value)


def text(value: Any, *, hexadecimal: bool = False) -> str | None:
    """Return a column's value as text: some engines have bytes for it."""
    if isinstance(value, bytes | memoryview):
        data = bytes(cast("bytes", value))
        return data.hex() if hexadecimal else data.decode()
    return None if value is None else str(value)
