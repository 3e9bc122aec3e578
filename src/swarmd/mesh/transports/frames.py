"""One frame of a stream: a counter, a tag, a batch of items.

The tag is that of ChaCha20-Poly1305 (RFC 8439) under the session key of this direction, with the
counter as its nonce, the batch as associated data and nothing to encrypt: what is in a frame was
sent by the peer that signed the hello, in this session, in this place. The counter is the
receiver's own count, so that a frame that is lost, repeated or overtakes ends the session instead
of passing unnoticed. It takes an eighth of the time of a keyed BLAKE2b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from swarmd.base.errors import BadSignature, MalformedMessage
from swarmd.base.limits import FRAME_BYTES_MAX, FRAME_MESSAGES_MAX
from swarmd.identity.keys import TAG_BYTES, Aead
from swarmd.mesh.transports.mux import Item
from swarmd.wire.codec import decode_struct

_COUNTER_BYTES: Final = 8
_HEADER_BYTES: Final = _COUNTER_BYTES + TAG_BYTES
_BATCH: Final[Any] = list[Item]


class FrameSealer:
    """Makes one direction's frames."""

    def __init__(self, key: bytes) -> None:
        self._aead = Aead(key)
        self._counter = 0
        self._encoder = msgspec.msgpack.Encoder()

    def seal(self, items: Sequence[Item]) -> bytes:
        """The next frame."""
        assert 0 < len(items) <= FRAME_MESSAGES_MAX
        batch = self._encoder.encode(items)
        tag = self._aead.seal(self._counter, b"", batch)
        counter = self._counter.to_bytes(_COUNTER_BYTES, "big")
        self._counter += 1
        return b"".join((counter, tag, batch))


class FrameOpener:
    """Checks and reads one direction's frames."""

    def __init__(self, key: bytes) -> None:
        self._aead = Aead(key)
        self._counter = 0

    def open(self, raw: bytes) -> list[Item]:
        """The items of the next frame.

        Raises:
            MalformedMessage: too long, too short, or not a batch of items.
            BadSignature: not the next frame of this session.
        """
        if not _HEADER_BYTES < len(raw) <= FRAME_BYTES_MAX:
            raise MalformedMessage(f"a frame of {len(raw)} bytes")
        if raw[:_COUNTER_BYTES] != self._counter.to_bytes(_COUNTER_BYTES, "big"):
            raise BadSignature("a frame that is not the next of its session")
        batch = memoryview(raw)[_HEADER_BYTES:]
        self._aead.open(self._counter, raw[_COUNTER_BYTES:_HEADER_BYTES], batch)
        self._counter += 1
        items: list[Item] = decode_struct(_BATCH, batch)
        if len(items) > FRAME_MESSAGES_MAX:
            raise MalformedMessage(f"a frame of {len(items)} messages")
        return items
