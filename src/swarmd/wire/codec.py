"""Typed messages to bytes and back, with every bound checked before decoding.

A *family* is the set of messages that one protocol speaks. Its messages are frozen msgspec
structs with integer tags, encoded as msgpack arrays; the first byte of every encoding is the
family's format number. Decoding survives any bytes: whatever is wrong comes out as
`MalformedMessage`, and nothing is ever unpickled or evaluated.

How a family grows, so that builds whose versions differ by one understand each other:
- A *field* is added at the end of a `Growing` message or struct, with a default. An older build
  ignores it; a newer one takes the default for what an older one does not send. The family's
  bound holds for the whole message, ignored fields included. What is signed is passed on as the
  bytes that came, so that a field which a relay does not know survives it, under its signature.
- A *message* or another meaning needs a new protocol version (`wire.version`), and is sent only
  to peers that speak that version.
- A field is never removed, moved or given another type: that is another format number.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgpack
import msgspec

from swarmd.base.errors import CorruptFile, MalformedMessage, TooLarge
from swarmd.base.limits import MESSAGE_BYTES_MAX

# What a byte string of up to 64 KiB costs beside its bytes, at most (msgpack, bin 16).
BYTES_HEAD_MAX: Final = 3


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every wire message. Subclass with `tag=<int>`, unique within the family."""


class Growing(Message, frozen=True, array_like=True, forbid_unknown_fields=False):
    """Base of messages to which later versions may add fields; see the rules above."""


class Family:
    """One protocol's messages and their codec.

    Args:
        name: short and unique; names the family on streams and in metrics.
        types: the message classes. Their integer tags tell them apart.
        format_number: layout version, the first byte of every encoding.
        alpn: the stream plane that the family travels on.
        message_bytes_max: larger encodings are refused on both sides.
    """

    def __init__(
        self,
        name: str,
        *types: type[Message],
        format_number: int = 1,
        alpn: str = "swarmd/1",
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self.name = name
        self.types = types
        self.alpn = alpn
        self.format_number = format_number
        self._prefix = bytes([format_number])
        self._bytes_max = message_bytes_max
        union: Any = types[0]
        for extra in types[1:]:
            union = union | extra
        self._decoder = msgspec.msgpack.Decoder(union)
        self._encoder = msgspec.msgpack.Encoder()

    def __repr__(self) -> str:
        return f"Family({self.name!r})"

    def encode(self, message: Message) -> bytes:
        """The message's bytes. Raises TooLarge when they exceed the family's bound."""
        raw = self._prefix + self._encoder.encode(message)
        if len(raw) > self._bytes_max:
            raise TooLarge(
                f"{type(message).__name__} has {len(raw)} bytes; at most {self._bytes_max} fit"
            )
        return raw

    def decode(self, raw: bytes) -> Any:
        """The message in `raw`, one of `types`.

        Raises:
            MalformedMessage: anything is wrong with `raw`. A decoder keeps no state between
                two calls, so hostile input leaves nothing behind.
        """
        if len(raw) > self._bytes_max:
            raise MalformedMessage(f"{self.name}: {len(raw)} bytes exceed {self._bytes_max}")
        if raw[:1] != self._prefix:
            raise MalformedMessage(f"{self.name}: format {raw[:1].hex() or 'missing'} unknown")
        return _decode(self._decoder, memoryview(raw)[1:])


@functools.lru_cache(maxsize=256)
def _decoder_of(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    # Building a decoder costs ten times as much as using it.
    return msgspec.msgpack.Decoder(kind)


def decode_struct(kind: Any, raw: bytes | memoryview) -> Any:
    """Decode msgpack `raw` into `kind`; whatever is wrong with it raises MalformedMessage."""
    return _decode(_decoder_of(kind), raw)


def decode_stored(kind: Any, raw: bytes, what: str) -> Any:
    """Decode what the store holds into `kind`.

    Raises:
        CorruptFile: it holds what this version cannot read; `what` it should be is named.
    """
    try:
        return decode_struct(kind, raw)
    except MalformedMessage as error:
        raise CorruptFile(f"{what} of the store is unreadable: {error}") from error


def _decode(decoder: msgspec.msgpack.Decoder[Any], raw: bytes | memoryview) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise MalformedMessage(f"undecodable: {error}") from error


def encode_struct(value: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(value)


def pack(value: Any) -> bytes:
    """A payload (what agents take and give) as msgpack.

    Raises:
        MalformedMessage: the value holds something msgpack cannot carry.
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedMessage(f"cannot be sent as msgpack: {error}") from error
    return packed


def unpack(raw: bytes) -> Any:
    """The payload in `raw`. Raises MalformedMessage for anything that is not one msgpack value."""
    try:
        return msgpack.unpackb(raw, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"not a msgpack payload: {error}") from error
