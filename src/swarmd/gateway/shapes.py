"""What the API answers, and what clients submit, as typed structs.

In JSON, bytes are base64 and payloads are plain JSON; in msgpack both are themselves. A field
that a later version adds has a default, and readers ignore fields they do not know.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class Check(Struct, frozen=True, kw_only=True):
    """One finding of the doctor."""

    name: str
    verdict: str
    """ok, warn or fail"""
    finding: str
    advice: str = ""
    """What to do about it; empty if nothing."""


class DoctorReport(Struct, frozen=True, kw_only=True):
    node: str
    checks: list[Check]


class StoreStatus(Struct, frozen=True, kw_only=True):
    state: str
    """ok, no_quorum, or what the store waits for"""
    detail: str = ""
    """What it waits for."""
    epoch: int = 0
    role: str = ""
    term: int = 0
    revision: int = 0
    voters: list[str] = []
    """Names, in the order of the epoch."""
    may_lose: int = 0
    """Voters that may fail from now on while the store still answers."""
    copies: int = 1
    """On how many disks what is acknowledged now is, at least."""


class FollowerInfo(Struct, frozen=True, kw_only=True):
    """A follower as its leader knows it."""

    node_id: str
    lag: int
    """Entries of the log that it has not acknowledged."""
    silence_s: float


class VoterInfo(Struct, frozen=True, kw_only=True):
    """A voter's log as the voter sees it, and what the leader knows of it."""

    node: str
    node_id: str
    problem: str = ""
    """Why nothing is known of it; empty if it answered."""
    role: str = ""
    term: int = 0
    fence: int = 0
    """Revision of the coordinator's office, as applied there."""
    commit: int = 0
    applied: int = 0
    last_index: int = 0
    snapshot_index: int = 0
    journal_bytes: int = 0
    fsync_last_ms: float = 0.0
    fsync_slowest_ms: float = 0.0
    lag: int | None = None
    """None: the leader did not tell, or it is this one."""
    silence_s: float | None = None
    followers: list[FollowerInfo] = []
    """Of a leader only."""


class RaftStatus(Struct, frozen=True, kw_only=True):
    node: str
    """The one that answered."""
    epoch: int
    coordinator: str
    """Empty: nobody, as far as this node knows."""
    voters: list[VoterInfo]
    missing: list[str] = []
    """Voters that did not answer in time."""


class Coordinator(Struct, frozen=True, kw_only=True):
    node: str
    node_id: str
    epoch: int
    term: int
    fence: int
    """Revision that made it coordinator; the next one's is higher."""


class AuthorityPage(Struct, frozen=True, kw_only=True):
    genesis: bytes
    height: int
    """Of the newest record."""
    records: list[bytes]
    """As many as one answer takes, in order; ask again above the last one."""
    certificate: bytes
    """The voters' signatures on the newest record; empty while there is none."""
    epoch: int
    """The newest epoch known, whose voters these are."""
    epochs: list[bytes]
    """Certificates of the epochs after the first, paged like the records."""


class VoterSeat(Struct, frozen=True, kw_only=True):
    node: str
    node_id: str
    state: str
    """As a member: alive, suspect, dead, left; unknown if it is not known here."""
    seat: bool
    """It votes; else it could."""
    pinned: bool
    coordinator: bool = False
    host: str = ""
    """Seats prefer distinct ones."""


class RecoveryPlan(Struct, frozen=True, kw_only=True):
    node: str
    """The one that would go on."""
    node_id: str
    swarm: str
    swarm_id: bytes
    source: str
    """voter: its log, all of it; learner: its copy"""
    epoch: int
    revision: int
    keys: int
    voters: list[VoterSeat]
    """Of the epoch that would be given up."""
    statement: bytes
    """What the recovery key signs."""


class Status(Struct, frozen=True, kw_only=True):
    node: str
    node_id: str
    version: str
    ready: bool
    swarm: str = ""
    """Empty: in no swarm yet."""
    swarm_id: str = ""
    swarm_fingerprint: str = ""
    """In hex: what who joins without a token compares."""
    reason: str = ""
    """Why it is not ready."""
    alive: int = 0
    total: int = 0
    """Members that are alive, suspect or dead; those that left do not count."""
    coordinator: str = ""
    store: StoreStatus | None = None
    tasks: dict[str, int] = {}
    next_loss: str = ""
    """What losing one more node would cost."""
    uptime_s: float = 0.0
    api: list[str] = []
    """Where other hosts reach the API."""
    api_fingerprint: str = ""
    """SHA-256 of the certificate there, for `swarmctl --fingerprint`."""
    notes: list[str] = []


