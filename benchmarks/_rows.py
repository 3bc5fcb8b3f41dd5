"""Rows by the million, written by one statement of plain SQL, as no queue would: for tables that are large already.

It knows creche's tables, and has to be told when they change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Final, Literal
from urllib.parse import urlsplit

from creche.testing.servers import connect_mysql

Status = Literal["pending", "scheduled", "completed"]

# Ids are of version 7, older than any of today, and in order.
POSTGRESQL: Final = """
INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at,
    created_at, updated_at, completed_at)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, {queue}, 'bench.noop', '{payload}', '{status}',
    {priority}, {done}, 3, {available}, now() - interval '2 h', now() - interval '1 h', {completed}
FROM generate_series({first}, {last}) AS n
"""
SQLITE: Final = """
WITH RECURSIVE numbers (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})
INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at,
    created_at, updated_at, completed_at)
SELECT '01900000-0000-7000-8000-' || printf('%012x', n), {queue}, 'bench.noop', '{payload}', '{status}',
    {priority}, {done}, 3, {available}, {now} - 7200000000, {now} - 3600000000, {completed}
FROM numbers
"""
MYSQL: Final = """
INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at,
    created_at, updated_at, completed_at, errors)
SELECT UNHEX(CONCAT('01900000000070008000', LPAD(HEX(n), 12, '0'))), {queue}, 'bench.noop', '{payload}', '{status}',
    {priority}, {done}, 3, {available}, {now} - INTERVAL 2 HOUR, {now} - INTERVAL 1 HOUR, {completed}, '[]'
FROM (WITH RECURSIVE digits (d) AS (SELECT 0 UNION ALL SELECT d + 1 FROM digits WHERE d < 9)
    SELECT {first} + a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 100000 * g.d AS n
    FROM digits a, digits b, digits c, digits e, digits f, digits g) AS numbers
WHERE n <= {last} ORDER BY n
"""
AT_ONCE: Final = 1_000_000  # rows that MySQL's statement can number


def write(
    dsn: str, count: int, *, first: int = 1, status: Status = "pending", queue: str = "bench", queues: int = 1
) -> None:
    """Write rows of jobs that do nothing, due since an hour; scheduled ones are due in a year, and of high priority.

    Args:
        dsn: an empty database, migrated.
        count: how many.
        first: the number of the first; ids are made of numbers.
        status: of all.
        queue: where they are.
        queues: over so many queues, called `queue` and a number, one after the other; 1: that queue itself.
    """
    engine = urlsplit(dsn).scheme
    name = f"'{queue}'"
    priority = 100 if status == "scheduled" else 0
    done = 1 if status == "completed" else 0
    for start in range(first, first + count, AT_ONCE):
        last = min(start + AT_ONCE, first + count) - 1
        common = {"first": start, "last": last, "payload": '{"text":""}', "status": status, "priority": priority}
        match engine:
            case "postgresql" | "postgres":
                import psycopg

                many = f"'{queue}' || (n % {queues})"
                times = {
                    "available": "now() + interval '1 year'" if status == "scheduled" else "now() - interval '1 h'",
                    "completed": "now() - interval '1 h'" if done else "NULL::timestamptz",
                }
                text = POSTGRESQL.format(queue=many if queues > 1 else name, done=done, **common, **times)
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute(text.encode())
            case "sqlite":
                now = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
                if sqlite3.sqlite_version_info < (3, 42):
                    now = "unixepoch() * 1000000"
                many = f"'{queue}' || (n % {queues})"
                times = {
                    "now": now,
                    "available": f"{now} + 31536000000000" if status == "scheduled" else f"{now} - 3600000000",
                    "completed": f"{now} - 3600000000" if done else "NULL",
                }
                text = SQLITE.format(queue=many if queues > 1 else name, done=done, **common, **times)
                with closing(sqlite3.connect(dsn.removeprefix("sqlite:///"))) as file, file:
                    file.execute(text)
            case _:
                now = "UTC_TIMESTAMP(6)"
                many = f"CONCAT('{queue}', n MOD {queues})"
                times = {
                    "now": now,
                    "available": f"{now} + INTERVAL 1 YEAR" if status == "scheduled" else f"{now} - INTERVAL 1 HOUR",
                    "completed": f"{now} - INTERVAL 1 HOUR" if done else "NULL",
                }
                text = MYSQL.format(queue=many if queues > 1 else name, done=done, **common, **times)
                with connect_mysql(dsn) as session, session.cursor() as cursor:
                    cursor.execute(text)


@contextmanager
def old_snapshot(dsn: str) -> Generator[None]:
    """Hold a transaction open that sees the jobs as they are now, for the length of the block."""
    match urlsplit(dsn).scheme:
        case "postgresql" | "postgres":
            import psycopg

            with psycopg.connect(dsn) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.execute("SELECT count(*) FROM creche_jobs")
                yield
                connection.rollback()
        case "sqlite":
            with closing(sqlite3.connect(dsn.removeprefix("sqlite:///"), isolation_level=None)) as file:
                file.execute("BEGIN")
                file.execute("SELECT count(*) FROM creche_jobs").fetchall()
                yield
                file.execute("ROLLBACK")
        case _:
            with connect_mysql(dsn, autocommit=False) as session, session.cursor() as cursor:
                cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
                cursor.execute("SELECT count(*) FROM creche_jobs")
                cursor.fetchall()
                yield
                session.rollback()
