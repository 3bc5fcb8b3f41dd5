"""Processes for handlers that compute: started when one is needed, kept for the next job, killed with their attempt.

A process is one handler's at a time, leads a process group of its own, and dies with that whole group: what a handler
has started goes when it goes. It ends by itself when the worker is gone, however that ended; only a handler that sits
in foreign code without letting Python's other threads run gets to hear of it later. It writes to where the worker
writes, so that nothing it prints is lost. All that is set up in it is what the handler's module sets up when it is
imported: no queue is open there, no event loop runs, and logging is as Python makes it. Nothing here settles a job or
touches a database.

Arguments, results and errors travel by pickle. They are values that were decoded already, and go from one of our own
processes to the other over a socket that nobody else has: no byte that was stored by somebody is ever unpickled.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from importlib import import_module
from multiprocessing import spawn
from types import FrameType
from typing import Any, Final, NoReturn, cast

import anyio
from anyio import CancelScope
from attrs import frozen

from creche._attempt import Job
from creche._job import Failure
from creche._payload import describe
from creche.errors import PayloadInvalid, ProcessDied, RaisedInProcess, ResultInvalid, TaskInvalid, rebuilt

_IDLE: Final = 300.0  # seconds after which a process that nobody needs is ended
_DYING: Final = 2.0  # seconds that a process which said goodbye gets to end by itself: its own status tells more
_GLANCE: Final = 0.005  # seconds
_PULSE: Final = 500  # milliseconds
_LENGTH: Final = 8  # bytes, before each message

# Signals that reach a whole group or service, and that the worker alone is to act on.
_FOR_THE_WORKER: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_BOOT: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from creche._processes import serve
serve(int(sys.argv[1]))
"""


def check_cpu(function: Callable[..., Any]) -> None:
    """Raise TaskInvalid if a function can't run in a process of its own: it is found there by its name."""
    if why := _unfit(function):
        raise TaskInvalid(f"{function!r} can't have cpu=True: {why}")


def _unfit(function: Callable[..., Any]) -> str | None:
    if inspect.iscoroutinefunction(function):
        return "it is async, and runs in the event loop; call what computes from it, as a task of its own"
    name = getattr(function, "__qualname__", None)
    if name is None or inspect.ismethod(function):
        return "its process looks for a function by its name in a module, and this has none: write a `def`"
    if "<" in name:
        return "its process looks for it by its name in its module, so define it there, not within a function"
    with suppress(Exception):  # a signature that can't be read is refused by whoever needs it
        first = next(iter(inspect.signature(function, eval_str=True).parameters.values()), None)
        if first is not None and first.annotation is Job:
            return "a `Job` stays in the worker's process: take what it needs as arguments"
    return None


class RemoteTraceback(Exception):
    """The cause of an error that came out of a process: where it was raised there, as text."""

    def __str__(self) -> str:
        return f"in its own process:\n{self.args[0]}"


@frozen
class _Request:
    """What a process is to do.

    Attributes:
        main: how to come by what the worker's process calls `__main__`; None if it isn't needed.
        arguments: pickled by themselves, for they may need `main`.
    """

    main: Mapping[str, str] | None
    module: str
    qualname: str
    arguments: bytes


@frozen
class _Returned:
    result: bytes


@frozen
class _Raised:
    """What a handler raised: as it is, if it can be pickled; as text in any case."""

    error: bytes | None
    failure: Failure


# --- in the worker's process ------------------------------------------------------------------------


