"""What PostgreSQL does for each hot statement with 800,000 rows behind it: no table is scanned, none is sorted."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from attrs import evolve
from psycopg import sql

from creche._ids import new_job_id, new_nonce
from creche._job import (
    ERRORS_KEPT,
    WAKE_HORIZON,
    WATCH_LIMIT,
    Event,
    Failure,
    FollowUp,
    Lease,
    NewJob,
    On,
    Settlement,
)
from creche.storage._postgresql_calls import bare
from creche.storage._postgresql_documents import jobs_document, joins_document, leases_document, settlements_document
from creche.storage._sql import load
from creche.testing.servers import ForeignServer, PostgreSQLServer

SQL: Final = {name: bare(text) for name, text in load("postgresql").statements.items()}
NOW: Final = datetime.now(UTC)
ROWS: Final = 200_000

FILL: Final = b"""
INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at,
                         locked_until, token, idempotency_key, fingerprint, single_flight, result_expires_at,
                         created_at, updated_at, completed_at)
SELECT gen_random_uuid(), 'q' || n %% 4, 't' || n %% 3, '{}', %(status)s, n %% 5, 1, 3,
       now() + %(due)s * make_interval(secs => n), CASE WHEN %(status)s = 'processing' THEN now() END, 1,
       CASE WHEN n %% 10 = 0 THEN %(status)s || n END,
       CASE WHEN n %% 10 = 1 THEN sha256((%(status)s || n)::bytea) END, n %% 10 = 1,
       CASE WHEN n %% 10 = 1 AND %(status)s = 'completed' THEN now() + make_interval(days => 30) END,
       now(), now(), CASE WHEN %(status)s = 'completed' THEN now() - make_interval(secs => n) END
  FROM generate_series(1, %(rows)s::integer) AS n
"""

# What one queue keeps for a year: jobs and dead letters that are one to three days old. And more queues than anybody
# sets something of: a table of a few rows is read as a whole, as it should be.
KEPT: Final = b"""
INSERT INTO creche_queues (queue_name, keep_completed, keep_failed, keep_cancelled)
VALUES ('kept', 31536000, 31536000, 31536000);
INSERT INTO creche_queues (queue_name, paused_at) SELECT 'other ' || n, now() FROM generate_series(1, 5000) AS n;
INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, max_attempts, available_at, created_at,
                         updated_at, completed_at)
SELECT gen_random_uuid(), 'kept', 't', '{}', 'completed', 0, 3, now(), now(), now(),
       now() - make_interval(secs => 90000 + n)
  FROM generate_series(1, 200000) AS n;
INSERT INTO creche_dead_letters
SELECT gen_random_uuid(), 'kept', 't', '{}', 0, 3, 3, now(), now() - make_interval(secs => 90000 + n), '[]'
  FROM generate_series(1, 20000) AS n;
INSERT INTO creche_workers
SELECT 'w' || n, '{}', now(), now(), now() + make_interval(mins => n) FROM generate_series(1, 5) AS n
"""


@pytest.fixture(scope="session")
def crowded(postgresql_server: PostgreSQLServer | ForeignServer) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A database with 200,000 jobs each that wait, are scheduled, completed, and kept; and 1,000 that run."""
    name = f"creche_{secrets.token_hex(4)}"
    with psycopg.connect(postgresql_server.create_database(name), autocommit=True) as connection:
        for migration in load("postgresql").migrations:
            connection.execute(migration.sql.encode())
        for status, due in {"pending": -1, "scheduled": 1, "completed": -1}.items():
            connection.execute(FILL, {"status": status, "due": due, "rows": ROWS})
        connection.execute(FILL, {"status": "processing", "due": -1, "rows": 1_000})
        connection.execute(
            "INSERT INTO creche_dead_letters SELECT gen_random_uuid(), 'q', 't', '{}', 0, 3, 3, now(),"
            " now() - make_interval(secs => n), '[]' FROM generate_series(1, 20000) AS n"
        )
        connection.execute(
            "INSERT INTO creche_watches SELECT id, 'w', now() - make_interval(secs => priority * 1000) FROM creche_jobs"
            " WHERE status = 'pending'"
        )
        connection.execute(KEPT)
        connection.execute("VACUUM ANALYZE")
        yield connection
    postgresql_server.drop_database(name)


# --- the statements, with parameters as the storage sends them --------------------------------------

