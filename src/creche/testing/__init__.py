"""What ships for the author of another storage, and for tests of code that dispatches jobs."""

from __future__ import annotations

import pytest

# Before they are imported: pytest explains a failed assert only in modules that it rewrote.
pytest.register_assert_rewrite(
    "creche.testing._conformance_base",
    "creche.testing._conformance_callback_texts",
    "creche.testing._conformance_callbacks",
    "creche.testing._conformance_cancellation",
    "creche.testing._conformance_check",
    "creche.testing._conformance_dedup",
    "creche.testing._conformance_delete",
    "creche.testing._conformance_ends",
    "creche.testing._conformance_insert",
    "creche.testing._conformance_joins",
    "creche.testing._conformance_listen",
    "creche.testing._conformance_maintain",
    "creche.testing._conformance_pause",
    "creche.testing._conformance_people",
    "creche.testing._conformance_progress",
    "creche.testing._conformance_races",
    "creche.testing._conformance_reserve",
    "creche.testing._conformance_retention",
    "creche.testing._conformance_settle",
    "creche.testing._conformance_shared",
    "creche.testing._conformance_table",
    "creche.testing._conformance_transaction",
    "creche.testing._conformance_twin",
    "creche.testing._conformance_unkept",
    "creche.testing._conformance_watch",
    "creche.testing._conformance_workers",
    "creche.testing._machine_session",
    "creche.testing._machine_rivals",
    "creche.testing._machine_rules",
    "creche.testing.conformance",
)

from creche.testing.conformance import StorageConformance  # noqa: E402 - see above
from creche.testing.machine import StoredJob, StoredRows, store_machine  # noqa: E402 - see above

__all__ = ["StorageConformance", "StoredJob", "StoredRows", "store_machine"]
