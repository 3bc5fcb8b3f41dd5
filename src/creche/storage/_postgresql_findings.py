"""What the doctor's looks at PostgreSQL mean: from what was seen to a finding. It asks nobody, and reads no clock."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from creche._job import Finding, Severity
from creche.storage._postgresql_calls import Row
from creche.storage._postgresql_schema import Found, too_old
from creche.storage._sql import Dialect

SKEW: Final = 1.0  # seconds
OLD: Final = 300.0  # seconds that a transaction has been open: no statement of ours takes one

# Autovacuum begins when 1,000 rows and 2 % are dead (see 0001_initial.sql); with ten times as many it can't keep up.
DEAD_ROWS: Final = 10_000
DEAD_PART: Final = 0.2

_TABLE: Final = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)
_INDEX: Final = re.compile(r"^CREATE (?:UNIQUE )?INDEX (\w+)[^;]*;", re.MULTILINE)
_KEY: Final = re.compile(r"^CREATE TABLE (\w+)[^;]*PRIMARY KEY[^;]*;", re.MULTILINE)
_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE"})


def ok(check: str, message: str) -> Finding:
    """Return what is well."""
    return Finding(check=check, severity=Severity.OK, message=message)


def warning(check: str, message: str, advice: str) -> Finding:
    """Return what will hurt one day."""
    return Finding(check=check, severity=Severity.WARNING, message=message, advice=advice)


def problem(check: str, message: str, advice: str) -> Finding:
    """Return what does not work, or not as promised."""
    return Finding(check=check, severity=Severity.PROBLEM, message=message, advice=advice)


# --- what there is ----------------------------------------------------------------------------------


def reach(name: str, product: str, version: int) -> Finding:
    """Judge the server's version, as it counts them: 150004 is 15.4."""
    message = f"{name}: {product.partition(' on ')[0]}"
    if needed := too_old(version):
        return problem("reach", f"{message} is too old", needed)
    return ok("reach", message)


def tables(dialect: Dialect) -> Sequence[str]:
    """Return the tables that the migrations make."""
    return [name for migration in dialect.migrations for name in _TABLE.findall(migration.sql)]


def indexes(dialect: Dialect) -> Mapping[str, str]:
    """Return what makes each index of the migrations, by its name, primary keys among them."""
    made: dict[str, str] = {}
    for migration in dialect.migrations:
        text = "\n".join(line.partition("--")[0].rstrip() for line in migration.sql.splitlines())
        made |= {f"{table}_pkey": "" for table in _KEY.findall(text)}
        made |= {found[1]: " ".join(found[0].split()) for found in _INDEX.finditer(text)}
    return made


def schema(found: Found, dialect: Dialect, there: Sequence[Row]) -> Finding:
    """Judge the schema's version, and whether its tables are there."""
    missing = [migration.name for migration in dialect.migrations if migration.version > found.version]
    if missing:
        what = "older than this creche needs" if found.version else "not there"
        return problem("schema", f"the schema is {what}: {', '.join(missing)} is missing", "run `creche migrate`")
    if gone := [name for name, is_there, _ in there if not is_there]:
        advice = "restore them: the statements can't work without them"
        return problem("schema", f"version {found.version}, but tables are missing: {', '.join(gone)}", advice)
    if found.version > dialect.version:
        message = f"version {found.version} is newer than this creche, which knows {dialect.version}"
        return warning("schema", message, "use the same version of creche everywhere")
    return ok("schema", f'version {found.version}, in the schema "{found.schema}"')


def indexes_of(dialect: Dialect, there: Sequence[Row]) -> Finding:
    """Judge whether each index is there, and whether PostgreSQL uses it."""
    valid: dict[str, bool] = dict(there)
    made = indexes(dialect)
    missing = [name for name in made if name not in valid]
    broken = [name for name in made if valid.get(name) is False]
    if not missing and not broken:
        return ok("indexes", f"all {len(made)} are there and valid")
    faults = [f"{name} is missing" for name in missing] + [f"{name} is not valid" for name in broken]
    again = [f"REINDEX INDEX {name};" for name in broken] + [made[name] or f"restore {name}" for name in missing]
    return problem("indexes", ", ".join(faults), "make them again: " + " ".join(again))


