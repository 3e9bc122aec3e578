"""Chains: what was written verifies, and any change of it is found, by its number."""

from __future__ import annotations

import msgspec
import pytest
from audit_swarm import KEY, PUBLIC, SWARM, judged, note, notes, writer, written
from hypothesis import given, settings
from hypothesis import strategies as st
from small_swarm import KEYS

from swarmd.audit.chain import Broken, Place, Sealed, open_floor, open_sealed, sign_floor
from swarmd.audit.records import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    Batch,
    ChainId,
    Floor,
    decode_batch,
    decode_record,
    encode_record,
    hashes_of,
    links_of,
    root_hash,
    stream_of,
)
from swarmd.audit.verify import CopyCheck
from swarmd.base.errors import BadSignature, MalformedMessage, SwarmError
from swarmd.wire.codec import encode_struct

HOLDER = bytes(KEY.key_id)


def with_records(sealed: Sealed, records: list[bytes], *, links: bool = False) -> bytes:
    """The batch with other records; `links`: whoever did it also did what can be done without
    the node's key.
    """
    batch = decode_batch(sealed.raw)
    new = links_of(hashes_of(sealed.seal.previous, records)) if links else batch.links
    return encode_struct(
        Batch(batch.seal, tuple(records), new[: 8 * len(records)].ljust(8 * len(records), b"\0"))
    )


def test_a_chain_begins_with_swarm_node_and_stream_and_counts_from_one() -> None:
    sealed = written([3, 2])
    assert [(one.seal.first, one.seal.last) for one in sealed] == [(1, 3), (4, 5)]
    assert sealed[0].seal.previous == root_hash(SWARM, HOLDER, "security")
    assert sealed[1].seal.previous == sealed[0].seal.hash
    for one in sealed:
        assert open_sealed(one.raw, SWARM, PUBLIC).seal == one.seal
    assert decode_record(decode_batch(sealed[1].raw).records[0]).actor == "actor 4"


def test_a_life_goes_on_where_its_parent_ended() -> None:
    first = written([3])[0].seal
    parent = Place(first.chain.life, first.last, first.hash)
    [after] = written([2], writer(life=b"m" * 8, parent=parent))
    assert (after.seal.first, after.seal.begin, after.seal.parent) == (4, 4, b"l" * 8)
    assert after.seal.previous == first.hash


def test_batches_are_cut_by_count_and_by_bytes() -> None:
    by_count = writer().seal(notes(BATCH_RECORDS_MAX * 2 + 1), 0)
    assert [one.seal.last for one in by_count] == [256, 512, 513]
    large = [note(1)._replace(actor="ä" * 999, subject="\U0001f40d" * 999, details="x" * 999)] * 300
    by_bytes = writer().seal(large, 0)
    assert len(by_bytes) > 2
    assert max(len(one.raw) for one in by_bytes) <= BATCH_BYTES_MAX
    for one in by_bytes:
        open_sealed(one.raw, SWARM, PUBLIC)


def test_what_cannot_be_written_as_it_is_is_written_all_the_same() -> None:
    odd = note(1)._replace(actor="a\udcffb", subject="\x1b[31m", kind="k" * 99)
    [sealed] = writer().seal([odd], -5)
    record = decode_record(decode_batch(sealed.raw).records[0])
    assert (record.actor, record.subject, record.kind) == ("a?b", "\x1b[31m", "k" * 32)
    assert sealed.seal.store_ms == 0


def test_times_never_fall() -> None:
    [sealed] = writer().seal([note(9), note(1), note(10)], 0)
    records = [decode_record(raw) for raw in decode_batch(sealed.raw).records]
    assert [one.wall_ms for one in records] == [1_009, 1_009, 1_010]


def test_work_does_not_share_a_stream_with_security() -> None:
    assert {stream_of(kind) for kind in ("attempt.started", "agent.call", "task.submitted")} == {
        "work"
    }
    assert {stream_of(kind) for kind in ("agent.deployed", "key.created", "x")} == {"security"}


# ---- changes -------------------------------------------------------------------------------

SEALED = written([5, 1, 7, 3])
TOTAL = 16


def changes() -> st.SearchStrategy[tuple[str, int, int]]:
    return st.tuples(
        st.sampled_from(["change", "remove", "insert", "swap", "repeat", "flip"]),
        st.integers(1, TOTAL),
        st.integers(0, 10_000),
    )


