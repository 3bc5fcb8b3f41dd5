"""Every way to end a worker, at every moment of its life, on both loops and all engines: one table says what follows.

All moments of one way are processes of one test, at the same time, each with a queue and a job of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import pytest
from attrs import frozen

from creche import Queue, Status
from creche._job import JobRecord, WorkerState
from faults.forked import Troupe
from faults.lifecycle_program import MOMENTS, Part, command, enough, guest, let_go
from processes import eventually, gone

# The columns: how a worker is ended; its exit code; after how many seconds from the last signal a coroutine is
# cancelled, at the earliest, and the process gone, at the latest (no handler would end by itself); and for each moment
# at which it was ended, what became of the job: its state (`waits` is pending, `done` is completed), its attempts, and
# how often a handler began to run it.
#
# - Idle: the job comes only afterwards. It waits, if nobody is left to run it.
# - What is given back has no attempt counted, though its handler had begun. Only what was killed, or frozen for longer
#   than its lease, has run for nothing: somebody else recovers it, and its second attempt completes it.
# - An end that was on its way is written, whatever the worker is told meanwhile. If it never came there it is as if the
#   handler had not run; if only its answer was lost, the job is over.
# - What a reserve brings after the stop is given back unseen.
# - A thread can't be ended: the job is given back, and the process ends without it; but see the test of guests.
TABLE: Final = """
way              exit  from  to  idle       reserving  coroutine  thread     process    settling   settled    renewing
TERM                0   0.5  12  waits 0/0  waits 0/0  waits 0/1  waits 0/1  waits 0/1  done 1/1   done 1/1   waits 0/1
INT                 0   0.5  12  waits 0/0  waits 0/0  waits 0/1  waits 0/1  waits 0/1  done 1/1   done 1/1   waits 0/1
TERM TERM           0   0.0  12  waits 0/0  waits 0/0  waits 0/1  waits 0/1  waits 0/1  done 1/1   done 1/1   waits 0/1
USR1, TERM          0   0.0  12  waits 0/0  waits 0/0  done 1/1   done 1/1   done 1/1   done 1/1   done 1/1   done 1/1
KILL               -9   0.0  12  done 1/1   done 2/1   done 2/2   done 2/2   done 2/2   done 2/2   done 1/1   done 2/2
STOP CONT, TERM     0   0.0  12  done 1/1   done 1/1   done 1/1   done 1/1   done 1/1   done 1/1   done 1/1   done 1/1
STOP…CONT, TERM     0   0.0  12  done 1/1   done 2/1   done 2/2   done 2/2   done 2/2   done 2/2   done 1/1   done 2/2
cancellation        0   0.0  12  waits 0/0  waits 0/0  waits 0/1  waits 0/1  waits 0/1  done 1/1   done 1/1   waits 0/1
"""
STATES: Final = {"waits": Status.PENDING, "done": Status.COMPLETED}
RUNNING: Final = ("coroutine", "thread", "process", "renewing")  # moments at which a handler runs
IN_ORDER: Final = (("idle", "coroutine", "thread", "process", "settling", "settled"), ("renewing",), ("reserving",))


@frozen(kw_only=True)
class Expected:
    """A line of the table; `cells` are by moment."""

    exit: int
    not_before: float
    within: float
    cells: Mapping[str, tuple[Status, int, int]]


def read_table() -> Mapping[str, Expected]:
    """Return the table's lines by their ways."""
    heads, *lines = [line.strip() for line in TABLE.strip().splitlines()]
    assert heads.split()[4:] == list(MOMENTS)
    return dict(map(_read_line, lines))


def _read_line(line: str) -> tuple[str, Expected]:
    way, code, not_before, within, *cells = [each.strip() for each in line.split("  ") if each.strip()]
    return way, Expected(
        exit=int(code),
        not_before=float(not_before),
        within=float(within),
        cells=dict(zip(MOMENTS, map(_read_cell, cells), strict=True)),
    )


def _read_cell(cell: str) -> tuple[Status, int, int]:
    state, _, numbers = cell.partition(" ")
    attempts, begun = numbers.split("/")
    return STATES[state], int(attempts), int(begun)


EXPECTED: Final = read_table()


# --- the stage --------------------------------------------------------------------------------------


