"""Index the standard library: one job per file, N worker processes, and a proof that nothing was lost or done twice.

    python examples/library_index.py                                # on the SQLite file creche.db, here
    python examples/library_index.py                                # again: answered from cached results
    python examples/library_index.py --backend trio --workers 3 --dsn postgresql://user@host/database

Every `.py` file of the running interpreter's library becomes one job, `source.index`. This process dispatches them
all in one statement, keeps N workers alive, and waits for the results; then it counts once more in a plain loop, and
exits with 1 unless both agree. Kill a worker with SIGKILL, or everything, whenever you like: a worker is replaced, a
killed run is finished by the next one, and the totals agree.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from uuid import UUID

import anyio
from anyio import create_task_group, get_cancelled_exc_class
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table
from rich.text import Text

from creche import CrecheError, Discard, JobCancelled, JobFailed, Queue, Receipt, Status, Tasks, Worker
from creche.events import JobAcked, JobSucceeded
from creche.storage import mask

# Seconds. A killed worker's jobs come back when their lease runs out; the library's 30 s would be a long time to stare
# at a progress bar. It must still be far longer than the slowest file, for parsing holds the interpreter's lock, and
# the renewals (every third of the lease) have to get through.
LEASE: Final = 5.0
GRACE: Final = 10.0  # seconds that a worker has to finish the files it is at when it is told to stop
FUTILE: Final = 3  # workers in a row that end without having finished a single job: something else is wrong

tasks = Tasks()


# --- the job ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SourceIndex:
    """What one file holds: a job's result, stored as JSON and read back as this class."""

    path: str
    parsed: bool
    reason: str | None
    size: int
    lines: int
    functions: int
    classes: int
    documented: int
    digest: str
    seconds: float


# Ten attempts, because an attempt counts when it is reserved: who tries `kill -9` a few times should not find jobs
# among the dead letters.
@tasks.task("source.index", queue="library-index", result_ttl=timedelta(days=1), max_attempts=10)
def index_source(path: str, size: int, mtime_ns: int) -> SourceIndex:
    """Index one file.

    A plain `def`: parsing never waits for anything, so there is nothing to `await`; the worker runs it in a thread,
    and its event loop stays free to renew leases. Size and time of change are arguments because the arguments are the
    fingerprint: a file that was changed is another piece of work, one that was not is answered from the cache.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - the path travels as text
        if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
            raise Discard("the file has changed since it was dispatched: run again")
        return measure(path)
    except OSError as error:
        # Nor would waiting bring a file back that is gone. A failed job frees its fingerprint: the next run asks anew.
        raise Discard(f"the file can't be read any more: {error}") from error


# Python 3.11's parser counts its depth in one place for all threads, and now and then raises SystemError when two parse
# at once (https://github.com/python/cpython/issues/106905). The next attempt would succeed; a lock spares it.
PARSER: Final = threading.Lock()


def measure(path: str) -> SourceIndex:
    """Parse a file, count, and hash. This is all the work there is; the plain loop calls it too."""
    start = time.thread_time()  # of this thread only: the worker's other threads don't make a file look slow
    data = Path(path).read_bytes()
    functions = classes = documented = 0
    reason = None
    try:
        with PARSER:
            tree = ast.parse(data)  # from bytes: the parser knows about BOMs and coding lines
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                documented += ast.get_docstring(node, clean=False) is not None
                functions += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                classes += isinstance(node, ast.ClassDef)
    except SyntaxError as error:
        # A file that does not parse will not parse at the second attempt either. That is a fact about the file, not a
        # failure of the job: it is a result like any other, is cached like any other, and nothing is retried.
        reason = f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    except ValueError as error:  # NUL bytes, before Python 3.12
        reason = str(error)
    return SourceIndex(
        path=path,
        parsed=reason is None,
        reason=reason,
        size=len(data),
        lines=len(data.splitlines()),
        functions=functions,
        classes=classes,
        documented=documented,
        digest=hashlib.sha256(data).hexdigest(),
        seconds=time.thread_time() - start,
    )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The sums that must agree. The digest covers every file's name and text, so one wrong byte shows."""

    files: int
    unparsed: int
    bytes: int
    lines: int
    functions: int
    classes: int
    documented: int
    digest: str

    @classmethod
    def of(cls, indexes: Iterable[SourceIndex]) -> Totals:
        """Add up."""
        found = sorted(indexes, key=lambda each: each.path)
        digest = hashlib.sha256("".join(f"{each.digest} {each.path}\n" for each in found).encode())
        return cls(
            files=len(found),
            unparsed=sum(not each.parsed for each in found),
            bytes=sum(each.size for each in found),
            lines=sum(each.lines for each in found),
            functions=sum(each.functions for each in found),
            classes=sum(each.classes for each in found),
            documented=sum(each.documented for each in found),
            digest=digest.hexdigest()[:16],
        )

    @property
    def coverage(self) -> float:
        """The part of modules, classes and functions that have a docstring."""
        return self.documented / max(1, self.files - self.unparsed + self.functions + self.classes)


