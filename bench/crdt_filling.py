"""Puts many keys into the files of a daemon that does not run, as it would itself."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import memory_load

from swarmd.app.folder import claim
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.memory.kv.eventual import BUCKET
from swarmd.mesh.rumours import RumourSigner
from swarmd.mesh.trust import open_trust
from swarmd.state.crdt.cells import Cell, Change
from swarmd.state.crdt.clock import stamp_at
from swarmd.state.crdt.dots import Actor, actor_of
from swarmd.state.crdt.events import Write
from swarmd.state.crdt.journal import ShardJournal
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import encode_said, make_batch, shard_of
from swarmd.state.crdt.shard import ShardState
from swarmd.state.crdt.stored import encode_shard
from swarmd.state.crdt.types.kinds import Kind
from swarmd.state.crdt.types.values import Assign
from swarmd.wire.codec import pack

NODES = 10
BATCH = 4  # As many concurrent writers of one node have in one shard.


def fill(folder: Path, count: int) -> None:
    """`memory_load`'s keys from 0 on, as ten nodes wrote them in turns."""
    by_shard: dict[int, list[int]] = {}
    for number in range(count):
        by_shard.setdefault(
            shard_of(f"{memory_load.NAMESPACE}/{memory_load.key_of(number)}"), []
        ).append(number)
    journal = ShardJournal(FileDisk(folder))
    journal.load()
    actors = [actor_of(NodeId(b"%02d" % number * 16), bytes(8)) for number in range(NODES)]
    for number, keys in by_shard.items():
        shard = ShardState((BUCKET, number))
        for turn, begin in enumerate(range(0, len(keys), BATCH)):
            put(shard, actors[turn % NODES], keys[begin : begin + BATCH])
        journal.keep(shard.name, encode_shard(shard))


def put(shard: ShardState, actor: Actor, numbers: list[int]) -> None:
    first = shard.cells.context.seen_of(actor) + 1
    changes = tuple(
        Change(f"{memory_load.NAMESPACE}/{memory_load.key_of(number)}", cell_of(number), ())
        for number in numbers
    )
    said = encode_said(shard.name, actor, first, changes)
    shard.take(make_batch(said, bytes(64)))


def cell_of(number: int) -> Cell:
    value = pack([memory_load.value_of(number, "value"), "bench"])
    return Cell((), Kind.REGISTER, b"", value, stamp_at(1_700_000_000_000 + number))


def write(data_folder: Path, keys: range) -> None:
    """Have a daemon's node write `memory_load`'s keys, each by itself, signed with its key.

    It does the same as the daemon for as many requests of the API, in a tenth of the time.
    """
    with contextlib.closing(claim(data_folder)) as folder:
        trust = open_trust(folder.disk("mesh"))
        journal = ShardJournal(folder.disk("crdt"))
        rng = make_rng(keys.start)
        machine = ReplicaMachine(
            folder.key.key_id,
            actor_of(folder.key.key_id, rng.getrandbits(64).to_bytes(8, "big")),
            RumourSigner(folder.key, trust),
            journal,
            rng,
            lambda: round(time.time() * 1_000),
            journal.load(),
        )
        for number in keys:
            value = [memory_load.value_of(number, "value"), "bench"]
            name = f"{memory_load.NAMESPACE}/{memory_load.key_of(number)}"
            machine.handle(Write(0, BUCKET, name, Assign(value)), 0.0)
            machine.settle(0.0)
        journal.sync()
