"""What replicas of the eventual store owe, whatever befell them; see `crdt_world.py`."""

from __future__ import annotations

from typing import Any

from swarmd.base.ids import NodeId
from swarmd.sim.crdt_world import (
    COUNTERS,
    HOLDERS,
    LISTS,
    PARTIAL,
    REGISTERS,
    SETS,
    TEXTS,
    CrdtWorld,
    Node,
    Owed,
    bucket_of,
)
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import Shard, shard_of
from swarmd.state.crdt.placement import copies_of, holders
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.types.values import Count


def check(sim: CrdtWorld) -> None:
    """All faults are over, and time has passed."""
    first, *others = sim.running()
    assert first.machine is not None
    states = {shard.name: shard for shard in first.machine.shards()}
    for node in others:
        assert node.machine is not None
        for shard in node.machine.shards():
            if copies_of(shard.name[0]):
                continue
            mine = states.get(shard.name)
            if mine is None and not shard.cells.context.vector:
                continue
            if mine is None or mine.cells != shard.cells or mine.sum() != shard.sum():
                sim.world.violate(f"{first.name} and {node.name} differ in {shard.name}")
        if len(_told_of(node.machine)) != len(_told_of(first.machine)):
            sim.world.violate(f"{first.name} and {node.name} hold other shards")
    _check_partial(sim)
    _check_held(sim)
    _check_order(sim, first)
    _check_counters(sim)
    for node in sim.running():
        assert node.machine is not None
        if node.machine.parked:
            sim.world.violate(f"{node.name} keeps {node.machine.parked} batches parked")


def _check_order(sim: CrdtWorld, node: Node) -> None:
    for key in (*TEXTS, *LISTS):
        held = list(sim.value(node, key) or [])
        places = {one: place for place, one in enumerate(held)}
        if len(places) != len(held):
            sim.world.violate(f"{key} holds something twice")
        for puts in {owed.puts for owed in sim.added.values() if owed.key == key}:
            found = [places[one] for one in puts if one in places]
            if found != sorted(found):
                sim.world.violate(f"{key} holds what one edit put in another order: {puts}")


def _check_partial(sim: CrdtWorld) -> None:
    """Each shard is with its holders, alike, and with nobody else."""
    for key in (one for one in (*SETS, *COUNTERS, *REGISTERS) if bucket_of(one) == PARTIAL):
        name = (PARTIAL, shard_of(key))
        held = {}
        for node in sim.running():
            assert node.machine is not None
            shard = node.machine.shard(name)
            if shard is not None and shard.cells.context.vector:
                held[node.node_id] = shard
        should = {sim.by_id[one].name for one in _holders(sim, name)}
        are = {sim.by_id[one].name for one in held}
        if held and are != should:
            sim.world.violate(f"{sorted(are)} have {name}, and {sorted(should)} hold it")
        shards = list(held.values())
        if any(one.cells != shards[0].cells for one in shards):
            sim.world.violate(f"holders differ in {name}")
        if len(sim.servers(key)) != len(should):
            sim.world.violate(f"{len(sim.servers(key))} serve {name}")


def _holders(sim: CrdtWorld, name: Shard) -> tuple[NodeId, ...]:
    """Who is to hold a shard, as all are members that run: no node is asked."""
    return holders(name, [node.node_id for node in sim.running()], copies_of(name[0]))


def _read(sim: CrdtWorld, key: str) -> Any:
    """What one of those who serve a key holds."""
    servers = sim.servers(key)
    return sim.value(servers[0], key) if servers else None


def _check_held(sim: CrdtWorld) -> None:
    there = {(key, one) for key in HOLDERS for one in _read(sim, key) or []}
    taken = {(owed.key, one) for owed in sim.doubtful for one in owed.takes}
    for what in set(sim.added) - there - set(sim.removed) - sim.excused - taken:
        sim.world.violate(f"an acknowledged element is gone: {what}")
    for what in sim.removed:
        if what in there and what not in sim.excused:
            sim.world.violate(f"a removed element is back: {what}")


def _check_counters(sim: CrdtWorld) -> None:
    for key in (one for one in COUNTERS if bucket_of(one) not in sim.excused_counts):
        sure = sum(_step(one) for one in sim.counted if one.key == key)
        maybe = [_step(one) for one in sim.doubtful if one.key == key]
        least = sure + sum(step for step in maybe if step < 0)
        most = sure + sum(step for step in maybe if step > 0)
        if not least <= (_read(sim, key) or 0) <= most:
            sim.world.violate(f"{key} is {_read(sim, key)}, not {least} to {most}")


def count_ends(sim: CrdtWorld) -> None:
    """Note whether anybody holds a life to be over."""
    for node in sim.running():
        assert node.machine is not None
        sim.world.count("ended", any(s.cells.context.over for s in node.machine.shards()))


def _told_of(machine: ReplicaMachine) -> list[ShardState]:
    """Shards of which anything was seen: one may have been made for what never came."""
    return [
        shard
        for shard in machine.shards()
        if shard.cells.context.vector and not copies_of(shard.name[0])
    ]


def _step(owed: Owed) -> int:
    return owed.operation.by if isinstance(owed.operation, Count) else 0
