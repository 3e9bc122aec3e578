"""Every decoder of swarmd as something to throw bytes at.

A target names the functions that it stands for, has sound samples to start from, and says which
errors a refusal may be: anything else that comes out is a finding. Where a decoder keeps state
between inputs (a session table, a machine), the target keeps it as well, so that what hostile
bytes leave behind shows as memory that grows; it is made anew only where sound input is meant
to add to it.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from fuzz_inputs import packed, unpacked
from message_samples import batches, families, sample
from msgspec import inspect as shape

from swarmd.agents.bundle import _header, read_bundle
from swarmd.agents.records import AgentRecord, decode_agent, encode_agent
from swarmd.agents.spec import parse_agent
from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import Diverged, SwarmError
from swarmd.base.ids import NodeId
from swarmd.base.rng import make_rng
from swarmd.cli.job_file import parse_job
from swarmd.cli.txn_file import parse_txn
from swarmd.client.keystream import _Exchange
from swarmd.config import load
from swarmd.gateway.duplex import Splitter
from swarmd.identity.authority import Admission, AuthorityState
from swarmd.identity.entries import (
    AddAdmin,
    AddToken,
    Admit,
    Evict,
    Policy,
    RevokeAdmin,
    RevokeToken,
    SetRoles,
    decode_record,
    issue_token,
    open_entry,
    sign_entry,
)
from swarmd.identity.genesis import decode_genesis, encode_genesis, make_genesis
from swarmd.identity.keys import Aead, SigningKey, certificate_public_key, keyed_tag
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.identity.tokens import decode_token, encode_token
from swarmd.mesh.addresses import AddressBook
from swarmd.mesh.discovery.static import parse_address
from swarmd.mesh.swim.config import SwimConfig
from swarmd.mesh.swim.events import PacketIn, SyncIn
from swarmd.mesh.swim.machine import SwimMachine
from swarmd.mesh.swim.messages import (
    PACKETS,
    Gossip,
    MemberState,
    Meta,
    Ping,
    decode_meta,
    decode_packet,
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
from swarmd.sdk.protocol import FIELDS, FrameReader, ProtocolError, encode_frame
from swarmd.sim.disk import SimDisk
from swarmd.sim.swim import SimSigner, node_id
from swarmd.sim.world import World
from swarmd.state.blobs.messages import BlobRef
from swarmd.state.raft import snapshot
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.epoch import Ballot, Chain, statement_of
from swarmd.state.raft.frames import pack, unpack
from swarmd.state.raft.journal import JOURNAL_FILE, Journal
from swarmd.state.raft.machine import START, Deliver, RaftMachine, Wake
from swarmd.state.raft.messages import Voter, decode_batch, decode_forward
from swarmd.state.raft.snapshot import FORMAT, KIND, SnapshotMeta, SnapshotReader
from swarmd.state.raft.statefile import STATE_FORMAT, STATE_KIND
from swarmd.state.raft.statemachine import StateMachine
from swarmd.state.raft.wire import VOTERS
from swarmd.state.recipes.records import (
    Ticket,
    decode_ticket,
    encode_ticket,
    read_place,
)
from swarmd.tasks.office import Manifest, decode_manifest
from swarmd.tasks.spec import (
    Assignment,
    JobRecord,
    TaskRecord,
    decode_assignment,
    decode_job,
    decode_task,
)
from swarmd.wire.codec import Family, Message, decode_struct, encode_struct
from swarmd.wire.codec import unpack as unpack_payload
from swarmd.wire.envelope import decode_envelope, encode_envelope

Refusals = tuple[type[Exception], ...]
_NAMED: Final[Refusals] = (SwarmError,)
# How many inputs one state is kept for where sound input adds to it.
_KEPT_FOR: Final = 500


@dataclass(frozen=True)
class Target:
    """Something that takes bytes.

    `make` gives a fresh taker; it is called once, or every `renewed_after` inputs.
    `renewing`: refusals after which the taker is of no use, as a voter that stopped loudly.
    `covers`: the functions of the source that this stands for, as `module.name` below `swarmd`.
    """

    name: str
    make: Callable[[], Callable[[bytes], Any]]
    samples: Sequence[bytes]
    covers: tuple[str, ...] = ()
    refusals: Refusals = _NAMED
    renewing: Refusals = ()
    dress: Callable[[Any], bytes] | None = None
    values: Sequence[Any] = field(default_factory=tuple)
    renewed_after: int = 0


# ---- what the samples are made of ----------------------------------------------------------

ADMIN: Final = SigningKey.from_seed(b"a" * 32)
KEYS: Final = [SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 4)]
GENESIS: Final = make_genesis(
    "lab",
    nonce=b"g" * 16,
    node_key=KEYS[0],
    node_name="alpha",
    admin_public=ADMIN.public,
    recovery_public=b"r" * 32,
)
SWARM: Final = GENESIS.swarm_id
_PLACE: Final = ("10.0.0.1", 1)


def _log() -> tuple[AuthorityState, bytes, bytes]:
    """A log with a token, the entry that admits by it, and the token's text."""
    state = AuthorityState(GENESIS)
    token, entry = issue_token(SWARM, state.head, ADMIN, uses=5, expires_ms=10_000)
    state.apply(entry, 1_000)
    admit = Admit(
        token.token_id,
        KEYS[1].public,
        "beta",
        KEYS[1].certificate,
        token.roles,
        b"j" * 16,
        b"s" * 16,
    )
    return state, sign_entry(admit, SWARM, token.key, KEYS[1]), encode_token(token).encode()