class Processes:
    """Runs handlers in processes; as many at once as it is asked to, for slots are given out elsewhere."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []

    async def run(self, module: str, qualname: str, positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Call a module's function in a process, and return or raise what it does.

        Cancelled, it kills the process and what that has started, and returns when it is gone.

        Raises:
            PayloadInvalid, ResultInvalid: the arguments or the result can't be pickled.
            RaisedInProcess: it raised what can't be.
            ProcessDied: its process ended.
        """
        handler = f"{module}.{qualname}"
        request = _request(handler, module, qualname, (tuple(positional), dict(named)))
        process = self._take()
        try:
            answer = await process.ask(request)
        except (OSError, EOFError):
            raise ProcessDied(handler, await process.see_off()) from None
        finally:
            if process.asking:
                await process.kill()
        self._idle.append(process)
        return _unpacked(handler, answer)

    def close(self) -> None:
        """End the processes that are waiting for work. Those at work end with their attempts."""
        while self._idle:
            self._idle.pop().end()

    def _take(self) -> _Process:
        """Return the process that was busy last, or a new one; let go of those that nobody needs."""
        now = time.monotonic()
        for each in [each for each in self._idle if each.gone or now - each.since > _IDLE]:
            self._idle.remove(each)
            each.end()
        return self._idle.pop() if self._idle else _Process()


class _Process:
    """A process, and our end of the socket to it. What is forgotten is ended: nothing outlives its owner."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(0)
        command = [sys.executable, "-u", "-c", _BOOT, str(theirs.fileno()), json.dumps(list(map(str, sys.path)))]
        with theirs:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - our own interpreter
                    command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
                )
            except BaseException:
                self._socket.close()
                raise
        self.end = weakref.finalize(self, _end, self._child, self._socket)
        self.asking = False
        self.since = time.monotonic()

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self._child.poll() is not None

    async def ask(self, request: bytes) -> bytes:
        """Return its answer; OSError or EOFError if it ends instead. If that fails, it is of no use any more."""
        self.asking = True
        await self._send(len(request).to_bytes(_LENGTH) + request)
        answer = await self._receive(int.from_bytes(await self._receive(_LENGTH)))
        self.asking = False
        self.since = time.monotonic()
        return answer

    async def see_off(self) -> int | None:
        """It ended, or is about to: return its exit status."""
        await self._wait(_DYING)
        await self.kill()
        return self._child.returncode

    async def kill(self) -> None:
        """Kill it with all its group, and wait until it is gone."""
        self.asking = False
        _kill_group(self._child)
        await self._wait(_DYING)
        self.end()

    async def _wait(self, seconds: float) -> None:
        with CancelScope(deadline=anyio.current_time() + seconds, shield=True):
            while not self.gone:  # noqa: ASYNC110 - the end of a process sets no event
                await anyio.sleep(_GLANCE)

    async def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    async def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            await anyio.wait_readable(self._socket)
            with suppress(BlockingIOError):
                part = self._socket.recv(min(size - len(data), 1 << 20))
                if not part:
                    raise EOFError
                data += part
        return bytes(data)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left in it; macOS says the latter
        os.killpg(child.pid, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes], ours: socket.socket) -> None:
    if child.poll() is None:
        _kill_group(child)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_DYING)
    ours.close()


def _request(handler: str, module: str, qualname: str, arguments: tuple[Any, Any]) -> bytes:
    try:
        pickled = pickle.dumps(arguments)
    except Exception as error:  # whatever a class's own `__reduce__` raises
        raise PayloadInvalid(f"{handler} runs in a process, and this can't be sent there: {error}") from error
    # The worker's `__main__` is most often the command `creche`: nothing that a handler needs, and slow to import.
    needs_main = module == "__main__" or b"__main__" in pickled
    return pickle.dumps(_Request(_main() if needs_main else None, module, qualname, pickled))


def _main() -> Mapping[str, str]:
    """Return how this process came by its `__main__`, in the words of `multiprocessing.spawn.prepare`."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return {"init_main_from_name": spec.name}
    path = getattr(main, "__file__", None)
    return {"init_main_from_path": os.path.abspath(path)} if path else {}  # noqa: PTH100 - resolves no links, as there


def _unpacked(handler: str, answer: bytes) -> Any:
    match pickle.loads(answer):  # noqa: S301 - from our own process; see the module's docstring
        case _Returned(result):
            try:
                return pickle.loads(result)  # noqa: S301
            except Exception as error:
                raise ResultInvalid(f"what {handler} returned can't leave its process: {error}") from error
        case _Raised(error, failure):
            raise _error(handler, error, failure) from RemoteTraceback(failure.traceback)
        case other:  # pragma: no cover - nothing else is sent
            raise AssertionError(other)


