"""What the bus's machine is told, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as a subscriber gets it. `sender` may be answered to if it is not empty."""

    topic: str
    sender: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Reach:
    """What became of a message.

    `subscribers` have it in their inbox. `missed` had no room for it in time and will not get it:
    `slow` names some of them.
    Whether it got anywhere at the nodes `unknown` nobody can tell.
    """

    subscribers: int = 0
    missed: int = 0
    slow: tuple[str, ...] = ()
    unknown: tuple[NodeId, ...] = ()


# ---- events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerUp(Event):
    """A member is alive, or has been started anew."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class PeerGone(Event):
    """A member is dead as far as this node knows; `for_good` if that process never comes back."""

    peer: NodeId
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class Heard(Event):
    peer: NodeId
    message: Any


@dataclass(frozen=True, slots=True)
class Subscribe(Event):
    """`number` is not used again. `Spread` follows once others know."""

    number: int
    name: str
    filters: tuple[str, ...]
    inbox_max: int


@dataclass(frozen=True, slots=True)
class Unsubscribe(Event):
    number: int


@dataclass(frozen=True, slots=True)
class Taken(Event):
    """A subscriber has taken so many messages, of so many bytes, out of its inbox."""

    number: int
    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Publish(Event):
    """One message. `Outcome` with its token follows; messages of a lane keep their order."""

    token: int
    lane: int
    topic: str
    sender: str
    data: bytes
    patience_s: float


@dataclass(frozen=True, slots=True)
class GiveUp(Event):
    """Nobody waits for the outcome any more: tell it as far as it is known."""

    token: int


@dataclass(frozen=True, slots=True)
class AnnounceDue(Event):
    peer: NodeId
    token: int


@dataclass(frozen=True, slots=True)
class GraceOver(Event):
    """Peers that have not introduced themselves by now are not waited for."""

    token: int


@dataclass(frozen=True, slots=True)
class ProbeDue(Event):
    peer: NodeId
    token: int


@dataclass(frozen=True, slots=True)
class PatienceOver(Event):
    """Somebody may have waited long enough of what came from a node; set for `due`."""

    peer: NodeId
    due: float


# ---- effects --------------------------------------------------------------------------
# `base.machine.Send` carries a message of `messages.BUS`.


@dataclass(frozen=True, slots=True)
class Deliver(Effect):
    """Put into a subscriber's inbox, which has room."""

    number: int
    arrival: Arrival


@dataclass(frozen=True, slots=True)
class Outcome(Effect):
    token: int
    reach: Reach


@dataclass(frozen=True, slots=True)
class Spread(Effect):
    """Every peer that publishes knows of this subscriber, or had its time to."""

    number: int
