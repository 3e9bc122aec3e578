from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import MalformedMessage, TooLarge
from swarmd.wire.codec import Family, Message, pack, unpack


class Ping(Message, tag=1):
    number: int
    body: bytes = b""


class Pong(Message, tag=2):
    number: int


FAMILY = Family("test", Ping, Pong, message_bytes_max=200)


def test_a_message_has_one_encoding() -> None:
    assert FAMILY.encode(Ping(7, b"x")).hex() == "01930107c40178"
    assert FAMILY.decode(bytes.fromhex("01930107c40178")) == Ping(7, b"x")


@given(st.integers(0, 2**63 - 1))
def test_messages_survive_the_wire(number: int) -> None:
    assert FAMILY.decode(FAMILY.encode(Pong(number))) == Pong(number)


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_malformed(raw: bytes) -> None:
    for candidate in (raw, b"\x01" + raw):
        with contextlib.suppress(MalformedMessage):
            assert isinstance(FAMILY.decode(candidate), Ping | Pong)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x02\x92\x02\x07",  # another format
        b"\x01\x92\x03\x07",  # unknown tag
        b"\x01\x92\x02\xa1x",  # wrong type
        b"\x01\x93\x02\x07\x07",  # a field too many
        b"\x01\x92\x02",  # truncated
        b"\x01\x92\x02\x07\x00",  # trailing bytes
        b"\x01" + b"\x91" * 150,  # nested out of all measure
        b"\x01\x93\x01\x07\xc4\xff",  # a length that lies
    ],
)
def test_malformed_input_is_named_so(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        FAMILY.decode(raw)


def test_both_sides_keep_the_size_bound() -> None:
    with pytest.raises(TooLarge, match="at most 200"):
        FAMILY.encode(Ping(1, bytes(200)))
    with pytest.raises(MalformedMessage, match="exceed 200"):
        FAMILY.decode(bytes(201))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_payloads_survive_and_are_plain_msgpack(value: Any) -> None:
    assert unpack(pack(value)) == value
    assert pack(value) == msgpack.packb(value, use_bin_type=True)


@given(st.binary(max_size=300))
def test_any_bytes_unpack_or_are_malformed(raw: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        unpack(raw)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, [lambda: 0], "\ud800"])
def test_what_msgpack_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(MalformedMessage, match="msgpack"):
        pack(value)


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_hostile_input_leaves_nothing_behind(junk: list[bytes]) -> None:
    for raw in junk:
        with contextlib.suppress(MalformedMessage):
            FAMILY.decode(b"\x01" + raw)
    assert FAMILY.decode(FAMILY.encode(Ping(7, b"x"))) == Ping(7, b"x")
