"""Rooms as the gateway sees them, in memory, and a gateway that runs in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import msgspec
import trio

from swarmd.agents.environment import Environment, split_environment
from swarmd.agents.spec import AgentSpec
from swarmd.base.clock import BootClock
from swarmd.base.errors import (
    BadRequest,
    Conflict,
    LeaseExpired,
    NoQuorum,
    NotFound,
    SecretInUse,
)
from swarmd.base.ids import NodeId, digest, job_id_of, task_id_of
from swarmd.base.machine import Event
from swarmd.gateway.access.service import Access
from swarmd.gateway.config import GatewayConfig
from swarmd.gateway.service import Gateway, open_gateway
from swarmd.gateway.services import Services
from swarmd.identity.epochs import RECOVERY_DOMAIN
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import verify_envelope
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.discovery.adverts import InterfaceFacts
from swarmd.mesh.events.events import SendEvent
from swarmd.mesh.events.machine import EventsMachine
from swarmd.mesh.events.service import UserEvents
from swarmd.mesh.facts import MeshFacts
from swarmd.mesh.swim.coordinates import Coordinate, Coordinates
from swarmd.mesh.swim.events import Member
from swarmd.mesh.swim.messages import MemberState
from swarmd.mesh.swim.tags import Tags, checked_tags
from swarmd.sim.disk import SimDisk
from swarmd.sim.swim import SimSigner
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.blobs.naming import hash_of
from swarmd.state.raft.bounds import problem_of
from swarmd.state.raft.messages import (
    AuthorityEntry,
    Batch,
    Change,
    Entry,
    Group,
    LeaseInfo,
    OpResult,
    encode_batch,
)
from swarmd.state.raft.reads import leases_in
from swarmd.state.raft.recovery import RecoveryPlan
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.views import Follower, VoterLog
from swarmd.state.secrets.records import Box, SecretRecord, check_value, secret_key
from swarmd.tasks.messages import JobView, StageView, SubmittedItem, TaskView
from swarmd.tasks.spec import FINAL, Inline, JobSpec, JobState, State, Stored, TaskRecord, TaskSpec
from swarmd.wire.envelope import decode_envelope

SWARM_ID = digest(b"swarm")


def node_id(name: str) -> NodeId:
    return NodeId(digest(name.encode()))


def member(name: str, state: MemberState = MemberState.ALIVE) -> Member:
    return Member(
        node_id=node_id(name),
        name=name,
        addresses=(("127.0.0.1", 7575),),
        state=state,
        incarnation=1,
        roles=("voter", "worker"),
        version="0.1.0",
        tags=(),
        changed_at=0.0,
    )


@dataclass
class FakeMembership:
    found: list[Member]
    tags: Tags = ()
    places: Coordinates = field(default_factory=lambda: Coordinates(node_id("n1")))
    wake: trio.Event = field(default_factory=trio.Event)

    def become(self, *found: Member) -> None:
        """Call it in the gateway's loop."""
        self.found = list(found)
        self.wake.set()
        self.wake = trio.Event()

    async def changed(self) -> None:
        await self.wake.wait()

    def stream_only(self) -> list[NodeId]:
        return []

    def coordinate(self, node_id: NodeId) -> Coordinate | None:
        return self.places.of(node_id)

    def estimate_s(self, node_id: NodeId) -> float | None:
        return self.places.estimate_s(node_id)

    @property
    def own_tags(self) -> dict[str, str]:
        return dict(self.tags)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags = checked_tags(tags)

    def members(self) -> list[Member]:
        return self.found

    def get(self, node_id: NodeId) -> Member | None:
        return next((one for one in self.found if one.node_id == node_id), None)

    @cached_property
    def events(self) -> UserEvents:
        """The real shell and machine of a node that is alone: n1."""
        me = node_id("n1")
        machine = EventsMachine(me, SimSigner(me), 0.0, founder=True)

        def feed(event: Event) -> None:
            assert isinstance(event, SendEvent)
            for effect in machine.on_send(event, 0.0):
                events.performers[type(effect)](effect)

        events = UserEvents(machine, feed, SimDisk(World(0), "n1"), BootClock())
        return events


