"""Boxes open for what they are about, under their own key, whole; and nothing else does."""

from __future__ import annotations

import pytest

from swarmd.base.errors import BadSignature
from swarmd.base.sealed_file import BOX_BYTES_EXTRA
from swarmd.identity.sealing import SEAL_ID_BYTES, SealingKey

KEY = SealingKey(b"k" * 32)


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 100_000])
def test_what_is_sealed_opens_and_is_never_the_same_twice(data: bytes) -> None:
    box = KEY.seal(data, b"about")
    assert KEY.open(box, b"about") == data
    assert len(box) == len(data) + BOX_BYTES_EXTRA
    assert KEY.seal(data, b"about") != box
    if len(data) > 8:
        assert data not in box


def test_a_box_opens_for_nothing_else() -> None:
    box = KEY.seal(b"data", b"about")
    others = [
        (SealingKey(b"l" * 32), box, b"about"),
        (KEY, box, b"above"),
        (KEY, box[:-1], b"about"),
        (KEY, box + b"x", b"about"),
        (KEY, b"", b"about"),
    ]
    for place in range(len(box)):
        bent = bytearray(box)
        bent[place] ^= 1
        others.append((KEY, bytes(bent), b"about"))
    for key, raw, about in others:
        with pytest.raises(BadSignature):
            key.open(raw, about)


def test_a_key_is_named_and_never_shown() -> None:
    made = SealingKey.generate()
    assert len(made.id) == SEAL_ID_BYTES
    assert made.id == SealingKey(made.raw()).id != KEY.id
    assert made.raw().hex() not in repr(made)
    assert made.raw() not in made.seal(b"data", b"")


def test_a_box_is_as_it_always_was() -> None:
    """A box of another build: what it holds is read by this one."""
    box = bytes.fromhex(GOLDEN)
    assert KEY.open(box, b"about") == b"golden"


GOLDEN = (
    "e4ca229b5f1aa4ea43637b2f27621c0d1c7787444efaead13666f01f46ad1989bd415bd82945cbc25812d734edbc"
)
