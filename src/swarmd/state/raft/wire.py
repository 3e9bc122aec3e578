"""What voters say to each other, and how a message too large for a frame travels in parts.

Every message carries its sender's term; an acknowledgement also carries the round that it
answers, so that neither can be taken for one of another time. The bytes are opaque to the
streams that carry them. Any bytes may arrive: what is not one of these structs, or is out of
bounds, is `MalformedMessage`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

import msgspec

from swarmd.base.errors import MalformedMessage
from swarmd.base.limits import ENTRY_BYTES_MAX, KIB, MIB
from swarmd.wire.codec import Family, Message

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

# One entry at its largest, the type byte and the framing of the message around it.
MESSAGE_RAFT_BYTES_MAX: Final = max(ENTRY_BYTES_MAX, 1 * MIB) + 64 * KIB
PARTS_MAX: Final = 4_096
_ASSEMBLIES_MAX: Final = 8


class VoteRequest(Message, frozen=True, tag=1):
    term: Number
    last_index: Number
    last_term: Number


class VoteGranted(Message, frozen=True, tag=2):
    term: Number


class PreVoteRequest(Message, frozen=True, tag=3):
    """`term` is the one the sender would stand in."""

    term: Number
    last_index: Number
    last_term: Number


class PreVoteGranted(Message, frozen=True, tag=4):
    term: Number


class StaleTerm(Message, frozen=True, tag=5):
    """The sender of an older term is told the current one."""

    term: Number


class Append(Message, frozen=True, tag=6):
    """Entries after `previous_index`, as (term, command); none in a heartbeat."""

    term: Number
    round: Number
    commit: Number
    previous_index: Number
    previous_term: Number
    entries: tuple[tuple[Number, bytes], ...]


class AppendReply(Message, frozen=True, tag=7):
    """With `ok`, all before `next_index` is held durably; else send from there.

    `previous` is the index that the append in question went on from.
    """

    term: Number
    round: Number
    ok: bool
    previous: Number
    next_index: Number


class SnapshotChunk(Message, frozen=True, tag=8):
    """A piece of the snapshot file that ends at (`index`, `index_term`). No data: a probe."""

    term: Number
    round: Number
    commit: Number
    index: Number
    index_term: Number
    total_bytes: Number
    offset: Number
    data: bytes


class SnapshotReply(Message, frozen=True, tag=9):
    """The receiver holds the first `offset` bytes of the snapshot at `index`."""

    term: Number
    round: Number
    index: Number
    offset: Number


class Part(Message, frozen=True, tag=10):
    """Part `number` of `count` of the encoded message whose BLAKE2b is `whole`.

    Named by content: parts of two messages cannot be mixed, not even of a sender's two lives.
    """

    whole: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    number: Number
    count: Number
    data: bytes


class TimeoutNow(Message, frozen=True, tag=11):
    """The leader of `term` asks the receiver, which holds all up to `last_index`, to stand."""

    term: Number
    last_index: Number


class HandedVoteRequest(Message, frozen=True, tag=12):
    """A `VoteRequest` of one whom the leader asked to stand: nobody need be faithful to it."""

    term: Number
    last_index: Number
    last_term: Number


class StateDigest(Message, frozen=True, tag=13):
    """The digest of the leader's state after entry `index`, bucket by bucket."""

    term: Number
    index: Number
    digest: bytes


class DigestPassed(Message, frozen=True, tag=14):
    """Nothing speaks against the leader's digest after entry `index`, which is applied here."""

    term: Number
    index: Number


VOTERS: Final = Family(
    "voters",
    VoteRequest,
    VoteGranted,
    PreVoteRequest,
    PreVoteGranted,
    StaleTerm,
    Append,
    AppendReply,
    SnapshotChunk,
    SnapshotReply,
    Part,
    TimeoutNow,
    HandedVoteRequest,
    StateDigest,
    DigestPassed,
    alpn="swarmd-raft/1",
    message_bytes_max=MESSAGE_RAFT_BYTES_MAX,
)


def _name(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def split(raw: bytes, part_bytes: int) -> list[bytes]:
    """`raw`, an encoded message, as what is sent: itself, or `Part`s when it is larger."""
    if len(raw) <= part_bytes:
        return [raw]
    whole = _name(raw)
    pieces = [raw[at : at + part_bytes] for at in range(0, len(raw), part_bytes)]
    return [VOTERS.encode(Part(whole, n, len(pieces), piece)) for n, piece in enumerate(pieces)]


class Assembler:
    """Puts one peer's parts together again, in whatever order they arrive.

    Holds the newest few messages under way; an older one is given up, which costs no more
    than a lost packet would.
    """

    def __init__(self) -> None:
        self._messages: dict[bytes, dict[int, bytes]] = {}

    def take(self, part: Part) -> bytes | None:
        """The whole message if `part` completes it.

        Raises:
            MalformedMessage: the part is impossible, or the whole is too large or not what it
                was said to be.
        """
        if not 0 <= part.number < part.count <= PARTS_MAX:
            raise MalformedMessage(f"part {part.number} of {part.count}")
        pieces = self._messages.setdefault(part.whole, {})
        pieces[part.number] = part.data
        while len(self._messages) > _ASSEMBLIES_MAX:
            del self._messages[next(iter(self._messages))]
        if sum(map(len, pieces.values())) > MESSAGE_RAFT_BYTES_MAX:
            self._messages.pop(part.whole, None)
            raise MalformedMessage("parts of a message that is too large")
        if len(pieces) < part.count:
            return None
        self._messages.pop(part.whole, None)
        raw = b"".join(piece for _, piece in sorted(pieces.items()))
        if _name(raw) != part.whole:
            raise MalformedMessage("parts that do not make up their message")
        return raw