JOBS: Final = [
    NewJob(id=new_job_id(), type="t", payload=b"{}", fingerprint=secrets.token_bytes(32), idempotency_key=f"k{n}")
    for n in range(20)
]
LEASES: Final = [Lease(job_id=uuid4(), token=1, nonce=new_nonce()) for _ in range(100)]
SETTLEMENTS: Final = [
    Settlement(lease=lease, event=Event.FAIL, error=Failure(type="E", message="m"))
    if n % 2
    else Settlement(lease=lease, event=Event.SUCCEED, result=b"{}")
    for n, lease in enumerate(LEASES)
]
RESERVE: Final[dict[str, Any]] = {"limit": 10, "lease": 30.0, "worker": "w", "nonce": 1, "types": None}
UPKEEP: Final[dict[str, Any]] = {
    "limit": 100,
    "kept": ERRORS_KEPT,
    "completed": 86_400.0,
    "failed": 86_400.0,
    "cancelled": 86_400.0,
    "allowance": 2.0,
}
IDS: Final = [uuid4() for _ in range(10)]
THOUSAND: Final = [uuid4() for _ in range(1_000)]
CALLBACKS: Final = [FollowUp(id=uuid4(), type="t", head="{}", on=on) for on in On]

# Rows of running jobs by their ids: the small index of those that run will do as well as the primary key.
BY_ID: Final[set[str]] = set()

BY_QUEUE: Final = {"creche_jobs_ready", "creche_jobs_due", "creche_jobs_pkey", "creche_queues_pkey"}

# As arrays of any making: which one, no plan asks.
COLUMNS: Final = {
    "ids": [lease.job_id for lease in LEASES],
    "tokens": [lease.token for lease in LEASES],
    "nonces": [lease.nonce for lease in LEASES],
}

