"""A plugin of pytest's that writes down what became of each test, and sees to it that the planted copy is tested.

It is loaded with `-p sabotage.witness` into the pytest that runs in the copy.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

LEDGER = "--ledger"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(LEDGER, type=Path, required=True, help="the file to which each report is appended, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    import creche

    if not Path(creche.__file__).is_relative_to(config.rootpath):
        raise pytest.UsageError(f"it is {creche.__file__} that would be tested, not the copy in {config.rootpath}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    error = None if call.excinfo is None else call.excinfo.value
    line = {
        "test": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "kinds": [type(each).__name__ for each in leaves(error)],
        "message": " | ".join(f"{type(each).__name__}: {each}" for each in leaves(error))[:2_000],
    }
    with item.config.getoption(LEDGER).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{json.dumps(line)}\n")
    return report


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    """Return the exceptions that are in no group any more: task groups wrap what a test says."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    elif error is not None:
        yield error
