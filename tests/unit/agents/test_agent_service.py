"""Deploying, and asking members live: with the real links of one process and a plain store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from swarmd.agents.attempts import InstanceInfo, InstanceState
from swarmd.agents.bundle import _header
from swarmd.agents.config import AgentsConfig
from swarmd.agents.logs import LogBook
from swarmd.agents.messages import AGENTS, LINES_MAX, Lines
from swarmd.agents.records import AgentRecord, agent_key, decode_agent, encode_agent
from swarmd.agents.service import Agents, open_agents
from swarmd.agents.spec import AgentSpec
from swarmd.base.errors import (
    BadRequest,
    Conflict,
    CorruptFile,
    InsufficientCopies,
    NoQuorum,
    NotFound,
    RemoteError,
    VersionExists,
)
from swarmd.base.ids import NodeId, node_id_of
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.transports.memory import MemoryLink, MemoryNetwork
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of
from swarmd.state.raft.messages import Delete, Entry, Operation, OpResult, Put

SPEC = AgentSpec(name="extractor", version="1.0.0", entry="extractor:run")


def bundle(*names: str) -> bytes:
    return b"".join(_header(name, 0) for name in sorted(names)) + bytes(1024)


CODE = bundle("extractor.py")
OTHER_CODE = bundle("extractor.py", "more.py")


class PlainStore:
    """Keys with revisions, on one node."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.revision = 0
        self.before_propose: Callable[[], None] = lambda: None
        self.down = False

    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]:
        await trio.lowlevel.checkpoint()
        if self.down:
            raise NoQuorum("no quorum")
        self.before_propose()
        return [self.apply(op) for op in ops]

    def apply(self, op: Operation) -> OpResult:
        assert isinstance(op, Put | Delete)
        entry = self.entries.get(op.key)
        now = entry.mod_revision if entry else 0
        if op.expect is not None and op.expect != now:
            return OpResult(False, self.revision, "conflict", "not as expected")
        self.revision += 1
        if isinstance(op, Put):
            self.entries[op.key] = Entry(op.key, op.value, self.revision, self.revision)
        else:
            self.entries.pop(op.key, None)
        return OpResult(True, self.revision)

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None:
        await trio.lowlevel.checkpoint()
        return self.entries.get(key)

    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> Sequence[Entry]:
        await trio.lowlevel.checkpoint()
        keys = sorted(key for key in self.entries if key.startswith(prefix) and key > after)
        return [self.entries[key] for key in keys[:limit]]

    def store_time_ms(self) -> int:
        return 1_234


class PlainBlobs:
    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.full = False

    async def put(self, data: bytes) -> BlobRef:
        await trio.lowlevel.checkpoint()
        if self.full:
            raise InsufficientCopies("too few")
        self.held[hash_of(data)] = data
        return BlobRef(hash_of(data), len(data))


class Processes:
    def __init__(self, pid: int) -> None:
        self.logs = LogBook(lines_max=2_000)
        self.pid = pid
        self.retired: list[tuple[str, BlobRef | None]] = []

    def instances(self) -> list[InstanceInfo]:
        return [InstanceInfo("extractor", "1", self.pid, InstanceState.IDLE, "", 1, 2.5)]

    def bundles(self) -> set[bytes]:
        return {b"running"}

    def retire(self, agent: str, *, keep: BlobRef | None = None) -> None:
        self.retired.append((agent, keep))


