"""What SQLite finds out about its own file: a healthy one has nothing to complain of, and each fault that is planted is
named.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from creche._ids import new_job_id
from creche._job import Finding, NewJob, Presence, Severity
from creche.storage import _sqlite_check as doctor
from creche.storage import _sqlite_schema as schema
from creche.storage._sql import load
from creche.storage.sqlite import SQLiteStorage

pytestmark = pytest.mark.anyio

LOOKED_AT = ["reach", "schema", "indexes", "isolation", "clock", "durability", "vacuum", "disk"]


def indexes() -> list[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.apply(connection, load("sqlite"))
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        return [name for (name,) in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def storage(path: Path) -> SQLiteStorage:
    """A storage that is not open, on a file that has been in use."""
    storage = SQLiteStorage(path)
    async with storage:
        await storage.insert([NewJob(id=new_job_id(), type="work", payload=b"{}")])
    return storage


def run(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def complaints(findings: list[Finding]) -> list[tuple[str, Severity]]:
    return [(each.check, each.severity) for each in findings if each.severity is not Severity.OK]


async def only_complaint(storage: SQLiteStorage) -> Finding:
    (bad,) = [each for each in await storage.check() if each.severity is not Severity.OK]
    return bad


async def test_a_healthy_file_has_nothing_to_complain_of(storage: SQLiteStorage) -> None:
    findings = list(await storage.check(concurrency=1_000))
    assert [each.check for each in findings] == LOOKED_AT
    assert complaints(findings) == []
    async with storage:
        assert complaints(list(await storage.check())) == []


# --- the file ---------------------------------------------------------------------------------------


async def test_a_file_that_is_not_there_is_the_only_finding_and_is_not_made(path: Path) -> None:
    (bad,) = await SQLiteStorage(path).check()
    assert (bad.check, bad.severity) == ("reach", Severity.PROBLEM)
    assert str(path) in bad.message
    assert not await anyio.Path(path).exists()


@pytest.mark.parametrize(
    ("content", "says"), [(b"Dear diary, " * 1_000, "not an SQLite database"), (None, "can't be opened")]
)
async def test_what_is_no_database_is_the_only_finding(path: Path, content: bytes | None, says: str) -> None:
    if content is None:
        await anyio.Path(path).mkdir()
    else:
        await anyio.Path(path).write_bytes(content)
    (bad,) = await SQLiteStorage(path).check()
    assert (bad.check, bad.severity) == ("reach", Severity.PROBLEM)
    assert says in bad.message


async def test_a_damaged_file_is_a_finding(storage: SQLiteStorage, path: Path) -> None:
    content = await anyio.Path(path).read_bytes()
    await anyio.Path(path).write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    (bad,) = await storage.check()
    assert (bad.check, bad.severity) == ("reach", Severity.PROBLEM)
    assert "the file is damaged" in bad.message


async def test_damage_that_only_one_look_meets_leaves_the_others_their_findings(
    storage: SQLiteStorage, path: Path
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        page, size = connection.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_master WHERE name = 'creche_workers'"
        ).fetchone()
    content = bytearray(await anyio.Path(path).read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    await anyio.Path(path).write_bytes(content)
    findings = list(await storage.check())
    assert [each.check for each in findings] == LOOKED_AT
    assert complaints(findings) == [("clock", Severity.PROBLEM)]


async def test_an_sqlite_that_is_too_old_is_the_only_finding(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    (bad,) = await storage.check()
    assert (bad.check, bad.severity) == ("reach", Severity.PROBLEM)
    assert "3.37.0 is needed" in bad.message


async def test_a_file_that_may_not_be_written_is_a_problem(storage: SQLiteStorage, path: Path) -> None:
    content = bytearray(await anyio.Path(path).read_bytes())
    content[18] = 3  # the format that a writer must know; root, too, may only read what has a later one
    await anyio.Path(path).write_bytes(content)
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("isolation", Severity.PROBLEM)
    assert "nothing can be written" in bad.message


async def test_a_write_lock_that_is_not_given_back_is_a_warning(storage: SQLiteStorage, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with anyio.fail_after(10):
            bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("isolation", Severity.WARNING)
    assert "holds the write lock" in bad.message


# --- the schema -------------------------------------------------------------------------------------


async def test_a_file_without_tables_is_a_problem_and_is_left_as_it_is(path: Path) -> None:
    run(path, "CREATE TABLE orders (number INTEGER PRIMARY KEY)")
    before = await anyio.Path(path).read_bytes()
    findings = {each.check: each for each in await SQLiteStorage(path).check()}
    assert findings["schema"].severity is Severity.PROBLEM
    assert "0001_initial.sql" in findings["schema"].message
    assert await anyio.Path(path).read_bytes() == before


async def test_a_schema_that_is_newer_is_a_warning(storage: SQLiteStorage, path: Path) -> None:
    run(path, "INSERT INTO creche_migrations VALUES (9999, '9999_from_the_future.sql', 0)")
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("schema", Severity.WARNING)
    assert "9999 is newer" in bad.message


async def test_a_column_that_is_missing_is_named(storage: SQLiteStorage, path: Path) -> None:
    run(path, "ALTER TABLE creche_queues DROP COLUMN paused_at")
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("schema", Severity.PROBLEM)
    assert bad.message.endswith("creche_queues.paused_at")


async def test_a_table_that_is_missing_is_named(storage: SQLiteStorage, path: Path) -> None:
    run(path, "DROP TABLE creche_workers")
    findings = list(await storage.check())
    assert complaints(findings) == [("schema", Severity.PROBLEM), ("clock", Severity.PROBLEM)]
    assert "creche_workers.presence" in findings[1].message


def test_there_are_indexes_to_look_at() -> None:
    assert "creche_jobs_ready" in indexes()
    assert len(indexes()) > 5


@pytest.mark.parametrize("name", indexes())
async def test_an_index_that_was_dropped_is_named_and_the_advice_brings_it_back(
    storage: SQLiteStorage, path: Path, name: str
) -> None:
    run(path, f"DROP INDEX {name}")
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("indexes", Severity.PROBLEM)
    assert bad.message == f"{name} is missing"
    run(path, bad.advice.partition(": ")[2])
    assert complaints(list(await storage.check())) == []


async def test_an_index_that_is_another_is_named_and_the_advice_brings_it_back(
    storage: SQLiteStorage, path: Path
) -> None:
    run(path, "DROP INDEX creche_jobs_flight; CREATE INDEX creche_jobs_flight ON creche_jobs (fingerprint)")
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("indexes", Severity.PROBLEM)
    assert bad.message == "creche_jobs_flight is another than it should be"
    run(path, bad.advice.partition(": ")[2])
    assert complaints(list(await storage.check())) == []


async def test_an_index_of_the_users_own_is_nobodys_business(storage: SQLiteStorage, path: Path) -> None:
    run(path, "CREATE INDEX my_types ON creche_jobs (type)")
    assert complaints(list(await storage.check())) == []


# --- what will hurt one day -------------------------------------------------------------------------


async def test_a_clock_that_was_set_back_is_a_warning_that_says_both_times(storage: SQLiteStorage) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    worker = Presence(name="w", host="h", pid=1, backend="trio", version="1", queues=("default",), concurrency=1)
    async with storage:
        await storage.announce(worker, 30, now=later)
        bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("clock", Severity.WARNING)
    assert f"{later:%Y-%m-%d %H:%M}" in bad.message
    assert "in the future" in bad.message


async def test_a_commit_that_waits_for_nothing_is_a_warning(storage: SQLiteStorage, path: Path) -> None:
    bad = await only_complaint(SQLiteStorage(path, synchronous="NORMAL"))
    assert (bad.check, bad.severity) == ("durability", Severity.WARNING)
    assert "NORMAL" in bad.message


async def test_a_file_without_a_write_ahead_log_is_a_warning_and_stays_without(
    storage: SQLiteStorage, path: Path
) -> None:
    run(path, "PRAGMA journal_mode = DELETE")
    for _ in range(2):
        bad = await only_complaint(storage)
        assert (bad.check, bad.severity) == ("durability", Severity.WARNING)
        assert "journal mode delete" in bad.message


async def test_a_read_transaction_that_was_left_open_shows_in_the_log(
    storage: SQLiteStorage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "WAL_KEPT", 1 << 20)
    async with storage:
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM creche_jobs").fetchone()
            payload = b'"' + b"x" * 500_000 + b'"'
            for _ in range(4):
                await storage.insert([NewJob(id=new_job_id(), type="work", payload=payload)])
            bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("vacuum", Severity.WARNING)
    assert "read transaction" in bad.advice


async def test_a_disk_that_is_nearly_full_is_a_warning(storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ROOM", 1 << 80)
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("disk", Severity.WARNING)
    assert "iB are left" in bad.message


async def test_a_network_file_system_is_a_warning(
    storage: SQLiteStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / {tmp_path} rw shared:1 - nfs4 server:/x rw\n")
    monkeypatch.setattr(doctor, "_MOUNTS", mounts)
    bad = await only_complaint(storage)
    assert (bad.check, bad.severity) == ("disk", Severity.WARNING)
    assert "nfs4" in bad.message


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/jobs.db", "ext4"),
        ("/srv/jobs.db", "xfs"),
        ("/srv/my jobs/jobs.db", "cifs"),
        ("/srv/my jobs, more/jobs.db", "xfs"),
        ("/srv2/jobs.db", "ext4"),
    ],
)
def test_the_mount_that_covers_a_file_says_what_it_is_on(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - rootfs none rw\n"
        "2 0 8:1 / / rw - ext4 /dev/a rw\n"
        "3 2 8:2 / /srv rw,noatime master:1 - xfs /dev/b rw\n"
        "4 3 0:7 / /srv/my\\040jobs rw - cifs //host/share rw\n"
    )
    assert doctor.file_system(mounts, Path(path)) == kind


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 19, "2.5 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_a_size_is_said_in_the_unit_that_fits(size: int, words: str) -> None:
    assert doctor._size(size) == words


def test_where_nobody_tells_of_mounts_nothing_is_known(tmp_path: Path) -> None:
    assert doctor.file_system(tmp_path / "nothing", tmp_path) == ""
