"""The catalogue is up to date, and the runner tells a defect that a test has seen from one that nothing has.

To plant them all takes minutes: `nox -s sabotage`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from creche.testing import StorageConformance
from sabotage.catalogue import DEFECTS
from sabotage.planting import ROOT, Defect, Edit, OutOfDate, planted
from sabotage.trial import Caught, Spoilt, Survived, tried, unsound, verdict


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_each_edit_still_finds_its_text_once_and_leaves_python_that_compiles(defect: Defect) -> None:
    for path, text in planted(defect, ROOT).items():
        assert text != (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_each_test_that_is_to_catch_one_is_there(defect: Defect) -> None:
    assert defect.tests
    for test in defect.tests:
        path, _, function = test.rpartition("::")
        text = (ROOT / path.partition("::")[0]).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {function}\(", text, re.MULTILINE) or hasattr(StorageConformance, function)


def test_each_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(defect.name for defect in DEFECTS).items() if count > 1] == []


def test_what_the_project_s_law_names_is_planted() -> None:
    """By the issue, and by the plan of sabotage."""
    named = {
        *("settle-without-token-", "recover-ignores-attempts-", "attempt-counted-afterwards-", "look-then-insert-"),
        *("release-counts", "keys-that-", "worker-clock-in-", "clock-timestamp-in-the-due-filter", "found-rows-off"),
        *("deadline-from-after-the-", "renew-ignores-the-answer", "notify-without-poll", "read-committed-dropped"),
        *("token-without-random-bits", "cancel-sent-during-commit", "group-replication-is-fatal"),
    }
    assert {each for each in named if not any(defect.name.startswith(each) for defect in DEFECTS)} == set()


# --- the runner -------------------------------------------------------------------------------------

TOY = {
    "src/creche/__init__.py": "def double(n):\n    return n + n\n",
    "sql/empty.sql": "",
    "docs/empty.md": "",
    "tests/test_double.py": """
import pytest
from creche import double

@pytest.fixture
def four():
    return double(2)

def test_a_number_is_doubled():
    assert double(3) == 6

def test_what_is_doubled_before_is_four(four):
    assert four == 4
""",
    "pyproject.toml": "[tool.pytest.ini_options]\nfilterwarnings = ['error']\n",
}
DOUBLED = "tests/test_double.py::test_a_number_is_doubled"
FOUR = "tests/test_double.py::test_what_is_doubled_before_is_four"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one function, which needs no plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for path, text in TOY.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


def defect(new: str, *tests: str, old: str = "return n + n") -> Defect:
    return Defect(name="toy", breaks="all", edits=[Edit("src/creche/__init__.py", old, new)], tests=tests or [DOUBLED])


@pytest.mark.parametrize(
    ("new", "tests", "judged"),
    [
        ("return 2 * n + 1", [FOUR, DOUBLED], Caught(FOUR)),
        ("return 2 * n", [FOUR, DOUBLED], Survived()),
        ("return 2 *", [DOUBLED], Spoilt),  # it can't be imported, so no test has said anything
        ("return m + m", [DOUBLED], Spoilt),  # the test fails, but not because it has seen a wrong number
        ("return 1 / 0", [FOUR], Spoilt),  # nor has one that could not be set up
        ("return 2 * n + 1", ["tests/test_double.py::test_that_is_not_there"], Spoilt),
    ],
)
def test_a_defect_is_caught_by_what_a_test_says_and_by_nothing_else(
    toy: Path, new: str, tests: Sequence[str], judged: Caught | Survived | type[Spoilt]
) -> None:
    planted_one = defect(new, *tests)
    said = verdict(planted_one, tried(tests, defect=planted_one, root=toy))
    assert said == judged or (judged is Spoilt and isinstance(said, Spoilt))
    assert (toy / "src/creche/__init__.py").read_text() == TOY["src/creche/__init__.py"]


def test_an_edit_that_is_out_of_date_is_an_error(toy: Path) -> None:
    for old, count in {"return 2 * n": 0, "n": 4}.items():
        with pytest.raises(OutOfDate, match=f"this is {count} times"):
            tried([DOUBLED], defect=defect("return n", old=old), root=toy)


def test_a_test_that_hangs_has_caught_nothing(toy: Path) -> None:
    hanging = defect("__import__('time').sleep(60)")
    assert isinstance(verdict(hanging, tried([DOUBLED], defect=hanging, root=toy, seconds=2)), Spoilt)


def test_tests_that_do_not_pass_by_themselves_show_nothing(toy: Path) -> None:
    missing = "tests/test_double.py::test_that_is_not_there"
    assert unsound([DOUBLED, FOUR], tried([DOUBLED, FOUR], root=toy)) == []
    assert unsound([DOUBLED, missing], tried([DOUBLED, missing], root=toy))
    test = toy / "tests" / "test_double.py"
    test.write_text(f"{TOY['tests/test_double.py']}\n\ndef test_nothing():\n    pytest.skip('no server')\n")
    assert unsound(["tests/test_double.py"], tried(["tests/test_double.py"], root=toy)) == []
    idle = "tests/test_double.py::test_nothing"
    assert unsound([DOUBLED, idle], tried([DOUBLED, idle], root=toy)) == [f"{idle}: did not run"]
    test.write_text(TOY["tests/test_double.py"].replace("== 6", "== 7"))
    assert unsound([DOUBLED], tried([DOUBLED], root=toy))


def test_what_is_installed_is_not_taken_for_the_copy(toy: Path) -> None:
    (toy / "src" / "creche" / "__init__.py").unlink()
    (toy / "src" / "creche").rmdir()
    trial = tried([DOUBLED], root=toy)
    assert trial.code
    assert "not the copy" in trial.output