@dataclass
class FakeMesh:
    membership: FakeMembership
    link: Any = None
    report: list[InterfaceFacts] = field(default_factory=list)
    approvals: Any = None

    async def facts(self, tried: Sequence[NodeId] = ()) -> MeshFacts:
        await trio.lowlevel.checkpoint()
        return MeshFacts(True, self.report, [], [("127.0.0.1", 7575)], [])


class FakeStore:
    """The real replicated state, without a log; it answers at once, or waits at `gate`."""

    def __init__(self, voters: Sequence[str]) -> None:
        genesis = init_swarm("lab", "n1", node_key=SigningKey.from_seed(b"n" * 32))[0]
        self.state = StateMachine(genesis)
        self.recovery_key = SigningKey.from_seed(b"r" * 32)
        self.gate: trio.Event | None = None
        self.batches: list[int] = []
        self.is_voter = True
        self.log: VoterLog | None = None
        self.no_quorum = False
        self.authority: list[bytes] = []
        self.now_ms = 1_000_000
        self._voters = [node_id(name) for name in voters]
        self._index = 0
        self._applied = trio.Event()

    @property
    def revision(self) -> int:
        return self.state.revision

    def lead(self, *followers: str) -> None:
        """Tell the log of a leader that knows of these followers."""
        known = {node_id(name): Follower(lag, 0.02) for lag, name in enumerate(followers)}
        self.log = VoterLog("leader", 3, 7, 40, 41, 42, 30, 5_000, 0.0004, 0.0123, known)

    def follow(self) -> None:
        self.log = VoterLog("follower", 3, 7, 40, 40, 42, 30, 5_000, 0.0004, 0.0123, {})

    @property
    def recovery(self) -> Any:
        return self

    async def plan(self) -> RecoveryPlan:
        if not self.no_quorum:
            raise Conflict("a majority of the voters answers: there is nothing to recover from")
        return RecoveryPlan("voter", 2, self.revision, len(self.state), b"statement")

    async def begin(self, certificate: bytes) -> None:
        envelope = decode_envelope(certificate, domain=RECOVERY_DOMAIN)
        verify_envelope(envelope, SWARM_ID, {self.recovery_key.key_id: self.recovery_key.public})
        assert envelope.payload == b"statement"
        self.no_quorum = False

    async def transfer(self, target: NodeId | None) -> NodeId:
        if target is not None and target not in self._voters:
            raise BadRequest("it is no voter")
        taken = target or self._voters[1]
        self._voters.remove(taken)
        self._voters.insert(0, taken)
        return taken

    def status(self) -> Any:
        majority = len(self._voters) // 2 + 1
        return SimpleNamespace(
            state="no_quorum" if self.no_quorum else "ok",
            epoch=1,
            voters=self._voters,
            role="leader",
            term=3,
            revision=self.revision,
            detail="",
            may_lose=0 if self.no_quorum else len(self._voters) - majority,
            log=self.log,
            copies=majority,
        )

    def coordinator(self) -> NodeId | None:
        return None if self.no_quorum else self._voters[0]

    def store_time_ms(self) -> int:
        return self.now_ms

    def _check(self) -> None:
        if self.no_quorum:
            raise NoQuorum("no majority of the voters answers")

    @property
    def local(self) -> Any:
        return self.state if self.is_voter else None

    async def read_index(self) -> int:
        self._check()
        return self.revision

    async def propose(self, ops: Sequence[Any], *, timeout_s: float = 5.0) -> list[OpResult]:
        self._check()
        self.batches.append(len(ops))
        if self.gate is not None:
            await self.gate.wait()
        for op in ops:
            problem = problem_of(op)
            if problem is not None:
                raise problem
        if isinstance(ops[0], AuthorityEntry):
            self.authority += [op.envelope for op in ops]
            return [OpResult(ok=True, revision=self.revision) for _ in ops]
        self._index += 1
        batch = Batch(self.now_ms, (Group(b"", 0, 0, tuple(ops)),))
        [results] = self.state.apply(encode_batch(batch), self._index, 1)
        self._applied.set()
        self._applied = trio.Event()
        return results

    async def get(self, key: bytes, *, stale: bool = False) -> Entry | None:
        if not stale:
            self._check()
        return self.state.get(key)

    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> list[Entry]:
        return self.state.range(prefix, after, limit)

    async def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]:
        self._check()
        if from_revision is None:
            from_revision = self.revision + 1
            yield [], self.revision
        while True:
            applied = self._applied
            if self.revision >= from_revision:
                changes = self.state.history.since(from_revision, prefix)
                from_revision = self.revision + 1
                yield changes, self.revision
            await applied.wait()

    async def leases(self) -> Sequence[LeaseInfo]:
        self._check()
        return leases_in(self.state, 0, self.now_ms).leases

    async def lease(self, lease: int) -> tuple[LeaseInfo, tuple[bytes, ...]]:
        got = leases_in(self.state, lease, self.now_ms)
        if not got.leases:
            raise LeaseExpired(f"lease {lease} has ended or never was: grant another one")
        return got.leases[0], got.keys


