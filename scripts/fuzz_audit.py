"""Targets of the audit log: records, batches, seals, segments of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fuzz_inputs import packed, unpacked
from fuzz_target import KEYS, SWARM, Target, always, of_struct, text

from swarmd.audit.chain import Note, Writer, open_floor, open_seal, open_sealed, sign_floor
from swarmd.audit.index import (
    FileSeen,
    IndexedLife,
    IndexedSegment,
    decode_index,
    encode_index,
)
from swarmd.audit.records import (
    AUDIT_DOMAIN,
    FLOOR_DOMAIN,
    SECURITY,
    ChainId,
    Floor,
    decode_batch,
    decode_floor,
    decode_record,
    decode_seal,
)
from swarmd.audit.resealing import reseal_segment
from swarmd.audit.segments import frame_of, frames_in, name_of, parse_name
from swarmd.audit.verify import CopyCheck
from swarmd.base.ids import to_text
from swarmd.cli.audit_log import read_chain
from swarmd.identity.sealing import SealingKey
from swarmd.identity.signing import sign_envelope
from swarmd.wire.envelope import encode_envelope

_PUBLIC = {bytes(key.key_id): key.public for key in KEYS}


def _signed(domain: str, value: Any) -> bytes:
    return encode_envelope(sign_envelope(domain, SWARM, packed(value), KEYS[0]))


def _indexed(chain: ChainId) -> IndexedLife:
    seen = FileSeen(355, 10**18)
    return IndexedLife(chain, b"", 1, bytes(32), 3, bytes(32), 5, (IndexedSegment(1, seen),))


def audits() -> Iterator[Target]:
    writer = Writer(KEYS[0], SWARM, SECURITY, b"l" * 8)
    note = Note(1_000, "key.created", "somebody", "ci", "ok", "viewer")
    [sealed] = writer.seal([note] * 3, 5)
    batch = decode_batch(sealed.raw)
    floor = sign_floor(
        Floor(bytes(KEYS[0].key_id), writer.chain, 3, bytes(32), 5, True), SWARM, KEYS[0]
    )

    def check(raw: bytes) -> None:
        copy = CopyCheck(b"h", writer.chain, SWARM, _PUBLIC, 3)
        for frame in frames_in(raw):
            copy.take(frame.raw)
        copy.finish()

    yield of_struct("audit.record", decode_record, batch.records[0])
    yield of_struct("audit.index", decode_index, encode_index([_indexed(writer.chain)]))
    yield Target(
        "audit.batch",
        always(lambda raw: open_sealed(raw, SWARM, _PUBLIC)),
        [sealed.raw],
        covers=("audit.records.decode_batch", "audit.chain.open_sealed"),
        dress=packed,
        values=[unpacked(sealed.raw)],
    )
    yield Target(
        "audit.seal",
        always(lambda raw: open_seal(raw, SWARM, _PUBLIC)),
        [sealed.envelope],
        covers=("audit.records.decode_seal", "audit.chain.open_seal"),
        dress=lambda value: _signed(AUDIT_DOMAIN, value),
        values=[unpacked(decode_seal(sealed.envelope)[0].payload)],
    )
    yield Target(
        "audit.floor",
        always(lambda raw: open_floor(raw, SWARM, _PUBLIC)),
        [floor],
        covers=("audit.records.decode_floor", "audit.chain.open_floor"),
        dress=lambda value: _signed(FLOOR_DOMAIN, value),
        values=[unpacked(decode_floor(floor)[0].payload)],
    )
    yield Target("audit.segment", always(check), [frame_of(sealed) * 3])
    name, one, other = name_of(writer.chain, 1), SealingKey(b"1" * 32), SealingKey(b"2" * 32)

    def reseal(raw: bytes) -> None:
        """Whatever it is: sealed it stays what it was shown as, and it is given back as it was."""
        made = reseal_segment(raw, name, [], other)
        assert reseal_segment(made, name, [other], None) == raw

    yield Target("audit.resealed", always(reseal), [frame_of(sealed) * 3])
    yield Target(
        "audit.sealed",
        always(lambda raw: reseal_segment(raw, name, [one], other)),
        [frame_of(sealed, name, one) * 3],
        covers=("audit.sealed.open_batch", "audit.sealed.open_any"),
    )
    yield Target(
        "audit.name",
        text(parse_name),
        [name_of(writer.chain, 7).encode()],
        covers=("audit.segments.parse_name",),
    )
    chain = f"{to_text(writer.chain.node)}.security.{to_text(writer.chain.life)}"
    yield Target(
        "audit.chain", text(read_chain), [chain.encode()], covers=("cli.audit_log.read_chain",)
    )
