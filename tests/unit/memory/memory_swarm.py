"""Nodes with shared memory and caches over one strong store, each with an eventual store."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from fixed_membership import FixedMembership

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from memory_store import MemoryStore

from swarmd.base.errors import NoQuorum
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.memory.cache.service import Cache, open_cache
from swarmd.memory.kv.service import SharedMemory, open_memory
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.sim.crdt_world import SimSigner
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.crdt.config import CrdtConfig
from swarmd.state.crdt.service import Eventual, open_eventual
from swarmd.state.raft.messages import Entry


class SlowClock:
    """The clock of the trio loop; wall time is as many seconds past 1,000,000."""

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return 1_000_000_000 + int(trio.current_time() * 1_000)


class OneStore(MemoryStore):
    """The strong store as every node here sees it; `no_quorum` cuts all of them off."""

    def __init__(self) -> None:
        super().__init__()
        self.office = object()

    def _now_ms(self) -> int:
        return int(trio.current_time() * 1_000)

    def store_time_ms(self) -> int:
        return self._now_ms()

    def _reach(self) -> None:
        if self.no_quorum:
            raise NoQuorum("no majority of the voters answers")

    async def get(self, key: bytes, *, stale: bool = False, timeout_s: float = 5.0) -> Entry | None:
        self._reach()
        return await super().get(key)

    async def read_time_ms(self) -> int:
        await trio.lowlevel.checkpoint()
        self._reach()
        return self._now_ms()

    @property
    def local(self) -> object:
        return self.applier.state


@dataclass
class Station:
    memory: SharedMemory
    cache: Cache
    eventual: Eventual


@dataclass
class MemorySwarm:
    world: World = field(default_factory=lambda: World(seed=1))
    disks: dict[int, SimDisk] = field(default_factory=dict)
    store: OneStore = field(default_factory=OneStore)
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    stations: list[Station] = field(default_factory=list)
    memberships: list[FixedMembership] = field(default_factory=list)
    dead: set[NodeId] = field(default_factory=set)
    config: CrdtConfig = field(default_factory=CrdtConfig)

    @asynccontextmanager
    async def node(self, number: int, count: int) -> AsyncIterator[Station]:
        """One node, from its disk, for as long as the block runs."""
        ids = [NodeId(f"n{one}".encode().ljust(32, b".")) for one in range(count)]
        me, clock = ids[number], SlowClock()

        def alive() -> list[NodeId]:
            return [one for one in ids if one != me and one not in self.dead]

        membership = FixedMembership(ids)
        self.memberships.append(membership)

        link = self.network.link(me)
        async with (
            open_eventual(
                link,
                membership,
                self.disks.setdefault(number, SimDisk(self.world, f"d{number}")),
                SimSigner(me),
                clock,
                make_rng(f"{number} {trio.current_time()}"),
                everyone=lambda: ids,
                config=self.config,
            ) as eventual,
            open_memory(link, eventual, self.store, clock, alive) as memory,
            open_cache(me, memory, self.store, clock, make_rng(number)) as cache,
        ):
            yield Station(memory, cache, eventual)

    def lose(self, number: int) -> None:
        """Have a node be cut off, and known dead to all others."""
        gone = self._id(number)
        self.network.cut(gone, [self._id(n) for n in range(len(self.stations)) if n != number])
        self.dead.add(gone)
        for other, membership in enumerate(self.memberships):
            if other != number:
                membership.tell(gone, MemberState.DEAD)

    def find(self, number: int) -> None:
        """Have it be back; all cuts are over."""
        self.network.heal()
        self.dead.discard(self._id(number))
        for other, membership in enumerate(self.memberships):
            if other != number:
                membership.tell(self._id(number), MemberState.ALIVE)

    def _id(self, number: int) -> NodeId:
        return self.stations[number].memory.namespaces._me


@asynccontextmanager
async def memory_swarm(count: int) -> AsyncIterator[MemorySwarm]:
    """Nodes that reach each other, and a strong store."""
    swarm = MemorySwarm()
    async with swarm.network.running(), trio.open_nursery() as nursery:
        nursery.start_soon(swarm.store.end_leases)
        async with AsyncExitStack() as opened:
            for number in range(count):
                station = await opened.enter_async_context(swarm.node(number, count))
                swarm.stations.append(station)
            yield swarm
        nursery.cancel_scope.cancel()
