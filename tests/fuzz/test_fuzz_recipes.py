"""Whatever stands in the store or is given as a name, the answer is an error of ours or a value."""

from __future__ import annotations

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarmd.base.errors import BadName, BadRequest, CorruptFile
from swarmd.base.lapse import TTL_MAX_S, TTL_MIN_S, kill_after_s, renew_after_s, stop_after_s
from swarmd.base.limits import KEY_BYTES_MAX
from swarmd.base.names import checked_name
from swarmd.state.recipes.records import (
    Kind,
    Ticket,
    decode_ticket,
    encode_ticket,
    line_of,
    place_key,
    read_place,
    request_key,
)

TICKET = st.builds(
    Ticket,
    owner=st.text(st.characters(codec="utf-8"), max_size=20),
    ttl_ms=st.integers(0, 2**62),
    asked_ms=st.integers(0, 2**62),
    value=st.binary(max_size=20),
    request=st.binary(max_size=32),
    count=st.integers(0, 256),
    opened=st.booleans(),
)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_as_a_ticket(raw: bytes) -> None:
    with contextlib.suppress(CorruptFile):
        assert decode_ticket(encode_ticket(decode_ticket(raw))) == decode_ticket(raw)


@given(TICKET, st.data())
@settings(max_examples=200)
def test_a_changed_ticket_is_refused_or_another_ticket(ticket: Ticket, data: st.DataObject) -> None:
    raw = bytearray(encode_ticket(ticket))
    assert decode_ticket(bytes(raw)) == ticket
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CorruptFile):
        decode_ticket(bytes(raw))


@given(st.binary(max_size=60))
@example(b"c/lock/a/zzzzzzzzzzzzzzzz")
@example(b"c/lock/\xff/0000000000000001")
@example(b"c/lock/a/-00000000000000f")
@settings(max_examples=300)
def test_any_key_as_a_place(key: bytes) -> None:
    with contextlib.suppress(CorruptFile):
        read_place(key)


@given(st.text(max_size=230), st.sampled_from(Kind), st.integers(-5, 2**64))
@example("\ud800", Kind.LOCK, 1)
@settings(max_examples=300)
def test_any_name_and_lease(name: str, kind: Kind, lease: int) -> None:
    """A name that is taken makes a key that fits, is found in its line, and reads as itself."""
    try:
        key = place_key(kind, name, lease)
    except (BadName, BadRequest):
        return
    assert len(key) <= KEY_BYTES_MAX
    assert key.startswith(line_of(kind, name))
    assert read_place(key) == (name, lease)
    assert key.count(b"/") == 3
    assert name.encode() == checked_name(name)


@given(st.binary(max_size=40))
def test_any_request(request: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert len(request_key(request)) <= KEY_BYTES_MAX


@given(st.floats(TTL_MIN_S, TTL_MAX_S))
def test_whatever_the_ttl_the_times_come_in_their_order(ttl_s: float) -> None:
    renew, stop, kill = renew_after_s(ttl_s), stop_after_s(ttl_s), kill_after_s(ttl_s)
    assert 0 < renew < stop < kill < ttl_s
    assert stop - renew >= renew / 4, "there is no time for another try"
