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
PLACEHOLDER: Final = re.compile(r":([a-z_]+)")
COMMENT: Final = re.compile(r"--.*")

BY_ID: Final = "sqlite_autoindex_creche_jobs_1"
HOT: Final = [
    ("reserve", "creche_jobs_ready"),
    ("next_due", "creche_jobs_due"),
    ("promote", "creche_jobs_due"),
    ("extend", BY_ID),
    ("settle", BY_ID),
    ("settled_before", BY_ID),
    ("recover", "creche_jobs_held"),
    ("next_expiry", "creche_jobs_held"),
    ("bury", "creche_jobs_held"),
    ("prune", "creche_jobs_finished"),
    ("prune_dead_letters", "creche_dead_letters_buried"),
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
                completed_at, locked_until, token, nonce, idempotency_key, fingerprint, single_flight
            )
            SELECT printf('%08x-%04x-7000-8000-%012x', n, :place, n), 'queue ' || (n % 4), 'type', '{}', :status, n % 3,
                3, n, n, n, iif(:status = 'completed', n, NULL), iif(:status = 'processing', n, NULL), 1, 1,
                :status || n, iif(n % 10 = 0, hex(randomblob(32)), NULL), n % 10 = 0
            FROM number
            """,
            {"rows": 10 if status == "processing" else rows, "place": place, "status": status},
        )
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
        table_scan = re.match(r"SCAN (creche_\w+|job|rival|standing)", step) and "INDEX" not in step
        if table_scan or "B-TREE FOR ORDER BY" in step or "AUTOMATIC" in step:
            found.append(step)
    return found


@pytest.mark.parametrize(("name", "index"), HOT)
def test_a_statement_reads_its_index_and_nothing_else(large: sqlite3.Connection, name: str, index: str) -> None:
    assert faults(plan(large, name), index) == []


@pytest.mark.parametrize(("name", "index"), [pair for pair in HOT if pair[1] != BY_ID])
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
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    connection.execute("BEGIN")
    connection.set_progress_handler(count, 1)
    try:
        connection.execute(DIALECT.statements[name], parameters).fetchall()
    finally:
        connection.set_progress_handler(None, 1)
        connection.execute("ROLLBACK")
    return taken


FAR: Final = 1 << 60
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
    "prune": {"status": "completed", "finished_before": FAR, "now": FAR, "limit": 10},
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


def test_jobs_of_types_that_a_worker_does_not_know_are_passed_over_within_the_index(large: sqlite3.Connection) -> None:
    program = large.execute(f"EXPLAIN {DIALECT.statements['reserve']}", COSTS["reserve"]).fetchall()
    seek = next(row for row in program if row[1] == "DeferredSeek")  # "read the row, should a column ask for it"
    assert any(row[1:4] == ("Column", seek[2], 4) for row in program), "type, column 4, is not taken from the index"
