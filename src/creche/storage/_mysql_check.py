"""Looks at a MySQL or MariaDB with a doctor's eyes. It opens no storage, changes nothing and runs no job; what it can't
look at is a finding too.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeAlias

import anyio
from anyio import fail_after
from asyncmy.errors import MySQLError
from attrs import field, frozen

from creche._job import Finding, Severity
from creche.errors import ConfigurationError, StatementRejected, StorageError
from creche.storage import _mysql_indexes as indexes
from creche.storage._asyncmy import AsyncmyDriver, Connection, translated
from creche.storage._mysql_calls import BEGIN, Row, without_limit
from creche.storage._mysql_listener import lock_name, nap
from creche.storage._mysql_literals import Expression, literal, render
from creche.storage._mysql_schema import Schema, too_old, unfit_log

# Seconds that one look may take.
PATIENCE: Final = 5.0
# Seconds by which two clocks may differ, and for which a transaction may be open.
SKEW: Final = 1.0
LONG: Final = 600
# Changes that the server keeps for transactions that may still want to see what was before.
HISTORY: Final = 1_000_000
# Seconds that a sleeping connection has to be woken.
AWAKE: Final = 2.0

# What is refused, and says nothing, where nothing can be written.
WRITING: Final = frozenset({"skip locked", "privileges"})

DENIED: Final = frozenset({1044, 1142, 1143, 1227})
READ_ONLY: Final = frozenset({1290, 1792, 1836})

# What an account needs, by what is tried: to have a statement explained takes the privileges of that statement.
NEEDED: Final = {
    "SELECT": "EXPLAIN SELECT %(column)s FROM %(table)s WHERE FALSE",
    "INSERT": "EXPLAIN INSERT INTO %(table)s (%(column)s) VALUES ('0')",
    "UPDATE": "EXPLAIN UPDATE %(table)s SET %(column)s = %(column)s WHERE FALSE",
    "DELETE": "EXPLAIN DELETE FROM %(table)s WHERE FALSE",
}

LOCK: Final = "SELECT version FROM creche_migrations ORDER BY version LIMIT 1 FOR UPDATE"
RIVAL: Final = "SELECT version FROM creche_migrations WHERE version = %(version)s FOR UPDATE SKIP LOCKED"

# InnoDB tells what it last looked up, for a tenth of a second: connections that have gone since are left out; a
# prepared transaction, which has none, is not.
OLDEST: Final = """
SELECT t.trx_mysql_thread_id, p.user, p.host,
       TIMESTAMPDIFF(SECOND, t.trx_started, CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', 'SYSTEM'))
  FROM information_schema.innodb_trx AS t
  LEFT JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id
 WHERE p.id IS NOT NULL OR t.trx_mysql_thread_id = 0
 ORDER BY t.trx_started
 LIMIT 1
"""
KEPT: Final = "SELECT `count` FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len'"

Look: TypeAlias = Callable[[Connection], Awaitable[Finding]]


@frozen(kw_only=True)
class Doctor:
    """Examines one database.

    Args:
        driver: how to connect.
        schema: what its tables should be.
        timeout: seconds that a call may take.
        push: whether listeners sleep in the server.
        pool_size: how many connections there are for calls, and how many for handlers' transactions.
        concurrency: how many jobs a worker runs at once, if that is known.
    """

    driver: AsyncmyDriver
    schema: Schema
    timeout: float
    push: bool
    pool_size: int
    concurrency: int | None = field(default=None)

    async def examine(self) -> Sequence[Finding]:
        """Return what there is to say; of a server that can't be reached, that alone."""
        try:
            with fail_after(min(PATIENCE, self.timeout)):
                async with self._connection() as connection:
                    server, place = connection.server, connection.address.place
                    version = await self.schema.find(connection)
        except (StorageError, ConfigurationError) as error:
            return [_problem("reach", str(error), "is the server up, and is the DSN right?")]
        except TimeoutError:
            return [_problem("reach", f"no answer from {self.driver.destination.place}", "is it the right address?")]
        if old := too_old(server):
            return [_problem("reach", old, "upgrade the server")]
        reached = _ok("reach", f"{server.name} at {place}, database {self.driver.destination.database}")
        findings = [reached]
        for check, look in self._looks(version).items():
            if check not in WRITING or not any(map(_takes_no_writes, findings)):
                findings.append(await self._guarded(check, look))
        return findings

    def _looks(self, version: int) -> Mapping[str, Look]:
        looks: dict[str, Look] = {
            "schema": partial(self._schema, found=version),
            "indexes": self._indexes,
            "isolation": partial(_isolation, tables=bool(version)),
            "skip locked": self._skip_locked,
            "clock": _clock,
            "pool": self._pool,
            "listening": self._listening,
            "durability": _durability,
            "vacuum": _history,
            "privileges": self._privileges,
        }
        if not version:  # nothing of it is there
            for each in ("indexes", "skip locked", "privileges"):
                del looks[each]
        return looks

    async def _guarded(self, check: str, look: Look) -> Finding:
        try:
            with fail_after(PATIENCE):
                async with self._connection() as connection:
                    return await look(connection)
        except (StorageError, ConfigurationError) as error:
            return _problem(check, f"it can't be looked at: {error}")
        except TimeoutError:
            return _problem(check, f"no answer in {PATIENCE:g} s")

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        with translated():
            connection = await self.driver.connect()
            try:
                yield connection
            finally:
                await connection.aclose()

    # --- what is ours -------------------------------------------------------------------------------

    async def _schema(self, connection: Connection, *, found: int) -> Finding:
        if missing := self.schema.after(found):
            names = ", ".join(migration.name for migration in missing)
            return _problem("schema", f"migrations are missing: {names}", "run `creche migrate`")
        others = await _rows(
            connection,
            "SELECT table_name, engine FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND LEFT(table_name, 7) = 'creche_' AND engine <> 'InnoDB'",
        )
        if others:
            named = ", ".join(f"{table} ({engine})" for table, engine in others)
            advice = "ALTER TABLE … ENGINE = InnoDB: no other has transactions and row locks"
            return _problem("schema", f"not in InnoDB: {named}", advice)
        if found > (newest := self.schema.migrations[-1].version):
            message = f"version {found} is newer than this creche, which knows {newest}"
            return _warning("schema", message, "use the same version of creche everywhere")
        return _ok("schema", f"version {found}")

    async def _indexes(self, connection: Connection) -> Finding:
        expected = indexes.expected(self.schema.migrations)
        wrong = indexes.compared(expected, indexes.found(await _rows(connection, indexes.query(connection.server))))
        if wrong:
            advice = "make them again, as the migration has them: statements name their indexes, and fail without"
            return _problem("indexes", "; ".join(wrong), advice)
        return _ok("indexes", f"{len(expected)} are there")

    async def _privileges(self, connection: Connection) -> Finding:
        lacking: list[str] = []
        for (table, name), key in indexes.expected(self.schema.migrations).items():
            if name == indexes.PRIMARY:
                which = {"table": Expression(table), "column": Expression(key.columns[0])}
                denied = [
                    command
                    for command, statement in NEEDED.items()
                    if await _refusal(connection, render(statement, which)) in DENIED
                ]
                lacking += (f"{command} on {table}" for command in denied)
        if lacking:
            database = self.driver.destination.database
            advice = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* to this account"
            return _problem("privileges", f"this account lacks {', '.join(lacking)}", advice)
        return _ok("privileges", "this account may read and write every table of the queue")

    # --- what it promises ---------------------------------------------------------------------------

    async def _skip_locked(self, connection: Connection) -> Finding:
        async with self._connection() as other:
            *_, held = await connection.run(f"{BEGIN};\n{LOCK}")
            ((version,),) = held.rows
            look = render(RIVAL, {"version": version})
            passed_over = not (await other.run(f"{BEGIN};\n{look}"))[-1].rows
            for each in (connection, other):
                await each.run("ROLLBACK")
        if not passed_over:
            message = "a row that was locked was handed out once more"
            return _problem("skip locked", message, "is there something in between that answers for the server?")
        return _ok("skip locked", "a row that was locked was passed over")

    async def _pool(self, connection: Connection) -> Finding:
        ((allowed,),) = await _rows(connection, "SELECT @@max_connections")
        size = self.pool_size
        if allowed <= 2 * size + 1:
            message = f"a worker may take {2 * size + 1} connections, and the server allows {allowed} to everybody"
            return _warning("pool", message, "lower `pool_size`, or raise max_connections")
        if self.concurrency is not None and size < self.concurrency:
            message = (
                f"{size} connections for the transactions of {self.concurrency} handlers: those that open "
                "`job.transaction()` wait for each other"
            )
            return _warning("pool", message, f"say pool_size={self.concurrency}, if handlers do that")
        return _ok("pool", f"{size} connections for calls, {size} for handlers' transactions; the server has {allowed}")

    async def _listening(self, connection: Connection) -> Finding:
        if not self.push:
            return _ok("listening", "push is off: workers poll")
        await without_limit(connection)
        name = lock_name(secrets.token_bytes(16))
        await connection.run(f"SELECT GET_LOCK({literal(name)}, 0)")
        woken = False
        async with self._connection() as waker, anyio.create_task_group() as waking:
            waking.start_soon(_wake, waker, name)
            woken = await nap(connection, AWAKE)
            waking.cancel_scope.cancel()
        if woken:
            return _ok("listening", "a connection that sleeps is woken by another one")
        message = (
            "a connection that sleeps was not woken: between here and the server stands a pooler, or something that "
            "swallows KILL QUERY"
        )
        return _problem("listening", message, "send workers past it; or say push=false, and they poll")


async def _wake(connection: Connection, name: str) -> None:
    while True:
        for (number,) in await _rows(connection, f"SELECT IS_USED_LOCK({literal(name)})"):
            if number is not None:
                with suppress(MySQLError):  # it may be gone already
                    await connection.run(f"KILL QUERY {number}")
        await anyio.sleep(0.02)


async def _isolation(connection: Connection, *, tables: bool) -> Finding:
    if unfit := await unfit_log(connection):
        return _problem("isolation", unfit, "SET GLOBAL binlog_format = 'ROW'")
    if tables and await _refusal(connection, "DELETE FROM creche_workers WHERE name = ''") in READ_ONLY:
        return _problem("isolation", "the server takes no writes: it is read-only", "point the DSN at the primary")
    # To connect is to set it, and to read it back.
    named = "tx_isolation" if connection.server.mariadb else "transaction_isolation"
    ((default,),) = await _rows(connection, f"SELECT @@GLOBAL.{named}")
    return _ok("isolation", f"our sessions run at READ COMMITTED, whatever the server's default is: {default}")


async def _clock(connection: Connection) -> Finding:
    looks = [await _both_clocks(connection) for _ in range(3)]
    _, ours, theirs = min(looks)
    skew = (theirs - ours).total_seconds()
    told = f"the server's says {theirs:%Y-%m-%d %H:%M:%S.%f} UTC, this machine's {ours:%Y-%m-%d %H:%M:%S.%f}"
    if abs(skew) > SKEW:
        advice = "let both follow NTP: leases go by the server's clock, moments that callers name by their own"
        return _warning("clock", f"the clocks are {abs(skew):.1f} s apart: {told}", advice)
    return _ok("clock", f"{told}: {abs(skew) * 1000:.0f} ms apart")


async def _both_clocks(connection: Connection) -> tuple[timedelta, datetime, datetime]:
    """Return how long the round trip took, and what both clocks said in the middle of it."""
    sent = datetime.now(UTC)
    ((theirs,),) = await _rows(connection, "SELECT UTC_TIMESTAMP(6)")
    trip = datetime.now(UTC) - sent
    return trip, sent + trip / 2, theirs.replace(tzinfo=UTC)


# What a crash may cost, by a setting and its values: of the server, or of the machine.
LOSES: Final[Mapping[str, Mapping[str, str]]] = {
    "innodb_flush_log_at_trx_commit": {"0": "the last second's commits", "2": "the last second's commits"},
    "innodb_flush_method": {"nosync": "everything", "littlesync": "everything"},
    "innodb_doublewrite": {"OFF": "pages that were half written"},
}


async def _durability(connection: Connection) -> Finding:
    names = ", ".join(map(literal, [*LOSES, "log_bin", "sync_binlog"]))
    settings: dict[str, str] = dict(await _rows(connection, f"SHOW GLOBAL VARIABLES WHERE variable_name IN ({names})"))
    loses = [
        f"{name} = {settings[name]}: a crash may cost {cost[settings[name]]}"
        for name, cost in LOSES.items()
        if settings.get(name, "") in cost
    ]
    if settings.get("log_bin") == "ON" and settings.get("sync_binlog") != "1":
        loses.append(f"sync_binlog = {settings.get('sync_binlog')}: a crash may cost what the binary log has not seen")
    if loses:
        advice = "innodb_flush_log_at_trx_commit = 1, innodb_doublewrite = ON and, with a binary log, sync_binlog = 1"
        return _warning("durability", "; ".join(loses), advice)
    told = (f"{name} = {value}" for name, value in settings.items() if name in LOSES or settings.get("log_bin") == "ON")
    return _ok("durability", f"what is committed is on the disk ({', '.join(told)})")


async def _history(connection: Connection) -> Finding:
    """What keeps InnoDB from forgetting: everybody walks over what was deleted until nobody may want to see it."""
    try:
        with translated():
            oldest = await _rows(connection, OLDEST)
            ((length,),) = await _rows(connection, KEPT)
    except StatementRejected:
        return _ok(
            "vacuum",
            "how long the oldest transaction has been open, this account may not see",
            "GRANT PROCESS ON *.* to it, if you would like to know",
        )
    told = f"{length} changes are kept for whoever may want to see what was before"
    for number, user, host, age in oldest:
        told += f"; the oldest transaction has been open for {age} s"
        if age >= LONG:
            message = f"{told}: connection {number}, of {user} from {host}"
            return _warning("vacuum", message, "end it: until then whatever is deleted is walked over")
    if length >= HISTORY:
        return _warning("vacuum", told, "see what keeps InnoDB's purge from its work: innodb_purge_threads, the disks")
    return _ok("vacuum", told)


# --- small change -----------------------------------------------------------------------------------


async def _rows(connection: Connection, statement: str) -> list[Row]:
    return (await connection.run(statement))[-1].rows


async def _refusal(connection: Connection, statement: str) -> int | None:
    """Run a statement that changes nothing; return the number of the error with which it was refused, if it was."""
    try:
        await connection.run(statement)
    except MySQLError as error:
        if connection.closed:
            raise
        return int(error.args[0])
    return None


def _takes_no_writes(finding: Finding) -> bool:
    return finding.check == "isolation" and finding.severity is Severity.PROBLEM


def _ok(check: str, message: str, advice: str = "") -> Finding:
    return Finding(check=check, severity=Severity.OK, message=message, advice=advice)


def _warning(check: str, message: str, advice: str) -> Finding:
    return Finding(check=check, severity=Severity.WARNING, message=message, advice=advice)


def _problem(check: str, message: str, advice: str = "") -> Finding:
    return Finding(check=check, severity=Severity.PROBLEM, message=message, advice=advice)
