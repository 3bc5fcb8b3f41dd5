"""A handler that leaks is no outage: its worker ends before it has grown too large, and a fresh one takes its place."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from commands import application, started
from creche import Queue
from creche._ids import new_job_id
from creche._job import NewJob
from processes import gone

JOBS = 5_000
LEAK = 100_000  # bytes that each job leaves behind: half a gigabyte in all
LIMIT = 140_000_000  # bytes
SLACK = 40_000_000  # bytes: what jobs add between two looks, and those in hand after the second
PATIENCE = 50.0  # seconds

APP = f"""
    import os
    from pathlib import Path

    from creche import Queue

    queue = Queue(os.environ["JOBS"])
    leaked = []
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND)

    @queue.task("leak")
    async def leak(number: int) -> None:
        leaked.append(b"x" * {LEAK})
        os.write(journal, f"{{number}} {{os.getpid()}}\\n".encode())
"""


def fill(dsn: str) -> None:
    async def insert() -> None:
        async with Queue(dsn) as queue:
            for start in range(0, JOBS, 500):
                jobs = [
                    NewJob(id=new_job_id(), type="leak", payload=b'{"number":%d}' % number)
                    for number in range(start, start + 500)
                ]
                await queue.storage.insert(jobs)

    anyio.run(Queue(dsn).migrate)
    anyio.run(insert)


def counts(dsn: str) -> dict[str, int]:
    async def count() -> dict[str, int]:
        async with Queue(dsn) as queue:
            (stats,) = await queue.storage.stats()
            return {str(status): number for status, number in stats.counts.items()}

    return anyio.run(count)


@contextmanager
def sampled(pids: list[int], sizes: Counter[int]) -> Iterator[None]:
    """Note for each of these processes how large it has been, until the block is left."""
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            for pid in list(pids):
                sizes[pid] = max(sizes[pid], resident(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has; 0, if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")), 0)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_jobs_that_leak_are_all_done_once_in_processes_that_stay_small(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    dsn = str(request.getfixturevalue(f"{engine}_dsn"))
    application(tmp_path, APP)
    journal = tmp_path / "journal"
    journal.touch()
    fill(dsn)
    pids: list[int] = []
    sizes: Counter[int] = Counter()
    words = ["worker", "app:queue", "--processes", "2", "--max-memory", str(LIMIT), "--burst", "--log-level", "warning"]
    with (
        started(tmp_path, *words, JOBS=dsn, JOURNAL=str(journal)) as supervisor,
        sampled(pids, sizes),
    ):
        deadline = time.monotonic() + PATIENCE
        while supervisor.process.poll() is None:
            assert time.monotonic() < deadline, f"{len(journal.read_text().splitlines())} jobs ran\n{supervisor.told}"
            pids[:] = supervisor.children()
            time.sleep(0.05)
        assert supervisor.process.returncode == 0, supervisor.told
    runs = [line.split() for line in journal.read_text().splitlines()]
    assert Counter(number for number, _ in runs) == {str(number): 1 for number in range(JOBS)}
    assert counts(dsn) == {"completed": JOBS}
    workers = {int(pid) for _, pid in runs}
    assert len(workers) >= JOBS * LEAK / LIMIT, "they were replaced"
    assert workers <= set(sizes)
    assert max(sizes.values()) < LIMIT + SLACK, sizes
    assert all(map(gone, workers))
