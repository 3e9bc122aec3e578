"""What a task, an attempt and a job are, and how the strong store holds them.

- `t/<task>` holds a `TaskRecord`. It is written when the task is created, when a failed
  attempt is put back, and when the task ends. A record in a final state never changes.
- `a/<task>` holds an `Assignment` while an attempt is out. The revision of that entry *is* the
  fence of the attempt, so fences rise, across coordinators and epochs, by the store's own
  counting. Whoever commits a result proves by that revision that the attempt is current.
- `j/<job>` holds a `JobRecord`, written when the job is taken and when it ends. Which of its
  tasks exist follows from it: their ids are derived, so they are made when they start.
- `o/tasks` holds the coordinator in office. Every transaction compares its revision, so
  nothing that a deposed coordinator still proposes can change a task.

`assigned` follows from the presence of `a/<task>` and `running` is seen in heartbeats; both
are written nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec

from swarmd.agents.environment import NO_ENVIRONMENT, Environment
from swarmd.base.errors import BadRequest, TooLarge
from swarmd.base.ids import TaskId, digest, task_id_of
from swarmd.base.limits import IDEMPOTENCY_KEY_BYTES_MAX, INLINE_BYTES_MAX, NAME_BYTES_MAX
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import ASSIGNMENT_PREFIX as ASSIGNMENT_PREFIX
from swarmd.state.raft.messages import JOB_PREFIX as JOB_PREFIX
from swarmd.state.raft.messages import OFFICE_KEY as OFFICE_KEY
from swarmd.state.raft.messages import TASK_PREFIX as TASK_PREFIX
from swarmd.wire.codec import decode_stored

STAGES_MAX: Final = 16
ITEMS_MAX: Final = 10_000
STORY_NOTES_MAX: Final = 8
MESSAGE_CHARS_MAX: Final = 2_000
ITEM_NAME_BYTES_MAX: Final = 1_024


class State(StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"
    UNKNOWN = "unknown"


FINAL: Final = frozenset(
    {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.DEAD, State.UNKNOWN}
)

# Absent pairs never happen: a final state has no way out.
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.PENDING: frozenset({State.ASSIGNED, State.CANCELLED, State.FAILED}),
        State.ASSIGNED: frozenset(
            {State.RUNNING, State.PENDING, State.SUCCEEDED, State.FAILED, State.CANCELLED}
            | {State.DEAD, State.UNKNOWN}
        ),
        State.RUNNING: frozenset(
            {State.PENDING, State.SUCCEEDED, State.FAILED, State.CANCELLED}
            | {State.DEAD, State.UNKNOWN}
        ),
    }
)


class Mode(StrEnum):
    """What may happen to an attempt whose worker is not heard.

    `default`: another is started at once; the old one may run on, but commits nothing.
    `exclusive`: another is started only when the old one has certainly ended.
    `at_most_once`: none is started; the task ends `unknown`.
    """

    DEFAULT = "default"
    EXCLUSIVE = "exclusive"
    AT_MOST_ONCE = "at_most_once"


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A struct inside a message or a record."""


# ---- values: what goes in and what comes out ------------------------------------------


class Inline(_Part, frozen=True, tag=1):
    """One msgpack value of at most INLINE_BYTES_MAX bytes."""

    data: bytes


class Stored(_Part, frozen=True, tag=2):
    """One msgpack value, kept as a blob."""

    blob: BlobRef


class FromItem(_Part, frozen=True, tag=3):
    """The payload of a job's item, as the job's manifest has it."""

    item: int


class FromTask(_Part, frozen=True, tag=4):
    """The result of another task of the same job."""

    task_id: str


class Gathered(_Part, frozen=True, tag=5):
    """The outcomes of all items of a job up to the stage before `stage`, in their order."""

    stage: int


Value = Inline | Stored
Payload = Inline | Stored | FromItem | FromTask | Gathered


# ---- tasks ----------------------------------------------------------------------------


class Place(_Part, frozen=True):
    """Where in its job a task stands."""

    job_id: str
    stage: int
    item: int


