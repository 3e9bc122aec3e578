"""Fingerprints: what people compare, and what they name a node by that has no token.

A fingerprint is 80 bits of BLAKE2b, shown as ten words (`identity.words`) and as five groups of
hex digits. That of a node covers its key and the swarm that it asks, so that one comparison on
both screens tells that the key is the one and the swarm is the one. To make another key with
the same fingerprint takes 2^80 tries, each the making of a key.

What a stranger is told of a swarm is its *door*, a hash of its id: requests are bound to it, and
the id itself, which keys adverts and datagrams, stays among members.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import BadRequest
from swarmd.base.ids import digest
from swarmd.identity.words import EVEN_WORDS, ODD_WORDS

FINGERPRINT_BYTES: Final = 10
# Who names a node by fewer than these must see the whole and say yes: 2^40 tries, some days of
# one machine, make a key with the same beginning.
PREFIX_BYTES_MIN: Final = 5
_GROUP_CHARS: Final = 4
_TEXT_CHARS_MAX: Final = 256
_BYTE_OF_WORD: Final = {
    **{word: (0, byte) for byte, word in enumerate(EVEN_WORDS)},
    **{word: (1, byte) for byte, word in enumerate(ODD_WORDS)},
}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of `FINGERPRINT_BYTES` bytes, or, as people name one, the first of them."""

    raw: bytes

    @property
    def hex(self) -> str:
        """Groups of four digits, by spaces."""
        digits = self.raw.hex()
        return " ".join(
            digits[at : at + _GROUP_CHARS] for at in range(0, len(digits), _GROUP_CHARS)
        )

    @property
    def words(self) -> str:
        """A word for each byte, by spaces."""
        return " ".join((EVEN_WORDS, ODD_WORDS)[at % 2][byte] for at, byte in enumerate(self.raw))

    def shown(self, indent: str = "  ") -> str:
        """As it stands on a screen: the words on two lines, the hex below."""
        words = self.words.split()
        half = (len(words) + 1) // 2
        lines = (" ".join(words[:half]), " ".join(words[half:]), f"({self.hex})")
        return "\n".join(indent + line for line in lines if line)

    @property
    def is_whole(self) -> bool:
        return len(self.raw) == FINGERPRINT_BYTES

    def begins(self, prefix: Fingerprint) -> bool:
        return self.raw.startswith(prefix.raw)


def door_of(swarm_id: bytes) -> bytes:
    """What stands for a swarm towards strangers: one cannot tell its id from it."""
    return digest(b"swarm door", swarm_id)


def fingerprint_of_swarm(door: bytes) -> Fingerprint:
    """What `swarmctl status` shows, and who joins without a token compares."""
    return _fingerprint(b"swarm print", door)


def fingerprint_of_node(door: bytes, public: bytes) -> Fingerprint:
    """Of the node with this key, as it asks the swarm behind this door."""
    return _fingerprint(b"node print", door, public)


def _fingerprint(person: bytes, *parts: bytes) -> Fingerprint:
    state = hashlib.blake2b(digest_size=FINGERPRINT_BYTES, person=person)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return Fingerprint(state.digest())


def parse_fingerprint(text: str) -> Fingerprint:
    """What a person typed, in words or in hex; also the beginning of one.

    White space, dashes, colons and case do not matter.

    Raises:
        BadRequest: it is neither, or shorter than `PREFIX_BYTES_MIN` bytes; says which part is
            wrong.
    """
    parts = "".join(c if c not in "-:," else " " for c in text[:_TEXT_CHARS_MAX]).lower().split()
    raw = _of_hex("".join(parts)) if all(map(_is_hex, parts)) else _of_words(parts)
    if len(raw) < PREFIX_BYTES_MIN:
        raise BadRequest(
            f"a fingerprint is named by {PREFIX_BYTES_MIN} words or {2 * PREFIX_BYTES_MIN} hex "
            "digits at least"
        )
    if len(raw) > FINGERPRINT_BYTES:
        raise BadRequest(
            f"a fingerprint has {FINGERPRINT_BYTES} words or {2 * FINGERPRINT_BYTES} hex digits"
        )
    return Fingerprint(raw)


def _is_hex(part: str) -> bool:
    return all(c in "0123456789abcdef" for c in part)


def _of_hex(digits: str) -> bytes:
    if len(digits) % 2:
        raise BadRequest("a fingerprint has an even number of hex digits: a digit is missing")
    return bytes.fromhex(digits)


def _of_words(words: list[str]) -> bytes:
    found = bytearray()
    for at, word in enumerate(words):
        place, byte = _BYTE_OF_WORD.get(word, (-1, 0))
        if place < 0:
            raise BadRequest(f"{word[:20]!r} is no word of a fingerprint")
        if place != at % 2:
            raise BadRequest(
                f"{word!r} cannot be word {at + 1}: one is missing, or two are swapped"
            )
        found.append(byte)
    return bytes(found)
