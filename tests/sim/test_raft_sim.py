"""Seeds of the voters' world, its determinism, and mutants that it must notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from swarmd.sim.raft import FAULTS, MUTANT_SEEDS, RaftWorld, first_catch, sweep
from swarmd.state.raft.guards import Guard

# Seeds that once failed, and why:
# 30: parts of a message sent before a leader's restart were put together with parts sent after.
# 1, 2: each refusal in flight was answered by four more messages, until nothing else got through.
FAILED_ONCE = (1, 2, 30)


def test_a_few_seeds_keep_every_promise() -> None:
    report = sweep(range(100, 102))
    assert not report.violations
    assert report.operations >= 2 * 500
    for what in ("election", "restart", "snapshot_install", "crash", "partition"):
        assert report.counts[what] > 0, what


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_seeds_that_failed_once(seed: int) -> None:
    assert not sweep([seed]).violations


@pytest.mark.long
def test_many_seeds_keep_every_promise_and_every_fault_fires() -> None:
    report = sweep(range(200))
    assert not report.violations
    assert not [fault for fault in FAULTS if not report.counts[fault]]


@pytest.mark.parametrize("guard", sorted(MUTANT_SEEDS), ids=str)
def test_a_mutant_is_caught_by_its_seed(guard: Guard) -> None:
    assert first_catch(guard, [MUTANT_SEEDS[guard]]) is not None


def test_a_lone_voter_keeps_what_it_acknowledged() -> None:
    """Crashes, full and slow disks; without peers, only its own sync makes a write durable."""
    assert not RaftWorld(3, voters=1).run().violations
    careless = RaftWorld(3, voters=1, removed_guards=[Guard.W2_COUNT_SYNCED])
    assert careless.run(stop_at_violation=True).violations


def test_one_seed_makes_one_trace_under_any_hash_seed() -> None:
    code = (
        "from swarmd.sim.raft import RaftWorld; w = RaftWorld(5, voters=5).run(8.0);"
        "print(w.trace(), sorted(w.counts.items()), w.violations)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    assert len(traces) == 1


def test_a_world_without_trouble_has_one_election() -> None:
    """Goal: the faults, not the machine, make elections. Method: no faults, one client wave."""
    world = RaftWorld(8)
    world.network.faults = type(world.network.faults)()
    world.world.run_for(10.0)
    assert world.world.counts["election"] == 1
    assert not world.world.violations