class TaskSpec(_Part, frozen=True):
    """What is asked for. `None` means: as the agent's definition says.

    `key` is the idempotency key: one key, one task. `timeout_s` is per attempt; `retries` are
    the attempts beyond the first; tasks of higher `priority` start first.
    """

    agent: str
    payload: Payload
    key: str
    name: str = ""
    priority: int = 0
    timeout_s: float | None = None
    retries: int | None = None
    mode: Mode | None = None
    strategy: str | None = None
    place: Place | None = None

    def content_digest(self) -> bytes:
        """What two submits under one key must agree on; 16 bytes."""
        return digest(msgspec.msgpack.encode(self))[:16]


class AttemptNote(_Part, frozen=True):
    """How one attempt ended that did not end its task."""

    attempt: int
    node: bytes
    code: str
    message: str


class TaskRecord(_Part, frozen=True):
    """`attempts` counts those that ended or were lost; `node` is where the last one ran.

    The payload of a task that succeeded is replaced by an empty one: what it was is proven by
    `digest`.
    """

    task_id: str
    spec: TaskSpec
    digest: bytes
    created_ms: int
    state: State = State.PENDING
    attempts: int = 0
    story: tuple[AttemptNote, ...] = ()
    ended_ms: int = 0
    node: bytes = b""
    fence: int = 0
    result: Inline | Stored | None = None
    code: str = ""
    message: str = ""

    @property
    def final(self) -> bool:
        return self.state in FINAL


class Assignment(_Part, frozen=True):
    """An attempt that is out. `boot` is the run of the worker's daemon that it was given to."""

    task_id: str
    attempt: int
    node: bytes
    boot: bytes


class AgentRun(_Part, frozen=True):
    """What a worker must know of an agent to run it, and how attempts at it behave."""

    name: str
    version: str
    bundle: BlobRef
    entry: str
    concurrency: int = 4
    timeout_s: float = 300.0
    retries: int | None = None
    mode: Mode = Mode.DEFAULT
    environment: Environment = NO_ENVIRONMENT


# ---- jobs -----------------------------------------------------------------------------


class StageKind(StrEnum):
    MAP = "map"
    REDUCE = "reduce"


class StageSpec(_Part, frozen=True):
    """One step of a job: `map` runs once per item, `reduce` once over all of them in order."""

    name: str
    agent: str
    kind: StageKind


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Item(_Part, frozen=True):
    """One input of a job."""

    name: str
    payload: Inline | Stored


class Manifest(_Part, frozen=True):
    """A job's items, stored as one blob."""

    items: tuple[Item, ...]


class JobSpec(_Part, frozen=True):
    """`manifest` is a blob that holds a `Manifest` of `item_count` items.

    `blobs` are those that its items refer to: they are kept as long as the job is.
    """

    name: str
    key: str
    stages: tuple[StageSpec, ...]
    manifest: BlobRef
    item_count: int
    blobs: tuple[BlobRef, ...] = ()
    priority: int = 0

    def content_digest(self) -> bytes:
        return digest(msgspec.msgpack.encode(self))[:16]


class JobRecord(_Part, frozen=True):
    job_id: str
    spec: JobSpec
    digest: bytes
    created_ms: int
    state: JobState = JobState.RUNNING
    ended_ms: int = 0
    result: Inline | Stored | None = None
    code: str = ""
    message: str = ""
    failed_items: int = 0
    stage_done: tuple[int, ...] = ()
    stage_failed: tuple[int, ...] = ()
    attempts: int = 0
    ended_by: dict[bytes, int] = {}

    @property
    def final(self) -> bool:
        return self.state is not JobState.RUNNING


# ---- keys, ids, bytes -----------------------------------------------------------------


def task_key(task_id: str) -> bytes:
    return TASK_PREFIX + task_id.encode()


def assignment_key(task_id: str) -> bytes:
    return ASSIGNMENT_PREFIX + task_id.encode()


def job_key(job_id: str) -> bytes:
    return JOB_PREFIX + job_id.encode()


def child_key(job_id: str, stage: int, item: int) -> str:
    """The idempotency key of a job's task. It begins with NUL, which callers' keys may not."""
    return f"\0{job_id}/{stage}/{item}"


def child_id(swarm_id: bytes, job_id: str, stage: int, item: int) -> TaskId:
    """The task that does `stage` for `item`."""
    return task_id_of(swarm_id, child_key(job_id, stage, item))


def encode_record(record: TaskRecord | Assignment | JobRecord) -> bytes:
    return msgspec.msgpack.encode(record)


