"""Targets about the eventual store: a batch, a shard as it is stored, and what a replica hears."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from fuzz_inputs import packed, unpacked
from fuzz_target import Target, always

from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.sim.crdt_world import SimSigner
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.crdt.cells import Cell
from swarmd.state.crdt.dots import actor_of
from swarmd.state.crdt.events import Heard, Peers, SyncDue, Write
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import (
    CRDT,
    Batches,
    HandOver,
    Leaving,
    Sums,
    Taken,
    Vector,
    WholeAsk,
    decode_batch,
)
from swarmd.state.crdt.placement import bucket_on
from swarmd.state.crdt.stored import decode_name, decode_shard, encode_name, encode_shard
from swarmd.state.crdt.types.documents import read_list, read_text
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.updates import Block, Deleted, Update, decode_update, encode_update
from swarmd.state.crdt.types.values import AddTo, Assign, Count
from swarmd.wire.codec import pack

_ME, _PEER, _THIRD = (NodeId(name.ljust(32, b".")) for name in (b"me", b"peer", b"third"))


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
    machine.handle(Peers((_THIRD,), placed=frozenset((me, _THIRD))), 0.0)
    machine.handle(Heard(_THIRD, Sums(10**12, (), some=True)), 0.0)
    machine.handle(Write(9, bucket_on("b", 2), "k", AddTo("y")), 0.0)
    machine.settle(0.0)
    return machine


def _heard() -> Callable[[bytes], object]:
    """A message that is well formed may say anything."""
    machine = _replica(_ME)
    # The peer holds what this node has, so that it hands that over.
    machine.handle(Peers((_PEER,), placed=frozenset((_ME, _PEER, _THIRD))), 0.0)
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


def _document() -> tuple[Callable[[bytes], object], list[bytes]]:
    """An update amid sound ones: whatever it is, the document is read, and is the same again."""
    sound = [
        encode_update(Update(blocks, deleted))
        for blocks, deleted in (
            ([Block(1, 0, None, None, "a\u00e9\U0001f600", 4)], []),
            ([Block(1, 4, (1, 3), None, "b", 1), Block(2, 0, (1, 0), (1, 1), "cd", 2)], []),
            ([Block(3, 0, None, (1, 0), (pack(1), pack("x")), 2)], [Deleted(1, 1, 3)]),
            ([Block(2, 5, (2, 4), None, None, 9)], [Deleted(2, 0, 1)]),
        )
    ]

    def read(raw: bytes) -> object:
        for kind, reader in ((Kind.TEXT, read_text), (Kind.LIST, read_list)):
            live = {
                (actor_of(_PEER, bytes(8)), number): Cell((), kind, b"", pack([1, one]), number)
                for number, one in enumerate([*sound[:2], raw, *sound[2:]], 1)
            }
            assert reader(live) == reader(dict(reversed(live.items())))
        return decode_update(raw)

    return read, sound


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
    read, updates = _document()
    yield Target(
        "crdt.dropped",
        always(decode_name),
        [encode_name(("b~2", 7))],
        covers=("state.crdt.stored.decode_name",),
        dress=packed,
        values=[unpacked(encode_name(("b~2", 7)))],
    )
    yield Target(
        "crdt.document",
        always(read),
        updates,
        covers=(
            "state.crdt.types.updates.decode_update",
            "state.crdt.types.documents.read_text",
            "state.crdt.types.documents.read_list",
        ),
    )
    said = [
        CRDT.encode(message)
        for shard in peer.shards()
        for message in (
            Sums(10**12, ()),
            Vector(*shard.name, shard.seen(), True),
            Batches(*shard.name, tuple(batch.raw for batch in shard.log()), True, True),
            WholeAsk(*shard.name),
            HandOver(*shard.name, 7, shard.seen()),
            Taken(*shard.name, 7),
            Leaving(leaves=True),
        )
    ]
    yield Target("crdt.heard", _heard, said, renewed_after=500)
