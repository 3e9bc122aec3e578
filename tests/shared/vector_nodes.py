"""Nodes with vector memory over one network in memory, for tests that look into them."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from fixed_membership import FixedMembership

from swarmd.base.clock import BootClock
from swarmd.base.files import FileDisk
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.memory.vector.config import VectorsConfig
from swarmd.memory.vector.feeder import OpenIndex
from swarmd.memory.vector.opening import open_embedded
from swarmd.memory.vector.service import NewEntry, VectorMemory
from swarmd.memory.vector.shapes import Hit, Scalar, packed
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.sim.crdt_world import SimSigner
from swarmd.state.crdt.service import Eventual, open_eventual

DIMENSION = 4
NAMES = ("a", "b", "c")


def node_id(name: str) -> NodeId:
    return NodeId(name.encode().ljust(32, b"."))


@dataclass
class Node:
    store: Eventual
    vectors: VectorMemory


class VectorSwarm:
    """`alone` nodes hear of nobody."""

    def __init__(self, folder: Path, config: VectorsConfig | None = None) -> None:
        self.network = MemoryNetwork()
        self.membership = FixedMembership([node_id(name) for name in NAMES])
        self.folder = folder
        self.config = config or VectorsConfig(settle_timeout_s=20.0)
        self.alive: list[NodeId] = []
        # How a node of that name opens its index; None: an embedded one in its folder.
        self.opener: Callable[[str], OpenIndex] | None = None
        self.starts = 0

    @asynccontextmanager
    async def node(self, name: str, *, alone: bool = False) -> AsyncIterator[Node]:
        self.starts += 1
        rng = make_rng(self.starts)
        network = MemoryNetwork() if alone else self.network
        async with (
            open_eventual(
                network.link(node_id(name)),
                self.membership,
                FileDisk(self.folder / name / "crdt"),
                SimSigner(node_id(name)),
                BootClock(),
                rng,
                everyone=lambda: [node_id(one) for one in NAMES],
            ) as store,
            trio.open_nursery() as nursery,
        ):
            place = self.folder / name / "vectors"
            opener = self.opener(name) if self.opener else lambda: open_embedded(place)
            vectors = VectorMemory(
                node_id(name),
                store,
                opener,
                self.config,
                rng,
                lambda: [one for one in self.alive if one != node_id(name)],
            )
            nursery.start_soon(vectors.run)
            yield Node(store, vectors)
            nursery.cancel_scope.cancel()

    def wipe_index(self, name: str) -> None:
        shutil.rmtree(self.folder / name / "vectors")

    def copy(self, name: str, part: str, to: str) -> None:
        """Keep a copy of a part of a node's folder under another name."""
        shutil.rmtree(self.folder / to, ignore_errors=True)
        shutil.copytree(self.folder / name / part, self.folder / to)

    def put_back(self, name: str, part: str, kept: str) -> None:
        shutil.rmtree(self.folder / name / part)
        shutil.copytree(self.folder / kept, self.folder / name / part)


def entry(entry_id: str, *elements: float, **payload: Scalar) -> NewEntry:
    given = [*elements, *[1.0] * DIMENSION][:DIMENSION]
    return NewEntry(entry_id, packed(given), payload)


def entries(rng: random.Random, ids: list[str]) -> list[NewEntry]:
    return [
        NewEntry(one, packed(rng.gauss(0, 1) for _ in range(DIMENSION)), {"n": rng.randrange(9)})
        for one in ids
    ]


async def hits_on(node: Node, name: str = "docs", k: int = 1_000) -> list[Hit]:
    found = await node.vectors.search(name, packed([1.0] * DIMENSION), k)
    assert found.behind == 0
    return found.hits


async def ids_on(node: Node, name: str = "docs") -> list[str]:
    return sorted(hit.id for hit in await hits_on(node, name))


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(20.0):
        while True:
            if holds():
                return
            await trio.sleep(0.01)
