"""Which jobs a command is about, by their ids or by what they have in common, and how it does something to all of them.

Bounded pages, a count while it goes on, and no surprise: what is done to many is asked about first.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Final, TypeVar
from uuid import UUID

import anyio
import click
from attrs import frozen

from creche import JobNotFound, Status
from creche._bulk import PAGE, dispatched_before, matching
from creche._job import FINISHED, JobFilter, JobRecord
from creche.abc import Storage
from creche.cli._display import can_draw, console_of_words, plain_text, print_json, say
from creche.cli._durations import duration
from creche.cli._problems import ExitCode, Misuse
from creche.cli._storages import dsn_option, opened

F = TypeVar("F", bound=Callable[..., Any])
Change = Callable[[Collection[UUID]], Awaitable[Mapping[UUID, Status]]]

AT_MOST: Final = "How many at most."
HANDFUL: Final = 5  # jobs that a filter may name without a question
_COUNTED: Final = 1_000  # jobs, for the question; beyond it says "more than"
_NEWS: Final = 10.0  # seconds between two lines of progress where there is no terminal


@frozen(kw_only=True)
class Action:
    """Something that is done to jobs.

    Attributes:
        verb: what the command is called.
        participle: what they are afterwards.
        takes: the states that a filter may name.
        unless_named: the states that are meant where a filter names none.
        done: the states in which a job is afterwards if it was done.
        change: what does it.
        takes_by_id: which of some jobs it may be done to, if they are named by their ids; None: any.
        unknown: what is said of a job that is not there.
    """

    verb: str
    participle: str
    takes: frozenset[Status]
    unless_named: frozenset[Status]
    done: frozenset[Status]
    change: Callable[[Storage], Change]
    takes_by_id: Callable[[Storage, Collection[UUID]], Awaitable[Collection[UUID]]] | None = None
    unknown: Callable[[UUID], str] = lambda job_id: str(JobNotFound(job_id))


@frozen(kw_only=True)
class Chosen:
    """What a command line says of the jobs that it means."""

    ids: Sequence[UUID]
    where: JobFilter
    older_than: float | None

    @property
    def by_filter(self) -> bool:
        """Whether they are named by what they have in common."""
        return not self.ids


@frozen(kw_only=True)
class Candidate:
    """A job, or a dead letter, that a command is about to do something to."""

    id: UUID
    type: str
    queue_name: str
    status: Status


Walk = Callable[[Storage, Chosen], AsyncGenerator[Sequence[Candidate]]]


# --- the options ------------------------------------------------------------------------------------


def filter_options(*, older: str) -> Callable[[F], F]:
    """Give a command the filters that jobs and dead letters have in common."""
    options = (
        click.option("--queue", multiple=True, metavar="NAME", help="Only of this queue; repeatable."),
        click.option("--type", multiple=True, metavar="TYPE", help="Only of this job type; repeatable."),
        click.option("--older-than", type=duration, metavar="TIME", help=f"Only those {older}: 90s, 15m, 2h, 7d."),
    )
    return lambda function: stacked(options, function)


def status_option(statuses: Collection[Status], note: str = "") -> Callable[[F], F]:
    """Give a command the filter --status."""
    named = [each for each in Status if each in statuses]
    words = f"{', '.join(named[:-1])} or {named[-1]}"
    return click.option(
        "--status",
        multiple=True,
        type=click.Choice([str(each) for each in named]),
        metavar="STATUS",
        help=f"Only jobs that are {words}; repeatable.{note}",
    )


def manner_options(verb: str) -> Callable[[F], F]:
    """Give a command what all that change many jobs have in common."""
    options = (
        click.option("--all", "everything", is_flag=True, help=f"There is no filter: {verb} all that can be."),
        click.option("--dry-run", is_flag=True, help="Change nothing; print which they are."),
        click.option("-y", "--yes", is_flag=True, help="Don't ask; needed with filters where no terminal is."),
        dsn_option,
        click.option("--json", is_flag=True, help="Print JSON."),
    )
    return lambda function: stacked(options, function)


def stacked(options: Sequence[Callable[[F], F]], function: F) -> F:
    """Give a command options, to be listed in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def chosen(
    action: Action,
    *,
    job_ids: Sequence[UUID],
    queue: Sequence[str],
    type: Sequence[str],
    older_than: float | None,
    everything: bool,
    status: Sequence[str] = (),
) -> Chosen:
    """Return what a command line means, or raise Misuse if it is nothing, or two things at once."""
    filters = bool(queue or type or status or older_than is not None)
    if job_ids and (filters or everything):
        raise Misuse("give IDs or filters, not both")
    if filters and everything:
        raise Misuse("--all is for no filter at all: leave one of them out")
    if not (job_ids or filters or everything):
        raise Misuse(f"{action.verb} which? Give IDs, or filters, or --all")
    where = JobFilter(
        queues=frozenset(queue) or None,
        types=frozenset(type) or None,
        statuses=frozenset(map(Status, status)) or (action.takes if job_ids else action.unless_named),
    )
    return Chosen(ids=list(dict.fromkeys(job_ids)), where=where, older_than=older_than)