class FakeBlobs:
    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    async def put(self, data: bytes) -> BlobRef:
        self.kept[hash_of(data)] = data
        return BlobRef(hash_of(data), len(data))

    async def get(self, ref: BlobRef) -> bytes:
        return self.kept[ref.hash]


class FakeAgents:
    def __init__(self, blobs: FakeBlobs) -> None:
        self._blobs = blobs
        self.records: dict[str, Any] = {}
        self.missing: list[NodeId] = []
        self.lines: list[tuple[NodeId, Any]] = []
        self.following = trio.Event

    async def deploy(self, spec: AgentSpec, bundle: bytes, *, replace: bool = False) -> Any:
        references, plain = split_environment(spec)
        record = SimpleNamespace(
            spec=msgspec.structs.replace(spec, env={}),
            bundle=await self._blobs.put(bundle),
            environment=Environment(tuple(references.items()), tuple(plain)),
        )
        self.records[spec.name] = record
        return record

    async def list(self) -> list[Any]:
        return [self.records[name] for name in sorted(self.records)]

    async def get(self, name: str) -> Any:
        if name not in self.records:
            raise NotFound(f"there is no agent {name!r}")
        return self.records[name]

    async def remove(self, name: str) -> None:
        await self.get(name)
        del self.records[name]

    async def instances(self) -> Any:
        one = SimpleNamespace(agent="adder", version="1", pid=7, state="idle", task_id="")
        return SimpleNamespace(instances=[(node_id("n1"), one)], missing=self.missing)

    async def logs(self, agent: str, *, follow: bool) -> AsyncIterator[tuple[NodeId, Any]]:
        for line in self.lines:
            yield line
        if follow:
            await trio.sleep_forever()


