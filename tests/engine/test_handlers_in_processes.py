"""Handlers in processes of their own, on both event loops: real processes, real signals."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import crunching
from creche import Discard, Job, JobFailed, Queue, Retry, Snooze, Status, TaskInvalid, Worker
from creche._payload import describe
from creche._processes import Processes, check_cpu
from creche.errors import (
    CrecheError,
    JobTimeout,
    PayloadInvalid,
    ProcessDied,
    RaisedInProcess,
    ResultInvalid,
    StorageUnavailable,
    UnknownType,
)
from creche.storage.memory import MemoryStorage
from engine_kit import until
from processes import eventually, gone

pytestmark = pytest.mark.anyio


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()


async def call(processes: Processes, name: str, *arguments: Any) -> Any:
    with anyio.fail_after(30):
        return await processes.run("crunching", name, arguments, {})


async def pids(path: Path) -> list[int]:
    def written() -> list[int]:
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    await until(lambda: bool(written()), limit=20)
    return written()


# --- what comes back --------------------------------------------------------------------------------


async def test_a_task_runs_in_another_process_and_so_does_a_plain_function(processes: Processes) -> None:
    assert await call(processes, "square", 7) == 49
    assert await call(processes, "cube", 3) == 27
    assert await processes.run("crunching", "cube", [], {"number": 2}) == 8
    assert await call(processes, "my_pid") != os.getpid()


async def test_a_process_is_kept_for_the_next_job(processes: Processes) -> None:
    first = await call(processes, "my_pid")
    assert await call(processes, "my_pid") == first
    processes.close()
    assert gone(first)
    assert await call(processes, "my_pid") != first


async def test_a_process_that_nobody_needs_is_ended(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await call(processes, "my_pid")
    monkeypatch.setattr("creche._processes._IDLE", -1.0)
    assert await call(processes, "my_pid") != first
    assert gone(first)


async def test_processes_end_when_nobody_holds_them_any_more() -> None:
    processes = Processes()
    pid = await call(processes, "my_pid")
    del processes
    assert gone(pid)


async def test_one_that_was_killed_while_it_waited_is_not_used(processes: Processes) -> None:
    first = await call(processes, "my_pid")
    (waiting,) = processes._idle
    os.kill(first, signal.SIGKILL)
    await until(lambda: waiting.gone)  # a zombie is not, while one of its threads is still dying
    assert await call(processes, "my_pid") != first


async def test_many_run_at_once(processes: Processes, tmp_path: Path) -> None:
    seen: set[int] = set()

    async def one(name: str) -> None:
        seen.add(await call(processes, "meet", str(tmp_path), name, 6))

    async with anyio.create_task_group() as tasks:
        for index in range(6):
            tasks.start_soon(one, str(index))
    assert len(seen) == 6


async def test_large_values_go_there_and_back(processes: Processes) -> None:
    value = {"text": "é" * 3_000_000, "list": list(range(1000))}
    assert await call(processes, "echo", value) == value


@pytest.mark.parametrize("name", ["peculiar", "plain", "file", "text", "group", "option"])
async def test_an_error_comes_back_as_it_was_raised(processes: Processes, name: str) -> None:
    raised = crunching.RAISED[name]
    with pytest.raises(type(raised)) as caught:
        await call(processes, "fail", name)
    assert str(caught.value) == str(raised)
    failure = describe(caught.value)
    assert failure.type == describe(raised).type
    assert "raise RAISED[name]" in failure.traceback
    assert getattr(caught.value, "code", None) == getattr(raised, "code", None)


async def test_a_traceback_shows_where_it_went_wrong_and_why(processes: Processes) -> None:
    with pytest.raises(RuntimeError, match="on the surface") as caught:
        await call(processes, "fail_deep_down")
    failure = describe(caught.value)
    assert "ValueError: ('wrong', 7)" in failure.traceback
    assert "in fail_deep_down" in failure.traceback
    assert "serve" not in failure.traceback  # the frames of the process itself say nothing


async def test_a_handlers_wishes_arrive_as_such(processes: Processes) -> None:
    with pytest.raises(Snooze) as snoozed:
        await call(processes, "fail", "snooze")
    assert (snoozed.value.delay, snoozed.value.until) == (30, None)
    with pytest.raises(Snooze) as later:
        await call(processes, "fail", "snooze until")
    assert later.value.until == getattr(crunching.RAISED["snooze until"], "until", None) is not None
    with pytest.raises(Retry, match="later") as retried:
        await call(processes, "fail", "retry")
    assert (retried.value.reason, retried.value.delay) == ("later", 5)
    with pytest.raises(Discard) as discarded:
        await call(processes, "fail", "discard")
    assert discarded.value.reason == "never"


@pytest.mark.parametrize(
    ("name", "type", "message"),
    [
        ("closed", "crunching.Closed", "as it was"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", ""),
    ],
)
async def test_what_can_not_come_out_as_it_is_comes_out_as_text(
    processes: Processes, name: str, type: str, message: str
) -> None:
    with pytest.raises(RaisedInProcess) as caught:
        await call(processes, "fail", name)
    assert (caught.value.handler, caught.value.type, caught.value.message) == ("crunching.fail", type, message)
    assert "raise RAISED[name]" in describe(caught.value).traceback


@pytest.mark.parametrize("name", ["lock", "liar"])
async def test_a_result_that_can_not_leave_its_process_names_the_handler(processes: Processes, name: str) -> None:
    with pytest.raises(ResultInvalid, match=rf"crunching\.{name} returned"):
        await call(processes, name)
    assert await call(processes, "cube", 2) == 8


async def test_arguments_that_can_not_be_sent_name_the_handler(processes: Processes) -> None:
    with pytest.raises(PayloadInvalid, match=r"crunching\.echo runs in a process"):
        await call(processes, "echo", threading.Lock())


async def test_a_function_that_is_not_where_its_name_says_is_reported(processes: Processes) -> None:
    with pytest.raises(TaskInvalid, match=r"there is no crunching\.nowhere"):
        await call(processes, "nowhere")


def test_our_own_errors_survive_a_pickle() -> None:
    errors: list[CrecheError] = [
        UnknownType("a", ["b"]),
        PayloadInvalid("bad", path="$.x", type="t"),
        ProcessDied("app.crunch", -9),
        JobTimeout(5),
        StorageUnavailable("away"),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


# --- how processes end ------------------------------------------------------------------------------


async def test_cancelled_the_process_is_killed_with_all_that_it_started(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, processes, "hold_with_a_child", str(path))
        both = await pids(path)
        tasks.cancel_scope.cancel()
    assert len(both) == 2
    assert gone(both[0])  # when it returns
    assert eventually(lambda: gone(both[1]), 1)


async def test_cancelled_while_it_starts_nothing_is_left(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def spy(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    for delay in (0.0, 0.02, 0.1):
        with anyio.move_on_after(delay):
            await processes.run("crunching", "hold", ["/dev/null"], {})
    monkeypatch.undo()
    assert len(started) == 3
    assert all(each.returncode == -signal.SIGKILL for each in started)


@pytest.mark.parametrize(
    ("name", "argument", "status", "message"),
    [
        ("leave", [3], 3, "exit status 3"),
        ("leave", [0], 0, "exit status 0"),
        ("crash", [], -signal.SIGSEGV, "SIGSEGV"),
        ("send_myself", [signal.SIGKILL], -signal.SIGKILL, "SIGKILL"),
    ],
)
async def test_a_process_that_ends_is_an_error_and_the_next_job_gets_a_fresh_one(
    processes: Processes, name: str, argument: list[int], status: int, message: str
) -> None:
    before = await call(processes, "my_pid")
    with pytest.raises(ProcessDied, match=message) as caught:
        await call(processes, name, *argument)
    assert (caught.value.handler, caught.value.status) == (f"crunching.{name}", status)
    assert await call(processes, "my_pid") != before


async def test_a_fork_that_is_left_behind_hides_no_end(processes: Processes) -> None:
    with anyio.fail_after(20), pytest.raises(ProcessDied) as caught:
        await call(processes, "leave_a_fork_behind", 60)
    assert caught.value.status == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
async def test_signals_to_everybody_are_left_to_the_worker(processes: Processes, number: int) -> None:
    assert await call(processes, "send_myself", int(number)) == "still here"


async def test_programs_that_handlers_start_ignore_no_signal_of_ours(processes: Processes) -> None:
    ignored = set(await call(processes, "signals_of_a_program"))
    assert ignored.isdisjoint({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})


async def test_a_handler_reads_nothing_from_the_workers_input(processes: Processes) -> None:
    assert await call(processes, "swallow") == ""
    assert await call(processes, "cube", 2) == 8


WORKER = """
import anyio, sys
from creche import Queue, Worker
from creche._processes import Processes

