"""Targets of the upper rooms: the strong store, tasks, agents, files, the API."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from fuzz_inputs import packed, unpacked
from fuzz_target import (
    GENESIS,
    KEPT_FOR,
    KEYS,
    SWARM,
    Target,
    always,
    of_struct,
    text,
)
from message_samples import batches, families, sample
from msgspec import inspect as shape

from swarmd.agents.bundle import _header, read_bundle
from swarmd.agents.environment import Environment, decode_environment
from swarmd.agents.records import AgentRecord, decode_agent, encode_agent
from swarmd.agents.spec import parse_agent
from swarmd.base.disk import seal_body
from swarmd.base.errors import CorruptFile, Diverged, SwarmError
from swarmd.base.rng import make_rng
from swarmd.cli.job_file import parse_job
from swarmd.cli.txn_file import parse_txn
from swarmd.client.keystream import _Exchange
from swarmd.config import load
from swarmd.gateway.access.records import KeyRecord, decode_key, encode_key
from swarmd.gateway.duplex import Splitter
from swarmd.identity.epochs import Chain, statement_of
from swarmd.identity.voter import Voter
from swarmd.memory.kv.records import (
    Flight,
    Namespace,
    State,
    Stored,
    decode_flight,
    decode_namespace,
    decode_value,
    encode_ending,
)
from swarmd.sdk.protocol import FIELDS, FrameReader, ProtocolError, encode_frame
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.blobs import manifest
from swarmd.state.blobs import pins as pinning
from swarmd.state.blobs.manifest import Manifest as BlobManifest
from swarmd.state.blobs.messages import BlobRef, Pin, PinnedBlob
from swarmd.state.blobs.naming import hash_of, name_of
from swarmd.state.raft import snapshot
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.epoch import Ballot
from swarmd.state.raft.frames import pack, unpack
from swarmd.state.raft.journal import JOURNAL_FILE, Journal
from swarmd.state.raft.machine import START, Deliver, RaftMachine, Wake
from swarmd.state.raft.messages import decode_batch, decode_forward
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
from swarmd.state.secrets.keyring import read_keyring
from swarmd.state.secrets.records import (
    Box,
    RingKey,
    RingRecord,
    SecretRecord,
    decode_ring,
    decode_secret,
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
from swarmd.wire.codec import encode_struct

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


def store() -> Iterator[Target]:
    commands = list(batches().values())
    yield Target(
        "raft.batch",
        _apply,
        commands,
        covers=("state.raft.messages.decode_batch",),
        dress=packed,
        values=[unpacked(raw) for raw in commands],
        renewed_after=KEPT_FOR,
    )
    yield Target("raft.batch_alone", always(decode_batch), commands)
    said = [VOTERS.encode(sample(shape.type_info(kind))) for kind in VOTERS.types]
    yield Target(
        "raft.voter",
        _voter,
        said,
        refusals=(SwarmError, Diverged),
        renewing=(Diverged,),
        dress=lambda value: said[0][:1] + packed(value),
        values=[unpacked(raw[1:]) for raw in said],
        renewed_after=KEPT_FOR,
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
        always(_snapshot),
        [pack(KIND, FORMAT, [meta, b"state" * 10])],
        covers=("state.raft.snapshot.decode_meta",),
        dress=lambda value: pack(KIND, FORMAT, [packed(value), b"state"]),
        values=[unpacked(meta)],
    )
    yield Target(
        "raft.snapshot_meta",
        always(lambda raw: snapshot.decode_meta(raw, voters=("a",), source="test")),
        [meta],
        dress=packed,
        values=[unpacked(meta)],
    )


def epochs() -> Iterator[Target]:
    disk = SimDisk(World(3), "a")
    journal = Journal(disk, make_rng(1))
    for index in range(1, 8):
        journal.add(b"entry", index, 1)
        journal.sync()
    yield Target("raft.journal", always(_journal), [disk.read(JOURNAL_FILE) or b""])
    chain = Chain(GENESIS)
    voter = Voter(KEYS[0].public, b"s" * 16)
    statement = statement_of(chain.head, 2, 7, b"d" * 32, (voter,))
    certificate = Ballot(SWARM, chain.head, statement, KEYS[0]).certificate() or b""
    yield Target(
        "raft.certificate",
        always(lambda raw: Chain(GENESIS).extend(raw)),
        [certificate],
        covers=("identity.epochs.decode_statement",),
        dress=packed,
        values=[unpacked(certificate)],
    )
    yield Target(
        "raft.chain_file",
        always(lambda raw: Chain(GENESIS).load(raw, source="here")),
        [msgspec.msgpack.encode([certificate])],
        dress=packed,
        values=[[certificate]],
    )
    yield Target(
        "raft.forward",
        always(decode_forward),
        [families()["store"].encode(sample(shape.type_info(families()["store"].types[0])))[1:]],
        covers=("state.raft.messages.decode_forward",),
    )
    ticket = encode_ticket(Ticket("me", 1_000, 5))
    yield Target(
        "recipes.ticket",
        always(decode_ticket),
        [ticket],
        covers=("state.recipes.records.decode_ticket",),
        dress=packed,
        values=[unpacked(ticket)],
    )
    yield Target(
        "recipes.place",
        always(read_place),
        [b"r/lock/name/0000000000000011"],
        covers=("state.recipes.records.read_place",),
    )
    yield from _shared_memory()


def _shared_memory() -> Iterator[Target]:
    """What any member may have put into the strong store where shared memory is."""
    value, flight = Stored(b"\x01", "me", 5, b"n"), Flight(State.DONE, "me", b"n", 7, b"\x01")
    namespace = Namespace(bytes_max=4_096, change=1, ttl_ms=9, readers=("viewer", "key:ci"))
    for name, decode, record in (
        ("value", decode_value, encode_ending(value, 9)),
        ("flight", decode_flight, encode_ending(flight, 9)),
        ("namespace", decode_namespace, msgspec.msgpack.encode(namespace)),
    ):
        yield Target(
            f"memory.{name}",
            always(decode),
            [record],
            covers=(f"memory.kv.records.decode_{name}",),
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


def _checked(value: object) -> bytes:
    body = value if isinstance(value, bytes) else packed(value)
    return body + hash_of(body)


def _beside_blobs() -> Iterator[Target]:
    def read_manifest(raw: bytes) -> BlobManifest:
        """By the name that fits what is in it, so that this is not all that is looked at."""
        return manifest.decode_manifest(raw, name_of(raw[5:]), 300_000, source="x")

    hashes = b"1" * 32 + b"2" * 32
    yield Target(
        "blobs.manifest",
        always(read_manifest),
        [manifest.encode_manifest(BlobManifest(name_of(hashes), 300_000, hashes))],
        covers=("state.blobs.manifest.decode_manifest",),
        refusals=(CorruptFile,),
    )
    pins = pinning.encode_pins(PinnedBlob(b"h" * 32, 300_000, (Pin("ann", 2, 5_000, 1_000),)))
    yield Target(
        "blobs.pins",
        always(partial(pinning.decode_pins, source="x")),
        [pins],
        covers=("state.blobs.pins.decode_pins",),
        dress=_checked,
        values=[pins[:-32]],
        refusals=(CorruptFile,),
    )


def work() -> Iterator[Target]:
    for name, call, kind in (
        ("tasks.task", decode_task, TaskRecord),
        ("tasks.assignment", decode_assignment, Assignment),
        ("tasks.job", decode_job, JobRecord),
        ("tasks.manifest", decode_manifest, Manifest),
    ):
        yield of_struct(name, call, msgspec.msgpack.encode(sample(shape.type_info(kind))))
    box = Box(b"i" * 16, b"sealed" * 9)
    environment = Environment((("A", "db"),), ("B",), box)
    spec = msgspec.structs.replace(parse_agent(AGENT_FILE.decode()), env={})
    agent = AgentRecord(spec, sample(shape.type_info(BlobRef)), 5, environment)
    yield of_struct("agents.record", decode_agent, encode_agent(agent))
    yield of_struct("agents.environment", decode_environment, encode_struct(environment))
    secret = SecretRecord("db", 2, 1_000, 2_000, "ann", box)
    yield of_struct("secrets.record", decode_secret, encode_struct(secret))
    ring = RingRecord((RingKey(b"i" * 16, 1_000),), 1)
    yield of_struct("secrets.ring", decode_ring, encode_struct(ring))
    yield from _beside_blobs()
    keys = [[[b"k" * 32, 5]]]
    yield Target(
        "secrets.keyring",
        always(read_keyring),
        [seal_body("keyring", 1, packed(keys))],
        covers=("state.secrets.keyring.read_keyring",),
        dress=lambda value: seal_body("keyring", 1, packed(value)),
        values=[keys],
    )
    key = KeyRecord("ci", bytes(32), "viewer", ("kv:read:ci/*",), 1_000)
    yield of_struct("gateway.key", decode_key, encode_key(key))
    yield Target(
        "agents.file", text(parse_agent), [AGENT_FILE], covers=("agents.spec.parse_agent",)
    )
    bundle = _header("a.py", 3) + b"abc".ljust(512, b"\0") + _header("b/c.py", 0) + bytes(1_024)
    yield Target(
        "agents.bundle",
        always(read_bundle),
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


def edges() -> Iterator[Target]:
    yield Target("config.file", _config, [CONFIG_FILE], covers=("config.load",))
    yield Target(
        "cli.job_file",
        text(lambda text: parse_job(text, "f")),
        [JOB_FILE],
        covers=("cli.job_file.parse_job",),
    )
    yield Target(
        "cli.transaction",
        always(lambda raw: parse_txn(raw, "f")),
        [TXN],
        covers=("cli.txn_file.parse_txn", "cli.txn_file.read_txn"),
    )
    framed = b"\0\0\0\x03abc\0\0\0\x01x"
    yield Target("gateway.stream_frames", _splitter(frames=True), [framed])
    yield Target("gateway.stream_lines", _splitter(frames=False), [b'{"a":1}\n{"b":2}\n'])
    yield Target("client.answers", always(_answers), [_HEAD + b"3\r\nabc\r\n0\r\n\r\n"])
