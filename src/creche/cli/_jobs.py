"""`creche jobs`: what stands in the database, for people, and what people do to it. It needs no application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import anyio
import click

from creche import JobNotFound, Status
from creche._bulk import dispatched_before
from creche._job import JobFilter, JobRecord
from creche.cli._chosen import (
    AT_MOST,
    CANCEL,
    DELETE,
    RETRY,
    Action,
    act,
    chosen,
    filter_options,
    jobs_of,
    manner_options,
    stacked,
    status_option,
)
from creche.cli._display import details, print_job, print_jobs, print_json, say, summary
from creche.cli._storages import dsn_option, opened
from creche.cli._watch import watch_job

F = TypeVar("F", bound=Callable[..., Any])

_json = click.option("--json", is_flag=True, help="Print JSON.")


@click.group()
def jobs() -> None:
    """Look at jobs, retry, cancel and delete them."""


jobs.add_command(watch_job)


@jobs.command("list")
@filter_options(older="dispatched longer ago")
@status_option(frozenset(Status))
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help=AT_MOST)
@dsn_option
@_json
def list_jobs(
    *,
    queue: Sequence[str],
    type: Sequence[str],
    older_than: float | None,
    status: Sequence[str],
    limit: int,
    dsn: str,
    json: bool,
) -> None:
    """List jobs, newest first."""
    where = JobFilter(
        queues=frozenset(queue) or None,
        types=frozenset(type) or None,
        statuses=frozenset(map(Status, status)) or None,
    )
    found = anyio.run(_list, dsn, where, limit + 1, None if older_than is None else dispatched_before(older_than))
    shown = found[:limit]
    if json:
        print_json([summary(job) for job in shown])
    elif shown:
        print_jobs(shown)
    else:
        say("no jobs")
    if len(found) > limit:
        say(f"these are the newest {limit}; there are more: see --limit")


@jobs.command("show")
@click.argument("job_id", metavar="ID", type=click.UUID)
@dsn_option
@_json
def show_job(job_id: UUID, dsn: str, json: bool) -> None:
    """Show all that is known about one job.

    That is its payload, result, last error and times. Exit code 3 if there is no such job.
    """
    job = anyio.run(_find, dsn, job_id)
    if json:
        print_json(details(job))
    else:
        print_job(job)


def _acting(action: Action) -> Callable[[F], F]:
    """Give a command the IDs, the filters and the manner of what is done to many."""
    options = (
        click.argument("job_ids", metavar="[ID...]", type=click.UUID, nargs=-1),
        filter_options(older="dispatched longer ago"),
        status_option(action.takes, _unless_named(action)),
        manner_options(action.verb),
    )
    return lambda function: stacked(options, function)


def _unless_named(action: Action) -> str:
    return "" if action.unless_named == action.takes else f"  [default: {', '.join(sorted(action.unless_named))}]"


@jobs.command("retry")
@_acting(RETRY)
@click.pass_context
def retry_jobs(context: click.Context, /, **options: Any) -> None:
    """Make failed, cancelled and scheduled jobs ready now.

    They get all their attempts again. Name them by IDs, or by filters; filters mean failed jobs unless --status says
    otherwise. Exit code 3 if one of the IDs is not there, or had to be left as it is.
    """
    _act(context, RETRY, **options)


@jobs.command("cancel")
@_acting(CANCEL)
@click.pass_context
def cancel_jobs(context: click.Context, /, **options: Any) -> None:
    """Cancel jobs.

    Waiting ones end at once; the worker of a running one is told, and ends it. Name them by IDs, or by filters. Exit
    code 3 if one of the IDs is not there, or had ended before.
    """
    _act(context, CANCEL, **options)


@jobs.command("delete")
@_acting(DELETE)
@click.pass_context
def delete_jobs(context: click.Context, /, **options: Any) -> None:
    """Delete jobs that are over, with their results and dead letters.

    Name them by IDs, or by filters. One that is not over is left as it is: cancel it first. Exit code 3 if one of the
    IDs is not there, or is not over.
    """
    _act(context, DELETE, **options)


def _act(
    context: click.Context, action: Action, *, dry_run: bool, yes: bool, dsn: str, json: bool, **choice: Any
) -> None:
    which = chosen(action, **choice)
    context.exit(act(action, which, jobs_of, noun="job", dry_run=dry_run, yes=yes, dsn=dsn, json=json))


async def _list(dsn: str, where: JobFilter, limit: int, before: UUID | None) -> Sequence[JobRecord]:
    async with opened(dsn) as storage:
        return await storage.list(where, limit, before=before)


async def _find(dsn: str, job_id: UUID) -> JobRecord:
    async with opened(dsn) as storage:
        job = (await storage.find([job_id])).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    return job
