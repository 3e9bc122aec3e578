"""Seeds of the task queue's world: promises hold, faults fired, and runs repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
import run_sim
from hash_seeds import printed_whatever_the_hash_seed

from swarmd.sim.tasks import MUTANTS, TaskWorld, sweep

FAULTS = (
    "loss", "duplicate", "delay", "partition", "one_way_cut", "crash", "restart",
    "quick_restart", "total_restart", "coordinator_change", "false_suspicion", "drain",
    "lost_answer", "late_commit", "unknown_outcome", "resign",
)  # fmt: skip
DEEDS = (
    "acknowledged", "attempt", "task_succeeded", "task_dead", "task_failed", "task_cancelled",
    "task_unknown", "cancel_acknowledged", "conflict_refused", "job_succeeded", "drained",
)  # fmt: skip


def check(first: int, count: int) -> None:
    report = sweep(range(first, first + count))
    assert report.violations == []
    silent = [name for name in (*FAULTS, *DEEDS) if not report.counts[name]]
    assert silent == [], "what never happened proves nothing"
    assert report.counts["operation"] >= 500 * count


def test_promises_hold_under_every_fault() -> None:
    check(0, 15)


@pytest.mark.long
def test_promises_hold_over_many_seeds() -> None:
    found = run_sim.run_seeds("tasks", range(1_000, 1_200), jobs=2)
    assert not found["violations"]
    assert not [name for name in (*FAULTS, *DEEDS) if not found["counts"].get(name)]
    assert found["counts"]["operation"] >= 500 * found["seeds"]


@pytest.mark.parametrize("guard", sorted(name for name, by in MUTANTS.items() if by == "sweep"))
def test_seeds_notice_when_a_guard_is_missing(guard: str) -> None:
    for seed in range(1, 41):
        if sweep([seed], removed_guards=frozenset({guard})).violations:
            return
    pytest.fail(f"nothing noticed that {guard} was missing")


def trace_of(seed: int) -> str:
    world = TaskWorld(seed)
    world.run()
    return f"{sorted(world.world.counts.items())} {world.ledger.revision} {world.network.sent}"


def test_a_seed_is_one_run_whatever_the_hash_seed() -> None:
    code = "import test_tasks_sim as t; print(t.trace_of(3))"
    assert printed_whatever_the_hash_seed(code, path=Path(__file__).parent)