# The statement, its parameters, and the indexes it can't do without.
HOT: Final[dict[str, tuple[str, dict[str, Any], set[str]]]] = {
    "reserve": ("reserve", {**RESERVE, "queues": ["q1"]}, BY_QUEUE),
    "reserve from three queues": (
        "reserve",
        {**RESERVE, "queues": ["q1", "q2", "q3"]},
        BY_QUEUE,
    ),
    "reserve a thousand": (
        "reserve",
        {**RESERVE, "queues": ["q1"], "limit": 1_000},
        BY_QUEUE,
    ),
    "reserve some types": (
        "reserve",
        {**RESERVE, "queues": ["q1", "q2"], "types": ["t1", "t2"]},
        BY_QUEUE,
    ),
    "extend": ("extend", {"leases": leases_document(LEASES), "seconds": 30.0}, BY_ID),
    "settle": (
        "settle",
        {"settlements": settlements_document(SETTLEMENTS), "kept": ERRORS_KEPT, "horizon": WAKE_HORIZON},
        BY_ID,
    ),
    "complete": ("complete", {**COLUMNS, "result": "null"}, BY_ID),
    "settle what is not kept": ("settle_unkept", COLUMNS, BY_ID),
    "settled before": ("settled_before", {"leases": leases_document(LEASES)}, BY_ID),
    "insert": ("insert", {"jobs": jobs_document(JOBS), "horizon": WAKE_HORIZON}, set()),
    "find standing": (
        "find_standing",
        {"jobs": jobs_document(JOBS)},
        {"creche_jobs_pkey", "creche_jobs_key", "creche_jobs_flight"},
    ),
    "expire results": ("expire_results", {"jobs": jobs_document(JOBS)}, {"creche_jobs_flight"}),
    "refresh": (
        "expire_results",
        {"jobs": jobs_document([evolve(job, refresh=True) for job in JOBS])},
        {"creche_jobs_flight", "creche_jobs_pkey", "creche_jobs_key"},
    ),
    "glance": (
        "glance",
        {**UPKEEP, "unwatched": WATCH_LIMIT},
        {
            *("creche_jobs_ready", "creche_jobs_due", "creche_jobs_held", "creche_jobs_finished"),
            *("creche_dead_letters_buried", "creche_watches_since", "creche_queues_pkey"),
        },
    ),
    "recover": ("recover", UPKEEP, {"creche_jobs_held", "creche_jobs_pkey"}),
    "bury": ("bury", UPKEEP, {"creche_jobs_held", "creche_jobs_pkey"}),
    "promote": ("promote", UPKEEP, {"creche_jobs_due", "creche_jobs_pkey"}),
    "next due": ("next_due", {}, {"creche_jobs_due"}),
    "next expiry": ("next_expiry", {"allowance": 2.0}, {"creche_jobs_held"}),
    "prune": ("prune", UPKEEP, {"creche_jobs_finished", "creche_jobs_pkey", "creche_queues_pkey"}),
    "prune dead letters": ("prune_dead_letters", UPKEEP, {"creche_dead_letters_buried", "creche_queues_pkey"}),
    "cancel": ("cancel", {"ids": IDS}, {"creche_jobs_pkey"}),
    "delete": ("delete", {"ids": IDS}, {"creche_jobs_pkey", "creche_watches_pkey"}),
    "unbury": ("unbury", {"ids": IDS}, {"creche_dead_letters_pkey", "creche_jobs_pkey"}),
    "pause": ("pause", {"queues": ["q1", "q2"]}, set()),
    "resume": ("resume", {"queues": ["q1", "q2"]}, {"creche_queues_pkey"}),
    "forget queues": ("forget_queues", {"queues": ["q1", "q2"]}, {"creche_queues_pkey"}),
    "retry": ("retry", {"ids": IDS}, {"creche_jobs_pkey", "creche_jobs_flight"}),
    "expire rivals": ("expire_rivals", {"ids": IDS}, {"creche_jobs_pkey", "creche_jobs_flight"}),
    "lock standing": ("lock_standing", {"ids": IDS}, {"creche_jobs_pkey"}),
    "attach": ("attach", {"ids": IDS, "joins": joins_document(dict.fromkeys(IDS, CALLBACKS))}, {"creche_jobs_pkey"}),
    "follow up": ("follow_up", {"ids": IDS}, {"creche_jobs_pkey", "creche_watches_pkey"}),
    "watch": ("watch", {"ids": THOUSAND, "watcher": "w", "again": 900.0}, {"creche_jobs_pkey"}),
    "unwatch": ("unwatch", {"over": IDS, "watcher": "w"}, {"creche_watches_pkey"}),
    "ends": ("ends", {"ids": THOUSAND}, {"creche_jobs_pkey"}),
    "prune watches": ("prune_watches", {**UPKEEP, "unwatched": WATCH_LIMIT}, {"creche_watches_since"}),
    "find": ("find", {"ids": IDS}, {"creche_jobs_pkey"}),
    "list": (
        "list",
        {"before": UUID(int=1 << 127), "queues": None, "types": None, "statuses": None, "limit": 50},
        {"creche_jobs_pkey"},
    ),
}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def explain(
    connection: psycopg.Connection[tuple[Any, ...]],
    name: str,
    parameters: dict[str, Any],
    mode: str,
    options: LiteralString = "",
) -> list[dict[str, Any]]:
    """The nodes of a statement's plan: `custom` for these values, or `generic` as for a prepared statement."""
    order: list[str] = []

    def place(match: re.Match[bytes]) -> bytes:
        parameter = match[1].decode()
        if parameter not in order:
            order.append(parameter)
        return b"$%d" % (order.index(parameter) + 1)

    text = re.sub(rb"%\((\w+)\)s", place, SQL[name]).replace(b"%%", b"%")
    values = sql.SQL(", ").join(sql.Literal(parameters[parameter]) for parameter in order)
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('plan_cache_mode', %s, true)", [f"force_{mode}_plan"])
        connection.execute(b"PREPARE explained AS " + text)
        try:
            answer = connection.execute(
                sql.SQL("EXPLAIN (FORMAT JSON{}) EXECUTE explained ({})").format(sql.SQL(options), values)
                if order
                else sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE explained")
            )
            ((plan,),) = answer.fetchall()
        finally:
            connection.execute("DEALLOCATE explained")
    return list(nodes(plan[0]["Plan"]))


def reached_by_id(plan: list[dict[str, Any]]) -> bool:
    """Whether the jobs, and their watches, are found by an index on the job's id, and by none otherwise; and what is
    set of their queues by the queue.
    """
    scans = [node for node in plan if node.get("Index Name", "").startswith("creche_")]
    scans = [node for node in scans if "queue_name = j.queue_name" not in node.get("Index Cond", "")]
    return bool(scans) and all("id = ANY" in node.get("Index Cond", "") for node in scans)


def tables_scanned(plan: list[dict[str, Any]]) -> list[str]:
    """Return the tables that are read as a whole, but for that of the workers, which are few."""
    return [
        node["Relation Name"]
        for node in plan
        if node["Node Type"] == "Seq Scan"
        and node.get("Relation Name", "").startswith("creche_")
        and node["Relation Name"] != "creche_workers"
    ]


