"""Envelopes: bytes that carry their signatures with them.

An envelope is `[domain, payload, [[key_id, signature], ...]]`. A signature covers
`"swarmd\\0v1\\0" || domain || swarm_id || length || payload`, so one made for a domain or a
swarm is worth nothing in another. The payload stays the bytes that were signed: it is
verified as received and never encoded again. Making and checking signatures is `identity`'s.
"""

from __future__ import annotations

from typing import Final

import msgspec

from swarmd.base.errors import MalformedMessage
from swarmd.base.limits import MESSAGE_BYTES_MAX
from swarmd.wire.codec import decode_struct

_PREFIX: Final = b"swarmd\0v1\0"
SIGNATURES_MAX: Final = 16


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`signatures` is a tuple of (key id, signature): key id = BLAKE2b-256 of the public key."""

    domain: str
    payload: bytes
    signatures: tuple[tuple[bytes, bytes], ...]


def signing_bytes(domain: str, swarm_id: bytes, payload: bytes) -> bytes:
    """What a signature covers. `domain` is short ASCII, one per message family."""
    raw_domain = domain.encode("ascii")
    return b"".join(
        (
            _PREFIX,
            len(raw_domain).to_bytes(1, "big"),
            raw_domain,
            len(swarm_id).to_bytes(1, "big"),
            swarm_id,
            len(payload).to_bytes(8, "big"),
            payload,
        )
    )


def encode_envelope(envelope: Envelope) -> bytes:
    return msgspec.msgpack.encode(envelope)


def decode_envelope(raw: bytes, *, domain: str) -> Envelope:
    """The envelope in `raw`, whose domain must be `domain`. Signatures are not checked here.

    Raises:
        MalformedMessage: not an envelope, of another domain, or over a bound.
    """
    if len(raw) > MESSAGE_BYTES_MAX:
        raise MalformedMessage(f"an envelope of {len(raw)} bytes is too large")
    envelope: Envelope = decode_struct(Envelope, raw)
    if envelope.domain != domain:
        raise MalformedMessage(f"an envelope of domain {envelope.domain!r}, not {domain!r}")
    if len(envelope.signatures) > SIGNATURES_MAX:
        raise MalformedMessage(f"an envelope with {len(envelope.signatures)} signatures")
    return envelope
