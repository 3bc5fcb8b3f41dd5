"""What each database keeps of jobs, read behind its storage's back: by SQL, over a connection of another driver's (but
for SQLite's, which has one). In one query, for the state machine asks after each step.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from attrs import fields, frozen

from creche._job import AttemptError, DeadLetter, Failure, FollowUp, JobRecord, On, Origin, Progress, Status
from creche.abc import Storage
from creche.storage.mysql import MySQLStorage
from creche.storage.postgresql import PostgreSQLStorage
from creche.storage.sqlite import SQLiteStorage
from creche.testing import StoredJob, StoredRows
from creche.testing.servers import connect_mysql
from databases import empty_database, empty_schema, in_schema

PATIENCE: Final = 60.0
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TABLES: Final = ("creche_jobs", "creche_dead_letters", "creche_queues", "creche_workers")

JOBS: Final = (
    *(each.name for each in fields(JobRecord) if each.name != "last_error"),
    *("progress_message", "token", "nonce", "single_flight", "errors", "callbacks"),
)
LETTERS: Final = tuple(each.name for each in fields(DeadLetter))


@frozen(kw_only=True, eq=False)
class Engine:
    """What is particular about a database.

    Attributes:
        database: the name of the fixture that tells where databases are, and how to get an empty one there.
        storage: the storage on one.
        connect: a second way to it.
        columns: how one is written down as JSON, where that takes more than its name.
        array: how a JSON array is made of them.
        id, moment, octets, text: what is written there, as a value; `text` of a column whose bytes count.
        also: tables that it has besides.
    """

    database: tuple[str, Callable[[Any], AbstractContextManager[str]]]
    storage: Callable[[str], Storage]
    connect: Callable[[str], Any]
    columns: dict[str, str]
    array: str
    id: Callable[[Any], UUID] = UUID
    moment: Callable[[Any], datetime]
    octets: Callable[[Any], bytes] = bytes.fromhex
    text: Callable[[Any], str] = str
    also: tuple[str, ...] = ("creche_watches",)

    @property
    def query(self) -> str:
        """All that is kept of jobs, a row as a JSON array: of 27 for a job, and 10 for a dead letter."""
        jobs, letters = (", ".join(self.columns.get(name, name) for name in names) for names in (JOBS, LETTERS))
        return (
            f"SELECT {self.array.format(jobs)} FROM creche_jobs UNION ALL "
            f"SELECT {self.array.format(letters)} FROM creche_dead_letters"
        )

    def rows(self, raw: Any) -> StoredRows:
        """Return what is kept."""
        jobs: dict[UUID, StoredJob] = {}
        letters: dict[UUID, DeadLetter] = {}
        for (line,) in ask(raw, self.query):
            kept = _parsed(self, line)
            if isinstance(kept, StoredJob):
                jobs[kept.record.id] = kept
            else:
                letters[kept.job_id] = kept
        return StoredRows(jobs=jobs, letters=letters)

    def empty(self, raw: Any) -> None:
        """Leave nothing but the schema."""
        for table in (*TABLES, *self.also):
            ask(raw, f"DELETE FROM {table}")


def ask(raw: Any, statement: str) -> list[Any]:
    """Run a statement on a connection of any driver; return its rows."""
    with closing(raw.cursor()) as cursor:
        cursor.execute(statement)
        return [*cursor.fetchall()] if cursor.description else []


@contextmanager
def empty_schema_of(dsn: str) -> Iterator[str]:
    """Make an empty schema and yield a DSN of it."""
    with empty_schema(dsn) as schema:
        yield in_schema(dsn, schema)


# In hexadecimal what is bytes, or must be the same to the byte.
MYSQL: Final = partial(
    Engine,
    storage=partial(MySQLStorage, push=False, call_timeout=PATIENCE),
    connect=connect_mysql,
    columns={
        **{name: f"HEX({name})" for name in ("id", "job_id", "queue_name", "type", "payload", "locked_by", "result")},
        **{name: f"HEX({name})" for name in ("idempotency_key", "fingerprint", "progress_message", "origin")},
        **{name: f"HEX({name})" for name in ("errors", "callbacks")},
        "status": "CONCAT(status)",
    },
    array="JSON_ARRAY({})",
    moment=lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
    text=lambda text: bytes.fromhex(text).decode(),
)
ENGINES: Final = {
    "sqlite": Engine(
        database=("tmp_path_factory", lambda factory: nullcontext(f"{factory.mktemp('machine')}/jobs.db")),
        storage=partial(SQLiteStorage, synchronous="NORMAL", busy_timeout=PATIENCE),
        connect=lambda path: sqlite3.connect(path, isolation_level=None),
        columns={"progress": "iif(progress IS NULL, NULL, printf('%!.17g', progress))"},  # json_array has 15 digits
        array="json_array({})",
        moment=lambda microseconds: EPOCH + timedelta(microseconds=microseconds),
        also=(),
    ),
    "postgresql": Engine(
        database=("postgresql_database", empty_schema_of),
        storage=partial(PostgreSQLStorage, call_timeout=PATIENCE),
        connect=lambda dsn: psycopg.connect(dsn, autocommit=True),
        columns={
            **{name: f"{name}::text" for name in ("payload", "result", "origin", "errors", "callbacks")},
            "fingerprint": "encode(fingerprint, 'hex')",
        },
        array="json_build_array({})::text",
        moment=datetime.fromisoformat,
    ),
    "mariadb": MYSQL(database=("mariadb_server", empty_database)),
    "mysql": MYSQL(database=("mysql_server", empty_database)),
}


@lru_cache(maxsize=10_000)
def _parsed(engine: Engine, line: str) -> StoredJob | DeadLetter:
    """Return the value of a row; most rows are as they were when they were looked at last."""
    values = msgspec.json.decode(line)
    if len(values) == len(LETTERS):
        return _letter(engine, dict(zip(LETTERS, values, strict=True)))
    return _job(engine, dict(zip(JOBS, values, strict=True)))


def _job(engine: Engine, row: dict[str, Any]) -> StoredJob:
    text, moment = _unless_null(engine.text), _unless_null(engine.moment)
    errors = tuple(_errors(text(row["errors"])))
    callbacks = text(row["callbacks"])
    fraction = None if row["progress"] is None else float(row["progress"])
    message = text(row["progress_message"]) or ""
    record = JobRecord(
        id=engine.id(row["id"]),
        queue_name=text(row["queue_name"]),
        type=text(row["type"]),
        payload=text(row["payload"]).encode(),
        status=Status(row["status"]),
        priority=row["priority"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        available_at=moment(row["available_at"]),
        locked_until=moment(row["locked_until"]),
        locked_by=text(row["locked_by"]),
        last_error=errors[-1].error if errors else None,
        idempotency_key=text(row["idempotency_key"]),
        fingerprint=_unless_null(engine.octets)(row["fingerprint"]),
        cancel_requested=bool(row["cancel_requested"]),
        created_at=moment(row["created_at"]),
        updated_at=moment(row["updated_at"]),
        completed_at=moment(row["completed_at"]),
        result=None if row["result"] is None else text(row["result"]).encode(),
        result_expires_at=moment(row["result_expires_at"]),
        progress=None if fraction is None else Progress(fraction=fraction, message=message),
        origin=_unless_null(_origin)(text(row["origin"])),
    )
    return StoredJob(
        record=record,
        token=row["token"],
        nonce=row["nonce"],
        single_flight=bool(row["single_flight"]),
        errors=errors,
        callbacks=() if callbacks is None else _callbacks(msgspec.json.decode(callbacks)),
    )


def _letter(engine: Engine, row: dict[str, Any]) -> DeadLetter:
    return DeadLetter(
        job_id=engine.id(row["job_id"]),
        queue_name=engine.text(row["queue_name"]),
        type=engine.text(row["type"]),
        payload=engine.text(row["payload"]).encode(),
        priority=row["priority"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        created_at=engine.moment(row["created_at"]),
        buried_at=engine.moment(row["buried_at"]),
        errors=tuple(_errors(engine.text(row["errors"]))),
    )


def _errors(text: str) -> Iterator[AttemptError]:
    for each in msgspec.json.decode(text):
        failed_at = datetime.fromisoformat(each.pop("failed_at"))
        yield AttemptError(attempt=each.pop("attempt"), failed_at=failed_at, error=Failure(**each))


def _origin(text: str) -> Origin:
    fields = msgspec.json.decode(text)
    error = fields.pop("error", None)
    return Origin(
        job_id=UUID(fields.pop("id")),
        status=Status(fields.pop("status")),
        error=None if error is None else Failure(**error),
        **fields,
    )


def _callbacks(document: dict[str, list[dict[str, Any]]]) -> tuple[FollowUp, ...]:
    """Return the column `callbacks`: lists by the end that calls for them."""
    return tuple(
        FollowUp(**{**each, "id": UUID(each["id"]), "on": On(on), "then": _callbacks(each.get("then", {}))})
        for on, callbacks in document.items()
        for each in callbacks
    )


def _unless_null(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)
