"""`creche jobs watch`: follows one job to its end, with a bar where there is a terminal. It changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio
import click

from creche import JobCancelled, JobFailed, JobNotFound, Status
from creche._job import JobRecord
from creche._patience import Patience
from creche.cli._display import can_draw, console_of_words, details, plain_text, print_line, print_stored, say
from creche.cli._durations import duration
from creche.cli._problems import JobProblem, Unfinished
from creche.cli._storages import dsn_option, opened
from creche.errors import StorageUnavailable

if TYPE_CHECKING:
    from creche.abc import Storage

_TICK: Final = 0.5  # seconds between looks


@click.command("watch")
@click.argument("job_id", metavar="ID", type=click.UUID)
@click.option("--timeout", type=duration, metavar="TIME", help="Give up watching after so long.")
@dsn_option
@click.option("--json", is_flag=True, help="Print a line of JSON at each change.")
def watch_job(job_id: UUID, timeout: float | None, dsn: str, json: bool) -> None:
    """Follow one job to its end.

    Shows a progress bar on a terminal, a line at each change elsewhere. Prints the result when it is completed. Exit
    code 3 if it fails, is cancelled or is not there, 4 if --timeout is over.
    """
    with _shown(json) as show:
        job = anyio.run(_watch, dsn, job_id, timeout, show)
    match job.status:
        case Status.COMPLETED:
            if not json:
                print_stored(job.result)
        case Status.CANCELLED:
            raise JobProblem(str(JobCancelled(job_id)))
        case Status.FAILED:
            error = job.last_error
            failed = JobFailed(
                job_id, type=error.type if error else "unknown", message=error.message if error else "no error is known"
            )
            raise JobProblem(str(failed))
        case _:
            raise Unfinished(f"job {job_id} is still {job.status} after {timeout:g} s")


async def _watch(dsn: str, job_id: UUID, timeout: float | None, show: Callable[[JobRecord], None]) -> JobRecord:
    async with opened(dsn) as storage:
        job = await _find(storage, job_id)
        with anyio.move_on_after(timeout):
            patience = Patience("watch", longest=_TICK * 4)
            while job.status.active:
                show(job)
                await anyio.sleep(_TICK)
                try:
                    job = await _find(storage, job_id)
                except StorageUnavailable as error:
                    await patience.after(error)
                else:
                    patience.success()
        show(job)
        return job


async def _find(storage: Storage, job_id: UUID) -> JobRecord:
    job = (await storage.find([job_id])).get(job_id)
    if job is None:
        raise JobNotFound(job_id)
    return job


# --- what is shown ----------------------------------------------------------------------------------


@contextmanager
def _shown(json: bool) -> Generator[Callable[[JobRecord], None]]:
    if json or not can_draw(sys.stderr):
        yield _Lines(print_line if json else None)
        return
    from creche.cli._bar import bar_on

    with bar_on(console_of_words()) as progress:
        bar = progress.add_task("connecting", total=None)

        def show(job: JobRecord) -> None:
            done = _fraction(job)
            progress.update(bar, description=_words(job), total=None if done is None else 1.0, completed=done or 0.0)

        yield show


class _Lines:
    """A line at each change: of words, or of JSON."""

    def __init__(self, print_json: Callable[[Any], None] | None) -> None:
        self._print_json = print_json
        self._last: object = None

    def __call__(self, job: JobRecord) -> None:
        seen = (job.status, job.attempts, job.progress)
        if seen == self._last:
            return
        self._last = seen
        if self._print_json is not None:
            self._print_json(details(job))
            return
        done = _fraction(job)
        share = "" if done is None else f" {done:.0%}"
        say(f"job {job.id}{share}: {_words(job)}")


def _fraction(job: JobRecord) -> float | None:
    """Return how far a job has come; None where nobody says."""
    if job.status is Status.COMPLETED:
        return 1.0
    return None if job.progress is None else job.progress.fraction


def _words(job: JobRecord) -> str:
    words = f"{job.status}, attempt {job.attempts} of {job.max_attempts}" if job.attempts else str(job.status)
    message = job.progress.message if job.progress is not None and job.status is Status.PROCESSING else ""
    return plain_text(" ".join(f"{words}: {message}".split()) if message else words)
