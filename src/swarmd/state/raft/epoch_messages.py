"""What members say to each other of epochs and their logs: certificates, first states, copies."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from swarmd.identity.voter import Voter
from swarmd.state.raft.messages import LIVES_MAX
from swarmd.wire.codec import Family, Message

HEADS_AT_ONCE_MAX: Final = 64

# ---- between any two members: epochs --------------------------------------------------


class ChainAsk(Message, frozen=True, tag=1):
    """Certificates of the epochs above `number`, please; answered by `Certificates`."""

    number: int


class Certificates(Message, frozen=True, tag=2):
    """Certificates in order. Sent unasked to those who should know."""

    certificates: tuple[bytes, ...]


class Signed(Message, frozen=True, tag=3):
    """The sender's signature on the statement that seals the epoch they share."""

    envelope: bytes


class StateAsk(Message, frozen=True, tag=4):
    """Bytes of the state with which epoch `number` begins; answered by `StatePiece`."""

    number: int
    offset: int


class StatePiece(Message, frozen=True, tag=5):
    total: int
    data: bytes


class InstalledAsk(Message, frozen=True, tag=6):
    """Does the peer hold the first state of epoch `number` durably? Answered by `Installed`."""

    number: int


class Installed(Message, frozen=True, tag=7):
    number: int
    installed: bool


class Enlist(Message, frozen=True, tag=8):
    """Would you be a voter, and under which storage? Answered by `Enlisted`."""


class Enlisted(Message, frozen=True, tag=9):
    voter: Voter
    number: int


LifeNonce = Annotated[bytes, Meta(max_length=16)]


class StartAsk(Message, frozen=True, tag=10):
    """The sender's storage begins to vote in its `start`-th life.

    `nonces` tell it and those before it apart, as far as they are remembered, the newest last.
    Noted durably, then answered by `StartNoted`.
    """

    storage: bytes
    start: int
    nonces: Annotated[tuple[LifeNonce, ...], Meta(max_length=LIVES_MAX)]


class StartNoted(Message, frozen=True, tag=11):
    """`rises`: no life of that storage was seen that it does not itself remember."""

    rises: bool


EPOCH: Final = Family(
    "epoch",
    ChainAsk,
    Certificates,
    Signed,
    StateAsk,
    StatePiece,
    InstalledAsk,
    Installed,
    Enlist,
    Enlisted,
    StartAsk,
    StartNoted,
)

# ---- between voters: heads of the authority log ----------------------------------------


class HeadSigned(Message, frozen=True, tag=1):
    """The sender's signatures on heads of the authority log, see `identity.heads`."""

    signed: Annotated[tuple[bytes, ...], Meta(max_length=HEADS_AT_ONCE_MAX)]


HEADS: Final = Family("heads", HeadSigned)

# ---- from voters to members that keep a copy of the running log -----------------------


class Follow(Message, frozen=True, tag=1):
    """Keep a copy of the log of epoch `number`: ask the sender for it. Sent again and again."""

    number: int


class BaseAsk(Message, frozen=True, tag=2):
    """Bytes of the state after entry `index` of the log of `number`; answered by `BasePiece`.

    Index 0 asks for the state as it is now; the answer names its index.
    """

    number: int
    index: int
    offset: int


class BasePiece(Message, frozen=True, tag=3):
    index: int
    total: int
    data: bytes


class LogAsk(Message, frozen=True, tag=4):
    """What follows `after`, up to which all is durable here? Answered by `LogPiece`, soon.

    `offset`: how many bytes of the next entry are here already.
    """

    number: int
    after: int
    offset: int = 0


class LogPiece(Message, frozen=True, tag=5):
    """Entries after the index asked for that the sender has applied, up to `last`.

    With `total` there is one entry, of that size, and only its bytes from the offset on.
    """

    entries: tuple[bytes, ...]
    last: int
    total: int = 0


COPY: Final = Family("copy", Follow, BaseAsk, BasePiece, LogAsk, LogPiece)
