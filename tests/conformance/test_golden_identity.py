"""Golden vectors: fixed seeds give these bytes, in every version that reads format 1.

A change here is a change of what is on disks, in tokens on paper and in every peer's memory.
It needs a new format number, not a new vector.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from swarmd.identity.authority import CREDENTIAL_MS, AuthorityState
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Admit,
    Approve,
    Evict,
    Policy,
    Renew,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    sign_entry,
)
from swarmd.identity.fingerprints import door_of, fingerprint_of_node, fingerprint_of_swarm
from swarmd.identity.genesis import Genesis, decode_genesis, encode_genesis, make_genesis
from swarmd.identity.heads import Head, sign_head
from swarmd.identity.keys import Aead, Exchange, SigningKey, keyed_tag, verify
from swarmd.identity.requests import sign_request
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.identity.tokens import Token, decode_token, encode_token
from swarmd.wire.envelope import decode_envelope, encode_envelope

NODE = SigningKey.from_seed(bytes(range(32)))
ADMIN = SigningKey.from_seed(b"a" * 32)
RECOVERY = SigningKey.from_seed(b"r" * 32)
JOINER = SigningKey.from_seed(b"j" * 32)
ASKER = SigningKey.from_seed(b"k" * 32)
NONCE = b"n" * 16
VECTORS = Path(__file__).with_name("golden_identity.json")


def genesis() -> Genesis:
    return make_genesis(
        "lab",
        nonce=NONCE,
        node_key=NODE,
        node_name="alpha",
        admin_public=ADMIN.public,
        recovery_public=RECOVERY.public,
    )


def token() -> Token:
    return Token(genesis().swarm_id, 0, 1, b"h" * 32, b"t" * 32, "member", 3_600_000)


def entries() -> dict[str, bytes]:
    swarm_id, invited = genesis().swarm_id, token()
    by_admin: dict[str, Any] = {
        "add_token": AddToken(invited.key.public, "member", 20, 3_600_000, NONCE),
        "set_roles": SetRoles(JOINER.key_id, ("worker",), NONCE),
        "add_admin": AddAdmin(RECOVERY.public, NONCE),
        "revoke_admin": RevokeAdmin(RECOVERY.key_id, NONCE),
        "policy": Policy(1, NONCE),
        "revoke_token": RevokeToken(invited.token_id, NONCE),
        "evict": Evict(JOINER.key_id, NONCE),
        "approve": Approve(request(), ("worker",), NONCE),
    }
    admit = Admit(
        invited.token_id,
        JOINER.public,
        "beta",
        JOINER.certificate,
        ("voter", "worker"),
        b"1" * 16,
        b"2" * 16,
    )
    signed = {name: sign_entry(entry, swarm_id, ADMIN) for name, entry in by_admin.items()}
    signed["admit"] = sign_entry(admit, swarm_id, invited.key, JOINER)
    signed["renew"] = sign_entry(Renew(NODE.key_id, CREDENTIAL_MS), swarm_id, NODE)
    return signed


def request() -> bytes:
    return sign_request(door_of(genesis().swarm_id), ASKER, "gamma")


def records() -> list[bytes]:
    state = AuthorityState(genesis())
    made = entries()
    order = ("add_token", "admit", "set_roles", "add_admin", "revoke_admin", "policy")
    for step, name in enumerate((*order, "revoke_token", "evict"), start=1):
        state.apply(made[name], step * 1_000)
    state.apply(made["approve"], 9_000)
    state.apply(made["renew"], CREDENTIAL_MS)
    return state.dump()


def produce() -> dict[str, str]:
    """Every vector, made anew."""
    exchange = Exchange(b"x" * 32)
    found: dict[str, bytes] = {
        "node_public": NODE.public,
        "node_id": NODE.key_id,
        "certificate": NODE.certificate,
        "genesis": encode_genesis(genesis()),
        "swarm_id": genesis().swarm_id,
        "envelope": encode_envelope(sign_envelope("golden", b"s" * 32, b"payload", NODE, ADMIN)),
        "exchange": exchange.shared(Exchange(b"y" * 32).public, b"context"),
        "sealed": Aead(b"k" * 32).seal(7, b"data", b"header"),
        "request": request(),
        "door": door_of(genesis().swarm_id),
        "fingerprint of a node": fingerprint_of_node(door_of(genesis().swarm_id), ASKER.public).raw,
        "fingerprint of the swarm": fingerprint_of_swarm(door_of(genesis().swarm_id)).raw,
        "tag": keyed_tag(b"k" * 32, b"data"),
        "head": sign_head(Head(b"e" * 16, 3, b"h" * 32), b"s" * 32, NODE, ADMIN),
    }
    found |= {f"entry {name}": raw for name, raw in entries().items()}
    found |= {f"record {height}": raw for height, raw in enumerate(records(), start=1)}
    return {"token": encode_token(token())} | {name: raw.hex() for name, raw in found.items()}


GOLDEN: dict[str, str] = json.loads(VECTORS.read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_bytes_are_what_they_always_were(name: str) -> None:
    assert produce()[name] == GOLDEN[name]


def test_no_vector_is_missing() -> None:
    assert sorted(produce()) == sorted(GOLDEN)


def test_the_vectors_still_mean_what_they_meant() -> None:
    assert decode_token(GOLDEN["token"]) == token()
    founded = decode_genesis(bytes.fromhex(GOLDEN["genesis"]))
    assert founded == genesis()
    chain = [bytes.fromhex(GOLDEN[f"record {height}"]) for height in range(1, 11)]
    state = AuthorityState.load(founded, chain)
    assert state.admissions[JOINER.key_id].evicted
    assert state.tokens[token().token_id].revoked
    assert state.tokens[token().token_id].uses_left == 19
    assert state.admissions[ASKER.key_id].name == "gamma"
    assert state.admissions[NODE.key_id].expires_ms == 2 * CREDENTIAL_MS


def test_the_envelope_is_what_its_page_says() -> None:
    """The layout spelt out by hand, with another msgpack than the one that made it."""
    raw = bytes.fromhex(GOLDEN["envelope"])
    domain, payload, signatures = msgpack.unpackb(raw)
    assert (domain, payload) == ("golden", b"payload")
    covered = (
        b"swarmd\0v1\0" + b"\x06golden" + b"\x20" + b"s" * 32 + bytes(7) + b"\x07" + b"payload"
    )
    for key, (key_id, signature) in zip((NODE, ADMIN), signatures, strict=True):
        assert key_id == hashlib.blake2b(key.public, digest_size=32).digest()
        assert verify(key.public, signature, covered)
    keys: dict[bytes, bytes] = {key.key_id: key.public for key in (NODE, ADMIN)}
    assert len(verify_envelope(decode_envelope(raw, domain="golden"), b"s" * 32, keys)) == 2


def test_the_token_is_what_its_page_says() -> None:
    raw = base64.b32decode(GOLDEN["token"].upper())
    swarm_id = bytes.fromhex(GOLDEN["swarm_id"])
    assert raw[:-6] == (
        b"\x02"
        + swarm_id
        + bytes(8)
        + (1).to_bytes(5, "big")
        + b"h" * 32
        + b"t" * 32
        + b"\0"
        + (3_600_000).to_bytes(8, "big")
    )


def test_the_swarm_id_is_the_hash_of_the_genesis() -> None:
    raw = bytes.fromhex(GOLDEN["genesis"])
    assert hashlib.blake2b(raw, digest_size=32).hexdigest() == GOLDEN["swarm_id"]
