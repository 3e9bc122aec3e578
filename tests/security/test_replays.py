"""Packets, rumours and signatures that are good somewhere, used where they are not."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from datagrams import Node, picture, talking

from swarmd.base.errors import BadSignature, MalformedMessage
from swarmd.base.rng import make_rng
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.mesh.rumours import RumourSigner
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import PacketIn, SyncIn
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKETS,
    Gossip,
    MemberState,
    Meta,
    Rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.sim.swim import SimSigner, node_id
from swarmd.wire.envelope import Envelope, decode_envelope, encode_envelope, signing_bytes

SOURCE = Path(__file__).resolve().parents[2] / "src" / "swarmd"
PACKETS_REPLAYED = 100_000
RUMOURS_REPLAYED = 10_000


def test_udp_replay_also_after_a_restart() -> None:
    """A hundred thousand captured packets, to the same nodes and to one that has started anew."""
    net, a, b, roster = talking()
    for number in range(500):
        a.send(b, b"%d" % number)
        b.send(a, b"%d" % number)
        net.settle()
    a.got(), b.got()
    captured = list(net.captured)
    before = picture(a), picture(b)
    rng = random.Random(5)
    for number in range(PACKETS_REPLAYED // 2):
        net.now += 0.001
        source, target, packet = rng.choice(captured)
        net.carry(source if number % 2 else ("10.6.6.6", 6), target, packet)
        for node in (a, b):
            node.sessions.outgoing.clear()
    assert (picture(a), picture(b)) == before

    restarted = Node(net, b.key, b.address, roster)
    to_it = [packet for _, target, packet in captured if target == b.address]
    for number in range(PACKETS_REPLAYED // 2):
        net.now += 0.001
        restarted.sessions.receive(rng.choice(to_it), a.address if number % 2 else ("9.9.9.9", 9),
                                   net.now)  # fmt: skip
        restarted.sessions.outgoing.clear()
    sessions, known, delivered, met = picture(restarted)
    assert isinstance(sessions, dict)
    assert set(sessions.values()) == {(None, ())}, "a session takes the secret that made it"
    assert (known, delivered, met) == ({}, 0, 0)


def rumour(kind: MemberState, subject: str, incarnation: int, author: str) -> Rumour:
    body = encode_meta(Meta(subject, tags=(("n", str(incarnation)),)))
    said = encode_statement(
        kind,
        node_id(subject),
        incarnation,
        author=node_id(author),
        body=body if kind is MemberState.ALIVE else b"",
    )
    return make_rumour(said, SimSigner(node_id(author)).sign_rumour(said))


def test_an_admitted_member_replays_or_alters_rumours() -> None:
    """Ten thousand rumours that were true once, or that a member has changed: no view changes."""
    me, liar = node_id("me"), node_id("liar")
    machine = SwimMachine(me, SwimConfig(), make_rng(1), SimSigner(me), Meta("me"), 1, 0.0)
    names = [f"m{number}" for number in range(20)]
    old: list[Rumour] = []
    for name in names:
        for incarnation in range(1, 12):
            old.append(rumour(MemberState.ALIVE, name, incarnation, name))
            old.append(rumour(MemberState.SUSPECT, name, incarnation - 1, "m0"))
        for one in old[-22:]:
            machine.handle(PacketIn(liar, PACKETS.encode(Gossip([one.raw]))), 1.0)
        newest = rumour(MemberState.ALIVE, name, 50, name)
        machine.handle(PacketIn(liar, PACKETS.encode(Gossip([newest.raw]))), 1.0)
    before = machine.members()
    assert len(before) == 1 + len(names)
    rng = random.Random(6)
    for number in range(RUMOURS_REPLAYED):
        raw = bytearray(rng.choice(old).raw)
        if number % 2:
            raw = bytearray(rumour(MemberState.ALIVE, rng.choice(names), 50, "m3").raw)
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        if number % 3:
            machine.handle(PacketIn(liar, PACKETS.encode(Gossip([bytes(raw)]))), 2.0)
        else:
            machine.handle(SyncIn(liar, (bytes(raw),)), 2.0)
        assert machine.members() == before, (number, raw.hex())


# ---- one signature used elsewhere ------------------------------------------------------------

DOMAINS = (
    "audit",
    "audit-floor",
    "authority",
    "batch",
    "event",
    "head",
    "join-hello",
    "join-knock",
    "join-request",
    "recover",
    "rumour",
    "seal",
    "stream-hello",
    "udp-hello",
    "udp-reply",
)
SWARM, KEY = bytes(32), SigningKey.from_seed(b"k" * 32)
ACCEPTED = {bytes(KEY.key_id): KEY.public}


def test_every_domain_of_the_source_is_tried() -> None:
    found = set()
    for path in SOURCE.rglob("*.py"):
        found |= set(re.findall(r'^\w*DOMAIN: Final = "([a-z-]+)"$', path.read_text(), re.M))
    assert found == set(DOMAINS)


@pytest.mark.parametrize("made_for", DOMAINS)
@pytest.mark.parametrize("used_for", DOMAINS)
def test_one_signature_used_elsewhere(made_for: str, used_for: str) -> None:
    """As it is, and with the other domain written over it; in this swarm and in another."""
    payload = b"\x01" + bytes(40)
    envelope = sign_envelope(made_for, SWARM, payload, KEY)
    renamed = encode_envelope(Envelope(used_for, payload, envelope.signatures))
    found = decode_envelope(renamed, domain=used_for)
    with pytest.raises(BadSignature):
        verify_envelope(found, bytes(31) + b"\1", ACCEPTED)
    if made_for == used_for:
        assert verify_envelope(found, SWARM, ACCEPTED) == [KEY.key_id]
        return
    with pytest.raises(MalformedMessage):
        decode_envelope(encode_envelope(envelope), domain=used_for)
    with pytest.raises(BadSignature):
        verify_envelope(found, SWARM, ACCEPTED)


@pytest.mark.parametrize("made_for", DOMAINS)
def test_a_signature_for_something_else_is_no_rumour_and_no_event(made_for: str) -> None:
    class Trust:
        swarm_id = SWARM

        def admission(self, node_id: bytes) -> object:
            class Found:
                public = KEY.public
                evicted = False

            return Found()

    signer = RumourSigner(KEY, Trust())  # type: ignore[arg-type]
    said = b"statement"
    assert signer.verify_rumour(KEY.key_id, said, signer.sign_rumour(said))
    assert signer.verify_event(KEY.key_id, said, signer.sign_event(said))
    made = KEY.sign(signing_bytes(made_for, SWARM, said))
    assert signer.verify_rumour(KEY.key_id, said, made) == (made_for == "rumour")
    assert signer.verify_event(KEY.key_id, said, made) == (made_for == "event")