class Scene:
    """Eight workers, each at its moment, and a database."""

    def __init__(self, troupe: Troupe, loop: str, lease: float) -> None:
        self.troupe = troupe
        self.loop = loop
        self.lease = lease

    def prepare(self, grace: float, run: Callable[..., None] = command, moments: Sequence[str] = MOMENTS) -> None:
        """Bring all workers to their moments; last to those which a worker does not stay at for long."""
        anyio.run(Queue(self.troupe.dsn).migrate)
        for moment in moments:
            part = Part(queues=[moment], at=moment, loop=self.loop, lease=self.lease, grace=grace)
            self.troupe.start(moment, run, self.troupe.folder, part)
        for together in IN_ORDER:
            here = [moment for moment in together if moment in moments]
            self.dispatch(*(moment for moment in here if moment != "idle"))
            self.troupe.until(partial(self._are_there, here))

    def _are_there(self, moments: Iterable[str]) -> bool:
        return all(map(self._is_there, moments))

    def _is_there(self, moment: str) -> bool:
        match moment:
            case "idle":
                return bool(self.troupe.entries("idle", moment))
            case "coroutine" | "thread" | "process":
                return self.begun(moment) > 0
            case _:
                return bool(self.troupe.entries("there", moment))

    def let_go(self) -> None:
        """Calls that are held go on."""
        let_go(self.troupe.folder)

    def enough(self) -> None:
        """Handlers end that run."""
        enough(self.troupe.folder)

    def add_an_heir(self) -> None:
        """Somebody else serves all queues from now on."""
        heir = Part(queues=MOMENTS, at=None, loop=self.loop, lease=60.0)
        self.troupe.start("heir", command, self.troupe.folder, heir)

    def dispatch(self, *moments: str) -> None:
        async def send() -> None:
            async with Queue(self.troupe.dsn) as queue:
                for moment in moments:
                    arguments = {"folder": str(self.troupe.folder), "moment": moment}
                    await queue.dispatch(moment, arguments, queue=moment, max_attempts=5)

        anyio.run(send)

    def jobs(self) -> Mapping[str, JobRecord]:
        """Return the jobs by their moments."""

        async def look() -> Mapping[str, JobRecord]:
            async with Queue(self.troupe.dsn) as queue:
                return {job.queue_name: job for job in await queue.jobs()}

        return anyio.run(look)

    def states(self) -> set[WorkerState]:
        """Return what the workers that are registered do."""

        async def look() -> set[WorkerState]:
            async with Queue(self.troupe.dsn) as queue:
                return {each.presence.state for each in await queue.workers()}

        return anyio.run(look)

    def begun(self, moment: str) -> int:
        """Return how often a handler of this moment's job has begun."""
        return len(self.troupe.entries("begun", moment=moment))

    def completed(self, *moments: str) -> bool:
        """Whether these jobs are completed."""
        jobs = self.jobs()
        return all(jobs[moment].status is Status.COMPLETED for moment in moments)


@pytest.fixture
def troupe(shared_dsn: str, tmp_path: Path) -> Iterator[Troupe]:
    troupe = Troupe(shared_dsn, tmp_path)
    yield troupe
    troupe.end()


# --- the ways: each returns when it sent the last signal ----------------------------------------------


def asked(scene: Scene, number: signal.Signals) -> float:
    scene.prepare(grace=0.5)
    at = scene.troupe.send(number)
    scene.troupe.until(lambda: scene.states() <= {WorkerState.STOPPING})
    scene.let_go()
    return at


def asked_twice(scene: Scene) -> float:
    scene.prepare(grace=60)
    scene.troupe.send(signal.SIGTERM)
    scene.troupe.until(lambda: scene.states() == {WorkerState.STOPPING})
    scene.let_go()
    time.sleep(0.5)
    assert all(scene.troupe.alive(moment) for moment in RUNNING), scene.troupe.told()
    return scene.troupe.send(signal.SIGTERM, *filter(scene.troupe.alive, MOMENTS))


def quieted(scene: Scene) -> float:
    scene.prepare(grace=60)
    scene.troupe.send(signal.SIGUSR1)
    scene.troupe.until(lambda: scene.states() == {WorkerState.QUIET})
    scene.let_go()
    scene.enough()
    scene.dispatch("idle")
    scene.troupe.until(lambda: scene.completed(*RUNNING, "settling", "settled"))
    time.sleep(0.3)
    assert all(scene.troupe.alive(moment) for moment in MOMENTS), scene.troupe.told()
    return scene.troupe.send(signal.SIGTERM)


def killed(scene: Scene) -> float:
    scene.prepare(grace=60)
    at = scene.troupe.send(signal.SIGKILL)
    scene.troupe.until(lambda: not any(map(scene.troupe.alive, MOMENTS)))
    scene.dispatch("idle")
    scene.add_an_heir()
    scene.troupe.until(lambda: scene.completed(*MOMENTS))
    return at


def stopped_for_less_than_the_lease(scene: Scene) -> float:
    scene.prepare(grace=60)
    scene.troupe.freeze()
    scene.dispatch("idle")
    time.sleep(0.6)
    assert not scene.completed("idle")
    scene.troupe.send(signal.SIGCONT)
    scene.let_go()
    scene.enough()
    scene.troupe.until(lambda: scene.completed(*MOMENTS))
    return scene.troupe.send(signal.SIGTERM)


