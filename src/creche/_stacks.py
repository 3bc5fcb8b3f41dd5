"""What tasks and threads are doing at this moment, for people. It changes nothing, waits for nothing, and never raises.

Stacks show where code is, never what its variables hold.
"""

from __future__ import annotations

import gc
import inspect
import linecache
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

import anyio
from anyio import TaskInfo

from creche._attempt import Job

_DEEPEST: Final = 200  # frames of one task
_LOOPS: Final = frozenset({"asyncio", "trio", "uvloop"})
_MACHINERY: Final = _LOOPS | {"creche", "anyio", "outcome", "threading"}
_WAITING: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
_SUSPENDED: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
# They stand between one frame and the next, and don't say which that is.
_WRAPPERS: Final = frozenset(
    {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
)
_PATHS: Final = map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
_INSTALLED: Final = tuple({f"{path}/" for path in _PATHS if path} | {"<frozen "})


# --- tasks ------------------------------------------------------------------------------------------


def describe_tasks() -> str:
    """Return what every task of the running event loop is doing: its name, and where it waits, with all that it awaits,
    the innermost last. Tasks stand below those that started them.
    """
    try:
        tasks: Sequence[TaskInfo] = anyio.get_running_tasks()
        current = anyio.get_current_task().id
    except Exception as error:  # noqa: BLE001 - no loop runs here, or one that is just ending
        return f"no tasks can be seen from here: {type(error).__name__}: {error}\n"
    lines = [f"{len(tasks)} tasks:"]
    for depth, task in _below_their_parents(tasks):
        margin = "  " * depth
        title, stack = _look_at(task, current)
        lines.append(f"{margin}{title}")
        lines += [f"{margin}  {line}" for line in stack]
    return "\n".join(lines) + "\n"


def _below_their_parents(tasks: Sequence[TaskInfo]) -> Iterator[tuple[int, TaskInfo]]:
    """Yield each task once, with its depth in the tree."""
    known = {task.id for task in tasks}
    children: dict[int | None, list[TaskInfo]] = defaultdict(list)
    for task in tasks:
        children[task.parent_id if task.parent_id in known else None].append(task)
    waiting = [(0, task) for task in reversed(children[None])]
    while waiting:
        depth, task = waiting.pop()
        yield depth, task
        waiting += [(depth + 1, child) for child in reversed(children.pop(task.id, ()))]


def _look_at(task: TaskInfo, current: int) -> tuple[str, Sequence[str]]:
    """Return what a task is called, after the job that it runs if there is one, and its stack."""
    name = str(task.name)
    try:
        frames = _running(task.coro) if task.id == current else list(_awaited(task.coro))
        job = next(filter(None, map(_job_of, frames)), None)
        name = name if job is None else f"job {job.id}"
        stack = [line for frame in frames for line in _describe(frame)] or ["not begun, or over"]
    except Exception as error:  # noqa: BLE001 - coroutines may be objects of any make
        stack = [f"can't be looked into: {type(error).__name__}: {error}"]
    return _title(task, name, current), stack


def _title(task: TaskInfo, name: str, current: int) -> str:
    signs = [name]
    try:
        if task.has_pending_cancellation():
            signs.append("cancelled")
    except Exception:  # noqa: BLE001, S110 - it looks into the loop's own variables
        pass
    if task.id == current:
        signs.append("running now")
    return ", ".join(signs)


def _awaited(awaitable: object) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, from the outermost to the innermost."""
    for _ in range(_DEEPEST):
        awaitable = _unwrapped(awaitable)
        for frame, awaited in _WAITING:
            if hasattr(awaitable, awaited):
                if (here := getattr(awaitable, frame, None)) is not None:
                    yield here
                awaitable = getattr(awaitable, awaited)
                break
        else:
            return


def _unwrapped(awaitable: object) -> object:
    for _ in range(_DEEPEST):
        if type(awaitable).__name__ not in _WRAPPERS:
            break
        awaitable = next(filter(_leads_on, gc.get_referents(awaitable)), None)
    return awaitable


def _leads_on(thing: object) -> bool:
    return isinstance(thing, _SUSPENDED) or type(thing).__name__ in _WRAPPERS


def _running(coroutine: Any) -> list[FrameType]:
    """Return the frames of the coroutine that is running here and now: it awaits nothing."""
    outermost = getattr(coroutine, "cr_frame", None)
    frames = [frame for frame in _inward(inspect.currentframe()) if frame.f_globals is not globals()]
    return frames[frames.index(outermost) :] if outermost in frames else frames


# --- threads ----------------------------------------------------------------------------------------


def describe_thread(ident: int) -> str:
    """Return where a thread is, without what led to the code of the application: how the event loop came to call it."""
    frames = _frames_of(ident)
    if not frames:
        return f"thread {ident} is gone\n"
    return "\n".join(line for frame in _own(frames) for line in _describe(frame)) + "\n"


def handler_of(ident: int) -> tuple[Job, str] | None:
    """Return the attempt whose handler runs in an event loop's thread at this moment, and the line of the application
    that it has come to; None if there is none.
    """
    frames = _frames_of(ident)
    for index, frame in enumerate(frames):
        if (job := _job_of(frame)) is not None:
            return job, _place(frames[index + 1 :] or [frame])
    return None


def _frames_of(ident: int) -> list[FrameType]:
    frame = sys._current_frames().get(ident)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - documented all the same
    return [] if frame is None else _inward(frame)


def _inward(frame: FrameType | None) -> list[FrameType]:
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _job_of(frame: FrameType) -> Job | None:
    """Return the job, if this is the place where the engine calls a handler."""
    if frame.f_code.co_name != "call" or frame.f_globals.get("__name__") != "creche._handlers":
        return None
    job = frame.f_locals.get("job")
    return job if isinstance(job, Job) else None


def _own(frames: Sequence[FrameType]) -> Sequence[FrameType]:
    """Leave out what led to the application: all up to where the engine calls a handler, or else the loop calls."""
    calls = [index for index, frame in enumerate(frames) if _job_of(frame) is not None]
    if not calls:
        calls = [index for index, frame in enumerate(frames) if _package(frame) in _LOOPS]
    rest = frames[calls[-1] + 1 :] if calls else frames
    while rest and _package(rest[0]) in _MACHINERY:
        rest = rest[1:]
    return rest or frames


def _place(frames: Sequence[FrameType]) -> str:
    """Return the innermost line that is the application's: it may be installed, but then next to its handler."""
    home = _package(frames[0])
    own = [each for each in frames if _package(each) == home or not each.f_code.co_filename.startswith(_INSTALLED)]
    frame = [each for each in own if _package(each) not in _MACHINERY] or frames[:1]
    code = frame[-1].f_code
    return f"{code.co_filename}:{frame[-1].f_lineno} in {code.co_name}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


# --- frames -----------------------------------------------------------------------------------------


def _describe(frame: FrameType) -> Iterable[str]:
    """Return one frame in the form of Python's own tracebacks."""
    code, number = frame.f_code, frame.f_lineno or 0
    yield f'File "{code.co_filename}", line {number}, in {code.co_qualname}'
    if source := linecache.getline(code.co_filename, number, frame.f_globals).strip():
        yield f"  {source}"
