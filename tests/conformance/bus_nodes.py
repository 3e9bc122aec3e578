"""Three nodes with a bus each, over any transport of `link_nodes`, and a membership by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import trio
from fixed_membership import FixedMembership
from link_nodes import HARNESSES, Nodes

from swarmd.base.clock import BootClock
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.mesh.bus.config import BusConfig
from swarmd.mesh.bus.service import Bus, open_bus
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryLink
from swarmd.mesh.transports.mux import MuxLink
from swarmd.mesh.transports.streams import Streams


@dataclass
class Buses:
    nodes: Nodes
    membership: FixedMembership
    buses: list[Bus] = field(default_factory=list)
    scopes: list[trio.CancelScope] = field(
        default_factory=lambda: [trio.CancelScope() for _ in "abc"]
    )

    def __getitem__(self, index: int) -> Bus:
        return self.buses[index]

    def id_of(self, index: int) -> NodeId:
        return self.nodes.links[index].node_id

    def kill(self, index: int) -> None:
        """The node is gone as by SIGKILL, and the others learn it."""
        self.scopes[index].cancel()
        self.nodes.kill(index)
        self.membership.tell(self.id_of(index), MemberState.DEAD)

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
    async with HARNESSES[harness]() as nodes, trio.open_nursery() as nursery:
        membership = FixedMembership([link.node_id for link in nodes.links])
        buses = Buses(nodes, membership)

        async def run(i: int, task_status: trio.TaskStatus[Bus]) -> None:
            with buses.scopes[i]:
                async with open_one(nodes, membership, i, config=config) as bus:
                    task_status.started(bus)
                    await trio.sleep_forever()

        for i in range(3):
            buses.buses.append(await nursery.start(run, i))
        yield buses
        nursery.cancel_scope.cancel()
