"""What the gateway calls, and nothing more: the rooms below as protocols.

The real services satisfy these structurally; tests pass fakes. A room is None until the node
has opened it: in no swarm yet, or still starting. Whatever needs an absent room is answered
with `not_ready` and the reason, while status and doctor go on working.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from swarmd.agents.environment import Environment
from swarmd.agents.spec import AgentSpec
from swarmd.audit.service import Audit
from swarmd.base.clock import Clock
from swarmd.base.errors import NotReady
from swarmd.base.ids import NodeId, short
from swarmd.base.sealed_file import Sealer
from swarmd.gateway.access.service import Access
from swarmd.gateway.config import GatewayConfig
from swarmd.identity.authority import Admission
from swarmd.identity.epochs import Chain
from swarmd.identity.fingerprints import Fingerprint
from swarmd.identity.genesis import Genesis
from swarmd.memory.cache.service import Cache
from swarmd.memory.kv.service import SharedMemory
from swarmd.memory.vector.service import VectorMemory
from swarmd.mesh.approval.messages import Waiting
from swarmd.mesh.bus.service import Bus
from swarmd.mesh.config import MeshConfig
from swarmd.mesh.events.service import UserEvents
from swarmd.mesh.facts import MeshFacts
from swarmd.mesh.link import Link
from swarmd.mesh.swim.coordinates import Coordinate
from swarmd.mesh.swim.events import Member
from swarmd.state.blobs.bulk import Bulk
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Change, LeaseInfo, Operation, OpResult
from swarmd.state.recipes.service import Recipes
from swarmd.state.secrets.service import Secrets
from swarmd.tasks.messages import JobView, SubmittedItem, TaskView
from swarmd.tasks.spec import JobSpec, TaskRecord, TaskSpec

# ---- the mesh -------------------------------------------------------------------------


class Membership(Protocol):
    def members(self) -> list[Member]: ...
    async def changed(self) -> None:
        """Wait until anything of a member changes next."""
        ...

    def get(self, node_id: NodeId) -> Member | None: ...
    def stream_only(self) -> Sequence[NodeId]: ...
    def coordinate(self, node_id: NodeId) -> Coordinate | None: ...
    def estimate_s(self, node_id: NodeId) -> float | None: ...
    @property
    def own_tags(self) -> dict[str, str]: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    @property
    def events(self) -> UserEvents: ...


class Waiters(Protocol):
    """See `mesh.approval.service.Listed`."""

    @property
    def waiting(self) -> Sequence[tuple[NodeId, Waiting]]: ...
    @property
    def missing(self) -> Sequence[NodeId]: ...


class Approvals(Protocol):
    async def waiting(self) -> Waiters: ...
    async def deny(self, fingerprint: Fingerprint) -> tuple[bool, Sequence[NodeId]]: ...


class Mesh(Protocol):
    @property
    def approvals(self) -> Approvals: ...
    @property
    def link(self) -> Link: ...
    @property
    def membership(self) -> Membership: ...
    async def facts(self, tried: Sequence[NodeId] = ()) -> MeshFacts: ...


class Trust(Protocol):
    @property
    def swarm_id(self) -> bytes: ...
    @property
    def genesis(self) -> Genesis: ...
    @property
    def head(self) -> tuple[int, bytes]: ...
    @property
    def version(self) -> int: ...
    def records_from(self, height: int) -> Sequence[bytes]: ...
    def admission(self, node_id: NodeId) -> Admission | None: ...
    def admissions_by_id(self) -> dict[NodeId, Admission]: ...
    @property
    def certificate(self) -> bytes: ...
    @property
    def epochs(self) -> Chain | None: ...
    def known(self, node_id: NodeId) -> Admission | None:
        """Expired or not."""
        ...

    @property
    def now_ms(self) -> int:
        """Store time, as late as it is known to be here."""
        ...

    async def changed(self, version: int) -> object: ...
    async def settled(self) -> Chain:
        """The epochs, once the voters of the newest certify what counts."""
        ...


# ---- the strong store and blobs -------------------------------------------------------


class Follower(Protocol):
    @property
    def lag(self) -> int: ...
    @property
    def silence_s(self) -> float: ...


class VoterLog(Protocol):
    """See `state.raft.views.VoterLog`."""

    @property
    def role(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def fence(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def applied(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def snapshot(self) -> int: ...
    @property
    def journal_bytes(self) -> int: ...
    @property
    def sync_last_s(self) -> float: ...
    @property
    def sync_slowest_s(self) -> float: ...
    @property
    def followers(self) -> Mapping[NodeId, Follower]: ...


class StoreStatus(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def voters(self) -> Sequence[NodeId]: ...
    @property
    def role(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def may_lose(self) -> int:
        """Voters that may still be lost; negative if too many are."""
        ...

    @property
    def detail(self) -> str:
        """What is waited for; empty if nothing."""
        ...

    @property
    def log(self) -> VoterLog | None:
        """None on a node that is no voter."""
        ...

    @property
    def copies(self) -> int:
        """On how many disks what is acknowledged now is, at least."""
        ...


class StoreEntry(Protocol):
    @property
    def key(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...
    @property
    def create_revision(self) -> int: ...
    @property
    def mod_revision(self) -> int: ...
    @property
    def lease(self) -> int: ...


class History(Protocol):
    """See `state.raft.history.History`."""

    def since(self, revision: int, prefix: bytes) -> Sequence[Change]: ...


class StoreCopy(Protocol):
    """A voter's own copy of the state, to be read only."""

    @property
    def revision(self) -> int: ...
    @property
    def history(self) -> History: ...
    def range(self, prefix: bytes, after: bytes, limit: int) -> Sequence[StoreEntry]: ...
    def get(self, key: bytes) -> StoreEntry | None: ...


