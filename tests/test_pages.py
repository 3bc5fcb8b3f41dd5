"""What the pages in docs/ say of the public face is so: options, limits, links, and a program that runs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from creche import Queue, Task, Tasks, Worker, _calls, _inserter, _job, _payload, _queue, errors

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "python-api.md").read_text()
LIMITS = (ROOT / "docs" / "limits.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def section(name: str) -> str:
    return API.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def rows(text: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def keywords(function: object) -> set[str]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}


# --- the public face --------------------------------------------------------------------------------


def test_every_option_has_a_row() -> None:
    assert rows(section("What a dispatch may say")) == keywords(Task.options) == keywords(_calls.make_options)
    assert rows(section("Tasks")) == keywords(Tasks.task) == keywords(Queue.task)
    assert rows(section("Queue")) == keywords(Queue) | {"dsn"}


@pytest.mark.parametrize(("kind", "left_out"), [(Queue, {"dispatch_call", "settled", "wait_for"}), (Worker, set())])
def test_whatever_they_can_do_is_named(kind: type, left_out: set[str]) -> None:
    public = {name for name in vars(kind) if not name.startswith("_")} - left_out
    assert {name for name in public if not re.search(rf"`[^`]*\b{name}\b[^`]*`", API)} == set()


def test_every_error_is_named() -> None:
    steering = {"Steer", "CrecheError"}
    assert {name for name in errors.__all__ if f"`{name}`" not in API and f"errors.{name}`" not in API} <= steering
    public = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert set(errors.__all__) == public


def test_the_program_does_what_it_shows(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", API, re.DOTALL | re.MULTILINE)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "drained 0 1",
        "mail.send no such address: nobody",
        "pending cancelled cancelled",
        "[('default', 3, True)]",
        "3 3 []",
    ]


# --- limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        f"{_payload.MAX_PAYLOAD:,} bytes (1 MiB)",
        f"{_payload.MAX_RESULT:,} bytes; `Queue(result_limit=…)`",
        f"from 4 to {_queue.RESULT_CEILING:,} (8 MiB)",
        f"| levels of a payload or result | {_payload.MAX_DEPTH} |",
        f"| {_job.NAME_LIMIT} bytes of UTF-8",
        f"| {_job.KEY_LIMIT} bytes of UTF-8",
        f"| {_job.WORKER_NAME_LIMIT} bytes of UTF-8",
        f"{_payload.MAX_ERROR:,} of its message",
        f"| the last {_job.ERRORS_KEPT} |",
        f"| {_job.MESSAGE_LIMIT} characters; written once a second",
        f"| −{_job.PRIORITY_LIMIT} | {_job.PRIORITY_LIMIT}, which",
        f"| {_job.MAX_ATTEMPTS_LIMIT:,}; {_job.DEFAULT_MAX_ATTEMPTS} by default",
        f"{_job.CALLBACK_LIMIT} of each dispatch, of which each may be a chain of {_job.CHAIN_LIMIT};",
        f"are {_inserter.MOST_JOBS} in one, or 1 MiB",
    ],
)
def test_the_limits_are_as_written(words: str) -> None:
    assert words in " ".join(LIMITS.split())


# --- links ------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_linked_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name}" not in readme] == []
