from __future__ import annotations

import pytest

from swarmd.base.errors import DiskFault
from swarmd.sim.disk import SimDisk
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.world import World


def test_events_run_in_time_order_and_ties_in_order_of_asking() -> None:
    world, seen = World(1), []
    world.after(2, seen.append, "c")
    world.after(1, seen.append, "a")
    world.after(1, seen.append, "b")
    world.run_for(1.5)
    assert (seen, world.now) == (["a", "b"], 1.5)
    world.run_for(1)
    assert seen == ["a", "b", "c"]


def noisy_run(seed: int) -> tuple[str, dict[str, int]]:
    world = World(seed)
    network = Network(world, LinkFaults(loss=0.2, duplicate=0.2, slow=0.2))
    network.attach("b", lambda source, message: world.note(source, message))
    for n in range(200):
        world.after(n * 0.01, network.send, "a", "b", n)
    world.run_for(10)
    return world.trace(), dict(world.counts)


def test_a_seed_fixes_the_run_and_every_fault_fires() -> None:
    assert noisy_run(1) == noisy_run(1)
    assert noisy_run(1)[0] != noisy_run(2)[0]
    assert set(noisy_run(1)[1]) == {"loss", "duplicate", "delay", "reorder"}


def test_a_one_way_cut_stops_one_direction() -> None:
    world = World(1)
    network = Network(world)
    seen: list[str] = []
    network.attach("a", lambda source, message: seen.append(message))
    network.attach("b", lambda source, message: seen.append(message))
    network.cut("a", "b", one_way=True)
    network.send("a", "b", "there")
    network.send("b", "a", "back")
    world.run_for(1)
    assert seen == ["back"]
    network.heal()
    network.send("a", "b", "there")
    world.run_for(1)
    assert seen == ["back", "there"]


def test_a_crash_loses_what_was_not_synced_or_keeps_a_torn_prefix() -> None:
    world = World(1)
    outcomes = set()
    for n in range(100):
        disk = SimDisk(world, str(n))
        disk.append("f", b"safe")
        disk.sync("f")
        disk.append("f", b"1234")
        disk.crash()
        outcomes.add(disk.read("f"))
    assert b"safe" in outcomes
    assert all(
        (o or b"").startswith(b"safe") and b"safe1234".startswith(o or b"") for o in outcomes
    )
    assert len(outcomes) > 2


def test_a_full_disk_refuses_and_keeps_what_it_had() -> None:
    disk = SimDisk(World(1), "d")
    disk.replace("f", b"old")
    disk.full = True
    with pytest.raises(DiskFault, match="No space"):
        disk.replace("f", b"new")
    assert disk.read("f") == b"old"
