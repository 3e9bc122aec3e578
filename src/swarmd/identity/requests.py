"""The request of a node that has no token: its own word that it wants to be let in.

It is made once and says the same wherever it is shown: this key, under this name, at the swarm
behind this door. An admin who approves signs the request as it is (`entries.Approve`), so that
nobody is admitted in a name, or into a swarm, that its own key did not ask for. Two who show one
request are one node. As an evicted id is never used again, a request serves once.
"""

from __future__ import annotations

from typing import Final

from swarmd.base.errors import BadSignature, MalformedMessage
from swarmd.base.ids import node_id_of
from swarmd.base.limits import KIB, NAME_BYTES_MAX
from swarmd.base.names import check_name
from swarmd.identity.keys import (
    CERTIFICATE_BYTES_MAX,
    KEY_BYTES,
    SigningKey,
    is_certificate_of,
)
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.wire.codec import Family, Message
from swarmd.wire.envelope import decode_envelope, encode_envelope

REQUEST_DOMAIN: Final = "join-request"
JOIN_REQUEST_BYTES_MAX: Final = 2 * KIB
assert CERTIFICATE_BYTES_MAX + NAME_BYTES_MAX + 256 <= JOIN_REQUEST_BYTES_MAX


class JoinRequest(Message, frozen=True, tag=1):
    public: bytes
    name: str
    certificate_der: bytes


REQUESTS: Final = Family("join-request", JoinRequest, message_bytes_max=JOIN_REQUEST_BYTES_MAX)


def sign_request(door: bytes, key: SigningKey, name: str) -> bytes:
    """The request of the node with this key, for the swarm behind `door`.

    Raises:
        BadRequest: `name` is not a node name.
    """
    check_name(name, "node")
    request = JoinRequest(key.public, name, key.certificate)
    return encode_envelope(sign_envelope(REQUEST_DOMAIN, door, REQUESTS.encode(request), key))


def open_request(raw: bytes, door: bytes) -> JoinRequest:
    """The request in `raw`, which its own key signed for the swarm behind `door`.

    Raises:
        MalformedMessage: the bytes are no request.
        BadSignature: signed by another key, for another swarm, or with a certificate that is
            not that of the key.
        BadRequest: the name is not a node name.
    """
    if len(raw) > JOIN_REQUEST_BYTES_MAX:
        raise MalformedMessage(f"a request to join of {len(raw)} bytes is too large")
    envelope = decode_envelope(raw, domain=REQUEST_DOMAIN)
    request: JoinRequest = REQUESTS.decode(envelope.payload)
    if len(request.public) != KEY_BYTES:
        raise MalformedMessage("a request to join with a key of the wrong length")
    check_name(request.name, "node")
    verify_envelope(envelope, door, {bytes(node_id_of(request.public)): request.public})
    if not is_certificate_of(request.public, request.certificate_der):
        raise BadSignature("the certificate is not the one that the node's key makes")
    return request
