"""Chains are written and checked here: pure, but for signatures.

Invariant: a `Writer` seals no number twice, and what it sealed is kept or the writer is done
with. Whoever sends a batch has it on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from swarmd.audit.records import (
    ACTOR_CHARS_MAX,
    AUDIT_DOMAIN,
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    DETAILS_CHARS_MAX,
    FLOOR_DOMAIN,
    KIND_CHARS_MAX,
    LINK_BYTES,
    OUTCOME_CHARS_MAX,
    SUBJECT_CHARS_MAX,
    Batch,
    ChainId,
    Floor,
    Record,
    Seal,
    Stream,
    decode_batch,
    decode_floor,
    decode_record,
    decode_seal,
    encode_record,
    hash_after,
    hashes_of,
    links_of,
    root_hash,
)
from swarmd.base.errors import BadSignature, MalformedMessage, Untrusted
from swarmd.identity.keys import SigningKey
from swarmd.identity.signing import sign_envelope, verify_envelope
from swarmd.wire.codec import encode_struct
from swarmd.wire.envelope import encode_envelope

# What a batch takes besides its records, and each record besides its own bytes.
_BATCH_EXTRA: Final = 1_536
_RECORD_EXTRA: Final = LINK_BYTES + 8


class Note(NamedTuple):
    """An event that is no record yet."""

    wall_ms: int
    kind: str
    actor: str
    subject: str
    outcome: str
    details: str


class Place(NamedTuple):
    """A record of a life, by its number and hash."""

    life: bytes
    number: int
    hash: bytes


class Broken(Untrusted):
    """Records were changed, removed or inserted; `number` is the first one that is wrong."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number


@dataclass(frozen=True, slots=True)
class Sealed:
    """A batch as it is kept and sent, and what its seal says."""

    raw: bytes
    seal: Seal
    envelope: bytes
    """The seal with its signature."""


class Writer:
    """One life of one stream of this node.

    Args:
        life: drawn by chance for this start of the daemon.
        parent: where the newest life on the disk ended; None begins a chain without a past.
    """

    def __init__(
        self,
        key: SigningKey,
        swarm_id: bytes,
        stream: Stream,
        life: bytes,
        parent: Place | None = None,
    ) -> None:
        self._key = key
        self._swarm_id = swarm_id
        self.chain = ChainId(bytes(key.key_id), stream, life)
        self._parent = parent.life if parent is not None else b""
        self._begin = parent.number + 1 if parent is not None else 1
        self.parent = ChainId(self.chain.node, stream, parent.life) if parent is not None else None
        self.last = self._begin - 1
        self.hash = (
            parent.hash if parent is not None else root_hash(swarm_id, bytes(key.key_id), stream)
        )
        self._wall_ms = 0

    def seal(self, notes: Sequence[Note], store_ms: int) -> list[Sealed]:
        """`notes` as records in batches, in order, each signed."""
        found: list[Sealed] = []
        records: list[bytes] = []
        size = _BATCH_EXTRA
        for note in notes:
            raw = self._record(note, self.last + len(records) + 1)
            if len(records) == BATCH_RECORDS_MAX or size + len(raw) > BATCH_BYTES_MAX:
                found.append(self._close(records, store_ms))
                records, size = [], _BATCH_EXTRA
            records.append(raw)
            size += len(raw) + _RECORD_EXTRA
        if records:
            found.append(self._close(records, store_ms))
        return found

    def _record(self, note: Note, number: int) -> bytes:
        self._wall_ms = max(self._wall_ms, note.wall_ms)
        record = Record(
            number,
            self._wall_ms,
            *cut((note.kind, note.actor, note.subject, note.outcome, note.details)),
        )
        try:
            return encode_record(record)
        except UnicodeEncodeError:  # Lone surrogates, out of a path.
            return encode_record(
                Record(number, self._wall_ms, *map(_encodable, record_texts(record)))
            )

    def _close(self, records: list[bytes], store_ms: int) -> Sealed:
        hashes = hashes_of(self.hash, records)
        seal = Seal(
            self.chain,
            self._parent,
            self._begin,
            self.last + 1,
            self.hash,
            self.last + len(records),
            hashes[-1],
            max(0, store_ms),
            self._wall_ms,
        )
        envelope = encode_envelope(
            sign_envelope(AUDIT_DOMAIN, self._swarm_id, encode_struct(seal), self._key)
        )
        raw = encode_struct(Batch(envelope, tuple(records), links_of(hashes)))
        self.last, self.hash = seal.last, seal.hash
        return Sealed(raw, seal, envelope)


