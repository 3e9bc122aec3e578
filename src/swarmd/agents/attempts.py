"""What the room is asked to run and what it answers: plain data, no processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from swarmd.agents.environment import NO_ENVIRONMENT, Environment
from swarmd.agents.spec import BusRights
from swarmd.state.blobs.messages import BlobRef

Progress = Callable[[float, float], None]


class Cause(StrEnum):
    """Why an attempt failed; the codes of `Outcome`, each an error class of `base.errors`."""

    SPAWN_FAILED = "agent_spawn_failed"
    RAISED = "agent_raised"
    TIMEOUT = "agent_timeout"
    CRASHED = "agent_crashed"
    GARBAGE = "agent_garbage"
    RESULT_REFUSED = "result_refused"
    CANCELLED = "agent_cancelled"
    LOCK_LOST = "lock_lost"


@dataclass(frozen=True, slots=True)
class BusMessage:
    """A message that leaves with an attempt's result. `data` is one msgpack value."""

    topic: str
    sender: str
    data: bytes


@dataclass(frozen=True, slots=True)
class AttemptRun:
    """One attempt at one task. `payload` is one msgpack value; `concurrency` is per node.

    `bus` is what the agent may publish and subscribe to; None: nothing.
    """

    task_id: str
    attempt: int
    fence: int
    agent: str
    version: str
    bundle: BlobRef
    entry: str
    payload: bytes
    timeout_s: float = 300.0
    concurrency: int = 4
    environment: Environment = NO_ENVIRONMENT
    bus: BusRights | None = None

    @property
    def actor(self) -> str:
        """How the audit log names it: agent, task, attempt, fence."""
        return f"{self.agent}/{self.task_id}/{self.attempt}/{self.fence}"


class LogLine(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`sequence` rises with every line of a node, also over restarts of its daemon."""

    sequence: int
    wall_ms: int
    task_id: str
    attempt: int
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `result` is one msgpack value if `ok`; else `code` and `message`.

    `messages` are to be published once the result is recorded.
    With `not_begun` none of the agent's code ran, and it may go better later or elsewhere.
    """

    ok: bool
    result: bytes | None = None
    code: str | None = None
    message: str = ""
    logs: tuple[str, ...] = ()
    ran_s: float = field(default=0.0, compare=False)
    not_begun: bool = False
    messages: tuple[BusMessage, ...] = ()


class InstanceState(StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


class InstanceInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A worker process. `task_id` is empty while it is idle; `age_s` counts from its start."""

    agent: str
    version: str
    pid: int
    state: InstanceState
    task_id: str
    attempts: int
    age_s: float
