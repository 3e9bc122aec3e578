"""The hashes of a blob's chunks: what lets each chunk be verified as it comes. Pure.

A blob is cut into chunks of 256 KiB; the last one may be shorter. The manifest names them all, but
it is no part of the blob's name, so who sends a manifest is believed only until the whole blob was
hashed. A blob of one chunk needs none: its own hash is its chunk's.

    file    magic 4, format 1, size 8, hash of the blob 32; 32 per chunk; BLAKE2b-256 of all before
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from swarmd.base.errors import CorruptFile
from swarmd.base.limits import BLOB_CHUNK_BYTES, STREAMED_BYTES_MAX
from swarmd.state.blobs.messages import HASH_BYTES, hash_of

_MAGIC: Final = b"SWBM"
_FORMAT: Final = 1
_HEAD: Final = struct.Struct(f">4sBQ{HASH_BYTES}s")


def chunks_in(size: int) -> int:
    """How many chunks a blob of `size` bytes has."""
    return -(-size // BLOB_CHUNK_BYTES)


def chunk_size(size: int, index: int) -> int:
    """How many bytes chunk `index` of a blob of `size` bytes has."""
    return min(BLOB_CHUNK_BYTES, size - index * BLOB_CHUNK_BYTES)


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
        return len(data) == chunk_size(self.size, index) and hash_of(data) == self.hash_at(index)

    def hash_at(self, index: int) -> bytes:
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    @property
    def is_whole(self) -> bool:
        """Has it as many hashes as its blob has chunks, and no contradiction that shows?"""
        if not 0 <= self.size <= STREAMED_BYTES_MAX:
            return False
        if len(self.hashes) != chunks_in(self.size) * HASH_BYTES:
            return False
        return self.count != 1 or self.hashes == self.hash


def encode_manifest(manifest: Manifest) -> bytes:
    """What the file beside a blob holds."""
    head = _HEAD.pack(_MAGIC, _FORMAT, manifest.size, manifest.hash)
    return head + manifest.hashes + hash_of(head + manifest.hashes)


def decode_manifest(raw: bytes, *, source: str) -> Manifest:
    """The manifest in a file. Raises CorruptFile naming `source`."""
    body, checksum = raw[:-HASH_BYTES], raw[-HASH_BYTES:]
    if len(body) < _HEAD.size or hash_of(body) != checksum:
        raise CorruptFile(f"{source} is damaged: its checksum does not fit")
    magic, found_format, size, blob_hash = _HEAD.unpack_from(body)
    if magic != _MAGIC or found_format != _FORMAT:
        raise CorruptFile(f"{source} is no manifest of format {_FORMAT}")
    manifest = Manifest(blob_hash, size, body[_HEAD.size :])
    if not manifest.is_whole:
        raise CorruptFile(f"{source} has {manifest.count} hashes for {size} bytes")
    return manifest
