"""Data that lies somewhere: sealed under a key that is kept elsewhere.

A box is `salt, ciphertext, tag`: ChaCha20-Poly1305 (RFC 8439) under a key that keyed BLAKE2b
makes of the sealing key and 16 bytes of the salt, with the other 8 as its nonce. The salt is 192
bits by chance, so one key seals as much as anybody likes, on as many hosts, with no counter to
keep. What a box is about goes into its associated data: a box opens nowhere else.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarmd.base.disk import open_body, seal_body
from swarmd.base.errors import BadSignature, CorruptFile
from swarmd.base.files import write_atomically
from swarmd.base.ids import digest
from swarmd.base.sealed_file import BOX_BYTES_EXTRA, SEALER_ID_BYTES
from swarmd.identity.keys import KEY_BYTES, KEY_FILE_MODE, TAG_BYTES, read_private_file

SALT_BYTES: Final = 24
SEAL_ID_BYTES: Final = 16
_DERIVING_BYTES: Final = 16
_PERSON: Final = b"swarmd sealing"
_FILE_KIND: Final = "datakey"
_FILE_FORMAT: Final = 1

assert BOX_BYTES_EXTRA == SALT_BYTES + TAG_BYTES
assert SEALER_ID_BYTES == SEAL_ID_BYTES


class SealingKey:
    """A key of 32 bytes that seals data at rest. Neither `repr` nor an exception shows it."""

    def __init__(self, raw: bytes) -> None:
        assert len(raw) == KEY_BYTES, "a sealing key has 32 bytes"
        self._raw = raw
        self.id: bytes = digest(b"sealing key", raw)[:SEAL_ID_BYTES]

    def __repr__(self) -> str:
        return f"SealingKey({self.id.hex()[:8]})"

    @classmethod
    def generate(cls) -> SealingKey:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def load(cls, path: Path) -> SealingKey:
        """The key in a file that `save` wrote.

        Raises:
            NotFound: there is no such file.
            KeyFileRefused: it cannot be opened, is no plain file, or others may read it.
            CorruptFile: it holds something else, or is damaged.
        """
        raw = read_private_file(path, given=True)
        key = open_body(_FILE_KIND, _FILE_FORMAT, raw, source=str(path))
        if len(key) != KEY_BYTES:
            raise CorruptFile(f"{path} holds a key of {len(key)} bytes, not {KEY_BYTES}")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key to `path` with mode 0600, atomically. Raises DiskFault."""
        body = seal_body(_FILE_KIND, _FILE_FORMAT, self._raw)
        write_atomically(path, body, mode=KEY_FILE_MODE)

    def raw(self) -> bytes:
        """The key itself, to be kept or handed on."""
        return self._raw

    def seal(self, data: bytes, about: bytes) -> bytes:
        """A box with `data`, bound to `about`; `BOX_BYTES_EXTRA` longer."""
        salt = os.urandom(SALT_BYTES)
        return salt + self._cipher(salt).encrypt(_nonce(salt), data, about)

    def open(self, box: bytes, about: bytes) -> bytes:
        """What was sealed.

        Raises:
            BadSignature: sealed under another key or about something else, or changed since.
        """
        if len(box) < BOX_BYTES_EXTRA:
            raise BadSignature("a sealed box is cut off")
        salt = box[:SALT_BYTES]
        try:
            return self._cipher(salt).decrypt(_nonce(salt), box[SALT_BYTES:], about)
        except InvalidTag as error:
            raise BadSignature("a sealed box does not open") from error

    def _cipher(self, salt: bytes) -> ChaCha20Poly1305:
        made = hashlib.blake2b(
            salt[:_DERIVING_BYTES], digest_size=KEY_BYTES, key=self._raw, person=_PERSON
        )
        return ChaCha20Poly1305(made.digest())


def _nonce(salt: bytes) -> bytes:
    return bytes(4) + salt[_DERIVING_BYTES:]
