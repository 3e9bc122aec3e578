"""Snapshots taken, sent and received in pieces, with everything that may come between."""

from __future__ import annotations

import contextlib

import pytest
from raft_hands import Hands, of, sent, sim_disk, snapshot_of

from swarmd.base.errors import CorruptFile, DiskFault
from swarmd.base.machine import Effect, SetTimer
from swarmd.sim.disk import PowerLost, SimDisk
from swarmd.state.raft import snapshot as snapshots
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.machine import START, Wake
from swarmd.state.raft.snapshot import (
    FORMAT,
    KIND,
    RECEIVED_FILE,
    SNAPSHOT_FILE,
    TAKEN_FILE,
    SnapshotReader,
)
from swarmd.state.raft.wire import Append, AppendReply, SnapshotChunk, SnapshotReply

SMALL = RaftConfig(compact_entries=20, keep_entries=0, snapshot_chunk_bytes=100)


def chunk(content: bytes, at: int, size: int, index: int = 50, term: int = 1) -> SnapshotChunk:
    return SnapshotChunk(1, 1, index, index, term, len(content), at, content[at : at + size])


def read(disk: SimDisk) -> list[bytes]:
    reader = SnapshotReader(("a", "b", "c"), "test")
    frames = reader.feed(disk.read(SNAPSHOT_FILE) or b"")
    reader.finish()
    return [frame[1:] for frame in frames if frame[:1] == b"c"]


def busy_leader(disk: SimDisk, count: int, config: RaftConfig = SMALL) -> Hands:
    """Leads, with `count` commands that `b` holds, too; `c` has none."""
    hands = Hands(disk=disk, config=config)
    hands.lead()
    commit(hands, count)
    return hands


def commit(hands: Hands, count: int) -> list[Effect]:
    effects: list[Effect] = []
    for tag in range(count):
        effects += hands.propose(b"command-%d" % hands.last, tag)
        effects += hands.say("b", AppendReply(hands.term, 1, True, 1, hands.last + 1))
    return effects


def test_a_large_snapshot_takes_many_steps_and_is_of_one_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "SLICE_BYTES", 40)
    disk = sim_disk()
    hands = Hands("a", disk=disk, config=RaftConfig(compact_entries=30, keep_entries=0))
    hands.go_on()
    for tag in range(31):
        hands.propose(b"command-%d" % tag, tag)
        hands.go_on()
    taken = len(hands.state.commands)
    steps = 0
    while hands.machine.status(0).snapshot_index == 0:
        timers = of(hands.propose(b"later", 99), SetTimer)
        assert timers, "the next slice is due by itself"
        hands.step(Wake(START), after_s=0.002)
        steps += 1
    assert steps >= 5
    reader = SnapshotReader(("a",), "test")
    frames = reader.feed(disk.read(SNAPSHOT_FILE) or b"")
    assert len(frames) - 1 <= taken
    assert b"clater" not in frames
    assert TAKEN_FILE not in disk.names()


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one_and_is_tried_again() -> None:
    disk = sim_disk()
    hands = busy_leader(disk, 25)
    hands.go_on()
    first = hands.machine.status(0).snapshot_index
    assert first > 1
    kept = read(disk)

    def refuse(name: str) -> None:
        if name == TAKEN_FILE:
            raise DiskFault("no room")
        SimDisk.sync(disk, name)

    disk.sync = refuse  # type: ignore[method-assign]
    commit(hands, 25)
    hands.go_on()
    assert hands.machine.status(0).snapshot_index == first
    assert read(disk) == kept
    assert hands.machine.office.state == "leader", "the log itself is durable"
    del disk.sync  # type: ignore[method-assign]
    hands.say("b", AppendReply(hands.term, 2, True, 1, hands.last + 1))
    hands.step(Wake(START), after_s=0.5)
    for _ in range(4):
        hands.say("b", AppendReply(hands.term, 2, True, 1, hands.last + 1))
        hands.step(Wake(START), after_s=0.25)
    assert hands.machine.status(0).snapshot_index > first


def test_what_a_life_before_left_beside_is_removed() -> None:
    disk = sim_disk()
    Hands(disk=disk)
    for name in (TAKEN_FILE, RECEIVED_FILE):
        disk.replace(name, b"half of it")
    Hands(disk=disk)
    assert disk.names() == ["journal"]


