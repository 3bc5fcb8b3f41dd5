"""The private MariaDB and MySQL: found, reachable, hostile on request, killed, restarted, and gone."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pymysql
import pytest

from creche.testing.servers import (
    ForeignServer,
    MariaDBServer,
    MySQLServer,
    ServerFailed,
    ServerNotFound,
    connect_mysql,
    find_mariadb,
    find_mysql,
    private_mariadb,
    private_mysql,
)
from creche.testing.servers import _mysql as mysql
from missing import unless_missing
from processes import eventually, gone

PrivateServer: TypeAlias = MariaDBServer | MySQLServer

# What a queue may find set on a server that its owner doesn't run; the helpers have to bear it too.
HOSTILE = {
    "default_time_zone": "-11:00",
    "sql_mode": "ANSI_QUOTES,STRICT_ALL_TABLES",
    "autocommit": "0",
    "loose_innodb_snapshot_isolation": "ON",
}


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    private: Iterator[PrivateServer | ForeignServer]
    if request.param == "mariadb":
        private = unless_missing(private_mariadb(own=True, durable=True, settings=HOSTILE))
    else:
        private = unless_missing(private_mysql(own=True, durable=True, settings=HOSTILE), required=False)
    for server in private:
        assert isinstance(server, PrivateServer)
        yield server


def ask(dsn: str, query: str) -> object:
    with connect_mysql(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return (cursor.fetchone() or [None])[0]


def test_it_is_reached_over_tcp_and_over_its_socket(server: PrivateServer) -> None:
    assert ask(server.dsn(), "SELECT CURRENT_USER()") == "root@127.0.0.1"
    assert ask(server.dsn(socket=True), "SELECT CURRENT_USER()") == "root@localhost"
    assert 20000 <= server.port < 32768
    assert server.dsn().startswith(f"{server.scheme}://root:")


@contextmanager
def nothing_yet() -> Iterator[MariaDBServer]:
    server = MariaDBServer(find_mariadb(), {})
    try:
        yield server
    finally:
        server.remove()


def test_while_it_is_set_up_it_clears_away_nobody_else_s_temporary_tables() -> None:
    theirs = Path("/tmp") / f"#sql-temptable-{secrets.token_hex(4)}-1-1.MAI"
    for server in unless_missing(nothing_yet()):
        theirs.touch()
        server._hand_over(theirs)
        try:
            server.create()
            assert theirs.exists()
        finally:
            theirs.unlink(missing_ok=True)


def test_it_is_the_server_that_was_asked_for(server: PrivateServer) -> None:
    assert ("MariaDB" in str(ask(server.dsn(), "SELECT VERSION()"))) is isinstance(server, MariaDBServer)


def test_it_is_as_hostile_as_was_asked_for_and_can_be_told_otherwise(server: PrivateServer) -> None:
    assert ask(server.dsn(), "SELECT @@GLOBAL.time_zone") == "-11:00"
    assert ask(server.dsn(), "SELECT @@GLOBAL.sql_mode") == HOSTILE["sql_mode"]
    assert ask(server.dsn(), "SELECT @@GLOBAL.autocommit") == 0
    assert ask(server.dsn(), "SELECT @@autocommit") == 1
    ask(server.dsn(), "SET GLOBAL max_connections = 30")
    assert ask(server.dsn(), "SELECT @@max_connections") == 30
    ask(server.dsn(), "SET GLOBAL max_connections = 200")


def test_tcp_and_the_socket_ask_for_the_password(server: PrivateServer) -> None:
    password = server.dsn().removeprefix(f"{server.scheme}://root:").partition("@")[0]
    for dsn in (server.dsn(), server.dsn(socket=True)):
        with pytest.raises(pymysql.OperationalError, match="Access denied"):
            connect_mysql(dsn.replace(password, "wrong"))


def test_databases_come_and_go_with_their_sessions(server: PrivateServer) -> None:
    with connect_mysql(server.create_database("an `odd` name"), autocommit=False) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE busy (x int)")
        cursor.execute("INSERT INTO busy VALUES (1)")  # from here on its transaction would make a drop wait
        server.drop_database("an `odd` name")
        server.drop_database("an `odd` name")
        with pytest.raises(pymysql.Error):
            cursor.execute("SELECT 1")


def test_a_killed_server_comes_back_on_its_port_with_its_data(server: PrivateServer) -> None:
    dsn, pid = server.create_database("kept"), server.pid
    ask(dsn, "CREATE TABLE kept AS SELECT 42 AS x")
    server.kill()
    assert pid
    assert gone(pid)
    assert server.pid is None
    server.start()
    assert server.dsn("kept") == dsn
    assert ask(dsn, "SELECT x FROM kept") == 42
    server.stop()
    server.stop()
    server.start()
    server.start()
    assert ask(dsn, "SELECT @@port") == server.port
    server.drop_database("kept")


def test_a_bad_setting_is_an_error_with_the_log_in_it() -> None:
    with (
        pytest.raises(ServerFailed, match="no_such_setting"),
        private_mariadb(own=True, settings={"no_such_setting": "1"}),
    ):
        pass


@pytest.mark.parametrize("moment", ["while it is laid out", "when it is up"])
def test_nothing_is_left_behind_when_the_tests_are_killed(moment: str) -> None:
    script = (
        "from creche.testing.servers import MariaDBServer, find_mariadb\n"
        "server = MariaDBServer(find_mariadb(), {})\n"
        "print(server.folder, flush=True)\n"
        "server.create()\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout
        folder = Path(tests.stdout.readline().strip())
        assert eventually((folder / "data").is_dir)
        if moment == "when it is up":
            assert not gone(int(tests.stdout.readline()))
        assert at_work_in(folder)
        tests.send_signal(signal.SIGKILL)
    assert eventually(lambda: not at_work_in(folder))
    assert eventually(lambda: not folder.exists())


def at_work_in(folder: Path) -> list[Path]:
    """The processes of which an open file, or the present folder, lies in this folder."""
    here = str(folder.resolve())
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [process for process in processes if any(place.startswith(here) for place in places(process))]


def places(process: Path) -> Iterator[str]:
    try:
        for link in (process / "cwd", *(process / "fd").iterdir()):
            yield str(link.readlink())
    except OSError:
        pass


def test_a_plain_user_can_have_one(tmp_path: Path) -> None:
    # What is imported late is imported before: as somebody else, this Python may be out of reach.
    script = (
        "import encodings.idna, os, pymysql\n"
        "from creche.testing.servers import connect_mysql, private_mariadb\n"
        "if os.geteuid() == 0:\n"
        "    os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "with private_mariadb(own=True) as server, connect_mysql(server.dsn()):\n"
        "    print(os.stat(f'/proc/{server.pid}').st_uid, server.folder)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    uid, folder = answer.stdout.split()
    assert int(uid) == (os.geteuid() or 65534)
    assert not Path(folder).exists()


def test_the_environment_names_a_server_that_is_left_alone(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mysql.MARIADB, server.dsn())
    monkeypatch.setenv(mysql.MYSQL, server.dsn())
    with private_mariadb() as one, private_mysql() as other:
        assert isinstance(one, ForeignServer)
        assert isinstance(other, ForeignServer)
        assert one.dsn() == other.dsn() == server.dsn()
        assert one.create_database("theirs") == server.dsn("theirs")
        assert ask(one.dsn("theirs"), "SELECT DATABASE()") == "theirs"
        other.drop_database("theirs")
    assert ask(server.dsn(), "SELECT @@port") == server.port


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, where servers are looked for, and nowhere else."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mysql, "FOLDERS", ())
    monkeypatch.delenv(mysql.MYSQLD, raising=False)
    return tmp_path


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


@pytest.mark.usefixtures("installation")
def test_without_any_server_the_error_names_the_ways() -> None:
    with pytest.raises(ServerNotFound) as caught:
        find_mariadb()
    assert caught.value.server == "MariaDB"
    assert all(way in str(caught.value) for way in (mysql.MARIADB, "mariadb-server"))
    with pytest.raises(ServerNotFound) as caught:
        find_mysql()
    assert caught.value.server == "MySQL"
    assert all(way in str(caught.value) for way in (mysql.MYSQL, mysql.MYSQLD, "mysql-server"))


def test_a_mysqld_may_be_a_mariadb(installation: Path) -> None:
    server = executable(installation / "mariadbd", "echo mysqld  Ver 10.11.2-MariaDB for Linux")
    executable(installation / "mariadb-install-db", "")
    (installation / "mysqld").symlink_to(server)
    with pytest.raises(ServerNotFound):
        find_mysql()
    server.rename(installation / "mysqld")
    assert find_mariadb() == installation / "mysqld"


def test_a_mysqld_may_be_a_mysql(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = executable(installation / "mysqld", "echo /usr/sbin/mysqld  Ver 9.7.4 for Linux")
    assert find_mysql() == server
    with pytest.raises(ServerNotFound):
        find_mariadb()
    named = server.rename(installation / "another")
    monkeypatch.setenv(mysql.MYSQLD, str(named))
    assert find_mysql() == named


@pytest.mark.parametrize("answer", ["echo mysqld  Ver 10.11.2-MariaDB for Linux", "exit 1"])
def test_a_variable_that_names_no_mysql_is_an_error_and_no_skip(
    answer: str, installation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mysql.MYSQLD, str(executable(installation / "named", answer)))
    with pytest.raises(ServerFailed, match=mysql.MYSQLD):
        find_mysql()
    monkeypatch.setenv(mysql.MYSQLD, str(installation / "missing"))
    with pytest.raises(ServerFailed, match=mysql.MYSQLD):
        find_mysql()


@pytest.mark.skipif(os.geteuid() != 0, reason="nothing is out of reach for the server, which runs as the same user")
def test_a_server_out_of_reach_for_its_user_runs_as_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    hidden = executable(home / "mariadbd", f'exec {find_mariadb()} "$@" --basedir=/usr')
    monkeypatch.setattr(mysql, "find_mariadb", lambda: hidden)
    with private_mariadb(own=True) as server:
        assert isinstance(server, MariaDBServer)
        assert Path(f"/proc/{server.pid}").stat().st_uid == 0
