"""Queues, workers and what they run as tables and as JSON, for a single look and for `top`. It prints nothing.

A table is wide where the window is, or where there is none: its columns then have whole names, and there are more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from creche._job import RATE_WINDOW, QueueStats, Retention, RunningJob, Status, WorkerRecord, WorkerState
from creche.cli._display import BAD, BUSY, CARE, FAINT, GOOD, STATUS_STYLES, age, progress, shortened, span, text_of
from creche.cli._durations import in_words

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDE: Final = 115  # columns from which on a window is wide: the queues need as many
_NARROW: Final = 70  # columns below which the queues' numbers would leave no room for their names
_URGENT: Final = (Status.PENDING, Status.PROCESSING, Status.FAILED)  # what is counted in such a window
_HEADINGS: Final = {
    Status.PENDING: "PEND",
    Status.SCHEDULED: "SCHED",
    Status.PROCESSING: "RUN",
    Status.COMPLETED: "DONE",
    Status.FAILED: "FAIL",
    Status.CANCELLED: "CANC",
}
_WORKER_STYLES: Final = {WorkerState.RUNNING: GOOD, WorkerState.QUIET: CARE, WorkerState.STOPPING: CARE}
_SHORT_OF_TIME: Final = 5.0  # seconds of a lease


# --- for programs -----------------------------------------------------------------------------------


def queue_json(queue: QueueStats, workers: int) -> Mapping[str, Any]:
    """Return a queue for `print_json`."""
    return {
        "queue": queue.queue_name,
        "counts": {status: queue.counts.get(status, 0) for status in Status},
        "oldest_ready": queue.oldest_ready,
        "finished_per_minute": per_minute(queue),
        "paused_at": queue.paused_at,
        "retention": None if queue.retention is None else retention_json(queue.retention),
        "workers": workers,
    }


def retention_json(retention: Retention) -> Mapping[str, float]:
    """Return a retention for `print_json`, in seconds."""
    return {"completed": retention.completed, "failed": retention.failed, "cancelled": retention.cancelled}


def worker_json(worker: WorkerRecord) -> Mapping[str, Any]:
    """Return a worker with what it runs for `print_json`."""
    who = worker.presence
    return {
        "name": who.name,
        "host": who.host,
        "pid": who.pid,
        "loop": who.backend,
        "version": who.version,
        "state": who.state,
        "queues": who.queues,
        "concurrency": who.concurrency,
        "started_at": worker.started_at,
        "seen_at": worker.seen_at,
        "jobs": [_running_json(job) for job in worker.jobs],
    }


def _running_json(job: RunningJob) -> Mapping[str, Any]:
    return {
        "id": job.job_id,
        "type": job.type,
        "queue": job.queue_name,
        "attempt": job.attempt,
        "lease_left": job.lease_left,
        "progress": progress(job.progress),
    }


# --- what is counted --------------------------------------------------------------------------------


def per_minute(queue: QueueStats) -> float:
    """Return how many jobs of a queue came to an end per minute, lately."""
    return round(queue.finished * 60 / RATE_WINDOW, 1)


def served_by(workers: Sequence[WorkerRecord]) -> Mapping[str, int]:
    """Return how many workers reserve from each queue."""
    return Counter(
        name for each in workers if each.presence.state is WorkerState.RUNNING for name in set(each.presence.queues)
    )


# --- for people -------------------------------------------------------------------------------------


def new_table() -> Table:
    """Return an empty table, as all of ours look."""
    from rich.table import Table

    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")


def queue_table(queues: Sequence[QueueStats], served: Mapping[str, int], *, width: int) -> Table:
    """Return the queues as a table; what each keeps has a column only where it is wide."""
    wide, narrow = width >= WIDE, width < _NARROW
    statuses = _URGENT if narrow else tuple(Status)
    table = new_table()
    table.add_column("QUEUE", ratio=None if wide else 1, min_width=8)
    for status in statuses:
        table.add_column(status.upper() if wide else _HEADINGS[status], justify="right", no_wrap=True)
    table.add_column("OLDEST", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("FINISHED/MIN" if wide else "/MIN", justify="right", no_wrap=True)
        table.add_column("WORKERS" if wide else "WRK", justify="right", no_wrap=True)
    if wide:
        table.add_column("KEEPS", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    for queue in queues:
        workers = served.get(queue.queue_name, 0)
        table.add_row(
            shortened(queue.queue_name),
            *(_count(queue.counts.get(status, 0), STATUS_STYLES[status], wide=wide) for status in statuses),
            "-" if queue.oldest_ready is None else span(queue.oldest_ready),
            *([] if narrow else [_count(round(per_minute(queue)), "", wide=wide), text_of(str(workers))]),
            *([retention_words(queue.retention)] if wide else []),
            _queue_state(queue, workers),
        )
    return table


def retention_words(retention: Retention | None) -> str:
    """Return for how long a queue keeps what is over, in the order of the states: `7d/30d/1d`."""
    if retention is None:
        return "-"
    return "/".join(map(in_words, (retention.completed, retention.failed, retention.cancelled)))


def _count(number: int, style: str, *, wide: bool) -> Text:
    if not number:
        return text_of("0", FAINT)
    return text_of(str(number) if wide else _compact(number), style)


def _compact(number: int) -> str:
    """Return a number in at most five characters."""
    for limit, divisor, unit in ((100_000, 1, ""), (10_000_000, 1_000, "k"), (10_000_000_000, 1_000_000, "M")):
        if number < limit:
            return f"{number // divisor}{unit}"
    return f"{number // 1_000_000_000}G"


def _queue_state(queue: QueueStats, workers: int) -> Text:
    if queue.paused_at is not None:
        return shortened(f"paused {age(datetime.now(UTC), queue.paused_at)}", CARE)
    if queue.counts.get(Status.PENDING) and not workers:
        return shortened("no worker", BAD)
    return text_of("")


def worker_table(workers: Sequence[WorkerRecord], *, wide: bool) -> Table:
    """Return the workers as a table; their names, which hold host and pid, have a column only where it is wide."""
    table = new_table()
    if wide:
        table.add_column("NAME")
    table.add_column("HOST", min_width=6)
    table.add_column("PID", justify="right", no_wrap=True, min_width=7)
    table.add_column("STATE", no_wrap=True, min_width=8)
    table.add_column("SLOTS", justify="right", no_wrap=True, min_width=5)
    table.add_column("UP", justify="right", no_wrap=True, min_width=3)
    table.add_column("LOOP", no_wrap=True, min_width=7)
    table.add_column("VERSION", no_wrap=True)
    table.add_column("QUEUES", min_width=8)
    now = datetime.now(UTC)
    for each in workers:
        who = each.presence
        used = len(each.jobs)
        table.add_row(
            *([shortened(who.name)] if wide else []),
            shortened(who.host),
            str(who.pid),
            text_of(who.state, _WORKER_STYLES[who.state]),
            text_of(f"{used}/{who.concurrency}", BUSY if used else ""),
            age(now, each.started_at),
            text_of(who.backend),
            text_of(who.version),
            shortened(", ".join(who.queues)),
        )
    return table


def running_table(workers: Sequence[WorkerRecord], *, wide: bool, limit: int | None = None) -> Table:
    """Return what the workers run as a table, the oldest job first."""
    table = new_table()
    table.add_column("JOB", no_wrap=True, min_width=36)
    table.add_column("TYPE", min_width=6)
    table.add_column("QUEUE", min_width=5)
    table.add_column("TRY", justify="right", no_wrap=True, min_width=3)
    table.add_column("LEASE", justify="right", no_wrap=True, min_width=5)
    if wide:
        table.add_column("WORKER")
    table.add_column("PROGRESS", min_width=8)
    held = sorted(((job, each) for each in workers for job in each.jobs), key=lambda pair: pair[0].job_id)
    for job, each in held[:limit]:
        table.add_row(
            str(job.job_id),
            shortened(job.type),
            shortened(job.queue_name),
            str(job.attempt),
            _lease(job.lease_left),
            *([shortened(f"{each.presence.host}:{each.presence.pid}")] if wide else []),
            _progress(job, wide=wide),
        )
    return table


def _lease(left: float) -> Text:
    """Return what is left of a lease; one that has run out is nobody's but by courtesy."""
    if left < 0:
        return text_of(f"-{span(-left)}", BAD)
    return text_of(span(left), CARE if left < _SHORT_OF_TIME else "")


def _progress(job: RunningJob, *, wide: bool) -> Text:
    if job.progress is None:
        return text_of("")
    share = f"{job.progress.fraction:.0%}"
    return shortened(f"{share} {job.progress.message}".strip() if wide else share)
