"""Replicas of the eventual store in a simulated world: what they owe, whatever befalls them.

Messages are lost, repeated and overtaken; nodes are cut off, killed with and without a loss of what
was not synced, lose their disk, come back from an old copy of it, and have clocks that jump. What
is held against them:
- After the last fault all replicas hold the same.
- What was acknowledged is there: elements that were put into sets, characters of texts and elements
  of lists, steps of counters. Excused is what was on no other disk when its own was lost.
- Characters stand in the order in which one edit has put them, and none twice.
- What was removed stays away, also where a node comes back from a copy of before its lives ended.
- A newcomer that takes over whole states holds what the others came to change by change.

One bucket lives on two nodes. Members come, go for good, die for longer than they are waited for
and return; nodes hear of that at different times, and the sides of a partition hold each other
dead. Then the same is owed of each shard by those who hold it in the end, and nobody else has it.
Members leave in order, several at once, in the midst of all that; some change their mind, crash, or
find nobody who takes what they have, and stay. Two that know nobody else any more leave at once, or
one leaves again before it hears what came of the first time. Of what lives on two nodes nothing is
excused because somebody left so. In the end, where all is well, one after the other leaves, and
none may be refused, or go before all have its shards that are to hold them.
No dot is ever given to two changes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from swarmd.sim.crdt_faults import (
    CALM_S,
    FAULTS,
    come_back_late,
    disturb,
    end_no_more,
    leave_in_a_pair,
    leave_in_order,
    make_peace,
)
from swarmd.sim.crdt_watch import check, count_ends
from swarmd.sim.crdt_world import CrdtWorld
from swarmd.state.crdt.machine import ReplicaMachine

__all__ = ["CHAOS_S", "FAULTS", "OTHERS", "Report", "run_seed", "sweep"]

CHAOS_S: Final = 60.0
# Each must have happened, or the seeds prove nothing about it.
OTHERS: Final = (
    "acknowledged", "removed", "whole_state", "clock_skew", "from_the_future", "newcomer",
    "turn", "excused", "merged", "ended", "restored_late", "found_late", "dropped", "taken",
    "left", "stayed_after_drop",
)  # fmt: skip


def run_seed(
    seed: int, machine: type[ReplicaMachine] = ReplicaMachine, *, stop_at_violation: bool = False
) -> CrdtWorld:
    """A minute of faults and a minute of peace."""
    sim = CrdtWorld(seed, machine)
    while sim.world.now < CHAOS_S:
        until = sim.world.now + sim.rng.uniform(0.5, 4.0)
        while sim.world.now < until:
            sim.world.run_for(sim.rng.uniform(0.0, 0.2))
            sim.someone_writes()
        disturb(sim)
        if stop_at_violation and sim.world.violations:
            return sim
    leave_in_a_pair(sim)
    make_peace(sim)
    sim.world.run_for(CALM_S)
    count_ends(sim)
    come_back_late(sim)
    end_no_more(sim)
    check(sim)
    leave_in_order(sim)
    check(sim)
    return sim


@dataclass
class Report:
    seeds: int = 0
    violations: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def sweep(seeds: range, machine: type[ReplicaMachine] = ReplicaMachine) -> Report:
    """Run each seed and gather what it violated and counted."""
    report = Report()
    for seed in seeds:
        world = run_seed(seed, machine).world
        report.seeds += 1
        report.violations += [(seed, text) for text in world.violations]
        report.counts.update(world.counts)
    return report
