"""What tasks and threads are doing at this moment, for people. It changes nothing, waits for nothing, and never raises.

Stacks show where code is, never what its variables hold.
"""

from __future__ import annotations

import gc
import linecache
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

import anyio
from anyio import TaskInfo

from creche._attempt import Job

_DEEPEST: Final = 200  # frames of one task
_LOOPS: Final = frozenset({"asyncio", "trio", "uvloop"})
_MACHINERY: Final = _LOOPS | {"creche", "anyio", "outcome", "threading"}
_ATTRIBUTES: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
_SUSPENDED: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
# What stands between one frame and the next without saying which that is.
_WRAPPERS: Final = frozenset(
    {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
)
_INSTALLED: Final = tuple(
    {str(Path(path)) for path in map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")) if path}
)

type_of_place = tuple[str, int]
Place = tuple[CodeType, int]


# --- tasks ------------------------------------------------------------------------------------------


def describe_tasks() -> str:
    """Return what every task of the running event loop is doing: its name, and where it waits, with all that it awaits,
    the innermost last. Tasks stand below those that started them.
    """
    try:
        tasks: Sequence[TaskInfo] = anyio.get_running_tasks()
        current = anyio.get_current_task().id
    except Exception as error:  # noqa: BLE001 - not in a loop, or in one that is just ending
        return f"no tasks can be seen from here: {error or type(error).__name__}\n"
    lines = [f"{len(tasks)} tasks on {threads_and_loop()}:"]
    for depth, task in _below_their_parents(tasks):
        margin = "  " * (depth + 1)
        lines.append(f"{margin}{_title(task, current)}")
        lines += [f"{margin}  {line}" for line in _stack_of(task, current)]
    return "\n".join(lines) + "\n"