class Nodes:
    """Members of one swarm as each of them sees it."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.store = PlainStore()
        self.blobs = PlainBlobs()
        self.states: dict[NodeId, MemberState] = {}
        self.links: list[MemoryLink] = []
        self.processes: list[Processes] = []
        self.agents: list[Agents] = []

    def members(self) -> list[Member]:
        return [
            Member(node, node.hex()[:4], (), state, 1, (), "1", (), 0.0)
            for node, state in self.states.items()
        ]

    def say(self, number: int, text: str, *, wall_ms: int = 0) -> None:
        self.processes[number].logs.add("extractor", wall_ms, "t", 1, text)


Open = Callable[[int], AbstractAsyncContextManager[Nodes]]


@asynccontextmanager
async def swarm_of(count: int) -> AsyncIterator[Nodes]:
    nodes = Nodes()
    async with AsyncExitStack() as stack:
        for number in range(count):
            node = node_id_of(bytes([number]))
            nodes.states[node] = MemberState.ALIVE
            nodes.links.append(nodes.network.link(node))
            nodes.processes.append(Processes(100 + number))
            nodes.agents.append(
                await stack.enter_async_context(
                    open_agents(
                        nodes.store,
                        nodes.blobs,
                        nodes.links[number],
                        nodes,
                        nodes.processes[number],
                        AgentsConfig(),
                    )
                )
            )
        yield nodes


# ---- what should run ------------------------------------------------------------------


async def test_a_deploy_is_a_record_that_names_a_blob() -> None:
    async with swarm_of(1) as nodes:
        record = await nodes.agents[0].deploy(SPEC, CODE)
        assert record.bundle == BlobRef(hash_of(CODE), len(CODE))
        assert record.deployed_ms == 1_234
        assert nodes.blobs.held[hash_of(CODE)] == CODE
        assert decode_agent(nodes.store.entries[b"g/extractor"].value) == record
        assert await nodes.agents[0].get("extractor") == record
        assert await nodes.agents[0].list() == [record]
        assert record.name == "extractor"


async def test_the_same_again_changes_nothing() -> None:
    async with swarm_of(1) as nodes:
        first = await nodes.agents[0].deploy(SPEC, CODE)
        assert await nodes.agents[0].deploy(SPEC, CODE) == first
        assert nodes.store.revision == 1


async def test_a_version_with_other_content_is_refused_unless_replaced() -> None:
    async with swarm_of(2) as nodes:
        await nodes.agents[0].deploy(SPEC, CODE)
        with pytest.raises(VersionExists, match="--replace"):
            await nodes.agents[0].deploy(SPEC, OTHER_CODE)
        replaced = await nodes.agents[0].deploy(SPEC, OTHER_CODE, replace=True)
        assert await nodes.agents[0].get("extractor") == replaced
        await trio.testing.wait_all_tasks_blocked()
        assert nodes.processes[1].retired[-1] == ("extractor", replaced.bundle)


async def test_a_new_version_takes_the_place_of_the_old() -> None:
    async with swarm_of(1) as nodes:
        await nodes.agents[0].deploy(SPEC, CODE)
        newer = AgentSpec(name="extractor", version="1.1.0", entry="extractor:run")
        await nodes.agents[0].deploy(newer, OTHER_CODE)
        assert [record.spec.version for record in await nodes.agents[0].list()] == ["1.1.0"]


async def test_a_race_is_seen_and_settled() -> None:
    async with swarm_of(1) as nodes:
        spec = AgentSpec(name="extractor", version="0.9", entry="extractor:run")
        rivals = [AgentRecord(spec, BlobRef(hash_of(CODE), len(CODE)))]

        def rival() -> None:
            if rivals:
                nodes.store.apply(Put(agent_key("extractor"), encode_agent(rivals.pop())))

        nodes.store.before_propose = rival
        await nodes.agents[0].deploy(SPEC, CODE)
        assert (await nodes.agents[0].get("extractor")).spec == SPEC


async def test_a_race_without_end_is_a_conflict() -> None:
    async with swarm_of(1) as nodes:

        def rival() -> None:
            nodes.store.apply(Delete(agent_key("extractor")))
            nodes.store.revision += 1
            nodes.store.entries[b"g/extractor"] = Entry(
                b"g/extractor", before, nodes.store.revision, nodes.store.revision
            )

        await nodes.agents[0].deploy(SPEC, CODE)
        before = nodes.store.entries[b"g/extractor"].value
        nodes.store.before_propose = rival
        with pytest.raises(Conflict):
            await nodes.agents[0].deploy(SPEC, OTHER_CODE, replace=True)
        with pytest.raises(Conflict):
            await nodes.agents[0].remove("extractor")


async def test_code_that_could_be_lost_is_not_named() -> None:
    async with swarm_of(1) as nodes:
        nodes.blobs.full = True
        with pytest.raises(InsufficientCopies):
            await nodes.agents[0].deploy(SPEC, CODE)
        assert nodes.store.entries == {}
        nodes.blobs.full = False
        nodes.store.down = True
        with pytest.raises(NoQuorum):
            await nodes.agents[0].deploy(SPEC, CODE)


@pytest.mark.parametrize("code", [b"", b"junk", bundle("other.py"), bundle("extractor/run.py")])
async def test_code_without_the_entry_is_refused(code: bytes) -> None:
    async with swarm_of(1) as nodes:
        with pytest.raises(BadRequest):
            await nodes.agents[0].deploy(SPEC, code)
        assert nodes.blobs.held == {}


@pytest.mark.parametrize("module", ["json", "queue", "msgpack", "swarmd"])
async def test_a_module_that_python_has_already_is_refused(module: str) -> None:
    """A worker has it imported before the agent's: the agent would never be found."""
    spec = AgentSpec(name="a", version="1", entry=f"{module}:run")
    async with swarm_of(1) as nodes:
        with pytest.raises(BadRequest, match="rename"):
            await nodes.agents[0].deploy(spec, bundle(f"{module}.py"))


