"""Check: a storage looks at its database. What each finds wrong with its own is tested with that storage."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from anyio import create_task_group, fail_after

from creche._job import Event, Finding, Severity, Status
from creche.abc import Storage
from creche.testing._conformance_base import (
    FOREVER,
    PATIENCE,
    T0,
    Suite,
    add,
    bring,
    everything,
    hold,
    settle,
    take,
)
from creche.testing._conformance_workers import presence


async def check(storage: Storage, **options: int) -> Sequence[Finding]:
    """Look, and hold what is found to what holds for every finding."""
    with fail_after(PATIENCE):
        findings = await storage.check(**options)
    assert findings
    for each in findings:
        assert each.check
        assert each.check == each.check.strip()
        assert each.message
        assert (each.severity is Severity.OK) == (not each.advice), each
    return findings


class CheckConformance(Suite):
    """`Storage.check`."""

    async def test_it_finds_something_and_says_what_to_do_about_what_is_not_well(self, storage: Storage) -> None:
        await check(storage)

    async def test_it_works_on_a_storage_that_is_not_open(self, unopened: Storage) -> None:
        await unopened.migrate()
        await check(unopened)
        async with unopened:
            await add(unopened)
            await check(unopened)
        await check(unopened)

    async def test_a_schema_that_is_missing_is_a_finding_and_stays_missing(self, unopened: Storage) -> None:
        pending = list(await unopened.pending_migrations())
        findings = await check(unopened)
        if pending:
            assert [each for each in findings if each.advice]
        assert list(await unopened.pending_migrations()) == pending
        assert list(await unopened.migrate()) == [name for name, _ in pending]
        async with unopened:
            await add(unopened)
            await take(unopened)

    async def test_of_a_schema_that_is_there_nothing_bad_is_said(self, storage: Storage) -> None:
        assert [each for each in await check(storage) if each.check == "schema" and each.advice] == []

    async def test_what_was_looked_at_is_the_same_each_time(self, storage: Storage) -> None:
        looked_at = [each.check for each in await check(storage)]
        await bring(storage, Status.FAILED)
        await hold(storage)
        assert [each.check for each in await check(storage)] == looked_at

    @pytest.mark.parametrize("concurrency", [1, 10, 100_000])
    async def test_it_holds_any_concurrency_against_what_there_is(self, storage: Storage, concurrency: int) -> None:
        await check(storage, concurrency=concurrency)

    async def test_it_changes_nothing(self, storage: Storage) -> None:
        for status in Status:
            await bring(storage, status)
        await storage.pause(["q"], now=T0)
        await storage.set_retention("q", FOREVER)
        await storage.announce(presence(), 60, now=T0)
        before = await everything(storage), list(await storage.stats(now=T0)), list(await storage.workers(now=T0))
        for _ in range(2):
            await check(storage)
        after = await everything(storage), list(await storage.stats(now=T0)), list(await storage.workers(now=T0))
        assert after == before
        assert list(await storage.pending_migrations()) == []

    async def test_it_disturbs_nobody_and_is_not_disturbed(self, storage: Storage) -> None:
        async def look() -> None:
            await check(storage, concurrency=10)

        async def work(name: str) -> None:
            for _ in range(3):
                await add(storage, queue_name=name)
                taken = await take(storage, queues=[name])
                assert await settle(storage, taken.lease, Event.SUCCEED, result=b"1")

        with fail_after(3 * PATIENCE):
            async with create_task_group() as group:
                for number in range(3):
                    group.start_soon(look)
                    group.start_soon(work, f"q{number}")
        counts = {each.queue_name: each.counts for each in await storage.stats(now=T0)}
        assert counts == {f"q{number}": {Status.COMPLETED: 3} for number in range(3)}

    async def test_many_looks_use_up_nothing(self, storage: Storage) -> None:
        for _ in range(20):
            await check(storage)
        await add(storage)
        assert (await take(storage)).attempt == 1
