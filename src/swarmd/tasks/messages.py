"""What coordinator, workers and callers say to each other about work.

Between coordinator and worker every message names the coordinator's office (a fence: the
higher one is in office) and the worker's boot (one run of its daemon). Any of them may be
lost: the coordinator repeats an assignment that a heartbeat does not name, the worker repeats
a result that was not settled.

Callers send requests to the coordinator; who is not in office answers `not_coordinator`.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from swarmd.base.limits import SUBMIT_TASKS_MAX
from swarmd.tasks.spec import (
    AgentRun,
    Inline,
    JobSpec,
    JobState,
    Mode,
    Payload,
    StageKind,
    State,
    Stored,
    TaskRecord,
    TaskSpec,
)
from swarmd.wire.codec import Family, Message

Fence = Annotated[int, Meta(ge=0)]
Ids = Annotated[tuple[str, ...], Meta(max_length=SUBMIT_TASKS_MAX)]

PAGE_MAX: Final = 1_000


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A struct inside a message."""


# ---- coordinator and worker -----------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """The sender took office; who it greets answers with a heartbeat."""

    office: Fence


class Heartbeat(Message, frozen=True, tag=2):
    """What the worker holds, by fence: waiting for an instance, running, ended but unsettled."""

    office: Fence
    boot: bytes
    sequence: int
    queued: tuple[int, ...] = ()
    running: tuple[int, ...] = ()
    ended: tuple[int, ...] = ()
    draining: bool = False


class Renewed(Message, frozen=True, tag=3):
    """The lease runs from when the worker sent heartbeat `sequence`."""

    office: Fence
    boot: bytes
    sequence: int


class AssignItem(_Part, frozen=True):
    """One attempt to make."""

    task_id: str
    attempt: int
    fence: Fence
    payload: Payload
    run: AgentRun
    timeout_s: float
    mode: Mode
    job_id: str = ""


class Assign(Message, frozen=True, tag=4):
    office: Fence
    boot: bytes
    items: tuple[AssignItem, ...]


class ResultItem(_Part, frozen=True):
    """How an attempt ended; with a result if `ok`, else with a code and a sentence."""

    task_id: str
    fence: Fence
    ok: bool
    result: Inline | Stored | None = None
    code: str = ""
    message: str = ""
    ran_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


class Results(Message, frozen=True, tag=5):
    office: Fence
    boot: bytes
    items: tuple[ResultItem, ...]


class Settled(Message, frozen=True, tag=6):
    """These attempts are over for the coordinator: forget them, and kill what still runs."""

    office: Fence
    boot: bytes
    items: tuple[int, ...]


class HandedItem(_Part, frozen=True):
    """An attempt given back. `started`: the agent's code may have begun."""

    task_id: str
    fence: Fence
    started: bool


class HandBack(Message, frozen=True, tag=7):
    """Given back unfinished: while stopping, for a fence too old to be remembered, or as what the
    agent needs to begin could not be had."""

    office: Fence
    boot: bytes
    items: tuple[HandedItem, ...]


# ---- callers and coordinator ----------------------------------------------------------


class Submit(Message, frozen=True, tag=10):
    """Answered by `Submitted`, item by item."""

    specs: Annotated[tuple[TaskSpec, ...], Meta(max_length=PAGE_MAX)]


class SubmittedItem(_Part, frozen=True):
    """`code` is "" when the task is durably there; `created` is False for one already known."""

    task_id: str
    created: bool = False
    code: str = ""
    message: str = ""


class Submitted(Message, frozen=True, tag=11):
    items: tuple[SubmittedItem, ...]


class Cancel(Message, frozen=True, tag=12):
    """Answered by `Cancelled`."""

    task_ids: Ids


class CancelledItem(_Part, frozen=True):
    """`state` is the final state the task has now; "" with a `code` when there is none."""

    task_id: str
    state: str
    code: str = ""
    message: str = ""


