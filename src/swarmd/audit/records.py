"""What the audit log is made of, and how it reads.

A node writes three *streams*: `security`; `access`, which anybody can make grow by asking; and
`work`, which is what agents do. Each has room of its own, so that none pushes out another. Each is
a chain of records, numbered from 1. What comes together is a *batch*: its records, and a *seal*, by
which the node's key signs the number and the hash of the last one. So a record costs no signature.

The hash of a record covers the hash of the one before; before the first one stands a hash of the
swarm, the node and the stream. `Batch.links` holds the beginning of each record's hash. It proves
nothing, but tells which record it is that no longer fits.

With each start of its daemon a node begins a new *life* of its streams, which goes on where the
newest life on its disk ended, and says so in every seal. So a disk that was restored from a copy
shows as a life that begins before the end of the other one, and no number is signed twice in one
life; a node that lost its disk begins from 1 in a life without a parent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from swarmd.base.errors import MalformedMessage
from swarmd.base.ids import ID_BYTES, digest
from swarmd.base.limits import KIB
from swarmd.wire.codec import decode_struct, encode_struct
from swarmd.wire.envelope import Envelope, decode_envelope

AUDIT_DOMAIN: Final = "audit"
FLOOR_DOMAIN: Final = "audit-floor"
LIFE_BYTES: Final = 8
LINK_BYTES: Final = 8
NUMBER_MAX: Final = 2**63 - 1
BATCH_RECORDS_MAX: Final = 256
BATCH_BYTES_MAX: Final = 128 * KIB
_SEAL_BYTES_MAX: Final = 1 * KIB

Stream = Literal["security", "access", "work"]
SECURITY: Final = "security"
ACCESS: Final = "access"
WORK: Final = "work"
STREAMS: Final[tuple[Stream, ...]] = (SECURITY, ACCESS, WORK)
# All other kinds are security's.
ACCESS_KINDS: Final = frozenset({"access.refused", "session.opened", "mesh.refused"})
WORK_KINDS: Final = frozenset(
    {
        "attempt.started",
        "attempt.ended",
        "agent.call",
        "task.submitted",
        "task.cancelled",
        "job.submitted",
        "job.cancelled",
    }
)

KIND_CHARS_MAX: Final = 32
ACTOR_CHARS_MAX: Final = 160
SUBJECT_CHARS_MAX: Final = 200
OUTCOME_CHARS_MAX: Final = 32
DETAILS_CHARS_MAX: Final = 200
# Of four bytes a character at most, and the rest of a record.
RECORD_BYTES_MAX: Final = (
    4
    * (KIND_CHARS_MAX + ACTOR_CHARS_MAX + SUBJECT_CHARS_MAX + OUTCOME_CHARS_MAX + DETAILS_CHARS_MAX)
    + 64
)
assert RECORD_BYTES_MAX + _SEAL_BYTES_MAX < BATCH_BYTES_MAX

NodeBytes = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Life = Annotated[bytes, Meta(min_length=LIFE_BYTES, max_length=LIFE_BYTES)]
Parent = Annotated[bytes, Meta(max_length=LIFE_BYTES)]
Number = Annotated[int, Meta(ge=1, le=NUMBER_MAX)]
BeforeNumber = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Ms = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A struct that is stored or sent."""


class Record(Part, frozen=True, gc=False):
    """One event. `wall_ms` never falls within a life, whatever the clock of the host does."""

    number: Number
    wall_ms: Ms
    kind: Annotated[str, Meta(max_length=KIND_CHARS_MAX)]
    actor: Annotated[str, Meta(max_length=ACTOR_CHARS_MAX)]
    subject: Annotated[str, Meta(max_length=SUBJECT_CHARS_MAX)]
    outcome: Annotated[str, Meta(max_length=OUTCOME_CHARS_MAX)]
    details: Annotated[str, Meta(max_length=DETAILS_CHARS_MAX)]


class ChainId(Part, frozen=True, order=True):
    """One life of one stream of one node."""

    node: NodeBytes
    stream: Stream
    life: Life


class Seal(Part, frozen=True):
    """What is signed for the records `first` to `last`: `hash` is that of the last one, and
    `previous` of the one before the first.

    The life began at the number `begin`, on from `begin - 1` of the life `parent` (empty: none).
    """

    chain: ChainId
    parent: Parent
    begin: Number
    first: Number
    previous: Hash
    last: Number
    hash: Hash
    store_ms: Ms
    wall_ms: Ms


