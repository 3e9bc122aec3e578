"""What the membership machine is told, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event
from swarmd.mesh.swim.messages import Address, MemberState, Meta

# reset: broken without a word; refused: its host answered that nobody listens; the rest are
# clean closes with their reason.
HowClosed = Literal["reset", "refused", "idle", "restarting", "leaving"]


@dataclass(frozen=True, slots=True)
class Member:
    """One member as seen from here. `changed_at` is when its state last changed, monotonic s."""

    node_id: NodeId
    name: str
    addresses: tuple[Address, ...]
    state: MemberState
    incarnation: int
    roles: tuple[str, ...]
    version: str
    tags: tuple[tuple[str, str], ...]
    changed_at: float
    protocol: int = 0


# ---- events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started(Event):
    """First of all events: arms the timers."""


@dataclass(frozen=True, slots=True)
class PacketIn(Event):
    """A datagram, from a peer that the transport has authenticated."""

    peer: NodeId
    data: bytes


@dataclass(frozen=True, slots=True)
class SyncIn(Event):
    """A peer's view, asked for or (`answer`) answered."""

    peer: NodeId
    rumours: tuple[bytes, ...]
    answer: bool = False
    news: bytes = b""


@dataclass(frozen=True, slots=True)
class SyncFailed(Event):
    peer: NodeId


@dataclass(frozen=True, slots=True)
class StreamClosed(Event):
    """A stream ended. `quiet_s`: how long a peer that says `restarting` will be away."""

    peer: NodeId
    how: HowClosed
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Join(Event):
    """Peers to exchange views with, each tried until it answers or is known."""

    peers: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Leave(Event):
    """Say goodbye; `Departed` follows."""


@dataclass(frozen=True, slots=True)
class SetMeta(Event):
    """Say something else about this node. The caller has checked it by `encode_meta`."""

    meta: Meta


@dataclass(frozen=True, slots=True)
class TrustChanged(Event):
    """Keys were learnt: rumours that could not be verified may be now.

    `evicted`: everybody who was shut out so far; nothing is believed of them or about them.
    """

    evicted: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class ProbeTick(Event):
    number: int


@dataclass(frozen=True, slots=True)
class ProbeTimeout(Event):
    sequence: int


@dataclass(frozen=True, slots=True)
class RelayTimeout(Event):
    sequence: int


@dataclass(frozen=True, slots=True)
class CheckDue(Event):
    """Time to look for oneself whether a member that others suspect answers."""

    subject: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class RoundDue(Event):
    """A probe out of turn is over."""

    sequence: int


@dataclass(frozen=True, slots=True)
class StreamAnswered(Event):
    """What became of a `StreamProbe`."""

    peer: NodeId
    sequence: int
    answered: bool


@dataclass(frozen=True, slots=True)
class GossipTick(Event):
    pass


@dataclass(frozen=True, slots=True)
class NewsTick(Event):
    pass


@dataclass(frozen=True, slots=True)
class SyncTick(Event):
    pass


@dataclass(frozen=True, slots=True)
class RetryTick(Event):
    pass


@dataclass(frozen=True, slots=True)
class SuspicionDue(Event):
    """Stale unless the subject's present suspicion is due."""

    subject: NodeId


@dataclass(frozen=True, slots=True)
class HintTick(Event):
    """The next of the quick probes that follow a reset stream."""

    subject: NodeId
    token: int


@dataclass(frozen=True, slots=True)
class JoinAgain(Event):
    peer: NodeId


@dataclass(frozen=True, slots=True)
class GrowTick(Event):
    """A new node asks somebody else, too."""


@dataclass(frozen=True, slots=True)
class LeaveDue(Event):
    pass


# ---- effects --------------------------------------------------------------------------
# `base.machine.Send` carries the bytes of a packet.


@dataclass(frozen=True, slots=True)
class SyncWith(Effect):
    """Exchange views with `peer` over a stream; feed back `SyncIn` or `SyncFailed`."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class StreamProbe(Effect):
    """Ask `peer` over a stream whether it is there; feed back `StreamAnswered` within the time."""

    peer: NodeId
    sequence: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Changed(Effect):
    """A member appeared (`before` is None), changed, or was forgotten (`after` is None)."""

    before: Member | None
    after: Member | None

    @property
    def joined(self) -> bool:
        """True if it is alive now and was unknown, dead or gone."""
        came = self.before is None or self.before.state in (MemberState.DEAD, MemberState.LEFT)
        return came and self.after is not None and self.after.state is MemberState.ALIVE

    @property
    def moved(self) -> bool:
        """True if it says that it is at other addresses now."""
        before, after = self.before, self.after
        return before is not None and after is not None and before.addresses != after.addresses

    @property
    def failed(self) -> bool:
        return self.after is not None and self.after.state is MemberState.DEAD

    @property
    def left(self) -> bool:
        return self.after is not None and self.after.state is MemberState.LEFT


@dataclass(frozen=True, slots=True)
class NameConflict(Effect):
    """Living members carry one name; it is over if fewer than two do. `holders`: ids, sorted."""

    name: str
    holders: tuple[NodeId, ...]

    @property
    def over(self) -> bool:
        return len(self.holders) < 2


@dataclass(frozen=True, slots=True)
class Departed(Effect):
    """The goodbye has been said as often as it will be."""


@dataclass(frozen=True, slots=True)
class Refused(Effect):
    """Input had no effect; `reason` is one of malformed, bad_signature, full, absurd."""

    reason: Literal["malformed", "bad_signature", "full", "absurd"]