class Cancelled(Message, frozen=True, tag=13):
    items: tuple[CancelledItem, ...]


class Watch(Message, frozen=True, tag=14):
    """Answered by a stream of `Ended` until each of these tasks has been named once.

    An empty `Ended` says now and then that the coordinator still lives.
    """

    task_ids: Ids


class Ended(Message, frozen=True, tag=15):
    """Final records; `missing` are ids that the store does not hold."""

    records: tuple[TaskRecord, ...]
    missing: tuple[str, ...] = ()


class Look(Message, frozen=True, tag=16):
    """A page of tasks, newest first, after `after`; or those named. Answered by `Seen`."""

    task_ids: Ids = ()
    state: str = ""
    agent: str = ""
    job_id: str = ""
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = 100


class TaskView(_Part, frozen=True):
    """A task as the coordinator sees it. `attempts` includes the one that is out.

    `record` is what the store holds; `state` knows of `assigned` and `running` too.
    """

    record: TaskRecord
    state: State
    attempts: int
    node: bytes
    fence: int = 0


class Seen(Message, frozen=True, tag=17):
    """`after` continues the list; "" at its end."""

    tasks: tuple[TaskView, ...]
    after: str = ""


class Count(Message, frozen=True, tag=18):
    """Answered by `Counted`."""


class Counted(Message, frozen=True, tag=19):
    """Tasks by state; open and finished jobs."""

    tasks: dict[str, int]
    jobs: dict[str, int]


class SubmitJob(Message, frozen=True, tag=20):
    """Answered by `SubmittedJob`. The manifest's blob is already durable."""

    spec: JobSpec


class SubmittedJob(Message, frozen=True, tag=21):
    job_id: str
    created: bool


class StageView(_Part, frozen=True):
    """`total` tasks in all, of which `running` are out and the others wait or have ended."""

    name: str
    agent: str
    kind: StageKind
    total: int
    done: int
    failed: int
    running: int


class JobView(_Part, frozen=True):
    """A job and its progress. `ended_by` counts finished tasks by node id."""

    job_id: str
    name: str
    key: str
    state: JobState
    created_ms: int
    ended_ms: int
    item_count: int
    stages: tuple[StageView, ...]
    attempts: int
    failed_items: int
    ended_by: dict[bytes, int]
    result: Inline | Stored | None
    code: str
    message: str

    @property
    def final(self) -> bool:
        return self.state is not JobState.RUNNING


class LookJobs(Message, frozen=True, tag=22):
    """The job named, or the newest ones. Answered by `SeenJobs`."""

    job_id: str = ""
    limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = 100


class SeenJobs(Message, frozen=True, tag=23):
    jobs: tuple[JobView, ...]


class WatchJob(Message, frozen=True, tag=24):
    """Answered by a stream of `SeenJobs` of one, whenever it moved, until it has ended."""

    job_id: str


class CancelJob(Message, frozen=True, tag=25):
    """Answered by `SeenJobs`."""

    job_id: str


class Gather(Message, frozen=True, tag=26):
    """Outcomes of a job's items before `stage`, in order; a stream of `Rows`."""

    job_id: str
    stage: int


class Row(_Part, frozen=True):
    """One item's outcome: a value, or why there is none."""

    name: str
    value: Inline | Stored | None
    code: str = ""
    message: str = ""


class Rows(Message, frozen=True, tag=27):
    rows: tuple[Row, ...]
    last: bool = False


TASK: Final = Family(
    "task",
    Hello,
    Heartbeat,
    Renewed,
    Assign,
    Results,
    Settled,
    HandBack,
    Submit,
    Submitted,
    Cancel,
    Cancelled,
    Watch,
    Ended,
    Look,
    Seen,
    Count,
    Counted,
    SubmitJob,
    SubmittedJob,
    LookJobs,
    SeenJobs,
    WatchJob,
    CancelJob,
    Gather,
    Rows,
    format_number=2,
)