@pytest.mark.parametrize("now", [None, NOW], ids=["now", "given"])
@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("case", HOT)
def test_a_hot_statement_goes_by_its_indexes(
    crowded: psycopg.Connection[tuple[Any, ...]], case: str, mode: str, now: datetime | None
) -> None:
    name, parameters, indexes = HOT[case]
    plan = explain(crowded, name, {**parameters, "now": now}, mode)
    assert tables_scanned(plan) == []
    assert indexes <= {node.get("Index Name") for node in plan}
    assert indexes is not BY_ID or reached_by_id(plan)


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("case", [case for case, (_, _, indexes) in HOT.items() if indexes is BY_ID])
def test_running_jobs_are_reached_by_id_though_nothing_ran_when_the_statistics_were_taken(
    crowded: psycopg.Connection[tuple[Any, ...]], case: str, mode: str
) -> None:
    name, parameters, _ = HOT[case]
    with crowded.transaction(force_rollback=True):
        crowded.execute("DELETE FROM creche_jobs WHERE status = 'processing'")
        crowded.execute("ANALYZE creche_jobs")
        plan = explain(crowded, name, {**parameters, "now": None}, mode)
    assert tables_scanned(plan) == []
    assert reached_by_id(plan)


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize("case", [case for case in HOT if case.startswith("reserve")])
def test_reserve_sorts_nothing_but_its_answer(
    crowded: psycopg.Connection[tuple[Any, ...]], case: str, mode: str
) -> None:
    name, parameters, _ = HOT[case]
    plan = explain(crowded, name, {**parameters, "now": None}, mode)
    claim = next(node for node in plan if node.get("Subplan Name") == "CTE claimed")
    assert not [node for node in nodes(claim) if "Sort" in node["Node Type"]]


@pytest.mark.parametrize("queues", [["q1"], ["q1", "q2", "q3"], ["nothing here", "q0"]], ids=len)
def test_reserve_reads_no_more_rows_than_it_takes(
    crowded: psycopg.Connection[tuple[Any, ...]], queues: list[str]
) -> None:
    parameters = {**RESERVE, "queues": queues, "now": None}
    plan = explain(crowded, "reserve", parameters, "custom", ", ANALYZE")
    (claim,) = (node for node in plan if node.get("Index Name") == "creche_jobs_ready")
    assert claim["Actual Rows"] * claim["Actual Loops"] == 10
    assert not any(node.get("Rows Removed by Filter") for node in plan)


def test_the_queues_of_a_reserve_are_all_that_is_looked_up(crowded: psycopg.Connection[tuple[Any, ...]]) -> None:
    parameters = {**RESERVE, "queues": ["q1", "other 7", "q3"], "now": None}
    plan = explain(crowded, "reserve", parameters, "custom", ", ANALYZE")
    (settings,) = (node for node in plan if node.get("Index Name") == "creche_queues_pkey")
    assert 1 <= settings["Actual Rows"] * settings["Actual Loops"] <= 3
    (claim,) = (node for node in plan if node.get("Index Name") == "creche_jobs_ready")
    (due,) = (node for node in plan if node.get("Index Name") == "creche_jobs_due")
    assert (claim["Actual Loops"], due["Actual Loops"]) == (1, 2)  # the second queue is paused; the first was enough


def test_prune_passes_over_fresh_results_within_the_index(crowded: psycopg.Connection[tuple[Any, ...]]) -> None:
    plan = explain(crowded, "prune", {**UPKEEP, "now": None}, "custom", ", ANALYZE")
    scans = [node for node in plan if node.get("Index Name") == "creche_jobs_finished"]
    # The oldest of each queue, and those that go.
    assert sum("result_expires_at" in scan["Index Cond"] for scan in scans if "Index Cond" in scan) == 2
    assert not any(scan.get("Rows Removed by Filter") for scan in scans)


@pytest.mark.parametrize(
    ("case", "index"),
    [("prune", "creche_jobs_finished"), ("prune dead letters", "creche_dead_letters_buried")],
)
@pytest.mark.parametrize("seconds", [86_400.0, 300_000.0])
def test_what_a_queue_keeps_for_long_is_not_walked_over(
    crowded: psycopg.Connection[tuple[Any, ...]], case: str, index: str, seconds: float
) -> None:
    name, _, _ = HOT[case]
    parameters = {**UPKEEP, "completed": seconds, "failed": seconds, "now": None}
    plan = explain(crowded, name, parameters, "custom", ", ANALYZE, BUFFERS")
    read = sum(node["Actual Rows"] * node["Actual Loops"] for node in plan if node.get("Index Name") == index)
    queues = 6  # of which it finds the names
    assert read <= UPKEEP["limit"] + queues
    assert not any(node.get("Rows Removed by Filter") for node in plan if node.get("Index Name") == index)
    if seconds > ROWS:  # nothing is to be pruned, and nothing is read but a few pages of each queue
        assert plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"] < 20 * queues


