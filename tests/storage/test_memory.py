"""The memory storage keeps the contract; and what is its own."""

import pytest

from creche._job import Severity
from creche.storage.memory import MemoryStorage
from creche.testing import StorageConformance


class TestMemoryStorage(StorageConformance):
    def open_storage(self) -> MemoryStorage:
        return MemoryStorage()


def test_it_has_no_twin() -> None:
    assert MemoryStorage().twin() is None


@pytest.mark.anyio
async def test_a_doctor_hears_that_its_jobs_end_with_the_process() -> None:
    (finding,) = await MemoryStorage().check(concurrency=10)
    assert (finding.check, finding.severity) == ("durability", Severity.WARNING)
    assert "SQLite" in finding.advice