@pytest.mark.parametrize("name", ["extractor.py", "extractor/__init__.py"])
async def test_an_entry_is_a_module_or_a_package(name: str) -> None:
    async with swarm_of(1) as nodes:
        await nodes.agents[0].deploy(SPEC, bundle(name))


async def test_a_removed_agent_is_gone() -> None:
    async with swarm_of(1) as nodes:
        await nodes.agents[0].deploy(SPEC, CODE)
        await nodes.agents[0].remove("extractor")
        assert nodes.processes[0].retired[-1] == ("extractor", None)
        for call in (nodes.agents[0].get, nodes.agents[0].remove):
            with pytest.raises(NotFound, match="extractor"):
                await call("extractor")


async def test_more_agents_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.agents.service._PAGE", 2)
    async with swarm_of(1) as nodes:
        for name in "edcba":
            spec = AgentSpec(name=name, version="1", entry="extractor:run")
            await nodes.agents[0].deploy(spec, CODE)
        assert [record.name for record in await nodes.agents[0].list()] == list("abcde")


async def test_one_record_that_cannot_be_read_hides_no_other() -> None:
    async with swarm_of(1) as nodes:
        [agents] = nodes.agents
        await agents.deploy(SPEC, CODE)
        await nodes.store.propose([Put(agent_key("aaa"), b"of a later version")])
        assert [one.name for one in await agents.list()] == [SPEC.name]
        await agents.remove("aaa")


def test_a_record_that_cannot_be_read_is_named() -> None:
    with pytest.raises(CorruptFile):
        decode_agent(b"\x93\x01\x02\x03")


# ---- what does run --------------------------------------------------------------------


async def test_every_member_is_asked_for_its_instances() -> None:
    async with swarm_of(3) as nodes:
        live = await nodes.agents[1].instances()
        assert [instance.pid for _, instance in live.instances] == [100, 101, 102]
        assert live.missing == ()


async def test_members_that_do_not_answer_are_named(autojump_clock: trio.testing.MockClock) -> None:
    async with swarm_of(4) as nodes:
        ids = list(nodes.states)
        nodes.states[ids[1]] = MemberState.DEAD
        nodes.states[ids[2]] = MemberState.LEFT
        nodes.network.cut(ids[0], ids[3])
        began = trio.current_time()
        live = await nodes.agents[0].instances()
        assert trio.current_time() - began <= 1.0
        assert [instance.pid for _, instance in live.instances] == [100]
        assert set(live.missing) == {ids[1], ids[3]}


@dataclass
class Deaf:
    """A member whose daemon hangs: it takes questions and never answers."""

    link: MemoryLink

    async def listen(self) -> None:
        async with self.link.open_inbox(AGENTS) as inbox:
            held = [inbound async for inbound in inbox]
            assert not held


async def test_a_member_that_hangs_costs_a_second(autojump_clock: trio.testing.MockClock) -> None:
    async with swarm_of(1) as nodes, trio.open_nursery() as nursery:
        deaf = node_id_of(b"deaf")
        nodes.states[deaf] = MemberState.SUSPECT
        nursery.start_soon(Deaf(nodes.network.link(deaf)).listen)
        began = trio.current_time()
        assert (await nodes.agents[0].instances()).missing == (deaf,)
        lines = [pair async for pair in nodes.agents[0].logs("extractor", follow=False)]
        assert lines == [(deaf, None)]
        assert trio.current_time() - began <= 2.5
        nursery.cancel_scope.cancel()


