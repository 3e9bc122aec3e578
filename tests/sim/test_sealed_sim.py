"""The voters' world once more, every file of theirs sealed: no promise may be lost by that.

What a power loss leaves of an unfinished sync is worse here than a torn prefix: any of its blocks
may have reached the disk and any other be zeros or garbage, at full length.
"""

from __future__ import annotations

import pytest

from swarmd.base.disk import BytesReader
from swarmd.base.errors import CorruptFile
from swarmd.base.sealed_disk import SealedDisk
from swarmd.base.sealed_file import SealedReader, open_file
from swarmd.identity.sealing import SealingKey
from swarmd.sim import raft_host
from swarmd.sim.disk import SimDisk
from swarmd.sim.raft import RaftWorld, first_catch, sweep
from swarmd.sim.raft_node import Node
from swarmd.sim.world import World
from swarmd.state.raft.guards import Guard

KEY = SealingKey(b"k" * 32)
ROOM = "raft"
BLOCK_BYTES = 64


class Image(dict[str, bytes]):
    """A copy of a disk: what its files hold, and as it would be put back."""

    def __init__(self, raw: dict[str, bytes]) -> None:
        super().__init__({name: held(content) for name, content in raw.items()})
        self.raw = raw


def held(raw: bytes) -> bytes:
    try:
        return open_file(KEY, ROOM, raw, source="a copy")
    except CorruptFile:
        return raw


class SealedSimDisk(SealedDisk):
    """A sealed disk to the machines, and to the trouble the one below it."""

    def __init__(self, world: World, label: str) -> None:
        self.below = SimDisk(world, label)
        self._chance = world.rng_for(f"blocks:{label}")
        self._world = world
        self.begin()

    def begin(self) -> None:
        """A process begins: what the one before knew of its files is gone."""
        SealedDisk.__init__(self, self.below, KEY, ROOM)

    # ---- what happens to a disk --------------------------------------------------------

    @property
    def full(self) -> bool:
        return self.below.full

    @full.setter
    def full(self, value: bool) -> None:
        self.below.full = value

    @property
    def syncs_to_fail(self) -> int:
        return self.below.syncs_to_fail

    @syncs_to_fail.setter
    def syncs_to_fail(self, value: int) -> None:
        self.below.syncs_to_fail = value

    @property
    def fuse(self) -> int | None:
        return self.below.fuse

    @fuse.setter
    def fuse(self, value: int | None) -> None:
        self.below.fuse = value

    def crash(self) -> None:
        unsynced = dict(self.below._pending)
        synced = {name: len(self.below._durable.get(name, b"")) for name in unsynced}
        self.below.crash()
        for name, data in unsynced.items():
            durable = self.below._durable.get(name, b"")
            if len(durable) > synced[name] and self._chance.random() < 0.7:
                self.below._durable[name] = durable[: synced[name]] + self._shred(data)
                self._world.count("shredded_write")
        self.begin()

    def _shred(self, data: bytes) -> bytes:
        parts = []
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            garbage = self._chance.getrandbits(8 * len(block)).to_bytes(len(block), "big")
            parts.append(self._chance.choice((block, block, bytes(len(block)), garbage)))
        return b"".join(parts)

    def lose(self) -> None:
        self.below.lose()
        self.begin()

    def flip_bit(self, name: str, at: int) -> None:
        """A bit turns over somewhere in the frame that holds the byte `at`, or in the header."""
        raw = self.below._durable[name]
        reader = SealedReader(KEY, ROOM, BytesReader(raw), source=name)
        frame = next(one for one in reader._frames if one.start <= at < one.start + one.length)
        start = 0 if self._chance.random() < 0.1 else frame.position
        self.below.flip_bit(name, self._chance.randrange(start, frame.end))

    def copy(self) -> Image:
        return Image(self.below.copy())

    def put_back(self, image: Image) -> None:
        self.below.put_back(image.raw)
        self.begin()


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_host, "SimDisk", SealedSimDisk)
    boot = Node.boot

    def boot_anew(node: Node) -> None:
        assert isinstance(node.disk, SealedSimDisk)
        node.disk.begin()
        boot(node)

    monkeypatch.setattr(Node, "boot", boot_anew)


def test_a_few_seeds_keep_every_promise_on_sealed_disks() -> None:
    report = sweep(range(300, 304))
    assert not report.violations
    assert report.operations >= 4 * 500
    for what in ("failed_sync", "crash_in_sync", "snapshot_install"):
        assert report.counts[what] > 0, what


def test_a_bit_that_turns_over_on_a_sealed_disk_is_named() -> None:
    world = RaftWorld(7)

    def flip_once() -> None:
        if not world.world.counts["bit_flip"]:
            world.trouble._flip_bit()  # By chance it happens to one world in dozens.

    for at in range(2, 60):
        world.world.after(at / 4, flip_once)
    world.run()
    assert not world.world.violations
    for what in ("bit_flip", "damage_named"):
        assert world.world.counts[what] > 0, what


@pytest.mark.long
def test_many_seeds_keep_every_promise_on_sealed_disks() -> None:
    report = sweep(range(400, 440))
    assert not report.violations
    for what in ("shredded_write", "disk_restored", "restored_disk_seen", "copy_used"):
        assert report.counts[what] > 0, what


def test_nothing_lies_in_clear_in_that_world() -> None:
    world = RaftWorld(5)
    world.run()
    assert not world.world.violations
    files = [raw for node in world.nodes.values() for raw in node.disk.copy().raw.values()]
    assert len(files) > 20
    assert not [raw for raw in files if not raw.startswith(b"SWRS") and raw]
    clear = [one for node in world.nodes.values() for one in node.disk.copy().values()]
    assert any(b"SWRJ" in one for one in clear)
    assert not [raw for raw in files if b"SWRJ" in raw or b"SWRF" in raw]


def test_a_mutant_is_caught_on_sealed_disks_too() -> None:
    assert first_catch(Guard.W2_PERSIST_FIRST, range(6)) is not None


@pytest.mark.parametrize("voters", [1, 3])
def test_all_lose_power_at_once_on_sealed_disks(voters: int) -> None:
    world = RaftWorld(voters, voters=voters)
    for caller in world.callers:
        caller.start()
    rng = world.world.rng_for("power")
    world.world.run_for(2.0)
    for _ in range(30):
        for node in world.nodes.values():
            node.disk.fuse = rng.randrange(0, 40)  # In the middle of a sync, then all the others.
        world.world.run_for(0.2)
        world.trouble.total_power_loss(rng.uniform(0.01, 0.3))
        world.world.run_for(rng.uniform(1.5, 3.0))
    world.settle()
    assert not world.world.violations
    assert world.world.counts["shredded_write"] > 0
    assert world.world.counts["acknowledged_write"] > 200
