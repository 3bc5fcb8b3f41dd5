"""The bare statements, run by pgbench: what any queue on this server could reach at most. No promise is kept by it.

One table, with what a queue's row needs and the one index that it can't do without; each job is claimed by an
UPDATE over SELECT … FOR UPDATE SKIP LOCKED, its payload goes to the client, and a second statement deletes it or marks
it done.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread
from attrs import frozen

from benchmarks.rivals._environment import Missing
from creche.bench import ChildFailed, Meter

SCHEMA: Final = """
CREATE TABLE bare_jobs (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue_name   text        NOT NULL DEFAULT 'bench',
    payload      text        NOT NULL,
    status       smallint    NOT NULL DEFAULT 0,
    attempts     integer     NOT NULL DEFAULT 0,
    available_at timestamptz NOT NULL DEFAULT now(),
    locked_until timestamptz,
    completed_at timestamptz
);
CREATE INDEX bare_jobs_ready ON bare_jobs (queue_name, available_at, id) WHERE status = 0;
"""

CLAIM: Final = """
WITH taken AS (
    SELECT id FROM bare_jobs WHERE queue_name = 'bench' AND status = 0 AND available_at <= now()
    ORDER BY available_at, id LIMIT {batch} FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE bare_jobs SET status = 1, attempts = attempts + 1, locked_until = now() + interval '30 s'
    FROM taken WHERE bare_jobs.id = taken.id RETURNING bare_jobs.id, payload
) SELECT coalesce(array_agg(id), '{{}}') AS ids, coalesce(array_agg(payload), '{{}}') AS payloads FROM claimed \\gset
"""
DELETE: Final = "DELETE FROM bare_jobs WHERE id = ANY(:ids);\n"
UPDATE: Final = "UPDATE bare_jobs SET status = 2, locked_until = NULL, completed_at = now() WHERE id = ANY(:ids);\n"
ROWS: Final = 1_000


@frozen(kw_only=True)
class Bare:
    """One way to run the bare statements.

    Attributes:
        batch: rows per statement.
        clients: at the same time.
        keep: whether what is done is marked; else it is deleted.
    """

    batch: int = 100
    clients: int = 1
    keep: bool = False

    @property
    def name(self) -> str:
        """What it is, for a table."""
        return f"pgbench, {self.batch} a time, {'updated' if self.keep else 'deleted'}, {self.clients} clients"


def pgbench() -> str | Missing:
    """Return where pgbench is."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/pgbench"), *Path("/usr").glob("pgsql-*/bin/pgbench")]
    binary = shutil.which("pgbench") or (str(max(found)) if found else None)
    return binary or Missing("needs pgbench, which comes with PostgreSQL")


async def drain(
    bare: Bare, binary: str, dsn: str, watch: Meter, *, jobs: int, payload: int, patience: float
) -> Mapping[str, float | None]:
    """Claim and settle so many rows."""
    turns = max(1, jobs // (bare.batch * bare.clients))
    total = turns * bare.batch * bare.clients
    await _prepare(dsn, total, payload)
    await watch.tidy()
    script = CLAIM.format(batch=bare.batch).replace("\n", " ").replace("\\gset ", "\\gset\n")
    script = script.strip() + "\n" + (UPDATE if bare.keep else DELETE)
    return await _run(binary, dsn, script, watch, clients=bare.clients, turns=turns, jobs=total, patience=patience)


async def insert(
    binary: str,
    dsn: str,
    watch: Meter,
    *,
    jobs: int,
    payload: int,
    patience: float,
    rows: int = ROWS,
    clients: int = 1,
) -> Mapping[str, float | None]:
    """Insert so many rows, several per statement."""
    await _prepare(dsn, 0, payload)
    text = "x" * max(0, payload - len('{"text":""}'))
    values = ",".join([f'(\'{{"text":"{text}"}}\')'] * rows)
    turns = max(1, jobs // (rows * clients))
    script = f"INSERT INTO bare_jobs (payload) VALUES {values};\n"  # noqa: S608 - no value of anybody's
    total = turns * rows * clients
    return await _run(binary, dsn, script, watch, clients=clients, turns=turns, jobs=total, patience=patience)


async def _prepare(dsn: str, rows: int, payload: int) -> None:
    def prepare() -> None:
        import psycopg

        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            connection.execute(
                "INSERT INTO bare_jobs (payload)"
                """ SELECT '{"text":"' || repeat('x', %s) || '"}' FROM generate_series(1, %s)""",
                (max(0, payload - len('{"text":""}')), rows),
            )

    await to_thread.run_sync(prepare)


async def _run(
    binary: str, dsn: str, script: str, watch: Meter, *, clients: int, turns: int, jobs: int, patience: float
) -> Mapping[str, float | None]:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [binary, "--no-vacuum", "--protocol=prepared", f"--client={clients}", f"--transactions={turns}"]
        command += [f"--jobs={min(clients, os.cpu_count() or 1)}", f"--file={file.name}", dsn]
        before = await watch.read()
        try:
            with anyio.fail_after(patience):
                done = await anyio.run_process(command, check=False)
        except TimeoutError:
            raise ChildFailed("pgbench", f"did not end in {patience:g} s", "") from None
        after = await watch.read()
    told = done.stdout.decode(errors="replace")
    found = re.search(r"tps = ([\d.]+) \(without initial", told)
    if done.returncode or found is None or re.search(r"failed transactions: [1-9]", told):
        raise ChildFailed("pgbench", "failed", told + done.stderr.decode(errors="replace")[-2_000:])
    server = after.since(before, own=watch.own)
    return {
        "jobs/s": float(found[1]) * jobs / (turns * clients),
        "server µs/job": None if server.cpu is None else server.cpu / jobs * 1e6,
        "statements/job": None if server.statements is None else server.statements / jobs,
        "transactions/job": None if server.transactions is None else server.transactions / jobs,
        "WAL bytes/job": None if server.log is None else server.log / jobs,
    }