async def main():
    await Processes().run("crunching", {name!r}, {arguments!r}, {{}})

anyio.run(main, backend=sys.argv[1])
"""


def _worker(backend: str, name: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WORKER.format(name=name, arguments=arguments), backend]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_a_handler_does_not_outlive_a_worker_that_is_killed(anyio_backend: str, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    with _worker(anyio_backend, "hold_with_a_child", str(path)) as worker:
        both = await pids(path)
        worker.kill()
        worker.wait()
        assert eventually(lambda: all(gone(pid) for pid in both), 1)


async def test_what_a_handler_prints_is_printed_where_the_worker_prints(anyio_backend: str) -> None:
    with _worker(anyio_backend, "speak") as worker:
        out, error = worker.communicate(timeout=30)
    assert worker.returncode == 0, error
    assert out.splitlines() == ["said aloud", "said below Python", "said by a program"]
    assert error.splitlines() == ["said to the side"]


MAIN = """
import dataclasses, os, sys
import anyio
from creche import Queue, Worker

queue = Queue("memory://")

@dataclasses.dataclass
class Point:
    x: int
    y: int

@queue.task("mirror", cpu=True)
def mirror(point: Point) -> Point:
    assert os.getpid() != int(os.environ["WORKER"])
    return Point(point.y, point.x)

