"""The memory storage keeps the contract."""

from creche.storage.memory import MemoryStorage
from creche.testing import StorageConformance


class TestMemoryStorage(StorageConformance):
    def open_storage(self) -> MemoryStorage:
        return MemoryStorage()
