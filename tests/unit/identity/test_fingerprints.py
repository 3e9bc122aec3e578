"""Fingerprints: the same text for the same key and swarm, and what people type of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import BadRequest
from swarmd.identity.fingerprints import (
    FINGERPRINT_BYTES,
    PREFIX_BYTES_MIN,
    Fingerprint,
    door_of,
    fingerprint_of_node,
    fingerprint_of_swarm,
    parse_fingerprint,
)
from swarmd.identity.words import EVEN_WORDS, ODD_WORDS

DOOR = door_of(b"s" * 32)
NODE = fingerprint_of_node(DOOR, b"k" * 32)


def test_a_fingerprint_is_what_it_always_was() -> None:
    """Golden: two versions of swarmd must show the same, or nobody could compare."""
    assert DOOR.hex() == "87c9f342b00908794c58f2696f8d1ebf7bf6e6c65b7e6492b09601e6e0be6575"
    assert NODE.hex == "5c28 5194 ecad 57ca 186d"
    assert NODE.words == (
        "escape cellulose drunken molecule tumor perceptive eightball revenue beaming hazardous"
    )
    assert fingerprint_of_swarm(DOOR).hex == "16ca dc89 3124 7711 c7b3"


def test_it_is_of_one_length_and_of_one_key_in_one_swarm() -> None:
    prints = {
        fingerprint_of_node(door_of(swarm), key).raw
        for swarm in (b"s" * 32, b"t" * 32)
        for key in (b"k" * 32, b"l" * 32)
    } | {fingerprint_of_swarm(DOOR).raw}
    assert len(prints) == 5
    assert {len(one) for one in prints} == {FINGERPRINT_BYTES}
    assert len(NODE.hex.split()) == 5
    assert len(NODE.words.split()) == 10
    assert max(map(len, NODE.shown().splitlines())) < 80
    assert " ".join(NODE.shown().split()) == f"{NODE.words} ({NODE.hex})"


def test_the_words_are_told_apart() -> None:
    assert len(EVEN_WORDS) == len(ODD_WORDS) == 256
    assert not set(EVEN_WORDS) & set(ODD_WORDS)
    assert all(word.isalpha() and word.islower() for word in EVEN_WORDS + ODD_WORDS)
    # Published places of both lists.
    assert (EVEN_WORDS[0x00], ODD_WORDS[0x00]) == ("aardvark", "adroitness")
    assert (EVEN_WORDS[0x80], ODD_WORDS[0x80]) == ("merit", "intention")
    assert (EVEN_WORDS[0xE5], ODD_WORDS[0x82]) == ("topmost", "istanbul")
    assert (EVEN_WORDS[0xFF], ODD_WORDS[0xFF]) == ("zulu", "yucatan")
    # No word is read as hex.
    assert not [w for w in EVEN_WORDS + ODD_WORDS if set(w) <= set("0123456789abcdef")]


@given(st.binary(min_size=PREFIX_BYTES_MIN, max_size=FINGERPRINT_BYTES))
def test_what_is_shown_is_read_again(raw: bytes) -> None:
    made = Fingerprint(raw)
    for text in (made.hex, made.words, raw.hex(), made.words.upper(), made.words.replace(" ", "-"),
                 made.hex.replace(" ", ":")):  # fmt: skip
        assert parse_fingerprint(text) == made


@given(st.text())
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        found = parse_fingerprint(text)
    except BadRequest:
        return
    assert PREFIX_BYTES_MIN <= len(found.raw) <= FINGERPRINT_BYTES


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "5 words or 10 hex digits at least"),
        ("1a2b 3c4d", "5 words or 10 hex digits at least"),
        ("1a2b 3c4d 5", "a digit is missing"),
        ("1a2b " * 6, "has 10 words or 20 hex digits"),
        ("aardvark adroitness absurd adviser", "5 words"),
        ("aardvark absurd adroitness adviser accrue", "'absurd' cannot be word 2"),
        ("aardvark adroitness absurd adviser zebra", "'zebra' is no word"),
        ("aardvark adroitness absurd adviser 1a", "'1a' is no word"),
    ],
)
def test_a_slip_is_named(text: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        parse_fingerprint(text)


def test_a_beginning_names_whoever_begins_so() -> None:
    assert NODE.begins(Fingerprint(NODE.raw[:PREFIX_BYTES_MIN]))
    assert NODE.begins(NODE)
    assert NODE.is_whole
    assert not Fingerprint(NODE.raw[:5]).is_whole
    assert not NODE.begins(Fingerprint(b"\0" * 5))
