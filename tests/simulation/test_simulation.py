"""The whole engine, for hours of virtual time, whatever goes wrong: docs/reliability.md says what is simulated and how.

One seed again: `CRECHE_SIMULATION_SEED=17`. More of it all: `CRECHE_HYPOTHESIS_PROFILE=deep`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.plan import ANYWHERE, STORM, Fault, JobPlan, Kind, Plan, Script, WorkerPlan, draw_plan, plan_of
from simulation.world import simulate

ROOT = Path(__file__).parents[2]
DEEP = os.environ.get("CRECHE_HYPOTHESIS_PROFILE") == "deep"
SEED = os.environ.get("CRECHE_SIMULATION_SEED")
HOURS = 100_000 if DEEP else 60


def keeps_every_promise(plan: Plan) -> None:
    report = simulate(plan)
    assert not report.violations, str(report)


@pytest.mark.skipif(SEED is not None, reason="one seed is asked for")
@given(st.builds(draw_plan, st.randoms(use_true_random=False), st.just(STORM)))
@settings(max_examples=2_000 if DEEP else 20, derandomize=not DEEP, suppress_health_check=list(HealthCheck))
def test_whatever_goes_wrong_every_promise_is_kept(plan: Plan) -> None:
    keeps_every_promise(plan)


def test_for_hours_every_promise_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    hours = cpu = 0.0
    for seed in [int(SEED)] if SEED else count():
        report = simulate(plan_of(seed))
        assert not report.violations, f"CRECHE_SIMULATION_SEED={seed}\n{report}"
        hours, cpu = hours + report.worker_hours, cpu + report.cpu
        if hours >= HOURS:
            break
    with capsys.disabled():
        print(f" {hours:,.0f} worker-hours, {hours / cpu * 60:,.0f} per minute of CPU ", end="")


def test_a_seed_gives_the_same_events_in_every_process() -> None:
    seeds = ["0", "1", "2"]
    command = [sys.executable, "-m", "simulation", "--digests", *seeds]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    outputs = {
        subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hashing}, capture_output=True, check=True
        ).stdout.decode()
        for hashing in ("1", "2")
    }
    digests = [simulate(plan_of(int(seed))).digest for seed in seeds]
    assert outputs == {"".join(f"{seed} {digest}\n" for seed, digest in zip(seeds, digests, strict=True))}
    assert len(set(digests)) == len(seeds)


ONE_JOB = Plan(
    seed=0,
    hours=0,
    dispatchers=1,
    workers=(WorkerPlan(lease=10, grace=1), WorkerPlan(lease=10, grace=1)),
    jobs=(
        JobPlan(at=1.0, length=2.0, script=Script.STEPS, max_attempts=3, followed=True, awaited=True),
        JobPlan(at=1.0, length=1.0, script=Script.COMMIT, key=1),
    ),
)


WORKER, DISPATCHER = 0, 2


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, WORKER) for kind in (Kind.CRASH, Kind.TERM, Kind.ABORT, Kind.PAUSE)] + [(Kind.CRASH, DISPATCHER)],
)
def test_a_process_may_end_or_stand_still_at_every_step(kind: Kind, where: int) -> None:
    for step in range(0, 150, 1 if DEEP else 10):
        fault = Fault(at=1.0, lasts=15, kind=kind, where=where, strength=step)
        keeps_every_promise(evolve(ONE_JOB, seed=step, faults=(fault,)))


def test_a_lost_wake_costs_no_more_than_a_poll() -> None:
    jobs = tuple(JobPlan(at=30.0 * number, delay=number % 3, cancel_after=5) for number in range(1, 40))
    deaf = Fault(at=0, lasts=3_600, kind=Kind.DEAF, where=ANYWHERE)
    keeps_every_promise(evolve(ONE_JOB, jobs=jobs, faults=(deaf,)))


def test_the_simulation_has_its_hands_on_every_wall_clock_of_the_engine() -> None:
    """The event loop's clock is monotonic; whatever else tells the time has to be stubbed."""
    wall = {"time", "time_ns", "now", "utcnow", "today"}
    read = {
        path.stem
        for path in (ROOT / "src" / "creche").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in wall
    }
    assert read == {"_ids", "_bulk"}