class FakeSecrets:
    """Secrets of one node, whose keys are lost for those named `unreadable`."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.records: dict[str, SecretRecord] = {}
        self.unreadable: set[str] = set()

    async def set(self, name: str, value: str, by: str) -> int:
        secret_key(name)
        check_value(value)
        before = self.records.get(name)
        version = before.version + 1 if before else 1
        self.values[name] = value
        self.records[name] = SecretRecord(name, version, 1, 2, by, Box(b"i" * 16, b""))
        return version

    async def list(self) -> list[SecretRecord]:
        return [self.records[name] for name in sorted(self.records)]

    async def delete(
        self,
        name: str,
        by: str,
        users: Callable[[], Awaitable[Sequence[str]]],
        *,
        force: bool = False,
    ) -> None:
        if name not in self.records:
            raise NotFound(f"there is no secret {name}")
        named = await users()
        if named and not force:
            raise SecretInUse(f"the secret {name} is used by {', '.join(named)}")
        del self.records[name], self.values[name]

    def opens(self, record: SecretRecord) -> bool:
        return record.name not in self.unreadable


class FakeTasks:
    """Tasks that succeed at once with their input, unless told otherwise.

    An agent called "slow" never ends; "broken" fails.
    """

    def __init__(self) -> None:
        self.records: dict[str, TaskRecord] = {}
        self.jobs_kept: dict[str, JobView] = {}
        self.job_specs: list[JobSpec] = []
        self.submits = 0
        self.explode = False

    async def submit(self, specs: Sequence[TaskSpec]) -> list[SubmittedItem]:
        self.submits += 1
        assert not self.explode, "a bug"
        return [self._submit(spec) for spec in specs]

    def _submit(self, spec: TaskSpec) -> SubmittedItem:
        task_id = task_id_of(SWARM_ID, spec.key)
        if spec.agent == "nobody":
            return SubmittedItem("", code="not_found", message="there is no agent 'nobody'")
        if task_id in self.records:
            return SubmittedItem(task_id, created=False)
        record = TaskRecord(
            task_id=task_id, spec=spec, digest=spec.content_digest(), created_ms=1_000
        )
        assert isinstance(spec.payload, Inline | Stored)
        if spec.agent == "broken":
            record = msgspec.structs.replace(
                record, state=State.DEAD, attempts=4, ended_ms=2_000, node=node_id("n2"),
                code="agent_raised", message="ValueError: no",
            )  # fmt: skip
        elif spec.agent != "slow":
            record = msgspec.structs.replace(
                record, state=State.SUCCEEDED, attempts=1, ended_ms=2_000, node=node_id("n1"),
                fence=9, result=spec.payload,
            )  # fmt: skip
        self.records[task_id] = record
        return SubmittedItem(task_id, created=True)

    def _view(self, record: TaskRecord) -> TaskView:
        return TaskView(record, record.state, record.attempts, record.node, record.fence)

    async def get(self, task_id: str) -> TaskView:
        if task_id not in self.records:
            raise NotFound(f"there is no task {task_id}")
        return self._view(self.records[task_id])

    async def list(
        self, *, state: str = "", agent: str = "", job_id: str = "", after: str = "", limit: int = 0
    ) -> tuple[list[TaskView], str]:
        found = [
            self._view(one)
            for one in self.records.values()
            if (not state or one.state == state) and (not agent or one.spec.agent == agent)
        ]
        start = int(after or 0)
        more = start + limit < len(found)
        return found[start : start + limit], str(start + limit) if more else ""

    async def cancel(self, task_ids: Sequence[str]) -> list[TaskView]:
        found = []
        for task_id in task_ids:
            record = (await self.get(task_id)).record
            if record.state not in FINAL:
                record = msgspec.structs.replace(record, state=State.CANCELLED, ended_ms=2_000)
                self.records[task_id] = record
            found.append(self._view(record))
        return found

    async def results(self, task_ids: Sequence[str]) -> AsyncIterator[TaskRecord]:
        waiting = [task_id for task_id in task_ids if task_id in self.records]
        while waiting:
            for task_id in list(waiting):
                if self.records[task_id].state in FINAL:
                    waiting.remove(task_id)
                    yield self.records[task_id]
            await trio.sleep(0.005)

    async def submit_job(self, spec: JobSpec) -> JobView:
        self.job_specs.append(spec)
        job_id = job_id_of(SWARM_ID, spec.key)
        stages = tuple(
            StageView(one.name, one.agent, one.kind, spec.item_count, spec.item_count, 0, 0)
            for one in spec.stages
        )
        slow = spec.stages[0].agent == "slow"
        failed = spec.stages[0].agent == "broken"
        state = JobState.FAILED if failed else JobState.RUNNING if slow else JobState.SUCCEEDED
        self.jobs_kept[job_id] = JobView(
            job_id=job_id, name=spec.name, key=spec.key, state=state, created_ms=1_000,
            ended_ms=0 if slow else 2_000, item_count=spec.item_count, stages=stages, attempts=5,
            failed_items=0, ended_by={}, result=Inline(msgspec.msgpack.encode({"items": 2})),
            code="task_failed" if failed else "", message="it broke" if failed else "",
        )  # fmt: skip
        return self.jobs_kept[job_id]

    async def jobs(self) -> list[JobView]:
        return list(self.jobs_kept.values())

    async def job(self, job_id: str) -> JobView:
        if job_id not in self.jobs_kept:
            raise NotFound(f"there is no job {job_id}")
        return self.jobs_kept[job_id]

    async def cancel_job(self, job_id: str) -> JobView:
        view = await self.job(job_id)
        if not view.final:
            view = msgspec.structs.replace(view, state=JobState.CANCELLED, ended_ms=3_000)
            self.jobs_kept[job_id] = view
        return view

    async def job_events(self, job_id: str) -> AsyncIterator[JobView]:
        view = await self.job(job_id)
        yield view
        while not view.final:
            await trio.sleep(0.005)
            view = await self.job(job_id)
        yield view

    async def counts(self) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for one in self.records.values():
            counts[str(one.state)] = counts.get(str(one.state), 0) + 1
        return counts


@dataclass
class FakeControl:
    reason: str = ""
    stopped: bool = False
    left: list[bool] = field(default_factory=list)
    refuse: bool = False
    on_stop: Callable[[], None] = lambda: None

    def not_ready(self) -> str:
        return self.reason

    def stop(self) -> None:
        self.stopped = True
        self.on_stop()

    async def leave(self, *, force: bool) -> list[str]:
        if self.refuse and not force:
            raise Conflict("n1 holds acknowledged data that nobody else has: use --force")
        self.left.append(force)
        self.on_stop()
        return ["some data is lost"] if force else []


@dataclass
class FakeConfig:
    folder: Path
    node_name: str = "n1"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    @property
    def keys_folder(self) -> Path:
        return self.folder / "keys"

    @property
    def socket_path(self) -> Path:
        return self.folder / "s.sock"

    def describe(self) -> list[Any]:
        return [SimpleNamespace(key="mesh.port", value=7575, source="default")]


async def settled() -> SimpleNamespace:
    """A trust's epochs, as far as they are looked at."""
    await trio.lowlevel.checkpoint()
    return SimpleNamespace(head=SimpleNamespace(number=3, key=b"k" * 16))


