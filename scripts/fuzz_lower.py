"""Targets of the lower rooms: messages, identity, the mesh, membership."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from fuzz_inputs import packed, unpacked
from fuzz_target import (
    ADMIN,
    ADMIT,
    GENESIS,
    KEYS,
    PLACE,
    STATE,
    SWARM,
    TOKEN,
    Target,
    always,
    text,
)
from message_samples import families, sample
from msgspec import inspect as shape

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import SwarmError
from swarmd.base.ids import NodeId, to_text
from swarmd.base.rng import make_rng
from swarmd.base.sealed_file import (
    HEADER_BYTES,
    BytesReader,
    Sealing,
    open_file,
    open_part,
    seal_file,
)
from swarmd.identity.api_keys import api_key_hash, new_api_key
from swarmd.identity.authority import CREDENTIAL_MS, Admission, AuthorityState
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Approve,
    Evict,
    Policy,
    Renew,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    decode_record,
    open_entry,
)
from swarmd.identity.epochs import Chain
from swarmd.identity.fingerprints import door_of, fingerprint_of_node, parse_fingerprint
from swarmd.identity.genesis import decode_genesis, encode_genesis
from swarmd.identity.heads import HEAD_DOMAIN, Head, sign_head, verify_head
from swarmd.identity.keys import Aead, certificate_public_key
from swarmd.identity.requests import REQUEST_DOMAIN, open_request, sign_request
from swarmd.identity.sealing import SealingKey
from swarmd.identity.sessions import Session, issue_session, read_session
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.identity.tokens import decode_token
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.discovery.static import parse_address
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.coordinates import (
    DIMENSIONS,
    Coordinate,
    Coordinates,
    encode_coordinate,
    is_sane,
)
from swarmd.mesh.swim.events import PacketIn, SyncIn
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKETS,
    Ack,
    Gossip,
    MemberState,
    Meta,
    Ping,
    decode_meta,
    decode_rumour,
    encode_meta,
    encode_statement,
    make_rumour,
)
from swarmd.mesh.transports.carriers import Ended, PlainCarrier
from swarmd.mesh.transports.frames import FrameOpener
from swarmd.mesh.transports.hello import HELLO, Hello, read_hello
from swarmd.mesh.transports.memory import MemoryNetwork
from swarmd.mesh.transports.mux import Item, Kind
from swarmd.mesh.transports.sessions import HELLO_BYTES, Sessions
from swarmd.mesh.trust import FILE_NAME, open_trust
from swarmd.sim.disk import SimDisk
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.world import World
from swarmd.wire.codec import Family, Message, decode_struct
from swarmd.wire.codec import unpack as unpack_payload
from swarmd.wire.envelope import decode_envelope, encode_envelope

DOOR: Final = door_of(SWARM)
REQUEST: Final = sign_request(DOOR, KEYS[2], "gamma")


class _Roster:
    swarm_id = bytes(32)
    version = 1
    min_version = 0

    def admissions(self) -> list[Admission]:
        return [Admission(k.key_id, k.public, "n", k.certificate, (), 0, 0, 0) for k in KEYS]

    def admission(self, node_id: NodeId) -> Admission | None:
        return next((one for one in self.admissions() if one.node_id == node_id), None)

    async def changed(self, version: int) -> None:
        raise AssertionError("not waited for")


# ---- wire, messages ------------------------------------------------------------------------


def _of_family(family: Family) -> Target:
    prefix = bytes([family.format_number])
    samples = [family.encode(sample(shape.type_info(kind))) for kind in family.types]
    return Target(
        f"message.{family.name}",
        always(family.decode),
        samples,
        dress=lambda value: prefix + packed(value),
        values=[unpacked(raw[1:]) for raw in samples],
    )


def messages() -> Iterator[Target]:
    for _, family in sorted(families().items()):
        yield _of_family(family)
    payloads = [packed({"a": [1, 2.5, b"x", None, {"b": "c"}]}), packed([True] * 20)]
    yield Target(
        "wire.payload",
        always(unpack_payload),
        payloads,
        covers=("wire.codec.unpack", "wire.codec.decode_struct"),
        dress=packed,
        values=[unpacked(raw) for raw in payloads],
    )


# ---- identity ------------------------------------------------------------------------------


def _open_envelope(raw: bytes) -> None:
    envelope = decode_envelope(raw, domain="authority")
    verify_envelope(envelope, SWARM, {bytes(ADMIN.key_id): ADMIN.public})


_ADMIT_TAG: Final = 3


def _judge(raw: bytes) -> None:
    STATE.copy().apply(raw, 2_000)


def _signed_entry(value: Any) -> bytes:
    """An entry that its rightful signers have signed, whatever it says."""
    is_admission = isinstance(value, list) and value[:1] == [_ADMIT_TAG]
    keys = (decode_token(TOKEN.decode()).key, KEYS[1]) if is_admission else (ADMIN,)
    payload = b"\x01" + packed(value)
    return encode_envelope(sign_envelope("authority", SWARM, payload, *keys))


def _entries() -> list[Message]:
    key, nonce = KEYS[2], b"o" * 16
    return [
        AddToken(key.public, "member", 3, 20_000, nonce),
        RevokeToken(decode_token(TOKEN.decode()).token_id, nonce),
        SetRoles(KEYS[0].key_id, ("worker",), nonce),
        Evict(KEYS[0].key_id, nonce),
        AddAdmin(key.public, nonce),
        RevokeAdmin(ADMIN.key_id, nonce),
        Policy(1, nonce),
        Approve(REQUEST, ("worker",), nonce),
        Renew(KEYS[0].key_id, CREDENTIAL_MS),
    ]


def sealed() -> Iterator[Target]:
    key = SealingKey(b"k" * 32)
    sealing = Sealing(key, "raft", b"s" * 16)
    grown = sealing.header(0) + sealing.frames(b"one", HEADER_BYTES, 0)
    grown += sealing.frames(b"two" * 30, len(grown), len(grown))
    yield Target(
        "base.sealed",
        always(lambda raw: open_file(key, "raft", raw, source="f")),
        [grown, sealing.whole(b"three"), seal_file(key, "raft", b"")],
        covers=("base.sealed_file.open_file", "base.sealed_file.read_header"),
    )
    yield Target(
        "base.sealed.part",
        always(lambda raw: open_part(key, "raft", BytesReader(raw), 1, 9, source="f")),
        [sealing.whole(b"three")],
        covers=("base.sealed_file.open_part",),
    )


def identity() -> Iterator[Target]:
    entries = [families()["authority"].encode(entry) for entry in _entries()]
    record = AuthorityState.load(GENESIS, STATE.dump()).dump()[-1]
    yield Target(
        "identity.envelope",
        always(_open_envelope),
        [_signed_entry(unpacked(entries[0][1:]))],
        covers=("wire.envelope.decode_envelope",),
        dress=packed,
        values=[unpacked(_signed_entry(unpacked(entries[0][1:])))],
    )
    yield Target(
        "identity.entry",
        always(_judge),
        [ADMIT, *(_signed_entry(unpacked(raw[1:])) for raw in entries)],
        covers=("identity.entries.open_entry",),
        dress=_signed_entry,
        values=[unpacked(raw[1:]) for raw in (*entries, open_entry(ADMIT)[0].payload)],
    )
    yield Target(
        "identity.record",
        always(lambda raw: AuthorityState(GENESIS).replay(raw)),
        [record],
        covers=("identity.entries.decode_record",),
        dress=packed,
        values=[unpacked(record)],
    )
    certificate = sign_head(Head(Chain(GENESIS).head.key, *STATE.head), SWARM, KEYS[0])
    signed_head = decode_envelope(certificate, domain=HEAD_DOMAIN)
    yield Target(
        "identity.head",
        always(lambda raw: verify_head(raw, Chain(GENESIS))),
        [certificate],
        dress=lambda value: encode_envelope(
            sign_envelope(HEAD_DOMAIN, SWARM, packed(value), KEYS[0])
        ),
        values=[unpacked(signed_head.payload)],
    )
    yield Target("identity.record_alone", always(decode_record), [record])
    yield Target("identity.entry_alone", always(open_entry), [ADMIT])
    genesis = encode_genesis(GENESIS)
    yield Target(
        "identity.genesis",
        always(decode_genesis),
        [genesis],
        covers=("identity.genesis.decode_genesis",),
        dress=packed,
        values=[unpacked(genesis)],
    )
    yield Target(
        "identity.token", text(decode_token), [TOKEN], covers=("identity.tokens.decode_token",)
    )
    yield Target("identity.api_key", text(api_key_hash), [new_api_key()[0].encode()])
    yield from _sessions()
    yield from _requests()
    yield Target(
        "identity.certificate", always(certificate_public_key), [k.certificate for k in KEYS]
    )


def _requests() -> Iterator[Target]:
    """What a node without a token signs, and what people type to name it."""
    payload = decode_envelope(REQUEST, domain=REQUEST_DOMAIN).payload

    def dress(value: Any) -> bytes:
        raw = b"\x01" + packed(value)
        return encode_envelope(sign_envelope(REQUEST_DOMAIN, DOOR, raw, KEYS[2]))

    yield Target(
        "identity.request",
        always(lambda raw: open_request(raw, DOOR)),
        [REQUEST],
        covers=("identity.requests.open_request",),
        dress=dress,
        values=[unpacked(payload[1:])],
    )
    shown = fingerprint_of_node(DOOR, KEYS[2].public)
    yield Target(
        "identity.fingerprint",
        text(parse_fingerprint),
        [shown.words.encode(), shown.hex.encode()],
        covers=("identity.fingerprints.parse_fingerprint",),
    )


def _sessions() -> Iterator[Target]:
    """The text of a token, and what is said in one that is signed well."""
    node = KEYS[0]
    iss, aud = to_text(node.key_id), to_text(SWARM)
    session = Session(iss, aud, "key ci", 1_000, 1_900, "abc", ("task:read",))

    def read(raw: str) -> Session:
        return read_session(raw, SWARM, lambda _: node.public, 1_000.0)

    def read_signed(raw: bytes) -> Session:
        header = b64(b'{"alg":"Ed25519","typ":"JWT","kid":"%s"}' % iss.encode())
        covered = header + b"." + b64(raw)
        return read((covered + b"." + b64(node.sign(covered))).decode())

    def b64(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    yield Target(
        "identity.session",
        text(read),
        [issue_session(node, session).encode()],
        covers=("identity.sessions.read_session",),
    )
    yield Target("identity.session_claims", always(read_signed), [msgspec.json.encode(session)])


# ---- mesh ----------------------------------------------------------------------------------


def _datagrams(*, keyed: bool) -> Callable[[], Callable[[bytes], Any]]:
    def make() -> Callable[[bytes], Any]:
        node = Sessions(KEYS[0], _Roster(), AddressBook())
        ticks = itertools.count()

        def take(raw: bytes) -> None:
            if keyed:
                kind, body = raw[:1], raw[1:]
                padded = kind in (b"\x01", b"\x04")
                raw = node._tagged(
                    kind, body[: HELLO_BYTES - 17] if padded else body, padded=padded
                )
            # So slowly that no hello needs a cookie: its envelope is what is thrown at here.
            node.receive(raw[:2_000], PLACE, next(ticks) / 10)
            node.outgoing.clear()
            node.delivered.clear()
            node.probes.clear()
            node.met.clear()

        return take

    return make


def _crowded_datagrams() -> Callable[[bytes], Any]:
    """Cookies for a hello that is under way, and hellos where each must show one."""
    node = Sessions(KEYS[0], _Roster(), AddressBook())
    node.hello(PLACE, 0.0)
    name = next(iter(node._handshakes))

    def take(raw: bytes) -> None:
        for kind, body in ((b"\x01", raw), (b"\x04", raw), (b"\x04", name + raw)):
            node.receive(node._tagged(kind, body[: HELLO_BYTES - 17], padded=True), PLACE, 0.0)
        assert all(len(packet) <= HELLO_BYTES for _, packet in node.outgoing)
        node.outgoing.clear()
        node._handshakes[name].cookies_left = 8

    return take


def _frames() -> Callable[[bytes], Any]:
    key = bytes(32)

    def take(raw: bytes) -> None:
        FrameOpener(key).open(bytes(8) + Aead(key).seal(0, b"", raw) + raw)

    return take


def _carrier() -> Callable[[bytes], Any]:
    def take(raw: bytes) -> None:
        carrier = PlainCarrier(None)  # type: ignore[arg-type]
        for at in range(0, len(raw), 97):
            carrier._buffer += raw[at : at + 97]
            while carrier._take() is not None:
                pass

    return take


def _mux() -> Callable[[bytes], Any]:
    network = MemoryNetwork()
    here, there = (network.link(key.key_id) for key in KEYS[:2])
    inbox = here.open_inbox(families()["trust"], size=5)
    port = network.connect(there, here.node_id).back
    assert port is not None

    def take(raw: bytes) -> None:
        for item in decode_struct(list[Item], raw):
            here.deliver_nowait(port, item)
        while inbox.statistics().current_buffer_used:
            inbox.receive_nowait()

    return take


def _stream_hello(raw: bytes) -> None:
    read_hello(raw, bytes(32), peer_public=KEYS[1].public, me=KEYS[0].key_id, alpn="swarmd/1")


def _signed_hello(value: Any) -> bytes:
    payload = bytes([HELLO.format_number]) + packed(value)
    return b"\x01" + encode_envelope(sign_envelope("stream-hello", bytes(32), payload, KEYS[1]))


def _trust_file(raw: bytes) -> None:
    disk = SimDisk(World(1), "trust")
    disk.replace(FILE_NAME, raw)
    open_trust(disk)


def mesh() -> Iterator[Target]:
    hello = HELLO.encode(Hello(1, KEYS[0].key_id, "swarmd/1", b"x" * 32, b"b" * 8, 1, 7_575))
    items = [
        msgspec.msgpack.encode([Item(kind, 0, family, number, payload)])  # type: ignore[arg-type]
        for kind in Kind
        for family, number, payload in (("trust", 1, b"\x02\x92\x01\x05"), ("nobody", 0, b""))
    ]
    trust = SimDisk(World(1), "trust")
    open_trust(trust, GENESIS, STATE.dump())
    stored = trust.read(FILE_NAME) or b""
    body = open_body("trust", 2, stored, source="trust")
    yield Target(
        "mesh.address",
        text(lambda text: parse_address(text, default_port=7_575)),
        [b"host:7575", b"[fe80::1%eth0]:1", b"10.0.0.1", b"a.b.c"],
        covers=("mesh.discovery.static.parse_address",),
    )
    packets = [b"\x01" + b"h" * 60, b"\x02" + b"r" * 60, b"\x03" + bytes(40), bytes(1_200)]
    packets += [b"\x04" + b"c" * 64]
    yield Target("mesh.datagram", _datagrams(keyed=False), packets)
    yield Target("mesh.datagram_keyed", _datagrams(keyed=True), packets)
    yield Target("mesh.datagram_crowded", _crowded_datagrams, [b"c" * 16, bytes(480)])
    yield Target(
        "mesh.stream_hello",
        always(_stream_hello),
        [_signed_hello(unpacked(hello[1:]))],
        covers=("mesh.transports.hello.read_hello",),
        dress=_signed_hello,
        values=[unpacked(hello[1:])],
    )
    yield Target(
        "mesh.frame", _frames, items, dress=packed, values=[unpacked(raw) for raw in items]
    )
    yield Target("mesh.items", _mux, items, dress=packed, values=[unpacked(raw) for raw in items])
    carried = [
        b"\0\0\0\x03abc\0\0\0\x01x",
        bytes(7),
        bytes(4) + b"\1\0\x0c",
        b"\0\0\x01\0" + b"y" * 256,
    ]
    yield Target("mesh.carrier", _carrier, carried, refusals=(SwarmError, Ended))
    yield Target(
        "mesh.trust_file",
        always(_trust_file),
        [stored],
        covers=("mesh.trust.open_trust", "base.disk.open_body"),
        dress=lambda value: seal_body("trust", 2, packed(value)),
        values=[unpacked(body)],
    )


# ---- membership ----------------------------------------------------------------------------


def _rumour(kind: MemberState, subject: str, author: str) -> bytes:
    body = encode_meta(Meta(subject)) if kind is MemberState.ALIVE else b""
    said = encode_statement(kind, node_id(subject), 5, author=node_id(author), body=body)
    return make_rumour(said, SimSigner(node_id(author)).sign_rumour(said)).raw


def _swim(event: Callable[[bytes], Any]) -> Callable[[], Callable[[bytes], Any]]:
    def make() -> Callable[[bytes], Any]:
        me = node_id("me")
        machine = SwimMachine(me, SwimConfig(), make_rng(1), SimSigner(me), Meta("me"), 1, 0.0)
        ticks = itertools.count(1)
        return lambda raw: machine.handle(event(raw), next(ticks) / 100)

    return make


def _coordinate() -> Callable[[bytes], Any]:
    """One node that goes where it is told, as far as it believes it."""
    here = Coordinates(node_id("me"))
    ticks = itertools.count(1)

    def hear(raw: bytes) -> None:
        here.hear(node_id("peer"), raw, next(ticks) % 100 / 100)
        assert is_sane(here.own)

    return hear


def membership() -> Iterator[Target]:
    rumours = [
        _rumour(MemberState.ALIVE, "x", "x"),
        _rumour(MemberState.SUSPECT, "x", "peer"),
        _rumour(MemberState.DEAD, "x", "peer"),
        _rumour(MemberState.LEFT, "x", "x"),
    ]
    place = encode_coordinate(Coordinate((0.01,) * DIMENSIONS, 0.001, -0.001, 0.5))
    pings = [
        PACKETS.encode(Gossip(rumours)),
        PACKETS.encode(sample(shape.type_info(Ping))),
        PACKETS.encode(Ack(7, bytes(8), rumours[:1], place)),
    ]
    peer = node_id("peer")
    yield Target(
        "swim.packet",
        _swim(lambda raw: PacketIn(peer, raw)),
        pings,
        dress=lambda value: b"\x01" + packed(value),
        values=[unpacked(raw[1:]) for raw in pings],
    )
    yield Target("swim.packet_alone", always(PACKETS.decode), pings)
    yield Target(
        "swim.view",
        _swim(lambda raw: SyncIn(peer, (raw, raw[:50]))),
        rumours,
        dress=packed,
        values=[unpacked(raw) for raw in rumours],
    )
    yield Target(
        "swim.rumour",
        always(decode_rumour),
        rumours,
        covers=("mesh.swim.messages.decode_rumour",),
    )
    yield Target(
        "swim.coordinate",
        _coordinate,
        [place, place[:-1]],
        covers=("mesh.swim.coordinates.decode_coordinate",),
    )
    meta = encode_meta(Meta("n", (("10.0.0.1", 1),), ("voter",), "0.1", (("a", "b"),)))
    yield Target(
        "swim.meta",
        always(decode_meta),
        [meta],
        covers=("mesh.swim.messages.decode_meta",),
        dress=packed,
        values=[unpacked(meta)],
    )
