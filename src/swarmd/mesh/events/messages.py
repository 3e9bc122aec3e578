"""What members say of user events: the event, under its sender's signature, and push-pull.

An event is verified and passed on exactly as it came, as a rumour is (`mesh.swim.messages`): who
passes one on can neither alter it nor put it in another's mouth. Its sender may add fields at the
end of `Said` in a later version; an older build ignores them and passes them on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from swarmd.base.errors import BadRequest, MalformedMessage, TooLarge
from swarmd.base.ids import NodeId, digest
from swarmd.base.limits import (
    EVENT_PAYLOAD_BYTES_MAX,
    EVENTS_KEPT_BYTES_MAX,
    EVENTS_KEPT_MAX,
    NAME_BYTES_MAX,
)
from swarmd.base.names import check_name
from swarmd.wire.codec import BYTES_HEAD_MAX, decode_struct, encode_struct

TIME_MAX: Final = 2**62
SIGNATURE_BYTES: Final = 64
SUM_BYTES: Final = 8
DIGEST_BYTES: Final = 16
# Time, origin, name, payload and wall time with the heads of each, and room for what may be added.
SAID_BYTES_MAX: Final = 1 + 9 + 34 + (NAME_BYTES_MAX + 2) + (EVENT_PAYLOAD_BYTES_MAX + 3) + 9 + 40
EVENT_BYTES_MAX: Final = SAID_BYTES_MAX + SIGNATURE_BYTES + 8
TOLD_BYTES_MAX: Final = EVENTS_KEPT_BYTES_MAX + BYTES_HEAD_MAX * EVENTS_KEPT_MAX + 64

# Where an event stands among all: its Lamport time, and a digest of what was signed. Of two at one
# time the order says nothing; it is the same everywhere.
Key = tuple[int, bytes]

Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX)]
_Id = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Raw = Annotated[bytes, msgspec.Meta(max_length=EVENT_BYTES_MAX)]


class Said(msgspec.Struct, frozen=True, array_like=True):
    """What the sender signs. `wall_ms` is its clock, for people alone: nothing is decided by it."""

    time: Annotated[int, msgspec.Meta(ge=1, le=TIME_MAX)]
    origin: _Id
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
    payload: Annotated[str, msgspec.Meta(max_length=EVENT_PAYLOAD_BYTES_MAX)]
    wall_ms: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class SignedEvent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How an event travels. No later fields: what is outside of the signature is nobody's."""

    said: Annotated[bytes, msgspec.Meta(max_length=SAID_BYTES_MAX)]
    signature: Annotated[
        bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)
    ]


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What goes along with push-pull.

    `time` is the sender's Lamport clock; `placed`: it knows the swarm's; `sum` sums up the events
    that it holds. Only an answer has `events`, and only if the two sums differ: an idle swarm
    exchanges a few bytes.
    """

    time: Time
    placed: bool
    sum: Annotated[bytes, msgspec.Meta(max_length=SUM_BYTES)]
    events: Annotated[list[_Raw], msgspec.Meta(max_length=EVENTS_KEPT_MAX)] = []


@dataclass(frozen=True, slots=True)
class UserEvent:
    """An event, and the very bytes it came in; not yet verified."""

    time: int
    origin: NodeId
    name: str
    payload: str
    wall_ms: int
    said: bytes
    signature: bytes
    raw: bytes
    key: Key


def check_event(name: str, payload: str) -> None:
    """Refuse what is no event.

    Raises:
        BadRequest: the name has a form that is not allowed (`check_name`), or the payload is no
            Unicode text.
        TooLarge: the payload exceeds EVENT_PAYLOAD_BYTES_MAX.
    """
    check_name(name, "user event")
    undone = "nothing was sent; send a name or the address of something"
    check_payload(payload, "an event", undone)


def check_payload(payload: str, what: str, undone: str) -> None:
    """Refuse what is no payload of an event, or of a question to all members.

    Args:
        what, undone: what it was to go along with, and what did not happen, for the error.

    Raises:
        BadRequest, TooLarge: see `check_event`.
    """
    try:
        size = len(payload.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"the payload of {what} is valid Unicode text: {undone}") from error
    if size > EVENT_PAYLOAD_BYTES_MAX:
        raise TooLarge(
            f"the payload has {size} bytes, and that of {what} has at most "
            f"{EVENT_PAYLOAD_BYTES_MAX}: {undone}"
        )


def encode_said(time: int, origin: NodeId, name: str, payload: str, wall_ms: int) -> bytes:
    """The bytes that `origin` signs."""
    return encode_struct(Said(time, origin, name, payload, wall_ms))


def make_event(said: bytes, signature: bytes) -> UserEvent:
    return decode_event(encode_struct(SignedEvent(said, signature)))


def decode_event(raw: bytes) -> UserEvent:
    """The event in `raw`; its signature is not looked at.

    Raises:
        MalformedMessage: not an event, or one that no honest sender makes.
    """
    if len(raw) > EVENT_BYTES_MAX:
        raise MalformedMessage(f"an event of {len(raw)} bytes is too large")
    signed: SignedEvent = decode_struct(SignedEvent, raw)
    said: Said = decode_struct(Said, signed.said)
    try:
        check_event(said.name, said.payload)
    except BadRequest as error:
        raise MalformedMessage(error.message) from error
    return UserEvent(
        time=said.time,
        origin=NodeId(said.origin),
        name=said.name,
        payload=said.payload,
        wall_ms=said.wall_ms,
        said=signed.said,
        signature=signed.signature,
        raw=raw,
        key=(said.time, digest(signed.said)[:DIGEST_BYTES]),
    )


def decode_told(raw: bytes) -> Told:
    """Raises MalformedMessage."""
    told: Told = decode_struct(Told, raw)
    return told
