"""Jobs are dispatched and done while the servers of a cluster are killed, frozen and cut off: none is lost, none is
settled twice. `nox -s ha -- -k galera --jobs 20000 --every 20 --faults kill` has more of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from creche.testing._herd import run_program
from ha.audit import Plan
from ha.conftest import must_be_there

OUTAGE: Final = Path(__file__).parent / "outage.py"


@pytest.mark.parametrize(
    ("cluster", "plan"),
    [
        ("postgresql", {"faults": "kill,freeze", "every": 5}),
        ("postgresql-async", {"faults": "lag,kill,freeze", "every": 5}),
        ("galera", {"faults": "kill,isolate,freeze", "rate": 40}),
        ("group", {"faults": "kill,freeze,leave", "rate": 15, "jobs": 600}),
        ("group-single", {"faults": "kill,leave,freeze", "rate": 30, "jobs": 900}),
    ],
)
def test_an_outage_loses_nothing_but_what_it_has_to(
    cluster: str,
    plan: dict[str, str | int],
    overridden: dict[str, str],
    tables: dict[str, str],
    tmp_path: Path,
) -> None:
    must_be_there(cluster.partition("-")[0])
    chosen = {name: str(option) for name, option in {**plan, **overridden}.items()}
    command = ["--cluster", cluster, *(word for name, option in chosen.items() for word in (f"--{name}", option))]
    report = tmp_path / "report"
    defaults = Plan()
    dispatching = float(chosen.get("jobs", defaults.jobs)) / float(chosen.get("rate", defaults.rate))
    code, told = run_program(OUTAGE, *command, "--report", str(report), limit=600 + 4 * dispatching)
    print(told)  # noqa: T201 - what everybody logged, for whoever has to find out
    if report.exists():
        tables[f"outage.py {' '.join(command)}"] = report.read_text()
    assert code == 0, report.read_text() if report.exists() else told[-3_000:]
