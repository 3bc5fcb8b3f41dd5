"""`creche bench latency`: how soon an idle worker begins a job. It says nothing of one that is busy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from creche.cli._bench._news import measured_on
from creche.cli._bench._options import CONCURRENCY, bounded, manner
from creche.cli._bench._visit import as_guest, ask, order_of
from creche.cli._display import console_of_data, print_json, say
from creche.cli._tables import new_table

if TYPE_CHECKING:
    from creche.bench._measure import Latency


@click.command()
@click.option(
    "-c",
    "--concurrency",
    type=CONCURRENCY,
    default=10,
    show_default=True,
    metavar="N",
    help="Of the worker.",
)
@bounded(jobs=100, seconds=30.0)
@manner
def latency(  # noqa: PLR0917 - click gives them by name
    concurrency: int, jobs: int, seconds: float, backend: str, yes: bool, dsn: str, json: bool
) -> None:
    """Measure how soon an idle worker begins a job.

    One job at a time is dispatched, about ten a second: to the first line of its handler, which is in another process,
    and to the end of receipt.wait().
    """
    order = order_of(dsn, backend, jobs=jobs, seconds=seconds)
    ask(dsn, 1, 1, order, yes=yes)
    say("one job after the other …")
    found = as_guest(dsn, order, lambda guest: guest.latency(concurrency=concurrency))
    if json:
        print_json({"measured": measured_on(), "jobs": len(found.begun), **_latencies(found)})
        return
    table = new_table()
    table.add_column("FROM DISPATCH TO", no_wrap=True)
    for heading in ("P50 MS", "P95 MS", "P99 MS", "MAX MS"):
        table.add_column(heading, justify="right", no_wrap=True)
    for words, name in (("the handler's first line", "handler"), ("the end of receipt.wait()", "wait")):
        table.add_row(words, *(f"{each * 1e3:.1f}" for each in _latencies(found)[name].values()))
    console_of_data().print(table)


def _latencies(found: Latency) -> Mapping[str, Mapping[str, float]]:
    """Return the quantiles, in seconds."""
    from creche.bench._figures import quantile

    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: {share: quantile(values, each) for share, each in shares.items()}
        for name, values in (("handler", found.begun), ("wait", found.waited))
    }