def decode_task(raw: bytes) -> TaskRecord:
    """Raises CorruptFile: the store holds what this version cannot read."""
    record: TaskRecord = decode_stored(TaskRecord, raw, "a task record")
    return record


def decode_assignment(raw: bytes) -> Assignment:
    """Raises CorruptFile."""
    record: Assignment = decode_stored(Assignment, raw, "an assignment")
    return record


def decode_job(raw: bytes) -> JobRecord:
    """Raises CorruptFile."""
    record: JobRecord = decode_stored(JobRecord, raw, "a job record")
    return record


def cut_message(text: str) -> str:
    """`text` short enough for a record."""
    return text if len(text) <= MESSAGE_CHARS_MAX else text[: MESSAGE_CHARS_MAX - 3] + "..."


# ---- what callers may ask for ---------------------------------------------------------


def check_key(key: str) -> None:
    """Raises BadRequest: no idempotency key, or one that cannot be."""
    if not key or "\0" in key:
        raise BadRequest("an idempotency key has at least one character, and no NUL")
    if len(key.encode()) > IDEMPOTENCY_KEY_BYTES_MAX:
        raise TooLarge(f"an idempotency key has at most {IDEMPOTENCY_KEY_BYTES_MAX} bytes")


def check_task(spec: TaskSpec) -> None:
    """Raises BadRequest: `spec` is not something a caller may submit."""
    check_key(spec.key)
    if not spec.agent or len(spec.agent.encode()) > NAME_BYTES_MAX:
        raise BadRequest(f"a task names its agent, in at most {NAME_BYTES_MAX} bytes")
    if len(spec.name.encode()) > ITEM_NAME_BYTES_MAX:
        raise TooLarge(f"a task's name has at most {ITEM_NAME_BYTES_MAX} bytes")
    if spec.place is not None or not isinstance(spec.payload, Inline | Stored):
        raise BadRequest("only jobs make tasks that belong to jobs")
    if isinstance(spec.payload, Inline) and len(spec.payload.data) > INLINE_BYTES_MAX:
        raise TooLarge(f"an inline payload has at most {INLINE_BYTES_MAX} bytes")
    if spec.timeout_s is not None and not 0 < spec.timeout_s <= 7 * 86_400:
        raise BadRequest("a task's timeout is above 0 and at most a week")
    if spec.retries is not None and not 0 <= spec.retries <= 100:
        raise BadRequest("a task has 0 to 100 retries")
    if not -1_000 <= spec.priority <= 1_000:
        raise BadRequest("a priority lies between -1000 and 1000")


def check_stages(stages: tuple[StageSpec, ...]) -> None:
    """Raises BadRequest: these are not the stages of a job."""
    if not 1 <= len(stages) <= STAGES_MAX:
        raise BadRequest(f"a job has 1 to {STAGES_MAX} stages, not {len(stages)}")
    names = [stage.name for stage in stages]
    for stage in stages:
        if not stage.name or len(stage.name.encode()) > NAME_BYTES_MAX:
            raise BadRequest("every stage has a name")
        if names.count(stage.name) > 1:
            raise BadRequest(f"two stages are named {stage.name!r}")
        if not stage.agent:
            raise BadRequest(f"stage {stage.name!r} names no agent")
    if sum(stage.kind is StageKind.REDUCE for stage in stages) > 1:
        raise BadRequest("a job has at most one reduce stage; later stages see its one result")


def check_job(spec: JobSpec) -> None:
    """Raises BadRequest."""
    check_key(spec.key)
    check_stages(spec.stages)
    if not 0 <= spec.item_count <= ITEMS_MAX:
        raise TooLarge(f"a job has at most {ITEMS_MAX} items, not {spec.item_count}")
    if len(spec.blobs) > ITEMS_MAX:
        raise TooLarge(f"a job refers to at most {ITEMS_MAX} blobs")
    if len(spec.name.encode()) > NAME_BYTES_MAX:
        raise TooLarge(f"a job's name has at most {NAME_BYTES_MAX} bytes")


def width_of(stages: tuple[StageSpec, ...], item_count: int, stage: int) -> int:
    """How many tasks `stage` has: one per item up to the first reduce, then one."""
    if any(s.kind is StageKind.REDUCE for s in stages[: stage + 1]):
        return 1
    return item_count