def find_sources(root: Path, limit: int | None) -> list[str]:
    """Return the Python files below a folder, always in the same order, without what was installed into it."""
    found = [path for path in root.rglob("*.py") if not {"site-packages", "__pycache__"} & set(path.parts)]
    return [str(path) for path in sorted(found) if path.is_file()][:limit]


# --- a worker process -------------------------------------------------------------------------------


class Reporter:
    """A hook that tells of each result which the database has accepted.

    Args:
        tell: called with the job's id.
    """

    def __init__(self, tell: Callable[[UUID], None]) -> None:
        self._tell = tell
        self._succeeded: set[UUID] = set()

    def __call__(self, event: object) -> None:
        """Take an event: `job.succeeded` says that the handler returned, `job.acked` that this is written."""
        if isinstance(event, JobSucceeded):
            self._succeeded.add(event.job_id)
        elif isinstance(event, JobAcked) and event.job_id in self._succeeded:
            self._succeeded.remove(event.job_id)
            self._tell(event.job_id)


def make_worker(queue: Queue, tell: Callable[[UUID], None], name: str) -> Worker:
    """Return a worker with this example's settings."""
    # More than one job at a time, though parsing holds the interpreter's lock: while one file is parsed, the next ones
    # are read and the last ones are settled, in batches. More than a handful gains nothing; processes do.
    return Worker(queue, concurrency=4, lease=LEASE, grace=GRACE, hooks=[Reporter(tell)], name=name)


def run_worker(queue: Queue, backend: str, name: str) -> None:
    """Be a worker until SIGTERM, or until the parent is gone."""

    def leave_with_the_parent() -> None:
        # The pipe ends when the parent does, even by SIGKILL; no byte ever comes. `Worker.run` takes SIGTERM from here.
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def report(job_id: UUID) -> None:
        with suppress(BrokenPipeError):  # the parent is gone: the result is written all the same
            os.write(sys.stdout.fileno(), f"{job_id}\n".encode())

    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    anyio.run(make_worker(queue, report, name).run, backend=backend)


# --- the parent: producer, keeper of workers, progress bar ------------------------------------------


@dataclass(kw_only=True)
class Settings:
    """The command line."""

    backend: str
    dsn: str
    workers: int
    root: Path
    check: bool


