"""What `creche top` draws: one moment of a database, as it looks in a window. It reads no database and no keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import frozen

from creche._job import JobRecord, QueueStats, Status, WorkerRecord
from creche.cli._display import BAD, age, brief, console_of_data, shortened, span, text_of
from creche.cli._tables import (
    WIDE,
    new_table,
    per_minute,
    queue_json,
    queue_table,
    running_table,
    served_by,
    worker_json,
    worker_table,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


@frozen(kw_only=True)
class Look:
    """What was seen at one moment.

    Attributes:
        failed: what failed last, the latest first.
    """

    at: datetime
    queues: Sequence[QueueStats]
    workers: Sequence[WorkerRecord]
    failed: Sequence[JobRecord]


@frozen(kw_only=True)
class Outage:
    """Why there is nothing newer to see.

    Attributes:
        since: when the first look failed.
    """

    since: datetime
    why: str


def look_json(look: Look) -> Mapping[str, Any]:
    """Return what was seen for `print_json`."""
    served = served_by(look.workers)
    return {
        "at": look.at,
        "queues": [queue_json(each, served.get(each.queue_name, 0)) for each in look.queues],
        "workers": [worker_json(each) for each in look.workers],
        "failed": [_failed_json(job) for job in look.failed],
    }


def _failed_json(job: JobRecord) -> Mapping[str, Any]:
    error = job.last_error
    return {
        "id": job.id,
        "type": job.type,
        "queue": job.queue_name,
        "failed_at": job.completed_at,
        "error": None if error is None else {"type": error.type, "message": error.message},
    }


# --- the screen -------------------------------------------------------------------------------------


def screen(
    look: Look | None, outage: Outage | None, *, where: str, width: int, height: int | None, keys: bool = False
) -> RenderableType:
    """Return all of it, no wider and no higher than the window; None for a height without an end."""
    from rich.console import Group

    lines: list[RenderableType] = [_head(where, look, keys=keys)]
    if outage is not None:
        lines += _outage(outage, width, 1 if height is None else max(1, height // _OUTAGE_SHARE))
    if look is None:
        return Group(*lines)
    room = None if height is None else height - len(lines)
    return Group(*lines, *_sections(look, width, room))


def _head(where: str, look: Look | None, *, keys: bool) -> RenderableType:
    from rich.table import Table

    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.add_column(ratio=1)
    line.add_column(justify="right", no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    at = "" if look is None else f"{look.at:%H:%M:%S} UTC"
    line.add_row(shortened(f"creche {where}", "bold"), at, "q quits" if keys else "")
    return line


def _outage(outage: Outage, width: int, lines: int) -> Sequence[Text]:
    """Return what is to say of it, in so many lines at most: the reason that a driver gives is often at the end."""
    words = shortened(f"no answer for {span((datetime.now(UTC) - outage.since).total_seconds())}: {outage.why}", BAD)
    wrapped = words.wrap(console_of_data(), width, no_wrap=False, overflow="fold")
    if len(wrapped) <= lines:
        return list(wrapped)
    rest = " ".join(each.plain for each in wrapped[lines - 1 :])
    return [*wrapped[: lines - 1], shortened(rest, BAD)]


def _sections(look: Look, width: int, room: int | None) -> Sequence[RenderableType]:
    """Return the tables under their headings: what there is most of is cut first where the room is small."""
    wide = width >= WIDE
    running = sum(len(each.jobs) for each in look.workers)
    wanted = [len(look.queues), len(look.workers), running, len(look.failed)]
    rows = wanted if room is None else _shared(room, wanted)
    queues = _busiest(look.queues, rows[0])
    tables = (
        (_queues_words(look), queue_table(queues, served_by(look.workers), width=width)),
        (_workers_words(look), worker_table(look.workers[: rows[1]], wide=wide)),
        (f"running {running}", running_table(look.workers, wide=wide, limit=rows[2])),
        ("failed last", _failed_table(look.failed[: rows[3]], width)),
    )
    sections: list[RenderableType] = []
    for (words, table), shown, all_of_them in zip(tables, rows, wanted, strict=True):
        if not all_of_them and words != tables[0][0]:
            continue
        hidden = all_of_them - shown
        sections += [text_of(""), shortened(f"{words}{f' ({hidden} more)' if hidden else ''}", "bold underline")]
        if shown:
            sections.append(table)
    return sections


_OUTAGE_SHARE = 8  # of the lines of a window
_FRAME = 3  # lines of a section beside its rows: a blank one, its words, the table's heading


def _shared(room: int, wanted: Sequence[int]) -> Sequence[int]:
    """Return how many rows each section gets: by turns one each, until nothing is left or nobody wants more."""
    rows = [0] * len(wanted)
    left = room - _FRAME * sum(map(bool, wanted))
    while left > 0 and (hungry := [index for index, want in enumerate(wanted) if rows[index] < want]):
        for index in hungry[:left]:
            rows[index] += 1
        left -= len(hungry)
    return rows


def _busiest(queues: Sequence[QueueStats], number: int) -> Sequence[QueueStats]:
    """Return so many of the queues, in their order: those that are paused, and those with the most to do."""
    if number >= len(queues):
        return queues

    def weight(queue: QueueStats) -> tuple[bool, int]:
        return queue.paused_at is not None, sum(queue.counts.get(status, 0) for status in Status if status.active)

    kept = {each.queue_name for each in sorted(queues, key=weight, reverse=True)[:number]}
    return [each for each in queues if each.queue_name in kept]


def _queues_words(look: Look) -> str:
    ready = sum(each.counts.get(Status.PENDING, 0) for each in look.queues)
    rate = sum(per_minute(each) for each in look.queues)
    return f"queues {len(look.queues)}: {ready:,} ready, {rate:g} finished per minute"


def _workers_words(look: Look) -> str:
    used = sum(len(each.jobs) for each in look.workers)
    slots = sum(each.presence.concurrency for each in look.workers)
    return f"workers {len(look.workers)}: {used} of {slots} slots used"


def _failed_table(jobs: Sequence[JobRecord], width: int) -> Table:
    """Return them as a table: no type, however long, takes the room of what went wrong."""
    table = new_table()
    table.add_column("JOB", no_wrap=True, min_width=36)
    table.add_column("TYPE", min_width=6, max_width=max(6, width // 5))
    table.add_column("AGO", justify="right", no_wrap=True, min_width=3)
    table.add_column("ERROR", min_width=10)
    now = datetime.now(UTC)
    for job in jobs:
        table.add_row(
            str(job.id),
            shortened(job.type),
            "" if job.completed_at is None else age(now, job.completed_at),
            shortened(brief(job.last_error), BAD),
        )
    return table
