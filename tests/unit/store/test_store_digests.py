"""Digests of the state: equal where the state is, and told apart by what differs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import restore, whole

from swarmd.base.errors import CorruptFile, Diverged
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.state.raft import digests
from swarmd.state.raft.digests import bucket_of, checksum_of, first_difference
from swarmd.state.raft.messages import (
    Add,
    Batch,
    Delete,
    Entry,
    Group,
    Operation,
    Put,
    TakeOffice,
    encode_batch,
)
from swarmd.state.raft.statemachine import StateMachine

GENESIS = init_swarm("lab", "n0", node_key=SigningKey.from_seed(b"g" * 32))[0]


def do(state: StateMachine, *ops: Operation) -> None:
    state.apply(encode_batch(Batch(1, (Group(b"", 0, 0, ops),))), 1, 1)


def flip(state: StateMachine, key: bytes, value: bytes = b"flipped") -> None:
    """`key` holds another value all at once, and its checksum says so."""
    entry = state.get(key)
    assert entry is not None
    state._entries[key] = msgspec.structs.replace(entry, value=value)


def replace(state: StateMachine, key: bytes) -> None:
    """`key` holds another entry, sound in itself, that no log brought."""
    entry = state.get(key)
    assert entry is not None
    entry = msgspec.structs.replace(entry, value=b"replaced")
    state._entries[key] = msgspec.structs.replace(entry, checksum=checksum_of(entry))


_keys = st.integers(0, 12).map(lambda n: b"k%02d" % n)
_ops = st.builds(Put, _keys, st.binary(max_size=3)) | st.builds(Delete, _keys)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(_ops, min_size=1, max_size=4), st.booleans()), max_size=60))
def test_sums_kept_up_to_date_equal_sums_made_anew(
    steps: list[tuple[list[Operation], bool]],
) -> None:
    """Whenever digests are taken, and however far the walk is: they are of the state alone."""
    state = StateMachine(GENESIS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "SCRUB_KEYS", 3)
        for ops, take in steps:
            do(state, *ops)
            if take:
                state.digest()
        copy = StateMachine(GENESIS)
        restore(copy, whole(state.snapshot()))
        assert copy.digest() == state.digest()
        for _ in range(20):  # Two walks, at whose ends both sums are compared.
            state.digest()


@settings(max_examples=100, deadline=None)
@given(_ops.filter(lambda op: isinstance(op, Put)), st.integers(1, 2**62), st.integers(0, 2**62))
def test_a_checksum_is_of_all_that_an_entry_holds(put: Put, revision: int, lease: int) -> None:
    entry = Entry(put.key, put.value, revision, revision, lease)
    found = checksum_of(entry)
    for other in (
        {"key": put.key + b"x"},
        {"value": put.value + b"x"},
        {"create_revision": revision + 1},
        {"mod_revision": revision + 2**40},
        {"lease": lease + 1},
    ):
        assert checksum_of(msgspec.structs.replace(entry, **other)) != found


def test_what_is_beside_the_keys_counts_too() -> None:
    one, other = StateMachine(GENESIS), StateMachine(GENESIS)
    do(one, Put(b"a", b"1"))
    do(other, Put(b"a", b"1"))
    assert one.digest() == other.digest()
    do(other, TakeOffice(b"n"))
    assert first_difference(one.digest(), other.digest()) == "the state beside its keys"


def test_a_key_that_differs_is_named_by_its_bucket() -> None:
    one, other = StateMachine(GENESIS), StateMachine(GENESIS)
    for state in (one, other):
        do(state, *(Put(b"k%d" % n, b"1") for n in range(50)))
    do(one, Put(b"k7", b"1"))
    do(other, Put(b"k7", b"2"))
    expected = f"bucket {bucket_of(b'k7')} of the state"
    assert first_difference(one.digest(), other.digest()) == expected


@pytest.mark.parametrize("spoil", [flip, replace])
def test_a_walk_finds_what_changed_without_the_log(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[StateMachine, bytes], None]
) -> None:
    monkeypatch.setattr(digests, "SCRUB_KEYS", 10)
    state = StateMachine(GENESIS)
    do(state, *(Put(b"k%03d" % n, b"1") for n in range(100)))
    for _ in range(3):
        state.digest()
    spoil(state, b"k050")

    def walk() -> None:
        for n in range(25):
            do(state, Put(b"k%03d" % n, b"2"))
            state.digest()

    with pytest.raises(Diverged, match=f"bucket {bucket_of(b'k050')} of the state in memory"):
        walk()


def test_what_grew_out_of_a_flipped_value_differs_from_the_others() -> None:
    one, other = StateMachine(GENESIS), StateMachine(GENESIS)
    for state in (one, other):
        do(state, Put(b"n", b"1"))
    flip(other, b"n", b"3")
    for state in (one, other):
        do(state, Add(b"n", 1))
    assert (
        first_difference(one.digest(), other.digest()) == f"bucket {bucket_of(b'n')} of the state"
    )


def test_a_state_that_was_damaged_before_it_was_kept_is_refused() -> None:
    state = StateMachine(GENESIS)
    do(state, Put(b"a", b"1"), Put(b"b", b"1"))
    flip(state, b"b")
    with pytest.raises(CorruptFile, match="b'b' was damaged before it was kept"):
        restore(StateMachine(GENESIS), whole(state.snapshot()))


def test_a_digest_looks_at_no_more_than_a_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateMachine(GENESIS)
    do(state, *(Put(b"k%05d" % n, b"1") for n in range(5_000)))
    summed: list[bytes] = []

    def count(entry: Entry) -> int:
        summed.append(entry.key)
        return checksum_of(entry)

    monkeypatch.setattr(digests, "checksum_of", count)
    do(state, Put(b"k00001", b"2"), Put(b"k00001", b"3"), Put(b"new", b"1"))
    state.digest()
    assert len(summed) == digests.SCRUB_KEYS
