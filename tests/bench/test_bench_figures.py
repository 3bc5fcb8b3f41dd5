"""What benchmarks make of their figures: medians, ratios, quantiles, and a file that can be read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from creche.bench import Facts, Reading, Report, Row, compared, gather, gathered, number, quantile, ratio, read, table
from creche.bench import write as write_reports
from creche.errors import UsageError


def report(*rows: Row, beside: str | None = None) -> Report:
    return Report(title="drain", facts=gather(servers=["PostgreSQL 99"]), rows=rows, beside=beside)


def row(who: str, *rates: float) -> Row:
    return Row(labels={"who": who, "what": "c=1"}, figures={"jobs/s": rates})


def drawn(table: Table) -> str:
    console = Console(width=300, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_runs_of_one_row_are_put_together_in_the_order_in_which_rows_came_first() -> None:
    a, b = {"who": "a"}, {"who": "b"}
    rows = gathered([(b, {"jobs/s": 1.0}), (a, {"jobs/s": 2.0}), (b, {"jobs/s": 3.0}), (b, {"jobs/s": None})])
    assert [each.labels for each in rows] == [b, a]
    assert rows[0].figures == {"jobs/s": [1.0, 3.0]}


def test_a_median_is_of_all_runs_and_of_none_it_is_unknown() -> None:
    assert row("a", 1.0, 100.0, 3.0).median("jobs/s") == 3.0
    assert row("a").median("jobs/s") is None
    assert row("a", 1.0).median("anything else") is None


def test_a_ratio_is_unknown_where_one_of_the_two_is() -> None:
    assert ratio(6.0, 3.0) == 2.0
    assert ratio(None, 3.0) is None
    assert ratio(6.0, None) is None
    assert ratio(6.0, 0.0) is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
def test_a_quantile_is_the_nearest_rank(share: float, value: float) -> None:
    assert quantile([float(each) for each in range(100, 0, -1)], share) == value


def test_a_table_divides_by_the_row_that_differs_in_the_first_label_alone() -> None:
    other = Row(labels={"who": "creche", "what": "c=10"}, figures={"jobs/s": [1.0]})
    text = drawn(table(report(row("creche", 200.0), other, row("rival", 100.0, 50.0, 150.0), beside="creche")))
    (line,) = (each for each in text.splitlines() if "rival" in each)
    assert "0.50" in line
    assert "100 (50–150)" in line


def test_a_note_stands_in_the_last_column_of_a_row_without_figures() -> None:
    missing = Row(labels={"who": "oban", "what": "all"}, note="not measured: needs Python 3.12")
    assert "not measured: needs Python 3.12" in drawn(table(report(row("creche", 1.0), missing)))


def test_a_failure_is_no_figure_and_stands_in_the_last_column_beside_what_other_runs_came_to() -> None:
    a, b = {"who": "a", "what": "c=1"}, {"who": "b", "what": "c=1"}
    rows = gathered([(a, {"jobs/s": 1.0})], [(b, "round 1: it hung"), (a, "round 2: it fell"), (b, "round 2: it sank")])
    assert [(each.labels, each.failures) for each in rows] == [
        (a, ["round 2: it fell"]),
        (b, ["round 1: it hung", "round 2: it sank"]),
    ]
    text = drawn(table(report(*rows)))
    assert "1 run failed: round 2: it fell" in text
    assert "2 runs failed: round 1: it hung" in text
    assert Row(labels=a, note="by hand", failures=["it hung"]).remark == "by hand; 1 run failed: it hung"


def test_reports_come_back_from_their_file(tmp_path: Path) -> None:
    reports = [report(row("a", 1.0, 2.5), Row(labels={"who": "b"}, note="gone", failures=["it fell"]))]
    write_reports(tmp_path / "figures.json", reports)
    (again,) = read(tmp_path / "figures.json")
    assert again.facts == reports[0].facts
    assert [each.labels for each in again.rows] == [each.labels for each in reports[0].rows]
    assert [each.remark for each in again.rows] == ["", "gone; 1 run failed: it fell"]
    assert again.rows[0].median("jobs/s") == 1.75


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"title": "of another program"}]', '[{"format": 0}]'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        read(path)


def test_compared_with_an_older_report_medians_become_ratios() -> None:
    text = drawn(compared(report(row("a", 300.0), row("new", 1.0)), report(row("a", 100.0, 200.0, 300.0))))
    assert "1.50" in next(each for each in text.splitlines() if " a " in each)
    assert "1.0" not in next(each for each in text.splitlines() if " new " in each)


def test_a_reading_since_another_leaves_out_what_reading_cost_and_what_nobody_said() -> None:
    before = Reading(cpu=1.0, statements=10.0, transactions=None, log=100.0)
    after = Reading(cpu=3.5, statements=15.0, transactions=7.0, log=100.0)
    assert after.since(before, own=1) == Reading(cpu=2.5, statements=4.0, transactions=None, log=0.0)


def test_figures_have_as_many_digits_as_mean_something() -> None:
    assert [number(each) for each in (12_345.6, 123.45, 1.2345, 0.012345)] == ["12,346", "123", "1.23", "0.0123"]


def test_facts_say_on_what_and_not_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/__main__.py", "throughput", "--dsn=mysql://me:pw@there/db"])
    facts: Facts = gather()
    assert facts.command == "benchmarks throughput --dsn=mysql://…"
    assert facts.versions["creche"]
    assert {"cores", "processor", "memory"} <= facts.machine.keys()
