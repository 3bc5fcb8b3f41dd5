"""What the simulation's handlers do with their jobs: the scripts of a plan. The ledger hears of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import anyio
import trio

from creche import Discard, Job, Snooze
from simulation.ledger import Ledger, Visit
from simulation.lives import LIFE
from simulation.plan import Script

_STEP = 2.5  # seconds


class Broken(Exception):
    """A handler fails, as planned."""


async def perform(ledger: Ledger, job: Job, script: Script, length: float) -> str:
    """Do what a script says, for `length` seconds, and tell the ledger."""
    life = LIFE.get()
    assert life is not None
    visit = ledger.enter(life, job)
    result = f"{job.id} {job.lease.token} {job.lease.nonce}"
    visit.result = f'"{result}"'.encode()
    try:
        await SCRIPTS[script](visit, length)
    except trio.Cancelled:
        ledger.leave(visit, "was cancelled")
        raise
    except Exception as error:
        ledger.leave(visit, f"raised {type(error).__name__}")
        raise
    ledger.leave(visit, "returned")
    return result


async def _work(_: Visit, length: float) -> None:
    await anyio.sleep(length)


async def _steps(visit: Visit, length: float) -> None:
    for step in range(int(length / _STEP)):
        await anyio.sleep(_STEP)
        await visit.job.progress(step * _STEP / length, f"step {step}")


async def _fail(visit: Visit, length: float) -> None:
    await anyio.sleep(length)
    if visit.job.attempt < visit.job.max_attempts:
        raise Broken


async def _poison(_: Visit, length: float) -> None:
    await anyio.sleep(length)
    raise Broken


async def _snooze(visit: Visit, length: float) -> None:
    await anyio.sleep(length)
    if visit.job.id not in visit.life.place.snoozed:
        visit.life.place.snoozed.add(visit.job.id)
        raise Snooze(20)


async def _discard(_: Visit, length: float) -> None:
    await anyio.sleep(length)
    raise Discard("as planned")


async def _stubborn(visit: Visit, length: float) -> None:
    try:
        await anyio.sleep(length)
    except trio.Cancelled:
        visit.swallowing = True
        with anyio.CancelScope(shield=True):
            await anyio.sleep(length)
        raise


async def _kill(visit: Visit, length: float) -> None:
    await anyio.sleep(length)
    if visit.job.attempt < visit.job.max_attempts:
        visit.life.kill()
        await anyio.sleep_forever()


async def _commit(visit: Visit, length: float) -> None:
    await anyio.sleep(length)
    async with visit.job.transaction():
        visit.job.set_result((visit.result or b"").decode().strip('"'))
        visit.committing = True


async def _extend(visit: Visit, length: float) -> None:
    await visit.job.extend(length + 5)
    await anyio.sleep(length)


SCRIPTS: Final[Mapping[Script, Callable[[Visit, float], Awaitable[None]]]] = {
    Script.WORK: _work,
    Script.STEPS: _steps,
    Script.FAIL: _fail,
    Script.POISON: _poison,
    Script.SNOOZE: _snooze,
    Script.DISCARD: _discard,
    Script.STUBBORN: _stubborn,
    Script.KILL: _kill,
    Script.COMMIT: _commit,
    Script.EXTEND: _extend,
}
