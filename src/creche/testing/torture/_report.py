"""How a verdict looks. It finds none."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from creche.testing.torture._auditor import Column, Verdict
from creche.testing.torture._figures import Spread


def report(verdict: Verdict) -> Group:
    """Return a verdict as it is shown: the rig first, then what must be zero, then the figures."""
    parts: list[Table | Text] = [
        _table(("rig", ""), ((name, value) for name, value in verdict.rig.items())),
        _zeros(verdict.columns),
    ]
    parts += [Text(f"  {objection}", "red") for column in verdict.columns for objection in column.objections]
    parts.append(_table(("what", "how many"), ((name, f"{count:,}") for name, count in verdict.counts.items())))
    parts.append(_unknown(verdict))
    parts.append(
        _spreads(
            [
                *((f"after: {fault}", one) for fault, one in verdict.recoveries.items()),
                ("first attempt of a dead worker, until it runs again", verdict.second_runs),
                ("dispatch, until it is answered", verdict.answers),
            ]
        )
    )
    parts.append(
        _table(
            ("alive after their own deadline, because", "handlers", "past the lease", "longest, ms", "awake, ms"),
            (
                (why, f"{late.count:,}", f"{late.outlived:,}", f"{late.longest:,.0f}", f"{late.awake:,.0f}")
                for why, late in verdict.lateness.items()
            ),
        )
    )
    if verdict.growth:
        parts.append(
            _table(
                ("worker that lived long", "seconds", "files", "tasks", "MiB"),
                (
                    (
                        one.who,
                        f"{one.seconds:.0f}",
                        _change(one.files),
                        _change(one.tasks),
                        _change(one.memory, 1 << 20),
                    )
                    for one in verdict.growth
                ),
            )
        )
    word = Text("CLEAN", "bold green") if verdict.clean else Text("BROKEN", "bold red")
    return Group(*parts, word)


def _zeros(columns: Iterable[Column]) -> Table:
    table = _table(("must be 0", "is"), ())
    for column in columns:
        style = "" if not column.count else "yellow" if column.excused else "bold red"
        note = " (expected: nothing waits for the disk)" if column.count and column.excused else ""
        table.add_row(column.name, Text(f"{column.count:,}{note}", style))
    return table


def _unknown(verdict: Verdict) -> Table:
    total = sum(verdict.unknown.values())
    rows = [*verdict.unknown.items(), ("all", total)]
    table = _table(("unknown outcomes exercised", "how many"), ((name, f"{count:,}") for name, count in rows))
    table.add_row("attempts per completed job", f"{verdict.attempts_per_completed_job:.3f}")
    return table


def _spreads(spreads: Iterable[tuple[str, Spread | None]]) -> Table:
    return _table(
        ("seconds", "times", "p50", "p99", "longest"),
        (
            (name, f"{one.count:,}", f"{one.p50:.3f}", f"{one.p99:.3f}", f"{one.longest:.3f}")
            for name, one in spreads
            if one is not None
        ),
    )


def _change(values: tuple[float, float], unit: int = 1) -> str:
    before, after = values
    return f"{before / unit:.0f} → {after / unit:.0f}"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, title_justify="left", pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number and heading else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
