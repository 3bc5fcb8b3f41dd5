"""A worker whose event loop is blocked for longer than its lease, while a rival is there and looks."""

from __future__ import annotations

import inspect
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import anyio
import pytest

from creche import Queue, Status
from creche._job import JobRecord
from faults.blocked_program import HOOKED, Part, block, block_while_settling, say, work
from faults.forked import Troupe

LEASE: Final = 1.5  # seconds
BLOCKED: Final = 3 * LEASE

KEPT_NOT: Final = "settle what is not kept"
QUEUES: Final = {
    "handler": ["block", "neighbour", "neighbour", "neighbour"],
    "settle": ["block while another's end is on its way", "end when told", "neighbour"],
    KEPT_NOT: ["block while another's end is on its way", "end when told", "neighbour"],
    HOOKED: ["end when told", "neighbour"],
}
"""The jobs of each worker that is blocked: by a handler, by one while a settle is in flight (which writes what is kept,
or deletes what is not), by a hook.
"""


@pytest.fixture
def troupe(shared_dsn: str, tmp_path: Path) -> Iterator[Troupe]:
    troupe = Troupe(shared_dsn, tmp_path)
    anyio.run(Queue(shared_dsn).migrate)
    yield troupe
    troupe.end()


def dispatch(troupe: Troupe, queue_name: str, types: Sequence[str], seconds: float) -> None:
    async def send() -> None:
        async with Queue(troupe.dsn) as queue:
            for each in types:
                await queue.dispatch(each, {"seconds": seconds}, queue=queue_name, max_attempts=5)

    anyio.run(send)


def jobs(troupe: Troupe) -> Sequence[JobRecord]:
    async def look() -> Sequence[JobRecord]:
        async with Queue(troupe.dsn) as queue:
            return await queue.jobs()

    return anyio.run(look)


def stage(troupe: Troupe, loop: str, queue_name: str, types: Sequence[str], seconds: float, **part: bool) -> None:
    """Have a worker begin jobs of its own queue."""
    dispatch(troupe, queue_name, types, seconds)
    troupe.start(queue_name, work, troupe.folder, Part(queues=[queue_name], loop=loop, lease=LEASE, **part))
    troupe.until(lambda: len(troupe.entries("begun", queue_name)) == len(types))


def block_beside_a_rival(troupe: Troupe, loop: str, *queue_names: str) -> None:
    """Have all loops be blocked, while a rival that serves all their queues looks for something to do."""
    troupe.start("rival", work, troupe.folder, Part(queues=queue_names, loop=loop, lease=LEASE))
    troupe.until(lambda: troupe.entries("idle", "rival"))
    say(troupe.folder, "go")
    troupe.until(lambda: len(troupe.entries("awake")) == len(queue_names), 60)
    time.sleep(LEASE)  # in which neighbours would learn of what they have lost
    say(troupe.folder, "enough")
    troupe.until(lambda: all(job.status is Status.COMPLETED for job in jobs(troupe)))


def end_well(troupe: Troupe) -> None:
    troupe.send(signal.SIGTERM)
    for who, process in troupe.processes.items():
        troupe.end_of(who, 30)
        assert process.exitcode == 0, troupe.told()


def line_of(handler: Callable[..., object], text: str) -> str:
    """Return where in a handler a line is, as the log has it."""
    lines, first = inspect.getsourcelines(handler)
    (number,) = (first + index for index, line in enumerate(lines) if line.strip().startswith(text))
    return f"{inspect.getsourcefile(handler)}:{number} in {handler.__name__}"


def test_while_a_loop_is_blocked_for_three_leases_nothing_that_it_holds_runs_twice_and_the_log_says_who_blocks(
    troupe: Troupe, anyio_backend: str
) -> None:
    for queue_name, types in QUEUES.items():
        stage(troupe, anyio_backend, queue_name, types, BLOCKED, keep=queue_name != KEPT_NOT)
    block_beside_a_rival(troupe, anyio_backend, *QUEUES)
    assert {job.attempts for job in jobs(troupe)} == {1}, troupe.told()
    begun = Counter(entry["job"] for entry in troupe.entries("begun"))
    assert set(begun.values()) == {1}, troupe.told()
    assert len(begun) == sum(map(len, QUEUES.values())), troupe.told()
    assert begun.keys() >= {str(job.id) for job in jobs(troupe)}
    assert not {job.queue_name for job in jobs(troupe)} & {KEPT_NOT}
    assert not troupe.entries("lost"), troupe.told()
    assert not troupe.entries("acked", "rival"), troupe.told()
    for queue_name in QUEUES:
        (blocking,), (awake,) = troupe.entries("blocking", queue_name), troupe.entries("awake", queue_name)
        assert awake["at"] - blocking["at"] >= BLOCKED
        looks = [each for each in troupe.entries("idle", "rival") if blocking["at"] < each["at"] < awake["at"]]
        assert looks[-1]["at"] - blocking["at"] > 2 * LEASE, troupe.told()  # it would have taken what it could
    assert line_of(block.function, "time.sleep") in troupe.said("handler")
    for queue_name in ("settle", KEPT_NOT):
        assert line_of(block_while_settling.function, "time.sleep") in troupe.said(queue_name)
    assert "not by a handler" in troupe.said(HOOKED)
    assert "in _Hook.job_succeeded" in troupe.said(HOOKED)
    end_well(troupe)


def test_what_blocks_the_whole_interpreter_for_longer_than_the_lease_loses_its_job_and_its_end_is_refused(
    troupe: Troupe, anyio_backend: str
) -> None:
    stage(troupe, anyio_backend, "native", ["block natively"], 4 * LEASE)
    block_beside_a_rival(troupe, anyio_backend, "native")
    troupe.until(lambda: troupe.entries("lost", "native", attempt=1))
    (job,) = jobs(troupe)
    assert (job.status, job.attempts) == (Status.COMPLETED, 2), troupe.told()
    begun = [(entry["who"], entry["attempt"]) for entry in troupe.entries("begun")]
    assert begun == [("native", 1), ("rival", 2)], troupe.told()
    acked = [(entry["who"], entry["attempt"]) for entry in troupe.entries("acked")]
    assert acked == [("rival", 2)], troupe.told()
    assert troupe.entries("acked")[0]["at"] < troupe.entries("awake")[0]["at"]  # nobody waited for the first one
    end_well(troupe)


@pytest.mark.parametrize("shared_dsn", ["sqlite"], indirect=True)  # what the test above would see if it were so
def test_without_somebody_to_renew_its_leases_a_blocked_loop_would_lose_them(
    troupe: Troupe, anyio_backend: str
) -> None:
    stage(troupe, anyio_backend, "handler", ["block"], 4 * LEASE, watched=False)
    block_beside_a_rival(troupe, anyio_backend, "handler")
    (job,) = jobs(troupe)
    assert (job.status, job.attempts) == (Status.COMPLETED, 2), troupe.told()
    assert len(troupe.entries("begun")) == 2
