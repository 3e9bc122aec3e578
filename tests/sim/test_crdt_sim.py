"""The eventual store under seeded faults; see `sim.crdt`."""

from __future__ import annotations

import pytest
from hash_seeds import printed_whatever_the_hash_seed

from swarmd.sim.crdt import FAULTS, OTHERS, run_seed, sweep
from swarmd.sim.crdt_mutants import MUTANTS, first_catch

# The seed to begin with, where those before it catch nothing and would only take time.
FIRST = {
    "crdt.actor_after_drop": 14,
    "crdt.ends_all_saw": 6,
    "crdt.ends_bind": 13,
    "crdt.rounds_end": 3,
}


@pytest.mark.parametrize("seed", [13, 37, 114])
def test_seeds_that_found_something_are_clean(seed: int) -> None:
    assert run_seed(seed).world.violations == []


def test_a_sweep_is_clean_and_saw_every_fault() -> None:
    report = sweep(range(20))
    assert report.violations == []
    assert [what for what in (*FAULTS, *OTHERS) if not report.counts[what]] == []


def test_fifty_replicas_agree() -> None:
    sim = run_seed(24)
    assert len(sim.nodes) > 20
    assert sim.world.violations == []


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_caught(name: str) -> None:
    first = FIRST.get(name, 0)
    assert first_catch(name, range(first, first + 40)) is not None


def test_one_seed_is_one_trace_whatever_the_hash_seed() -> None:
    script = "from swarmd.sim.crdt import run_seed; print(run_seed(7).world.trace())"
    assert len(printed_whatever_the_hash_seed(script)) == 32
