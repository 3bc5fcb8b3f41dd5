"""`creche bench throughput`: jobs per second, in and out, with the settings that it is given. It advises none."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from creche.cli._bench._news import cost, measured_on, news, own_up
from creche.cli._bench._options import CONCURRENCY, FEW, PREFETCH, PROCESSES, bounded, manner, repeated
from creche.cli._bench._visit import CALLERS, as_guest, ask, order_of, require_turns
from creche.cli._display import FAINT, console_of_data, print_json, text_of
from creche.cli._tables import new_table

if TYPE_CHECKING:
    from creche.bench._guest import Guest
    from creche.bench._measure import Work


@click.command()
@click.option(
    "-c",
    "--concurrency",
    type=CONCURRENCY,
    multiple=True,
    default=(1, 10, 100),
    show_default=True,
    metavar="N",
    help="Of the workers; repeatable.",
)
@click.option(
    "--processes", type=PROCESSES, default=1, show_default=True, metavar="N", help="Workers at the same time."
)
@click.option(
    "--prefetch", type=PREFETCH, default=2_000, show_default=True, metavar="N", help="Jobs reserved ahead, at most."
)
@bounded(jobs=50_000, seconds=2.0, least=FEW)
@repeated
@manner
def throughput(  # noqa: PLR0917 - click gives them by name
    concurrency: Sequence[int],
    processes: int,
    prefetch: int,
    jobs: int,
    seconds: float,
    rounds: int,
    backend: str,
    yes: bool,
    dsn: str,
    json: bool,
) -> None:
    """Measure jobs per second, in and out.

    Dispatched one at a time, by 16 callers at once, and a thousand at a time; then run by workers whose handlers do
    nothing, at each concurrency. CPU is what the process computes per job.
    """
    require_turns(jobs, max(concurrency) * processes)
    runs = [*_dispatches(), *_drains(dict.fromkeys(concurrency), processes, prefetch)]
    order = order_of(dsn, backend, jobs=jobs, seconds=seconds)
    ask(dsn, len(runs), rounds, order, yes=yes)
    found = as_guest(dsn, order, lambda guest: _measured(guest, runs, rounds))
    if json:
        print_json({"measured": measured_on(), "runs": [_run_json(run, works) for run, works in found.items()]})
    else:
        _print_runs(found)
    own_up([work for run, works in found.items() if run.facts["kind"] == "drain" for work in works], order)


@frozen(eq=False)
class _Run:
    """Something to be measured: what it is, for people and for programs, and how."""

    words: str
    facts: Mapping[str, Any]
    measure: Callable[[Guest], Awaitable[Work]]


def _dispatches() -> Sequence[_Run]:
    return [
        _Run("dispatch, one at a time", {"kind": "dispatch", "callers": 1}, lambda guest: guest.dispatch(callers=1)),
        _Run(
            f"dispatch, {CALLERS} at once",
            {"kind": "dispatch", "callers": CALLERS},
            lambda guest: guest.dispatch(callers=CALLERS),
        ),
        _Run("dispatch, in bulk", {"kind": "bulk"}, lambda guest: guest.dispatch_in_bulk()),
    ]


def _drains(concurrencies: Collection[int], processes: int, prefetch: int) -> Sequence[_Run]:
    def drain(concurrency: int) -> _Run:
        facts = {"kind": "drain", "concurrency": concurrency, "processes": processes, "prefetch": prefetch}
        words = f"run, concurrency {concurrency}" + (f" × {processes}" if processes > 1 else "")
        return _Run(
            words,
            facts,
            lambda guest: guest.drain(concurrency=concurrency, prefetch=prefetch, processes=processes),
        )

    return [drain(each) for each in concurrencies]


async def _measured(guest: Guest, runs: Sequence[_Run], number: int) -> Mapping[_Run, Sequence[Work]]:
    from creche.bench._settings import rounds

    found: dict[_Run, list[Work]] = {run: [] for run in runs}
    with news(len(runs) * number) as tell:
        for turn, run in rounds(runs, number):
            tell(f"round {turn + 1} of {number}: {run.words}")
            found[run].append(await run.measure(guest))
    return found


def _run_json(run: _Run, works: Sequence[Work]) -> Mapping[str, Any]:
    return {
        **run.facts,
        "jobs_per_second": statistics.median(work.rate for work in works),
        "cpu_per_job": statistics.median(map(cost, works)),
        "rounds": [
            {"jobs": work.jobs, "seconds": work.seconds, "jobs_per_second": work.rate, "cpu_per_job": cost(work)}
            for work in works
        ],
    }


def _print_runs(found: Mapping[_Run, Sequence[Work]]) -> None:
    from creche.bench._figures import number

    table = new_table()
    table.add_column("WHAT", no_wrap=True)
    for heading in ("JOBS/S", "LEAST", "MOST", "CPU µS/JOB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, works in found.items():
        rates = [work.rate for work in works]
        table.add_row(
            run.words,
            text_of(number(statistics.median(rates)), "bold"),
            *(text_of(number(each), FAINT) for each in (min(rates), max(rates))),
            number(statistics.median(map(cost, works)) * 1e6),
        )
    console_of_data().print(table)
