"""What the tables of an index in PostgreSQL hold is in the order of what it stands for."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import CorruptFile
from swarmd.memory.vector.pg_values import (
    HEAD_BYTES,
    decode_text,
    decode_vector,
    encode_text,
    encode_vector,
    kind_ends,
    sortable,
    split,
)
from swarmd.memory.vector.rules import kind_of
from swarmd.memory.vector.shapes import Scalar, packed

NEAR = [2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1, 0, 1]
INTEGERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from(NEAR))
NUMBERS = st.one_of(
    INTEGERS,
    INTEGERS.map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 5e-324, -5e-324, 1e300]),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PAIRS = st.one_of(
    st.tuples(NUMBERS, NUMBERS), st.tuples(TEXTS, TEXTS), st.tuples(st.booleans(), st.booleans())
)


@given(PAIRS)
def test_bytes_are_in_the_order_of_values(pair: tuple[Scalar, Scalar]) -> None:
    one, other = pair
    assert (sortable(one) < sortable(other)) == (one < other)  # type: ignore[operator]
    assert (sortable(one) == sortable(other)) == (one == other)
    begin, end = kind_ends(one)
    assert begin <= sortable(one) < end


@given(st.one_of(NUMBERS, TEXTS, st.booleans()), st.one_of(NUMBERS, TEXTS, st.booleans()))
def test_values_of_two_kinds_are_never_mixed(one: Scalar, other: Scalar) -> None:
    if kind_of(one) != kind_of(other):
        assert (sortable(one) < sortable(other)) == (kind_of(one) < kind_of(other))


@given(st.binary(max_size=3 * HEAD_BYTES))
def test_what_is_split_is_whole_again(value: bytes) -> None:
    head, whole = split(value)
    assert (value if whole is None else whole) == value
    assert head == value[:HEAD_BYTES]
    assert (whole is None) == (len(value) <= HEAD_BYTES)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
def test_vectors_come_back_as_they_went(elements: list[float]) -> None:
    found = decode_vector(encode_vector(packed(elements)), len(elements))
    assert found.tolist() == np.array(elements, np.float32).tolist()


@given(st.binary(max_size=40), st.integers(1, 9))
def test_any_bytes_are_a_vector_or_damage(raw: bytes, dimension: int) -> None:
    with suppress(CorruptFile):
        assert len(decode_vector(raw, dimension)) == dimension


def test_texts_keep_their_zeros_and_damage_is_named() -> None:
    assert decode_text(encode_text("a\0ä")) == "a\0ä"
    with pytest.raises(CorruptFile):
        decode_text(b"\xff")
