"""Making and checking the signatures of an envelope.

A verifier passes the keys it would accept. Every signature on the envelope must be valid and
by one of them, once: an envelope with one bad signature is refused whole, so that nobody can
hang noise on another's message and have it relayed.
"""

from __future__ import annotations

from collections.abc import Mapping

from swarmd.base.errors import BadSignature
from swarmd.base.ids import NodeId, short
from swarmd.identity.keys import SigningKey, verify
from swarmd.wire.envelope import SIGNATURES_MAX, Envelope, signing_bytes


def sign_envelope(domain: str, swarm_id: bytes, payload: bytes, *keys: SigningKey) -> Envelope:
    """An envelope over `payload`, signed by each of `keys` in their order."""
    assert 0 < len(keys) <= SIGNATURES_MAX, "an envelope has 1 to 16 signers"
    covered = signing_bytes(domain, swarm_id, payload)
    return Envelope(
        domain=domain,
        payload=payload,
        signatures=tuple((bytes(key.key_id), key.sign(covered)) for key in keys),
    )


def verify_envelope(
    envelope: Envelope, swarm_id: bytes, keys: Mapping[bytes, bytes]
) -> list[NodeId]:
    """The key ids that signed, in the envelope's order.

    Args:
        keys: public key by key id, of those whose signature would be accepted.

    Raises:
        BadSignature: there is no signature, or one is invalid, repeated or by another key.
    """
    if not envelope.signatures:
        raise BadSignature("an envelope without a signature")
    try:
        covered = signing_bytes(envelope.domain, swarm_id, envelope.payload)
    except (UnicodeEncodeError, OverflowError) as error:
        raise BadSignature("an envelope with an impossible domain") from error
    signers: list[NodeId] = []
    for key_id, signature in envelope.signatures:
        public = keys.get(key_id)
        if public is None:
            raise BadSignature(f"signed by {short(key_id)}, a key not accepted for this")
        if key_id in signers:
            raise BadSignature(f"signed twice by {short(key_id)}")
        if not verify(public, signature, covered):
            raise BadSignature(f"the signature of {short(key_id)} does not match")
        signers.append(NodeId(key_id))
    return signers
