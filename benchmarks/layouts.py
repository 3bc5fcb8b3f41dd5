"""Which tables, and what a settle does to a row: `python -m benchmarks layouts`.

Bare statements over one connection, a batch at a time, and none of a queue's promises but the fence: what is measured
is the server. `update` and `delete` are the two ends of creche's own row; `split` has the ready jobs in a narrow table
of their own, from which a reserve deletes.
"""

# ruff: noqa: S608 - no value of anybody's is put into these statements

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import anyio
import click
from anyio import to_thread
from attrs import frozen

from benchmarks._grounds import Ground, grounds
from benchmarks._options import common, publish, say
from creche import Queue
from creche._ids import new_job_ids
from creche.bench import Meter, Report, gather, gathered, meter

Run = tuple[Mapping[str, str], Mapping[str, float | None]]
Execute = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

QUEUE: Final = "layouts"


@frozen(kw_only=True)
class Layout:
    """One way to keep jobs.

    Attributes:
        tables: besides creche's own.
        fill: makes a job of its own row in creche_jobs known to the layout; empty: nothing has to.
        reserve: takes the ids of up to %s jobs.
        begin: what is written of those ids, if `reserve` does not do it.
        settle: ends them.
    """

    tables: Sequence[str] = ()
    fill: str = ""
    reserve: str
    begin: str = ""
    settle: str


INSERT: Final = (
    "INSERT INTO creche_jobs (id, queue_name, type, payload, status, priority, max_attempts, available_at, created_at, "
    "updated_at) VALUES "
)
HELD: Final = "UPDATE creche_jobs SET status = 'processing', attempts = attempts + 1, token = token + 1, nonce = 7"

POSTGRESQL: Final = {
    "row": "(%s, 'layouts', 'noop', %s, 'pending', 0, 3, now(), now(), now())",
    "claim": "SELECT id FROM creche_jobs WHERE queue_name = 'layouts' AND status = 'pending' "
    "ORDER BY priority DESC, available_at, id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED",
    "lease": "locked_by = 'w', locked_until = clock_timestamp() + interval '30 seconds', updated_at = now()",
    "done": "UPDATE creche_jobs SET status = 'completed', locked_until = NULL, locked_by = NULL, updated_at = now(), "
    "completed_at = now() WHERE id = ANY (%s) AND token = 1 AND nonce = 7 AND status = 'processing'",
    "gone": "DELETE FROM creche_jobs WHERE id = ANY (%s) AND token = 1 AND nonce = 7 AND status = 'processing'",
}
MARIADB: Final = {
    "row": "(%s, 'layouts', 'noop', %s, 'pending', 0, 3, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), '[]')",
}


def postgresql() -> Mapping[str, Layout]:
    """Return the layouts in PostgreSQL's words."""
    words = POSTGRESQL
    reserve = (
        f"WITH c AS MATERIALIZED ({words['claim']}) {HELD}, {words['lease']} "
        "WHERE id = ANY (ARRAY (SELECT c.id FROM c)) RETURNING id"
    )
    split = Layout(
        tables=(
            (
                'CREATE TABLE ready (queue_name text COLLATE "C", priority smallint, available_at timestamptz, '
                "id uuid, PRIMARY KEY (queue_name, priority, available_at, id)) WITH (fillfactor = 90)"
            ),
            "DROP INDEX creche_jobs_ready",
        ),
        fill="INSERT INTO ready SELECT queue_name, -priority, available_at, id FROM creche_jobs",
        reserve="WITH c AS MATERIALIZED (SELECT id, ctid AS place FROM ready WHERE queue_name = 'layouts' "
        "ORDER BY priority, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED), gone AS (DELETE FROM ready "
        f"WHERE ctid = ANY (ARRAY (SELECT place FROM c))) {HELD}, {words['lease']} "
        "WHERE id = ANY (ARRAY (SELECT c.id FROM c)) RETURNING id",
        settle=words["done"],
    )
    return {
        "update": Layout(reserve=reserve, settle=words["done"]),
        "delete": Layout(reserve=reserve, settle=words["gone"]),
        "split, update": split,
        "split, delete": Layout(tables=split.tables, fill=split.fill, reserve=split.reserve, settle=words["gone"]),
    }


def mariadb() -> Mapping[str, Layout]:
    """Return the layouts in MariaDB's words, which knows no UPDATE that says what it wrote."""
    begin = f"{HELD}, locked_by = 'w', locked_until = UTC_TIMESTAMP(6) + INTERVAL 30 SECOND WHERE id IN %s"
    fence = "WHERE id IN %s AND token = 1 AND nonce = 7 AND status = 'processing'"
    done = (
        "UPDATE creche_jobs SET status = 'completed', locked_until = NULL, locked_by = NULL, "
        f"completed_at = UTC_TIMESTAMP(6) {fence}"
    )
    gone = f"DELETE FROM creche_jobs {fence}"
    claim = (
        "SELECT id FROM creche_jobs FORCE INDEX (creche_jobs_ready) WHERE ready_queue = 'layouts' "
        "ORDER BY ready_rank, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED"
    )
    split = Layout(
        tables=(
            (
                "CREATE TABLE ready (queue_name VARBINARY(128), priority SMALLINT, available_at DATETIME(6), "
                "id BINARY(16), PRIMARY KEY (queue_name, priority, available_at, id))"
            ),
            "ALTER TABLE creche_jobs DROP INDEX creche_jobs_ready",
        ),
        fill="INSERT INTO ready SELECT queue_name, -priority, available_at, id FROM creche_jobs",
        reserve="DELETE FROM ready WHERE queue_name = 'layouts' ORDER BY priority, available_at, id LIMIT %s "
        "RETURNING id",
        begin=begin,
        settle=done,
    )
    return {
        "update": Layout(reserve=claim, begin=begin, settle=done),
        "delete": Layout(reserve=claim, begin=begin, settle=gone),
        "split, update": split,
        "split, delete": Layout(tables=split.tables, fill=split.fill, reserve=split.reserve, begin=begin, settle=gone),
    }


