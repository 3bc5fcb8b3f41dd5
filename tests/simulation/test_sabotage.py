"""The simulation finds what it is there to find: each planted defect, within a few seeds."""

from __future__ import annotations

import pytest

from simulation.plan import plan_of
from simulation.sabotage import MUTANTS
from simulation.world import simulate

SEEDS = range(0, 400, 2)  # those of short plans


@pytest.mark.parametrize("defect", MUTANTS)
def test_a_planted_defect_is_found(defect: str) -> None:
    with MUTANTS[defect]():
        found = next((seed for seed in SEEDS if simulate(plan_of(seed)).violations), None)
    assert found is not None
    assert not simulate(plan_of(found)).violations  # without the defect, all is well
