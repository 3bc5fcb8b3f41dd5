"""What MySQL and MariaDB do for each hot statement with 600,000 rows behind it: what they plan, read and lock."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

import anyio
import pytest
from attrs import field, frozen
from pymysql.connections import Connection
from pymysql.cursors import Cursor, DictCursor

from creche._job import ERRORS_KEPT, Event, Failure, Lease, NewJob, Settlement
from creche.storage import _mysql_rows as rows
from creche.storage._asyncmy import SQL_MODE
from creche.storage._mysql_calls import bare
from creche.storage._mysql_dispatch import LOCKED, UNLOCKED
from creche.storage._mysql_literals import Expression, among, clock, render
from creche.storage._sql import load
from creche.storage.mysql import MySQLStorage
from creche.testing.servers import ForeignServer, MariaDBServer, MySQLServer, connect_mysql
from databases import empty_database

Server: TypeAlias = "MariaDBServer | MySQLServer | ForeignServer"
Raw: TypeAlias = "Connection[Cursor]"

SQL: Final = {name: bare(text) for name, text in load("mysql").statements.items()}
NOW: Final = datetime.now(UTC)
ROWS: Final = 200_000
DAY: Final = 86_400 * 1_000_000

# --- 600,000 rows -----------------------------------------------------------------------------------

PENDING, SCHEDULED, COMPLETED, PROCESSING = "pending", "scheduled", "completed", "processing"
PLACES: Final = {PENDING: 1, SCHEDULED: 2, COMPLETED: 3, PROCESSING: 4}

# Of each status the n-th: as old as n seconds, or due in as many, but for a hundred that are overdue.
FILL: Final = """
INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at,
                         locked_until, token, nonce, idempotency_key, fingerprint, single_flight, result_expires_at,
                         errors, created_at, updated_at, completed_at)
SELECT UNHEX(CONCAT('0', %(place)s, LPAD(HEX(n), 30, '0'))), CONCAT('q', n MOD 4), CONCAT('t', n MOD 3), '{}',
       %(status)s, n MOD 7 - 3, 1, 1 + n MOD 2,
       IF(%(status)s = 'scheduled', %(now)s + INTERVAL (n - 100) SECOND, %(now)s - INTERVAL n SECOND),
       IF(%(status)s = 'processing', %(now)s + INTERVAL (50 - n) SECOND, NULL), 1, 1,
       IF(n MOD 10 = 0, CONCAT(%(status)s, n), NULL),
       IF(n MOD 10 = 1, UNHEX(SHA2(CONCAT(%(status)s, n), 256)), NULL), n MOD 10 = 1,
       IF(n MOD 10 = 1 AND %(status)s = 'completed', %(now)s + INTERVAL 30 DAY, NULL),
       '[]', %(now)s, %(now)s, IF(%(status)s = 'completed', %(now)s - INTERVAL n SECOND, NULL)
  FROM (
           SELECT 1 + a.n + 1000 * b.n AS n FROM numbers AS a CROSS JOIN numbers AS b WHERE b.n <= %(rows)s DIV 1000
       ) AS counted
 WHERE n <= %(rows)s
"""
NUMBERS: Final = f"""
CREATE TABLE numbers AS
WITH digits (n) AS ({" UNION ALL ".join(f"SELECT {n}" for n in range(10))})
SELECT a.n + 10 * b.n + 100 * c.n AS n FROM digits AS a CROSS JOIN digits AS b CROSS JOIN digits AS c
"""
DEAD: Final = """
INSERT INTO creche_dead_letters
SELECT UNHEX(LPAD(HEX(n), 32, '0')), CONCAT('q', n MOD 4), 't', '{}', 0, 3, 3, %(now)s, %(now)s - INTERVAL n HOUR, '[]'
  FROM numbers
