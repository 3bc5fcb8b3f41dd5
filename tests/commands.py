"""How tests run `creche` as people do: in processes of its own, in a folder with an application, under signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio

from creche import Queue
from creche._job import JobRecord
from processes import eventually

PATIENCE = 30.0  # seconds: a shared machine may be slow; nothing here waits for so long by itself
DSN = "sqlite:///jobs.db"

APP = """
    import os
    import time

    import anyio

    from creche import Job, Queue, Worker

    queue = Queue(os.environ.get("JOBS", "sqlite:///jobs.db"))
    worker = Worker(queue, concurrency=2)

    @queue.task("quick")
    async def quick(number: int = 0) -> int:
        return number

    @queue.task("slow")
    async def slow() -> None:
        await anyio.sleep(600)

    @queue.task("second")
    async def second() -> None:
        await anyio.sleep(1)

    @queue.task("blocking")
    async def blocking(seconds: float) -> None:
        time.sleep(seconds)

    @queue.task("boom", max_attempts=1)
    async def boom() -> None:
        raise ValueError("no such customer")

    @queue.task("crash", max_attempts=1)
    async def crash() -> None:
        os._exit(7)

    @queue.task("whoami")
    async def whoami() -> int:
        await anyio.sleep(0.3)
        return os.getpid()
"""


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without anything of ours."""
    ours = ("CRECHE_", "DATABASE_URL", "COLUMNS", "JOBS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def application(folder: Path, text: str = APP) -> Path:
    """Write the application into a folder, as the module `app`."""
    (folder / "app.py").write_text(textwrap.dedent(text))
    return folder


class Command:
    """A command that runs in the background.

    Attributes:
        process: its process.
    """

    def __init__(self, folder: Path, words: Sequence[str], before: Sequence[str], more: dict[str, str]) -> None:
        self._log = folder / f"stderr-{time.monotonic_ns()}"
        with self._log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-W", "error", "-m", "creche", *words],
                cwd=folder,
                env=environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def told(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text()

    def says(self, words: str, times: int = 1) -> None:
        """Wait until it has said so."""
        assert eventually(lambda: self.told.count(words) >= times, PATIENCE), f"no {words!r} in:\n{self.told}"

    def send(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; return the exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on:\n{self.told}") from None

    def children(self) -> list[int]:
        """Return the pids of its children."""
        return children_of(self.process.pid)


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children, whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        return sorted(int(each) for task in tasks.iterdir() for each in (task / "children").read_text().split())
    except FileNotFoundError:
        return []


@contextmanager
def started(folder: Path, *words: str, before: Sequence[str] = (), **more: str) -> Iterator[Command]:
    """Run a command for the length of the block; what is left of it and of its children is killed."""
    command = Command(folder, words, before, more)
    try:
        yield command
    finally:
        left = [*command.children(), command.process.pid]
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
        for pid in left[:-1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if command.process.stdout is not None:
            command.process.stdout.close()


def executed(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "creche", *words],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Jobs:
    """The jobs of an application, seen from outside.

    Args:
        dsn: where they are.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dispatch(
        self, type: str, payload: object = None, count: int = 1, *, queue: str = "default", max_attempts: int = 1
    ) -> list[UUID]:
        async def dispatch() -> list[UUID]:
            async with Queue(self._dsn) as jobs:
                options: Any = {"queue": queue, "max_attempts": max_attempts}
                return [(await jobs.dispatch(type, payload, **options)).job_id for _ in range(count)]

        return anyio.run(dispatch)

    def find(self, job_id: UUID) -> JobRecord:
        async def find() -> JobRecord:
            async with Queue(self._dsn) as jobs:
                return (await jobs.storage.find([job_id]))[job_id]

        return anyio.run(find)

    def status(self, job_id: UUID) -> Callable[[], str]:
        """Return what tells a job's status now."""
        return lambda: str(self.find(job_id).status)

    def becomes(self, job_id: UUID, status: str) -> None:
        """Wait until a job's status is this one."""
        assert eventually(lambda: self.find(job_id).status == status, PATIENCE), self.find(job_id)


def jobs_in(folder: Path) -> Jobs:
    """Return the jobs of the application in a folder."""
    return Jobs(f"sqlite:///{folder}/jobs.db")


def asked(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, Any]:
    """Ask a worker's health port; return the status and what the body says."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(body) if body else None
    finally:
        connection.close()