def test_a_snapshot_in_chunks_is_installed_once_it_is_durable() -> None:
    disk = sim_disk()
    hands = Hands(disk=disk)
    content = snapshot_of(50, 1, *(b"command-%d" % n for n in range(49)))
    for at in range(0, len(content), 100):
        effects = hands.say("b", chunk(content, at, 100))
        assert not sent(effects, AppendReply), "not before the file is there"
        assert hands.machine.applied_index == 1
        assert sent(effects, SnapshotReply)[0].offset == min(at + 100, len(content))
    effects = hands.go_on()
    assert sent(effects, AppendReply) == [AppendReply(1, 1, True, 50, 51)]
    assert len(hands.state.commands) == 49
    assert (hands.machine.applied_index, hands.last) == (50, 50)
    assert disk.read(SNAPSHOT_FILE) == content
    assert RECEIVED_FILE not in disk.names()
    disk.crash()
    hands.start()
    assert len(hands.state.commands) == 49


def test_an_install_that_is_cut_off_by_a_power_loss_changes_nothing() -> None:
    """At each operation of the disk in turn: the state is the old one or the new one."""
    content = snapshot_of(50, 1, *(b"command-%d" % n for n in range(49)))
    seen = set()
    for fuse in range(8):
        disk = sim_disk(f"fuse-{fuse}")
        hands = Hands(disk=disk)
        hands.follow([b"2", b"3"], commit=3)
        hands.go_on()
        disk.fuse = fuse
        with contextlib.suppress(PowerLost):
            for at in range(0, len(content), 200):
                hands.say("b", chunk(content, at, 200))
            hands.go_on()
        disk.crash()
        hands.start()
        hands.follow([b"2", b"3"], commit=3)
        hands.go_on()
        seen.add(len(hands.state.commands))
    assert seen == {2, 49}


def test_a_damaged_chunk_is_noticed_at_once_and_asked_for_again() -> None:
    hands = Hands()
    content = snapshot_of(50, 1, *(b"command-%d" % n for n in range(49)))
    bad = bytearray(content)
    bad[150] ^= 1
    hands.say("b", chunk(content, 0, 100))
    hands.say("b", chunk(bytes(bad), 100, 100))
    assert hands.machine.refused_snapshots == 1
    effects = hands.say("b", chunk(content, 200, 100))
    assert sent(effects, SnapshotReply)[0].offset == 0, "from the start"


def test_received_pieces_that_cannot_be_written_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "SYNC_BYTES", 100)
    disk = sim_disk()
    hands = Hands(disk=disk)
    content = snapshot_of(50, 1, *(b"command-%d" % n for n in range(49)))
    disk.syncs_to_fail = 1
    hands.say("b", chunk(content, 0, 200))
    effects = hands.say("b", chunk(content, 200, 200))
    assert sent(effects, SnapshotReply)[0].offset == 0
    for at in range(0, len(content), 200):
        hands.say("b", chunk(content, at, 200))
    hands.go_on()
    assert hands.machine.applied_index == 50


def test_who_is_sent_a_snapshot_finds_the_log_behind_it() -> None:
    """The leader takes newer snapshots meanwhile; the one under way stays, and so does its log."""
    disk = sim_disk()
    hands = busy_leader(disk, 30)
    hands.go_on()
    follower = Hands(me="c")
    hands.say("c", AppendReply(hands.term, 1, False, hands.last, 2))
    sending: list[SnapshotChunk] = []
    installed = 0
    for _ in range(200):
        effects = commit(hands, 3)
        effects += hands.step(Wake(START), after_s=hands.config.heartbeat_s)
        for message in sent(effects, SnapshotChunk) + sent(effects, Append):
            if isinstance(message, SnapshotChunk):
                sending.append(message)
            elif not installed:
                continue
            for reply in sent(follower.say("a", message) + follower.go_on()):
                hands.say("c", reply)
        if follower.machine.applied_index > 1:
            installed += 1
        if installed and follower.last == hands.last:
            break
    assert hands.machine.status(0).snapshot_index > sending[0].index, "newer ones were taken"
    assert {m.index for m in sending} == {sending[0].index}, "one was sent"
    assert follower.last == hands.last


def test_a_leader_whose_snapshot_rotted_stops_by_name_when_it_sends_it() -> None:
    disk = sim_disk()
    hands = busy_leader(disk, 30)
    hands.go_on()
    disk.flip_bit(SNAPSHOT_FILE, 60)
    with pytest.raises(CorruptFile, match="snapshot to be sent"):
        hands.say("c", AppendReply(hands.term, 1, False, hands.last, 2))


def test_the_formats_of_the_file_are_what_they_were() -> None:
    """A change needs another number."""
    assert (KIND, FORMAT) == ("raftsnap", 5)
    assert snapshot_of(5, 1, b"x").hex() == GOLDEN


GOLDEN = (
    "53575246"  # SWRF
    "72616674736e617000050000000a3a3a323e93050193a161a162a1630000000251d7d395637800"
    "0000010ed4e2422e"
    "00000000000000007dfe2cab8857a61e6903e7ffbbc452887b2095f100f64db0bd812c75107efff6"
)
