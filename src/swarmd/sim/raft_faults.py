"""What goes wrong in the voters' world, each kind by name and from the seed.

A disk is *lost* when it comes back empty, or when a bit of what it held durably has turned
over: then the voter must refuse to start and say which file. Either way it is out, and a
majority must do without it; so no more are lost than a majority can spare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from swarmd.base.rng import Rng
from swarmd.sim.network import LinkFaults, Network
from swarmd.sim.raft_host import RATE_MAX, RATE_MIN
from swarmd.sim.raft_node import STORAGE_FILE, Node
from swarmd.sim.world import World
from swarmd.state.raft.journal import JOURNAL_FILE

FAULTS: Final = (
    "loss",
    "duplicate",
    "reorder",
    "delay",
    "partition",
    "one_way_cut",
    "crash",
    "kill",
    "crash_in_sync",
    "lost_write",
    "torn_write",
    "bit_flip",
    "disk_full",
    "failed_sync",
    "slow_sync",
    "disk_loss",
    "disk_restored",
    "pause",
    "wall_jump",
    "clock_rate",
    "total_power_loss",
)
_HEADER_BYTES: Final = 20
_NONCE: Final = slice(8, 16)
_MARK_PLACE_BYTES: Final = 8
_RECORD_HEAD_BYTES: Final = 8


class Around(Protocol):
    """What trouble needs of its world."""

    world: World
    network: Network
    nodes: dict[str, Node]

    @property
    def callers(self) -> Sequence[Any]: ...

    def start(self, name: str) -> None: ...

    def may_lose(self, name: str) -> bool: ...

    def change_voters(self) -> None: ...

    def would_be_seen(self, node: Node, image: dict[str, bytes]) -> bool: ...


def weather(rng: Rng) -> LinkFaults:
    """How bad the network of a seed is."""
    return LinkFaults(
        loss=rng.choice((0.0, 0.02, 0.05)),
        duplicate=rng.choice((0.01, 0.03)),
        delay_min_s=0.0003,
        delay_max_s=rng.choice((0.002, 0.01)),
        slow=rng.choice((0.02, 0.05)),
    )


class Trouble:
    """One fault after the other, until `end`."""

    def __init__(self, around: Around, rng: Rng) -> None:
        self._around = around
        self._world = around.world
        self._rng = rng
        self.over = False
        self._faults = (
            (self._part, 30),
            (around.network.heal, 25),
            (self._crash_some, 16),
            (self._kill_some, 9),
            (self._crash_in_sync, 6),
            (self._power_loss, 3),
            (self._fill_disk, 6),
            (self._fail_syncs, 6),
            (self._slow_disk, 6),
            (self._lose_disk, 0.7),
            (self._flip_bit, 0.7),
            (self._copy_disk, 1.5),
            (self._pause, 10),
            (self._jump, 5),
            (self._drift, 5),
            (around.change_voters, 9),
            (self._transfer, 6),
        )

    def begin(self) -> None:
        self._world.after(1.0, self._next)

    def end(self) -> None:
        """No new trouble; what was broken for a while is whole again."""
        self.over = True
        network = self._around.network
        network.heal()
        network.faults = LinkFaults()
        self.replace_damaged()
        for voter in self._around.nodes.values():
            voter.disk.full, voter.disk.syncs_to_fail, voter.disk.fuse = False, 0, None
            voter.slow_until = voter.paused_until = 0.0

    def _next(self) -> None:
        if self.over:
            return
        self._world.after(self._rng.uniform(0.2, 1.5), self._next)
        kinds = [fault for fault, _ in self._faults]
        self._rng.choices(kinds, [weight for _, weight in self._faults])[0]()

    # ---- who -----------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return [v.name for v in self._around.nodes.values() if v.lost is None]

    def _victim(self) -> Node:
        """Any voter, with a preference for leaders: they hold what can be lost."""
        nodes = list(self._around.nodes.values())
        leaders = [node for node in nodes if node.leads]
        if leaders and self._rng.random() < 0.5:
            return self._rng.choice(leaders)
        seated = [node for node in nodes if node.seated]
        return self._rng.choice(seated if seated and self._rng.random() < 0.9 else nodes)

    # ---- the network ---------------------------------------------------------------------

    def _part(self) -> None:
        rng, names = self._rng, self._names()
        self._around.network.heal()
        if len(names) == 1:
            return
        side = [self._victim().name] if rng.random() < 0.5 else []
        if not side:
            side = sorted(rng.sample(names, rng.randrange(1, len(names))))
        rest: list[str] = [name for name in names if name not in side]
        if rng.random() < 0.5:
            # Some callers are on the one side, some on the other.
            for caller in self._around.callers:
                (side if rng.random() < 0.5 else rest).append(caller.name)
        one_way = rng.random() < 0.3
        if one_way and rng.random() < 0.5:
            side, rest = rest, side
        self._around.network.cut(side, rest, one_way=one_way)

    # ---- processes and power ---------------------------------------------------------------

    def _crash_some(self) -> None:
        self._victim().crash(power=True)
        if self._rng.random() < 0.2:
            self._victim().crash(power=True)
        self._world.after(self._rng.uniform(0.05, 1.0), self.restart_all)

    def _kill_some(self) -> None:
        self._victim().crash(power=False)
        self._world.after(self._rng.uniform(0.03, 0.6), self.restart_all)

    def _crash_in_sync(self) -> None:
        """The power goes between two writes of one sync."""
        self._victim().disk.fuse = self._rng.randrange(0, 4)
        self._world.after(self._rng.uniform(0.3, 1.0), self.restart_all)

    def _power_loss(self) -> None:
        self.total_power_loss(self._rng.uniform(0.05, 0.5))

    def total_power_loss(self, off_s: float) -> None:
        """Every host loses power at once."""
        self._world.count("total_power_loss")
        for voter in self._around.nodes.values():
            voter.crash(power=True)
        self._world.after(off_s, self.restart_all)

    def restart_all(self) -> None:
        """Start whatever is down and may start; tried again while a disk refuses."""
        for voter in self._around.nodes.values():
            if not voter.up and voter.lost is None:
                self._world.count("restart")
                self._around.start(voter.name)
        if any(not v.up and v.lost is None for v in self._around.nodes.values()):
            self._world.after(0.3, self.restart_all)

    def _pause(self) -> None:
        long = self._rng.random() < 0.2
        pause_s = self._rng.uniform(2.0, 6.0) if long else self._rng.uniform(0.1, 2.0)
        self._victim().paused_until = self._world.now + pause_s
        self._world.count("pause")

    def _transfer(self) -> None:
        """Whoever leads is asked to hand its office over to another voter."""
        for node in self._around.nodes.values():
            if node.serving and node.room is not None:
                node.hand_over(self._rng.choice(node.room.names))

    # ---- clocks --------------------------------------------------------------------------

    def _jump(self) -> None:
        """Somebody sets the wall clock, by a second or by years."""
        far_ms = self._rng.choice((1_000, 60_000, 86_400_000, 10**11))
        self._victim().clock.wall_offset_ms = self._rng.randint(-far_ms, far_ms)
        self._world.count("wall_jump")

    def _drift(self) -> None:
        self._victim().clock.set_rate(self._rng.uniform(RATE_MIN, RATE_MAX))
        self._world.count("clock_rate")

    # ---- disks ---------------------------------------------------------------------------

    def _fill_disk(self) -> None:
        disk = self._victim().disk
        disk.full = True
        self._world.count("disk_full")
        self._world.after(self._rng.uniform(0.2, 2.0), setattr, disk, "full", False)

    def _fail_syncs(self) -> None:
        """EIO: the next sync fails and its bytes are gone; counted when it does."""
        self._victim().disk.syncs_to_fail = self._rng.choice((1, 1, 2))

    def _slow_disk(self) -> None:
        self._victim().slow_until = self._world.now + self._rng.uniform(0.3, 2.0)
        self._world.count("slow_sync")

    def _lose_disk(self) -> None:
        voter = self._victim()
        if self._around.may_lose(voter.name):
            voter.crash(power=True)
            self._replace_disk(voter)

    def _copy_disk(self) -> None:
        """Somebody copies the disk of a host that is down, and puts the copy back later."""
        node = self._victim()
        node.crash(power=True)
        self._world.after(self._rng.uniform(3.0, 12.0), self._put_back, node, node.disk.copy())
        self._world.after(self._rng.uniform(0.05, 0.5), self.restart_all)

    def _put_back(self, node: Node, image: dict[str, bytes]) -> None:
        """Only while enough others are there who know of a later life: else nobody could tell."""
        if self.over or node.lost is not None or node.flipped is not None:
            return
        if not self._around.may_lose(node.name) or not self._around.would_be_seen(node, image):
            return
        self._around.network.heal()
        node.crash(power=True)
        node.disk.put_back(image)
        self._world.count("disk_restored")
        node.copied.add(node.storage)
        self.restart_all()

    def _replace_disk(self, voter: Node) -> None:
        """An empty disk takes its place; the process comes up on it a little later."""
        voter.down()
        voter.disk.lose()
        voter.lost = "an empty disk is on its way"
        self._world.after(self._rng.uniform(0.5, 3.0), self._fit, voter)

    def _fit(self, voter: Node) -> None:
        voter.lost = voter.flipped = None
        if not voter.up:
            self._around.start(voter.name)

    def replace_damaged(self) -> None:
        """Whoever runs these hosts reads the message and replaces the disk."""
        for voter in self._around.nodes.values():
            if voter.flipped is not None and voter.lost is not None:
                voter.flipped = None
                self._replace_disk(voter)

    def _flip_bit(self) -> None:
        """A bit of what was durable turns over while the host is down."""
        voter = self._victim()
        if not self._around.may_lose(voter.name):
            return
        voter.crash(power=True)
        found = [(name, _proven(voter.disk.read(name) or b"")) for name in _files(voter)]
        choices = [(name, length) for name, length in found if length]
        if choices:
            name, length = self._rng.choice(choices)
            voter.disk.flip_bit(name, self._rng.randrange(length))
            voter.flipped = name
            self._world.after(self._rng.uniform(2.0, 5.0), self.replace_damaged)
        self.restart_all()


def flip_state(voter: Node, key: bytes) -> None:
    """One bit of a value turns over in a voter's memory; nothing of the log says so.

    Not one of the trouble's faults: until it is found, the voter may answer anything. It is lost
    then, with its disk, which may hold a snapshot of what it took for its state.
    """
    assert voter.room is not None
    state = voter.room.state
    entry = state.get(key)
    assert entry is not None, key
    value = bytes([entry.value[0] ^ 1]) + entry.value[1:]
    state.spoil(msgspec.structs.replace(entry, value=value))
    voter.state_flipped = True
    voter.world.count("state_flip")


def _files(voter: Node) -> list[str]:
    """What the process is bound to read when it starts: its seat, its chain, the newest log."""
    head = f"raft.e{voter.head}.log."
    fixed = ("raft.chain", STORAGE_FILE)
    beside = (".new", ".in")  # Half written: removed unread.
    names = [n for n in voter.disk.names() if not n.endswith(beside)]
    return [n for n in names if n in fixed or n.startswith(head)]


def _proven(raw: bytes) -> int:
    """How many bytes of a file are proven durable: all but a journal's tail behind its last mark.

    Damage behind that mark, together with a power loss, is a torn tail to everybody.
    """
    if not raw.startswith(b"SWRJ"):
        return len(raw)
    # The last mark may itself be torn: behind its nonce it holds its place.
    whole = len(raw) - _MARK_PLACE_BYTES
    return max(0, raw.rfind(b"m" + raw[_NONCE], 0, whole) - _RECORD_HEAD_BYTES)


assert JOURNAL_FILE == "journal"
