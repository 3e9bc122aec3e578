"""Any bytes, from a voter or on the disk: counted or refused by name, never a crash."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import CorruptFile, Diverged, MalformedMessage
from swarmd.base.rng import make_rng
from swarmd.sim.disk import SimDisk
from swarmd.sim.world import World
from swarmd.state.raft import wire
from swarmd.state.raft.config import RaftConfig
from swarmd.state.raft.frames import pack
from swarmd.state.raft.journal import JOURNAL_FILE, Journal
from swarmd.state.raft.machine import START, Deliver, RaftMachine, SendRaft, Wake
from swarmd.state.raft.snapshot import FORMAT, KIND, SnapshotMeta, SnapshotReader
from swarmd.wire.codec import encode_struct


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


def _machine() -> RaftMachine:
    disk = SimDisk(World(3), "a")
    return RaftMachine("a", ("a", "b", "c"), disk, _NoState(), make_rng(3), RaftConfig(), 0.0)


_small = st.integers(0, 6)
_entries = st.lists(st.tuples(_small, st.binary(max_size=4)), max_size=4).map(tuple)
_messages = st.one_of(
    st.builds(wire.VoteRequest, _small, _small, _small),
    st.builds(wire.VoteGranted, _small),
    st.builds(wire.PreVoteRequest, _small, _small, _small),
    st.builds(wire.PreVoteGranted, _small),
    st.builds(wire.StaleTerm, _small),
    st.builds(wire.TimeoutNow, _small, _small),
    st.builds(wire.StateDigest, _small, _small, st.binary(max_size=6)),
    st.builds(wire.DigestPassed, _small, _small),
    st.builds(wire.HandedVoteRequest, _small, _small, _small),
    st.builds(wire.Append, _small, _small, _small, _small, _small, _entries),
    st.builds(wire.AppendReply, _small, _small, st.booleans(), _small, _small),
    st.builds(
        wire.SnapshotChunk,
        _small,
        _small,
        _small,
        _small,
        _small,
        _small,
        _small,
        st.binary(max_size=6),
    ),
    st.builds(wire.SnapshotReply, _small, _small, _small, _small),
    st.builds(wire.Part, st.just(b"0" * 16), _small, _small, st.binary(max_size=4)),
)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_from_a_voter_are_survived(data: bytes) -> None:
    machine = _machine()
    machine.handle(Deliver("b", data), 0.0)
    machine.settle(0.0)


@given(message=_messages, at=st.integers(0, 60), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=300)
def test_a_flipped_byte_in_a_message_is_survived(message: wire.Message, at: int, flip: int) -> None:
    raw = bytearray(wire.VOTERS.encode(message))
    raw[at % len(raw)] ^= flip
    machine = _machine()
    try:
        machine.handle(Deliver("b", bytes(raw)), 0.0)
        machine.settle(0.0)
    except Diverged:
        pass  # A well-formed lie of a voter may stop the node, by name.


@given(said=st.lists(st.tuples(st.sampled_from("bc"), _messages, _small), max_size=25))
@settings(deadline=None, max_examples=300)
def test_any_sequence_of_messages_keeps_the_promises(
    said: list[tuple[str, wire.Message, int]],
) -> None:
    """Whatever voters say: term, commit and applied index never fall, and nothing crashes."""
    machine = _machine()
    now = 0.0
    before = (0, 0, 0)
    for peer, message, tenths in said:
        now += tenths / 10
        try:
            machine.handle(Deliver(peer, wire.VOTERS.encode(message)), now)
            machine.handle(Wake(START), now)
            effects = machine.settle(now)
        except Diverged:
            return
        machine.sync()
        for effect in effects:
            if isinstance(effect, SendRaft):
                wire.VOTERS.decode(effect.data)
        status = machine.status(now)
        after = (status.term, status.commit_index, status.applied_index)
        assert all(new >= old for new, old in zip(after, before, strict=True))
        assert status.applied_index <= status.commit_index <= status.last_index
        before = after


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_any_bytes_as_a_journal_are_refused_by_name(raw: bytes) -> None:
    disk = SimDisk(World(3), "a")
    disk.replace(JOURNAL_FILE, raw)
    try:
        Journal(disk, make_rng(1))
    except CorruptFile:
        return
    raise AssertionError("junk was taken for a journal")


@given(cut=st.integers(0, 400), tail=st.binary(max_size=60))
@settings(deadline=None, max_examples=200)
def test_a_journal_cut_anywhere_with_any_tail_opens_or_is_refused(cut: int, tail: bytes) -> None:
    disk = SimDisk(World(3), "a")
    journal = Journal(disk, make_rng(1))
    for index in range(1, 8):
        journal.add(b"entry", index, 1)
        journal.sync()
    raw = disk.read(JOURNAL_FILE) or b""
    disk.replace(JOURNAL_FILE, raw[:cut] + tail)
    try:
        again = Journal(disk, make_rng(1))
    except CorruptFile:
        return
    assert [e[1] for e in list(again[:])] == list(range(1, len(again) + 1))


@given(at=st.integers(0, 1_000), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_a_flipped_byte_in_a_snapshot_is_refused(at: int, flip: int) -> None:
    meta = encode_struct(SnapshotMeta(5, 1, ("a",)))
    raw = bytearray(pack(KIND, FORMAT, [meta, b"state" * 10, b"state" * 10]))
    raw[at % len(raw)] ^= flip
    reader = SnapshotReader(("a",), "test")
    try:
        reader.feed(bytes(raw))
        reader.finish()
    except CorruptFile:
        return
    raise AssertionError("a damaged snapshot was accepted")


@given(st.lists(st.tuples(st.sampled_from([b"0" * 16, b"1" * 16]), _small, _small), max_size=40))
@settings(deadline=None, max_examples=200)
def test_parts_of_any_numbers_are_survived(parts: list[tuple[bytes, int, int]]) -> None:
    assembler = wire.Assembler()
    for whole, number, count in parts:
        try:
            assert assembler.take(wire.Part(whole, number, count, b"data")) is None
        except MalformedMessage:
            continue
