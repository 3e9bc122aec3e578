"""The hashes of a blob's chunks: what lets each chunk be verified as it comes. Pure.

The name of the blob proves them (`naming.py`), so whoever sends a manifest need not be believed,
and the file beside a blob needs no checksum. A blob of one chunk needs none: its own hash is its
chunk's.

    file    magic 4, format 1; 32 per chunk
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import CorruptFile
from swarmd.base.limits import STREAMED_BYTES_MAX
from swarmd.state.blobs.naming import HASH_BYTES, chunk_hasher, chunk_size, chunks_in, name_of

_MAGIC: Final = b"SWBM"
_FORMAT: Final = 2
_HEAD: Final = struct.Struct(">4sB")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The chunks of one blob. `hashes` is theirs, joined, in order."""

    hash: bytes
    size: int
    hashes: bytes

    @property
    def count(self) -> int:
        return len(self.hashes) // HASH_BYTES

    def fits(self, index: int, data: bytes) -> bool:
        """Is `data` chunk `index`?"""
        if len(data) != chunk_size(self.size, index):
            return False
        state = chunk_hasher(index, self.count)
        state.update(data)
        return state.digest() == self.hash_at(index)

    def hash_at(self, index: int) -> bytes:
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    @property
    def is_true(self) -> bool:
        """Has it as many hashes as its blob has chunks, and are they what the blob is named by?"""
        if not 0 <= self.size <= STREAMED_BYTES_MAX:
            return False
        if len(self.hashes) != chunks_in(self.size) * HASH_BYTES:
            return False
        return name_of(self.hashes) == self.hash


def encode_manifest(manifest: Manifest) -> bytes:
    """What the file beside a blob holds."""
    return _HEAD.pack(_MAGIC, _FORMAT) + manifest.hashes


def decode_manifest(raw: bytes, blob_hash: bytes, size: int, *, source: str) -> Manifest:
    """The manifest in the file beside a blob. Raises CorruptFile naming `source`."""
    if raw[: _HEAD.size] != _HEAD.pack(_MAGIC, _FORMAT):
        raise CorruptFile(f"{source} is no manifest of format {_FORMAT}")
    manifest = Manifest(blob_hash, size, raw[_HEAD.size :])
    if not manifest.is_true:
        raise CorruptFile(f"{source} is damaged: it is not what its blob is named by")
    return manifest
