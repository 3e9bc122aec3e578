"""Every decoder of identity, trust and joining against any bytes: a SwarmError or a value.

Two sources of input: bytes at random, and good bytes bent in a few places, which get further
in. Nothing but a SwarmError may come out, and whatever is refused leaves no trace.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certifying import certificate_of, now_of
from founding import ADMIN, lab
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarmd.base.errors import SwarmError
from swarmd.identity.authority import AuthorityState
from swarmd.identity.entries import Admit, decode_record, issue_token, open_entry, sign_entry
from swarmd.identity.epochs import Chain
from swarmd.identity.genesis import decode_genesis, encode_genesis
from swarmd.identity.heads import verify_head
from swarmd.identity.keys import SigningKey, certificate_public_key, is_certificate_of, verify
from swarmd.identity.signing import verify_envelope
from swarmd.identity.tokens import decode_token, encode_token
from swarmd.mesh.join_frames import JOIN, Accepted, Hello
from swarmd.mesh.trust import FILE_NAME, open_trust
from swarmd.mesh.trust_spread import TRUST, Records
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.wire.envelope import decode_envelope

FIRST = SigningKey.from_seed(b"f" * 32)
NODE = SigningKey.from_seed(b"n" * 32)
GENESIS = lab(FIRST, "alpha")
SWARM = GENESIS.swarm_id
STATE = AuthorityState(GENESIS)
TOKEN, ADD_TOKEN = issue_token(SWARM, now_of(STATE), ADMIN, uses=5, expires_ms=10_000)
STATE.apply(ADD_TOKEN, 1_000)
ADMIT = sign_entry(
    Admit(TOKEN.token_id, NODE.public, "beta", NODE.certificate, TOKEN.roles, b"j" * 16, b"s" * 16),
    SWARM,
    TOKEN.key,
    NODE,
)
AFTER = STATE.copy()
AFTER.apply(ADMIT, 2_000)
RECORD = AFTER.dump()[-1]
CERTIFICATE = certificate_of(AFTER, FIRST)


@st.composite
def bent(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with some bytes changed, cut out or put in."""
    raw = bytearray(good)
    for _ in range(draw(st.integers(min_value=1, max_value=4))):
        place = draw(st.integers(min_value=0, max_value=len(raw)))
        kind = draw(st.sampled_from(("change", "cut", "insert", "end")))
        if kind == "change" and place < len(raw):
            raw[place] = draw(st.integers(min_value=0, max_value=255))
        elif kind == "cut":
            del raw[place : place + draw(st.integers(min_value=1, max_value=40))]
        elif kind == "insert":
            raw[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            del raw[place:]
    return bytes(raw)


def read_stored(raw: bytes) -> object:
    disk = SimDisk(World(1), "trust")
    disk.replace(FILE_NAME, raw)
    return open_trust(disk)


def load_key(raw: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        path.write_bytes(raw)
        os.chmod(path, 0o600)
        return SigningKey.load(path)


def saved_key() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        NODE.save(Path(folder) / "key")
        return (Path(folder) / "key").read_bytes()


def stored_trust() -> bytes:
    disk = SimDisk(World(1), "trust")
    open_trust(disk, GENESIS, AFTER.dump(), CERTIFICATE)
    return disk.read(FILE_NAME) or b""


def open_envelope(raw: bytes) -> object:
    envelope = decode_envelope(raw, domain="authority")
    keys: dict[bytes, bytes] = {TOKEN.token_id: TOKEN.key.public, NODE.key_id: NODE.public}
    return verify_envelope(envelope, SWARM, keys)


DECODERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "token": (
        lambda raw: decode_token(raw.decode("utf-8", "replace")),
        encode_token(TOKEN).encode(),
    ),
    "genesis": (decode_genesis, encode_genesis(GENESIS)),
    "record": (decode_record, RECORD),
    "entry": (open_entry, ADMIT),
    "envelope": (open_envelope, ADMIT),
    "certificate": (certificate_public_key, NODE.certificate),
    "key file": (load_key, saved_key()),
    "head": (lambda raw: verify_head(raw, Chain(GENESIS)), CERTIFICATE),
    "trust file": (read_stored, stored_trust()),
    "trust message": (TRUST.decode, TRUST.encode(Records(1, 2, (RECORD,), CERTIFICATE))),
    "join hello": (JOIN.decode, JOIN.encode(Hello(1, b"n", b"s", b"t", b"p", b"x"))),
    "join accepted": (JOIN.decode, JOIN.encode(Accepted((("host", 7575),), 2, 1, CERTIFICATE))),
}


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_any_bytes_give_a_value_or_a_swarm_error(name: str) -> None:
    decode, good = DECODERS[name]
    decode(good)

    @given(raw=st.one_of(st.binary(max_size=600), bent(good)))
    @example(raw=b"")
    @example(raw=b"\x91" * 3_000)
    @example(raw=b"\x01" + b"\x91" * 3_000)
    @settings(deadline=None, max_examples=150)
    def survive(raw: bytes) -> None:
        with contextlib.suppress(SwarmError):
            decode(raw)

    survive()


@given(raw=st.one_of(bent(ADMIT), bent(ADD_TOKEN), st.binary(max_size=300)))
@settings(deadline=None, max_examples=150)
def test_a_bent_entry_changes_nothing(raw: bytes) -> None:
    state = STATE.copy()
    try:
        record = state.apply(raw, 2_000)
    except SwarmError:
        assert (state.head, state.tokens) == (STATE.head, STATE.tokens)
        assert state.admissions == STATE.admissions
    else:
        # What passed says the same as the original, whatever became of its envelope.
        assert record.height in (1, 2)
        assert set(state.admissions) <= {FIRST.key_id, NODE.key_id}


@given(raw=st.one_of(bent(RECORD), st.binary(max_size=300)))
@settings(deadline=None, max_examples=150)
def test_a_bent_record_is_refused(raw: bytes) -> None:
    """Only the record itself follows; its store time alone is not signed by anybody yet."""
    state = STATE.copy()
    try:
        record = state.replay(raw)
    except SwarmError:
        assert state.head == STATE.head
    else:
        assert open_entry(record.entry)[1] == open_entry(ADMIT)[1]


@given(der=bent(NODE.certificate))
@settings(deadline=None, max_examples=150)
def test_a_bent_certificate_is_never_the_nodes(der: bytes) -> None:
    assert is_certificate_of(NODE.public, der) == (der == NODE.certificate)


@given(public=st.binary(max_size=40), signature=st.binary(max_size=70), data=st.binary(max_size=9))
@settings(deadline=None, max_examples=100)
def test_verifying_never_raises(public: bytes, signature: bytes, data: bytes) -> None:
    verify(public, signature, data)
    is_certificate_of(public, signature)
