"""A short torture of each engine; `nox -s torture` is the long one. Its auditor is tested in `tests/testing`.

`CRECHE_TORTURE_SECONDS` makes these longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from creche.testing import torture
from creche.testing._herd import run_program
from creche.testing._ledger import read_ledgers
from creche.testing.servers import find_mariadb, find_mysql, find_pgbouncer, find_postgresql
from creche.testing.torture._auditor import Verdict, read_verdict
from missing import found_or_skipped

PROGRAM = Path(torture.__file__).parent / "__main__.py"
SECONDS = float(os.environ.get("CRECHE_TORTURE_SECONDS", "20"))
PATIENCE = 400.0  # seconds until all is done: it takes as long as jobs end, on a machine that others use, too

# Who takes part: fewer than in the long run, for here it is one test of many; and more of those who ask are in a hurry,
# so that in the little time there is something that nobody knows the outcome of.
CAST: Final = (
    *("--dispatchers", "2", "--workers", "2", "--elders", "1"),
    *("--rate", "15", "--every", "1.2", "--hasty", "25"),
)

# What breaks, those first that must have come in any case.
FILE: Final = ("worker is killed", "dispatcher is killed", "file is locked", "frozen")
SERVER: Final = (
    "answers to writes",
    "worker is killed",
    "dispatcher",
    "server is killed",
    "reset",
    "sessions",
    "frozen",
)


def tortured(folder: Path, *options: str, only: tuple[str, ...]) -> Verdict:
    """Have a run, whose verdict is clean, and in which there was something to see."""
    chosen = [argument for word in only for argument in ("--only", word)]
    arguments = ["--minutes", str(SECONDS / 60), *CAST, *options, *chosen]
    code, told = run_program(PROGRAM, *arguments, "--ledgers", str(folder), limit=SECONDS + PATIENCE)
    print(told)  # noqa: T201 - the tables, for whoever asks pytest to show them
    assert code == 0, told
    came = {entry["fault"] for entry in read_ledgers(folder) if entry["what"] == "mended"}
    assert all(any(word in fault for fault in came) for word in only[:2]), came
    verdict = read_verdict(folder)
    assert verdict.clean
    assert verdict.counts["completed"] > SECONDS  # so it did not stand still
    assert verdict.counts["workers that died"]
    assert sum(verdict.unknown.values()) > SECONDS / 2
    return verdict


def test_a_tortured_file_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    tortured(tmp_path, "--engine", "sqlite", only=FILE)


@pytest.mark.parametrize(
    ("engine", "find", "required"),
    [("postgresql", find_postgresql, True), ("mariadb", find_mariadb, True), ("mysql", find_mysql, False)],
)
def test_a_tortured_server_loses_nothing_and_does_nothing_twice(
    engine: str, find: Callable[[], Path], required: bool, tmp_path: Path
) -> None:
    with found_or_skipped(required=required):
        find()
    verdict = tortured(tmp_path, "--engine", engine, only=SERVER)
    assert [what for what in verdict.unknown if what.startswith("answer cut off")]


def test_nor_does_one_behind_a_pooler_that_hands_out_connections_per_transaction(tmp_path: Path) -> None:
    with found_or_skipped(required=False):
        find_postgresql(), find_pgbouncer()
    tortured(
        tmp_path, "--engine", "postgresql", "--pgbouncer", only=("answers to writes", "worker is killed", "pooler")
    )