class MemberInfo(Struct, frozen=True, kw_only=True):
    node_id: str
    name: str
    state: str
    addresses: list[str] = []
    roles: list[str] = []
    version: str = ""
    protocol: int = 0
    """The protocol version that it says it speaks."""
    incarnation: int = 0
    voter: bool = False
    coordinator: bool = False
    itself: bool = False
    """The node that answered."""
    namesakes: list[str] = []
    """Ids of other living members that carry its name: with any, commands take its id only."""
    tags: dict[str, str] = {}
    """What its operator says of it."""
    credential_left_s: float | None = None
    """Until its credential expires, in the store's time; 0 once it has, None if unknown."""
    rtt_ms: float | None = None
    """The round trip from the node that answered, as estimated; None while it cannot be."""


class JoinRequestInfo(Struct, frozen=True, kw_only=True):
    """A node that waits to be approved. Its own key signed `request`, the name in it."""

    fingerprint: str
    """In hex."""
    words: str
    name: str
    address: str
    """Where it asked from last."""
    waited_s: float
    silent_s: float
    """Since it asked last; after ten minutes it is forgotten."""
    asked: list[str]
    """Members that it asked."""
    request: bytes


class JoinRequests(Struct, frozen=True, kw_only=True):
    waiting: list[JoinRequestInfo]
    """The one that waits longest first."""
    missing: list[str] = []
    """Members that did not answer in time."""


class SettingInfo(Struct, frozen=True, kw_only=True):
    key: str
    value: Any
    source: str


