"""Digests of the state: equal where the state is, and told apart by what differs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import restore, whole

from swarmd.base.errors import Diverged
from swarmd.identity.genesis import init_swarm
from swarmd.identity.keys import SigningKey
from swarmd.state.raft import digests
from swarmd.state.raft.digests import bucket_of, first_difference
from swarmd.state.raft.messages import (
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


def known(state: StateMachine) -> bytes:
    """The digest, once the first walk is over."""
    for _ in range(1_000):
        found = state.digest()
        if found is not None:
            return found
    raise AssertionError("the first walk never ends")


def flip(state: StateMachine, key: bytes) -> None:
    entry = state.get(key)
    assert entry is not None
    state._entries[key] = Entry(key, b"flipped", entry.create_revision, entry.mod_revision)


_keys = st.integers(0, 12).map(lambda n: b"k%02d" % n)
_ops = st.builds(Put, _keys, st.binary(max_size=3)) | st.builds(Delete, _keys)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_ops, st.booleans()), max_size=60), st.integers(1, 5))
def test_sums_kept_up_to_date_equal_sums_made_anew(
    steps: list[tuple[Operation, bool]], scrub: int
) -> None:
    """Whenever digests are taken, and however far the walk is: they are of the state alone."""
    state = StateMachine(GENESIS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "SCRUB_KEYS", scrub)
        patch.setattr(digests, "FIRST_SCRUB_KEYS", scrub)
        for op, take in steps:
            do(state, op)
            if take:
                state.digest()
        copy = StateMachine(GENESIS)
        restore(copy, whole(state.snapshot()))
        assert known(copy) == known(state)


def test_what_is_beside_the_keys_counts_too() -> None:
    one, other = StateMachine(GENESIS), StateMachine(GENESIS)
    do(one, Put(b"a", b"1"))
    do(other, Put(b"a", b"1"))
    assert known(one) == known(other)
    do(other, TakeOffice(b"n"))
    assert first_difference(known(one), known(other)) == "the state beside its keys"


def test_a_key_that_differs_is_named_by_its_bucket() -> None:
    one, other = StateMachine(GENESIS), StateMachine(GENESIS)
    for state in (one, other):
        do(state, *(Put(b"k%d" % n, b"1") for n in range(50)))
    flip(other, b"k7")
    expected = f"bucket {bucket_of(b'k7')} of the state"
    assert first_difference(known(one), known(other)) == expected


def test_a_walk_finds_what_changed_without_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SCRUB_KEYS", 10)
    state = StateMachine(GENESIS)
    do(state, *(Put(b"k%03d" % n, b"1") for n in range(100)))
    known(state)
    flip(state, b"k050")

    def walk() -> None:
        for n in range(25):
            do(state, Put(b"k%03d" % n, b"2"))
            state.digest()

    with pytest.raises(Diverged, match=f"bucket {bucket_of(b'k050')} of the state in memory"):
        walk()


def test_a_digest_looks_at_no_more_than_a_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateMachine(GENESIS)
    do(state, *(Put(b"k%05d" % n, b"1") for n in range(5_000)))
    known(state)
    summed: list[Entry] = []
    encode = digests._encode
    monkeypatch.setattr(digests, "_encode", lambda entry: summed.append(entry) or encode(entry))
    do(state, Put(b"k00001", b"2"), Put(b"k00001", b"3"), Put(b"new", b"1"))
    state.digest()
    summed = [entry for entry in summed if isinstance(entry, Entry)]
    assert len(summed) == digests.SCRUB_KEYS + 3, "a key before and after, a new one, the walk"
