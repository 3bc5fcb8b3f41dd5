"""What a dispatch does to SQLite, one statement after the other, whoever's connection it goes through.

It runs none of them: it says which comes next and is told what came back. It begins no transaction and ends none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from creche._job import Insertion, NewJob, Status
from creche.storage import _sqlite_rows as rows

T = TypeVar("T")

Found: TypeAlias = Sequence[Sequence[Any]]
Steps: TypeAlias = Generator[tuple[str, Mapping[str, Any]], Found, T]
"""Statements by name and their values go out, all rows of each come back, in the order of its columns."""


def drive(steps: Steps[T], run: Callable[[str, Mapping[str, Any]], Found]) -> T:
    """Take steps to their end in this thread."""
    try:
        name, columns = next(steps)
        while True:
            name, columns = steps.send(run(name, columns))
    except StopIteration as end:
        answer: T = end.value
        return answer


async def drive_through(steps: Steps[T], run: Callable[[str, Mapping[str, Any]], Awaitable[Found]]) -> T:
    """Take steps to their end through a handle of the caller's."""
    try:
        name, columns = next(steps)
        while True:
            name, columns = steps.send(await run(name, columns))
    except StopIteration as end:
        answer: T = end.value
        return answer


# --- dispatch ---------------------------------------------------------------------------------------


def insert(jobs: Sequence[NewJob], now: int) -> Steps[tuple[Sequence[Insertion], set[str]]]:
    """Write jobs, or find what stands in their place; return the answers, and the queues to wake.

    The first statement writes: a transaction that reads first and writes later meets SQLITE_BUSY_SNAPSHOT.
    """
    answers: list[Insertion] = []
    woken: set[str] = set()
    for part in _parts(jobs):
        answered, ready = yield from _insert_part(part, now)
        answers += answered
        woken |= ready
    return answers, woken


def _parts(jobs: Sequence[NewJob]) -> Iterator[Sequence[NewJob]]:
    """Cut a batch before each job that wants a new result: those before it are still answered by the old one."""
    begin = 0
    for place, job in enumerate(jobs):
        if place > begin and job.refresh:
            yield jobs[begin:place]
            begin = place
    yield jobs[begin:]


def _insert_part(jobs: Sequence[NewJob], now: int) -> Steps[tuple[Sequence[Insertion], set[str]]]:
    columns = [rows.job_columns(job, now) for job in jobs]
    if jobs[0].refresh and jobs[0].fingerprint is not None:
        yield "refresh", columns[0]
    yield from expire_results([row["fingerprint"] for row in columns], now)
    new: dict[str, str] = {}
    for chunk in rows.chunks(columns):
        found = yield "insert", {"jobs": rows.array(chunk), "now": now}
        new.update((row[0], row[1]) for row in found)
    places = {row["id"]: place for place, row in reversed([*enumerate(columns)]) if row["id"] in new}
    woken = {row["queue_name"] for row in columns if row["id"] in new and rows.soon(row["available_at"], now)}
    answers: list[Insertion] = []
    for place, (job, row) in enumerate(zip(jobs, columns, strict=True)):
        if places.get(row["id"]) == place:
            answers.append(rows.inserted(job, new[row["id"]]))
        else:
            standing = yield from _standing(row, places, place)
            answers.append(rows.standing(job, standing))
            woken |= yield from _record(job, standing, now)
    return answers, woken


def _standing(columns: Mapping[str, Any], inserted: Mapping[str, int], place: int) -> Steps[Mapping[str, Any]]:
    """Return the row that stood in a job's place at its turn.

    One that was inserted after it in the same batch was not there yet. Such a row can have the job's key only if
    the job had joined another by its fingerprint, and so left its key unused.
    """
    (row,) = yield "find_standing", columns
    if inserted.get(row[0], place) > place:
        (row,) = yield "find_standing", {**columns, "idempotency_key": None}
    return rows.standing_columns(row)


def expire_results(fingerprints: Iterable[str | None], now: int) -> Steps[None]:
    """Let go of those of these fingerprints whose cached result is stale."""
    if some := [fingerprint for fingerprint in fingerprints if fingerprint is not None]:
        yield "expire_results", {"fingerprints": rows.array(some), "now": now}


# --- callbacks --------------------------------------------------------------------------------------


def _record(job: NewJob, standing: Mapping[str, Any], now: int) -> Steps[set[str]]:
    """Add a job's callbacks to those of the row that stands in its place; if that is over already, write those that
    its end calls for. Return the queues to wake.
    """
    if not job.callbacks:
        return set()
    job_id, status = standing["id"], Status(standing["status"])
    written = yield "statuses", {"ids": rows.array(each.id for each in job.callbacks)}
    callbacks = rows.joined_callbacks(standing["callbacks"], job.callbacks, {row[0] for row in written})
    if callbacks is None:
        return set()
    yield "record_callbacks", {"id": job_id, "callbacks": callbacks}
    if not status.active:
        return (yield from follow_up([job_id], now))
    return {standing["queue_name"]} if status is Status.PENDING else set()


def follow_up(ids: Collection[object], now: int) -> Steps[set[str]]:
    """Write the callbacks that the ends of these jobs call for; return their queues."""
    if not ids:
        return set()
    asked = {"ids": rows.array(ids)}
    found = yield "follow_up", {**asked, "now": now}
    yield "forget_callbacks", asked
    return {row[0] for row in found}
