"""Tokens: text and back, and a sentence for each way to get one wrong."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.base.errors import TokenRefused
from swarmd.identity.keys import SigningKey
from swarmd.identity.tokens import (
    TOKEN_ROLES,
    TOKEN_TEXT_CHARS,
    Moment,
    Token,
    decode_token,
    encode_token,
    new_token,
)

TOKEN = Token(b"s" * 32, 7, 3, b"h" * 32, b"e" * 32, "member", 1_000)
MOMENT = Moment(0, b"h" * 32, 1, b"k" * 16)
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@given(
    swarm=st.binary(min_size=32, max_size=32),
    height=st.integers(min_value=0, max_value=2**64 - 1),
    epoch=st.integers(min_value=0, max_value=10**12),
    seed=st.binary(min_size=32, max_size=32),
    role=st.sampled_from(sorted(TOKEN_ROLES)),
    expires=st.integers(min_value=0, max_value=2**64 - 1),
)
@settings(deadline=None, max_examples=50)
def test_text_and_back(
    swarm: bytes, height: int, epoch: int, seed: bytes, role: str, expires: int
) -> None:
    token = Token(swarm, height, epoch, b"h" * 32, seed, role, expires)
    text = encode_token(token)
    assert len(text) == TOKEN_TEXT_CHARS
    assert text == text.lower()
    assert decode_token(text) == token


def test_white_space_and_case_do_not_matter() -> None:
    text = encode_token(TOKEN)
    wrapped = "  " + text[:60].upper() + "\n" + text[60:] + "\r\n"
    assert decode_token(wrapped) == TOKEN


def test_the_key_comes_from_the_seed_and_is_not_shown() -> None:
    assert TOKEN.key.public == SigningKey.from_seed(b"e" * 32).public
    assert TOKEN.token_id == TOKEN.key.key_id
    assert "e" * 8 not in repr(TOKEN)
    assert (
        new_token(b"s" * 32, MOMENT, expires_ms=1).seed
        != new_token(b"s" * 32, MOMENT, expires_ms=1).seed
    )


@given(position=st.integers(min_value=0, max_value=TOKEN_TEXT_CHARS - 1), data=st.data())
@settings(deadline=None, max_examples=100)
def test_any_one_mistyped_letter_is_noticed(position: int, data: st.DataObject) -> None:
    text = encode_token(TOKEN)
    letter = data.draw(st.sampled_from([x for x in ALPHABET if x != text[position]]))
    with pytest.raises(TokenRefused, match="mistyped"):
        decode_token(text[:position] + letter + text[position + 1 :])


def test_each_other_mistake_has_its_sentence() -> None:
    text = encode_token(TOKEN)
    cases: list[tuple[str, str]] = [
        ("", "is empty"),
        (" \n", "is empty"),
        (text[:-1], "199 characters instead of 200"),
        (text[:-8], "192 characters instead of 200"),
        (text + "a", "201 characters instead of 200"),
        (text[:10], "10 characters instead of 200"),
        ("0" + text[1:], "'0' at character 1"),
        (text[:5] + "é" + text[6:], "'é' at character 6"),
        ("x" * 100_000, "not copied whole"),
    ]
    for wrong, words in cases:
        with pytest.raises(TokenRefused) as caught:
            decode_token(wrong)
        assert words in caught.value.message


def _text_of(body: bytes) -> str:
    checksum = hashlib.blake2b(body, digest_size=6, person=b"swarmd token").digest()
    return base64.b32encode(body + checksum).decode().lower()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: b"\x01" + body[1:], "version 1"),
        (lambda body: body + bytes(5), "wrong length"),
        (lambda body: body[:110] + b"\x63" + body[111:], "role"),
    ],
)
def test_tokens_of_other_versions_are_named(change: Any, words: str) -> None:
    body = base64.b32decode(encode_token(TOKEN).upper())[:-6]
    with pytest.raises(TokenRefused) as caught:
        decode_token(_text_of(change(body)))
    assert words in caught.value.message
