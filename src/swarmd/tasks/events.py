"""What the coordinator's machine is told, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft.messages import Txn
from swarmd.tasks.messages import HandBack, Heartbeat, Results
from swarmd.tasks.spec import (
    AgentRun,
    Assignment,
    Inline,
    JobRecord,
    JobSpec,
    Stored,
    TaskRecord,
    TaskSpec,
)
from swarmd.wire.codec import Message


class Liveness(StrEnum):
    """A member as its peers see it."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


# ---- events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TookOffice(Event):
    """The first event: `office` is the fence of this office; records with their revisions."""

    office: int
    wall_ms: int
    tasks: tuple[tuple[TaskRecord, int], ...] = ()
    assignments: tuple[tuple[Assignment, int], ...] = ()
    jobs: tuple[tuple[JobRecord, int], ...] = ()
    agents: tuple[AgentRun, ...] = ()
    members: tuple[tuple[NodeId, Liveness], ...] = ()


@dataclass(frozen=True, slots=True)
class MemberChanged(Event):
    node: NodeId
    liveness: Liveness


@dataclass(frozen=True, slots=True)
class AgentChanged(Event):
    """An agent was deployed, replaced or (`run` is None) removed."""

    name: str
    run: AgentRun | None


@dataclass(frozen=True, slots=True)
class FromWorker(Event):
    peer: NodeId
    message: Heartbeat | Results | HandBack


@dataclass(frozen=True, slots=True)
class SubmitAsked(Event):
    """Answered by `Submitted` once every task of it is durable or refused."""

    tag: int
    specs: tuple[TaskSpec, ...]


@dataclass(frozen=True, slots=True)
class CancelAsked(Event):
    """Answered by `Cancelled` once every task of it is final."""

    tag: int
    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SubmitJobAsked(Event):
    """Answered by `SubmittedJob`."""

    tag: int
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class CancelJobAsked(Event):
    """Answered by `SeenJobs`."""

    tag: int
    job_id: str


@dataclass(frozen=True, slots=True)
class ItemsNamed(Event):
    """A job's manifest was read; these are its items' names, in order."""

    job_id: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemsUnreadable(Event):
    """A job's manifest cannot be read now; `final`: nor ever."""

    job_id: str
    message: str
    final: bool


@dataclass(frozen=True, slots=True)
class Collected(Event):
    """The outcomes of a job without a reduce are one value now."""

    job_id: str
    value: Inline | Stored


@dataclass(frozen=True, slots=True)
class Uncollectable(Event):
    """The outcomes of a job without a reduce can never be one value."""

    job_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of one proposal. `conflict`: the store is not as this office believed."""

    tag: int
    ok: bool
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Committed(Event):
    results: tuple[Commit, ...]


@dataclass(frozen=True, slots=True)
class Confirmed(Event):
    """This office was still the one in office after `Confirm(tag)` was asked, or it was not."""

    tag: int
    ok: bool


@dataclass(frozen=True, slots=True)
class RetryDue(Event):
    """The pause after a failed attempt is over; `round` tells whether it still matters."""

    task_id: str
    round: int


@dataclass(frozen=True, slots=True)
class NamesDue(Event):
    """Try again to read a job's manifest."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """Once a heartbeat: leases, greetings, retention."""


# ---- effects --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Propose(Effect):
    """Commit `op` and report it in `Committed`; proposals of one step share a write."""

    tag: int
    op: Txn


@dataclass(frozen=True, slots=True)
class Confirm(Effect):
    """Find out, by a round to the voters, whether this office still holds."""

    tag: int


@dataclass(frozen=True, slots=True)
class Answer(Effect):
    """The answer to the request with this tag."""

    tag: int
    message: Message


@dataclass(frozen=True, slots=True)
class Refuse(Effect):
    """The request with this tag failed."""

    tag: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TaskDone(Effect):
    """A task's final record is durable."""

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class JobMoved(Effect):
    """A job's progress or state changed."""

    job_id: str


@dataclass(frozen=True, slots=True)
class NameItems(Effect):
    """Read a job's manifest and report `ItemsNamed` or `ItemsUnreadable`."""

    job_id: str
    manifest: BlobRef


@dataclass(frozen=True, slots=True)
class Collect(Effect):
    """Put the outcomes of all items of a job, in order, into one value: `Collected`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Resign(Effect):
    """The store is not as this office believes: begin anew from what it holds."""

    reason: str
