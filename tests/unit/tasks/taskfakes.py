"""A swarm's lower rooms, faked: one store, one pool of blobs, workers that are functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from sortedcontainers import SortedDict

from swarmd.agents.attempts import AttemptRun, Outcome
from swarmd.agents.records import AgentRecord, agent_key, encode_agent
from swarmd.agents.spec import AgentSpec
from swarmd.base.clock import Clock
from swarmd.base.errors import NoQuorum, NotFound, SwarmError
from swarmd.base.ids import NodeId, node_id_of
from swarmd.base.rng import make_rng
from swarmd.mesh.swim.events import Changed, Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of
from swarmd.state.raft.messages import Compare, Delete, Entry, OpResult, Put, Txn
from swarmd.state.raft.statemachine import Change
from swarmd.tasks.config import TasksConfig
from swarmd.tasks.service import Tasks, open_tasks
from swarmd.wire.codec import pack, unpack

SWARM = b"w" * 32
Run = Callable[[AttemptRun], Awaitable[Outcome]]


class TrioClock(Clock):
    """Trio's time, which tests may jump."""

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return int(trio.current_time() * 1000)


@dataclass(frozen=True)
class FakeOffice:
    fence: int


class FakeLog:
    """The one copy of the store that all nodes of a test share."""

    def __init__(self) -> None:
        self.entries: Any = SortedDict()
        self.revision = 0
        self.writes = 0
        self.delay_s = 0.001
        self.broken = False
        self.stores: list[FakeStore] = []
        self.leader: NodeId | None = None

    def get(self, key: bytes) -> Entry | None:
        found: Entry | None = self.entries.get(key)
        return found

    def range(self, prefix: bytes, after: bytes, limit: int) -> list[Entry]:
        keys = self.entries.irange(max(prefix, after))
        found = [self.entries[k] for k in keys if k.startswith(prefix) and k > after]
        return found[:limit]

    def apply(self, op: Any) -> OpResult:
        if isinstance(op, Put | Delete):
            compares = () if op.expect is None else (Compare(op.key, op.expect),)
            op = Txn(compares, (op,))
        for compare in op.compares:
            entry = self.entries.get(compare.key)
            if (entry.mod_revision if entry is not None else 0) != compare.revision:
                return OpResult(False, self.revision, "conflict", "not so")
        self.revision += 1
        changes = []
        for change in op.then:
            value = change.value if isinstance(change, Put) else None
            if value is not None:
                before = self.entries.get(change.key)
                created = before.create_revision if before is not None else self.revision
                self.entries[change.key] = Entry(change.key, value, created, self.revision)
            else:
                self.entries.pop(change.key, None)
            changes.append(Change(self.revision, change.key, value))
        for store in self.stores:
            store.emit(changes)
        return OpResult(True, self.revision)

    def lead(self, node: NodeId | None) -> None:
        """Make a node the coordinator; the others learn it at once."""
        self.leader = node
        self.revision += 1
        for store in self.stores:
            store.set_office(FakeOffice(self.revision) if store.node_id == node else None)


class FakeStore:
    def __init__(self, log: FakeLog, node_id: NodeId) -> None:
        self.node_id = node_id
        self.office: FakeOffice | None = None
        self.is_voter = True
        self._log = log
        self._changed = trio.Event()
        self._subscribers: list[trio.MemorySendChannel[list[Change]]] = []
        log.stores.append(self)

    @property
    def local(self) -> FakeLog:
        return self._log

    def set_office(self, office: FakeOffice | None) -> None:
        self.office = office
        self._changed.set()
        self._changed = trio.Event()

    async def office_changed(self) -> None:
        await self._changed.wait()

    async def propose(self, ops: Sequence[Any], *, timeout_s: float = 5.0) -> list[OpResult]:
        await trio.sleep(self._log.delay_s)
        if self._log.broken:
            raise NoQuorum("no majority")
        self._log.writes += 1
        return [self._log.apply(op) for op in ops]

    async def get(self, key: bytes, *, stale: bool = False, timeout_s: float = 5.0) -> Entry | None:
        await trio.lowlevel.checkpoint()
        return self._log.get(key)

    async def read_index(self, timeout_s: float = 5.0) -> int:
        await trio.lowlevel.checkpoint()
        if self._log.broken:
            raise NoQuorum("no majority")
        return self._log.revision

    def coordinator(self) -> NodeId | None:
        return self._log.leader

    def changes(self) -> trio.MemoryReceiveChannel[list[Change]]:
        send, receive = trio.open_memory_channel[list[Change]](100_000)
        self._subscribers.append(send)
        return receive

    def emit(self, changes: list[Change]) -> None:
        for send in list(self._subscribers):
            try:
                send.send_nowait(changes)
            except trio.BrokenResourceError:
                self._subscribers.remove(send)

    def store_time_ms(self) -> int:
        return int(trio.current_time() * 1000)