class Screen:
    """A progress bar on a terminal; plain lines anywhere else.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("indexing"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self._bar = self._progress.add_task("")
        self._tenths = 0

    def say(self, text: str, style: str = "") -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(Text(text, style=style))

    @contextmanager
    def bar(self, total: int) -> Generator[None]:
        """Show the bar inside the block, if there is anything to wait for."""
        self._progress.update(self._bar, total=total)
        with self._progress if total else nullcontext():
            yield

    def advance(self, done: int, total: int) -> None:
        """Show how far it is."""
        self._progress.update(self._bar, completed=done)
        tenths = 10 * done // total
        if tenths > self._tenths and not self.console.is_terminal:
            self.say(f"{tenths:3}0 %  {done:,} of {total:,} files")
        self._tenths = tenths


@dataclass(kw_only=True)
class Run:
    """What this run saw of its jobs.

    Attributes:
        receipts: how each file's job stood when it was dispatched.
        results: the stored results, by path.
        failures: paths of jobs without a result, and why.
        reported: how often workers said that a job's result was accepted. One job twice would be one too many.
        attempts: of all jobs that were not answered from the cache, from their rows.
        lost_workers: how many had to be replaced.
        seconds: from the dispatch to the last result.
    """

    receipts: dict[str, Receipt[SourceIndex]] = field(default_factory=dict[str, Receipt[SourceIndex]])
    results: dict[str, SourceIndex] = field(default_factory=dict[str, SourceIndex])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    reported: Counter[UUID] = field(default_factory=Counter[UUID])
    attempts: int = 0
    lost_workers: int = 0
    seconds: float = 0.0

    @property
    def cached(self) -> int:
        """How many were completed when they were dispatched: no job ran for them."""
        return sum(receipt.status is Status.COMPLETED for receipt in self.receipts.values())

    @property
    def taken_over(self) -> int:
        """How many an interrupted run had dispatched before."""
        return sum(not receipt.inserted and receipt.status.active for receipt in self.receipts.values())

    @property
    def executed(self) -> int:
        """How many had no result when they were dispatched, and have one now."""
        return len(self.results) - self.cached

    @property
    def settled_twice(self) -> int:
        """How many results were accepted twice: there must be none."""
        return sum(count > 1 for count in self.reported.values())


class WorkersFail(Exception):
    """Workers end as soon as they are started."""


async def index(queue: Queue, settings: Settings, sources: Sequence[str], screen: Screen) -> Run:
    """Dispatch everything, keep workers until there is a result for everything, and return what was seen."""
    run = Run()
    start = time.monotonic()
    await queue.migrate()
    async with queue:
        calls = [index_source.call(path, found.st_size, found.st_mtime_ns) for path, found in stat_all(sources)]
        run.receipts = dict(zip(sources, await queue.dispatch_many(calls), strict=True))
        run.results = {path: receipt.result for path, receipt in run.receipts.items() if receipt.result}
        missing = {path: receipt for path, receipt in run.receipts.items() if not receipt.result}
        screen.say(f"dispatched {len(calls):,} jobs: {run.cached:,} answered from cache, {len(missing):,} to run")
        done: set[UUID] = set()

        def finished(job_id: UUID) -> None:
            # A worker's report comes at once, but may die with it; the receipt comes a little later, for certain.
            done.add(job_id)
            screen.advance(len(done), len(missing))

        def settled(job_id: UUID) -> None:
            run.reported[job_id] += 1
            finished(job_id)

        async def collect(path: str, receipt: Receipt[SourceIndex]) -> None:
            try:
                run.results[path] = await receipt.wait()
            except JobFailed as error:
                run.failures[path] = f"{error.type}: {error.message}"
            except JobCancelled:
                run.failures[path] = "somebody cancelled the job"
            finished(receipt.job_id)

        keeper = Keeper(settings, screen, settled)
        async with AsyncExitStack() as stack:
            if missing and settings.workers:
                await stack.enter_async_context(keeper.running())
            elif missing:
                await stack.enter_async_context(make_worker(queue, settled, "in-process"))
            with screen.bar(len(missing)):
                async with create_task_group() as waiting:
                    for path, receipt in missing.items():
                        waiting.start_soon(collect, path, receipt)
            run.seconds = time.monotonic() - start
        run.lost_workers = keeper.lost
        run.attempts = await count_attempts(queue, {receipt.job_id for receipt in missing.values()})
    return run


def stat_all(sources: Iterable[str]) -> Iterable[tuple[str, os.stat_result]]:
    """Yield files with their size and time of change."""
    return ((path, os.stat(path)) for path in sources)  # noqa: PTH116 - the path travels as text


async def count_attempts(queue: Queue, jobs: set[UUID]) -> int:
    """Return how many attempts some jobs took, by what their rows say."""
    attempts, before = 0, None
    while jobs and (page := await queue.jobs(types=[index_source.type], limit=500, before=before)):
        attempts += sum(record.attempts for record in page if record.id in jobs)
        jobs -= {record.id for record in page}
        before = page[-1].id
    return attempts


class Keeper:
    """Keeps worker processes alive: as many as were asked for, for as long as they are needed, and none after that.

    Args:
        settings: how many, and how they work.
        screen: told of each that starts or dies.
        settled: called with each job whose result a worker reports as written.
    """

    def __init__(self, settings: Settings, screen: Screen, settled: Callable[[UUID], None]) -> None:
        self._settings = settings
        self._screen = screen
        self._settled = settled
        self._stop = anyio.Event()
        self.lost = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Have the workers at work inside the block."""
        async with create_task_group() as keepers:
            for number in range(1, self._settings.workers + 1):
                keepers.start_soon(self._keep, number)
            yield
            self._stop.set()

    async def _keep(self, number: int) -> None:
        """Start a worker, and another one whenever it dies, until told to stop."""
        command = [sys.executable, __file__, "--role", f"worker-{number}", "--backend", self._settings.backend]
        futile = 0
        while True:
            async with await anyio.open_process(
                command,
                stdin=subprocess.PIPE,  # never written to: it tells the worker when we are gone
                stdout=subprocess.PIPE,
                stderr=None,
                env={**os.environ, "CRECHE_DSN": self._settings.dsn},  # not an argument: anyone may read those
                start_new_session=True,  # Ctrl-C is for the parent, and the parent stops its workers
            ) as process:
                self._screen.say(f"worker {number} is process {process.pid}", "dim")
                finished = await self._attend(process)
            if self._stop.is_set():
                return
            self.lost += 1
            self._screen.say(
                f"worker {number} {how_it_ended(process.returncode)}: another one takes its place", "yellow"
            )
            self._screen.say(f"  what it had at hand comes back soon after its lease has run out ({LEASE:g} s)", "dim")
            futile = 0 if finished else futile + 1
            if futile == FUTILE:
                raise WorkersFail(f"{FUTILE} workers in a row ended without having finished one job: see above")

    async def _attend(self, process: Process) -> int:
        """Take a worker's reports until it ends, by itself or because it shall; return how many there were."""
        finished = 0

        async def terminate() -> None:
            await self._stop.wait()
            stop(process)

        try:
            async with create_task_group() as ending:
                ending.start_soon(terminate)
                async for job_id in reports(process):
                    self._settled(job_id)
                    finished += 1
                await process.wait()
                ending.cancel_scope.cancel()
        except get_cancelled_exc_class():  # Ctrl-C, or another keeper gave up: a clean end for this worker all the same
            with anyio.move_on_after(GRACE, shield=True):
                stop(process)
                await process.wait()
            raise
        return finished