class ErrorInfo(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    retryable: bool = False


class KvEntry(Struct, frozen=True, kw_only=True):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0
    """It goes when that lease ends; 0: it stays."""


class KvChange(Struct, frozen=True, kw_only=True):
    key: str
    value: bytes | None
    """None: the key was deleted."""
    revision: int


class KvChanges(Struct, frozen=True, kw_only=True):
    """What a watch tells at a time; without changes it is a mark."""

    revision: int
    """All changes up to this revision are told now: go on from the next one."""
    changes: list[KvChange]


class KvTxnDone(Struct, frozen=True, kw_only=True):
    branch: str
    """then or else: which was applied"""
    revision: int
    unmet: str = ""
    """The compare that did not hold, in words."""


class LeaseInfo(Struct, frozen=True, kw_only=True):
    id: int
    """Its fence, too."""
    ttl_s: float
    left_s: float
    count: int = 0
    """How many keys go with it."""
    keys: list[str] = []
    """The first of them, where one lease was asked for."""
    others: list[str] = []
    """Like `keys`, but not under the users' prefix: locks and the like."""


class KeyDone(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one operation of a stream of them."""

    id: int
    revision: int = 0
    """The one that it was given; for a get, the key's."""
    value: bytes | None = None
    error: ErrorInfo | None = None


class SnapshotHead(Struct, frozen=True, tag="head"):
    """A copy of the store begins: which swarm's, and who made it when."""

    swarm: str
    swarm_id: str
    node: str
    version: str
    wall_ms: int


class SnapshotKeys(Struct, frozen=True, tag="keys"):
    """Users' keys in order, each with its value."""

    entries: list[tuple[bytes, bytes]]


class SnapshotLater(Struct, frozen=True, tag="later"):
    """What became meanwhile of keys that have been told already; None: it is gone."""

    entries: list[tuple[bytes, bytes | None]]


class SnapshotAgents(Struct, frozen=True, tag="agents"):
    """Records of deployed agents, as the store holds them."""

    entries: list[tuple[bytes, bytes]]


class SnapshotEnd(Struct, frozen=True, tag="end"):
    """With everything before taken up in order, this is the store at `revision`."""

    revision: int


SnapshotItem = SnapshotHead | SnapshotKeys | SnapshotLater | SnapshotAgents | SnapshotEnd


class PlaceInfo(Struct, frozen=True, kw_only=True):
    """One who holds, leads, waits in a line or stands at a barrier."""

    owner: str
    lease: int
    revision: int
    """When it came: the fence of a lock or election, once it is the first."""
    ttl_ms: int
    asked_ms: int
    """Wall time when it came, in ms; for display."""
    value: bytes = b""


class LineInfo(Struct, frozen=True, kw_only=True):
    """A lock, an election or a barrier."""

    name: str
    holder: PlaceInfo | None = None
    """Who holds or leads; of a barrier, who came first."""
    waiting: int = 0
    """How many more there are."""
    line: list[PlaceInfo] = []
    """All of them in order, the holder first; only where one name was asked for."""
    count: int = 0
    """How many a barrier waits for."""


class Standing(Struct, frozen=True, kw_only=True):
    """What became of asking for a lock, an election or a barrier."""

    name: str
    state: str
    """held, waiting, or, of a barrier, open"""
    lease: int
    """Names the place from now on, at any node."""
    key: str
    """The key of the store that the place is; compare it with the fence to guard a write."""
    ttl_ms: int
    fence: int = 0
    """0 while it waits."""
    ahead: int = 0
    """How many are before it."""
    holder: PlaceInfo | None = None


class CounterInfo(Struct, frozen=True, kw_only=True):
    name: str
    value: int


class AgentInfo(Struct, frozen=True, kw_only=True):
    name: str
    version: str
    description: str = ""
    runtime: str = "python"
    entry: str = ""
    bundle: str = ""
    """Hash of the packed folder."""
    bundle_bytes: int = 0
    revision: int = 0
    spec: dict[str, Any] = {}


class InstanceInfo(Struct, frozen=True, kw_only=True):
    node: str
    agent: str
    version: str = ""
    pid: int = 0
    state: str = ""
    tasks: list[str] = []


class Instances(Struct, frozen=True, kw_only=True):
    instances: list[InstanceInfo]
    missing: list[str] = []
    """Members that did not answer in time."""


class BlobInfo(Struct, frozen=True, kw_only=True):
    hash: bytes
    size: int


class Submitted(Struct, frozen=True, kw_only=True):
    id: str
    """Same key, same id."""
    created: bool = True
    """False if the key was known already."""
    error: ErrorInfo | None = None
    """Why this one was refused; the others are not affected."""
    copies: int = 1
    """On how many disks its record is, at least."""


class TaskInfo(Struct, frozen=True, kw_only=True):
    id: str
    agent: str
    state: str
    name: str = ""
    key: str = ""
    node: str = ""
    attempts: int = 0
    fence: int = 0
    job: str = ""
    created_ms: int = 0
    ended_ms: int = 0
    error: ErrorInfo | None = None
    result: Any = None
    story: list[str] = []
    """One line per attempt that did not succeed."""


class TaskPage(Struct, frozen=True, kw_only=True):
    tasks: list[TaskInfo]
    after: str = ""
    """Where the next page begins; empty at the end."""


class JobInfo(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    state: str
    total: int = 0
    done: int = 0
    failed: int = 0
    stages: list[dict[str, Any]] = []
    attempts: int = 0
    retries: int = 0
    created_ms: int = 0
    ended_ms: int = 0
    error: ErrorInfo | None = None


class LogLine(Struct, frozen=True, kw_only=True):
    node: str
    agent: str
    text: str
    task: str = ""
    wall_ms: int = 0
    stream: str = "log"


class Done(Struct, frozen=True, kw_only=True):
    """Answer of commands that have nothing to tell but that they worked."""

    ok: bool = True
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    pid: int = 0
    """Of the daemon, where it matters that it ends."""


# ---- access ----


class KeyInfo(Struct, frozen=True, kw_only=True):
    name: str
    role: str = ""
    rules: list[str] = []
    """Given besides the role."""
    allows: list[str] = []
    """All that it may: the role's rules and its own."""
    created_ms: int = 0
    expires_ms: int = 0
    """0: never."""
    expired: bool = False
    requests_per_min: int = 0
    """At each node; 0: the node's own limit."""
    created_by: str = ""


class SecretInfo(Struct, frozen=True, kw_only=True):
    """A secret without its value, which nobody is told."""

    name: str
    version: int = 1
    created_ms: int = 0
    set_ms: int = 0
    set_by: str = ""
    used_by: list[str] = []
    """Agents that refer to it."""
    readable: bool = True
    """False: the node that answers should hold the key that it is encrypted with, and does not."""


class SecretSet(Struct, frozen=True, kw_only=True):
    name: str
    version: int


class SessionInfo(Struct, frozen=True, kw_only=True):
    token: str
    caller: str
    expires_s: int
    """Unix time."""


class CallerInfo(Struct, frozen=True, kw_only=True):
    name: str
    rules: list[str] = []
    session: bool = False


# ---- what clients submit ----


class TaskInput(Struct, kw_only=True, omit_defaults=True):
    """One task to submit. Fields that are not set keep the agent's own value."""

    agent: str
    input: Any = None
    key: str = ""
    """Idempotency key; drawn by `submit` if empty."""
    name: str = ""
    """What reports call it, such as a file's name."""
    priority: int | None = None
    timeout_s: float | None = None
    retries: int | None = None
    mode: str | None = None
    strategy: str | None = None


class KvCompare(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Holds if the key has this revision (0: does not exist) or value, or exists or not."""

    key: str
    revision: int | None = None
    value: bytes | None = None
    text: str | None = None
    """The value as UTF-8."""
    exists: bool | None = None


class KvOperation(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A put or a delete in a transaction."""

    op: str
    key: str
    value: bytes | None = None
    text: str | None = None
    """The value as UTF-8."""
    expect: int | None = None
    """A revision the key must have, or nothing of the transaction is applied."""
    lease: int = 0


class KvTxn(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All of `then` if every compare holds, else all of `else`."""

    compares: list[KvCompare] = []
    then: list[KvOperation] = []
    otherwise: list[KvOperation] = field(default_factory=list, name="else")


class ItemInput(Struct, kw_only=True):
    """One input of a job."""

    name: str = ""
    """What reports call it, such as a file's name."""
    input: Any = None