def stopped_for_more_than_the_lease(scene: Scene) -> float:
    scene.prepare(grace=60)
    scene.troupe.freeze()
    scene.dispatch("idle")
    scene.add_an_heir()
    scene.troupe.until(lambda: scene.completed(*MOMENTS))
    scene.troupe.send(signal.SIGCONT, *MOMENTS)
    scene.let_go()
    for moment in (*RUNNING, "settling"):
        scene.troupe.until(partial(scene.troupe.entries, "lost", moment, attempt=1))
    return scene.troupe.send(signal.SIGTERM, *MOMENTS)


def cancelled(scene: Scene) -> float:
    scene.prepare(grace=60, run=guest)
    at = scene.troupe.send(signal.SIGHUP)
    time.sleep(0.2)
    scene.let_go()
    scene.troupe.until(lambda: len(scene.troupe.entries("through", scope=True)) == len(MOMENTS))
    scene.enough()  # for a thread, whose end a process waits for
    assert [entry["how"] for entry in scene.troupe.entries("over")] == ["cancelled"] * len(MOMENTS)
    return at


@frozen
class Way:
    """How workers are ended, and their lease in seconds.

    A third of it is what a worker waits for an answer, and so how long a call can be held: time enough for a signal to
    nine processes on a busy machine. Where a test has to wait until leases are over, they are shorter.
    """

    act: Callable[[Scene], float]
    lease: float = 9.0


WAYS: Final = {
    "TERM": Way(lambda scene: asked(scene, signal.SIGTERM)),
    "INT": Way(lambda scene: asked(scene, signal.SIGINT)),
    "TERM TERM": Way(asked_twice),
    "USR1, TERM": Way(quieted),
    "KILL": Way(killed, lease=4.0),
    "STOP CONT, TERM": Way(stopped_for_less_than_the_lease),
    "STOP…CONT, TERM": Way(stopped_for_more_than_the_lease, lease=4.0),
    "cancellation": Way(cancelled),
}


# --- what follows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", EXPECTED)
def test_whenever_and_however_a_worker_ends_its_job_is_where_the_table_says(
    troupe: Troupe, anyio_backend: str, way: str
) -> None:
    expected = EXPECTED[way]
    scene = Scene(troupe, anyio_backend, WAYS[way].lease)
    at = WAYS[way].act(scene)
    took = {moment: troupe.end_of(moment, expected.within + 10) - at for moment in MOMENTS}
    if "idle" not in scene.jobs():
        scene.dispatch("idle")
    dismiss(troupe)
    jobs = scene.jobs()
    found = {moment: (jobs[moment].status, jobs[moment].attempts, scene.begun(moment)) for moment in MOMENTS}
    assert found == expected.cells, troupe.told()
    codes = {moment: troupe.processes[moment].exitcode for moment in MOMENTS}
    assert codes == dict.fromkeys(MOMENTS, expected.exit), troupe.told()
    assert max(took.values()) < expected.within, troupe.told()
    if expected.not_before:
        given_up = troupe.entries("cancelled")
        assert {entry["moment"] for entry in given_up} == {"coroutine", "renewing"}
        assert min(entry["at"] for entry in given_up) - at >= expected.not_before, troupe.told()
    for entry in troupe.entries("begun", moment="process"):  # in a process of its own, which has to be gone, too
        assert eventually(partial(gone, entry["pid"])), troupe.told()


def dismiss(troupe: Troupe) -> None:
    """End whoever is left."""
    if "heir" in troupe.processes:
        troupe.send(signal.SIGTERM, "heir")
        troupe.end_of("heir", 30)
        assert troupe.processes["heir"].exitcode == 0, troupe.told()


def test_a_guest_whose_handler_sits_in_a_thread_lets_the_cancellation_through_and_trio_the_process_end(
    troupe: Troupe, anyio_backend: str
) -> None:
    scene = Scene(troupe, anyio_backend, lease=9.0)
    scene.prepare(grace=60, run=guest, moments=["thread"])
    troupe.send(signal.SIGHUP)
    troupe.until(lambda: troupe.entries("through", scope=True), limit=10)
    (job,) = scene.jobs().values()
    assert (job.status, job.attempts) == (Status.PENDING, 0)
    if anyio_backend == "asyncio":  # whose threads keep a process
        time.sleep(1)
        assert troupe.alive("thread"), troupe.told()
        scene.enough()
    troupe.end_of("thread", 10)
    assert troupe.processes["thread"].exitcode == 0, troupe.told()
