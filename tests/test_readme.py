"""What README.md shows works as it stands there: its programs are run, its commands too, its types checked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

PROGRAMS = [text for language, text in BLOCKS if language == "python"]
QUICKSTART, ASK, MAIL, IMAGES, MODULES, SHOP, BANK, WORKERS, HOOKS, STORAGE = PROGRAMS
EXAMPLE, TESTS, COMMAND_LINE = [text for language, text in BLOCKS if language == "sh"]
SHRINK = """\
import anyio
from images import queue, shrink
from creche import Worker

async def main() -> None:
    async with queue:
        await shrink.dispatch("cat", width=80)
        print((await Worker(queue, burst=True).run()).succeeded, (await queue.jobs())[0].result)

if __name__ == "__main__":
    anyio.run(main)
"""
POST = """\
import anyio
from images import shrink
from mail import queue, send_mail
from reports import generate_report

async def main() -> None:
    async with queue:
        print(await (await shrink.dispatch("cat", width=80)).wait(timeout=60))
        print((await (await generate_report.dispatch(2024, "pdf")).wait(timeout=60))["pages"])
        letter = await send_mail.options(max_attempts=1).dispatch("nobody")
        try:
            await letter.wait(timeout=60)
        except Exception as error:
            print(type(error).__name__)

anyio.run(main)
"""
MY_STORAGE = "from creche.storage.memory import MemoryStorage as MyStorage\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"reports.py": QUICKSTART, "mail.py": MAIL, "images.py": IMAGES, "app.py": MODULES}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *command: str, timeout: float = 120) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRECHE_")}
    answer = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def run_program(folder: Path, text: str, name: str) -> str:
    (folder / name).write_text(text)
    return run(folder, "-W", "error", name)


@contextmanager
def in_background(folder: Path, *command: str) -> Iterator[None]:
    """Run a worker for the length of the block; SIGTERM must end it well."""
    with subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        except BaseException as error:
            process.kill()
            error.add_note("\n".join(process.communicate()))
            raise
        assert process.returncode == 0, f"{out}\n{err}"


def test_every_block_is_tested_here() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert len(BLOCKS) == README.count("\n```") / 2


def test_the_quickstart_runs_between_two_processes_and_two_loops(folder: Path) -> None:
    with in_background(folder, "reports.py"):
        said = run_program(folder, ASK, "ask.py")
    assert said.splitlines() == ["28 pages", "pending", "{'pages': 28}"]


def test_the_programs_run(folder: Path) -> None:
    run_program(folder, HOOKS, "hooks.py")
    assert run_program(folder, WORKERS, "workers.py").splitlines() == ["any.type {'number': 1}", "any.type {}"]


def test_a_handler_in_a_process_does_what_is_shown(folder: Path) -> None:
    assert run_program(folder, SHRINK, "shrink.py").strip() == "1 b'\"cat.80.jpg\"'"


@pytest.mark.parametrize("command", [["app.py"], ["-m", "creche", "worker", "app:worker"]], ids=["file", "command"])
def test_a_worker_knows_the_handlers_of_all_modules(folder: Path, command: list[str]) -> None:
    with in_background(folder, *command):
        said = run_program(folder, POST, "post.py")
    assert said.splitlines() == ["cat.80.jpg", "27", "JobFailed"]


def test_callbacks_run_as_they_are_shown(folder: Path) -> None:
    said = run_program(folder, SHOP, "shop.py").splitlines()
    report = "report.sales is completed: {'month': '2024-05'}"
    archived = "#general: report.archive is completed: archive/2024-05.json"
    assert sorted(said) == sorted([f"#general: {report}", f"#sales: {report}", archived] * 2)


def test_transactions_do_what_is_shown(folder: Path) -> None:
    assert run_program(folder, BANK, "bank.py").splitlines() == ["NotCommitted", "paid 1"]


def test_the_command_line_does_what_it_says(folder: Path) -> None:
    lines = COMMAND_LINE.splitlines()
    migrate, worker, dispatch, jobs, doctor = (line.removeprefix("creche ").split() for line in lines)
    assert run(folder, "-m", "creche", *migrate).split() == ["0001_initial.sql"]
    with in_background(folder, "-m", "creche", *worker):
        assert run(folder, "-m", "creche", *dispatch).strip() == '{"pages":27}'
        assert "report.generate" in run(folder, "-m", "creche", *jobs)
        assert "schema" in run(folder, "-m", "creche", *doctor)


def test_the_conformance_suite_takes_a_storage_in_three_lines(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(MY_STORAGE + STORAGE)
    said = run(tmp_path, "-m", "pytest", "-q", "-W", "error", "-k", "insert", "test_mine.py")
    assert re.search(r"\d{2,} passed", said)


def test_the_programs_are_typed(folder: Path) -> None:
    pytest.importorskip("mypy")
    programs = {"ask.py": ASK, "workers.py": WORKERS, "hooks.py": HOOKS, "shop.py": SHOP, "bank.py": BANK}
    programs["mine.py"] = MY_STORAGE + STORAGE
    for name, text in programs.items():
        (folder / name).write_text(text)
    run(folder, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={folder / 'cache'}", "app.py", *programs)


def test_the_two_commands_are_one_line_each_and_found_by_the_ci() -> None:
    for block, program in ((EXAMPLE, "library_index.py"), (TESTS, "pytest")):
        assert re.findall(rf"^python3 -m venv .*/{program}(?: .*)?$", README, re.MULTILINE) == [block.rstrip("\n")]
        assert f"command_that_runs {program})" in (ROOT / ".ci" / "run").read_text()


def test_what_is_linked_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
