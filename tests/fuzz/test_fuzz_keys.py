"""Anything as a transaction file, and anything a voter may answer to a watch."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import UnknownOperation
from swarmd.cli.common import BadInput
from swarmd.cli.txn_file import parse_txn
from swarmd.gateway.shapes import KvTxn
from swarmd.state.raft.messages import Change, Watched
from swarmd.state.raft.watching import _fitting, _follows, _one_turn, _Place

_words = st.sampled_from(["compares", "then", "else", "op", "key", "put", "text", "value", "a"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | _json.map(lambda value: json.dumps(value).encode()))
def test_any_transaction_file_is_one_or_is_refused_with_its_place(raw: bytes) -> None:
    said = "f"
    try:
        assert isinstance(parse_txn(raw, "f"), KvTxn)
    except (BadInput, UnknownOperation) as error:
        said = error.message
    assert said.startswith("f")


_changes = st.lists(
    st.builds(
        Change,
        st.integers(0, 6),
        st.sampled_from([b"u/a", b"u/b", b"u/big", b"c/x"]),
        st.none() | st.sampled_from([b"", b"x" * 300_000, b"x" * 600_000]),
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(_changes, st.integers(0, 8), st.integers(1, 6))
def test_what_is_told_to_a_watch_is_in_order_and_its_own(
    changes: list[Change], revision: int, begin: int
) -> None:
    if not _follows(Watched(tuple(changes), revision), _Place(b"u/", begin)):
        return
    assert all(one.key.startswith(b"u/") and one.revision >= begin for one in changes)
    assert [one.revision for one in changes] == sorted(one.revision for one in changes)


@settings(max_examples=300, deadline=None)
@given(_changes)
def test_answers_cut_anywhere_join_to_the_whole(changes: list[Change]) -> None:
    """As the asker of a watch does it: go on from the revision reached, skip what is known."""
    told: list[Change] = []
    wanted = sorted(changes, key=lambda one: one.revision)
    revision, pending = 0, 0
    while revision <= 7:
        rest = [one for one in wanted if one.revision >= revision][pending:]
        answer = _fitting(rest, 7)
        values = {position: rest[position].value for position, _ in answer.large}
        told += [
            Change(one.revision, one.key, values.get(at, one.value))
            for at, one in enumerate(answer.changes)
        ]
        revision = answer.revision + 1
        pending = sum(one.revision >= revision for one in told)
    assert told == wanted


@settings(max_examples=200, deadline=None)
@given(_changes)
def test_turns_are_whole_revisions_and_join_to_the_whole(changes: list[Change]) -> None:
    rest = sorted(changes, key=lambda one: one.revision)
    told: list[Change] = []
    while rest:
        turn, reached = _one_turn(rest, 9)
        assert turn
        assert all(one.revision <= reached for one in turn)
        told += turn
        rest = [one for one in rest if one.revision > reached]
    assert told == sorted(changes, key=lambda one: one.revision)
