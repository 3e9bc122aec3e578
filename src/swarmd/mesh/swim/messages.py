"""What members say to each other: statements, rumours, packets and push-pull.

A *statement* is one fact about one member at one incarnation (Das, Gupta and Motivala, "SWIM",
section 4.2). Its subject says `alive` and `left`; an accuser says `suspect` and `dead`. A
*rumour* is a statement with its author's signature. The bytes of a rumour are verified and
forwarded exactly as they were received, never encoded anew, so a member that passes one on can
neither alter it nor put it in another's mouth.

A *packet* is one probe message with as many rumours as fit PACKET_BYTES_MAX, signatures counted.
The transport encrypts and authenticates packets: the peer that a packet comes from is known.

All of these may grow by the rules of `wire.codec`, but for what holds a statement and its
signature together: nobody but the author may add to a rumour. So, when it comes:
- News that is no rumour about a member (user events) is at the end of Gossip, as a bounded list of
  bytes which only its own room decodes (`mesh.events`); it takes its room from what the rumours
  leave. Not in pings: while there is news there is gossip, five times as often, and an idle member
  would send an empty list with each. What that room says in push-pull is at the end of Sync. An
  older build does not pass it on, so whoever has news repeats it to several, as with rumours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar, Final

import msgspec

from swarmd.base.errors import BadRequest, MalformedMessage, TooLarge
from swarmd.base.ids import NodeId
from swarmd.base.limits import KIB, MESSAGE_BYTES_MAX, NAME_BYTES_MAX
from swarmd.mesh.events.messages import EVENT_BYTES_MAX, TOLD_BYTES_MAX
from swarmd.wire.codec import BYTES_HEAD_MAX, Family, Growing, decode_struct, encode_struct

# What a packet may hold once the transport's header and tag are counted off a datagram.
PACKET_BYTES_MAX: Final = 1_100
# Everything of a packet that is not a rumour: format, tag, sequence, digests, target or coordinate,
# list header.
PACKET_HEADER_BYTES_MAX: Final = 88
META_BYTES_MAX: Final = 512
STATEMENT_BYTES_MAX: Final = META_BYTES_MAX + 128
SIGNATURE_BYTES: Final = 64
RUMOUR_BYTES_MAX: Final = STATEMENT_BYTES_MAX + SIGNATURE_BYTES + 8
PACKET_RUMOURS_MAX: Final = 64
# A push-pull carries what fits; the next one starts elsewhere in the list.
SYNC_BYTES_MAX: Final = 512 * KIB
SYNC_RUMOURS_MAX: Final = 20_000
PACKET_NEWS_MAX: Final = 64
ADDRESSES_MAX: Final = 4
ROLES_MAX: Final = 8
TAGS_MAX: Final = 16
# Incarnations are start_counter * 2**32 + n.
START_SHIFT: Final = 32
INCARNATION_MAX: Final = 2**62
# One turn a second reaches this in millions of years; a false one cannot wear the numbers out.
TURN_FOLLOWED_MAX: Final = 2**48
TURN_MAX: Final = 2**62
# A later build's may be longer than ours; whoever does not know its size ignores it.
_PLACE_BYTES_MAX: Final = 128

assert PACKET_HEADER_BYTES_MAX + RUMOUR_BYTES_MAX + BYTES_HEAD_MAX <= PACKET_BYTES_MAX
assert PACKET_HEADER_BYTES_MAX + EVENT_BYTES_MAX + BYTES_HEAD_MAX <= PACKET_BYTES_MAX
assert SYNC_BYTES_MAX + TOLD_BYTES_MAX + 16 * KIB < MESSAGE_BYTES_MAX

Address = tuple[str, int]

_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Turn = Annotated[int, msgspec.Meta(ge=0, le=TURN_MAX)]
_View = Annotated[bytes, msgspec.Meta(max_length=8)]
_Raw = Annotated[bytes, msgspec.Meta(max_length=RUMOUR_BYTES_MAX)]
_Rumours = Annotated[list[_Raw], msgspec.Meta(max_length=PACKET_RUMOURS_MAX)]
_Place = Annotated[bytes, msgspec.Meta(max_length=_PLACE_BYTES_MAX)]
_News = Annotated[bytes, msgspec.Meta(max_length=EVENT_BYTES_MAX)]
_Short = Annotated[str, msgspec.Meta(max_length=64)]


class MemberState(IntEnum):
    """How a member is seen from here; also the kind of a statement."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4

    def __str__(self) -> str:
        return self.name.lower()


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """What a member says about itself. Encoded, it has at most META_BYTES_MAX bytes.

    `version` is its build's, for people; `protocol` the highest protocol version that it speaks,
    `protocol_lowest` the lowest.
    """

    name: Annotated[str, msgspec.Meta(max_length=NAME_BYTES_MAX)]
    addresses: Annotated[
        tuple[
            tuple[
                Annotated[str, msgspec.Meta(max_length=128)],
                Annotated[int, msgspec.Meta(ge=0, le=65_535)],
            ],
            ...,
        ],
        msgspec.Meta(max_length=ADDRESSES_MAX),
    ] = ()
    roles: Annotated[tuple[_Short, ...], msgspec.Meta(max_length=ROLES_MAX)] = ()
    version: _Short = ""
    tags: Annotated[tuple[tuple[_Short, _Short], ...], msgspec.Meta(max_length=TAGS_MAX)] = ()
    protocol: Annotated[int, msgspec.Meta(ge=0)] = 0
    protocol_lowest: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def speaks(self) -> tuple[int, int]:
        """The protocol versions that it speaks: lowest, highest."""
        return self.protocol_lowest, self.protocol


