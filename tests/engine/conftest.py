"""Fixtures for the engine: it runs on the memory storage, and mostly in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from creche import Queue
from engine_kit import Faulty


@pytest.fixture
async def storage() -> Faulty:
    return Faulty()


@pytest.fixture
async def queue(storage: Faulty) -> AsyncIterator[Queue]:
    async with Queue(storage) as queue:
        yield queue