async def reports(process: Process) -> AsyncGenerator[UUID]:
    """Yield the ids of the jobs that a worker reports, until its end of the pipe is closed."""
    if process.stdout is None:
        return
    lines = BufferedByteReceiveStream(process.stdout)
    with suppress(anyio.EndOfStream, anyio.IncompleteRead):
        while True:
            yield UUID((await lines.receive_until(b"\n", 64)).decode())


def stop(process: Process) -> None:
    """Tell a worker to finish what it is at, and end."""
    with suppress(ProcessLookupError):
        process.terminate()


def how_it_ended(code: int | None) -> str:
    """Return an exit code in words."""
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


# --- what comes out ---------------------------------------------------------------------------------


def make_table(console: Console, title: str, *columns: str) -> Table:
    """Return an empty table whose first column takes what the others leave; all but the first are numbers."""
    table = Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        expand=True,
        show_edge=False,
        pad_edge=False,
    )
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", ratio=None if position else 1, no_wrap=True)
    return table


def show_files(console: Console, run: Run, root: Path) -> None:
    """Print the slowest files, those that did not parse, and those that have no result."""
    console.print()
    slowest = make_table(console, "Slowest files", "file", "lines", "ms")
    for each in sorted(run.results.values(), key=lambda each: -each.seconds)[:8]:
        slowest.add_row(Text(short(each.path, root)), f"{each.lines:,}", f"{each.seconds * 1000:.0f}")
    console.print(slowest)
    if unparsed := [each for _, each in sorted(run.results.items()) if not each.parsed]:
        show_reasons(console, f"Files that don't parse, and why ({len(unparsed)})", root, unparsed_reasons(unparsed))
    if run.failures:
        show_reasons(console, f"Jobs that failed, and why ({len(run.failures)})", root, run.failures)


def unparsed_reasons(indexes: Iterable[SourceIndex]) -> dict[str, str]:
    """Return why files did not parse, by path."""
    return {each.path: each.reason or "" for each in indexes}


def show_reasons(console: Console, title: str, root: Path, reasons: dict[str, str]) -> None:
    """Print files with a reason each, below it: a reason is a sentence, and a line has 80 columns."""
    console.print()
    console.print(Text(title, "bold"))
    for path, reason in reasons.items():
        console.print(Text(f"  {short(path, root)}"), overflow="ellipsis", no_wrap=True)
        console.print(Padding(Text(reason, "dim"), (0, 0, 0, 4)))


def show_totals(console: Console, queue: Totals, loop: Totals | None) -> None:
    """Print the totals, and beside them those of the plain loop."""
    console.print()
    table = make_table(console, "Totals", "", "by the queue", *(["by a plain loop"] if loop else []))
    both = [each for each in (queue, loop) if each]
    for name in [each.name for each in fields(Totals) if each.name != "digest"]:
        table.add_row(name, *(f"{getattr(each, name):,}" for each in both))
    table.add_row("docstring coverage", *(f"{each.coverage:.1%}" for each in both))
    table.add_row("digest of all texts", *(each.digest for each in both))
    console.print(table)


