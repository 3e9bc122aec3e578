"""What the machine of epochs is told, and what it asks for; see `epoch_machine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarmd.base.ids import NodeId
from swarmd.base.machine import Effect, Event
from swarmd.state.raft import epoch_messages as emsg
from swarmd.state.raft import messages as m


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What this node holds durably, as numbers of epochs.

    `states`: those whose first state is here; `epochs`: those of which any file is, copies of
    their log aside; `copies`: those with a copy of their log.
    """

    states: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()


# ---- events ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wake(Event):
    """A timer that this machine set, or `Wake(START)`, which starts it."""

    token: int


@dataclass(frozen=True, slots=True)
class GraceOver(Event):
    """The voters that did not answer yet have had their time; the timer of `token` ended."""

    token: int


@dataclass(frozen=True, slots=True)
class Heard(Event):
    """A message of the epoch family. With a `tag`, `Answer`, `Refuse` or `ReadPiece` follows."""

    peer: NodeId
    message: Any
    tag: int = 0


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """What came of an `Ask`: exactly one per tag; None if no answer came in time."""

    tag: int
    message: Any


@dataclass(frozen=True, slots=True)
class StrayPacket(Event):
    """A packet of the log of an epoch that does not run here."""

    peer: NodeId
    epoch: bytes


@dataclass(frozen=True, slots=True)
class SealApplied(Event):
    """The replica of `epoch` applied the seal at `index`: `number` follows, with `voters`."""

    epoch: int
    number: int
    index: int
    voters: tuple[m.Voter, ...]


@dataclass(frozen=True, slots=True)
class ChainSaved(Event):
    """The certificates up to epoch `number` are durable."""

    number: int
    disk: OnDisk


@dataclass(frozen=True, slots=True)
class StateKept(Event):
    """The first state of `number`, with this digest, is durable."""

    number: int
    digest: bytes
    disk: OnDisk


@dataclass(frozen=True, slots=True)
class StateRefused(Event):
    """The pieces of the first state of `number` do not make up what its certificate says."""

    number: int


@dataclass(frozen=True, slots=True)
class EpochStarted(Event):
    """The log of `number` runs; `seal` if it held one already."""

    number: int
    seal: SealApplied | None
    disk: OnDisk


@dataclass(frozen=True, slots=True)
class EpochStopped(Event):
    """Nothing of the log of `number` runs any more."""

    number: int


@dataclass(frozen=True, slots=True)
class EpochsDropped(Event):
    disk: OnDisk


@dataclass(frozen=True, slots=True)
class StorageRenewed(Event):
    """This disk has another name as a voter, durably."""

    me: m.Voter


@dataclass(frozen=True, slots=True)
class WriteFailed(Event):
    """The disk refused what the effect under way was to write."""


# ---- effects ---------------------------------------------------------------------------
# Besides these the steps of `epoch` whose end is an event: StopEpoch, KeepSealedState,
# StartEpoch and DropEpochs.


@dataclass(frozen=True, slots=True)
class SaveChain(Effect):
    """Make the chain durable up to `number` at least; look which states its digests prove."""

    number: int


@dataclass(frozen=True, slots=True)
class Admit(Effect):
    """Let the log of `number`, which is started, take part; until then it says nothing."""

    number: int


@dataclass(frozen=True, slots=True)
class RenewStorage(Effect):
    """Give this disk another name as a voter: `StorageRenewed` follows."""


@dataclass(frozen=True, slots=True)
class NoteStart(Effect):
    """Note the start that `peer` tells, durably, and answer whether it rises."""

    tag: int
    peer: NodeId
    start: emsg.StartAsk


@dataclass(frozen=True, slots=True)
class UseCopy(Effect):
    """Make the first state of `number` from the copy of the log before it, and keep it.

    `StateKept` follows, or `StateRefused` if there is no copy, or not one with this digest.
    """

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class KeepPiece(Effect):
    """Keep bytes of the first state of `number` for now; at offset 0 it begins anew."""

    number: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class KeepState(Effect):
    """Make the pieces durable, if `digest` is theirs: `StateKept` or `StateRefused` follows."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Ask(Effect):
    """Ask `peer`; `Answered` with this tag follows, within a bounded time."""

    tag: int
    peer: NodeId
    message: Any


@dataclass(frozen=True, slots=True)
class AskAnybody(Effect):
    """Ask a member alive, chosen by chance, for certificates; what it sends is `Heard`."""


@dataclass(frozen=True, slots=True)
class SendAlive(Effect):
    """Send to every member alive but the `told`, who know."""

    message: Any
    told: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Answer(Effect):
    tag: int
    message: Any


@dataclass(frozen=True, slots=True)
class Refuse(Effect):
    tag: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ReadPiece(Effect):
    """Answer with the piece at `offset` of the first state of `number`."""

    tag: int
    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Changed(Effect):
    """The chain grew, more is known of who holds its first state, or old epochs went."""


@dataclass(frozen=True, slots=True)
class Dropped(Effect):
    """Something was not taken; to be counted."""

    why: str