class RecoveryPlan(Protocol):
    """See `state.raft.recovery.RecoveryPlan`."""

    @property
    def source(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def keys(self) -> int: ...
    @property
    def statement(self) -> bytes: ...


class Recovery(Protocol):
    async def plan(self) -> RecoveryPlan: ...
    async def begin(self, certificate: bytes) -> None: ...


class Store(Protocol):
    @property
    def recovery(self) -> Recovery: ...

    @property
    def local(self) -> StoreCopy | None:
        """None on a node that is no voter."""
        ...

    def status(self) -> StoreStatus: ...
    def coordinator(self) -> NodeId | None: ...
    def store_time_ms(self) -> int: ...
    async def propose(
        self, ops: Sequence[Operation], *, timeout_s: float = 5.0
    ) -> Sequence[OpResult]: ...
    async def read_index(self) -> int:
        """On return `local` holds all that was acknowledged before the call."""
        ...

    async def transfer(self, target: NodeId | None) -> NodeId:
        """Hand the coordinator's office over; who has it then. None: whoever holds most."""
        ...

    async def get(self, key: bytes, *, stale: bool = False) -> StoreEntry | None: ...
    async def range(
        self, prefix: bytes, *, after: bytes = b"", limit: int = 1_000, stale: bool = False
    ) -> Sequence[StoreEntry]: ...
    def watch(
        self, prefix: bytes, from_revision: int | None = None
    ) -> AsyncGenerator[tuple[list[Change], int], None]: ...
    async def leases(self) -> Sequence[LeaseInfo]: ...
    async def lease(self, lease: int) -> tuple[LeaseInfo, tuple[bytes, ...]]: ...


class Blobs(Protocol):
    async def put(self, data: bytes) -> BlobRef: ...
    async def get(self, ref: BlobRef) -> bytes: ...
    @property
    def bulk(self) -> Bulk: ...


# ---- agents and tasks -----------------------------------------------------------------


class AgentRecord(Protocol):
    @property
    def spec(self) -> AgentSpec: ...
    @property
    def bundle(self) -> BlobRef: ...
    @property
    def environment(self) -> Environment: ...


class Instance(Protocol):
    """One running copy of an agent, as its node tells it."""

    @property
    def agent(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def task_id(self) -> str: ...


class LogLine(Protocol):
    @property
    def wall_ms(self) -> int: ...
    @property
    def task_id(self) -> str: ...
    @property
    def text(self) -> str: ...


class LiveInstances(Protocol):
    """Answers of the members; those that gave none in time are named."""

    @property
    def instances(self) -> Sequence[tuple[NodeId, Instance]]: ...
    @property
    def missing(self) -> Sequence[NodeId]: ...


class Agents(Protocol):
    async def deploy(
        self, spec: AgentSpec, bundle: bytes, *, replace: bool = False
    ) -> AgentRecord: ...
    async def list(self) -> Sequence[AgentRecord]: ...
    async def get(self, name: str) -> AgentRecord: ...
    async def remove(self, name: str) -> None: ...
    async def instances(self) -> LiveInstances: ...
    def logs(self, agent: str, *, follow: bool) -> AsyncIterator[tuple[NodeId, LogLine | None]]:
        """Lines with the node they come from; None for a member that did not answer."""
        ...


class Tasks(Protocol):
    async def submit(self, specs: Sequence[TaskSpec]) -> Sequence[SubmittedItem]: ...
    async def get(self, task_id: str) -> TaskView: ...
    async def list(
        self, *, state: str = "", agent: str = "", job_id: str = "", after: str = "", limit: int = 0
    ) -> tuple[Sequence[TaskView], str]:
        """A page, and where the next begins ("" at the end)."""
        ...

    async def cancel(self, task_ids: Sequence[str]) -> Sequence[TaskView]: ...
    def results(self, task_ids: Sequence[str]) -> AsyncIterator[TaskRecord]: ...
    async def submit_job(self, spec: JobSpec) -> JobView: ...
    async def jobs(self) -> Sequence[JobView]: ...
    async def job(self, job_id: str) -> JobView: ...
    async def cancel_job(self, job_id: str) -> JobView: ...
    def job_events(self, job_id: str) -> AsyncIterator[JobView]: ...
    async def counts(self) -> Mapping[str, int]: ...


# ---- the node itself ------------------------------------------------------------------


class Control(Protocol):
    def not_ready(self) -> str:
        """Why the node takes no work now; empty if it does."""
        ...

    def stop(self) -> None:
        """Begin to drain, say goodbye and end; returns at once."""
        ...

    async def leave(self, *, force: bool) -> Sequence[str]:
        """Hand on what this node holds, then begin to end. Returns warnings.

        Raises:
            Conflict: acknowledged data would be lost, and not `force`. The node stays.
        """
        ...


class Setting(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def source(self) -> str: ...


class Config(Protocol):
    @property
    def mesh(self) -> MeshConfig: ...
    @property
    def gateway(self) -> GatewayConfig: ...
    @property
    def node_name(self) -> str: ...
    @property
    def data_folder(self) -> Path: ...
    @property
    def keys_folder(self) -> Path: ...
    @property
    def socket_path(self) -> Path: ...
    def describe(self) -> Sequence[Setting]: ...


@dataclass(frozen=True, slots=True)
class Listening:
    """Where other hosts reach the API, and the SHA-256 of the certificate there, in hex."""

    addresses: tuple[str, ...] = ()
    fingerprint: Callable[[], str] = str


Room = TypeVar("Room")


@dataclass(slots=True)
class Services:
    """What the node has opened so far. The app fills in rooms as it opens them."""

    node_id: NodeId
    config: Config
    control: Control
    clock: Clock
    started_at: float = 0.0
    """On `clock`, for the uptime."""
    mesh: Mesh | None = None
    trust: Trust | None = None
    store: Store | None = None
    access: Access | None = None
    secrets: Secrets | None = None
    audit: Audit | None = None
    recipes: Recipes | None = None
    bus: Bus | None = None
    memory: SharedMemory | None = None
    cache: Cache | None = None
    vectors: VectorMemory | None = None
    blobs: Blobs | None = None
    agents: Agents | None = None
    tasks: Tasks | None = None
    metrics: Callable[[], bytes] | None = None
    listening: Listening = Listening()
    sealer: Sealer | None = None
    """Of the data folder; None: it is in clear."""

    def need(self, room: Room | None) -> Room:
        """`room`, which must be open by now.

        Raises:
            NotReady: with the reason.
        """
        if room is None:
            reason = self.control.not_ready() or "it is still starting"
            raise NotReady(f"{self.config.node_name} is not ready: {reason}")
        return room

    def wall_ms_of(self, store_ms: int) -> int:
        """A time of the store as wall time here, in ms, for display; 0 stays 0.

        The store's clock is its own: it stands still while no coordinator is in office.
        """
        if not store_ms or self.store is None:
            return store_ms
        return store_ms + self.clock.wall_ms() - self.store.store_time_ms()

    def credential_left_ms(self, node_id: bytes) -> int | None:
        """Until a member's credential expires, in store time; None if it has none here."""
        admission = None if self.trust is None else self.trust.known(NodeId(node_id))
        if admission is None or self.trust is None:
            return None
        store_ms = 0 if self.store is None else self.store.store_time_ms()
        return max(0, admission.expires_ms - max(self.trust.now_ms, store_ms))

    def name_of(self, node_id: bytes) -> str:
        """The member's name; a short id if it is not known here."""
        if not node_id:
            return ""
        if node_id == self.node_id:
            return self.config.node_name
        if self.mesh is not None:
            member = self.mesh.membership.get(NodeId(node_id))
            if member is not None:
                return member.name
        return short(node_id)
