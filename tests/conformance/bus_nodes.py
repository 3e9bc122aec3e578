"""Three nodes with a bus each, over any transport of `link_nodes`, and a membership by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType

import trio
from link_nodes import HARNESSES, Nodes

from swarmd.base.clock import BootClock
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.bus.service import Bus, open_bus
from swarmd.mesh.swim.events import Changed, Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryLink
from swarmd.mesh.transports.mux import MuxLink
from swarmd.mesh.transports.streams import Streams


class Changes:
    """See `mesh.swim.service.MemberChanges`."""

    def __init__(self, membership: FixedMembership) -> None:
        self.lagged = False
        self.waiting: deque[Changed] = deque()
        self.wake = trio.Event()
        self._membership = membership

    def __enter__(self) -> Changes:
        self._membership.listeners.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._membership.listeners.remove(self)

    async def receive(self) -> Changed:
        while not self.waiting:
            self.wake = trio.Event()
            await self.wake.wait()
        return self.waiting.popleft()


class FixedMembership:
    """Everybody is alive until `tell` says otherwise."""

    def __init__(self, ids: list[NodeId]) -> None:
        self._members = {
            node: Member(node, f"n{i}", (), MemberState.ALIVE, 1 << 32, (), "", (), 0.0)
            for i, node in enumerate(ids, 1)
        }
        self.listeners: list[Changes] = []

    def members(self) -> list[Member]:
        return list(self._members.values())

    def get(self, node_id: NodeId) -> Member | None:
        return self._members.get(node_id)

    def subscribe(self) -> Changes:
        return Changes(self)

    def tell(self, node: NodeId, state: MemberState, start: int = 1) -> None:
        before = self._members[node]
        after = Member(node, before.name, (), state, start << 32, (), "", (), 0.0)
        self._members[node] = after
        for listener in self.listeners:
            listener.waiting.append(Changed(before, after))
            listener.wake.set()


@dataclass
class Buses:
    nodes: Nodes
    membership: FixedMembership
    buses: list[Bus] = field(default_factory=list)
    _stacks: list[AsyncExitStack] = field(default_factory=list)

    def __getitem__(self, index: int) -> Bus:
        return self.buses[index]

    def id_of(self, index: int) -> NodeId:
        return self.nodes.links[index].node_id

    def break_link(self, a: int, b: int) -> None:
        """The connection between two nodes is reset, and what was on its way is lost."""
        here, there = self.nodes.links[a], self.nodes.links[b]
        break_link(here, there)


def break_link(here: MuxLink, there: MuxLink) -> None:
    if isinstance(here, Streams):
        here.drop(there.node_id, "the test breaks it")
    elif isinstance(here, MemoryLink):
        here._network.cut(here.node_id, there.node_id)
        here._network.heal()


def open_one(
    nodes: Nodes,
    membership: FixedMembership,
    index: int,
    seed: int = 0,
    config: BusConfig | None = None,
) -> AbstractAsyncContextManager[Bus]:
    return open_bus(
        nodes.links[index],
        membership,
        config or BusConfig(),
        BootClock(),
        make_rng(f"{index}/{seed}"),
    )


@asynccontextmanager
async def open_buses(harness: str, config: BusConfig | None = None) -> AsyncIterator[Buses]:
    async with HARNESSES[harness]() as nodes, AsyncExitStack() as stack:
        membership = FixedMembership([link.node_id for link in nodes.links])
        buses = Buses(nodes, membership)
        for i in range(3):
            bus = open_one(nodes, membership, i, config=config)
            buses.buses.append(await stack.enter_async_context(bus))
        yield buses
