"""A swarm of stores in one process: memory streams, disks that forget, members on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from certifying import let_count

from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import AddToken, Admit, decode_record, sign_entry
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.trust import Trust, open_trust
from swarmd.mesh.trust_spread import serve_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.messages import AuthorityEntry
from swarmd.state.raft.service import Store, open_store


class TrioClock:
    """The clock of the running trio loop, virtual or not."""

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return 0


@dataclass
class FakeMember:
    node_id: NodeId
    state: str = "alive"


@dataclass
class Node:
    """One node: what survives a crash, and what runs now."""

    key: SigningKey
    disk: Any
    trust_disk: Any
    store: Store | None = None
    trust: Trust | None = None
    link: Any = None
    scope: trio.CancelScope | None = None
    stopped: trio.Event | None = None
    error: BaseException | None = None

    @property
    def node_id(self) -> NodeId:
        return self.key.key_id


@dataclass
class View:
    """What one node sees of the others."""

    swarm: Swarm

    def alive(self) -> list[NodeId]:
        return [n.node_id for n in self.swarm.nodes if n.store is not None]

    async def changed(self) -> None:
        await trio.sleep(0.05)

    def members(self) -> list[FakeMember]:
        return [
            FakeMember(n.node_id, "alive" if n.store is not None else "dead")
            for n in self.swarm.nodes
            if n.node_id in self.swarm.known and n.node_id not in self.swarm.left
        ]


@dataclass
class Swarm:
    """Nodes of one swarm. `start` and `crash` them; all are admitted from the beginning."""

    nursery: trio.Nursery
    network: MemoryNetwork
    world: World
    nodes: list[Node] = field(default_factory=list)
    known: set[NodeId] = field(default_factory=set)
    left: set[NodeId] = field(default_factory=set)
    config: RaftConfig = field(default_factory=RaftConfig)

    def __post_init__(self) -> None:
        keys = [SigningKey.from_seed(bytes([i + 1]) * 32) for i in range(12)]
        genesis, _, self.admin, self.recovery = init_swarm("lab", "n0", node_key=keys[0])
        self.genesis = genesis
        self.records = _admit_all(genesis, self.admin, keys)
        for i, key in enumerate(keys):
            self.nodes.append(Node(key, SimDisk(self.world, f"d{i}"), SimDisk(self.world, f"t{i}")))

    async def start(self, *indices: int) -> None:
        for index in indices:
            node = self.nodes[index]
            assert node.store is None
            self.known.add(node.node_id)
            await self.nursery.start(self._run, node)

    async def start_with_logged_records(self) -> None:
        """Three voters whose own log has the swarm's records, put there by the first alone."""
        entries = [decode_record(record).entry for record in self.records]
        self.records = []
        await self.start(0)
        for entry in entries:
            assert (await self.store(0).propose([AuthorityEntry(entry)]))[0].ok
        self.records = self.trust(0).noted_from(0)
        await self.start(1, 2)
        await self.voters_are(0, 1, 2)

    async def _run(self, node: Node, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        node.scope, node.stopped, node.error = trio.CancelScope(), trio.Event(), None
        trust = node.trust = open_trust(node.trust_disk, self.genesis)
        link = node.link = self.network.link(node.node_id)
        rng = make_rng(f"{node.node_id.hex()}:{trio.current_time()}")
        try:
            with node.scope:
                async with open_store(
                    link, View(self), trust, node.disk, node.key, self.config, TrioClock(), rng
                ) as node.store:
                    if trust.head[0] == 0 and len(self.records) > 0:
                        let_count(trust, self.records, self.nodes[0].key)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(serve_trust, trust, link, View(self))
                        task_status.started()
        except BaseException as error:
            node.error = error
            if not self.expects_errors:
                raise
        finally:
            node.store = None
            node.stopped.set()

    expects_errors: bool = False
    expected: list[int] = field(default_factory=list)

    async def crash(self, *indices: int) -> None:
        """Kill nodes: streams are reset, unsynced bytes are lost."""
        for index in indices:
            node = self.nodes[index]
            if node.stopped is None or node.scope is None:
                continue
            self.network.stop(node.node_id)
            node.scope.cancel()
            with trio.CancelScope(shield=True):
                await node.stopped.wait()
            node.disk.crash()

    def store(self, index: int) -> Store:
        store = self.nodes[index].store
        assert store is not None, f"n{index} is not running"
        return store

    def trust(self, index: int) -> Trust:
        trust = self.nodes[index].trust
        assert trust is not None
        return trust

    def id(self, index: int) -> NodeId:
        return self.nodes[index].node_id

    def index_of(self, node_id: NodeId | None) -> int:
        return next(i for i, n in enumerate(self.nodes) if n.node_id == node_id)

    async def voters_are(self, *indices: int, within_s: float = 10.0) -> None:
        """Wait until the running nodes agree that these vote and one of them serves."""
        wanted = tuple(sorted(self.id(i) for i in indices))
        with trio.move_on_after(within_s):
            while True:
                if self._settled(wanted):
                    return
                await trio.sleep(0.02)
        raise AssertionError([n.store.status() for n in self.nodes if n.store is not None])

    def _settled(self, wanted: tuple[NodeId, ...]) -> bool:
        running = [n.store for n in self.nodes if n.store is not None]
        agreed = all(store.voters == wanted for store in running)
        return agreed and any(store.serving() is not None for store in running)

    async def coordinator(self, within_s: float = 5.0) -> int:
        with trio.move_on_after(within_s):
            while True:
                for index, node in enumerate(self.nodes):
                    if node.store is not None and node.store.serving() is not None:
                        return index
                await trio.sleep(0.01)
        raise AssertionError("no coordinator")


def _admit_all(genesis: Any, admin: SigningKey, keys: list[SigningKey]) -> list[bytes]:
    state = AuthorityState(genesis)
    token, entry = make_token(genesis, admin)
    state.apply(entry, 1)
    for i, key in enumerate(keys[1:], start=1):
        admit = Admit(
            token.key_id,
            key.public,
            f"n{i}",
            key.certificate,
            ("voter", "worker"),
            bytes([i]) * 16,
            bytes([i]) * 16,
        )
        state.apply(sign_entry(admit, genesis.swarm_id, token, key), 1)
    return state.dump()


def make_token(genesis: Any, admin: SigningKey) -> tuple[SigningKey, bytes]:
    token = SigningKey.from_seed(b"t" * 32)
    entry = AddToken(token.public, "member", 100, 10**12, b"n" * 16)
    return token, sign_entry(entry, genesis.swarm_id, admin)


@asynccontextmanager
async def running_swarm(**options: Any) -> AsyncIterator[Swarm]:
    """A swarm in which nothing runs yet."""
    async with trio.open_nursery() as nursery:
        swarm = Swarm(nursery, MemoryNetwork(), World(1), **options)
        yield swarm
        nursery.cancel_scope.cancel()
