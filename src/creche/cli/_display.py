"""How jobs look to people and to programs: tables and JSON from records. It reads no database.

What users stored is shown as text: no markup, no escape sequence of theirs reaches the terminal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

import click
import msgspec

from creche._job import DeadLetter, Failure, JobRecord, Progress, Status
from creche.cli._durations import UNITS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_CONTROL_IN_JSON: Final = re.compile(
    r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)  # of the others JSON has none, but for blanks
# Tones from the middle of the scale: each can be read on white as well as on black, which `yellow`, `cyan` and
# `blue` of most terminals can't.
GOOD: Final = "color(28)"
BAD: Final = "color(196)"
CARE: Final = "color(130)"
BUSY: Final = "color(30)"
LATER: Final = "color(27)"
ENDED: Final = "color(164)"
FAINT: Final = "color(244)"  # `dim` is black on white in xterm, and hardly to be seen in others
STATUS_STYLES: Final = {
    Status.PENDING: CARE,
    Status.SCHEDULED: LATER,
    Status.PROCESSING: BUSY,
    Status.COMPLETED: GOOD,
    Status.FAILED: BAD,
    Status.CANCELLED: ENDED,
}
_THEME: Final = {
    "bar.back": FAINT,
    "bar.complete": BUSY,
    "bar.finished": GOOD,
    "bar.pulse": BUSY,
    "progress.percentage": "none",
    "progress.elapsed": FAINT,
    "status.spinner": BUSY,
}
# What stands for them where a terminal has but the sixteen colours with names, as in most containers (TERM=xterm): red
# and magenta of most can be read on both grounds, the others can't.
_OF_FEW_COLOURS: Final = {GOOD: "none", CARE: "bold", BUSY: "none", LATER: "none", FAINT: "dim"}


# --- for programs -----------------------------------------------------------------------------------


def say(words: str) -> None:
    """Tell people something, on stderr."""
    click.echo(words, err=True)


def print_json(value: object) -> None:
    """Print a value on stdout, indented; stored JSON inside it keeps its bytes' meaning."""
    print_stored(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_line(value: object) -> None:
    """Print a value on stdout as one line of JSON."""
    print_stored(msgspec.json.encode(value))


def print_stored(data: bytes | None) -> None:
    """Print JSON text on stdout, None as null: the same values, with escapes for what a terminal would obey."""
    click.echo(plain_json((data or b"null").decode()))


def raw(data: bytes | None) -> msgspec.Raw | None:
    """Return stored JSON text as it is, to stand inside other JSON."""
    return None if data is None else msgspec.Raw(data)


def failure(error: Failure | None) -> Mapping[str, str] | None:
    """Return an error for `print_json`."""
    return None if error is None else {"type": error.type, "message": error.message, "traceback": error.traceback}


def summary(job: JobRecord) -> Mapping[str, Any]:
    """Return a job for `print_json` without what its users stored."""
    return {
        "id": job.id,
        "type": job.type,
        "queue": job.queue_name,
        "status": job.status,
        "priority": job.priority,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "created_at": job.created_at,
        "available_at": job.available_at,
        "updated_at": job.updated_at,
        "completed_at": job.completed_at,
    }


def details(job: JobRecord) -> Mapping[str, Any]:
    """Return all of a job for `print_json`."""
    return {
        **summary(job),
        "locked_by": job.locked_by,
        "locked_until": job.locked_until,
        "cancel_requested": job.cancel_requested,
        "idempotency_key": job.idempotency_key,
        "fingerprint": job.fingerprint.hex() if job.fingerprint else None,
        "result_expires_at": job.result_expires_at,
        "payload": raw(job.payload),
        "result": raw(job.result),
        "last_error": failure(job.last_error),
        "progress": progress(job.progress),
        "follows": job.origin.job_id if job.origin else None,
    }


def progress(progress: Progress | None) -> Mapping[str, Any] | None:
    """Return how far a job has come for `print_json`."""
    return None if progress is None else {"fraction": progress.fraction, "message": progress.message}


# --- for people -------------------------------------------------------------------------------------


def print_jobs(jobs: Sequence[JobRecord]) -> None:
    """Print a table of jobs that fits 80 columns; the queue has a column if there is more than one."""
    from rich.table import Table
    from rich.text import Text

    several = len({job.queue_name for job in jobs}) > 1
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True, min_width=36)
    table.add_column("TYPE")
    if several:
        table.add_column("QUEUE")
    table.add_column("STATUS", no_wrap=True, min_width=10)
    table.add_column("TRIES", no_wrap=True, min_width=5, justify="right")
    table.add_column("AGE", no_wrap=True, min_width=3, justify="right")
    now = datetime.now(UTC)
    for job in jobs:
        queue = [shortened(job.queue_name)] if several else []
        tries = Text(f"{job.attempts}/{job.max_attempts}")
        table.add_row(
            Text(str(job.id)), shortened(job.type), *queue, _status(job.status), tries, Text(age(now, job.created_at))
        )
    console_of_data().print(table)


def print_job(job: JobRecord) -> None:
    """Print all that is known about one job."""
    _print_record(_facts(job), _parts(job))


def print_dead_letter(letter: DeadLetter) -> None:
    """Print a dead letter with all its errors."""
    _print_record(_facts_of_letter(letter), _parts_of_letter(letter))