STATE, ADMIT, TOKEN = _log()


class _Roster:
    swarm_id = bytes(32)
    version = 1

    def admissions(self) -> list[Admission]:
        return [Admission(k.key_id, k.public, "n", k.certificate, (), 0, 0, 0) for k in KEYS]

    def admission(self, node_id: NodeId) -> Admission | None:
        return next((one for one in self.admissions() if one.node_id == node_id), None)

    async def changed(self, version: int) -> None:
        raise AssertionError("not waited for")


def _always(call: Callable[[bytes], Any]) -> Callable[[], Callable[[bytes], Any]]:
    return lambda: call


def _text(call: Callable[[str], Any]) -> Callable[[], Callable[[bytes], Any]]:
    return lambda: lambda raw: call(raw.decode("utf-8", "surrogateescape"))


# ---- wire, messages ------------------------------------------------------------------------


def _of_family(family: Family) -> Target:
    prefix = bytes([family.format_number])
    samples = [family.encode(sample(shape.type_info(kind))) for kind in family.types]
    return Target(
        f"message.{family.name}",
        _always(family.decode),
        samples,
        dress=lambda value: prefix + packed(value),
        values=[unpacked(raw[1:]) for raw in samples],
    )


def _messages() -> Iterator[Target]:
    for _, family in sorted(families().items()):
        yield _of_family(family)
    payloads = [packed({"a": [1, 2.5, b"x", None, {"b": "c"}]}), packed([True] * 20)]
    yield Target(
        "wire.payload",
        _always(unpack_payload),
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
    ]


