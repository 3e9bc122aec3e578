"""Sessions: a caller's right to ask, as a JSON Web Token (RFC 7519) of 15 minutes at most.

The node that knows the caller signs with its own key, and every member verifies with the key
that it was admitted by, so there is no secret to share and none to rotate. Ed25519 alone is
taken (RFC 9864): what a token says of its own algorithm chooses nothing. What is signed begins
with the text of a header, `eyJ`, which no envelope, certificate or handshake does, so that no
other signature of a node can be passed off as one of these.

A session of an API key names that key and no rules: it allows what the key does at the time of
asking, and ends with it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from msgspec import Meta

from swarmd.base.errors import BadRequest, Unauthenticated
from swarmd.base.ids import NodeId, from_text, to_text
from swarmd.identity.keys import SigningKey

SESSION_S_MAX: Final = 900
SESSION_CHARS_MAX: Final = 8_192
# How far the signer's clock may be ahead of ours; a session is never longer for it.
LEEWAY_S: Final = 30
_ALGORITHMS: Final = ["Ed25519"]
_KIND: Final = "JWT"


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The claims. `iss` is the node that signed, `aud` the swarm; times are Unix seconds."""

    iss: str
    aud: str
    sub: Annotated[str, Meta(min_length=1, max_length=128)]
    iat: int
    exp: int
    key: Annotated[str, Meta(max_length=64)] = ""
    rules: Annotated[tuple[Annotated[str, Meta(max_length=512)], ...], Meta(max_length=128)] = ()


def issue_session(key: SigningKey, session: Session) -> str:
    """The token's text. `session.iss` must be the id of `key`."""
    assert session.iss == to_text(key.key_id), "a node signs for itself"
    assert 0 < session.exp - session.iat <= SESSION_S_MAX
    header = {"alg": _ALGORITHMS[0], "typ": _KIND, "kid": session.iss}
    claims = msgspec.to_builtins(session)
    signer = OKPKey.import_key(key.private_pem())
    return jwt.encode(header, claims, signer, algorithms=_ALGORITHMS)


def read_session(
    text: str, swarm_id: bytes, public_of: Callable[[NodeId], bytes | None], now_s: float
) -> Session:
    """The claims of a token that holds now.

    Args:
        public_of: the key of a node that may sign sessions; None for any other.
        now_s: Unix time.

    Raises:
        Unauthenticated: it is none, not signed by such a node, for another swarm, or over.
    """
    if len(text) > SESSION_CHARS_MAX:
        raise _refused("it is too long")
    signers: list[NodeId] = []

    def key_of(signed: Any) -> OKPKey:
        header = signed.headers()
        if header.get("typ") != _KIND or set(header) - {"alg", "typ", "kid"}:
            raise _refused("its header is not one of ours")
        signer = _node_id(header.get("kid"))
        public = public_of(signer)
        if public is None:
            raise _refused("the node that signed it is no member that may")
        signers.append(signer)
        return _public_key(public)

    try:
        claims = jwt.decode(text, key_of, algorithms=_ALGORITHMS).claims
        session = msgspec.convert(claims, Session)
    except (JoseError, msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise _refused("it is none, or its signature does not match") from error
    if session.iss != to_text(signers[0]) or session.aud != to_text(swarm_id):
        raise _refused("it is for another swarm, or another node signed it")
    if not 0 < session.exp - session.iat <= SESSION_S_MAX:
        raise _refused(f"it holds for longer than {SESSION_S_MAX} s")
    if session.iat > now_s + LEEWAY_S:
        raise _refused("it is of the future: compare the clocks, with `swarmctl doctor`")
    if session.exp <= now_s:
        raise _refused("it is over: ask for another one, with `swarmctl key session`")
    return session


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"the session was refused: {why}")


def _node_id(text: Any) -> NodeId:
    if not isinstance(text, str) or len(text) > SESSION_CHARS_MAX:
        raise _refused("its header names no node")
    try:
        return NodeId(from_text(text))
    except BadRequest as error:
        raise _refused("its header names no node") from error


def _public_key(public: bytes) -> OKPKey:
    x = base64.urlsafe_b64encode(public).decode("ascii").rstrip("=")
    return OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x})