Texts = tuple[str, str, str, str, str]


def cut(texts: Texts) -> Texts:
    """Kind, actor, subject, outcome and details, each as long as a record may have it."""
    kind, actor, subject, outcome, details = texts
    return (
        kind[:KIND_CHARS_MAX],
        actor[:ACTOR_CHARS_MAX],
        subject[:SUBJECT_CHARS_MAX],
        outcome[:OUTCOME_CHARS_MAX],
        details[:DETAILS_CHARS_MAX],
    )


def record_texts(record: Record) -> Texts:
    return record.kind, record.actor, record.subject, record.outcome, record.details


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# ---- checking ------------------------------------------------------------------------------


def open_sealed(raw: bytes, swarm_id: bytes, keys: Mapping[bytes, bytes]) -> Sealed:
    """The batch in `raw`, once all of it was checked: signature, hashes, numbers.

    Args:
        keys: public key by node id of those whose records count.

    Raises:
        MalformedMessage: it is no batch.
        BadSignature: the seal is not signed by its node.
        Broken: its records are not those that were sealed; says which is the first.
    """
    batch = decode_batch(raw)
    seal = open_seal(batch.seal, swarm_id, keys)
    check_records(batch, seal)
    return Sealed(raw, seal, batch.seal)


def open_seal(raw: bytes, swarm_id: bytes, keys: Mapping[bytes, bytes]) -> Seal:
    """Raises MalformedMessage, BadSignature."""
    envelope, seal = decode_seal(raw)
    node = seal.chain.node
    if [key for key, _ in envelope.signatures] != [node] or node not in keys:
        raise BadSignature("a seal of audit records that its node did not sign")
    verify_envelope(envelope, swarm_id, {node: keys[node]})
    return seal


def check_records(batch: Batch, seal: Seal) -> None:
    """Raises Broken: the records of `batch` are not those that `seal` is for."""
    hashes = hashes_of(seal.previous, batch.records)
    count = seal.last - seal.first + 1
    if len(hashes) == count and hashes[-1] == seal.hash and links_of(hashes) == batch.links:
        return
    _find_broken(batch, seal)
    raise Broken(seal.first, f"records {seal.first} to {seal.last} are not those that were sealed")


def _find_broken(batch: Batch, seal: Seal) -> None:
    """Raise Broken for the first record that does not fit, if one can be told."""
    previous, expected = seal.previous, seal.first
    for index, raw in enumerate(batch.records):
        try:
            number = decode_record(raw).number
        except MalformedMessage as error:
            raise Broken(expected, f"record {expected} was changed: it is unreadable") from error
        if number > expected:
            raise Broken(expected, f"record {expected} was removed")
        if number < expected or expected > seal.last:
            raise Broken(number, f"a record {number} was inserted after record {expected - 1}")
        previous = hash_after(previous, raw)
        if batch.links[index * LINK_BYTES : (index + 1) * LINK_BYTES] != previous[:LINK_BYTES]:
            raise Broken(expected, f"record {expected} was changed")
        expected += 1
    if expected <= seal.last:
        raise Broken(expected, f"record {expected} was removed")


# ---- what is too old -----------------------------------------------------------------------


def sign_floor(floor: Floor, swarm_id: bytes, key: SigningKey) -> bytes:
    return encode_envelope(sign_envelope(FLOOR_DOMAIN, swarm_id, encode_struct(floor), key))


def open_floor(raw: bytes, swarm_id: bytes, keys: Mapping[bytes, bytes]) -> Floor:
    """Raises MalformedMessage, BadSignature."""
    envelope, floor = decode_floor(raw)
    holder = floor.holder
    if [key for key, _ in envelope.signatures] != [holder] or holder not in keys:
        raise BadSignature("a floor of audit records that its holder did not sign")
    verify_envelope(envelope, swarm_id, {holder: keys[holder]})
    return floor
