"""A task group for background services that leaves its block's own exceptions as they are. It runs no job."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from anyio import create_task_group
from anyio.abc import TaskGroup


@asynccontextmanager
async def background() -> AsyncGenerator[TaskGroup]:
    """Run services while the block runs, and cancel them when it is left.

    What the block raises comes out as it is, not inside an exception group; what a service raises cancels the
    block, and comes out in a group.
    """
    raised: Exception | None = None
    async with create_task_group() as services:
        try:
            yield services
        except Exception as error:  # noqa: BLE001 - it is raised again below, as it was
            raised = error
        services.cancel_scope.cancel()
    if raised is not None:
        raise raised
