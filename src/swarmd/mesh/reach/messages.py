"""What nodes ask each other to find out what gets through between them.

A `Question` goes over a stream, if need be over a third member's: it has its receiver report what
came of the asker's probes, send two small ones, and call back over TCP. A `Probe` is a datagram; an
`Echo` is as long as the probe that it answers, so that nothing is amplified.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from swarmd.base.ids import ID_BYTES
from swarmd.base.limits import DATAGRAM_BYTES_MAX
from swarmd.wire.codec import Family, Message

NONCE_BYTES: Final = 8
COUNTS_MAX: Final = 64
# What a datagram of full size carries, beside what a session adds.
FULL_BYTES: Final = DATAGRAM_BYTES_MAX - 33
_SHORT_PADDING_MAX: Final = 255
# How a call over TCP ended: it got through; nobody listens there; nothing came back; something
# answered, and then nothing came back; another node answered; nobody knows where to call.
Outcome = Literal["ok", "refused", "silent", "stalled", "other", "nowhere"]

_Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_Id = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Count = Annotated[int, Meta(ge=0, le=COUNTS_MAX)]
_Padding = Annotated[bytes, Meta(max_length=FULL_BYTES)]


class Probe(Message, frozen=True, tag=1):
    """One datagram of a trial; `echo` has it come back."""

    nonce: _Nonce
    echo: bool
    padding: _Padding


class Echo(Message, frozen=True, tag=2):
    nonce: _Nonce
    padding: _Padding


class Question(Message, frozen=True, tag=1):
    """`asker` tries to reach `target` with probes of this nonce: what comes of it there?

    Whoever is not the target passes it on, once, if it comes from the asker itself.
    """

    nonce: _Nonce
    asker: _Id
    target: _Id


class Answer(Message, frozen=True, tag=2):
    """Of the target: how many of the asker's probes came, and how the call back ended."""

    small: _Count
    full: _Count
    tcp: Outcome


PROBES: Final = Family("reach-probe", Probe, Echo, message_bytes_max=FULL_BYTES)
REACH: Final = Family("reach", Question, Answer)


def padded(message: Probe | Echo, size: int) -> bytes:
    """The message as `size` bytes, or one less where its length cannot be told so."""
    missing = max(0, size - len(PROBES.encode(message)))
    if missing > _SHORT_PADDING_MAX:
        missing = max(_SHORT_PADDING_MAX, missing - 1)  # Its length takes one byte more.
    return PROBES.encode(_with(message, bytes(missing)))


def _with(message: Probe | Echo, padding: bytes) -> Probe | Echo:
    if isinstance(message, Probe):
        return Probe(message.nonce, message.echo, padding)
    return Echo(message.nonce, padding)
