"""What happens to a replica, and what it wants done."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event
from swarmd.state.crdt.dots import Dot
from swarmd.state.crdt.messages import (
    Batches,
    HandOver,
    Leaving,
    Shard,
    Sums,
    Taken,
    Vector,
    Whole,
    WholeAsk,
)
from swarmd.state.crdt.types.values import Operation

Spoken = Sums | Vector | Batches | WholeAsk | Whole | HandOver | Taken | Leaving


@dataclass(frozen=True, slots=True)
class Write(Event):
    """A caller's operation; `Written` answers with the same ticket. `expects` is for registers."""

    ticket: int
    bucket: str
    key: str
    operation: Operation
    fields: tuple[str, ...] = ()
    expires_ms: int = 0
    expects: Dot | tuple[()] | None = None
    """The write that must count at the key now; (): none; None: whatever is there."""


@dataclass(frozen=True, slots=True)
class Heard(Event):
    peer: NodeId
    message: Spoken


@dataclass(frozen=True, slots=True)
class Peers(Event):
    """Who is alive now, this node not among them; and all who may come back, this node among them.

    Nothing is forgotten that one of `everyone` has not seen. Shards that not all hold are placed
    on `placed`, this node among them: those of everyone who are alive, or dead for a short while.
    """

    alive: tuple[NodeId, ...]
    everyone: frozenset[NodeId] = frozenset()
    placed: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class SyncDue(Event):
    """It is time to tell somebody what this replica has seen; the first one starts that."""


@dataclass(frozen=True, slots=True)
class Wanted(Event):
    """Somebody asks for what not all hold: from now on this node sees to what it is to hold."""


@dataclass(frozen=True, slots=True)
class Leave(Event):
    """This node leaves: have others take what it has of what not all hold. Repeated, ask again."""


@dataclass(frozen=True, slots=True)
class Stay(Event):
    """It does not leave after all."""


@dataclass(frozen=True, slots=True)
class Written(Effect):
    """What became of a write: durable here, or refused and nothing changed."""

    ticket: int
    error: SwarmError | None = None


@dataclass(frozen=True, slots=True)
class KeyChanged(Effect):
    """The cells of a key are others now."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class Dropped(Effect):
    """A shard was handed over, and is here no more."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class Ignored(Effect):
    """Something of a peer's was of no use, or not to be believed."""

    peer: NodeId
    reason: str
