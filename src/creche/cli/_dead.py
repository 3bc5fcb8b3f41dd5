"""`creche dead`: the jobs that used their last attempt, with their errors; retrying and purging them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

import anyio
import click
from attrs import evolve

from creche import Status
from creche._bulk import PAGE
from creche._job import DeadLetter, JobFilter
from creche.abc import Storage
from creche.cli._chosen import (
    AT_MOST,
    DELETE,
    RETRY,
    Action,
    Candidate,
    Chosen,
    act,
    chosen,
    filter_options,
    manner_options,
    stacked,
)
from creche.cli._display import age, brief, console_of_data, failure, print_dead_letter, print_json, raw, say, shortened
from creche.cli._problems import JobProblem
from creche.cli._storages import dsn_option, opened
from creche.cli._tables import new_table

F = TypeVar("F", bound=Callable[..., Any])

_OLDER: Final = "that died longer ago"

_json = click.option("--json", is_flag=True, help="Print JSON.")


@click.group()
def dead() -> None:
    """Look at dead letters, retry and purge them."""


def _unknown(job_id: UUID) -> str:
    return f"there is no dead letter of job {job_id}: look at the job itself by `creche jobs show {job_id}`"


# --- looking ----------------------------------------------------------------------------------------


@dead.command("list")
@filter_options(older=_OLDER)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help=AT_MOST)
@dsn_option
@_json
def list_dead(
    *, queue: Sequence[str], type: Sequence[str], older_than: float | None, limit: int, dsn: str, json: bool
) -> None:
    """List dead letters and their last errors, newest first.

    The newest is the one whose job was dispatched last.
    """
    where = JobFilter(queues=frozenset(queue) or None, types=frozenset(type) or None)
    found = anyio.run(_list, dsn, Chosen(ids=(), where=where, older_than=older_than), limit + 1)
    shown = found[:limit]
    if json:
        print_json([_summary(letter) for letter in shown])
    elif shown:
        _print_letters(shown)
    else:
        say("no dead letters")
    if len(found) > limit:
        say(f"these are the newest {limit}; there are more: see --limit")


@dead.command("show")
@click.argument("job_id", metavar="ID", type=click.UUID)
@dsn_option
@_json
def show_dead(job_id: UUID, dsn: str, json: bool) -> None:
    """Show one dead letter: payload, and all its errors.

    Exit code 3 if there is none of that id.
    """
    letter = anyio.run(_find, dsn, job_id)
    if json:
        print_json(_details(letter))
    else:
        print_dead_letter(letter)


async def _list(dsn: str, which: Chosen, limit: int) -> Sequence[DeadLetter]:
    found: list[DeadLetter] = []
    async with opened(dsn) as storage, aclosing(_letters(storage, which)) as pages:
        async for page in pages:
            found += page
            if len(found) >= limit:
                break
    return found[:limit]


async def _find(dsn: str, job_id: UUID) -> DeadLetter:
    async with opened(dsn) as storage:
        letter = await _letter(storage, job_id)
    if letter is None:
        raise JobProblem(_unknown(job_id))
    return letter


async def _letter(storage: Storage, job_id: UUID) -> DeadLetter | None:
    """Return the letter of a job: if there is one, it is the newest before the next id."""
    found = await storage.dead_letters(1, before=UUID(int=min(job_id.int + 1, (1 << 128) - 1)))
    return next((letter for letter in found if letter.job_id == job_id), None)


# --- doing something --------------------------------------------------------------------------------


async def _with_letters(storage: Storage, ids: Collection[UUID]) -> Collection[UUID]:
    return [job_id for job_id in ids if await _letter(storage, job_id) is not None]


_RETRY: Final = evolve(RETRY, takes_by_id=_with_letters, unknown=_unknown)
_PURGE: Final = evolve(DELETE, verb="purge", participle="purged", takes_by_id=_with_letters, unknown=_unknown)


def _acting(action: Action) -> Callable[[F], F]:
    options = (
        click.argument("job_ids", metavar="[ID...]", type=click.UUID, nargs=-1),
        filter_options(older=_OLDER),
        manner_options(action.verb),
    )
    return lambda function: stacked(options, function)


@dead.command("retry")
@_acting(_RETRY)
@click.pass_context
def retry_dead(context: click.Context, /, **options: Any) -> None:
    """Make dead jobs ready again, with all their attempts.

    Their dead letters go, their errors stay. Name them by IDs, or by filters. Exit code 3 if one of the IDs is not
    dead, or had to be left as it is.
    """
    _act(context, _RETRY, **options)


@dead.command("purge")
@_acting(_PURGE)
@click.pass_context
def purge_dead(context: click.Context, /, **options: Any) -> None:
    """Delete dead letters, and the failed jobs that they are of.

    Name them by IDs, or by filters. Exit code 3 if one of the IDs is not
    dead.
    """
    _act(context, _PURGE, **options)


def _act(
    context: click.Context, action: Action, *, dry_run: bool, yes: bool, dsn: str, json: bool, **choice: Any
) -> None:
    which = chosen(action, **choice)
    context.exit(act(action, which, _candidates, noun="dead letter", dry_run=dry_run, yes=yes, dsn=dsn, json=json))


async def _candidates(storage: Storage, which: Chosen) -> AsyncGenerator[Sequence[Candidate]]:
    if not which.by_filter:
        found = [await _letter(storage, job_id) for job_id in which.ids]
        yield [_candidate(letter) for letter in found if letter is not None]
        return
    async with aclosing(_letters(storage, which)) as pages:
        async for page in pages:
            yield [_candidate(letter) for letter in page]


async def _letters(storage: Storage, which: Chosen) -> AsyncGenerator[Sequence[DeadLetter]]:
    """Yield the letters that are meant, page by page. All are walked over: a storage knows no filter for them."""
    until = None if which.older_than is None else datetime.now(UTC) - timedelta(seconds=which.older_than)
    before: UUID | None = None
    while letters := await storage.dead_letters(PAGE, before=before):
        yield [letter for letter in letters if _is_meant(letter, which.where, until)]
        before = letters[-1].job_id


def _is_meant(letter: DeadLetter, where: JobFilter, until: datetime | None) -> bool:
    return (
        (where.queues is None or letter.queue_name in where.queues)
        and (where.types is None or letter.type in where.types)
        and (until is None or letter.buried_at < until)
    )


def _candidate(letter: DeadLetter) -> Candidate:
    return Candidate(id=letter.job_id, type=letter.type, queue_name=letter.queue_name, status=Status.FAILED)


# --- what is shown ----------------------------------------------------------------------------------


def _summary(letter: DeadLetter) -> Mapping[str, Any]:
    last = letter.errors[-1] if letter.errors else None
    return {
        "id": letter.job_id,
        "type": letter.type,
        "queue": letter.queue_name,
        "priority": letter.priority,
        "attempts": letter.attempts,
        "max_attempts": letter.max_attempts,
        "created_at": letter.created_at,
        "buried_at": letter.buried_at,
        "last_error": None if last is None else {"type": last.error.type, "message": last.error.message},
    }


def _details(letter: DeadLetter) -> Mapping[str, Any]:
    return {
        **_summary(letter),
        "payload": raw(letter.payload),
        "errors": [
            {"attempt": each.attempt, "failed_at": each.failed_at, **(failure(each.error) or {})}
            for each in letter.errors
        ],
    }


def _print_letters(letters: Sequence[DeadLetter]) -> None:
    several = len({letter.queue_name for letter in letters}) > 1
    table = new_table()
    table.add_column("ID", no_wrap=True, min_width=36)
    table.add_column("TYPE", min_width=6)
    if several:
        table.add_column("QUEUE", min_width=5)
    table.add_column("DIED", no_wrap=True, justify="right", min_width=4)
    table.add_column("LAST ERROR", min_width=10)
    now = datetime.now(UTC)
    for letter in letters:
        table.add_row(
            str(letter.job_id),
            shortened(letter.type),
            *([shortened(letter.queue_name)] if several else []),
            age(now, letter.buried_at),
            shortened(brief(letter.errors[-1].error if letter.errors else None)),
        )
    console_of_data().print(table)