def _identity() -> Iterator[Target]:
    entries = [families()["authority"].encode(entry) for entry in _entries()]
    record = AuthorityState.load(GENESIS, STATE.dump()).dump()[-1]
    yield Target(
        "identity.envelope",
        _always(_open_envelope),
        [_signed_entry(unpacked(entries[0][1:]))],
        covers=("wire.envelope.decode_envelope",),
        dress=packed,
        values=[unpacked(_signed_entry(unpacked(entries[0][1:])))],
    )
    yield Target(
        "identity.entry",
        _always(_judge),
        [ADMIT, *(_signed_entry(unpacked(raw[1:])) for raw in entries)],
        covers=("identity.entries.open_entry",),
        dress=_signed_entry,
        values=[unpacked(raw[1:]) for raw in (*entries, open_entry(ADMIT)[0].payload)],
    )
    yield Target(
        "identity.record",
        _always(lambda raw: AuthorityState(GENESIS).replay(raw)),
        [record],
        covers=("identity.entries.decode_record",),
        dress=packed,
        values=[unpacked(record)],
    )
    yield Target("identity.record_alone", _always(decode_record), [record])
    yield Target("identity.entry_alone", _always(open_entry), [ADMIT])
    genesis = encode_genesis(GENESIS)
    yield Target(
        "identity.genesis",
        _always(decode_genesis),
        [genesis],
        covers=("identity.genesis.decode_genesis",),
        dress=packed,
        values=[unpacked(genesis)],
    )
    yield Target(
        "identity.token", _text(decode_token), [TOKEN], covers=("identity.tokens.decode_token",)
    )
    yield Target(
        "identity.certificate", _always(certificate_public_key), [k.certificate for k in KEYS]
    )


# ---- mesh ----------------------------------------------------------------------------------


def _datagrams(*, keyed: bool) -> Callable[[], Callable[[bytes], Any]]:
    def make() -> Callable[[bytes], Any]:
        node = Sessions(KEYS[0], _Roster(), AddressBook())
        ticks = itertools.count()

        def take(raw: bytes) -> None:
            if keyed:
                kind, body = raw[:1], raw[1:]
                if kind == b"\x01":
                    body = body[: HELLO_BYTES - 17].ljust(HELLO_BYTES - 17, b"\0")
                raw = kind + keyed_tag(node._mac_key, kind + body) + body
            node.receive(raw[:2_000], _PLACE, next(ticks) / 100)
            node.outgoing.clear()
            node.delivered.clear()
            node.met.clear()

        return take

    return make


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


