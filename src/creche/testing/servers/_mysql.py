"""MariaDB and MySQL for tests: where they are found, how they are set up, and what it takes to be fast."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from creche.testing.servers._process import Databases, ForeignServer, PrivateServer, ServerFailed, ServerNotFound

if TYPE_CHECKING:
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor

MARIADB: Final = "CRECHE_TEST_MARIADB"
MYSQL: Final = "CRECHE_TEST_MYSQL"
MYSQLD: Final = "CRECHE_TEST_MYSQLD"

# Where servers are, beside the path: a plain user's often leaves these out.
FOLDERS: Final = ("/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/usr/local/libexec", "/usr/local/mysql/bin")

SETTINGS: Final[Mapping[str, str]] = {
    "bind_address": "127.0.0.1",
    "skip_name_resolve": "ON",
    "max_connections": "200",
    "innodb_buffer_pool_size": "64M",
}
NOT_DURABLE: Final[Mapping[str, str]] = {
    "innodb_flush_log_at_trx_commit": "0",
    "innodb_flush_method": "nosync",
    "sync_binlog": "0",
}

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

NO_SUCH_THREAD: Final = 1094


def find_mariadb() -> Path:
    """The MariaDB server on this machine.

    Raises:
        ServerNotFound: there is none.
    """
    for server in _servers("mariadbd", "mysqld"):
        if "MariaDB" in _version(server) and _install_db(server) is not None:
            return server
    raise ServerNotFound(
        "MariaDB", f"set {MARIADB} to the DSN of a server", "install MariaDB's server (mariadb-server) on this machine"
    )


def find_mysql() -> Path:
    """The MySQL server on this machine, or the one that the environment variable `CRECHE_TEST_MYSQLD` names.

    Raises:
        ServerNotFound: there is none.
        ServerFailed: the variable names something else.
    """
    if named := os.environ.get(MYSQLD):
        if "mysqld" not in (version := _version(Path(named))) or "MariaDB" in version:
            raise ServerFailed(f"{MYSQLD}={named} is no MySQL server; asked for its version, it says {version!r}")
        return Path(named).absolute()
    # On many machines this is a link to MariaDB.
    for server in _servers("mysqld"):
        if "MariaDB" not in _version(server):
            return server
    raise ServerNotFound(
        "MySQL",
        f"set {MYSQL} to the DSN of a server",
        f"set {MYSQLD} to a MySQL server's executable",
        "install MySQL's server (mysql-server) on this machine",
    )


def _servers(*names: str) -> Generator[Path]:
    folders = (*os.get_exec_path(), *FOLDERS)
    found = [Path(folder, name).resolve() for name in names for folder in folders]
    yield from dict.fromkeys(server for server in found if os.access(server, os.X_OK))


def _version(server: Path) -> str:
    try:
        return subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        return str(error)


def _install_db(server: Path) -> Path | None:
    """The script that lays out MariaDB's data, of the same installation."""
    home = server.parent.parent
    folders = os.pathsep.join(map(str, (home / "bin", home / "scripts", server.parent)))
    for name in ("mariadb-install-db", "mysql_install_db"):
        if found := shutil.which(name, path=folders) or shutil.which(name):
            return Path(found)
    return None


