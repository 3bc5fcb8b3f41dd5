"""The commands of `benchmarks/`, and the rows that it writes past the queue."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve
from benchmarks import _rows
from benchmarks.__main__ import COMMANDS, main
from benchmarks._options import chosen
from benchmarks.rivals import _command as command
from benchmarks.rivals._contestants import ENTRIES, Entry
from click.testing import CliRunner

from creche import Queue, Status
from creche.bench import Contestant, Order, Row, drained, meter

ROWS = 40
RACES = [race.name for race in command.RACES]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_takes(command: str) -> None:
    told = CliRunner().invoke(main, [command, "--help"])
    assert told.exit_code == 0, told.output
    assert "--compare" in told.output


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], RACES),
        (["drain c=1"], ["drain c=1"]),
        (["drain c=10"], ["drain c=10"]),
        (["drain c=10 × 2", "idle"], ["drain c=10 × 2", "idle"]),
        (["c=10"], ["drain c=10", "drain c=100", "drain c=10 × 2"]),
        (["drain c=1", "bulk"], ["drain c=1", "dispatch, bulk"]),
        (["c=7"], []),
    ],
)
def test_a_word_means_what_is_called_so_and_else_what_has_it_in_its_name(words: list[str], names: list[str]) -> None:
    assert sorted(chosen(RACES, words)) == sorted(names)


def test_rivals_take_the_one_race_and_the_one_contestant_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[tuple[str, str]] = []

    def start(entry: Entry, name: str) -> Entry:
        return evolve(entry, name=name, start=lambda: Contestant(name=name), engine="sqlite")

    def note(visits: Sequence[command.Visit], _rounds: int) -> tuple[list[Row], list[command.Visit]]:
        run.extend((visit.name, visit.race.name) for visit in visits)
        return [], []

    names = ["creche", "other", "other, faster", "others"]
    monkeypatch.setattr(command, "ENTRIES", [start(ENTRIES[0], name) for name in names])
    monkeypatch.setattr(command, "_run_all", note)
    words = ["--engine", "sqlite", "--race", "drain c=1", "--only", "other"]
    told = CliRunner().invoke(main, ["rivals", *words])
    assert told.exit_code == 0, told.output
    assert run == [("creche", "drain c=1"), ("other", "drain c=1")]


def test_contestants_have_names_of_their_own() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_rows_that_are_written_by_plain_sql_are_jobs_like_others(shared_dsn: str) -> None:
    await Queue(shared_dsn).migrate()
    _rows.write(shared_dsn, ROWS)
    _rows.write(shared_dsn, ROWS, first=1_000, status="scheduled")
    _rows.write(shared_dsn, ROWS, first=2_000, status="completed")
    _rows.write(shared_dsn, ROWS, first=3_000, queue="other", queues=4)
    order = Order(role="drain", dsn=shared_dsn, jobs=ROWS, options={"max_jobs": ROWS})
    with _rows.old_snapshot(shared_dsn):
        async with meter(shared_dsn) as watch:
            await drained(order, watch)
    async with Queue(shared_dsn) as queue:
        stats = await queue.stats()
    counts = {each.queue_name: dict(each.counts) for each in stats.queues}
    assert {status: n for status, n in counts.pop("bench").items() if n} == {
        Status.SCHEDULED: ROWS,
        Status.COMPLETED: 2 * ROWS,
    }
    assert sorted(counts) == ["other0", "other1", "other2", "other3"]
    assert {counts[name][Status.PENDING] for name in counts} == {ROWS // 4}
