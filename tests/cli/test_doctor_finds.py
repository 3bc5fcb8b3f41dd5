"""`creche doctor` finds each fault that is planted, on real servers, by the command as people run it."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pymysql
import pytest

from creche.testing.servers import ForeignServer, PostgreSQLServer, private_pgbouncer, private_postgresql
from missing import unless_missing

Doctor = Callable[..., Mapping[str, str]]
LATE = """
import datetime, time

class Late(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(seconds=5)

now = time.time
time.time = lambda: now() - 5
datetime.datetime = Late

import creche.cli
creche.cli.main()
"""  # a machine whose clock is late, as far as Python sees


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Run the command; return the severity of all that is not well, by what was looked at."""

    def run(dsn: str, *options: str, program: tuple[str, ...] = ("-m", "creche")) -> Mapping[str, str]:
        command = [sys.executable, *program, "doctor", "--json", "--dsn", dsn, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode in {0, 1}, done.stderr
        found = {each["check"]: each for each in json.loads(done.stdout)}
        ill = {check: each["severity"] for check, each in found.items() if each["severity"] != "ok"}
        assert done.returncode == ("problem" in ill.values())
        assert all(found[check]["advice"] for check in ill)
        return ill

    return run


def change(dsn: str, *statements: str) -> None:
    """Run SQL on a database behind the library's back."""
    if dsn.startswith("postgresql"):
        import psycopg

        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())
        return
    if dsn.startswith("sqlite"):
        import sqlite3

        file = sqlite3.connect(dsn.partition(":///")[2])
        with file:
            for statement in statements:
                file.execute(statement)
        file.close()
        return
    parts = re.fullmatch(r"\w+://(?P<user>\w+)(:(?P<password>\w*))?@[^/]*/(?P<name>\w+)(\?.*)?", dsn)
    assert parts is not None, dsn
    socket = re.search(r"unix_socket=([^&]+)", dsn)
    assert socket is not None, dsn
    server = pymysql.connect(
        unix_socket=unquote(socket[1]), user=parts["user"], password=parts["password"] or "", database=parts["name"]
    )
    with server, server.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        server.commit()


def migrate(dsn: str) -> None:
    subprocess.run([sys.executable, "-m", "creche", "migrate", "--dsn", dsn], check=True, capture_output=True)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "mysql"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The DSN of a database with its schema, by the command that makes it."""
    name = str(request.param)
    dsn = f"sqlite:///{tmp_path / 'jobs.db'}" if name == "sqlite" else str(request.getfixturevalue(f"{name}_dsn"))
    migrate(dsn)
    return dsn


def healthy(found: Mapping[str, str]) -> Mapping[str, str]:
    """Leave out what is so on any server that is started for tests: they promise nothing to a power cut."""
    return {check: severity for check, severity in found.items() if check not in {"durability", "vacuum"}}


def test_a_healthy_database(doctor: Doctor, dsn: str) -> None:
    assert healthy(doctor(dsn)) == {}


def test_an_old_schema(doctor: Doctor, dsn: str) -> None:
    change(dsn, "DELETE FROM creche_migrations")
    assert doctor(dsn)["schema"] == "problem"


def test_a_missing_index(doctor: Doctor, dsn: str) -> None:
    on = "" if dsn.startswith(("postgresql", "sqlite")) else " ON creche_jobs"
    change(dsn, f"DROP INDEX creche_jobs_ready{on}")
    assert healthy(doctor(dsn)) == {"indexes": "problem"}


def test_a_clock_that_is_five_seconds_off(doctor: Doctor, dsn: str) -> None:
    found = healthy(doctor(dsn, program=("-c", LATE)))
    assert found == ({} if dsn.startswith("sqlite") else {"clock": "warning"})  # a file has no clock but this one


def test_a_pool_that_is_smaller_than_the_concurrency(doctor: Doctor, dsn: str) -> None:
    small = f"{dsn}{'&' if '?' in dsn else '?'}pool_size=2"
    if dsn.startswith("sqlite"):  # one writer, whatever is asked for
        assert healthy(doctor(dsn, "--concurrency", "10")) == {}
    else:
        assert healthy(doctor(small, "--concurrency", "10")) == {"pool": "warning"}


# --- PostgreSQL alone -------------------------------------------------------------------------------


def test_an_isolation_level_that_makes_rivals_fail(doctor: Doctor, postgresql_dsn: str) -> None:
    migrate(postgresql_dsn)
    strict = postgresql_dsn.replace("options=", "options=-cdefault_transaction_isolation%3Dserializable%20")
    assert strict != postgresql_dsn
    assert healthy(doctor(strict)) == {"isolation": "problem"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer | ForeignServer]:
    yield from unless_missing(private_postgresql(own=True))


def test_pgbouncer_in_transaction_mode(doctor: Doctor, server: PostgreSQLServer) -> None:
    name = f"creche_{secrets.token_hex(4)}"
    server.create_database(name)
    migrate(server.dsn(name))
    assert healthy(doctor(server.dsn(name))) == {}
    for pooler in unless_missing(private_pgbouncer(server, "transaction"), required=False):
        assert healthy(doctor(pooler.dsn(name))) == {"listening": "problem"}
