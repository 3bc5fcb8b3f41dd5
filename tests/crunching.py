"""Handlers for processes of their own: they are found there by their names, so they stand in a module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from creche import Discard, Retry, Snooze, Tasks
from creche.errors import OptionInvalid

tasks = Tasks()


@tasks.task("square", cpu=True)
def square(number: int) -> int:
    return number * number


def cube(number: int) -> int:
    return number**3


def my_pid() -> int:
    return os.getpid()


def hold(path: str) -> None:
    """Write down who runs here, then stay."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def hold_with_a_child(path: str) -> None:
    """The same, with a program that was started here; interruptible by no signal but the last."""
    child = subprocess.Popen(["sleep", "60"])
    Path(path).write_text(f"{os.getpid()} {child.pid}")
    child.wait()


def meet(folder: str, name: str, number: int) -> int:
    """Return when so many are here at once."""
    (Path(folder) / name).touch()
    while len(list(Path(folder).iterdir())) < number:
        time.sleep(0.01)
    return os.getpid()


class Peculiar(Exception):
    """Pickle alone would bring it back with another message."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"code {code}")


class Closed(Exception):
    """Holds what no pickle takes."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Liar:
    """Can be pickled, and not be read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


RAISED: dict[str, BaseException] = {
    "peculiar": Peculiar(5),
    "closed": Closed("as it was"),
    "plain": ValueError("wrong", 7),
    "file": FileNotFoundError(2, "gone", "/nowhere"),
    "text": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
    "group": ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "snooze": Snooze(30),
    "snooze until": Snooze(until=datetime(2030, 1, 1, tzinfo=UTC)),
    "retry": Retry("later", delay=5),
    "discard": Discard("never"),
    "option": OptionInvalid("delay", -1, "zero or more"),
}


def fail(name: str) -> NoReturn:
    raise RAISED[name]


def fail_deep_down() -> None:
    try:
        fail("plain")
    except ValueError as error:
        raise RuntimeError("on the surface") from error


def leave(status: int) -> NoReturn:
    os._exit(status)


def leave_soon(status: int) -> None:
    leave(status)


def leave_a_fork_behind(seconds: float) -> None:
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    os._exit(5)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def lock() -> object:
    return threading.Lock()


def liar() -> object:
    return Liar()


def echo(value: object) -> object:
    return value


def speak() -> None:
    print("said aloud")  # noqa: T201 - that it is heard is what is tested
    os.write(1, b"said below Python\n")
    subprocess.run([sys.executable, "-c", "print('said by a program')"], check=True)
    print("said to the side", file=sys.stderr)  # noqa: T201


def swallow() -> str:
    """Read what comes in: it must be nothing, and not the worker's next request."""
    return sys.stdin.read() + os.read(0, 100).decode()


def send_myself(number: int) -> str:
    os.kill(os.getpid(), number)
    time.sleep(0.05)
    return "still here"


def signals_of_a_program() -> list[int]:
    """Return which signals a program that is started here ignores."""
    script = "import signal as s; print(*[n for n in range(1, 32) if s.getsignal(n) is s.SIG_IGN])"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return [int(number) for number in answer.stdout.split()]
