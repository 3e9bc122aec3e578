"""Live questions between members about agents: nothing here is ever stored."""

from __future__ import annotations

from swarmd.agents.attempts import InstanceInfo, LogLine
from swarmd.state.blobs.messages import BlobRef
from swarmd.wire.codec import Family, Message

LINES_MAX = 1_000


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


AGENTS = Family("agents", InstancesAsk, Instances, LogsAsk, Lines, Retire)
