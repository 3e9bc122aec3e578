"""Three connected nodes per transport, for the suite that holds them all to one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from swarmd.base.ids import NodeId, node_id_of
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.transports.mux import MuxLink


@dataclass
class Nodes:
    """Three links, and `kill(i)`: node i is gone as by SIGKILL."""

    links: list[MuxLink]
    kill: Callable[[int], None]


@asynccontextmanager
async def _memory() -> AsyncIterator[Nodes]:
    network = MemoryNetwork()
    ids = [node_id_of(bytes([i]) * 32) for i in range(3)]
    async with network.running():
        links: list[MuxLink] = [network.link(NodeId(node_id)) for node_id in ids]
        yield Nodes(links, lambda i: network.stop(ids[i]))


HARNESSES: dict[str, Callable[[], AbstractAsyncContextManager[Nodes]]] = {"memory": _memory}
