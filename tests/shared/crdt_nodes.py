"""Replicas of the eventual store without a world: tests step them and carry what they send."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.machine import Persist, Send
from swarmd.base.rng import make_rng
from swarmd.sim.crdt_world import SimSigner
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.crdt.dots import actor_of
from swarmd.state.crdt.events import (
    Dropped,
    Heard,
    Ignored,
    Peers,
    SyncDue,
    Wanted,
    Write,
    Written,
)
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.lives import END_LIVES_S
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import CRDT, Shard, shard_of
from swarmd.state.crdt.placement import bucket_on, copies_of, holders
from swarmd.state.crdt.types.values import Operation, read

TWO = bucket_on("b", 2)
WALL_MS = 10**12


def node_id(name: str) -> NodeId:
    return NodeId(name.encode().ljust(32, b"."))


class Node:
    """A machine, what it sent, and what became of its callers' writes.

    Args:
        others: who is alive from its start on, where its bucket is on all nodes; else `see` says.
    """

    def __init__(
        self, name: str, *others: str, bucket: str = "b", log_bytes_max: int = 1_000_000
    ) -> None:
        self.id = node_id(name)
        self.bucket = bucket
        self.disk = SimDisk(World(0), name)
        self.wall_ms = WALL_MS
        self.lives = 0
        self.others = others
        # All who may come back, where that are others than shards are on.
        self.everyone: frozenset[NodeId] = frozenset()
        self.log_bytes_max = log_bytes_max
        self.sent: deque[tuple[NodeId, Any]] = deque()
        self.answers: dict[int, SwarmError | None] = {}
        self.ignored: list[str] = []
        self.dropped: list[Shard] = []
        self.now = 0.0
        self.start()

    def start(self, image: dict[str, bytes] | None = None, *, is_told: bool = True) -> None:
        """Begin another life, on an older state of the disk if one is given.

        Args:
            is_told: of the others, at once.
        """
        if image is not None:
            self.disk.put_back(image)
        self.journal = ShardJournal(self.disk)
        shards = self.journal.load(self.log_bytes_max)
        self.machine = ReplicaMachine(
            self.id, actor_of(self.id, self.lives.to_bytes(8, "big")), SimSigner(self.id),
            self.journal, make_rng(f"{self.id!r}{self.lives}"), lambda: self.wall_ms, shards,
            log_bytes_max=self.log_bytes_max,
        )  # fmt: skip
        self.lives += 1
        others = tuple(map(node_id, self.others))
        first = Peers(others, frozenset((self.id, *others)))
        if is_told:
            self.step(Wanted() if copies_of(self.bucket) else first)

    def see(self, alive: Iterable[NodeId], members: Iterable[NodeId] = ()) -> None:
        """Go by who is alive, and on whom shards are: the living, if nobody is named."""
        living = [*alive]
        placed = frozenset(members or living)
        others = tuple(one for one in living if one != self.id)
        self.step(Peers(others, self.everyone or placed, placed))

    def pass_time(self) -> None:
        """Long enough that it looks after its lives."""
        self.now += END_LIVES_S
        self.step(SyncDue())

    def step(self, *events: Any) -> list[Any]:
        effects = []
        for event in events:
            effects += self.machine.handle(event, self.now)
        effects += self.machine.settle(self.now)
        if Persist() in effects:
            self.journal.sync()
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self.sent.append((peer, CRDT.decode(CRDT.encode(message))))
                case Written(ticket, error):
                    self.answers[ticket] = error
                case Ignored(_, reason):
                    self.ignored.append(reason)
                case Dropped(shard):
                    self.dropped.append(shard)
        return effects

    def write(self, key: str, operation: Operation) -> SwarmError | None:
        ticket = len(self.answers)
        self.step(Write(ticket, self.bucket, key, operation))
        return self.answers[ticket]

    def value(self, key: str) -> Any:
        cells = self.machine.cells(self.bucket, key)
        return None if cells is None or not cells.at(key) else read(cells.at(key))

    def told(self, kind: type) -> list[Any]:
        """What it sent of one kind."""
        return [message for _, message in self.sent if isinstance(message, kind)]

    def take(self) -> list[Any]:
        sent = [message for _, message in self.sent]
        self.sent.clear()
        return sent


def talk(*nodes: Node) -> None:
    """Carry what they have sent until nothing is left."""
    by_id = {node.id: node for node in nodes}
    for _ in range(10_000):
        busy = [node for node in nodes if node.sent]
        if not busy:
            return
        peer, message = busy[0].sent.popleft()
        if peer in by_id:
            by_id[peer].step(Heard(busy[0].id, message))
    raise AssertionError("they never come to an end")


def turns(*nodes: Node, count: int = 6) -> None:
    """Let time pass for these, who hear each other and nobody else."""
    for _ in range(count):
        for node in nodes:
            node.now += 1.0
            node.step(SyncDue())
        talk(*nodes)


def key_held_by(*ids: NodeId, among: list[NodeId]) -> str:
    """A key of `TWO` that these hold of all members."""
    return next(
        key for key in map(str, range(10_000))
        if set(holders((TWO, shard_of(key)), among, 2)) == set(ids)
    )  # fmt: skip