"""


# One queue keeps what is done for a year; of the workers, a thousand are gone.
QUEUES: Final = f"""
INSERT INTO creche_queues (queue_name, paused_at, keep_completed, keep_failed, keep_cancelled)
VALUES ('q0', NULL, {365 * DAY}, {365 * DAY}, {365 * DAY}), ('p', TIMESTAMP'2026-01-01 00:00:00', NULL, NULL, NULL)
"""
WORKERS: Final = """
INSERT INTO creche_workers
SELECT CONCAT('w', n), '{}', %(now)s, %(now)s, %(now)s - INTERVAL n SECOND FROM numbers
"""
WATCHES: Final = "INSERT INTO creche_watches SELECT id, 'w', available_at FROM creche_jobs WHERE status = 'pending'"
CALLBACKS: Final = f"""
UPDATE creche_jobs
   SET callbacks = '{{"success":[{{"id":"00000000-0000-0000-0000-000000000001","type":"t","queue_name":"q","priority":0,
                    "max_attempts":1,"head":"{{}}"}}]}}'
 WHERE id < UNHEX('0{3}{"0" * 26}0010')
   AND id > UNHEX('0{3}{"0" * 30}')
"""


def job_id(status: str, number: int) -> UUID:
    return UUID(hex=f"0{PLACES[status]}{number:030x}")


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@contextmanager
def session(dsn: str) -> Generator[Raw]:
    """A session as the storage's are."""
    with closing(connect_mysql(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(f"SET sql_mode = '{SQL_MODE}', collation_connection = 'utf8mb4_bin', time_zone = '+00:00'")
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("SET innodb_lock_wait_timeout = 2")
        yield connection


def fill(cursor: Cursor, each: int) -> None:
    """Write so many jobs of each status, and a hundred that run. Indexes come last: that takes a third of the time."""
    cursor.execute("SHOW CREATE TABLE creche_jobs")
    ((_, table),) = cursor.fetchall()
    keys = re.findall(r"^ +((?:UNIQUE )?KEY `(\w+)` .*?),?$", table, re.MULTILINE)
    cursor.execute(f"ALTER TABLE creche_jobs {', '.join(f'DROP KEY {name}' for _, name in keys)}")
    for status, place in PLACES.items():
        count = 100 if status == PROCESSING else each
        cursor.execute(render(FILL, {"status": status, "place": place, "rows": count, "now": clock(NOW)}))
    cursor.execute(f"ALTER TABLE creche_jobs {', '.join(f'ADD {key}' for key, _ in keys)}")


@pytest.fixture(scope="module")
def filled(server: Server) -> Iterator[Raw]:
    """A database with 200,000 jobs each that are pending, scheduled and completed, and a hundred that run."""
    with empty_database(server) as dsn, session(dsn) as connection, connection.cursor() as cursor:
        anyio.run(MySQLStorage(dsn).migrate)
        cursor.execute(NUMBERS)
        fill(cursor, ROWS)
        cursor.execute(render(DEAD, {"now": clock(NOW)}))
        cursor.execute(WATCHES)
        cursor.execute(QUEUES)
        cursor.execute(render(WORKERS, {"now": clock(NOW)}))
        cursor.execute(CALLBACKS)
        yield connection


@pytest.fixture(scope="module", params=["of an empty table", "true"])
def crowded(request: pytest.FixtureRequest, filled: Raw) -> Raw:
    """With statistics that are up to date, and with some that nobody has taken since there was nothing."""
    with filled.cursor() as cursor:
        if request.param == "true":
            cursor.execute(
                "ANALYZE TABLE creche_jobs, creche_dead_letters, creche_watches, creche_queues, creche_workers"
            )
        else:
            here = "WHERE database_name = DATABASE()"
            cursor.execute(f"UPDATE mysql.innodb_table_stats SET n_rows = 0, clustered_index_size = 1 {here}")
            cursor.execute(f"UPDATE mysql.innodb_index_stats SET stat_value = stat_name NOT LIKE 'n_diff%' {here}")
            cursor.execute("FLUSH TABLES")
    return filled


# --- the statements, with parameters as the storage sends them --------------------------------------

READY, DUE, HELD = "creche_jobs_ready", "creche_jobs_due", "creche_jobs_held"
FINISHED, FLIGHT, KEY = "creche_jobs_finished", "creche_jobs_flight", "creche_jobs_key"
BURIED, SINCE, GONE, BY_ID = "creche_dead_letters_buried", "creche_watches_since", "creche_workers_expires", "PRIMARY"

ALL: Final = among("type", None)
SOME: Final = among("type", ["t1", "t2"])
LEASES: Final = [Lease(job_id=job_id(PROCESSING, n), token=1, nonce=1) for n in range(1, 101)]
HELD_STILL: Final = rows.is_lease(
    Lease(job_id=lease.job_id, token=1 + (n > 70) + (n > 90), nonce=1) for n, lease in enumerate(LEASES)
)
SETTLEMENTS: Final = [
    Settlement(lease=lease, event=Event.FAIL, error=Failure(type="E", message="m"))
    if n % 2
    else Settlement(lease=lease, event=Event.SUCCEED, result=b"{}")
    for n, lease in enumerate(LEASES)
]
SETTLED: Final = {"settlements": rows.joined(rows.settlement_elements(SETTLEMENTS)), "kept": ERRORS_KEPT}
NEW: Final = [
    NewJob(id=UUID(int=1 << 127 | n), type="t", payload=b"{}", idempotency_key=f"k{n}", fingerprint=bytes([n] * 32))
    for n in range(20)
]
FINGERPRINTS: Final = [job.fingerprint for job in NEW]
IDS: Final = {status: [job_id(status, n) for n in range(10, 20)] for status in PLACES}
KEPT: Final = {"completed": DAY, "failed": DAY, "cancelled": DAY}
STALE: Final = {"status": "completed", "queue": "q1", "kept": DAY}
ASKED: Final = {"jobs": rows.joined(rows.asked_element(n, job) for n, job in enumerate(NEW)), "horizon": 30}


@frozen
class Hot:
    """A statement, its parameters, the indexes it can't do without, and how many rows it may read."""

    name: str
    parameters: dict[str, Any]
    indexes: set[str]
    most: int = field(kw_only=True)

    def text(self, now: datetime | None = NOW) -> str:
        """Return the statement as the storage would send it."""
        return render(SQL[self.name], {"run_out": clock(now), **self.parameters, "now": clock(now)})


def insert(tail: str = "") -> dict[str, Any]:
    return {"jobs": Expression(",\n".join(rows.job_row(job, clock(NOW)) for job in NEW) + tail)}


HOT: Final = {
    "insert": Hot("insert", insert(f"\n{SQL['unless_standing']}"), set(), most=0),
    "find standing": Hot(
        "find_standing",
        {**ASKED, "locked": UNLOCKED},
        {BY_ID, KEY, FLIGHT},
        most=300,
    ),
    "find standing, locked": Hot("find_standing", {**ASKED, "locked": LOCKED}, {BY_ID, KEY, FLIGHT}, most=300),
    "let go": Hot("let_go", {"ids": IDS[COMPLETED]}, {BY_ID}, most=20),
    "standing": Hot("standing", {"ids": IDS[COMPLETED]}, {BY_ID}, most=20),
    "attach": Hot("attach", {"id": job_id(PENDING, 7), "callbacks": '{"always":[]}'}, {BY_ID}, most=2),
    "followed": Hot("followed", {"ids": IDS[COMPLETED]}, {BY_ID}, most=40),
    "follow up": Hot("follow_up", {"ids": IDS[COMPLETED]}, {BY_ID}, most=70),
    "follow up what nothing follows": Hot("follow_up", {"ids": IDS[PENDING]}, {BY_ID}, most=20),
    "forget callbacks": Hot("forget_callbacks", {"ids": IDS[COMPLETED]}, {BY_ID}, most=20),
    "watch": Hot("watch", {"ids": IDS[COMPLETED]}, {BY_ID}, most=10),
    "register watches": Hot("register_watches", {"ids": IDS[PENDING], "watcher": "x", "fresh": DAY}, {BY_ID}, most=40),
    "forget watches": Hot("forget_watches", {"ids": IDS[PENDING], "watcher": "w"}, {BY_ID}, most=30),
    "prune watches": Hot("prune_watches", {"kept": DAY, "limit": 10}, {SINCE, BY_ID}, most=60),
    "expire results": Hot("expire_results", {"fingerprints": FINGERPRINTS}, {FLIGHT}, most=20),
    "ready": Hot("ready", {"queues": rows.document(["q1"]), "wanted": ALL}, {READY, DUE}, most=15),
    "ready, five queues": Hot(
        "ready", {"queues": rows.document(["x", "q1", "q2", "q3", "y"]), "wanted": ALL}, {READY, DUE}, most=50
    ),
    "ready, some types": Hot("ready", {"queues": rows.document(["q1", "q2"]), "wanted": SOME}, {READY, DUE}, most=30),
    "claim": Hot("claim", {"queue": "q1", "wanted": ALL, "limit": 10}, {READY}, most=11),
    "claim a thousand": Hot("claim", {"queue": "q1", "wanted": ALL, "limit": 1_000}, {READY}, most=1_001),
    "claim some types": Hot("claim", {"queue": "q1", "wanted": SOME, "limit": 10}, {READY}, most=11),
    "claim some types by their ids": Hot(
        "claim_of_types", {"queue": "q1", "wanted": SOME, "limit": 10, "seen": 60}, {READY, BY_ID}, most=150
    ),
    "reserve": Hot("reserve", {"ids": IDS[PENDING], "nonce": 1, "worker": "w", "lease": DAY}, {BY_ID}, most=20),
    "extend": Hot("extend", {"leases": rows.leases_document(LEASES), "seconds": DAY}, {BY_ID}, most=510),
    "held": Hot("held", {"held": HELD_STILL}, {BY_ID}, most=100),
    "settle": Hot("settle", {**SETTLED, "followed": False}, {BY_ID}, most=510),
    "settle what is followed": Hot("settle", {**SETTLED, "followed": True}, {BY_ID}, most=510),
    "complete": Hot("complete", {"held": HELD_STILL, "result": "null"}, {BY_ID}, most=100),
    "watched": Hot("watched", {"ids": IDS[COMPLETED]}, {BY_ID}, most=40),
    "lock held": Hot("lock_held", {"held": HELD_STILL}, {BY_ID}, most=100),
    "delete unkept": Hot("delete_unkept", {"held": HELD_STILL}, {BY_ID}, most=430),
    "settled": Hot("settled", {"horizon": 30, "held": HELD_STILL}, {BY_ID}, most=100),
    "write dead letters": Hot("write_dead_letters", {"buried": HELD_STILL}, {BY_ID}, most=100),
    "overdue": Hot("overdue", {"watched": DAY}, {HELD}, most=10),
    "stale": Hot("stale", STALE, {FINISHED}, most=5),
    "expired": Hot("expired", {"limit": 10}, {HELD}, most=20),
    "recover": Hot("recover", {"ids": IDS[PROCESSING], "kept": ERRORS_KEPT}, {BY_ID}, most=20),
    "spent": Hot("spent", {"limit": 10}, {HELD}, most=20),
    "bury": Hot("bury", {"ids": IDS[PROCESSING], "kept": ERRORS_KEPT}, {BY_ID}, most=20),
    "promote": Hot("promote", {"queue": "q1", "limit": 10}, {DUE, BY_ID}, most=75),
    "next expiry": Hot("next_expiry", {}, set(), most=2),
    "prune": Hot("prune", {**STALE, "limit": 10}, {FINISHED, BY_ID}, most=60),
    "prune dead letters": Hot(
        "prune_dead_letters", {"queue": "q1", "kept": DAY, "limit": 10}, {BURIED, BY_ID}, most=60
    ),
    "prune workers": Hot("prune_workers", {"limit": 10}, {GONE, BY_ID}, most=60),
    "pause": Hot("pause", {"paused": Expression(f"('q1', {clock(NOW)})")}, set(), most=5),
    "resume": Hot("resume", {"queues": ["p", "q1"]}, {BY_ID}, most=10),
    "forget queues": Hot("forget_queues", {"queues": ["p", "q1"]}, {BY_ID}, most=10),
    "keep": Hot("keep", {"queue": "q0", **KEPT}, set(), most=5),
    "keep as told": Hot("keep_as_told", {"queue": "q0"}, {BY_ID}, most=5),
    "announce": Hot("announce", {"name": "w7", "presence": "{}", "ttl": DAY}, set(), most=5),
    "withdraw": Hot("withdraw", {"name": "w7"}, {BY_ID}, most=5),
    "running": Hot("running", {}, {HELD}, most=105),
    "deletable": Hot("deletable", {"ids": IDS[COMPLETED]}, {BY_ID}, most=20),
    "delete": Hot("delete", {"ids": IDS[COMPLETED]}, {BY_ID}, most=40),
    "delete watches": Hot("delete_watches", {"ids": IDS[PENDING]}, {BY_ID}, most=40),
    "cancel": Hot("cancel", {"ids": IDS[PENDING]}, {BY_ID}, most=20),
    "statuses": Hot("statuses", {"ids": IDS[PENDING]}, {BY_ID}, most=10),
    "retriable": Hot("retriable", {"ids": IDS[SCHEDULED]}, {BY_ID}, most=10),
    "rivals": Hot("rivals", {"fingerprints": FINGERPRINTS}, {FLIGHT}, most=20),
    "retry": Hot("retry", {"ids": IDS[SCHEDULED]}, {BY_ID}, most=20),
    "delete dead letters": Hot("delete_dead_letters", {"ids": IDS[SCHEDULED]}, {BY_ID}, most=20),
    "find": Hot("find", {"ids": IDS[PENDING]}, {BY_ID}, most=10),
    "list": Hot("list", {"before": job_id(COMPLETED, 100), "wanted": ALL, "limit": 50}, {BY_ID}, most=51),
    "list some": Hot(
        "list",
        {"before": job_id(COMPLETED, 9), "wanted": among("queue_name", ["q1"]), "limit": 5},
        {BY_ID},
        most=51,
    ),
    "dead letters": Hot("dead_letters", {"before": UUID(int=500), "limit": 50}, {BY_ID}, most=51),
}


def explain(connection: Raw, statement: str) -> list[dict[str, Any]]:
    """Return the steps of a statement's plan."""
    with connection.cursor(DictCursor) as cursor:
        cursor.execute(f"EXPLAIN FORMAT=TRADITIONAL {statement}")
        return list(cursor.fetchall())


def reads(connection: Raw, statement: str) -> int:
    """Run a statement, undo it, and return how many rows it read."""

    def read() -> int:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(count) for _, count in cursor.fetchall())

    with connection.cursor() as cursor:
        looking = -read() + read()
        connection.begin()
        try:
            before = read()
            cursor.execute(statement)
            return read() - before - looking
        finally:
            connection.rollback()


# --- what they plan ---------------------------------------------------------------------------------


def faults(plan: list[dict[str, Any]], indexes: set[str]) -> list[str]:
    """Return what is wrong with a plan: an index that is not used, a table that is read from end to end, or sorted."""
    found = [f"{index} is not used" for index in sorted(indexes - {step["key"] for step in plan})]
    for step in plan:
        # The rows of a page and of a batch are few, and may be sorted.
        if step["key"] is None or step["select_type"] in {"INSERT", "UNION RESULT"}:
            continue
        extra = step["Extra"] or ""
        if step["type"] in {"ALL", "index"} or "Using filesort" in extra:
            found.append(f"{step['table']}: {step['type']} {step['key']}: {extra}")
    found += [f"{step['table']}: ALL" for step in plan if step["type"] == "ALL" and is_read(step)]
    return found


def is_read(step: dict[str, Any]) -> bool:
    """Whether a step reads a table of ours; MySQL shows what an INSERT writes as one that is."""
    return step["select_type"] != "INSERT" and step["table"] in {
        "creche_jobs", "creche_dead_letters", "creche_watches", "creche_queues", "creche_workers",
        "j", "d", "w", "q", "p", "k",
    }  # fmt: skip


@pytest.mark.parametrize("now", [None, NOW], ids=["now", "given"])
@pytest.mark.parametrize("case", HOT)
def test_a_hot_statement_goes_by_its_indexes(
    crowded: Raw, case: str, now: datetime | None, request: pytest.FixtureRequest
) -> None:
    if case == "prune watches" and {"mysql", "of an empty table"} <= {*request.node.callspec.params.values()}:
        pytest.skip("the index has all columns, so MySQL reads it as it stands, up to the limit: see the next test")
    hot = HOT[case]
    assert faults(explain(crowded, hot.text(now)), hot.indexes) == []


@pytest.mark.parametrize("case", HOT)
def test_a_hot_statement_reads_no_more_than_it_needs(crowded: Raw, case: str) -> None:
    hot = HOT[case]
    explain(crowded, hot.text())  # what the server reads once about a table is not counted
    assert reads(crowded, hot.text()) <= hot.most


def test_the_next_due_job_of_each_queue_is_found_by_a_hop(crowded: Raw, request: pytest.FixtureRequest) -> None:
    if {"mysql", "of an empty table"} <= {*request.node.callspec.params.values()}:
        pytest.skip("MySQL hops only where its statistics know of the rows, so they are kept up to date")
    statement = Hot("next_due", {}, {DUE}, most=10)
    (step,) = explain(crowded, statement.text())
    assert "Using index for group-by" in step["Extra"]
    assert reads(crowded, statement.text()) <= statement.most


@pytest.mark.parametrize(("name", "index"), [("finished", FINISHED), ("buried", BURIED)])
def test_what_one_queue_keeps_for_a_year_is_hopped_over(
    crowded: Raw, name: str, index: str, request: pytest.FixtureRequest
) -> None:
    if {"mysql", "of an empty table"} <= {*request.node.callspec.params.values()}:
        pytest.skip("MySQL hops only where its statistics know of the rows, so they are kept up to date")
    statement = Hot(name, KEPT, {index}, most=80)
    hops = [step for step in explain(crowded, statement.text()) if step["key"] == index]
    assert ["Using index for group-by" in step["Extra"] for step in hops] == [True]
    assert reads(crowded, statement.text()) <= statement.most
    with crowded.cursor() as cursor:
        cursor.execute(statement.text())
        assert {row[0] for row in cursor.fetchall()} == {b"q1", b"q2", b"q3"}


def test_upkeep_with_little_to_do_looks_at_little(crowded: Raw) -> None:
    last = (ROWS - 5) * 1_000_000
    little: dict[str, dict[str, Any]] = {
        "prune": {**STALE, "kept": last, "limit": 1_000},
        "prune_dead_letters": {"queue": "q1", "kept": 995 * 3_600 * 1_000_000, "limit": 1_000},
        "stale": {**STALE, "kept": last},
    }
    for name, few in little.items():
        statement = Hot(name, few, set(), most=0).text()
        explain(crowded, statement)
        assert reads(crowded, statement) <= 60


@pytest.mark.parametrize(
    ("index", "case"),
    [
        (READY, "claim"),
        (DUE, "promote"),
        (HELD, "expired"),
        (FINISHED, "prune"),
        (FLIGHT, "find standing"),
        (KEY, "find standing"),
        (BURIED, "prune dead letters"),
        (SINCE, "prune watches"),
        (GONE, "prune workers"),
    ],
)
def test_these_tests_would_notice_that_an_index_is_gone(server: Server, index: str, case: str) -> None:
    hot = HOT[case]
    assert index in hot.indexes
    with empty_database(server) as dsn, session(dsn) as connection, connection.cursor() as cursor:
        anyio.run(MySQLStorage(dsn).migrate)
        plan = explain(connection, hot.text())
        assert f"{index} is not used" not in faults(plan, hot.indexes)
        # FORCE INDEX must find one of this name; but it is of no use.
        others = {
            BURIED: ("dead_letters", "created_at"),
            SINCE: ("watches", "watcher"),
            GONE: ("workers", "seen_at"),
        }
        table, column = others.get(index, ("jobs", "updated_at"))
        cursor.execute(f"ALTER TABLE creche_{table} DROP INDEX {index}, ADD INDEX {index} ({column})")
        assert faults(explain(connection, hot.text()), hot.indexes)


# --- what they lock ---------------------------------------------------------------------------------

FEW: Final = 1_000


@pytest.fixture(scope="module")
def contested(server: Server) -> Iterator[tuple[Raw, Raw, Raw]]:
    """Three sessions at 1,000 jobs each that are pending, scheduled and completed; what they do is undone."""
    with empty_database(server) as dsn, session(dsn) as one, session(dsn) as other, session(dsn) as onlooker:
        anyio.run(MySQLStorage(dsn).migrate)
        with onlooker.cursor() as cursor:
            cursor.execute(NUMBERS)
            fill(cursor, FEW)
            cursor.execute(render(DEAD, {"now": clock(NOW)}))
        yield one, other, onlooker


@pytest.fixture
def rivals(contested: tuple[Raw, Raw, Raw]) -> Iterator[tuple[Raw, Raw, Raw]]:
    """Two of them in transactions."""
    for connection in contested[:2]:
        connection.begin()
    yield contested
    for connection in contested[:2]:
        connection.rollback()


def run(connection: Raw, name: str, **parameters: Any) -> list[bytes]:
    """Run a statement of the storage's; return the ids that it answers with."""
    with connection.cursor() as cursor:
        cursor.execute(Hot(name, parameters, set(), most=0).text())
        return [row[0] for row in cursor.fetchall()]


def claim(connection: Raw, queue: str = "q1", limit: int = 10, types: list[str] | None = None) -> list[bytes]:
    name = "claim_of_types" if types is not None and is_mariadb(connection) else "claim"
    return run(connection, name, queue=queue, limit=limit, seen=limit + FEW, wanted=among("type", types))


def tells(connection: Raw, question: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(question)
        ((answer,),) = cursor.fetchall()
        return answer


def is_mariadb(connection: Raw) -> bool:
    return "MariaDB" in tells(connection, "SELECT VERSION()")


def locks(onlooker: Raw, holder: Raw) -> int:
    """Return how many entries of indexes a transaction has locked; on MySQL, each for itself and without gaps."""
    session_id = tells(holder, "SELECT CONNECTION_ID()")
    if is_mariadb(holder):
        time.sleep(0.15)  # the table that tells of transactions is renewed ten times a second
        transaction = f"information_schema.innodb_trx WHERE trx_mysql_thread_id = {session_id}"
        return int(tells(onlooker, f"SELECT COALESCE(SUM(trx_rows_locked), 0) FROM {transaction}"))
    with onlooker.cursor() as cursor:
        cursor.execute(
            "SELECT lock_mode FROM performance_schema.data_locks JOIN performance_schema.threads USING (thread_id)"
            f" WHERE lock_type = 'RECORD' AND processlist_id = {session_id}"
        )
        modes = [mode for (mode,) in cursor.fetchall()]
    assert set(modes) <= {"X,REC_NOT_GAP"}
    return len(modes)


def test_a_claim_locks_what_it_takes_and_a_rival_takes_the_next(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, other, onlooker = rivals
    everything = claim(onlooker, limit=FEW)
    assert len(everything) == FEW // 4
    assert claim(one) == everything[:10]
    assert locks(onlooker, one) == 2 * 10, "a row, and its entry in the index"
    assert claim(other) == everything[10:20]
    assert claim(onlooker, limit=FEW) == everything[20:]


def test_a_claim_from_three_queues_locks_what_it_takes(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, _, onlooker = rivals
    for queue in ("q1", "q2", "q3"):
        claim(one, queue, limit=4)
    assert locks(onlooker, one) == 2 * 12


def test_a_claim_waits_for_nobody_who_pauses_its_queue_and_keeps_nobody_from_it(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, other, onlooker = rivals
    run(other, "pause", paused=Expression(f"('q1', {clock(NOW)})"))
    assert len(claim(one)) == len(claim(one, types=["t1"])) == 10, "it is not paused until that is committed"
    other.rollback()
    run(onlooker, "pause", paused=Expression(f"('q1', {clock(NOW)})"))
    run(onlooker, "resume", queues=["q1"])
    run(onlooker, "forget_queues", queues=["q1"])


@pytest.mark.parametrize("types", [None, ["t1"]])
def test_a_claim_from_a_queue_that_was_paused_just_now_takes_and_locks_nothing(
    rivals: tuple[Raw, Raw, Raw], types: list[str] | None
) -> None:
    one, other, onlooker = rivals
    run(onlooker, "pause", paused=Expression(f"('q3', {clock(NOW)})"))
    try:
        assert claim(one, "q3", types=types) == []
        assert len(claim(other, "q3", limit=FEW)) == 0
        assert locks(onlooker, one) == locks(onlooker, other) == 0
    finally:
        run(onlooker, "resume", queues=["q3"])
    assert len(claim(other, "q3", limit=FEW)) == FEW // 4, "so nothing is locked"


def test_a_claim_blocks_no_insert_wherever_the_new_job_stands(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, other, _ = rivals
    claim(one)
    with other.cursor() as cursor:
        for n, priority in enumerate((3, 2, 0, -3)):
            job = NewJob(id=UUID(int=n + 1), type="t1", payload=b"{}", queue_name="q1", priority=priority)
            for now in (NOW - timedelta(days=1), NOW):
                cursor.execute(render(SQL["insert"], {"jobs": Expression(rows.job_row(job, clock(now)))}))
                cursor.execute(f"DELETE FROM creche_jobs WHERE id = x'{job.id.hex}'")


def test_a_claim_of_some_types_keeps_no_job_of_another_type_from_its_rival(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, other, onlooker = rivals
    everything = claim(onlooker, types=["t2"], limit=FEW)
    assert len(claim(one, types=["t1"])) == 10
    assert locks(onlooker, one) <= 2 * 10
    assert sorted(claim(other, types=["t2"], limit=FEW)) == sorted(everything)


def test_a_rival_of_the_same_type_takes_the_next(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, other, onlooker = rivals
    everything = claim(onlooker, types=["t1"], limit=FEW)
    onlooker.rollback()
    assert sorted(claim(one, types=["t1"])) == sorted(everything[:10])
    assert sorted(claim(other, types=["t1"])) == sorted(everything[10:20])


@pytest.mark.parametrize("limit", [1, 10])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("spent", {}),
        ("expired", {}),
        ("promote", {"queue": "q0"}),
        ("prune", {"status": "completed", "queue": "q1", "kept": 60_000_000}),
        ("prune_dead_letters", {"queue": "q1", "kept": DAY}),
    ],
)
def test_upkeep_locks_no_more_than_its_limit(
    rivals: tuple[Raw, Raw, Raw], name: str, parameters: dict[str, Any], limit: int
) -> None:
    one, _, onlooker = rivals
    run(one, name, limit=limit, **parameters)
    # MariaDB unlocks nothing that it passed over: of the leases here every other is spent, of results one in ten fresh.
    passed_over = 2 if is_mariadb(one) else 1
    assert locks(onlooker, one) <= passed_over * 2 * limit + 2


def test_what_one_looks_after_its_rival_passes_over(rivals: tuple[Raw, Raw, Raw]) -> None:
    one, other, _ = rivals
    assert not {*run(one, "spent", limit=5)} & {*run(other, "spent", limit=5)}
    run(one, "promote", queue="q0", limit=5)
    with other.cursor() as cursor:
        assert cursor.execute(HOT["promote"].text()) == 10
