"""SQLite: the contract, and what only a file that several processes share can do to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from creche.abc import Storage
from creche.storage.sqlite import SQLiteStorage
from creche.testing import StorageConformance


class TestConformance(StorageConformance):
    @pytest.fixture
    async def unopened(self, tmp_path: Path) -> Storage:
        return SQLiteStorage(tmp_path / "jobs.db", synchronous="NORMAL")
