"""The same mistake in each storage, and where the contract's tests of that storage stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sabotage.planting import Defect, Edit

SUITES: Final = {
    "memory": "tests/storage/test_memory.py::TestMemoryStorage",
    "sqlite": "tests/storage/test_sqlite.py::TestConformance",
    "postgresql": "tests/storage/test_postgresql.py::TestPostgreSQLStorage",
    "mysql": "tests/storage/test_mysql.py::TestMySQLStorage",
}
"""The class that holds each storage to the contract; MySQL and MariaDB are one."""


def kept(storage: str, test: str) -> str:
    """Return the node id of a test of the contract, for one storage."""
    return f"{SUITES[storage]}::{test}"


def in_each(name: str, breaks: str, test: str, edits: Mapping[str, Edit | Sequence[Edit]]) -> list[Defect]:
    """Return a defect for each storage, to be caught by one test of the contract's.

    Args:
        name: the storage's follows.
        breaks: see `Defect`.
        test: the name of a function.
        edits: by the name of the storage.
    """
    return [
        Defect(
            name=f"{name}-{storage}",
            breaks=breaks,
            edits=[each] if isinstance(each, Edit) else each,
            tests=[kept(storage, test)],
        )
        for storage, each in edits.items()
    ]
