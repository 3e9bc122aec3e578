"""Live questions between members about agents: nothing here is ever stored."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from swarmd.agents.attempts import InstanceInfo, LogLine
from swarmd.base.limits import ENVIRONMENT_BYTES_MAX, KIB
from swarmd.state.blobs.messages import BlobRef
from swarmd.wire.codec import Family, Message

LINES_MAX = 1_000
SPEC_BYTES_MAX = 512 * KIB


class InstancesAsk(Message, frozen=True, tag=1):
    """Which worker processes live on your node? Answered by `Instances`."""


class Instances(Message, frozen=True, tag=2):
    instances: tuple[InstanceInfo, ...]


class LogsAsk(Message, frozen=True, tag=3):
    """The agent's last lines above sequence `after`; with `follow`, those to come too.

    Answered by a stream of `Lines`, empty ones while there is no news.
    """

    agent: str
    after: int
    follow: bool


class Lines(Message, frozen=True, tag=4):
    lines: tuple[LogLine, ...]


class Retire(Message, frozen=True, tag=5):
    """The agent was removed, or replaced by one with the bundle `keep`: end unused processes."""

    agent: str
    keep: BlobRef | None


class EnvironmentAsk(Message, frozen=True, tag=6):
    """From a member without keys that runs the agent: open this. Answered by `EnvironmentIs`.

    `environment` is an `agents.environment.Environment`.
    """

    agent: str
    environment: Annotated[bytes, Meta(max_length=2 * ENVIRONMENT_BYTES_MAX)]


class EnvironmentIs(Message, frozen=True, tag=7):
    """Plain values by variable; values and revisions of the secrets by name."""

    plain: dict[str, str]
    secrets: dict[str, str]
    revisions: dict[str, int]

    def __repr__(self) -> str:
        return "EnvironmentIs(...)"


class RecordAsk(Message, frozen=True, tag=8):
    """To a member that has keys: make this the current version. Answered by `Recorded`.

    `spec` is an `agents.spec.AgentSpec`; the bundle is among the blobs already.
    """

    spec: Annotated[bytes, Meta(max_length=SPEC_BYTES_MAX)]
    bundle: BlobRef
    replace: bool

    def __repr__(self) -> str:
        return "RecordAsk(...)"


class Recorded(Message, frozen=True, tag=9):
    """`record` is an `agents.records.AgentRecord`, as the store holds it; is it another one?"""

    record: bytes
    fresh: bool


AGENTS = Family(
    "agents",
    InstancesAsk,
    Instances,
    LogsAsk,
    Lines,
    Retire,
    EnvironmentAsk,
    EnvironmentIs,
    RecordAsk,
    Recorded,
)
