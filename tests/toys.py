"""A driver whose connections are toys, and what every pool has to be able to do at the end."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import attrs
from anyio import fail_after

from creche.errors import StorageUnavailable
from creche.storage._pool import Pool


@attrs.define(eq=False)
class Toy:
    """A connection that can be in a transaction, broken or closed, and nothing else."""

    dirty: bool = False
    broken: bool = False
    closed: bool = False


@attrs.define
class ToyDriver:
    made: list[Toy] = attrs.field(factory=list)
    delay: float = 0
    down: bool = False
    connects: int = 0

    async def connect(self) -> Toy:
        self.connects += 1
        await anyio.sleep(self.delay)
        if self.down:
            raise StorageUnavailable("nobody home")
        self.made.append(toy := Toy())
        return toy

    def usable(self, connection: Toy) -> bool:
        return self.clean(connection)

    def clean(self, connection: Toy) -> bool:
        return not (connection.dirty or connection.broken or connection.closed)

    async def close(self, connection: Toy) -> None:
        connection.closed = True
        await anyio.lowlevel.checkpoint()

    @property
    def open(self) -> int:
        return sum(not toy.closed for toy in self.made)


async def assert_whole(pool: Pool[Any], size: int) -> None:
    """Every slot can still be taken, all at the same time."""
    async with anyio.create_task_group() as tasks:
        full = anyio.Event()
        lent: list[object] = []

        async def hold() -> None:
            async with pool.acquire(timeout=5) as connection:
                lent.append(connection)
                if len(lent) == size:
                    full.set()
                await full.wait()

        for _ in range(size):
            tasks.start_soon(hold)
        with fail_after(5):
            await full.wait()
    assert len({id(connection) for connection in lent}) == size