def changed(how: str, number: int, chance: int, *, links: bool) -> tuple[list[bytes], int] | None:
    """The chain with one change, and the number of the first record that is wrong then."""
    index, one = next((i, s) for i, s in enumerate(SEALED) if s.seal.first <= number <= s.seal.last)
    at = number - one.seal.first
    records = list(decode_batch(one.raw).records)
    record = decode_record(records[at])
    raws = [sealed.raw for sealed in SEALED]
    if how == "flip":
        bit = chance % (8 * len(one.raw))
        raws[index] = _flipped(one.raw, bit)
        return raws, one.seal.first
    if how == "change":
        records[at] = encode_record(msgspec.structs.replace(record, subject=f"other {chance}"))
    elif how == "remove":
        del records[at]
    elif how == "insert":
        records.insert(at, encode_record(msgspec.structs.replace(record, actor="somebody else")))
    elif how == "repeat":
        records.insert(at, records[at])
    elif at + 1 < len(records):
        records[at], records[at + 1] = records[at + 1], records[at]
    else:
        return None
    if not records or len(records) > BATCH_RECORDS_MAX:
        return None
    raws[index] = with_records(one, records, links=links)
    return raws, number


def _flipped(raw: bytes, bit: int) -> bytes:
    mutable = bytearray(raw)
    mutable[bit // 8] ^= 1 << bit % 8
    return bytes(mutable)


@settings(max_examples=400, deadline=None)
@given(changes())
def test_any_change_is_found_and_named(change: tuple[str, int, int]) -> None:
    """Where only records were touched, the first one that is wrong is named exactly."""
    made = changed(*change, links=False)
    if made is None:
        return
    raws, number = made
    [verdict] = judged({HOLDER: [raws]}, {0: TOTAL}, chains=[SEALED[0].seal.chain])
    assert verdict.findings, change
    if change[0] != "flip":
        assert abs(verdict.findings[0].number - number) <= (change[0] in ("insert", "repeat"))
        if change[0] in ("change", "remove"):
            assert verdict.findings[0].number == number


@settings(max_examples=200, deadline=None)
@given(changes())
def test_it_is_found_also_if_hashes_were_made_anew(change: tuple[str, int, int]) -> None:
    made = changed(*change, links=True)
    if made is not None:
        [verdict] = judged({HOLDER: [made[0]]}, {0: TOTAL}, chains=[SEALED[0].seal.chain])
        assert verdict.findings, change


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 4), st.booleans())
def test_batches_removed_moved_or_repeated_are_found(
    order: list[int], kept: int, repeated: bool
) -> None:
    numbers = order[:kept] + (order[kept - 1 : kept] if repeated and kept else [])
    if numbers == [0, 1, 2, 3]:
        return
    raws = [SEALED[index].raw for index in numbers]
    [verdict] = judged({HOLDER: [raws]}, {0: TOTAL}, chains=[SEALED[0].seal.chain])
    assert verdict.findings


def test_each_kind_of_change_is_named() -> None:
    def found(how: str, number: int) -> str:
        made = changed(how, number, 1, links=False)
        assert made is not None
        [verdict] = judged({HOLDER: [made[0]]}, {0: TOTAL}, chains=[SEALED[0].seal.chain])
        return verdict.findings[0].what

    assert found("change", 3) == "record 3 was changed"
    assert found("remove", 9) == "record 9 was removed"
    assert found("remove", 5) == "record 5 was removed"
    assert found("repeat", 9) == "a record 9 was inserted after record 9"
    copy = CopyCheck(HOLDER, SEALED[0].seal.chain, SWARM, PUBLIC, TOTAL)
    for one in (SEALED[0], SEALED[3]):
        copy.take(one.raw)
    copy.finish()
    assert [one.what for one in copy.findings] == ["records 6 to 13 were removed"]


def test_only_the_node_itself_seals() -> None:
    other = written([2], writer(key=KEYS[1]))[0]
    batch, theirs = decode_batch(SEALED[0].raw), decode_batch(other.raw)
    forged = encode_struct(Batch(theirs.seal, batch.records, batch.links))
    with pytest.raises(Broken):
        open_sealed(forged, SWARM, PUBLIC)
    with pytest.raises(BadSignature):
        open_sealed(SEALED[0].raw, SWARM, {})
    with pytest.raises(BadSignature):
        open_sealed(SEALED[0].raw, b"x" * 32, PUBLIC)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 4_000))
def test_any_bytes_are_refused_by_name(raw: bytes, bit: int) -> None:
    for one in (raw, _flipped(SEALED[0].raw, bit % (8 * len(SEALED[0].raw)))):
        with pytest.raises(SwarmError):
            open_sealed(one, SWARM, PUBLIC)


def test_a_floor_is_signed_by_its_holder() -> None:
    floor = Floor(HOLDER, ChainId(bytes(32), "work", bytes(8)), 7, bytes(32), 5, True)
    raw = sign_floor(floor, SWARM, KEY)
    assert open_floor(raw, SWARM, PUBLIC) == floor
    with pytest.raises(BadSignature):
        open_floor(sign_floor(floor, SWARM, KEYS[1]), SWARM, PUBLIC)
    with pytest.raises(MalformedMessage):
        open_floor(raw[:-1], SWARM, PUBLIC)
