"""The auditor: a process that watches the database while others torture it, and one that judges when it is over. They
are connected to the server itself, ask in plain SQL, and believe what is written down.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
from attrs import frozen

from creche._job import ACTIVE
from creche.testing._backdoor import connect
from creche.testing._ledger import Ledger
from creche.testing.torture import _figures as figures
from creche.testing.torture._audit import EXCUSED, audit
from creche.testing.torture._figures import Growth, Late, Spread
from creche.testing.torture._plan import Plan
from creche.testing.torture._story import Story, read_story, text

VERDICT: Final = "verdict.json"
SHOWN: Final = 20  # objections of a check
_GLANCE: Final = 0.25  # seconds

_JOBS: Final = "SELECT status, COUNT(*) FROM creche_jobs GROUP BY status"
_RIVALS: Final = (
    "SELECT fingerprint, COUNT(*) FROM creche_jobs WHERE fingerprint IS NOT NULL "
    "AND status IN ('pending', 'scheduled', 'processing') GROUP BY fingerprint HAVING COUNT(*) > 1"
)


@frozen(kw_only=True)
class Column:
    """One thing that must not have happened.

    Attributes:
        count: how often it did.
        excused: whether it may, on a server that does not wait for its disk.
        objections: some of them, in words.
    """

    name: str
    count: int
    excused: bool
    objections: Sequence[str]


@frozen(kw_only=True)
class Verdict:
    """What came out.

    Attributes:
        rig: on what: names to values.
    """

    rig: Mapping[str, str]
    columns: Sequence[Column]
    counts: Mapping[str, int]
    unknown: Mapping[str, int]
    attempts_per_completed_job: float
    recoveries: Mapping[str, Spread]
    second_runs: Spread | None
    answers: Spread | None
    lateness: Mapping[str, Late]
    growth: Sequence[Growth]

    @property
    def clean(self) -> bool:
        """Whether nothing happened that must not."""
        return not any(column.count and not column.excused for column in self.columns)


def watch(dsn: str, ledger: Ledger) -> None:
    """Look until killed: for rivals, which no later look could find, and for how many jobs there are."""
    while True:
        try:
            with closing(connect(dsn)) as connection, closing(connection.cursor()) as cursor:
                while True:
                    cursor.execute(_RIVALS)
                    for fingerprint, count in cursor.fetchall():
                        ledger.note("rivals", fingerprint=str(fingerprint), count=count)
                    connection.rollback()
                    cursor.execute(_JOBS)
                    counts = {text(status): count for status, count in cursor.fetchall()}
                    connection.rollback()
                    active = sum(counts.get(status, 0) for status in ACTIVE)
                    ledger.note("jobs", active=active, over=sum(counts.values()) - active)
                    time.sleep(_GLANCE)
        except Exception as error:  # noqa: BLE001 - the server is what is being tortured: it is asked again
            ledger.note("blind", error=repr(error)[:80])
            time.sleep(_GLANCE)


def judge(dsn: str, plan: Plan, folder: Path) -> None:
    """Write the verdict into the folder of a run."""
    verdict = find(read_story(dsn, plan, folder))
    (folder / VERDICT).write_bytes(msgspec.json.encode(verdict))


def read_verdict(folder: Path) -> Verdict:
    """Return the verdict of a run."""
    return msgspec.json.decode((folder / VERDICT).read_bytes(), type=Verdict)


def find(story: Story) -> Verdict:
    """Judge a story."""
    return Verdict(
        rig=_rig(story),
        columns=[
            Column(
                name=name,
                count=len(objections),
                excused=name in EXCUSED and not story.plan.durable,
                objections=objections[:SHOWN],
            )
            for name, objections in audit(story).items()
        ],
        counts=figures.counts(story),
        unknown=figures.unknown_outcomes(story),
        attempts_per_completed_job=figures.attempts_per_completed_job(story),
        recoveries=figures.recoveries(story),
        second_runs=figures.second_runs(story),
        answers=figures.answers(story),
        lateness=figures.lateness(story),
        growth=figures.growth(story),
    )


def _rig(story: Story) -> Mapping[str, str]:
    plan = story.plan
    loads = [entry["load"] for entry in story.all("load")]
    facts = [entry["facts"] for entry in story.all("rig")]
    ahead = f" and {plan.hoard} jobs ahead" if plan.hoard else ""
    return {
        "database": facts[0] if facts else plan.engine,
        "machine": f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
        "load average": f"{loads[0]:.1f} before, {loads[-1]:.1f} after" if loads else "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "plan": f"{plan.seconds:g} s, seed {plan.seed}, {plan.rate:g} dispatches/s of {plan.dispatchers} processes, "
        f"{plan.workers} workers and {plan.elders} elders of {plan.concurrency} slots{ahead}, lease {plan.lease:g} s, "
        f"{plan.attempts} attempts, a fault every {plan.every:g} s",
    }
