"""Seeds of the bus's world: promises hold, faults fired, runs repeat, and guards are missed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import run_sim
from hash_seeds import printed_whatever_the_hash_seed

from swarmd.sim.bus import BY_SEED, EXPECTED, run_seed


def check(seeds: range) -> None:
    counts: Counter[str] = Counter()
    for seed in seeds:
        world = run_seed(seed).world
        assert world.violations == [], f"seed {seed}"
        counts.update(world.counts)
    assert [name for name in EXPECTED if not counts[name]] == [], "it proves nothing about these"


def test_the_bus_keeps_its_promises_through_breaks_restarts_and_deaths() -> None:
    check(range(8))


@pytest.mark.parametrize("seed", [178, 1_066, 1_077])
def test_seeds_that_failed_once(seed: int) -> None:
    """A subscriber that its publisher had taken for dead was forgotten for good."""
    assert run_seed(seed).world.violations == []


@pytest.mark.long
def test_the_bus_keeps_its_promises_over_many_seeds() -> None:
    found = run_sim.run_seeds("bus", range(1_000, 1_200), jobs=2)
    assert not found["violations"]
    assert not [name for name in EXPECTED if not found["counts"].get(name)]


@pytest.mark.parametrize("guard", sorted(BY_SEED))
def test_seeds_notice_when_a_guard_of_the_bus_is_missing(guard: str) -> None:
    seed = BY_SEED[guard]
    assert run_seed(seed, frozenset({guard})).world.violations


def trace_of(seed: int) -> str:
    world = run_seed(seed).world
    return f"{sorted(world.counts.items())} {world.trace()}"


def test_a_seed_of_the_bus_is_one_run_whatever_the_hash_seed() -> None:
    code = "import test_bus_sim as t; print(t.trace_of(3))"
    assert printed_whatever_the_hash_seed(code, path=Path(__file__).parent)
