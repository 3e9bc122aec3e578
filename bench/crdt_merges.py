"""Merging alone, in this process: swarmd's replicas beside those of other libraries.

The same writes go to all: four replicas, of which each writes so many keys of one map, a third of
them written by others, too. `updates` merges every write as an update of its own, as it came from
its writer; `states` merges each replica as a whole. Either begins with bytes and ends with a
replica that can be read. What swarmd does beside merging is not in it: signatures, a disk, peers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import crdt_peers
from crdt_peers import Library, Write
from percentiles import at
from run import Figure

from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.state.crdt.dots import actor_of
from swarmd.state.crdt.events import Write as WriteEvent
from swarmd.state.crdt.machine import ReplicaMachine
from swarmd.state.crdt.messages import CRDT, Batch, Shard, WholeAsk, decode_batch
from swarmd.state.crdt.shard import ShardState, logged
from swarmd.state.crdt.types.values import Assign
from swarmd.state.crdt.wholes import Arriving, Departures

REPLICAS = 4
KEYS = 5_000  # Of each replica.
ROUNDS = 5
BUCKET = "values"


class _Unsigned:
    """Signs and verifies nothing: what is compared has no signatures either."""

    def sign_batch(self, said: bytes) -> bytes:
        return bytes(64)

    def verify_batch(self, author: NodeId, said: bytes, signature: bytes) -> bool:
        return True


class Kept:
    """A journal that keeps the batches as they came."""

    def __init__(self) -> None:
        self.raws: list[bytes] = []

    def append(self, batch: Batch) -> None:
        self.raws.append(batch.raw)

    def replace(self, shard: ShardState) -> None:
        raise AssertionError("nothing is taken over here")


def replica(number: int, journal: Kept) -> ReplicaMachine:
    me = NodeId(b"%02d" % number * 16)
    actor = actor_of(me, bytes(8))
    rng = make_rng(number)
    return ReplicaMachine(me, actor, _Unsigned(), journal, rng, lambda: 10**12)


class Swarmd:
    """As `crdt_peers.Library`."""

    def __init__(self) -> None:
        self._updates: list[bytes] = []
        self._states: list[list[tuple[Shard, list[bytes]]]] = []

    def make(self, writes: Sequence[Sequence[Write]]) -> None:
        lanes = []
        for number, of_one in enumerate(writes):
            journal = Kept()
            machine = replica(number, journal)
            for key, value in of_one:
                machine.handle(WriteEvent(0, BUCKET, key, Assign(value)), 0.0)
                machine.settle(0.0)
            lanes.append(journal.raws)
            self._states.append([(one.name, parts_of(one)) for one in machine.shards()])
        self._updates = [one for turn in zip(*lanes, strict=True) for one in turn]

    def merge_updates(self) -> int:
        shards: dict[Shard, ShardState] = {}
        for raw in self._updates:
            batch = decode_batch(raw)
            shard = shards.get(batch.shard)
            if shard is None:
                shard = shards[batch.shard] = ShardState(batch.shard)
            shard.take(batch)
        return sum(len(shard.cells) for shard in shards.values())

    def merge_states(self) -> int:
        shards: dict[Shard, ShardState] = {}
        for state in self._states:
            for name, parts in state:
                arriving = Arriving(NodeId(bytes(32)))
                for raw in parts:
                    arriving.take(CRDT.decode(raw), 0.0)
                shard = shards.get(name)
                if shard is None:
                    shard = shards[name] = ShardState(name)
                shard.join(arriving.cells, map(logged, arriving.newest))
        return sum(len(shard.cells) for shard in shards.values())


def parts_of(shard: ShardState) -> list[bytes]:
    """A shard as it goes from one node to another."""
    departures, parts = Departures(), []
    number = None
    while True:
        ask = WholeAsk(*shard.name, number, len(parts))
        part = departures.part(NodeId(bytes(32)), shard, ask, 0.0)
        assert part is not None
        parts.append(CRDT.encode(part))
        number = part.number
        if part.last:
            return parts


def writes() -> list[list[Write]]:
    """Each replica's own keys, and every third one a key that all write."""
    return [
        [(_key(one, place), f"{one} says {place} of a task") for place in range(KEYS)]
        for one in range(REPLICAS)
    ]


def _key(replica_number: int, place: int) -> str:
    return f"task/{place:06}" if place % 3 == 0 else f"task/{place:06}/{replica_number}"


def measure() -> Iterator[Figure]:
    """Medians of rounds in which all take turns."""
    sides: dict[str, Library | Swarmd | None] = {"swarmd": Swarmd()}
    sides |= {package: crdt_peers.library_of(package) for package in crdt_peers.PACKAGES}
    given = writes()
    for side in sides.values():
        if side is not None:
            side.make(given)
    keys = len({key for of_one in given for key, _ in of_one})
    for what in ("updates", "states"):
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, side in sides.items():
                if side is not None:
                    merge = side.merge_updates if what == "updates" else side.merge_states
                    rates[name].append(rate_of(merge, keys))
        ours = median(rates["swarmd"])
        for package in crdt_peers.PACKAGES:
            yield Figure(f"{what}_per_s_beside_{package}", ours, median(rates[package]))


def rate_of(merge: Callable[[], int], keys: int) -> float:
    began = time.perf_counter()
    held = merge()
    took_s = time.perf_counter() - began
    assert held == keys, f"{held} keys instead of {keys}"
    return REPLICAS * KEYS / took_s


def median(rates: list[float]) -> float | None:
    return at(sorted(rates), 0.5) if rates else None