class PostgreSQLSide:
    """Runs them through psycopg."""

    layouts = staticmethod(postgresql)

    def __init__(self, dsn: str) -> None:
        import psycopg

        self._connection = psycopg.connect(dsn, autocommit=True)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own."""
        cursor = self._connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def fill(self, jobs: int) -> None:
        """Write jobs."""
        row = POSTGRESQL["row"]
        for ids in _batches(jobs):
            values = [each for job_id in ids for each in (job_id, '{"number":1}')]
            self.execute(INSERT + ", ".join([row] * len(ids)), values)

    def drain(self, layout: Layout, batch: int) -> int:
        """Reserve and settle until nothing is left; return how many jobs there were."""
        done = 0
        while ids := [row[0] for row in self.execute(layout.reserve, [batch])]:
            self.execute(layout.settle, [ids])
            done += len(ids)
        return done

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class MariaDBSide:
    """Runs them through PyMySQL."""

    layouts = staticmethod(mariadb)

    def __init__(self, dsn: str) -> None:
        from creche.testing.servers import connect_mysql

        self._connection = connect_mysql(dsn)
        self.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, tuple(parameters) or None)
            return list(cursor.fetchall())

    def fill(self, jobs: int) -> None:
        """Write jobs."""
        row = MARIADB["row"]
        for ids in _batches(jobs):
            values = [each for job_id in ids for each in (job_id.bytes, '{"number":1}')]
            self.execute(INSERT.replace("updated_at", "updated_at, errors") + ", ".join([row] * len(ids)), values)
        self._connection.commit()

    def drain(self, layout: Layout, batch: int) -> int:
        """See `PostgreSQLSide.drain`."""
        done = 0
        while True:
            self.execute("START TRANSACTION")
            ids = [row[0] for row in self.execute(layout.reserve, [batch])]
            if ids:
                self.execute(layout.begin, [ids])
            self._connection.commit()
            if not ids:
                return done
            self.execute(layout.settle, [ids])
            self._connection.commit()
            done += len(ids)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _batches(jobs: int) -> Sequence[Sequence[Any]]:
    return [new_job_ids(min(1_000, jobs - begun)) for begun in range(0, jobs, 1_000)]


async def once(ground: Ground, name: str, jobs: int, batch: int, seen: dict[str, Meter]) -> Run:
    """Measure one layout on a database of its own."""
    with ground.database() as dsn:
        await Queue(dsn).migrate()
        side = (PostgreSQLSide if ground.name == "postgresql" else MariaDBSide)(dsn)
        layout = side.layouts()[name]
        async with meter(dsn) as watch:
            seen[ground.name] = watch
            for statement in layout.tables:
                await to_thread.run_sync(side.execute, statement)
            await to_thread.run_sync(side.fill, jobs)
            if layout.fill:
                await to_thread.run_sync(side.execute, layout.fill)
            await watch.tidy()
            before, began = await watch.read(), perf_counter()
            done = await to_thread.run_sync(side.drain, layout, batch)
            took, used = perf_counter() - began, (await watch.read()).since(before, own=watch.own)
        side.close()
    if done != jobs:
        raise RuntimeError(f"{name} on {ground.name}: {done} of {jobs} jobs were drained")
    figures = {
        "jobs/s": jobs / took,
        "server µs/job": None if used.cpu is None else used.cpu / jobs * 1e6,
        "log bytes/job": None if used.log is None else used.log / jobs,
    }
    return {"engine": ground.name, "layout": name, "batch": str(batch)}, figures


@click.command()
@common(("postgresql", "mariadb"), rounds=5)
@click.option("--jobs", default=20_000, show_default=True, help="In each run.")
@click.option("--batch", "batches", multiple=True, type=int, default=(100, 500), show_default=True)
def layouts(  # noqa: PLR0917 - click gives them by name
    dsns: Sequence[str],
    engines: Sequence[str],
    rounds: int,
    output: Path | None,
    compare: Path | None,
    jobs: int,
    batches: Sequence[int],
) -> None:
    """What a job costs the server, by the layout of its tables and by what a settle does."""
    runs: list[Run] = []
    seen: dict[str, Meter] = {}
    with grounds(dsns, engines) as places:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for place in places:
                for batch in batches:
                    runs += [anyio.run(partial(once, place, name, jobs, batch, seen)) for name in postgresql()]
    facts = gather(servers=[watch.version for watch in seen.values()], settings={"jobs": str(jobs)})
    publish([Report(title="layouts", facts=facts, rows=gathered(runs), main="jobs/s")], output=output, compare=compare)


if __name__ == "__main__":
    layouts()