def make_services(
    folder: Path, *, name: str = "n1", members: Sequence[str] = ("n1", "n2", "n3")
) -> Services:
    """A ready node called `name` of a swarm of `members`, the first three of them voters."""
    blobs = FakeBlobs()
    voters = members[:3] if len(members) >= 3 else members[:1]
    return Services(
        node_id=node_id(name),
        config=FakeConfig(folder, node_name=name),
        control=FakeControl(),
        clock=BootClock(),
        started_at=BootClock().now(),
        mesh=FakeMesh(
            FakeMembership([member(x) for x in members], places=Coordinates(node_id(name)))
        ),
        trust=SimpleNamespace(  # type: ignore[arg-type]
            swarm_id=SWARM_ID,
            genesis=SimpleNamespace(name="lab"),
            head=(4, digest(b"head")),
            settled=settled,
            known=lambda node_id: SimpleNamespace(expires_ms=20 * 86_400_000),
            now_ms=0,
        ),
        store=FakeStore(voters),
        blobs=blobs,
        agents=FakeAgents(blobs),
        secrets=FakeSecrets(),  # type: ignore[arg-type]
        tasks=FakeTasks(),
        metrics=lambda: b"swarmd_members 3\n",
    )


def bare_services(folder: Path) -> Services:
    """A node that is in no swarm."""
    return Services(
        node_id=node_id("n1"),
        config=FakeConfig(folder),
        control=FakeControl(reason="it is in no swarm: swarmd --init NAME or swarmd --join -"),
        clock=BootClock(),
    )


class LiveGateway:
    """A gateway in a thread of its own, for blocking clients."""

    def __init__(
        self,
        services: Services,
        config: GatewayConfig | None = None,
        *,
        access: Callable[[], AbstractAsyncContextManager[Access]] | None = None,
    ) -> None:
        self.services = services
        self._open_access = access
        self.config = config or replace_keepalive(0.05)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._failure: BaseException | None = None
        self.gateway: Gateway | None = None

    @property
    def socket(self) -> str:
        return str(self.services.config.socket_path)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "the gateway did not start"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call(self._stop.set)
            self._thread.join(10)
        assert not self._thread.is_alive(), "the gateway did not end"

    def call(self, function: Callable[[], Any]) -> None:
        """Run `function` inside the gateway's loop."""
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(function, trio_token=self._token)

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:  # noqa: BLE001 - shown by the test that waits for it
            self._failure = error
        self._started.set()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        control = self.services.control
        assert isinstance(control, FakeControl)
        control.on_stop = self.stop_soon
        async with (
            open_gateway(self.config, self.services) as self.gateway,
            AsyncExitStack() as more,
        ):
            if self._open_access is not None:
                self.services.access = await more.enter_async_context(self._open_access())
            self._started.set()
            await self._stop.wait()

    def stop_soon(self) -> None:
        self._stop.set()


def replace_keepalive(keepalive_s: float) -> GatewayConfig:
    return GatewayConfig(keepalive_s=keepalive_s)


def wait_until(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.005)


__all__ = [
    "SWARM_ID",
    "BadRequest",
    "FakeControl",
    "FakeMesh",
    "FakeStore",
    "FakeTasks",
    "LiveGateway",
    "bare_services",
    "make_services",
    "member",
    "node_id",
    "replace_keepalive",
    "wait_until",
]