def _mesh() -> Iterator[Target]:
    hello = HELLO.encode(Hello(KEYS[0].key_id, "swarmd/1", b"x" * 32, b"b" * 8, 1, 7_575, b""))
    items = [
        msgspec.msgpack.encode([Item(kind, 0, family, number, payload)])  # type: ignore[arg-type]
        for kind in Kind
        for family, number, payload in (("trust", 1, b"\x01\x92\x01\x05"), ("nobody", 0, b""))
    ]
    trust = SimDisk(World(1), "trust")
    open_trust(trust, GENESIS, STATE.dump())
    stored = trust.read(FILE_NAME) or b""
    body = open_body("trust", 1, stored, source="trust")
    yield Target(
        "mesh.address",
        _text(lambda text: parse_address(text, default_port=7_575)),
        [b"host:7575", b"[fe80::1%eth0]:1", b"10.0.0.1", b"a.b.c"],
        covers=("mesh.discovery.static.parse_address",),
    )
    packets = [b"\x01" + b"h" * 60, b"\x02" + b"r" * 60, b"\x03" + bytes(40), bytes(1_200)]
    yield Target("mesh.datagram", _datagrams(keyed=False), packets)
    yield Target("mesh.datagram_keyed", _datagrams(keyed=True), packets)
    yield Target(
        "mesh.stream_hello",
        _always(_stream_hello),
        [_signed_hello(unpacked(hello[1:]))],
        covers=("mesh.transports.hello.read_hello",),
        dress=_signed_hello,
        values=[unpacked(hello[1:])],
    )
    yield Target(
        "mesh.frame", _frames, items, dress=packed, values=[unpacked(raw) for raw in items]
    )
    yield Target("mesh.items", _mux, items, dress=packed, values=[unpacked(raw) for raw in items])
    carried = [b"\0\0\0\x03abc\0\0\0\x01x", bytes(5), b"\0\0\x01\0" + b"y" * 256]
    yield Target("mesh.carrier", _carrier, carried, refusals=(SwarmError, Ended))
    yield Target(
        "mesh.trust_file",
        _always(_trust_file),
        [stored],
        covers=("mesh.trust.open_trust", "base.disk.open_body"),
        dress=lambda value: seal_body("trust", 1, packed(value)),
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


def _membership() -> Iterator[Target]:
    rumours = [
        _rumour(MemberState.ALIVE, "x", "x"),
        _rumour(MemberState.SUSPECT, "x", "peer"),
        _rumour(MemberState.DEAD, "x", "peer"),
        _rumour(MemberState.LEFT, "x", "x"),
    ]
    pings = [PACKETS.encode(Gossip(rumours)), PACKETS.encode(sample(shape.type_info(Ping)))]
    peer = node_id("peer")
    yield Target(
        "swim.packet",
        _swim(lambda raw: PacketIn(peer, raw)),
        pings,
        covers=("mesh.swim.messages.decode_packet",),
        dress=lambda value: b"\x01" + packed(value),
        values=[unpacked(raw[1:]) for raw in pings],
    )
    yield Target("swim.packet_alone", _always(decode_packet), pings)
    yield Target(
        "swim.view",
        _swim(lambda raw: SyncIn(peer, (raw, raw[:50]))),
        rumours,
        dress=packed,
        values=[unpacked(raw) for raw in rumours],
    )
    yield Target(
        "swim.rumour",
        _always(decode_rumour),
        rumours,
        covers=("mesh.swim.messages.decode_rumour",),
    )
    meta = encode_meta(Meta("n", (("10.0.0.1", 1),), ("voter",), "0.1", (("a", "b"),)))
    yield Target(
        "swim.meta",
        _always(decode_meta),
        [meta],
        covers=("mesh.swim.messages.decode_meta",),
        dress=packed,
        values=[unpacked(meta)],
    )


# ---- the strong store ------------------------------------------------------------------------


class _NoState:
    def apply(self, command: bytes, index: int, term: int) -> None:
        return None

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restoring(self) -> _NoState:
        return self

    def digest(self) -> bytes:
        return b"digest"

    def take(self, frame: bytes) -> None:
        return None

    def finish(self) -> None:
        return None


def _voter() -> Callable[[bytes], Any]:
    disk = SimDisk(World(3), "a")
    machine = RaftMachine("a", ("a", "b", "c"), disk, _NoState(), make_rng(3), RaftConfig(), 0.0)
    ticks = itertools.count()

    def take(raw: bytes) -> None:
        now = next(ticks) / 20
        machine.handle(Deliver("b", raw), now)
        machine.handle(Wake(START), now)
        machine.settle(now)
        machine.sync()

    return take


def _apply() -> Callable[[bytes], Any]:
    state, indexes = StateMachine(GENESIS), itertools.count(1)
    return lambda raw: state.apply(raw, next(indexes), 1)


def _restore() -> Callable[[bytes], Any]:
    def take(raw: bytes) -> None:
        restoring = StateMachine(GENESIS).restoring()
        for frame in unpack(STATE_KIND, STATE_FORMAT, raw, source="state"):
            restoring.take(frame)
        restoring.finish()

    return take


def _journal(raw: bytes) -> None:
    disk = SimDisk(World(3), "a")
    disk.replace(JOURNAL_FILE, raw)
    Journal(disk, make_rng(1))


def _snapshot(raw: bytes) -> None:
    reader = SnapshotReader(("a",), "test")
    reader.feed(raw)
    reader.finish()


def _store() -> Iterator[Target]:
    commands = list(batches().values())
    yield Target(
        "raft.batch",
        _apply,
        commands,
        covers=("state.raft.messages.decode_batch",),
        dress=packed,
        values=[unpacked(raw) for raw in commands],
        renewed_after=_KEPT_FOR,
    )
    yield Target("raft.batch_alone", _always(decode_batch), commands)
    said = [VOTERS.encode(sample(shape.type_info(kind))) for kind in VOTERS.types]
    yield Target(
        "raft.voter",
        _voter,
        said,
        refusals=(SwarmError, Diverged),
        renewing=(Diverged,),
        dress=lambda value: said[0][:1] + packed(value),
        values=[unpacked(raw[1:]) for raw in said],
        renewed_after=_KEPT_FOR,
    )
    state = StateMachine(GENESIS)
    for index, raw in enumerate(commands, 1):
        state.apply(raw, index, 1)
    frames = list(state.snapshot())
    yield Target(
        "raft.state",
        _restore,
        [pack(STATE_KIND, STATE_FORMAT, frames)],
        covers=("state.raft.frames.unpack", "state.raft.frames.read_frames"),
        dress=lambda value: pack(STATE_KIND, STATE_FORMAT, [packed(frame) for frame in value]),
        values=[[unpacked(frame) for frame in frames]],
    )
    meta = encode_struct(SnapshotMeta(5, 1, ("a",)))
    yield Target(
        "raft.snapshot",
        _always(_snapshot),
        [pack(KIND, FORMAT, [meta, b"state" * 10])],
        covers=("state.raft.snapshot.decode_meta",),
        dress=lambda value: pack(KIND, FORMAT, [packed(value), b"state"]),
        values=[unpacked(meta)],
    )
    yield Target(
        "raft.snapshot_meta",
        _always(lambda raw: snapshot.decode_meta(raw, voters=("a",), source="test")),
        [meta],
        dress=packed,
        values=[unpacked(meta)],
    )
    disk = SimDisk(World(3), "a")
    journal = Journal(disk, make_rng(1))
    for index in range(1, 8):
        journal.add(b"entry", index, 1)
        journal.sync()
    yield Target("raft.journal", _always(_journal), [disk.read(JOURNAL_FILE) or b""])
    chain = Chain(GENESIS)
    voter = Voter(KEYS[0].public, b"s" * 16)
    statement = statement_of(chain.head, 2, 7, b"d" * 32, (voter,))
    certificate = Ballot(SWARM, chain.head, statement, KEYS[0]).certificate() or b""
    yield Target(
        "raft.certificate",
        _always(lambda raw: Chain(GENESIS).extend(raw)),
        [certificate],
        dress=packed,
        values=[unpacked(certificate)],
    )
    yield Target(
        "raft.chain_file",
        _always(lambda raw: Chain(GENESIS).load(raw, source="here")),
        [msgspec.msgpack.encode([certificate])],
        dress=packed,
        values=[[certificate]],
    )
    yield Target(
        "raft.forward",
        _always(decode_forward),
        [families()["store"].encode(sample(shape.type_info(families()["store"].types[0])))[1:]],
        covers=("state.raft.messages.decode_forward",),
    )
    ticket = encode_ticket(Ticket("me", 1_000, 5))
    yield Target(
        "recipes.ticket",
        _always(decode_ticket),
        [ticket],
        covers=("state.recipes.records.decode_ticket",),
        dress=packed,
        values=[unpacked(ticket)],
    )
    yield Target(
        "recipes.place",
        _always(read_place),
        [b"r/lock/name/0000000000000011"],
        covers=("state.recipes.records.read_place",),
    )


# ---- tasks and agents ------------------------------------------------------------------------

AGENT_FILE: Final = b"""name = "extractor"
version = "1"
entry = "extractor:run"
concurrency = 2
timeout_s = 5.0
[env]
A = "b"
"""


def _sdk() -> Callable[[bytes], Any]:
    def take(raw: bytes) -> None:
        reader = FrameReader()
        for at in range(0, len(raw), 61):
            reader.feed(raw[at : at + 61])
            while (frame := reader.next()) is not None:
                kind, fields = frame
                assert tuple(map(type, fields)) == FIELDS[kind]

    return take


def _of_struct(name: str, call: Callable[[bytes], Any], raw: bytes) -> Target:
    covered = f"{call.__module__.removeprefix('swarmd.')}.{call.__name__}"
    return Target(
        name, _always(call), [raw], covers=(covered,), dress=packed, values=[unpacked(raw)]
    )


def _work() -> Iterator[Target]:
    for name, call, kind in (
        ("tasks.task", decode_task, TaskRecord),
        ("tasks.assignment", decode_assignment, Assignment),
        ("tasks.job", decode_job, JobRecord),
        ("tasks.manifest", decode_manifest, Manifest),
    ):
        yield _of_struct(name, call, msgspec.msgpack.encode(sample(shape.type_info(kind))))
    agent = AgentRecord(parse_agent(AGENT_FILE.decode()), sample(shape.type_info(BlobRef)), 5)
    yield _of_struct("agents.record", decode_agent, encode_agent(agent))
    yield Target(
        "agents.file", _text(parse_agent), [AGENT_FILE], covers=("agents.spec.parse_agent",)
    )
    bundle = _header("a.py", 3) + b"abc".ljust(512, b"\0") + _header("b/c.py", 0) + bytes(1_024)
    yield Target(
        "agents.bundle",
        _always(read_bundle),
        [bundle],
        covers=("agents.bundle.read_bundle", "agents.bundle.unpack_bundle"),
    )
    samples = []
    for kind, types in FIELDS.items():
        fields = [one() if one is not type(None) else None for one in types]
        samples.append(encode_frame(kind, *fields))
    yield Target(
        "sdk.frames",
        _sdk,
        samples,
        refusals=(ProtocolError, SwarmError),
        covers=("sdk.protocol.decode_frame",),
    )


# ---- people and programs -----------------------------------------------------------------------

CONFIG_FILE: Final = b"""[node]
name = "n1"
[mesh]
port = 7575
seeds = ["a:1"]
[raft]
heartbeat_s = 0.1
"""
JOB_FILE: Final = b"""name = "j"
[[stage]]
name = "one"
agent = "a"
"""
TXN: Final = json.dumps(
    {"compares": [{"key": "a", "revision": 1}], "then": [{"op": "put", "key": "a", "text": "b"}]}
).encode()
_HEAD: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def _splitter(*, frames: bool) -> Callable[[], Callable[[bytes], Any]]:
    def take(raw: bytes) -> None:
        splitter = Splitter(frames=frames)
        for at in range(0, len(raw), 61):
            splitter.feed(raw[at : at + 61])
        splitter.end()

    return lambda: take


def _answers(raw: bytes) -> None:
    answers = _Exchange()
    for at in range(0, len(raw), 61):
        answers.feed(raw[at : at + 61])


def _config() -> Callable[[bytes], Any]:
    # In memory where that is possible: it is not the disk that is held against time.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = tempfile.TemporaryDirectory(prefix="swarmd-fuzz-", dir=memory)
    path = Path(folder.name) / "swarmd.toml"

    def take(raw: bytes, _folder: object = folder) -> None:
        path.write_bytes(raw)
        load(file=path, environ={})

    return take


def _edges() -> Iterator[Target]:
    yield Target("config.file", _config, [CONFIG_FILE], covers=("config.load",))
    yield Target(
        "cli.job_file",
        _text(lambda text: parse_job(text, "f")),
        [JOB_FILE],
        covers=("cli.job_file.parse_job",),
    )
    yield Target(
        "cli.transaction",
        _always(lambda raw: parse_txn(raw, "f")),
        [TXN],
        covers=("cli.txn_file.parse_txn", "cli.txn_file.read_txn"),
    )
    framed = b"\0\0\0\x03abc\0\0\0\x01x"
    yield Target("gateway.stream_frames", _splitter(frames=True), [framed])
    yield Target("gateway.stream_lines", _splitter(frames=False), [b'{"a":1}\n{"b":2}\n'])
    yield Target("client.answers", _always(_answers), [_HEAD + b"3\r\nabc\r\n0\r\n\r\n"])


def targets() -> dict[str, Target]:
    """All of them, by name."""
    makers = (_messages, _identity, _mesh, _membership, _store, _work, _edges)
    found = [target for make in makers for target in make()]
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}