@contextmanager
def private_mariadb(
    *, own: bool = False, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Generator[MariaDBServer | ForeignServer]:
    """A MariaDB server for the length of the block, gone with all its data at the end, whatever that end is.

    The server that the environment variable `CRECHE_TEST_MARIADB` names is taken first, and left as it is.

    Args:
        own: never take the environment's: these tests will stop and kill the server.
        durable: flush at each commit, so that a killed server has lost nothing.
        settings: more of what stands in my.cnf, such as `{"autocommit": "0"}`.

    Raises:
        ServerNotFound: there is none to be had.
        ServerFailed: it did not start.
    """
    if not own and (dsn := os.environ.get(MARIADB)):
        yield ForeignMySQL(dsn)
        return
    server = MariaDBServer(find_mariadb(), {**({} if durable else NOT_DURABLE), **(settings or {})})
    with server.running():
        yield server


@contextmanager
def private_mysql(
    *, own: bool = False, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Generator[MySQLServer | ForeignServer]:
    """A MySQL server for the length of the block, gone with all its data at the end, whatever that end is.

    The server that the environment variable `CRECHE_TEST_MYSQL` names is taken first, and left as it is. One whose
    executable `CRECHE_TEST_MYSQLD` names comes next: it may be a script, if that ends in an `exec`.

    Args:
        own: never take the environment's: these tests will stop and kill the server.
        durable: flush at each commit, so that a killed server has lost nothing.
        settings: more of what stands in my.cnf, such as `{"autocommit": "0"}`.

    Raises:
        ServerNotFound: there is none to be had.
        ServerFailed: it did not start.
    """
    if not own and (dsn := os.environ.get(MYSQL)):
        yield ForeignMySQL(dsn)
        return
    server = MySQLServer(find_mysql(), {**({} if durable else NOT_DURABLE), **(settings or {})})
    with server.running():
        yield server


def connect_mysql(dsn: str, *, autocommit: bool = True) -> Connection[Cursor]:
    """A connection of PyMySQL's to the database that a DSN names, for tests that look behind a storage's back.

    Args:
        dsn: `mysql://user:password@host:port/database`, or with `?unix_socket=/a/path` instead of host and port.
        autocommit: whatever the server's default is.
    """
    import pymysql

    parts = urlsplit(dsn)
    host = parts.hostname or "localhost"
    return pymysql.connect(
        host=host,
        port=parts.port or 3306,
        unix_socket=parse_qs(parts.query).get("unix_socket", [None])[0],
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=unquote(parts.path.lstrip("/")) or None,
        autocommit=autocommit,
        # Said aloud: PyMySQL leaves it unsaid where the greeting has it so, and MySQL's greeting ignores its default.
        init_command=f"SET autocommit = {autocommit:d}",
        # To load the authorities that this machine trusts takes longer than most tests do.
        ssl_disabled=host in LOOPBACK,
    )


class MySQLDatabases(Databases):
    """Databases on a MariaDB or MySQL, made by PyMySQL."""

    def create_database(self, name: str) -> str:
        """Create an empty database, with the server's own character set, and return its DSN."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {_quoted(name)}")
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, if it is there, and every session in it."""
        import pymysql

        with self._connect() as connection, connection.cursor() as cursor:
            # A session with a transaction open would make the drop wait for it.
            cursor.execute("SHOW PROCESSLIST")
            for session in [row[0] for row in cursor.fetchall() if row[3] == name]:
                try:
                    cursor.execute(f"KILL {session:d}")
                except pymysql.Error as error:
                    if error.args[0] != NO_SUCH_THREAD:
                        raise
            cursor.execute("SET lock_wait_timeout = 10")
            cursor.execute(f"DROP DATABASE IF EXISTS {_quoted(name)}")

    def _connect(self) -> Connection[Cursor]:
        return connect_mysql(self.dsn())


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


class ForeignMySQL(MySQLDatabases, ForeignServer):
    """A MariaDB or MySQL that someone else runs."""


class MySQLFamily(MySQLDatabases, PrivateServer):
    """What a MariaDB and a MySQL of one's own share: the account `root`, with a password over TCP and socket alike."""

    users = ("mysql", "nobody")
    last_word = signal.SIGTERM
    scheme: ClassVar[str]
    defaults: ClassVar[Mapping[str, str]]

    def __init__(self, executable: Path, settings: Mapping[str, str]) -> None:
        super().__init__()
        self._executable = executable
        self._settings = {**SETTINGS, **self.defaults, **settings}

    def dsn(self, dbname: str = "mysql", *, socket: bool = False) -> str:
        """The DSN of one of its databases, over loopback TCP or over the Unix socket."""
        user = f"{self.scheme}://root:{self._password}"
        if socket:
            return f"{user}@localhost/{quote(dbname)}?unix_socket={quote(str(self.folder / 'socket'), safe='')}"
        return f"{user}@127.0.0.1:{self.port}/{quote(dbname)}"

    def _lay_out(self) -> None:
        if not self._runs(self._executable, "--version"):
            # It lies in someone's home, where only root may go; and root is refused unless named.
            self._identity = {}
            self._settings["user"] = "root"
        # What is laid down for good is set here already; the rest may not suit the script of the system's tables.
        lasting = ("innodb_", "loose_innodb_", "lower_case_table_names", "user")
        settings = {name: value for name, value in self._settings.items() if name.startswith(lasting)}
        # A server that starts clears its tmpdir of temporary tables, whosever they are: each needs one of its own.
        own = {"datadir": str(self.folder / "data"), "tmpdir": str(self.folder)}
        self._run([*self._initialize(), *_options({**own, **settings})])
        self._write(
            "accounts.sql",
            f"""
            ALTER USER 'root'@'localhost' IDENTIFIED BY '{self._password}';
            CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';
            ALTER USER 'root'@'127.0.0.1' IDENTIFIED BY '{self._password}';
            GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
            """,
        )

    def _be_like(self, other: MySQLFamily) -> None:
        """Run as whom that one runs, with its password."""
        self._identity = other._identity
        self._password = other._password
        if "user" in other._settings:
            self._settings["user"] = other._settings["user"]

    @abstractmethod
    def _initialize(self) -> Sequence[str | Path]:
        """What fills the data folder; options follow."""

    def _command(self) -> Sequence[str | Path]:
        own = {
            "datadir": str(self.folder / "data"),
            "socket": str(self.folder / "socket"),
            "pid_file": str(self.folder / "pid"),
            "tmpdir": str(self.folder),
            "port": str(self.port),
            "init_file": str(self.folder / "accounts.sql"),
        }
        return [self._executable, "--no-defaults", *_options({**own, **self._settings})]

    def _ready(self) -> bool:
        import pymysql

        # Not PyMySQL at once: it leaves its socket open when nobody listens.
        with suppress(OSError, pymysql.Error), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.folder / "socket"))
            # It listens before it is ready, and answers when it is.
            self._connect().close()
            return True
        return False

    def _connect(self) -> Connection[Cursor]:
        # By the socket: on MySQL, a password's first handshake over TCP costs an exchange of keys.
        return connect_mysql(self.dsn(socket=True))


