"""SQLite's plans and costs: every hot statement reads its index and nothing else, however many rows stand behind.

Plans are asked for with 200,000 rows each of what is pending, scheduled and completed. Costs are counted in steps of
SQLite's virtual machine: no clock, no noise.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Any, Final

import pytest

from creche.storage import _sqlite_schema as schema
from creche.storage._sql import load

DIALECT: Final = load("sqlite")
MANY: Final = 200_000
FAR: Final = 1 << 60
PLACEHOLDER: Final = re.compile(r":([a-z_]+)")
COMMENT: Final = re.compile(r"--.*")

BY_ID: Final = "sqlite_autoindex_creche_jobs_1"
QUEUES: Final = "sqlite_autoindex_creche_queues_1"
SMALL: Final = "queues|workers"  # as many rows as there are queues that somebody has touched, or workers
HOT: Final = [
    ("reserve", "creche_jobs_ready"),
    ("reserve", QUEUES),
    ("next_due", "creche_jobs_due"),
    ("next_due", QUEUES),
    ("promote", "creche_jobs_due"),
    ("extend", BY_ID),
    ("settle", BY_ID),
    ("settle_unkept", BY_ID),
    ("settled_before", BY_ID),
    ("recover", "creche_jobs_held"),
    ("next_expiry", "creche_jobs_held"),
    ("bury", "creche_jobs_held"),
    ("finished", "creche_jobs_finished"),
    ("finished", QUEUES),
    ("prune", "creche_jobs_finished"),
    ("buried", "creche_dead_letters_buried"),
    ("buried", QUEUES),
    ("prune_dead_letters", "creche_dead_letters_buried"),
    ("asked", "creche_jobs_asked"),
    ("running", "creche_jobs_held"),
    ("expire_results", "creche_jobs_flight"),
    ("find_standing", BY_ID),
    ("find_standing", "creche_jobs_key"),
    ("find_standing", "creche_jobs_flight"),
    ("refresh", "creche_jobs_flight"),
    ("refresh", "creche_jobs_key"),
    ("refresh", BY_ID),
    ("record_callbacks", BY_ID),
    ("follow_up", BY_ID),
    ("forget_callbacks", BY_ID),
    ("write_dead_letters", BY_ID),
    ("find", BY_ID),
    ("statuses", BY_ID),
    ("watch", BY_ID),
    ("list", BY_ID),
    ("cancel", BY_ID),
    ("delete", BY_ID),
    ("delete_dead_letters", "sqlite_autoindex_creche_dead_letters_1"),
    ("retry", BY_ID),
    ("retry", "creche_jobs_flight"),
    ("stats", "creche_jobs_ready"),
    ("stats", "creche_jobs_due"),
    ("stats", "creche_jobs_held"),
    ("stats", "creche_jobs_finished"),
]


def database(rows: int) -> sqlite3.Connection:
    """Return a database with `rows` jobs each that are pending, scheduled and completed, and ten that run."""
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)  # a cached EXPLAIN is stale
    connection.execute("BEGIN")
    schema.apply(connection, DIALECT)
    for place, status in enumerate(("pending", "scheduled", "completed", "processing")):
        connection.execute(
            """
            WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :rows)
            INSERT INTO creche_jobs (
                id, queue_name, type, payload, status, priority, max_attempts, available_at, created_at, updated_at,
                completed_at, locked_until, locked_by, token, nonce, idempotency_key, fingerprint, single_flight
            )
            SELECT printf('%08x-%04x-7000-8000-%012x', n, :place, n), 'queue ' || (n % 4), 'type', '{}', :status, n % 3,
                3, n, n, n, iif(:status = 'completed', n, NULL), iif(:status = 'processing', n, NULL),
                iif(:status = 'processing', 'w', NULL), 1, 1,
                :status || n, iif(n % 10 = 0, hex(randomblob(32)), NULL), n % 10 = 0
            FROM number
            """,
            {"rows": 10 if status == "processing" else rows, "place": place, "status": status},
        )
    connection.execute(
        """
        INSERT INTO creche_dead_letters
        SELECT id, queue_name, type, payload, priority, attempts, max_attempts, created_at, completed_at, errors
        FROM creche_jobs
        WHERE status = 'completed'
        """
    )
    connection.execute("INSERT INTO creche_queues VALUES ('queue 2', NULL, :kept, :kept, :kept)", {"kept": FAR})
    connection.execute("INSERT INTO creche_queues (queue_name, paused_at) VALUES ('queue 3', 1)")
    connection.execute("COMMIT")
    return connection


@pytest.fixture(scope="module", params=["as it is", "analyzed"])
def large(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    connection = database(MANY)
    if request.param == "analyzed":  # somebody may do that, and a plan that changes with statistics changes one night
        connection.execute("ANALYZE")
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, name: str) -> list[str]:
    sql = DIALECT.statements[name]
    parameters = dict.fromkeys(PLACEHOLDER.findall(COMMENT.sub("", sql)))
    return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


def faults(steps: list[str], index: str) -> list[str]:
    """Return what is wrong with a plan that should read `index`."""
    found = [] if any(re.search(rf"INDEX {index}\b", step) for step in steps) else [f"{index} is not used"]
    for step in steps:
        scanned = rf"SCAN (creche_(?!{SMALL})\w+|job|letter|rival|standing)"
        table_scan = re.match(scanned, step) and "INDEX" not in step
        if table_scan or any(words in step for words in ("B-TREE FOR ORDER BY", "AUTOMATIC", "BLOOM")):
            found.append(step)
    return found


@pytest.mark.parametrize(("name", "index"), HOT)
def test_a_statement_reads_its_index_and_nothing_else(large: sqlite3.Connection, name: str, index: str) -> None:
    assert faults(plan(large, name), index) == []


@pytest.mark.parametrize(("name", "index"), [pair for pair in HOT if not pair[1].startswith("sqlite_autoindex")])
def test_a_plan_without_its_index_would_be_noticed(large: sqlite3.Connection, name: str, index: str) -> None:
    large.execute("BEGIN")
    try:
        large.execute(f"DROP INDEX {index}")
        assert faults(plan(large, name), index)
    finally:
        large.execute("ROLLBACK")


def test_every_statement_has_a_plan_that_reads_no_table_from_end_to_end(large: sqlite3.Connection) -> None:
    for name in DIALECT.statements:
        assert [fault for fault in faults(plan(large, name), "") if "is not used" not in fault] == []


# --- costs ------------------------------------------------------------------------------------------


def steps(connection: sqlite3.Connection, name: str, **parameters: Any) -> int:
    """Return how many steps a statement takes; what it did is undone."""
    return steps_of(connection, DIALECT.statements[name], parameters)


def steps_of(connection: sqlite3.Connection, text: str, parameters: dict[str, Any]) -> int:
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    connection.execute("BEGIN")
    connection.set_progress_handler(count, 1)
    try:
        connection.execute(text, parameters).fetchall()
    finally:
        connection.set_progress_handler(None, 1)
        connection.execute("ROLLBACK")
    return taken


LEASES: Final = '[{"id": "00000001-0003-7000-8000-000000000001", "token": 1, "nonce": 1}]'
IDS: Final = '["00000001-0002-7000-8000-000000000001", "ffffffff-0002-7000-8000-000000000001"]'
NEW: Final = """[{"id": "ffffffff-0000-7000-8000-000000000000", "queue_name": "queue 1", "type": "type",
    "payload": "{}", "priority": 0, "max_attempts": 3, "available_at": 0, "idempotency_key": "new"}]"""
COSTS: Final[dict[str, dict[str, Any]]] = {
    "reserve": {"queue_name": "queue 1", "types": None, "limit": 10, "now": 1, "lease": 1, "nonce": 1, "worker": "w"},
    "next_due": {"queues": None},
    "promote": {"queue_name": "queue 1", "limit": 10, "now": FAR},
    "extend": {"leases": LEASES, "locked_until": 1},
    "settled_before": {"leases": LEASES},
    "recover": {"now": FAR, "failed_at": "2030-01-01T00:00:00Z", "errors_kept": 20, "limit": 10},
    "next_expiry": {},
    "finished": {"completed": 1, "failed": 1, "cancelled": 1, "now": FAR},
    "prune": {"queue_name": "queue 1", "status": "completed", "finished_before": FAR, "now": FAR, "limit": 10},
    "buried": {"failed": 1, "now": FAR},
    "prune_dead_letters": {"queue_name": "queue 1", "buried_before": FAR, "limit": 10},
    "asked": {},
    "running": {},
    "delete": {"ids": IDS},
    "insert": {"jobs": NEW, "now": 1},
    "refresh": {"id": "x", "queue_name": "queue 1", "idempotency_key": "new", "fingerprint": "0" * 64},
    "follow_up": {"ids": IDS, "now": 1},
    "forget_callbacks": {"ids": IDS},
    "watch": {"ids": IDS},
    "find_standing": {"id": "x", "queue_name": "queue 1", "idempotency_key": "pending1", "fingerprint": "0" * 64},
}


@pytest.fixture(scope="module")
def small() -> Iterator[sqlite3.Connection]:
    connection = database(100)
    yield connection
    connection.close()


@pytest.mark.parametrize("name", COSTS)
def test_a_statement_costs_the_same_with_a_hundred_rows_and_with_two_hundred_thousand(
    small: sqlite3.Connection, large: sqlite3.Connection, name: str
) -> None:
    few, many = (steps(connection, name, **COSTS[name]) for connection in (small, large))
    assert many <= few * 1.1 + 20


def test_a_backlog_that_waits_behind_a_pause_is_not_walked_over(
    small: sqlite3.Connection, large: sqlite3.Connection
) -> None:
    paused = {**COSTS["reserve"], "queue_name": "queue 3"}
    few, many = (steps(connection, "reserve", **paused) for connection in (small, large))
    assert many == few
    assert many < steps(large, "reserve", **COSTS["reserve"])


def test_what_one_queue_keeps_for_longer_is_not_walked_over(
    small: sqlite3.Connection, large: sqlite3.Connection
) -> None:
    kept = {**COSTS["finished"], "completed": FAR}
    for connection in (small, large):
        assert {row[0] for row in connection.execute(DIALECT.statements["finished"], COSTS["finished"])} == {
            "queue 0",
            "queue 1",
            "queue 3",
        }
        assert connection.execute(DIALECT.statements["finished"], kept).fetchall() == []
    few, many = (steps(connection, "finished", **kept) for connection in (small, large))
    assert many <= few + 20


def test_to_ask_whether_a_queue_is_paused_is_next_to_nothing(large: sqlite3.Connection) -> None:
    asked = steps(large, "reserve", **COSTS["reserve"])
    text = re.sub(
        r"queue_name = \(.*?\n        \)", "queue_name = :queue_name", DIALECT.statements["reserve"], flags=re.DOTALL
    )
    assert "creche_queues" not in text
    assert asked - steps_of(large, text, COSTS["reserve"]) < 30


def test_jobs_of_types_that_a_worker_does_not_know_are_passed_over_within_the_index(large: sqlite3.Connection) -> None:
    program = large.execute(f"EXPLAIN {DIALECT.statements['reserve']}", COSTS["reserve"]).fetchall()
    seeks = {row[2] for row in program if row[1] == "DeferredSeek"}  # "read the row, should a column ask for it"
    assert any(row[1] == "Column" and row[2] in seeks and row[3] == 4 for row in program), (
        "type, column 4, is not taken from the index"
    )
