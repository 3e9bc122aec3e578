"""A swarm of blob rooms over links in memory."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import trio

from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.sealed_file import Sealer
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.state.blobs.config import BlobsConfig
from swarmd.state.blobs.naming import hash_of
from swarmd.state.blobs.service import Blobs, open_blobs


class HandClock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def now(self) -> float:
        return self.at

    def wall_ms(self) -> int:
        return int(self.at * 1_000)


class Swarm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork()
        self.clock = HandClock()
        self.ids: list[NodeId] = []
        self.blobs: list[Blobs] = []
        self.links: list[Any] = []
        self.voters: list[NodeId] = []
        self.dead: set[NodeId] = set()
        self.left: set[NodeId] = set()
        self.named: set[bytes] = set()

    async def grow(
        self,
        stack: AsyncExitStack,
        count: int,
        voters: int,
        config: BlobsConfig | None,
        sealer: Sealer | None = None,
    ) -> None:
        for number in range(count):
            node_id = node_id_of(bytes([number]))
            self.ids.append(node_id)
            self.links.append(self.network.link(node_id))
        self.voters = self.ids[:voters]
        for number, link in enumerate(self.links):
            self.blobs.append(
                await stack.enter_async_context(
                    open_blobs(
                        link,
                        self.folder / str(number),
                        config or BlobsConfig(put_timeout_s=5.0, chunk_timeout_s=1.0),
                        self.clock,
                        voters=lambda: self.voters,
                        members=lambda: [n for n in self.ids if n not in self.left],
                        alive=lambda: [n for n in self.ids if n not in self.dead],
                        referenced=partial(self.references, node_id=link.node_id),
                        sealer=sealer,
                    )
                )
            )

    async def references(self, node_id: NodeId) -> set[bytes] | None:
        await trio.lowlevel.checkpoint()
        return self.named if node_id in self.voters else None

    def cut_off(self, *numbers: int) -> None:
        for number in numbers:
            rest = [node for node in self.ids if node != self.ids[number]]
            self.network.cut(self.ids[number], rest)
            self.dead.add(self.ids[number])

    def holders(self, data: bytes) -> set[int]:
        return {i for i, blobs in enumerate(self.blobs) if blobs.has(hash_of(data))}
