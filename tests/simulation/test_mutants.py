"""The simulation finds what it is there to find: each planted defect, within a few hundred seeds."""

from __future__ import annotations

from itertools import chain

import pytest

from simulation.mutants import MUTANTS
from simulation.plan import plan_of
from simulation.world import simulate

SEEDS = range(0, 600, 2)  # those of short plans
# Where each was found when all were tried in order, so that it need not be sought again each time.
FOUND_AT = {
    "deadline_after_the_lease": 30,
    "failed_acknowledgement_is_a_failure": 20,
    "no_fence": 4,
    "no_local_deadline": 2,
    "no_poll_behind_wakes": 128,
    "recover_steals": 0,
    "release_is_counted": 0,
    "renew_ignores_the_answer": 16,
    "token_without_nonce": 36,
}


@pytest.mark.parametrize("defect", MUTANTS)
def test_a_planted_defect_is_found(defect: str) -> None:
    with MUTANTS[defect]():
        seeds = chain([FOUND_AT[defect]], SEEDS)
        found = next((seed for seed in seeds if simulate(plan_of(seed)).violations), None)
    assert found is not None
    assert not simulate(plan_of(found)).violations  # without the defect all is well