def _options(settings: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" if value else f"--{name}" for name, value in settings.items()]


class MariaDBServer(MySQLFamily):
    """A MariaDB of one's own."""

    name = "MariaDB"
    scheme = "mariadb"
    defaults: ClassVar[Mapping[str, str]] = {"performance_schema": "OFF", "innodb_log_file_size": "32M"}

    def _initialize(self) -> Sequence[str | Path]:
        script = _install_db(self._executable)
        assert script is not None
        home = script.resolve().parent.parent
        options = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        return [script, "--no-defaults", f"--basedir={home}", *options]


class MySQLServer(MySQLFamily):
    """A MySQL of one's own."""

    name = "MySQL"
    scheme = "mysql"
    # The performance schema stays, for it shows locks, but as small as it can be.
    defaults: ClassVar[Mapping[str, str]] = {
        "mysqlx": "OFF",
        "disable_log_bin": "",
        "secure_file_priv": "NULL",
        "table_open_cache": "400",
        "table_definition_cache": "400",
        "performance_schema_digests_size": "200",
        "performance_schema_error_size": "0",
        "innodb_log_buffer_size": "4M",
        "loose_innodb_redo_log_capacity": "32M",
    }

    def _initialize(self) -> Sequence[str | Path]:
        return [self._executable, "--no-defaults", "--initialize-insecure", "--mysqlx=OFF"]
