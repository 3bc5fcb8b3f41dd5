"""How attempts end on MySQL, and what follows when a job is over: the statements, in the order of their transaction.

It sends nothing, and wakes nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final
from uuid import UUID

from creche._job import ERRORS_KEPT, WAKE_HORIZON, Lease, Settlement
from creche._lifecycle import BURIES
from creche.storage import _mysql_rows as rows
from creche.storage._mysql_calls import Row, chunks
from creche.storage._mysql_literals import Expression, Render

# What follow_up_if_any.sql has chosen.
CHOSEN: Final = ("PREPARE creche_follow_up FROM @creche_follow_up", "EXECUTE creche_follow_up")


def follow(render: Render, ids: Iterable[UUID], *, now: Expression) -> Sequence[str]:
    """Return the statements that write what follows jobs which have just ended; the first says whom that wakes."""
    ended = {"ids": sorted(ids)}
    follow_up = render("follow_up", now=now, **ended)
    choose = render("follow_up_if_any", follow_up=follow_up, **ended)
    return [render("followed", **ended), choose, *CHOSEN, render("forget_callbacks", **ended)]


FOLLOWING: Final = 3 + len(CHOSEN)


def follow_now(render: Render, ids: Iterable[UUID], *, now: Expression) -> Sequence[str]:
    """Return the statements of `follow` for jobs that are known to be followed; nobody needs to be told."""
    ended = {"ids": sorted(ids)}
    return [render("follow_up", now=now, **ended), render("forget_callbacks", **ended)]


def settling(render: Render, settlements: Collection[Settlement], *, now: Expression, most: int) -> Sequence[str]:
    """Return the statements that end attempts. The last are `settled` and those of `follow`.

    Args:
        render: puts literals into statements.
        settlements: which.
        now: the clock.
        most: bytes that the server takes at once.
    """
    leases = [settlement.lease for settlement in settlements]
    bury = [settlement.lease for settlement in settlements if settlement.event in BURIES]
    return [
        *(
            render("settle", settlements=rows.joined(chunk), kept=ERRORS_KEPT, now=now)
            for chunk in chunks(rows.settlement_elements(settlements), most)
        ),
        *([render("write_dead_letters", buried=rows.is_lease(bury))] if bury else ()),
        render("settled", horizon=rows.microseconds(WAKE_HORIZON), **rows.lease_parameters(leases)),
        *follow(render, {lease.job_id for lease in leases}, now=now),
    ]


def settled(answers: Sequence[Sequence[Row]]) -> tuple[frozenset[Lease], set[str]]:
    """Return what was accepted, by the answers to the statements of `settling`, and whom to wake."""
    found, followed = answers[-1 - FOLLOWING], answers[-FOLLOWING]
    goes_on = {row[3].decode() for row in found if row[3] is not None}
    return frozenset(map(rows.lease, found)), goes_on | rows.woken(followed)
