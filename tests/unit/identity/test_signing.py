"""Envelopes: each guard of `verify_envelope`, and that no signature serves twice."""

from __future__ import annotations

import pytest

from swarmd.base.errors import BadSignature
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.wire.envelope import Envelope

A = SigningKey.from_seed(b"a" * 32)
B = SigningKey.from_seed(b"b" * 32)
KEYS: dict[bytes, bytes] = {A.key_id: A.public, B.key_id: B.public}
SWARM = b"s" * 32


def test_signers_are_named_in_order() -> None:
    envelope = sign_envelope("test", SWARM, b"payload", B, A)
    assert verify_envelope(envelope, SWARM, KEYS) == [B.key_id, A.key_id]


def test_a_signature_is_worth_nothing_in_another_domain_swarm_or_payload() -> None:
    envelope = sign_envelope("test", SWARM, b"payload", A)
    moved = Envelope("other", envelope.payload, envelope.signatures)
    altered = Envelope("test", b"payloae", envelope.signatures)
    for forged, swarm in [(moved, SWARM), (envelope, b"t" * 32), (altered, SWARM)]:
        with pytest.raises(BadSignature, match="does not match"):
            verify_envelope(forged, swarm, KEYS)


def test_none_unknown_repeated_and_partly_bad_signatures_are_refused() -> None:
    envelope = sign_envelope("test", SWARM, b"payload", A)
    none = Envelope("test", b"payload", ())
    with pytest.raises(BadSignature, match="without a signature"):
        verify_envelope(none, SWARM, KEYS)
    with pytest.raises(BadSignature, match="not accepted"):
        verify_envelope(envelope, SWARM, {B.key_id: B.public})
    twice = Envelope("test", b"payload", envelope.signatures * 2)
    with pytest.raises(BadSignature, match="twice"):
        verify_envelope(twice, SWARM, KEYS)
    noise = Envelope("test", b"payload", (*envelope.signatures, (bytes(B.key_id), b"x" * 64)))
    with pytest.raises(BadSignature, match="does not match"):
        verify_envelope(noise, SWARM, KEYS)


def test_an_impossible_domain_is_refused() -> None:
    signatures = sign_envelope("test", SWARM, b"", A).signatures
    for domain in ("é", "x" * 256):
        with pytest.raises(BadSignature, match="domain"):
            verify_envelope(Envelope(domain, b"", signatures), SWARM, KEYS)
