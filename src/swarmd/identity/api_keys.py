"""API keys: 256 bits that stand for a program or a person at the API.

The text is `swk_` and lower-case base32 (RFC 4648) of exactly 40 bytes: a version, the secret,
a checksum. The beginning lets scanners and logs tell it from other text. The swarm holds the
hash of the secret alone, made where the key was drawn; since the secret has all its 256 bits by
chance, a plain hash hides it (no salt or stretching adds to that).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from typing import Final

from swarmd.base.errors import Unauthenticated
from swarmd.base.ids import digest

KEY_TEXT_BEGIN: Final = "swk_"
_VERSION: Final = 1
_SECRET_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 7
KEY_TEXT_CHARS: Final = len(KEY_TEXT_BEGIN) + (1 + _SECRET_BYTES + _CHECKSUM_BYTES) * 8 // 5
_TEXT: Final = re.compile(KEY_TEXT_BEGIN + "[a-z2-7]{64}")
assert (1 + _SECRET_BYTES + _CHECKSUM_BYTES) % 5 == 0, "each base32 character must count"


def new_api_key() -> tuple[str, bytes]:
    """The text of a fresh key, and the hash that the swarm shall know it by."""
    secret = os.urandom(_SECRET_BYTES)
    body = bytes([_VERSION]) + secret
    text = base64.b32encode(body + _checksum(body)).decode("ascii").lower()
    return KEY_TEXT_BEGIN + text, _hash_of(secret)


def api_key_hash(text: str) -> bytes:
    """What the swarm knows the key in `text` by.

    Raises:
        Unauthenticated: it is none: cut off, mistyped, or made by another version.
    """
    if not _TEXT.fullmatch(text):
        raise Unauthenticated(
            f"this is no API key: one has {KEY_TEXT_CHARS} characters and begins with "
            f"{KEY_TEXT_BEGIN}; copy it again, whole"
        )
    raw = base64.b32decode(text[len(KEY_TEXT_BEGIN) :].upper())
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise Unauthenticated("the API key is mistyped: its checksum does not match; copy it again")
    if body[0] != _VERSION:
        raise Unauthenticated(f"the API key has version {body[0]}, this swarmd reads {_VERSION}")
    return _hash_of(body[1:])


def _hash_of(secret: bytes) -> bytes:
    return digest(b"api key", secret)


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"swarmd api key").digest()
