"""`creche jobs`: what stands in the database, for people, and what people do to it. It needs no application."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

import anyio
import click

from creche import JobNotFound, Status
from creche._job import JobFilter, JobRecord
from creche.cli._display import details, print_job, print_jobs, print_json, say, summary
from creche.cli._problems import ExitCode
from creche.cli._storages import dsn_option, opened
from creche.cli._watch import watch_job

_json = click.option("--json", is_flag=True, help="Print JSON.")
_ids = click.argument("job_ids", metavar="ID...", type=click.UUID, nargs=-1, required=True)


@click.group()
def jobs() -> None:
    """Look at jobs, retry and cancel them."""


jobs.add_command(watch_job)


@jobs.command("list")
@click.option("--queue", multiple=True, metavar="NAME", help="Only of this queue; repeatable.")
@click.option("--type", multiple=True, metavar="TYPE", help="Only of this job type; repeatable.")
@click.option(
    "--status",
    multiple=True,
    type=click.Choice([str(each) for each in Status]),
    metavar="STATUS",
    help="Only jobs that are pending, scheduled, processing, completed, failed or cancelled; repeatable.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N")
@dsn_option
@_json
def list_jobs(
    *, queue: Sequence[str], type: Sequence[str], status: Sequence[str], limit: int, dsn: str, json: bool
) -> None:
    """List jobs, newest first."""
    where = JobFilter(
        queues=frozenset(queue) or None,
        types=frozenset(type) or None,
        statuses=frozenset(map(Status, status)) or None,
    )
    found = anyio.run(_list, dsn, where, limit + 1)
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
    """Show all that is known about one job: payload, result, last error, times.

    Exit code 3 if there is no such job.
    """
    job = anyio.run(_find, dsn, job_id)
    if json:
        print_json(details(job))
    else:
        print_job(job)


@jobs.command("retry")
@_ids
@dsn_option
@_json
@click.pass_context
def retry_jobs(context: click.Context, job_ids: Sequence[UUID], dsn: str, json: bool) -> None:
    """Make failed, cancelled and scheduled jobs ready now, with all their attempts.

    Exit code 3 if one of them is not there, or had to be left as it is.
    """
    _report(context, job_ids, anyio.run(_retry, dsn, job_ids), {Status.PENDING}, json)


@jobs.command("cancel")
@_ids
@dsn_option
@_json
@click.pass_context
def cancel_jobs(context: click.Context, job_ids: Sequence[UUID], dsn: str, json: bool) -> None:
    """Cancel jobs: waiting ones at once; of a running one, its worker learns when it next renews the lease.

    Exit code 3 if one of them is not there, or had ended before.
    """
    _report(context, job_ids, anyio.run(_cancel, dsn, job_ids), {Status.CANCELLED, Status.PROCESSING}, json)


async def _list(dsn: str, where: JobFilter, limit: int) -> Sequence[JobRecord]:
    async with opened(dsn) as storage:
        return await storage.list(where, limit)


async def _find(dsn: str, job_id: UUID) -> JobRecord:
    async with opened(dsn) as storage:
        job = (await storage.find([job_id])).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    return job


async def _retry(dsn: str, job_ids: Sequence[UUID]) -> Mapping[UUID, Status]:
    async with opened(dsn) as storage:
        return await storage.retry(job_ids)


async def _cancel(dsn: str, job_ids: Sequence[UUID]) -> Mapping[UUID, Status]:
    async with opened(dsn) as storage:
        return await storage.cancel(job_ids)


def _report(
    context: click.Context,
    job_ids: Sequence[UUID],
    statuses: Mapping[UUID, Status],
    done: Collection[Status],
    json: bool,
) -> None:
    """Print how each job stands now, and end with JOB unless all of them are as was asked."""
    asked = list(dict.fromkeys(job_ids))
    if json:
        print_json({str(job_id): statuses.get(job_id) for job_id in asked})
    code = ExitCode.OK
    for job_id in asked:
        status = statuses.get(job_id)
        if status is None:
            say(str(JobNotFound(job_id)))
        elif status not in done:
            say(f"job {job_id} is {status}: left as it is")
        elif not json:
            click.echo(f"{job_id} {status}")
        if status not in done:
            code = ExitCode.JOB
    context.exit(code)
