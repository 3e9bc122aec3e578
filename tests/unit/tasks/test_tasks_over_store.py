"""The whole stack below the gateway in one process: tasks over the replicated store.

Real stores, machines and shells over memory streams and simulated disks; workers are
functions. Coordinators are killed while work is under way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import trio
from certifying import let_count
from taskfakes import FakeBlobs, FakeMembership, FakeSupervisor, TrioClock, echo, slow
from trio.testing import MockClock

from swarmd.agents.records import AgentRecord, agent_key, encode_agent
from swarmd.agents.spec import AgentSpec
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import AddToken, Admit, sign_entry
from swarmd.identity.genesis import Genesis, init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.trust import open_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.messages import Put
from swarmd.state.raft.service import Store, open_store
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.service import Tasks, open_tasks
from swarmd.tasks.spec import (
    Inline,
    Item,
    JobSpec,
    JobState,
    Manifest,
    StageKind,
    StageSpec,
    State,
    TaskRecord,
    TaskSpec,
)
from swarmd.wire.codec import pack, unpack

KEYS = [SigningKey.from_seed(bytes([i + 1]) * 32) for i in range(3)]


class Members(FakeMembership):
    """What every node sees; `alive` is what the store asks."""

    def __init__(self) -> None:
        super().__init__([])
        for number, key in enumerate(KEYS):
            self.states[key.key_id] = MemberState.ALIVE
            self._names[key.key_id] = f"n{number}"

    async def changed(self) -> None:
        await trio.sleep(0.05)

    def alive(self) -> list[NodeId]:
        return [node for node, state in self.states.items() if state is MemberState.ALIVE]


class RealSwarm:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self.members = Members()
        self.pool: dict[bytes, bytes] = {}
        self.world = World(1)
        self.agents: dict[str, Any] = {"echo": echo, "slow": slow}
        self.genesis, _, admin, _ = init_swarm("lab", "n0", node_key=KEYS[0])
        self.records = admitted(self.genesis, admin)
        self.disks = [SimDisk(self.world, f"d{i}") for i in range(3)]
        self.trust_disks = [SimDisk(self.world, f"t{i}") for i in range(3)]
        self.stores: dict[int, Store] = {}
        self.nodes: dict[int, Tasks] = {}
        self.scopes: dict[int, trio.CancelScope] = {}
        self._nursery = nursery

    async def start(self, number: int) -> None:
        self.members.set(KEYS[number].key_id, MemberState.ALIVE)
        await self._nursery.start(self._run, number)

    async def _run(self, number: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        key = KEYS[number]
        trust = open_trust(self.trust_disks[number], self.genesis)
        link = self.network.link(key.key_id)
        self.scopes[number] = trio.CancelScope()
        config, clock, rng = RaftConfig(), TrioClock(), make_rng(f"{number}:{trio.current_time()}")
        disk = self.disks[number]
        with self.scopes[number]:
            async with open_store(
                link, self.members, trust, disk, key, config, clock, rng  # type: ignore[arg-type]
            ) as store:  # fmt: skip
                if trust.head[0] == 0:
                    let_count(trust, self.records, KEYS[0])
                async with open_tasks(
                    store=store,
                    blobs=FakeBlobs(self.pool),
                    link=link,
                    membership=self.members,
                    supervisor=FakeSupervisor(self.agents),
                    swarm_id=trust.swarm_id,
                    config=TasksConfig(),
                    clock=clock,
                    rng=rng,
                ) as tasks:
                    self.stores[number], self.nodes[number] = store, tasks
                    task_status.started()
                    await trio.sleep_forever()

    def kill(self, number: int) -> None:
        """As by SIGKILL: streams break, unsynced bytes are lost, peers notice at once."""
        self.network.stop(KEYS[number].key_id)
        self.scopes[number].cancel()
        self.disks[number].crash()
        del self.stores[number], self.nodes[number]
        self.members.set(KEYS[number].key_id, MemberState.DEAD)

    async def ready(self) -> int:
        """Wait for three voters and a coordinator; its number."""
        with trio.fail_after(60):
            while True:
                for number, store in self.stores.items():
                    settled = all(len(s.voters) == 3 for s in self.stores.values())
                    if settled and store.office is not None and self.nodes[number].in_office:
                        return number
                await trio.sleep(0.01)

    async def deploy(self, name: str) -> None:
        spec = AgentSpec(name=name, version="1", entry="m:run", concurrency=17)
        record = AgentRecord(spec, BlobRef(b"b" * 32, 1))
        store = next(iter(self.stores.values()))
        await store.propose([Put(agent_key(name), encode_agent(record))])


def admitted(genesis: Genesis, admin: SigningKey) -> list[bytes]:
    state = AuthorityState(genesis)
    token = SigningKey.from_seed(b"t" * 32)
    entry = AddToken(token.public, "member", 100, 10**12, b"n" * 16)
    state.apply(sign_entry(entry, genesis.swarm_id, admin), 1)
    for number, key in enumerate(KEYS[1:], start=1):
        nonce = bytes([number]) * 16
        roles = ("voter", "worker")
        public, name = key.public, f"n{number}"
        admit = Admit(token.key_id, public, name, key.certificate, roles, nonce, nonce)
        state.apply(sign_entry(admit, genesis.swarm_id, token, key), 1)
    return state.dump()


@asynccontextmanager
async def real_swarm() -> AsyncIterator[RealSwarm]:
    async with trio.open_nursery() as nursery:
        swarm = RealSwarm(nursery)
        for number in range(3):
            await swarm.start(number)
        await swarm.ready()
        await swarm.deploy("echo")
        await swarm.deploy("slow")
        yield swarm
        nursery.cancel_scope.cancel()


def specs(agent: str, value: Any, count: int, prefix: str = "k") -> list[TaskSpec]:
    return [TaskSpec(agent, Inline(pack(value)), f"{prefix}{i}") for i in range(count)]


async def finals(tasks: Tasks, ids: list[str]) -> dict[str, TaskRecord]:
    found: dict[str, TaskRecord] = {}
    with trio.fail_after(300):
        async with aclosing(tasks.results(ids)) as records:  # type: ignore[type-var]
            async for record in records:
                found[record.task_id] = record
    return found


async def test_work_goes_on_when_coordinators_die(autojump_clock: MockClock) -> None:
    async with real_swarm() as swarm:
        ids: list[str] = []
        for number in range(3):
            items = await swarm.nodes[number].submit(specs("slow", 0.5, 200, f"k{number}."))
            ids += [item.task_id for item in items]
        raw = msgspec.msgpack.encode(
            Manifest(tuple(Item(f"i{i}", Inline(pack(i))) for i in range(100)))
        )
        swarm.pool[b"m" * 32] = raw
        stages = (
            StageSpec("one", "echo", StageKind.MAP),
            StageSpec("two", "echo", StageKind.MAP),
            StageSpec("all", "echo", StageKind.REDUCE),
        )
        spec = JobSpec("job", "j", stages, BlobRef(b"m" * 32, len(raw)), 100)
        job = await swarm.nodes[1].submit_job(spec)
        for _ in range(2):
            await trio.sleep(1.0)
            lost = await swarm.ready()
            swarm.kill(lost)
            await trio.sleep(2.0)
            await swarm.start(lost)
        number = await swarm.ready()
        found = await finals(swarm.nodes[(number + 1) % 3], ids)
        assert len(found) == 600
        assert {record.state for record in found.values()} == {State.SUCCEEDED}
        views = [view async for view in swarm.nodes[number].job_events(job.job_id)]
        assert views[-1].state is JobState.SUCCEEDED
        assert isinstance(views[-1].result, Inline)
        assert unpack(views[-1].result.data) == list(range(100))


async def test_all_nodes_die_and_work_resumes(autojump_clock: MockClock) -> None:
    async with real_swarm() as swarm:
        items = await swarm.nodes[0].submit(specs("slow", 0.2, 500))
        for number in range(3):
            swarm.kill(number)
        await trio.sleep(5.0)
        for number in range(3):
            await swarm.start(number)
        began = trio.current_time()
        await swarm.ready()
        found = await finals(swarm.nodes[2], [item.task_id for item in items])
        assert {record.state for record in found.values()} == {State.SUCCEEDED}
        assert len(found) == 500
        assert trio.current_time() - began < 30.0
