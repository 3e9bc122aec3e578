from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import MalformedMessage
from swarmd.wire.envelope import (
    SIGNATURES_MAX,
    Envelope,
    decode_envelope,
    encode_envelope,
    signing_bytes,
)


def test_signed_bytes_are_fixed() -> None:
    assert signing_bytes("join", b"\xaa\xbb", b"pay").hex() == (
        "737761726d6400763100" + "04" + "6a6f696e" + "02aabb" + "0000000000000003" + "706179"
    )


@given(
    st.tuples(st.text("abc", max_size=3), st.binary(max_size=3), st.binary(max_size=3)),
    st.tuples(st.text("abc", max_size=3), st.binary(max_size=3), st.binary(max_size=3)),
)
def test_no_two_statements_share_their_signed_bytes(
    one: tuple[str, bytes, bytes], other: tuple[str, bytes, bytes]
) -> None:
    assert (signing_bytes(*one) == signing_bytes(*other)) == (one == other)


def test_an_envelope_keeps_its_payload_byte_for_byte() -> None:
    envelope = Envelope("join", b"\x00payload", ((b"k" * 32, b"s" * 64),))
    assert decode_envelope(encode_envelope(envelope), domain="join") == envelope


def test_another_domain_is_refused() -> None:
    raw = encode_envelope(Envelope("join", b"", ()))
    with pytest.raises(MalformedMessage, match="domain 'join'"):
        decode_envelope(raw, domain="seal")


def test_signatures_are_bounded() -> None:
    raw = encode_envelope(Envelope("d", b"", ((b"", b""),) * (SIGNATURES_MAX + 1)))
    with pytest.raises(MalformedMessage, match="signatures"):
        decode_envelope(raw, domain="d")


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_malformed(raw: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        decode_envelope(raw, domain="d")