# --- what is done to them ---------------------------------------------------------------------------


def act(
    action: Action, which: Chosen, walk: Walk, *, noun: str, dry_run: bool, yes: bool, dsn: str, json: bool
) -> ExitCode:
    """Do it, or say what would be done; return how it went."""
    if dry_run:
        found = anyio.run(_rehearse, which, walk, dsn, None if json else _print_candidate)
        if json:
            print_json([_summary(each) for each in found])
        say(f"{counted(len(found), noun)} would be {action.participle}; nothing was changed")
        return ExitCode.OK
    if not which.by_filter:
        return _report(action, which.ids, anyio.run(_by_id, action, which, dsn), json)
    if not yes:
        _ask(action, which, walk, noun, dsn)
    with _Tally.shown(action, noun) as tally:
        anyio.run(_by_filter, action, which, walk, dsn, tally)
    if json:
        print_json({"statuses": tally.statuses, "gone": tally.gone})
    else:
        for status, number in tally.statuses.items():
            click.echo(f"{number} {status}")
    return ExitCode.OK


async def _by_id(action: Action, which: Chosen, dsn: str) -> Mapping[UUID, Status]:
    statuses: dict[UUID, Status] = {}
    async with opened(dsn) as storage:
        for start in range(0, len(which.ids), PAGE):
            page: Collection[UUID] = which.ids[start : start + PAGE]
            if action.takes_by_id is not None:
                page = await action.takes_by_id(storage, page)
            statuses.update(await action.change(storage)(page))
    return statuses


async def _by_filter(action: Action, which: Chosen, walk: Walk, dsn: str, tally: _Tally) -> None:
    async with opened(dsn) as storage, aclosing(walk(storage, which)) as pages:
        async for page in pages:
            ids = [each.id for each in page]
            tally.add(ids, await action.change(storage)(ids))


def _report(action: Action, ids: Sequence[UUID], statuses: Mapping[UUID, Status], json: bool) -> ExitCode:
    """Print how each job stands now; JOB unless all of them are as was asked."""
    if json:
        print_json({str(job_id): statuses.get(job_id) for job_id in ids})
    code = ExitCode.OK
    for job_id in ids:
        status = statuses.get(job_id)
        if status is None:
            say(action.unknown(job_id))
        elif status not in action.done:
            say(f"job {job_id} is {status}: left as it is")
        elif not json:
            click.echo(f"{job_id} {status}")
        if status not in action.done:
            code = ExitCode.JOB
    return code


# --- what is said before ----------------------------------------------------------------------------


def _ask(action: Action, which: Chosen, walk: Walk, noun: str, dsn: str) -> None:
    """Let people think twice. A script is not asked, and must not work with five jobs and fail with six: it says
    --yes, or nothing is changed.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misuse(f"there is no terminal to ask at: say --yes to {action.verb} by filters, or --dry-run to look")
    number = anyio.run(_count, which, walk, dsn)
    if number <= HANDFUL:
        return
    words = f"more than {_COUNTED:,}" if number > _COUNTED else f"{number:,}"
    if not confirmed(f"{action.verb} {words} {noun}s?"):
        say("nothing was changed")
        raise click.exceptions.Exit(ExitCode.INTERRUPTED)


def confirmed(question: str) -> bool:
    """Ask, and return whether the answer is yes; Ctrl-C and Ctrl-D are a no."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        say("")  # what was typed did not end the question's line
        return False


