"""A member without a seat that keeps a copy of the running epoch's log, as a machine.

The coordinator tells it to, for it may be seated next, or because a second copy is worth
having. It gets the state as it is, then asks a voter for what follows, again and again. A
question for what follows `after` says that everything up to there is durable here.

Rules:
- Only what a voter has applied is sent, so nothing here is ever taken back.
- A copy has no vote and is believed by nobody: a first state made from it counts only if its
  digest is what the seal certificate says.
- Who is not told any more to keep a copy stops asking; the files stay until the epoch ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from swarmd.base.errors import NotFound
from swarmd.base.ids import NodeId
from swarmd.base.limits import CHECKED_FILE_BYTES_MAX, ENTRY_BYTES_MAX
from swarmd.base.machine import Effect, Event, SetTimer
from swarmd.state.raft import epoch_messages as emsg

RETRY_S: Final = 0.3
# A coordinator says so every half second.
TOLD_TTL_S: Final = 10.0
# No copy on this disk.
NOTHING: Final = -1


# ---- events ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told(Event):
    """The voter `peer` of the running epoch `number` wants a copy kept here."""

    peer: NodeId
    number: int


@dataclass(frozen=True, slots=True)
class Kept(Event):
    """All of `number` up to `last` is durable and taken up; NOTHING if there is no copy."""

    number: int
    last: int


@dataclass(frozen=True, slots=True)
class NotKept(Event):
    """What was to be kept was no such thing, or the disk refused it; the copy is gone."""

    number: int


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """What came of an `Ask`: exactly one per tag. `code` says why there is no message."""

    tag: int
    message: Any
    code: str | None = None


@dataclass(frozen=True, slots=True)
class EpochEnded(Event):
    """Epoch `number` has a successor, or this node a seat in it."""

    number: int


@dataclass(frozen=True, slots=True)
class Wake(Event):
    token: int


# ---- effects ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenCopy(Effect):
    """Take up the copy of `number` that the disk holds: `Kept` follows."""

    number: int


@dataclass(frozen=True, slots=True)
class CloseCopy(Effect):
    """Let go of the copy in memory; what is on the disk stays."""

    number: int


@dataclass(frozen=True, slots=True)
class KeepBase(Effect):
    """Begin the copy anew with the state after `index`; `Kept` or `NotKept` follows."""

    number: int
    index: int
    body: bytes


@dataclass(frozen=True, slots=True)
class KeepEntries(Effect):
    """Make the entries after `after` durable, then take them up: `Kept` or `NotKept`."""

    number: int
    after: int
    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AskVoter(Effect):
    """Ask `peer`; `Answered` with this tag follows, within a bounded time."""

    tag: int
    peer: NodeId
    message: Any


class CopyMachine:
    """See the module."""

    def __init__(self) -> None:
        self.number = 0
        self.last = NOTHING
        self._source = NodeId(b"")
        self._told_at = 0.0
        self._now = 0.0
        self._tag = 0
        self._base_index = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._out: list[Effect] = []

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        self._now = now
        match event:
            case Told(peer, number):
                self._told(peer, number)
            case Kept(number, last) if number == self.number:
                self.last = last
                self._go_on()
            case NotKept(number) if number == self.number:
                self.last = NOTHING
                self._pause()
            case Answered(tag, message, code) if tag == self._tag and self.number:
                self._answered(message, code)
            case Wake(token) if token == self._tag and self.number:
                self._go_on()
            case EpochEnded(number) if number == self.number:
                self._stop()
        out, self._out = self._out, []
        return out

    def _told(self, peer: NodeId, number: int) -> None:
        self._told_at, self._source = self._now, peer
        if self.number == number:
            return
        if self.number:
            self._out.append(CloseCopy(self.number))
        self._stop()
        self.number = number
        self._out.append(OpenCopy(number))

    def _stop(self) -> None:
        self.number, self.last = 0, NOTHING
        self._tag += 1
        self._forget_pieces()

    def _forget_pieces(self) -> None:
        self._base_index, self._size = 0, 0
        self._pieces.clear()

    def _go_on(self) -> None:
        if self._now - self._told_at > TOLD_TTL_S:
            self._out.append(CloseCopy(self.number))
            return self._stop()
        if self.last == NOTHING:
            return self._ask(emsg.BaseAsk(self.number, self._base_index, self._size))
        return self._ask(emsg.LogAsk(self.number, self.last, self._size))

    def _ask(self, message: Any) -> None:
        self._tag += 1
        self._out.append(AskVoter(self._tag, self._source, message))

    def _pause(self) -> None:
        self._forget_pieces()
        self._tag += 1
        self._out.append(SetTimer(RETRY_S, Wake(self._tag)))

    def _answered(self, message: Any, code: str | None) -> None:
        if code == NotFound.code:
            self.last = NOTHING  # Too far behind for entries, or that state is gone: anew.
            self._pause()
        elif isinstance(message, emsg.BasePiece) and self.last == NOTHING:
            self._take_base(message)
        elif isinstance(message, emsg.LogPiece) and self.last != NOTHING:
            self._take_log(message)
        else:
            self._pause()

    def _take_base(self, piece: emsg.BasePiece) -> None:
        sound = 0 < piece.total <= CHECKED_FILE_BYTES_MAX and piece.index >= 0 and piece.data
        if not sound or (self._size and piece.index != self._base_index):
            return self._pause()
        self._base_index = piece.index
        self._keep_piece(piece.data)
        if self._size < piece.total:
            return self._go_on()
        body = b"".join(self._pieces)
        self._forget_pieces()
        self._out.append(KeepBase(self.number, piece.index, body))
        return None

    def _take_log(self, piece: emsg.LogPiece) -> None:
        if not piece.total:
            self._forget_pieces()
            if not piece.entries:
                return self._go_on()
            self._out.append(KeepEntries(self.number, self.last, piece.entries))
            return None
        if len(piece.entries) != 1 or not piece.entries[0] or piece.total > ENTRY_BYTES_MAX * 2:
            return self._pause()
        self._keep_piece(piece.entries[0])
        if self._size < piece.total:
            return self._go_on()
        entry = b"".join(self._pieces)
        self._forget_pieces()
        self._out.append(KeepEntries(self.number, self.last, (entry,)))
        return None

    def _keep_piece(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