async def main() -> None:
    os.environ["WORKER"] = str(os.getpid())
    async with queue, Worker(queue):
        receipt = await mirror.dispatch(Point(1, 2))
        print(await receipt.wait(30))

if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("way", [["main.py"], ["-m", "main"], ["-m", "app.main"]])
def test_handlers_may_stand_in_the_main_module(anyio_backend: str, tmp_path: Path, way: list[str]) -> None:
    (tmp_path / "app").mkdir()
    for place in (tmp_path / "main.py", tmp_path / "app" / "main.py"):
        place.write_text(MAIN)
    command = [sys.executable, *way, anyio_backend]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Point(x=2, y=1)\n", "")


# --- what is refused --------------------------------------------------------------------------------


def with_job(job: Job, number: int) -> int:
    return number


async def asynchronous() -> None: ...


class Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


def test_what_can_not_run_in_a_process_is_refused_at_once() -> None:
    def inner() -> None: ...

    unfit: list[tuple[Any, str]] = [
        (asynchronous, "async"),
        (lambda: None, "define it there"),
        (inner, "define it there"),
        (with_job, "`Job`"),
        (Callable(), "by its name"),
        (Callable().method, "by its name"),
    ]
    for function, why in unfit:
        with pytest.raises(TaskInvalid, match=why):
            check_cpu(function)
    check_cpu(crunching.cube)
    with pytest.raises(TaskInvalid, match="cpu=True"):
        Queue("memory://").task("inner", cpu=True)(inner)


# --- in a worker ------------------------------------------------------------------------------------


async def test_a_worker_runs_such_tasks_and_kills_what_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    async with Queue(MemoryStorage()) as queue:
        hold = queue.task("hold", cpu=True)(crunching.hold)
        leave = queue.task("leave", cpu=True, max_attempts=1)(crunching.leave_soon)
        queue.include(crunching.tasks)
        async with Worker(queue, lease=3):
            assert await (await crunching.square.dispatch(9)).wait(30) == 81
            died = await leave.dispatch(4)
            with pytest.raises(JobFailed, match="exit status 4"):
                await died.wait(30)
            held = await hold.dispatch(str(path))
            (pid,) = await pids(path)
            await queue.cancel(held.job_id)
            await until(lambda: gone(pid))
        assert (await held.refresh()).status is Status.CANCELLED