def short(path: str, root: Path) -> str:
    """Return a path as seen from the root."""
    return Path(path).relative_to(root).as_posix()


def show_run(console: Console, run: Run) -> None:
    """Print what was run, and what was not."""
    again = max(0, run.attempts - run.executed - len(run.failures))
    console.print()
    unreported = run.executed - len(run.reported)
    for line in (
        f"executed {run.executed:,} jobs in this run, answered {run.cached:,} from cache ({run.seconds:.1f} s)",
        f"{run.taken_over:,} of them were left over from an interrupted run, or asked for by another one"
        if run.taken_over
        else "",
        f"{unreported:,} of them were settled by workers that did not report here: killed, or another run's"
        if unreported > 0
        else "",
        f"{run.lost_workers:,} workers were lost and replaced" if run.lost_workers else "",
        f"{run.attempts:,} attempts: {again:,} more than jobs; {run.settled_twice:,} jobs settled twice",
    ):
        if line:
            console.print(Text(line))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return 0 if everything was indexed and the totals agree."""
    parser = argparse.ArgumentParser(description="Index the standard library by a job per file.")
    parser.add_argument("--dsn", help="the database; default: $CRECHE_DSN, $DATABASE_URL, or sqlite:///creche.db")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio", help="the event loop")
    parser.add_argument("--workers", type=int, default=2, help="worker processes; 0: work in this process; default: 2")
    parser.add_argument("--root", type=Path, help="index the Python files of this folder instead")
    parser.add_argument("--limit", type=int, help="take only the first so many files")
    parser.add_argument("--no-check", action="store_true", help="leave out the plain loop")
    parser.add_argument("--role", help=argparse.SUPPRESS)  # a worker's name: this process is one
    given = parser.parse_args(arguments)
    if find_spec(given.backend) is None:
        parser.error(f"{given.backend} is not installed: in a clone, pip install '.[{given.backend}]'")

    # Old files hold escapes that the parser warns of; under -W error it would refuse the file for them.
    for category in (SyntaxWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    dsn = given.dsn or os.environ.get("CRECHE_DSN") or os.environ.get("DATABASE_URL") or "sqlite:///creche.db"
    try:
        queue = Queue(dsn)
    except CrecheError as error:
        parser.error(str(error))
    queue.include(tasks)
    if given.role:
        run_worker(queue, given.backend, given.role)
        return 0
    if given.workers and not queue.storage.capabilities.shared:
        parser.error(f"{mask(dsn)} lives in one process: add --workers 0")
    root = (given.root or Path(sysconfig.get_path("stdlib"))).resolve()
    sources = find_sources(root, given.limit)
    if not sources:
        parser.error(f"no Python files below {root}")
    settings = Settings(
        backend=given.backend,
        dsn=dsn,
        workers=given.workers,
        root=root,
        check=not given.no_check,
    )
    return run_parent(queue, settings, sources)


def run_parent(queue: Queue, settings: Settings, sources: Sequence[str]) -> int:
    """Index by the queue, then by a plain loop, and compare; return the exit code."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    screen = Screen(console)
    screen.say(f"{len(sources):,} Python files below {settings.root}", "bold")
    processes = {0: "no worker process", 1: "1 worker process"}.get(
        settings.workers, f"{settings.workers} worker processes"
    )
    screen.say(f"{mask(settings.dsn)}, {settings.backend}, {processes}")
    run, code = Run(), 0
    try:
        run = anyio.run(index, queue, settings, sources, screen, backend=settings.backend)
    except* KeyboardInterrupt:
        screen.say("interrupted. What is done is kept: run it again and it goes on from here", "yellow")
        code = 130
    except* WorkersFail as failure:
        screen.say(str(failure.exceptions[0]), "bold red")
        code = 1
    if code:
        return code
    show_files(console, run, settings.root)
    totals = Totals.of(run.results.values())
    loop = None
    if settings.check:
        start = time.monotonic()
        quiet = not console.is_terminal
        loop = Totals.of(
            measure(path) for path in track(sources, "checking", console=console, disable=quiet, transient=True)
        )
        screen.say(f"\nthe plain loop took {time.monotonic() - start:.1f} s")
    show_totals(console, totals, loop)
    show_run(console, run)
    if run.failures or run.settled_twice or loop not in {None, totals}:
        screen.say("DISAGREE: see above", "bold red")
        return 1
    screen.say("agree: the queue and the plain loop counted the same" if loop else "not checked", "bold green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
