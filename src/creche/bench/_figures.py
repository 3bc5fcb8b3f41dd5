"""Figures: what repeated runs came to, as a table, as JSON, and beside an older run's. It measures nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from attrs import asdict, field, frozen
from rich.table import Table

from creche.bench._facts import Facts
from creche.errors import UsageError

FORMAT = 1  # of the JSON


@frozen(kw_only=True)
class Row:
    """One thing that was measured, in as many runs as there are values.

    Attributes:
        labels: what it is; two rows of one report differ in these.
        figures: by name, with the unit in it; a figure that nobody could tell has no values.
        note: why something is missing, say.
        failures: why a run of it failed, run by run; no figure is of these.
    """

    labels: Mapping[str, str]
    figures: Mapping[str, Sequence[float]] = field(factory=dict[str, Sequence[float]])
    note: str = ""
    failures: Sequence[str] = ()

    def median(self, name: str) -> float | None:
        """Return the median of a figure; None if it was not measured."""
        values = self.figures.get(name)
        return statistics.median(values) if values else None

    @property
    def remark(self) -> str:
        """What a table says of it besides: its note, and how many of its runs failed, and why the first did."""
        if not self.failures:
            return self.note
        number = len(self.failures)
        failed = f"{number} run{'s' if number > 1 else ''} failed: {self.failures[0]}"
        return f"{self.note}; {failed}" if self.note else failed


@frozen(kw_only=True)
class Report:
    """Rows of one kind, and on what they were measured.

    Attributes:
        main: the figure that matters most, of which ratios are drawn.
        beside: whose main figure the others' are divided by: a value of the first label; None for nobody's.
    """

    title: str
    facts: Facts
    rows: Sequence[Row]
    main: str = "jobs/s"
    beside: str | None = None

    def to_json(self) -> bytes:
        """Return it as JSON that `read` understands, and people may read."""
        return msgspec.json.format(msgspec.json.encode({"format": FORMAT, **asdict(self)}), indent=2) + b"\n"


def read(path: Path) -> list[Report]:
    """Read the reports of a file that `write` wrote.

    Raises:
        UsageError: it is no such file.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[dict[str, object]])
        return [_report(each) for each in found]
    except (msgspec.DecodeError, KeyError) as error:  # which has ValidationError among its kinds
        raise UsageError(f"{path} holds no benchmark's figures: {error}") from error


def _report(found: dict[str, object]) -> Report:
    if found.pop("format") != FORMAT:
        raise UsageError(f"these figures were written in another format than {FORMAT}: measure anew")
    return msgspec.convert(found, Report)


def write(path: Path, reports: Sequence[Report]) -> None:
    """Write reports to a file."""
    path.write_bytes(b"[" + b",".join(report.to_json() for report in reports) + b"]\n")


def gathered(
    runs: Iterable[tuple[Mapping[str, str], Mapping[str, float | None]]],
    failures: Iterable[tuple[Mapping[str, str], str]] = (),
) -> list[Row]:
    """Put the figures of runs together, row by row, in the order in which rows come first.

    Args:
        runs: labels and figures of each.
        failures: labels of each run that failed, and why it did.
    """
    found: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = {}
    for labels, figures in runs:
        row = found.setdefault(tuple(labels.items()), {})
        for name, value in figures.items():
            values = row.setdefault(name, [])
            if value is not None:
                values.append(value)
    failed: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for labels, why in failures:
        failed.setdefault(tuple(labels.items()), []).append(why)
        found.setdefault(tuple(labels.items()), {})
    return [
        Row(labels=dict(labels), figures=figures, failures=failed.get(labels, ())) for labels, figures in found.items()
    ]


def table(report: Report) -> Table:
    """Draw a report: medians, and the least and the most where there are several runs."""
    beside = report.beside
    labels = list(dict.fromkeys(name for row in report.rows for name in row.labels))
    names = [
        name
        for name in dict.fromkeys(name for row in report.rows for name in row.figures)
        if any(row.figures.get(name) for row in report.rows)
    ]
    drawn = Table(title=report.title)
    for name in labels:
        drawn.add_column(name, no_wrap=True)
    if beside is not None:
        drawn.add_column(f"÷ {beside}", justify="right")
    for name in names:
        drawn.add_column(name, justify="right")
    if any(row.remark for row in report.rows):
        drawn.add_column("note")
    for row in report.rows:
        cells = [row.labels.get(name, "") for name in labels]
        if beside is not None:
            cells.append(_times(row, _peer(report, row, beside), report.main))
        cells += [_cell(row.figures.get(name, ())) for name in names]
        drawn.add_row(*cells, *([row.remark] if row.remark else []))
    return drawn


def compared(report: Report, base: Report) -> Table:
    """Draw the ratios of this report's medians to an older one's, row by row."""
    before = {tuple(sorted(row.labels.items())): row for row in base.rows}
    labels = list(dict.fromkeys(name for row in report.rows for name in row.labels))
    names = list(dict.fromkeys(name for row in report.rows for name in row.figures))
    drawn = Table(title=f"{report.title}: now / {base.facts.date}")
    for name in labels:
        drawn.add_column(name, no_wrap=True)
    for name in names:
        drawn.add_column(name, justify="right")
    for row in report.rows:
        old = before.get(tuple(sorted(row.labels.items())))
        ratios = [_times(row, old, name) for name in names]
        drawn.add_row(*(row.labels.get(name, "") for name in labels), *ratios)
    return drawn


def ratio(now: float | None, before: float | None) -> float | None:
    """Return how many times; None if one of them is unknown, or nothing can be said."""
    if now is None or before is None or not before:
        return None
    return now / before


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of all values does not exceed (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _peer(report: Report, row: Row, name: str) -> Row | None:
    """The row that differs in the first label alone."""
    (first, _), *rest = row.labels.items()
    wanted = {first: name, **dict(rest)}
    return next((each for each in report.rows if dict(each.labels) == wanted), None)


def _times(row: Row, other: Row | None, name: str) -> str:
    times = ratio(row.median(name), other.median(name) if other else None)
    return "" if times is None else f"{times:.2f}"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