class Statement(msgspec.Struct, frozen=True, array_like=True):
    """One fact. `accuser` is empty when the subject speaks; `body` is its encoded Meta if alive."""

    kind: MemberState
    subject: _Id
    incarnation: Annotated[int, msgspec.Meta(ge=0, le=INCARNATION_MAX)]
    accuser: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    body: Annotated[bytes, msgspec.Meta(max_length=META_BYTES_MAX)] = b""


class SignedStatement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a rumour travels. No later fields: what is outside of the signature is nobody's."""

    statement: Annotated[bytes, msgspec.Meta(max_length=STATEMENT_BYTES_MAX)]
    signature: Annotated[
        bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)
    ]


@dataclass(frozen=True, slots=True)
class Rumour:
    """A decoded rumour and the very bytes it came in; not yet verified.

    `meta`: what a member says about itself, if the rumour is that it is alive.
    """

    kind: MemberState
    subject: NodeId
    incarnation: int
    author: NodeId
    meta: Meta | None
    statement: bytes
    signature: bytes
    raw: bytes


class Ping(Growing, frozen=True, tag=1):
    """Are you there? `view` sums up the sender's view of who is alive.

    `turn` is the number of the turn in which it is asked, 0 for a ping out of turn: members
    follow the highest, so that in each turn everybody is asked once (`MemberTable.probed_in`).
    """

    sequence: _Sequence
    view: _View
    rumours: _Rumours
    turn: _Turn = 0


class PingFor(Growing, frozen=True, tag=2):
    """Ask `target` for me, and send me its Ack under my sequence (SWIM, section 3.1)."""

    sequence: _Sequence
    target: _Id
    rumours: _Rumours


class Ack(Growing, frozen=True, tag=3):
    """I am there. `whole` sums up all that the sender knows of anybody. `coordinate`: where it is
    (`coordinates`), if the asker asked itself. Either is empty from an older build.
    """

    sequence: _Sequence
    view: _View
    rumours: _Rumours
    whole: _View = b""
    coordinate: _Place = b""


class Nack(Growing, frozen=True, tag=4):
    """I asked your target and heard nothing, but I hear you (Lifeguard, section IV.A)."""

    sequence: _Sequence


class Gossip(Growing, frozen=True, tag=5):
    """`news`: user events, which `mesh.events` decodes."""

    rumours: _Rumours
    news: Annotated[list[_News], msgspec.Meta(max_length=PACKET_NEWS_MAX)] = []  # noqa: RUF012


class Sync(Growing, frozen=True, tag=1):
    """Push-pull over a stream: all that the sender knows, asked and answered alike.

    `news`: what it says of user events (`mesh.events.messages.Told`).
    """

    rumours: Annotated[list[_Raw], msgspec.Meta(max_length=SYNC_RUMOURS_MAX)]
    news: Annotated[bytes, msgspec.Meta(max_length=TOLD_BYTES_MAX)] = b""


class StreamPing(Growing, frozen=True, tag=2):
    """Are you there? Asked over a stream where datagrams stay unanswered, and answered alike."""

    since: ClassVar[int] = 1


PACKETS: Final = Family(
    "swim-packet", Ping, PingFor, Ack, Nack, Gossip, message_bytes_max=PACKET_BYTES_MAX
)
SWIM: Final = Family("swim", Sync, StreamPing)

_OWN_WORDS: Final = (MemberState.ALIVE, MemberState.LEFT)


def encode_meta(meta: Meta) -> bytes:
    """The bytes of `meta`.

    Raises:
        TooLarge: they exceed META_BYTES_MAX: fewer or shorter tags and addresses are needed.
        BadRequest: a single field breaks its bound.
    """
    raw = encode_struct(meta)
    if len(raw) > META_BYTES_MAX:
        raise TooLarge(
            f"name, addresses, roles and tags take {len(raw)} bytes; at most {META_BYTES_MAX} fit"
        )
    try:
        decode_struct(Meta, raw)
    except MalformedMessage as error:
        raise BadRequest(f"this cannot be said about a member: {error.message}") from error
    return raw


def decode_meta(raw: bytes) -> Meta:
    meta: Meta = decode_struct(Meta, raw)
    return meta


def encode_statement(
    kind: MemberState, subject: NodeId, incarnation: int, *, author: NodeId, body: bytes = b""
) -> bytes:
    """The bytes that `author` signs."""
    accuser = b"" if kind in _OWN_WORDS else author
    return encode_struct(Statement(kind, subject, incarnation, accuser, body))


def make_rumour(statement: bytes, signature: bytes) -> Rumour:
    return decode_rumour(encode_struct(SignedStatement(statement, signature)))


def decode_rumour(raw: bytes) -> Rumour:
    """The rumour in `raw`; its signature is not looked at.

    Raises:
        MalformedMessage: not a rumour, or one that no honest author makes.
    """
    signed: SignedStatement = decode_struct(SignedStatement, raw)
    said: Statement = decode_struct(Statement, signed.statement)
    own = said.kind in _OWN_WORDS
    if own == bool(said.accuser) or len(said.accuser) not in (0, 32):
        raise MalformedMessage(f"a {said.kind} rumour with an accuser of {len(said.accuser)} bytes")
    if (said.kind is MemberState.ALIVE) != bool(said.body):
        raise MalformedMessage(f"a {said.kind} rumour with a body of {len(said.body)} bytes")
    return Rumour(
        kind=said.kind,
        subject=NodeId(said.subject),
        incarnation=said.incarnation,
        author=NodeId(said.subject if own else said.accuser),
        meta=decode_meta(said.body) if said.body else None,
        statement=signed.statement,
        signature=signed.signature,
        raw=raw,
    )