async def _count(which: Chosen, walk: Walk, dsn: str) -> int:
    number = 0
    async with opened(dsn) as storage, aclosing(walk(storage, which)) as pages:
        async for page in pages:
            number += len(page)
            if number > _COUNTED:
                break
    return number


async def _rehearse(
    which: Chosen, walk: Walk, dsn: str, show: Callable[[Candidate], None] | None
) -> Sequence[Candidate]:
    found: list[Candidate] = []
    async with opened(dsn) as storage, aclosing(walk(storage, which)) as pages:
        async for page in pages:
            found += page
            if show is not None:
                for each in page:
                    show(each)
    return found


def _print_candidate(job: Candidate) -> None:
    click.echo(plain_text(f"{job.id} {job.status} {job.type} {job.queue_name}"))


def _summary(job: Candidate) -> Mapping[str, Any]:
    return {"id": job.id, "type": job.type, "queue": job.queue_name, "status": job.status}


# --- which they are ---------------------------------------------------------------------------------


async def jobs_of(storage: Storage, which: Chosen) -> AsyncGenerator[Sequence[Candidate]]:
    """Yield the jobs that are meant, page by page, newest first; by id only those whose state lets it be done."""
    if not which.by_filter:
        found = await storage.find(which.ids)
        states = which.where.statuses or frozenset(Status)
        yield [_candidate(found[each]) for each in which.ids if each in found and found[each].status in states]
        return
    before = None if which.older_than is None else dispatched_before(which.older_than)
    async with aclosing(matching(storage, which.where, before=before)) as pages:
        async for page in pages:
            yield [_candidate(job) for job in page]


def _candidate(job: JobRecord) -> Candidate:
    return Candidate(id=job.id, type=job.type, queue_name=job.queue_name, status=job.status)


# --- how it goes on ---------------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Tally:
    """Counts what was done, and tells people on stderr while it goes on, and how far it had come when it ended."""

    def __init__(self, action: Action, noun: str, show: Callable[[str], None] | None) -> None:
        self._action = action
        self._noun = noun
        self._show = show
        self._told = time.monotonic()
        self.statuses: Counter[Status] = Counter()
        self.gone = 0  # they were there a moment ago

    @classmethod
    @contextmanager
    def shown(cls, action: Action, noun: str) -> Generator[_Tally]:
        """Show it on one line that goes where there is a terminal, else by a line now and then."""
        tally = cls(action, noun, None)
        try:
            if can_draw(sys.stderr):
                with console_of_words().status(f"{action.verb} …") as line:
                    tally._show = line.update
                    yield tally
            else:
                yield tally
        finally:
            say(tally.words())

    def add(self, ids: Sequence[UUID], statuses: Mapping[UUID, Status]) -> None:
        """Count what became of one page."""
        self.statuses.update(statuses[each] for each in ids if each in statuses)
        self.gone += sum(each not in statuses for each in ids)
        if self._show is not None:
            self._show(self.words())
        elif time.monotonic() - self._told > _NEWS:
            self._told = time.monotonic()
            say(f"{self.words()} so far")

    def words(self) -> str:
        """Return what was done until now."""
        done = sum(number for status, number in self.statuses.items() if status in self._action.done)
        left = self.statuses.total() - done
        kept = f", {left:,} left as they are" if left else ""
        return f"{counted(done, self._noun)} {self._action.participle}{kept}"


# --- the actions ------------------------------------------------------------------------------------

RETRY: Final = Action(
    verb="retry",
    participle="made ready",
    takes=frozenset({Status.FAILED, Status.CANCELLED, Status.SCHEDULED}),
    unless_named=frozenset({Status.FAILED}),
    done=frozenset({Status.PENDING}),
    change=lambda storage: storage.retry,
)
CANCEL: Final = Action(
    verb="cancel",
    participle="cancelled",
    takes=frozenset(Status) - FINISHED,
    unless_named=frozenset(Status) - FINISHED,
    done=frozenset({Status.CANCELLED, Status.PROCESSING}),
    change=lambda storage: storage.cancel,
)
DELETE: Final = Action(
    verb="delete",
    participle="deleted",
    takes=FINISHED,
    unless_named=FINISHED,
    done=FINISHED,
    change=lambda storage: storage.delete,
)
