"""The hello that opens a stream, inside TLS and before any frame.

TLS has proven that the peer holds its certificate's key. The signed hello binds that key, the
other side's key, the plane and a pair of ephemeral keys into one session, whose frames are
then tagged (`frames`). It comes before a WebSocket's upgrade for two reasons: a refusal arrives as
an answer and not as silence, and no HTTP parser ever sees a stranger's bytes.

Hellos are numbered by their sender, within a boot: a hello older than what its sender has
since accepted is stale, whichever way the network delivered it (see `streams`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from swarmd.base.errors import BadSignature, MalformedMessage, RemoteError
from swarmd.base.ids import NodeId, node_id_of
from swarmd.identity.keys import Exchange, SigningKey
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.mesh.transports.frames import FrameOpener, FrameSealer
from swarmd.wire.codec import Family, Message
from swarmd.wire.envelope import decode_envelope, encode_envelope

_DOMAIN: Final = "stream-hello"
_LENGTH_BYTES: Final = 2
HELLO_BYTES_MAX: Final = 2_048


class Hello(Message, frozen=True, tag=1):
    """Sent by both sides; the answer's `answering` is the opener's ephemeral key.

    `version` is the protocol version that the sender speaks.
    """

    version: int
    receiver: bytes
    alpn: str
    exchange: bytes
    boot: bytes
    number: int
    port: int
    answering: bytes = b""


class Refusal(Message, frozen=True, tag=2):
    """Instead of an answer.

    `code`: `duplicate` (mine is on its way to you), `leaving`, `outdated` (you speak too low a
    version), `busy` (you have as many pipes here as may be).
    """

    code: str


# Format 5: the hello says its version. Format 3: entries of the strong store carry their checksums.
# Format 2: frames that follow are tagged as `frames` says; format 1 tagged them by BLAKE2b.
HELLO: Final = Family("hello", Hello, message_bytes_max=HELLO_BYTES_MAX, format_number=5)
REFUSAL: Final = Family("refusal", Refusal, message_bytes_max=HELLO_BYTES_MAX)
_SIGNED: Final = b"\x01"
_REFUSED: Final = b"\x02"


class Refused(RemoteError):
    """The peer answered the hello with a refusal; `message` is its code."""

    code = "stream_refused"


@dataclass(frozen=True, slots=True)
class Session:
    """What two hellos made."""

    sealer: FrameSealer
    opener: FrameOpener


def make_session(exchange: Exchange, peer_exchange: bytes, alpn: str, *, opener: bool) -> Session:
    """The session's two directions. Raises BadSignature if the peer's key is unusable."""
    forth = exchange.shared(peer_exchange, b"stream forth " + alpn.encode())
    back = exchange.shared(peer_exchange, b"stream back " + alpn.encode())
    mine, theirs = (forth, back) if opener else (back, forth)
    return Session(FrameSealer(mine), FrameOpener(theirs))


def sign_hello(hello: Hello, swarm_id: bytes, key: SigningKey) -> bytes:
    envelope = sign_envelope(_DOMAIN, swarm_id, HELLO.encode(hello), key)
    return _SIGNED + encode_envelope(envelope)


def refusal(code: str) -> bytes:
    return _REFUSED + REFUSAL.encode(Refusal(code))


def read_hello(raw: bytes, swarm_id: bytes, *, peer_public: bytes, me: NodeId, alpn: str) -> Hello:
    """The hello in `raw`, which must be the peer's, to me, for this plane.

    Raises:
        Refused: the peer refused, and said why.
        MalformedMessage, BadSignature: it is not that.
    """
    if raw[:1] == _REFUSED:
        raise Refused(REFUSAL.decode(raw[1:]).code[:32])
    if raw[:1] != _SIGNED:
        raise MalformedMessage("neither a hello nor a refusal")
    envelope = decode_envelope(raw[1:], domain=_DOMAIN)
    verify_envelope(envelope, swarm_id, {bytes(node_id_of(peer_public)): peer_public})
    hello: Hello = HELLO.decode(envelope.payload)
    if hello.receiver != me or hello.alpn != alpn:
        raise BadSignature("a hello that is meant for somebody else")
    return hello


async def send_part(
    stream: trio.abc.SendStream, raw: bytes, *, bytes_max: int = HELLO_BYTES_MAX
) -> None:
    """Write one length-prefixed part. Raises what the stream raises."""
    assert len(raw) <= bytes_max
    await stream.send_all(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw)


async def receive_part(
    stream: trio.abc.ReceiveStream, *, bytes_max: int = HELLO_BYTES_MAX
) -> bytes:
    """Read one length-prefixed part.

    Raises:
        MalformedMessage: too long.
        trio.BrokenResourceError: the stream ended or broke.
    """
    length = int.from_bytes(await _receive_exactly(stream, _LENGTH_BYTES), "big")
    if length > bytes_max:
        raise MalformedMessage(f"a part of {length} bytes")
    return await _receive_exactly(stream, length)


async def _receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = await stream.receive_some(count - len(parts))
        if not part:
            raise trio.BrokenResourceError("the stream ended within a hello")
        parts += part
    return bytes(parts)
