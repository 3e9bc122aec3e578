"""Sessions: what holds, for how long, and everything that must not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import Unauthenticated
from swarmd.base.ids import NodeId, digest, to_text
from swarmd.identity.keys import SigningKey
from swarmd.identity.sessions import LEEWAY_S, Session, issue_session, read_session

SWARM = digest(b"swarm")
NODE = SigningKey.from_seed(b"n" * 32)
STRANGER = SigningKey.from_seed(b"s" * 32)
NOW = 1_800_000_000
SESSION = Session(to_text(NODE.key_id), to_text(SWARM), "key ci", NOW, NOW + 900, "abc", ())


def public_of(node_id: NodeId) -> bytes | None:
    return NODE.public if node_id == NODE.key_id else None


def read(text: str, now_s: float = NOW, swarm: bytes = SWARM) -> Session:
    return read_session(text, swarm, public_of, now_s)


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def forge(header: Any, claims: Any, key: SigningKey = NODE) -> str:
    """A token made by hand, whatever it says, signed by `key`."""
    covered = f"{part(header)}.{part(claims)}"
    return f"{covered}.{part(key.sign(covered.encode()))}"


HEADER = {"alg": "Ed25519", "typ": "JWT", "kid": to_text(NODE.key_id)}
CLAIMS = {
    "iss": to_text(NODE.key_id),
    "aud": to_text(SWARM),
    "sub": "me",
    "iat": NOW,
    "exp": NOW + 60,
    "key": "",
    "rules": ["task:read"],
}


def test_what_was_issued_is_read() -> None:
    assert read(issue_session(NODE, SESSION)) == SESSION
    assert read(forge(HEADER, CLAIMS)).rules == ("task:read",)


def test_it_ends_to_the_second() -> None:
    text = issue_session(NODE, SESSION)
    assert read(text, NOW + 899.9) == SESSION
    with pytest.raises(Unauthenticated, match="it is over"):
        read(text, NOW + 900)
    assert read(text, NOW - LEEWAY_S) == SESSION
    with pytest.raises(Unauthenticated, match="of the future"):
        read(text, NOW - LEEWAY_S - 1)


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"alg": "none"}, {}),
        ({"alg": "None"}, {}),
        ({"alg": "EdDSA"}, {}),
        ({"alg": "HS256"}, {}),
        ({"alg": "ES256"}, {}),
        ({"alg": ["Ed25519"]}, {}),
        ({"alg": None}, {}),
        ({"typ": "JOSE"}, {}),
        ({"typ": None}, {}),
        ({"kid": None}, {}),
        ({"kid": 7}, {}),
        ({"kid": "!"}, {}),
        ({"kid": to_text(STRANGER.key_id)}, {}),
        ({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": part(NODE.public)}}, {}),
        ({"jku": "https://evil/keys"}, {}),
        ({"x5c": ["AA=="]}, {}),
        ({"crit": ["exp"]}, {}),
        ({"b64": False, "crit": ["b64"]}, {}),
        ({}, {"aud": to_text(digest(b"other"))}),
        ({}, {"aud": [to_text(SWARM), "other"]}),
        ({}, {"aud": None}),
        ({}, {"iss": to_text(STRANGER.key_id)}),
        ({}, {"sub": ""}),
        ({}, {"sub": 7}),
        ({}, {"exp": NOW + 901}),
        ({}, {"exp": NOW}),
        ({}, {"exp": str(NOW + 60)}),
        ({}, {"exp": 1e400}),
        ({}, {"exp": 10**400}),
        ({}, {"iat": NOW + 60, "exp": NOW + 120}),
        ({}, {"rules": "*"}),
        ({}, {"rules": ["x"] * 129}),
        ({}, {"admin": True}),
    ],
)
def test_what_is_no_session_of_ours(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Signed by the right key all the same: each is refused for what it says."""
    with pytest.raises(Unauthenticated, match="the session was refused"):
        read(forge({**HEADER, **header}, {**CLAIMS, **claims}))


def test_the_public_key_is_no_secret_to_sign_with() -> None:
    """HS256 with the public key as the secret, in each form that an implementation may load."""
    covered = f"{part({**HEADER, 'alg': 'HS256'})}.{part(CLAIMS)}"
    pem = NODE.certificate
    for secret in (NODE.public, part(NODE.public).encode(), NODE.public.hex().encode(), pem):
        signature = hmac.new(secret, covered.encode(), hashlib.sha256).digest()
        with pytest.raises(Unauthenticated):
            read(f"{covered}.{part(signature)}")


def test_another_key_and_another_swarm() -> None:
    text = issue_session(NODE, SESSION)
    with pytest.raises(Unauthenticated):
        read(forge(HEADER, CLAIMS, STRANGER))
    with pytest.raises(Unauthenticated, match="another swarm"):
        read(text, swarm=digest(b"other"))
    header, claims, signature = text.split(".")
    for wrong in (
        f"{header}.{claims}.",
        f"{header}.{claims}",
        f"{header}..{signature}",
        f"{header}.{part(CLAIMS)}.{signature}",
        f"{part({**HEADER, 'a': 1})}.{claims}.{signature}",
        f"{text}.{signature}",
        f"{header}.{claims}.{signature[:-4]}AAAA",
    ):
        with pytest.raises(Unauthenticated):
            read(wrong)


@given(st.text(max_size=300))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated):
        read(text)


@given(st.binary(max_size=120), st.binary(max_size=120))
def test_any_bytes_under_a_good_signature_are_refused(header: bytes, claims: bytes) -> None:
    with pytest.raises(Unauthenticated):
        read(forge(header, claims))
    with pytest.raises(Unauthenticated):
        read(forge(HEADER, claims))