def privileges(there: Sequence[Row]) -> Finding:
    """Judge what may be done with the tables. Migrations are only read, but by `creche migrate`."""
    lacking = {
        name: sorted(set(missing) - (_WRITES if name == "creche_migrations" else set())) for name, _, missing in there
    }
    if faults := [f"{' and '.join(missing)} on {name}" for name, missing in lacking.items() if missing]:
        return problem("privileges", f"missing: {', '.join(faults)}", "GRANT them to the user of the DSN")
    return ok("privileges", "all that is needed")


# --- how sessions are -------------------------------------------------------------------------------


def isolation(level: str, *, read_only: bool, standby: bool) -> Finding:
    """Judge what our statements run at."""
    if standby:
        return problem("isolation", "the server is a standby: nothing can be written", "name the primary in the DSN")
    if read_only:
        advice = "set default_transaction_read_only off: for the database, the role, or in the DSN"
        return problem("isolation", "transactions are read only: nothing can be written", advice)
    if level != "read committed":
        advice = "set default_transaction_isolation to read committed: for the database, the role, or in the DSN"
        return problem("isolation", f"transactions run at {level}, where rivals undo each other", advice)
    return ok("isolation", f"{level}, and writable")


def clock(theirs: datetime, before: float, after: float) -> Finding:
    """Judge the database's clock by this machine's, whose seconds before and after asking are given."""
    middle = (before + after) / 2
    ahead = theirs.timestamp() - middle
    message = f"the database's says {_time(theirs)}, this machine's {_time(datetime.fromtimestamp(middle, UTC))}"
    if abs(ahead) > SKEW + (after - before) / 2:
        message += f": the database is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
        return warning("clock", message, "jobs are due by the database's clock: have NTP set both")
    return ok("clock", message)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(" ", "milliseconds")


def pool(size: int, concurrency: int | None, most: int, used: int) -> Finding:
    """Judge the numbers of connections: the storage's, for calls and for transactions each, and the server's."""
    message = f"{size} connections for calls and as many for handlers' transactions; the server has {used} of {most}"
    if concurrency is not None and size < concurrency:
        advice = f"pool_size={concurrency} in the DSN, if handlers open transactions"
        return warning("pool", f"{message}: of {concurrency} handlers {size} have a transaction at once", advice)
    wanted = 2 * size + 1  # with the listener's
    if most - used < wanted:
        advice = "raise max_connections, or lower pool_size"
        return warning("pool", f"{message}: this storage may come to need {wanted}", advice)
    return ok("pool", message)


# --- what is promised -------------------------------------------------------------------------------


def durability(fsync: bool, full_page_writes: bool, synchronous_commit: str) -> Finding:
    """Judge what a commit waits for."""
    message = ", ".join(
        f"{name} {value if isinstance(value, str) else 'on' if value else 'off'}"
        for name, value in {
            "fsync": fsync,
            "full_page_writes": full_page_writes,
            "synchronous_commit": synchronous_commit,
        }.items()
    )
    if not fsync or not full_page_writes:
        return problem("durability", f"{message}: a power cut may ruin the database", "set both on")
    if synchronous_commit == "off":
        advice = "set it on, at least for this role or database"
        return warning("durability", f"{message}: a crash may lose jobs that were just dispatched", advice)
    return ok("durability", message)


def vacuum(holder: Collection[Row], counted: Collection[Row]) -> Finding:
    """Judge who keeps vacuum from its work, and whether it keeps up."""
    live, dead = next(iter(counted), (0, 0))
    rows = f"of creche_jobs {live} rows are alive and {dead} dead"
    for who, seconds in holder:
        if seconds is None or seconds > OLD:
            since = "" if seconds is None else f" for {seconds:.0f} s"
            advice = "end it: until then dead rows stay, and each reserve walks over them"
            return warning("vacuum", f"{who} keeps vacuum from its work{since}; {rows}", advice)
    if dead > DEAD_ROWS + DEAD_PART * live:
        return warning("vacuum", f"{rows}: autovacuum can't keep up", "is it on, and is something in its way?")
    oldest = "".join(f"; the oldest transaction, {who}, is {seconds:.1f} s old" for who, seconds in holder)
    return ok("vacuum", f"{rows}{oldest or '; no other transaction is open'}")
