"""The eventual store's files: what a kill, a power loss, a full disk and damage leave of it."""

from __future__ import annotations

import contextlib

import pytest

from swarmd.base.errors import DiskFault
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.sim.crdt_world import SimSigner
from swarmd.sim.disk import PowerLost, SimDisk
from swarmd.sim.world import World
from swarmd.state.crdt.dots import actor_of
from swarmd.state.crdt.events import Heard, Write
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import Batches
from swarmd.state.crdt.stored import encode_shard
from swarmd.state.crdt.types.values import Assign

ME = NodeId(b"me".ljust(32, b"."))


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(World(1), "crdt")


def replica(disk: SimDisk, life: int, *, segment_bytes_max: int = 10**6) -> ReplicaMachine:
    journal = ShardJournal(disk, segment_bytes_max=segment_bytes_max)
    shards = journal.load()
    actor = actor_of(ME, life.to_bytes(8, "big"))
    return ReplicaMachine(ME, actor, SimSigner(ME), journal, make_rng(life), lambda: 10**12, shards)


def write(machine: ReplicaMachine, *keys: str, value: object = 1) -> None:
    for key in keys:
        machine.handle(Write(0, "b", key, Assign(value)), 0.0)
    machine.settle(0.0)


def journal_of(machine: ReplicaMachine) -> ShardJournal:
    journal = machine._journal
    assert isinstance(journal, ShardJournal)
    return journal


def keys_of(machine: ReplicaMachine) -> set[str]:
    return {key for shard in machine.shards() for key in shard.cells}


def compact(machine: ReplicaMachine) -> None:
    journal = journal_of(machine)
    shards = {shard.name: shard for shard in machine.shards()}
    for name in journal.turn():
        journal.keep(name, encode_shard(shards[name]))
    journal.forget()


def test_what_was_synced_is_there_again_and_what_was_not_is_gone_with_the_power(
    disk: SimDisk,
) -> None:
    machine = replica(disk, 1)
    write(machine, "a", "b")
    journal_of(machine).sync()
    write(machine, "c")
    disk.crash()
    again = replica(disk, 2)
    assert keys_of(again) - {"c"} == {"a", "b"}
    assert journal_of(again).damaged == []
    write(again, "d")
    journal_of(again).sync()
    assert {"a", "b", "d"} <= keys_of(replica(disk, 3))


def test_logs_end_as_shards_and_nothing_is_lost_between(disk: SimDisk) -> None:
    machine = replica(disk, 1, segment_bytes_max=2_000)
    for number in range(40):
        write(machine, f"k{number}", value="x" * 100)
        journal_of(machine).sync()
        if journal_of(machine).is_long:
            write(machine, "meanwhile", value=number)
            journal_of(machine).sync()
            compact(machine)
    assert len([name for name in disk.names() if name.startswith("log-")]) <= 1
    again = replica(disk, 2)
    assert keys_of(again) == keys_of(machine)
    assert {s.name: s.sum() for s in again.shards()} == {s.name: s.sum() for s in machine.shards()}


@pytest.mark.parametrize("fuse", range(12))
def test_a_power_loss_at_any_point_of_a_turn_loses_nothing(disk: SimDisk, fuse: int) -> None:
    machine = replica(disk, 1)
    write(machine, *(f"k{number}" for number in range(5)))
    journal_of(machine).sync()
    disk.fuse = fuse
    with contextlib.suppress(PowerLost):
        compact(machine)
    disk.fuse = None
    disk.crash()
    assert keys_of(replica(disk, 2)) == keys_of(machine)


def test_a_failed_sync_is_made_good_in_another_file(disk: SimDisk) -> None:
    machine = replica(disk, 1)
    write(machine, "a")
    journal_of(machine).sync()
    disk.syncs_to_fail = 1
    write(machine, "b")
    with pytest.raises(DiskFault):
        journal_of(machine).sync()
    write(machine, "c")
    journal_of(machine).sync()
    disk.crash()
    assert keys_of(replica(disk, 2)) == {"a", "b", "c"}


def test_a_full_disk_refuses_until_there_is_room(disk: SimDisk) -> None:
    machine = replica(disk, 1)
    disk.full = True
    write(machine, "a")
    for _ in range(3):
        with pytest.raises(DiskFault):
            journal_of(machine).sync()
    disk.full = False
    journal_of(machine).sync()
    disk.crash()
    assert keys_of(replica(disk, 2)) == {"a"}


def test_a_damaged_shard_is_moved_aside_and_comes_from_others(disk: SimDisk) -> None:
    machine = replica(disk, 1)
    write(machine, "a", "b")
    journal_of(machine).sync()
    compact(machine)
    name = next(n for n in disk.names() if n.startswith("shard-"))
    raw = bytearray(disk.read(name) or b"")
    raw[-3] ^= 1
    disk.replace(name, bytes(raw))
    again = replica(disk, 2)
    assert journal_of(again).damaged == [name]
    assert f"damaged-{name}" in disk.names()
    assert len(keys_of(again)) == 1
    for shard in machine.shards():
        raws = tuple(batch.raw for batch in shard.log())
        again.handle(Heard(ME, Batches(*shard.name, raws)), 0.0)
    assert keys_of(again) == {"a", "b"}


def test_damage_amid_a_log_is_told_and_what_stands_before_it_counts(disk: SimDisk) -> None:
    machine = replica(disk, 1)
    for key in ("a", "b", "c"):
        write(machine, key)
        journal_of(machine).sync()
    [name] = [n for n in disk.names() if n.startswith("log-")]
    raw = bytearray(disk.read(name) or b"")
    raw[len(raw) // 2] ^= 1
    disk.replace(name, bytes(raw))
    again = replica(disk, 2)
    assert journal_of(again).damaged == [name]
    assert keys_of(again) == {"a"}


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_what_stands_before_a_bad_record_is_there_after_every_restart(
    disk: SimDisk, damage: str
) -> None:
    machine = replica(disk, 1)
    for key in ("a", "b", "c"):
        write(machine, key)
        journal_of(machine).sync()
    [name] = [n for n in disk.names() if n.startswith("log-")]
    raw = bytearray(disk.read(name) or b"")
    if damage == "torn":
        del raw[-5:]
    else:
        raw[len(raw) // 2] ^= 1
    disk.replace(name, bytes(raw))
    before = keys_of(replica(disk, 2))
    assert before >= {"a"}
    for life in (3, 4):
        again = replica(disk, life)
        assert keys_of(again) == before
        assert journal_of(again).damaged == [], "it was told once"
        write(again, f"life {life}")
        journal_of(again).sync()
        before |= {f"life {life}"}


def test_a_disk_that_refuses_for_long_gets_one_more_file(disk: SimDisk) -> None:
    machine = replica(disk, 1)
    write(machine, "a")
    journal_of(machine).sync()
    disk.full = True
    write(machine, "b")
    for _ in range(20):
        with pytest.raises(DiskFault):
            journal_of(machine).sync()
    disk.full = False
    journal_of(machine).sync()
    assert len([name for name in disk.names() if name.startswith("log-")]) <= 2
    assert keys_of(replica(disk, 2)) == {"a", "b"}


def test_a_torn_end_is_no_damage(disk: SimDisk) -> None:
    machine = replica(disk, 1)
    write(machine, "a")
    write(machine, "b")
    journal_of(machine).sync()
    [name] = [n for n in disk.names() if n.startswith("log-")]
    raw = disk.read(name) or b""
    for cut in (1, 5, 40):
        disk.replace(name, raw[:-cut])
        again = replica(disk, 2)
        assert journal_of(again).damaged == []
        assert keys_of(again) == {"a"}
