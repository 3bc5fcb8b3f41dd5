"""Whatever words a command is given: an exit code that is documented, a line that a terminal can show, no traceback, no
password; and what was refused wrote nothing.
"""

from __future__ import annotations

import io
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from uuid import UUID

import anyio
import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.kit import Done
from creche._ids import new_nonce
from creche._job import DELAY_LIMIT, Event, Failure, NewJob, Settlement
from creche.cli import cli
from creche.cli._durations import duration, in_words
from creche.cli._problems import ExitCode, Misuse
from creche.cli._worker import _queues, _weights, size
from creche.storage.sqlite import SQLiteStorage
from fuzz.corpus import kept

CANARY = "canary"
IDS = [f"01900000-0000-7000-8000-{number:012}" for number in range(4)]
APP = """
from creche import Queue

queue = Queue("sqlite:///jobs.db")


@queue.task("shop.send")
async def send(to: str, copies: int = 1, note: str | None = None) -> None: ...
"""

# These run until somebody ends them, or ask a port of the machine. What they read is fuzzed below.
NOT_RUN = {("worker",), ("dev",), ("health",), ("jobs", "watch")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with an application, and a database that has something of each kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "fuzzed_shop.py").write_text(APP)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("CRECHE_DSN", "sqlite:///jobs.db")
        patch.setenv("COLUMNS", "100")
        for name in ("CRECHE_APP", "DATABASE_URL"):
            patch.delenv(name, raising=False)
        anyio.run(_fill, folder / "full.db")
        yield folder
        sys.modules.pop("fuzzed_shop", None)


async def _fill(path: Path) -> None:
    async with SQLiteStorage(path) as storage:
        await storage.insert([NewJob(id=UUID(each), type="shop.send", payload=b'{"to":"x"}') for each in IDS])
        taken = (await storage.reserve(["default"], 2, lease=30, worker="w", nonce=new_nonce())).jobs
        error = Failure(type="E", message="\x1b[31mred")
        await storage.settle([Settlement(lease=taken[0].lease, event=Event.FAIL, error=error)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def run(words: Sequence[str]) -> Done:
    """Call the command line in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape") for _ in range(2))
    code = 0
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"to":"stdin"}')))
        try:
            cli.main(list(words), prog_name="creche")
        except SystemExit as ended:
            code = int(ended.code or 0)
        for stream in (out, err):
            stream.flush()
    texts = [stream.buffer.getvalue().decode(errors="replace") for stream in (out, err)]
    return Done(code, *texts)


def contents(path: Path) -> Sequence[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def ends_well(folder: Path, words: Sequence[str]) -> None:
    for ending in ("", "-wal", "-shm"):
        (folder / f"jobs.db{ending}").unlink(missing_ok=True)
    shutil.copy(folder / "full.db", folder / "jobs.db")
    before = contents(folder / "jobs.db")
    done = run(words)
    assert done.code in set(ExitCode), done
    assert "Traceback" not in done.err, done
    assert CANARY not in done.out + done.err, done
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", done.out + done.err), done
    if done.code == ExitCode.USAGE:
        assert done.err.strip()
        assert contents(folder / "jobs.db") == before, done


# --- what is drawn -----------------------------------------------------------------------------------

WORDS = st.sampled_from(kept("words"))
DSNS = st.sampled_from(
    [
        "sqlite:///jobs.db",
        "sqlite:///none.db",
        "sqlite:///no/such/folder/jobs.db",
        "sqlite:////",
        "sqlite://",
        "",
        "jobs.db",
        "memory://",
        f"sqlite://u:{CANARY}@host/x",
        f"redis://u:{CANARY}@host",
        f"mysql://u:{CANARY}@127.0.0.1",
        f"mysql://u:my {CANARY}@h:x/db",
        f"postgresql://u:{CANARY}@h:x/db",
    ]
)


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _commands(each, (*path, name))
    elif path not in NOT_RUN:
        yield path, command


COMMANDS = list(_commands(cli))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command, some of its own options with values that may fit, and other words, in any order."""
    path, command = draw(st.sampled_from(COMMANDS))
    parts: list[list[str]] = [[draw(WORDS)] for _ in range(draw(st.integers(0, 3)))]
    options = [each for each in command.params if isinstance(each, click.Option)]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)) if options else ():
        name = draw(st.sampled_from(option.opts))
        if option.is_flag:
            parts.append([name])
        elif name == "--dsn":
            parts.append([name, draw(DSNS)])
        else:
            parts.append([name, draw(WORDS)])
    words = [word for part in draw(st.permutations(parts)) for word in part]
    if "--dsn" in words:  # or a DSN would become the name of a queue, and no secret any more
        words = [word for word in words if word != "--"]
    ends: dict[tuple[str, ...], list[str]] = {
        ("top",): ["--once"],
        ("dispatch",): ["--timeout", "0"] if "--wait" in words else [],
    }
    return [*path, *ends.get(path, []), *words]


def test_there_is_something_to_run() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("words", kept("cli"))
def test_what_was_met_before(folder: Path, words: list[str]) -> None:
    ends_well(folder, words)


@given(words=command_lines())
def test_any_words(folder: Path, words: list[str]) -> None:
    ends_well(folder, words)


# --- what options are read by ------------------------------------------------------------------------

NUMBERS = st.text(st.sampled_from([*"0123456789.,-+ smhdkKMGTiBe_", "٣", "²"]), max_size=8)


@given(st.text(max_size=6) | NUMBERS)
def test_lengths_of_time_and_sizes_are_numbers_or_refused(text: str) -> None:
    with suppress(click.BadParameter):
        assert 0 <= duration(text) <= DELAY_LIMIT
    with suppress(click.BadParameter):
        assert size(text) >= 1 << 20


@given(st.integers(0, int(DELAY_LIMIT)))
def test_a_length_of_time_in_words_means_the_same(seconds: int) -> None:
    assert duration(in_words(seconds)) == seconds


@given(st.lists(st.text(max_size=6) | st.builds("{}{}{}".format, st.text(max_size=3), st.sampled_from(":="), NUMBERS)))
def test_queues_and_weights_are_taken_apart_or_refused(words: list[str]) -> None:
    with suppress(Misuse):
        queues = _queues(words) or []
        assert len(queues) == len(words)
        if isinstance(queues, dict):
            assert all(limit is None or limit >= 0 for limit in queues.values())
    with suppress(Misuse):
        assert all(weight >= 0 for weight in (_weights(words) or {}).values())
