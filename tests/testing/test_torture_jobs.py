"""What a torture's handlers say of themselves, so that an auditor who comes later knows what they knew."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from creche import Queue, Worker
from creche.testing._ledger import Entry, Ledger, read_ledger
from creche.testing.torture._jobs import Jobs
from creche.testing.torture._plan import Plan
from engine_kit import until

pytestmark = pytest.mark.anyio


async def test_when_its_loop_turns_again_a_worker_says_until_when_it_holds_its_jobs(tmp_path: Path) -> None:
    plan = Plan(engine="sqlite", lease=2.0)
    dsn = f"sqlite:///{tmp_path}/jobs.db"
    queue = Queue(dsn)
    jobs = Jobs(queue, dsn, Ledger(tmp_path, "worker-1"), plan)

    def told() -> list[Entry]:
        return read_ledger(tmp_path, "worker-1")

    jobs.set_clock()
    async with queue, Worker(queue, lease=plan.lease):  # nothing hears its events: a killed one would tell of none
        await queue.dispatch("long", {"key": "long", "number": 0})
        await until(lambda: any(entry["what"] == "begin" for entry in told()))
        await queue.dispatch("block", {"key": "block", "number": 0})
        await until(lambda: any(entry["what"] == "unblocked" for entry in told()), limit=20)
        await anyio.lowlevel.checkpoint()
    names = [entry["what"] for entry in told()]
    begun = next(entry for entry in told() if entry["what"] == "begin")
    said = told()[names.index("unblocked") + 1 :]
    beliefs = {entry["job"]: entry["until"] for entry in said if entry["what"] == "renewed"}
    assert begun["kind"] == "long"
    assert beliefs[begun["job"]] > begun["until"]