@pytest.mark.parametrize("mode", ["custom", "generic"])
def test_the_jobs_of_workers_are_those_that_run(crowded: psycopg.Connection[tuple[Any, ...]], mode: str) -> None:
    plan = explain(crowded, "workers", {"now": None}, mode)
    assert tables_scanned(plan) == []
    assert "creche_jobs_held" in {node.get("Index Name") for node in plan}


@pytest.mark.parametrize("name", ["reserve", "prune", "prune_dead_letters"])
def test_what_operators_have_set_is_read_without_a_lock(
    crowded: psycopg.Connection[tuple[Any, ...]], name: str
) -> None:
    parameters = {**RESERVE, **UPKEEP, "queues": ["q1"], "now": None}
    locking = [node for node in explain(crowded, name, parameters, "custom") if node["Node Type"] == "LockRows"]
    assert len(locking) == 1
    assert not [node for node in nodes(locking[0]) if node.get("Relation Name") == "creche_queues"]


@pytest.fixture
def empty(postgresql_dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A schema without jobs: what an index can be asked does not depend on how many there are."""
    with psycopg.connect(postgresql_dsn, autocommit=True) as connection:
        for migration in load("postgresql").migrations:
            connection.execute(migration.sql.encode())
        connection.execute("SET enable_seqscan = off")
        yield connection


@pytest.mark.parametrize("mode", ["custom", "generic"])
@pytest.mark.parametrize(
    ("case", "index", "bound"),
    [
        ("promote", "creche_jobs_due", "available_at <="),
        ("prune", "creche_jobs_finished", "completed_at <="),
        ("prune dead letters", "creche_dead_letters_buried", "buried_at <="),
        ("prune watches", "creche_watches_since", "since <="),
        ("glance", "creche_jobs_finished", "completed_at <="),
        ("glance", "creche_dead_letters_buried", "buried_at <="),
    ],
)
def test_an_index_is_asked_for_what_is_due_by_the_clock_and_not_walked_over(
    empty: psycopg.Connection[tuple[Any, ...]], case: str, index: str, bound: str, mode: str
) -> None:
    name, parameters, _ = HOT[case]
    plan = explain(empty, name, {**parameters, "now": None}, mode)
    conditions = [node.get("Index Cond", "") for node in plan if node.get("Index Name") == index]
    assert any(bound in condition for condition in conditions)
    assert not any(bound in node.get("Filter", "") for node in plan)


def test_a_renewal_writes_no_index(crowded: psycopg.Connection[tuple[Any, ...]]) -> None:
    indexed = {
        column
        for (definition,) in crowded.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'creche_jobs'")
        for column in ("locked_until", "updated_at", "locked_by")
        if column in definition
    }
    assert indexed == set()


@pytest.mark.parametrize(
    ("index", "case"),
    [
        ("creche_jobs_ready", "reserve"),
        ("creche_jobs_due", "promote"),
        ("creche_jobs_held", "recover"),
        ("creche_jobs_finished", "prune"),
        ("creche_jobs_flight", "find standing"),
        ("creche_jobs_key", "find standing"),
        ("creche_dead_letters_buried", "prune dead letters"),
        ("creche_watches_since", "prune watches"),
        ("creche_queues_pkey", "reserve"),
        ("creche_queues_pkey", "prune"),
    ],
)
def test_these_tests_would_notice_that_an_index_is_gone(
    crowded: psycopg.Connection[tuple[Any, ...]], index: str, case: str
) -> None:
    name, parameters, indexes = HOT[case]
    assert index in indexes
    with crowded.transaction(force_rollback=True):
        if index.endswith("_pkey"):
            table = sql.Identifier(index.removesuffix("_pkey"))
            crowded.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(table, sql.Identifier(index)))
        else:
            crowded.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
        plan = explain(crowded, name, {**parameters, "now": None}, "custom")
    assert tables_scanned(plan) or not indexes <= {node.get("Index Name") for node in plan}