def _error(handler: str, pickled: bytes | None, failure: Failure) -> BaseException:
    with suppress(Exception):
        if pickled is not None:
            error = pickle.loads(pickled)  # noqa: S301
            if isinstance(error, Exception):
                return error
    return RaisedInProcess(handler, type=failure.type, message=failure.message)


# --- in the handler's process -----------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Answer requests until there are no more: what a process does."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    _leave_signals_to_the_worker(channel)
    threading.Thread(target=_end_with_the_worker, args=(channel, os.getppid()), daemon=True).start()
    while request := _read(channel):
        answer = pickle.dumps(_answer(pickle.loads(request)))  # noqa: S301
        channel.sendall(len(answer).to_bytes(_LENGTH) + answer)


def _leave_signals_to_the_worker(channel: socket.socket) -> None:
    # By a function that does nothing, for an ignored signal would stay ignored in each program that a handler starts.
    for each in _FOR_THE_WORKER:
        signal.signal(each, _do_nothing)

    def in_a_fork() -> None:
        channel.close()  # or the end of this process would not be seen while the fork lives
        for each in _FOR_THE_WORKER:
            signal.signal(each, signal.SIG_DFL)

    os.register_at_fork(after_in_child=in_a_fork)


def _do_nothing(_number: int, _frame: FrameType | None) -> None: ...


def _end_with_the_worker(channel: socket.socket, worker: int) -> NoReturn:
    ends = select.poll()
    ends.register(channel, 0)  # of nothing but its end
    while os.getppid() == worker and not ends.poll(_PULSE):
        pass
    while True:  # a handler that outlives its worker runs on past its lease
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _read(channel: socket.socket) -> bytes | None:
    return _exactly(channel, int.from_bytes(_exactly(channel, _LENGTH))) or None


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            return b""
        data += part
    return bytes(data)


def _answer(request: _Request) -> _Returned | _Raised:
    try:
        if request.main is not None:
            spawn.prepare(dict(request.main))
        function = _find(request.module, request.qualname)
        positional, named = pickle.loads(request.arguments)  # noqa: S301
        result = function(*positional, **named)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises ends its attempt, and nothing more
        return _Raised(_portable(error), describe(error))
    try:
        return _Returned(pickle.dumps(result))
    except Exception as error:  # noqa: BLE001 - whatever a class's own `__reduce__` raises
        what = f"{request.module}.{request.qualname} returned {_article(result)}"
        refused = ResultInvalid(f"{what}, which can't leave its process: {error}")
        return _Raised(pickle.dumps(refused), describe(error))


def _article(result: object) -> str:
    return f"an object of {type(result).__module__}.{type(result).__qualname__}"


def _find(module: str, qualname: str) -> Callable[..., Any]:
    """Return a function by its name, in whose place there is most often the task that was made of it."""
    try:
        found: Any = reduce(getattr, qualname.split("."), cast("Any", import_module(module)))
    except AttributeError as error:
        hint = "its process finds it by its name in its module, so leave it there"
        raise TaskInvalid(f"there is no {module}.{qualname}: {hint}") from error
    function: Callable[..., Any] = getattr(found, "function", found)
    return function


def _portable(error: BaseException) -> bytes | None:
    """Return an exception as bytes, or None if the worker could not make of them what it was."""
    try:
        data = pickle.dumps(error)
        if inspect.isfunction(type(error).__init__) and type(error).__reduce__ is BaseException.__reduce__:
            # Pickle would call its class with `args`, which are those of `super().__init__(…)`.
            data = pickle.dumps(_Rebuilt(error))
        copy = pickle.loads(data)  # noqa: S301
    except Exception:  # noqa: BLE001 - whatever a class's own methods raise
        return None
    return data if type(copy) is type(error) and str(copy) == str(error) else None


class _Rebuilt:
    """Stands for an exception while it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        return rebuilt, (type(self._error), self._error.args, self._error.__dict__)