class FakeBlobs:
    def __init__(self, pool: dict[bytes, bytes]) -> None:
        self.pool = pool
        self.get_delay_s = 0.0
        self.forgets = False
        self.gets = 0

    async def put(self, data: bytes) -> BlobRef:
        await trio.lowlevel.checkpoint()
        if not self.forgets:
            self.pool[hash_of(data)] = data
        return BlobRef(hash_of(data), len(data))

    async def get(self, ref: BlobRef) -> bytes:
        self.gets += 1
        await trio.sleep(self.get_delay_s)
        if ref.hash not in self.pool:
            raise NotFound("no such blob")
        return self.pool[ref.hash]

    async def keep(self, hashes: set[bytes]) -> int:
        await trio.lowlevel.checkpoint()
        gone = [h for h in self.pool if h not in hashes]
        for blob_hash in gone:
            del self.pool[blob_hash]
        return len(gone)


class FakeMembership:
    def __init__(self, names: Sequence[str]) -> None:
        self.states = {node_id_of(n.encode()): MemberState.ALIVE for n in names}
        self._names = {node_id_of(n.encode()): n for n in names}
        self._subscribers: list[_Changes] = []

    def _member(self, node: NodeId) -> Member:
        state = self.states[node]
        return Member(node, self._names[node], (), state, 0, ("worker",), "1", (), 0.0)

    def members(self) -> list[Member]:
        return [self._member(node) for node in self.states]

    def subscribe(self) -> _Changes:
        changes = _Changes()
        self._subscribers.append(changes)
        return changes

    def set(self, node: NodeId, state: MemberState) -> None:
        before = self._member(node)
        self.states[node] = state
        for changes in self._subscribers:
            changes.put(Changed(before, self._member(node)))


class _Changes:
    def __init__(self) -> None:
        self.lagged = False
        self._send, self._receive = trio.open_memory_channel[Changed](1000)

    def put(self, change: Changed) -> None:
        self._send.send_nowait(change)

    def __enter__(self) -> _Changes:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __aiter__(self) -> AsyncIterator[Changed]:
        return self._receive


class FakeSupervisor:
    """Runs `agents[name]` with the unpacked payload; keeps what it was asked.

    An agent that raises LookupError is one whose process could not be started for now.
    """

    def __init__(self, agents: dict[str, Callable[[Any, AttemptRun], Awaitable[Any]]]) -> None:
        self.agents = agents
        self.runs: list[AttemptRun] = []
        self.cancelled: list[int] = []

    async def run(self, attempt: AttemptRun) -> Outcome:
        self.runs.append(attempt)
        began = trio.current_time()
        try:
            result = await self.agents[attempt.agent](unpack(attempt.payload), attempt)
        except SwarmError:
            raise
        except LookupError as error:
            return Outcome(False, code="unavailable", message=str(error), not_begun=True)
        except ValueError as error:
            return Outcome(False, code="agent_raised", message=str(error))
        except trio.Cancelled:
            self.cancelled.append(attempt.fence)
            raise
        ran_s = trio.current_time() - began
        return Outcome(True, result=pack(result), ran_s=ran_s)


class Swarm:
    """Nodes that share a fake store; each is the real service over memory links."""

    def __init__(self, names: Sequence[str], config: TasksConfig) -> None:
        self.names = names
        self.config = config
        self.log = FakeLog()
        self.network = MemoryNetwork()
        self.pool: dict[bytes, bytes] = {}
        self.blobs = FakeBlobs(self.pool)
        self.membership = FakeMembership(names)
        self.agents: dict[str, Any] = {"echo": echo, "fail": fail, "slow": slow}
        self.supervisors: dict[str, FakeSupervisor] = {}
        self.stores: dict[str, FakeStore] = {}
        self.nodes: dict[str, Tasks] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    def id_of(self, name: str) -> NodeId:
        return node_id_of(name.encode())

    def deploy(self, name: str, **fields: Any) -> None:
        spec = AgentSpec(name=name, version="1", entry="m:run", **fields)
        record = AgentRecord(spec, BlobRef(b"b" * 32, 1))
        self.log.apply(Put(agent_key(name), encode_agent(record)))

    def node(self, name: str) -> Any:
        supervisor = self.supervisors[name] = FakeSupervisor(self.agents)
        store = self.stores[name] = FakeStore(self.log, self.id_of(name))
        return open_tasks(
            store=store,
            blobs=self.blobs,
            link=self.network.link(self.id_of(name)),
            membership=self.membership,
            supervisor=supervisor,
            swarm_id=SWARM,
            config=self.config,
            clock=TrioClock(),
            rng=make_rng(name),
        )


@asynccontextmanager
async def swarm_of(
    *names: str, config: TasksConfig | None = None, lead: bool = True
) -> AsyncIterator[Swarm]:
    """Nodes named so; the first one leads."""
    swarm = Swarm(names, config or TasksConfig(retry_delay_s=0.01))
    for name in ("echo", "fail", "slow"):
        swarm.deploy(name, retries=2)
    async with AsyncExitStack() as stack:
        for name in names:
            swarm.nodes[name] = await stack.enter_async_context(swarm.node(name))
        if lead:
            swarm.log.lead(swarm.id_of(names[0]))
        yield swarm


async def echo(value: Any, attempt: AttemptRun) -> Any:
    await trio.sleep(0.001)
    return value


async def fail(value: Any, attempt: AttemptRun) -> Any:
    await trio.sleep(0.001)
    raise ValueError(f"no {value}")


async def slow(value: Any, attempt: AttemptRun) -> Any:
    await trio.sleep(float(value))
    return attempt.fence
