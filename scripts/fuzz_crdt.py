"""Targets about the eventual store: a batch, a shard as it is stored, and what a replica hears."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from fuzz_inputs import packed, unpacked
from fuzz_target import Target, always

from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.sim.crdt import SimSigner
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.crdt.dots import actor_of
from swarmd.state.crdt.events import Heard, Peers, SyncDue, Write
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import CRDT, Batches, Sums, Vector, WholeAsk, decode_batch
from swarmd.state.crdt.stored import decode_shard, encode_shard
from swarmd.state.crdt.types.values import AddTo, Assign, Count

_ME, _PEER = (NodeId(name.ljust(32, b".")) for name in (b"me", b"peer"))


def _replica(me: NodeId) -> ReplicaMachine:
    rng = make_rng(me)
    journal = ShardJournal(SimDisk(World(0), "crdt"))
    machine = ReplicaMachine(
        me,
        actor_of(me, bytes(8)),
        SimSigner(me),
        journal,
        rng,
        lambda: 10**12,
    )
    operations = (AddTo("x"), Count(3), Assign({"a": 1}))
    for number, operation in enumerate(operations):
        machine.handle(Write(number, "b", f"k{number}", operation), 0.0)
    machine.settle(0.0)
    return machine


def _heard() -> Callable[[bytes], object]:
    """A message that is well formed may say anything."""
    machine = _replica(_ME)
    machine.handle(Peers((_PEER,)), 0.0)
    ticks = itertools.count(1)

    def hear(raw: bytes) -> object:
        now = next(ticks) / 100
        message = CRDT.decode(raw)
        effects = [*machine.handle(Heard(_PEER, message), now), *machine.settle(now)]
        for effect in [*effects, *machine.handle(SyncDue(), now)]:
            if hasattr(effect, "message"):
                CRDT.encode(effect.message)
        return effects

    return hear


def eventual() -> Iterator[Target]:
    peer = _replica(_PEER)
    shards = [encode_shard(shard) for shard in peer.shards()]
    batches = [batch.raw for shard in peer.shards() for batch in shard.log()]
    yield Target(
        "crdt.batch",
        always(decode_batch),
        batches,
        covers=("state.crdt.messages.decode_batch",),
        dress=packed,
        values=[unpacked(raw) for raw in batches],
    )
    yield Target(
        "crdt.stored",
        always(decode_shard),
        shards,
        covers=("state.crdt.stored.decode_shard",),
        dress=packed,
        values=[unpacked(raw) for raw in shards],
    )
    said = [
        CRDT.encode(message)
        for shard in peer.shards()
        for message in (
            Sums(10**12, ()),
            Vector(*shard.name, shard.seen(), True),
            Batches(*shard.name, tuple(batch.raw for batch in shard.log()), True, True),
            WholeAsk(*shard.name),
        )
    ]
    yield Target("crdt.heard", _heard, said, renewed_after=500)