class Batch(Part, frozen=True):
    """`seal` is an envelope by the node's key. Records stay the bytes that were hashed."""

    seal: Annotated[bytes, Meta(max_length=_SEAL_BYTES_MAX)]
    records: Annotated[
        tuple[Annotated[bytes, Meta(max_length=RECORD_BYTES_MAX)], ...],
        Meta(min_length=1, max_length=BATCH_RECORDS_MAX),
    ]
    links: Annotated[bytes, Meta(max_length=LINK_BYTES * BATCH_RECORDS_MAX)]


class Floor(Part, frozen=True):
    """`holder` lacks records of `chain` up to `number`, whose hash this is.

    They were `dropped`, being too old or too many; or it never had them, as whoever it asked had
    dropped them. `wall_ms` is when the holder wrote what it dropped, or 0.
    """

    holder: NodeBytes
    chain: ChainId
    number: BeforeNumber
    hash: Hash
    wall_ms: Ms
    dropped: bool


def stream_of(kind: str) -> Stream:
    if kind in WORK_KINDS:
        return WORK
    return ACCESS if kind in ACCESS_KINDS else SECURITY


def root_hash(swarm_id: bytes, node: bytes, stream: Stream) -> bytes:
    """What stands before the first record of a chain without a past."""
    return digest(b"audit", swarm_id, node, stream.encode())


def hash_after(previous: bytes, raw: bytes) -> bytes:
    """The hash of the record `raw`, before which comes the one with the hash `previous`."""
    return hashlib.blake2b(previous + raw, digest_size=32, person=b"swarmd audit").digest()


def hashes_of(previous: bytes, records: Iterable[bytes]) -> list[bytes]:
    """The hash of each of `records`, in their order."""
    found = []
    for raw in records:
        previous = hash_after(previous, raw)
        found.append(previous)
    return found


def links_of(hashes: Iterable[bytes]) -> bytes:
    return b"".join([one[:LINK_BYTES] for one in hashes])


def encode_record(record: Record) -> bytes:
    return encode_struct(record)


def decode_record(raw: bytes) -> Record:
    """Raises MalformedMessage."""
    if len(raw) > RECORD_BYTES_MAX:
        raise MalformedMessage(f"an audit record of {len(raw)} bytes is too large")
    record: Record = decode_struct(Record, raw)
    return record


def decode_batch(raw: bytes) -> Batch:
    """The batch in `raw`. Neither its seal nor its records were looked at.

    Raises:
        MalformedMessage: it is none, or over a bound.
    """
    if len(raw) > BATCH_BYTES_MAX:
        raise MalformedMessage(f"a batch of audit records of {len(raw)} bytes is too large")
    batch: Batch = decode_struct(Batch, raw)
    if len(batch.links) != LINK_BYTES * len(batch.records):
        raise MalformedMessage("a batch of audit records has links for others than its records")
    return batch


def decode_seal(raw: bytes) -> tuple[Envelope, Seal]:
    """The envelope in `raw` and the seal in it; signatures are not checked here.

    Raises:
        MalformedMessage: it is none, or its numbers contradict each other.
    """
    if len(raw) > _SEAL_BYTES_MAX:
        raise MalformedMessage(f"a seal of {len(raw)} bytes is too large")
    envelope = decode_envelope(raw, domain=AUDIT_DOMAIN)
    seal: Seal = decode_struct(Seal, envelope.payload)
    if not seal.begin <= seal.first <= seal.last:
        raise MalformedMessage("a seal whose numbers contradict each other")
    if len(seal.parent) not in (0, LIFE_BYTES) or (not seal.parent and seal.begin != 1):
        raise MalformedMessage("a seal of a life that began nowhere")
    return envelope, seal


def decode_floor(raw: bytes) -> tuple[Envelope, Floor]:
    """The envelope in `raw` and the floor in it; signatures are not checked here.

    Raises:
        MalformedMessage: it is none.
    """
    if len(raw) > _SEAL_BYTES_MAX:
        raise MalformedMessage(f"a floor of {len(raw)} bytes is too large")
    envelope = decode_envelope(raw, domain=FLOOR_DOMAIN)
    floor: Floor = decode_struct(Floor, envelope.payload)
    return envelope, floor
