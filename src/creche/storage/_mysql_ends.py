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
FOLLOWING_SURELY: Final = 3


def follow_now(render: Render, ids: Iterable[UUID], *, now: Expression) -> Sequence[str]:
    """Return the statements of `follow` for jobs that are known to be followed; nobody needs to be told."""
    ended = {"ids": sorted(ids)}
    return [render("follow_up", now=now, **ended), render("forget_callbacks", **ended)]


def ending(
    render: Render, settlements: Collection[Settlement], *, now: Expression, most: int, followed: bool = False
) -> Sequence[str]:
    """Return the statements that end attempts; the last says which, see `ended`.

    Args:
        render: puts literals into statements.
        settlements: which.
        now: the clock.
        most: bytes that the server takes at once.
        followed: what follows comes next, so also jobs with callbacks can be ended.
    """
    leases = [settlement.lease for settlement in settlements]
    bury = [settlement.lease for settlement in settlements if settlement.event in BURIES]
    return [
        *(
            render("settle", settlements=rows.joined(chunk), kept=ERRORS_KEPT, followed=followed, now=now)
            for chunk in chunks(rows.settlement_elements(settlements), most)
        ),
        *([render("write_dead_letters", buried=rows.is_lease(bury))] if bury else ()),
        render("settled", horizon=rows.microseconds(WAKE_HORIZON), **rows.lease_parameters(leases)),
    ]


def settling(
    render: Render, settlements: Collection[Settlement], *, now: Expression, most: int, surely: bool = False
) -> Sequence[str]:
    """Return the statements that end attempts and write what follows; the last are `settled` and those of `follow`.

    `surely`: these jobs have callbacks, so nothing has to be made ready for those that may have some.
    """
    ids = {settlement.lease.job_id for settlement in settlements}
    end = ending(render, settlements, now=now, most=most, followed=True)
    if surely:
        return [*end, render("followed", ids=sorted(ids)), *follow_now(render, ids, now=now)]
    return [*end, *follow(render, ids, now=now)]


def ended(found: Sequence[Row]) -> tuple[frozenset[Lease], frozenset[Lease], set[str]]:
    """Return what was accepted, by the rows of `settled.sql`, what was left out for what follows, and whom to wake."""
    left = frozenset(rows.lease(row) for row in found if row[5])
    goes_on = {row[3].decode() for row in found if row[3] is not None}
    watched = rows.woken((None, row[4]) for row in found if row[4] is not None)
    return frozenset(map(rows.lease, found)) - left, left, goes_on | watched


def settled(answers: Sequence[Sequence[Row]], *, surely: bool = False) -> tuple[frozenset[Lease], set[str]]:
    """Return what was accepted, by the answers to the statements of `settling`, and whom to wake."""
    following = FOLLOWING_SURELY if surely else FOLLOWING
    accepted, _, woken = ended(answers[-1 - following])
    return accepted, woken | rows.woken(answers[-following])
