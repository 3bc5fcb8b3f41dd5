"""A task group for background services that leaves its block's own exceptions as they are, and what only the event loop
beneath it knows. It runs no job.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio.lowlevel
from anyio import create_task_group, current_time
from anyio.abc import TaskGroup


@asynccontextmanager
async def background(*, farewell: float = 0.0) -> AsyncGenerator[TaskGroup]:
    """Run services while the block runs, and cancel them when it is left.

    What the block raises comes out as it is, not inside an exception group; what a service raises cancels the
    block, and comes out in a group.

    Args:
        farewell: seconds that services have to end by themselves when the block is left, unless it is cancelled.
    """
    raised: Exception | None = None
    async with create_task_group() as services:
        try:
            yield services
        except Exception as error:  # noqa: BLE001 - it is raised again below, as it was
            raised = error
        if farewell:
            services.cancel_scope.deadline = current_time() + farewell
        else:
            services.cancel_scope.cancel()
    if raised is not None:
        raise raised


def current_backend() -> str:
    """Return the name of the event loop that runs here, as `anyio.run(…, backend=…)` takes it: asyncio or trio."""
    return anyio.lowlevel.current_token().backend_class.__module__.rpartition("_")[2]


def count_cancellations() -> Callable[[], int]:
    """Return what counts the cancellations of this task that were asked for past anyio, and not taken back: on asyncio
    each goes on telling whoever runs in the task later that it is being cancelled. On trio there is no such thing.
    """
    task = asyncio.current_task() if current_backend() == "asyncio" else None
    return (lambda: 0) if task is None else task.cancelling
