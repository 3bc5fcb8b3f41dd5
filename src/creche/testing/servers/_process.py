"""A server process of one's own: its folder, its port, its user, its guard, its end. It knows no database by name."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final, TypedDict
from urllib.parse import quote, urlsplit, urlunsplit

from creche.errors import CrecheError

# Below 32768: from there on the kernel hands out ports to clients, and one may sit on a stopped server's port.
PORTS: Final = range(20000, 32000)

# The guard reads which process to end, until the pipe ends with the tests, however they end. SIGQUIT first, for a
# server may have to end sessions that left its group; SIGKILL then, for it may be frozen.
GUARD: Final = """
while read -r line; do pid=$line; done
[ -z "$pid" ] || { kill -s QUIT -- "-$pid"; sleep 1; kill -s KILL -- "-$pid"; }
rm -rf "$0"
"""


class ServerNotFound(CrecheError):
    """There is no such server for the tests.

    Attributes:
        server: what is missing, by its name.
    """

    def __init__(self, server: str, *ways: str) -> None:
        self.server = server
        super().__init__(f"no {server} for the tests: {', '.join(ways[:-1])}, or {ways[-1]}")


class ServerFailed(CrecheError):
    """A private server did not start. The message ends with the tail of its log."""


class Identity(TypedDict, total=False):
    """As whom a process runs; empty for the present user."""

    user: int
    group: int
    extra_groups: list[int]


class Databases(ABC):
    """Databases on a server that is up."""

    @abstractmethod
    def dsn(self, dbname: str = ...) -> str:
        """The DSN of one of its databases."""

    @abstractmethod
    def create_database(self, name: str) -> str:
        """Create an empty database and return its DSN."""

    @abstractmethod
    def drop_database(self, name: str) -> None:
        """Drop a database, if it is there, and every session in it."""


class ForeignServer(Databases):
    """A server that someone else runs: only its databases are ours to make."""

    owned: Final = False

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dsn(self, dbname: str | None = None) -> str:
        """The DSN given, with another database's name in it if one is named."""
        return self._dsn if dbname is None else urlunsplit(urlsplit(self._dsn)._replace(path=f"/{quote(dbname)}"))