def _print_record(facts: Iterable[tuple[str, RenderableType]], parts: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=FAINT, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    console = console_of_data()
    console.print(table)
    for title, text in parts:
        console.print(Text(f"\n{title}", style=FAINT))
        console.print(text_of(text), soft_wrap=True)


def _facts(job: JobRecord) -> Iterable[tuple[str, RenderableType]]:
    now = datetime.now(UTC)
    status = _status(job.status)
    if job.cancel_requested and job.status.active:
        status.append(", cancel requested")
    yield "id", str(job.id)
    yield "type", text_of(job.type)
    yield "queue", text_of(job.queue_name)
    yield "status", status
    yield "attempts", f"{job.attempts} of {job.max_attempts}"
    if job.progress is not None and job.status is not Status.COMPLETED:
        yield "progress", text_of(f"{job.progress.fraction:.0%} {job.progress.message}".strip())
    yield "priority", str(job.priority)
    yield "created", _time(job.created_at, now)
    if job.status is Status.SCHEDULED:
        yield "due", _time(job.available_at, now)
    if job.locked_by is not None and job.locked_until is not None:
        yield "worker", text_of(job.locked_by)
        yield "lease until", _time(job.locked_until, now)
    if job.completed_at is not None:
        yield "ended", _time(job.completed_at, now)
    else:
        yield "changed", _time(job.updated_at, now)
    if job.result_expires_at is not None:
        yield "result until", _time(job.result_expires_at, now)
    yield from _names(job)


def _names(job: JobRecord) -> Iterable[tuple[str, RenderableType]]:
    if job.origin is not None:
        yield "follows", text_of(f"{job.origin.job_id}, {job.origin.type}, which is {job.origin.status}")
    if job.idempotency_key is not None:
        yield "key", text_of(job.idempotency_key)
    if job.fingerprint is not None:
        yield "fingerprint", job.fingerprint.hex()


def _parts(job: JobRecord) -> Iterable[tuple[str, str]]:
    yield "payload", _indented(job.payload)
    if job.result is not None:
        yield "result", _indented(job.result)
    if job.last_error is not None:
        yield "last error", _error(job.last_error)


def _facts_of_letter(letter: DeadLetter) -> Iterable[tuple[str, RenderableType]]:
    now = datetime.now(UTC)
    yield "id", str(letter.job_id)
    yield "type", text_of(letter.type)
    yield "queue", text_of(letter.queue_name)
    yield "attempts", f"{letter.attempts} of {letter.max_attempts}"
    yield "priority", str(letter.priority)
    yield "created", _time(letter.created_at, now)
    yield "died", _time(letter.buried_at, now)


def _parts_of_letter(letter: DeadLetter) -> Iterable[tuple[str, str]]:
    yield "payload", _indented(letter.payload)
    for each in letter.errors:
        yield f"attempt {each.attempt}, {_time(each.failed_at, datetime.now(UTC))}", _error(each.error)


def _error(error: Failure) -> str:
    return error.traceback.strip() or f"{error.type}: {error.message}"


def brief(error: Failure | None) -> str:
    """Return an error in one line of a table: its class without the module, and what it says."""
    return "" if error is None else f"{error.type.rpartition('.')[2]}: {error.message}"


def _indented(data: bytes) -> str:
    try:
        return msgspec.json.format(data, indent=2).decode()
    except msgspec.DecodeError:
        return data.decode(errors="replace")


def _time(moment: datetime, now: datetime) -> str:
    where = f"{age(now, moment)} ago" if moment <= now else f"in {age(moment, now)}"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {where}"


def age(later: datetime, earlier: datetime) -> str:
    """Return the time between two moments in its largest unit: `5m`."""
    return span((later - earlier).total_seconds())


def span(seconds: float) -> str:
    """Return a length of time in its largest unit: `5m`."""
    whole = max(0, round(seconds))
    unit, size = next(((unit, size) for unit, size in UNITS if whole >= size), UNITS[-1])
    return f"{whole // size}{unit}"


def _status(status: Status) -> Text:
    from rich.text import Text

    return Text(str(status), style=STATUS_STYLES[status])


def plain_text(text: str) -> str:
    """Return a text of the users' without what a terminal would obey."""
    return _escaped(_CONTROL, text)


def plain_json(text: str) -> str:
    """Return JSON text of the same values, with escapes for what a terminal would obey."""
    return _escaped(_CONTROL_IN_JSON, text)


def _escaped(what: re.Pattern[str], text: str) -> str:
    return what.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def text_of(text: str, style: str = "") -> Text:
    """Return a text of the users' for a table."""
    from rich.text import Text

    return Text(plain_text(text), style=style)


def shortened(text: str, style: str = "") -> Text:
    """Return a text that is cut, not wrapped, where the window is too narrow."""
    short = text_of(" ".join(text.split()), style)
    short.no_wrap, short.overflow = True, "ellipsis"
    return short


def can_draw(stream: TextIO) -> bool:
    """Return whether it is a terminal in which lines can be drawn over: rich draws nothing at all in a dumb one."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


def console_of_words() -> Console:
    """Return a console on stderr."""
    from creche.cli._console import WordsConsole

    return WordsConsole(_THEME)


def console_of_data() -> Console:
    """Return a console on stdout."""
    from creche.cli._console import DataConsole

    return DataConsole(_OF_FEW_COLOURS)
