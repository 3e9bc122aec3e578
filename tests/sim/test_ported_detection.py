"""How long others take to notice: chitchat's measurements of swarms of several sizes, in ours.

Its bounds are wider (10 s for all sizes, 15 s where half of the packets are lost) at intervals
that are shorter; ours follow from the settings.
"""

from __future__ import annotations

import pytest

from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.suspicion import suspicion_min_s
from swarmd.sim.network import LinkFaults
from swarmd.sim.swim import SwimWorld


def joined(count: int, seed: int, faults: LinkFaults | None = None) -> SwimWorld:
    sim = SwimWorld(seed, [f"n{n}" for n in range(count)], faults=faults or LinkFaults())
    sim.start_all()
    sim.run_for(10.0)
    assert not sim.disagreements()
    return sim


def shortest_s(count: int) -> float:
    config = SwimConfig()
    return suspicion_min_s(config.suspicion_mult, count, config.probe_interval_s)


@pytest.mark.parametrize("count", [20, 40, 100])
def test_a_silent_death_is_known_soon_after_the_shortest_suspicion(count: int) -> None:
    sim = joined(count, 1)
    sim.crash("n4")
    sim.run_for(shortest_s(count) + 3.0)
    assert {sim.view(node.name)["n4"] for node in sim.running()} == {"dead"}
    assert sim.world.counts["death"] >= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_where_half_of_all_packets_are_lost_a_death_is_known_all_the_same(seed: int) -> None:
    sim = joined(10, seed, LinkFaults(loss=0.5))
    sim.crash("n4")
    sim.run_for(15.0)
    assert {sim.view(node.name)["n4"] for node in sim.running()} == {"dead"}
    for node in sim.running():
        others = {name: state for name, state in sim.view(node.name).items() if name != "n4"}
        assert "dead" not in others.values()


def test_a_member_that_comes_and_goes_is_seen_to_each_time() -> None:
    sim = joined(5, 1)
    for _ in range(3):
        sim.pause("n2")
        sim.run_for(30.0)
        assert {sim.view(name)["n2"] for name in ("n0", "n1", "n3", "n4")} == {"dead"}
        sim.resume("n2")
        sim.run_for(30.0)
        assert not sim.disagreements()


def test_who_died_is_not_brought_back_by_one_that_missed_it() -> None:
    """It was cut off while the others declared it dead, and still says that it lives."""
    sim = joined(5, 1)
    sim.cut(["n3"])
    sim.crash("n4")
    sim.run_for(4.0)
    sim.heal()
    sim.run_for(60.0)
    assert {sim.view(node.name)["n4"] for node in sim.running()} == {"dead"}
    assert sim.view("n0")["n3"] == "alive"