async def test_lines_of_all_members_come_in_order_of_time() -> None:
    async with swarm_of(3) as nodes:
        for number, wall_ms in ((2, 30), (0, 10), (1, 20), (2, 40)):
            nodes.say(number, f"at {wall_ms}", wall_ms=wall_ms)
        nodes.processes[0].logs.add("another", 5, "t", 1, "not asked for")
        ids = list(nodes.states)
        nodes.states[ids[1]] = MemberState.DEAD
        found = [
            (node, line and line.text)
            async for node, line in nodes.agents[0].logs("extractor", follow=False)
        ]
        assert found == [(ids[0], "at 10"), (ids[2], "at 30"), (ids[2], "at 40"), (ids[1], None)]


async def test_many_long_lines_fit_their_messages() -> None:
    async with swarm_of(2) as nodes:
        for _ in range(LINES_MAX + 5):
            nodes.say(1, "\u00e4" * 4_000)
        found = [pair async for pair in nodes.agents[0].logs("extractor", follow=False)]
        assert len(found) == LINES_MAX


async def test_following_gives_what_comes_and_who_goes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with swarm_of(2) as nodes:
        ids = list(nodes.states)
        nodes.say(0, "before")
        async with aclosing(nodes.agents[0].logs("extractor", follow=True)) as lines:  # type: ignore[type-var]
            assert await next_text(lines) == (ids[0], "before")
            nodes.say(1, "live")
            assert await next_text(lines) == (ids[1], "live")
            nodes.network.cut(*ids)
            assert await next_text(lines) == (ids[1], None)
            nodes.say(1, "while away")
            nodes.network.heal()
            assert await next_text(lines) == (ids[1], "while away")
            nodes.say(0, "and on")
            assert await next_text(lines) == (ids[0], "and on")


async def test_following_finds_members_that_come_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with swarm_of(2) as nodes:
        ids = list(nodes.states)
        del nodes.states[ids[1]]
        nodes.say(1, "hello")
        async with aclosing(nodes.agents[0].logs("extractor", follow=True)) as lines:  # type: ignore[type-var]
            with trio.move_on_after(3) as waited:
                await anext(lines)
            assert waited.cancelled_caught
        async with aclosing(nodes.agents[0].logs("extractor", follow=True)) as lines:  # type: ignore[type-var]
            nodes.say(0, "I am here")
            assert await next_text(lines) == (ids[0], "I am here")
            nodes.states[ids[1]] = MemberState.ALIVE
            assert await next_text(lines) == (ids[1], "hello")


async def test_who_stops_following_leaves_nothing_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with swarm_of(2) as nodes:
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(3):
            async with aclosing(nodes.agents[0].logs("extractor", follow=True)) as lines:  # type: ignore[type-var]
                nodes.say(1, "x")
                await next_text(lines)
        await trio.sleep(5)
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_code_that_nothing_needs_is_tidied_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kept: list[Set[bytes]] = []

    class Folders:
        async def keep(self, hashes: Set[bytes]) -> None:
            kept.append(hashes)

    async with swarm_of(1) as nodes:
        await nodes.agents[0].deploy(SPEC, CODE)
        link = nodes.network.link(node_id_of(b"another"))
        async with open_agents(
            nodes.store,
            nodes.blobs,
            link,
            nodes,
            nodes.processes[0],
            AgentsConfig(),
            folders=Folders(),
        ):
            await trio.sleep(601)
    assert kept == [{hash_of(CODE), b"running"}]


async def test_what_is_no_question_is_refused() -> None:
    async with swarm_of(2) as nodes:
        with pytest.raises(RemoteError):
            await nodes.links[0].request(AGENTS, nodes.links[1].node_id, Lines(()), timeout_s=1.0)


async def next_text(lines: AsyncIterator[tuple[NodeId, object]]) -> tuple[NodeId, object]:
    with trio.fail_after(10):
        node, line = await anext(lines)
    return node, getattr(line, "text", None)
