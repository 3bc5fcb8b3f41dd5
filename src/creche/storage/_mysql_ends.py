"""How attempts end on MySQL, and what follows when a job is over: the statements, in the order of their transaction.

It wakes nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final
from uuid import UUID

from attrs import field, frozen

from creche._job import ERRORS_KEPT, WAKE_HORIZON, Lease, Retention, Settlement
from creche._lifecycle import BURIES
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import Connection
from creche.storage._batches import alike, in_lease_order, unkept
from creche.storage._mysql_calls import Row, chunks, together
from creche.storage._mysql_literals import Expression, Render
from creche.storage._rows import settlement_columns

# What follow_up_if_any.sql has chosen, and what settled_if_short.sql has.
CHOSEN: Final = ("PREPARE creche_follow_up FROM @creche_follow_up", "EXECUTE creche_follow_up")
ASKED: Final = ("PREPARE creche_settled FROM @creche_settled", "EXECUTE creche_settled")


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


@frozen
class Ended:
    """Leases whose attempts are `written` as ended; those of the others whose job is `gone`; and whom to wake."""

    written: set[Lease] = field(factory=set[Lease])
    gone: set[Lease] = field(factory=set[Lease])
    woken: set[str] = field(factory=set[str])

    def note(self, answer: Sequence[Row]) -> frozenset[Lease]:
        """Take the rows of `settled.sql`; return the leases that were left out for what follows."""
        written, followed, woken = _ended(answer)
        self.written.update(written)
        self.woken.update(woken)
        return followed


async def end_attempts(
    connection: Connection,
    settlements: Sequence[Settlement],
    found: Ended,
    *,
    render: Render,
    retention: Retention | None,
    now: Expression,
) -> None:
    """Write settlements; see `Storage.settle`: what is deleted, what is alike, and the rest, each in a transaction and
    a round trip of its own. First without what follows, which most jobs have none of; those that have take another one.

    Args:
        connection: where, in no transaction.
        settlements: which.
        found: what is noted as written here is not asked about again: whoever runs this again, for a rival was in the
            way of the second trip, would find it lost if somebody has touched or pruned it since.
        render: puts literals into statements.
        retention: whether those that succeed are kept.
        now: the clock.
    """
    given = {settlement.lease for settlement in settlements}
    most = connection.max_allowed_packet
    followed = set[Lease]()

    def left() -> Sequence[Settlement]:
        return [each for each in settlements if each.lease not in found.written and each.lease not in followed]

    if short := unkept(left(), retention):
        found.written.update(await _delete_unkept(connection, short, render=render))
    if same := alike(left()):
        followed |= await _complete(connection, same, found, render=render, now=now)
    if rest := left():
        answers = await together(connection, ending(render, rest, now=now, most=most))
        followed |= found.note(answers[-1].rows)
    if followed:
        rest = [settlement for settlement in settlements if settlement.lease in followed]
        answers = await together(connection, settling(render, rest, now=now, most=most, surely=True))
        late, woken = settled([answer.rows for answer in answers], surely=True)
        found.written.update(late)
        found.woken.update(woken)
    if lost := given - found.written:
        look = render("statuses", ids=sorted({lease.job_id for lease in lost}))
        there = rows.statuses((await connection.run(look))[0].rows)
        found.gone.update(lease for lease in lost if lease.job_id not in there)


async def _delete_unkept(
    connection: Connection, settlements: Sequence[Settlement], *, render: Render
) -> frozenset[Lease]:
    """End attempts by deleting their jobs, in a transaction; return those that could be ended so.

    In one round trip: a worker whose event loop is blocked in between would keep the jobs locked, and undeleted.
    """
    held = rows.is_lease([settlement.lease for settlement in in_lease_order(settlements)])
    statements = [render(name, held=held) for name in ("lock_held", "delete_unkept", "held")]
    locked, _, left = await together(connection, statements)
    return frozenset(map(rows.lease, locked.rows)).difference(map(rows.lease, left.rows))


async def _complete(
    connection: Connection, settlements: Sequence[Settlement], found: Ended, *, render: Render, now: Expression
) -> frozenset[Lease]:
    """End attempts that succeeded with the same result, in a transaction; return those left out for what follows.

    Nearly always all of them are held, as their number says, and then none is asked about.
    """
    leases = [settlement.lease for settlement in settlements]
    held, common = rows.is_lease(leases), settlement_columns(settlements[0])
    statements = [
        render("complete", held=held, result=common.result, now=now),
        render(
            "settled_if_short",
            wanted=len(leases),
            watched=render("watched", ids=[lease.job_id for lease in leases]),
            settled=_settled(render, held),
        ),
        *ASKED,
    ]
    completed, *_, answer = await together(connection, statements)
    if completed.affected < len(leases):
        return found.note(answer.rows)
    found.written.update(leases)
    found.woken.update(bytes.fromhex(name).decode() for (name,) in answer.rows)
    return frozenset()


def ending(
    render: Render, settlements: Collection[Settlement], *, now: Expression, most: int, followed: bool = False
) -> Sequence[str]:
    """Return the statements that end attempts; the last says which, see `_ended`.

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
        _settled(render, rows.is_lease(leases)),
    ]


def _settled(render: Render, held: Expression) -> str:
    return render("settled", horizon=rows.microseconds(WAKE_HORIZON), held=held)


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


def _ended(found: Sequence[Row]) -> tuple[frozenset[Lease], frozenset[Lease], set[str]]:
    """Return what was accepted, by the rows of `settled.sql`, what was left out for what follows, and whom to wake."""
    left = frozenset(rows.lease(row) for row in found if row[5])
    goes_on = {row[3].decode() for row in found if row[3] is not None}
    watched = rows.woken((None, row[4]) for row in found if row[4] is not None)
    return frozenset(map(rows.lease, found)) - left, left, goes_on | watched


def settled(answers: Sequence[Sequence[Row]], *, surely: bool = False) -> tuple[frozenset[Lease], set[str]]:
    """Return what was accepted, by the answers to the statements of `settling`, and whom to wake."""
    following = FOLLOWING_SURELY if surely else FOLLOWING
    accepted, _, woken = _ended(answers[-1 - following])
    return accepted, woken | rows.woken(answers[-following])