class PrivateServer(Databases):
    """A server of one's own, in a temporary folder. Methods block, so call them around the event loop.

    Over TCP it asks for its password, which is part of the DSN.
    """

    owned: Final = True
    name: ClassVar[str]
    users: ClassVar[tuple[str, ...]]
    """As whom to run it when the tests run as root: the first of these that exists."""
    last_word: ClassVar[signal.Signals]
    """What makes it stop at once."""
    patience: ClassVar[float] = 60.0
    """Seconds that it may take to start."""

    def __init__(self) -> None:
        # Short, because a Unix socket's path may have about a hundred characters; and outside root's home.
        self.folder = Path(tempfile.mkdtemp(prefix="creche-", dir="/tmp"))
        self.log = self.folder / "log"
        self.port = 0
        self._password: str = secrets.token_hex(8)
        self._identity: Identity = self._unprivileged()
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, if it is up: for tests that freeze it."""
        return self._server.pid if self._server else None

    @contextmanager
    def running(self) -> Generator[None]:
        """Make it and start it; gone with all its data at the end of the block, whatever that end is."""
        try:
            self.create()
            self.start()
            yield
        finally:
            self.remove()

    def create(self) -> None:
        """Lay out the data folder."""
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, self.folder],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": os.defpath},
        )
        self._hand_over(self.folder)
        self._lay_out()

    def start(self) -> None:
        """Start it and wait until it takes connections, on the same port as before."""
        if self._server is not None:
            return
        # A port taken in the meantime is drawn again, but not once there may be DSNs that name it.
        kept = self.port
        for attempt in range(5):
            self.port = kept or free_port()
            if self._try_start():
                return
            if not kept and _is_free(self.port):
                break  # it wasn't the port
            time.sleep(0.2 * attempt)
        raise self._failure("did not start")

    def stop(self, word: signal.Signals | None = None) -> None:
        """Stop it: its sessions are cut. At once, so that its next start recovers, unless another `word` than
        `last_word` asks for something else: what its own manual says about signals.
        """
        if self._server is not None:
            self._server.send_signal(word or self.last_word)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(10)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and all its sessions, as a power cut would. It can be started again."""
        server, self._server = self._server, None
        if server is None:
            return
        # Sessions may outlive a killed server for a moment, and a new one refuse to start beside them.
        sessions = _children(server.pid)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for session in sessions:
            with suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)
        # Their sockets close when they are gone, not when they are told to go.
        limit = time.monotonic() + 5
        while time.monotonic() < limit and any(map(_alive, sessions)):
            time.sleep(0.005)
        self._watch("")

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Stop it and all its sessions as they stand, for the length of the block. The kernel goes on taking
        connections for it.
        """
        assert self._server is not None
        processes = [self._server.pid, *_children(self._server.pid)]
        try:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)
            # A signal is sent before it has come, and until then the server goes on answering.
            limit = time.monotonic() + 5
            while time.monotonic() < limit and not all(map(_stands_still, processes)):
                time.sleep(0.001)
            yield
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def remove(self) -> None:
        """Stop it, and delete everything it had."""
        try:
            self.stop()
        finally:
            guard, self._guard = self._guard, None
            if guard is not None:
                guard.kill()
                guard.communicate()
            shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def _lay_out(self) -> None:
        """Fill the folder with what the server needs to start."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """What starts it, in the foreground, on `self.port`."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether the process that was started takes connections."""

    def _try_start(self) -> bool:
        server = self._server = self._spawn(self._command())
        limit = time.monotonic() + self.patience
        while time.monotonic() < limit and server.poll() is None:
            if self._ready():
                return True
            time.sleep(0.02)
        self.kill()
        return False

    def _run(self, command: Sequence[str | Path], *, limit: float = 120) -> None:
        """Run a program to its end, as the server's user.

        Raises:
            ServerFailed: it failed.
        """
        self._server = self._spawn(command)
        try:
            if self._server.wait(limit):
                raise self._failure(f"could not be set up by {Path(command[0]).name}")
        finally:
            self.kill()

    def _spawn(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, and they stop the server.
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity,
            )
        self._watch(process.pid)
        return process

    def _watch(self, process: int | str) -> None:
        """Tell the guard which process it has to end when the tests are gone."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.write(f"{process}\n".encode())
            self._guard.stdin.flush()

    def _failure(self, what: str) -> ServerFailed:
        log = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        return ServerFailed(f"{self.name} {what}:\n{log}")

    def _runs(self, *command: str | Path) -> bool:
        """Whether the server's user can run this at all."""
        try:
            subprocess.run(command, cwd=self.folder, capture_output=True, check=True, **self._identity)
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def _write(self, name: str, text: str) -> Path:
        """Write a file that only the server's user can read."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        self._hand_over(path)
        return path

    def _hand_over(self, path: Path) -> None:
        identity = self._identity
        if "user" in identity and "group" in identity:
            os.chown(path, identity["user"], identity["group"])

    def _unprivileged(self) -> Identity:
        """As whom to run the server: it refuses root."""
        if os.geteuid() != 0:
            return {}
        import pwd

        for name in self.users:
            with suppress(KeyError):
                user = pwd.getpwnam(name)
                return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        raise ServerFailed(f"{self.name} refuses to run as root, and there is no user {' or '.join(self.users)}")


def free_port() -> int:
    """A port below those that the kernel hands out, free just now."""
    while not _is_free(port := secrets.choice(PORTS)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _alive(pid: int) -> bool:
    return _state(Path(f"/proc/{pid}")) not in "ZX"


def _stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped, or have ended."""
    with suppress(OSError):
        return all(_state(thread) in "TZX" for thread in Path(f"/proc/{pid}/task").iterdir())
    return True


def _state(entry: Path) -> str:
    with suppress(OSError):
        return (entry / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"
